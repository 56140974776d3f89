"""The page of a task with numbers beside its labels: labels are spoken of as labels, numbers as numbers."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
from playwright.sync_api import Browser

from finetune.report.evidence import decisions, read_evidence
from finetune.report.words import label_kind, title_of
from finetune.run import finetune
from tests import miniatures
from tests.browser import PHONE, WIDEST, opened
from tests.finetune_runs import recipe, write_encoder
from tests.finetune_ways import ECHO
from tests.importers import imported
from tests.test_data_page import Outline


def made(folder: Path, grades: tuple[str, ...]) -> Path:
    """A finished linear run on echo frames, whose label is a reduced fraction or, with grades, one of them."""
    table = miniatures.echo_table(folder / "raw")
    if grades:
        header, *rows = (line.split(",") for line in table.read_text().splitlines())
        seen = {row[1]: float(row[3] or 20) for row in rows}
        ends = np.quantile(list(seen.values()), np.arange(1, len(grades)) / len(grades))
        rows = [[*row[:2], grades[int(np.searchsorted(ends, seen[row[1]]))], *row[3:]] for row in rows]
        table.write_text("\n".join(",".join(row) for row in (header, *rows)) + "\n")
    dataset = imported("table", table, folder / "dataset", *ECHO)
    encoder = write_encoder(folder / "encoder", dataset)
    changed: dict[str, Any] = {"head": "linear", "numbers": ["EF"], "baselines": ["untrained", "pca"]}
    finetune(recipe(dataset, encoder, folder / "out", full={}, **changed))
    return folder / "out"


@pytest.fixture(scope="module")
def binary(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return made(tmp_path_factory.mktemp("binary"), ())


@pytest.fixture(scope="module")
def exclusive(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return made(tmp_path_factory.mktemp("exclusive"), ("low", "middle", "high"))


def results_in(out: Path) -> dict[str, Any]:
    return json.loads((out / "results.json").read_text())


def words_in(out: Path) -> str:
    return " ".join(" ".join(Outline((out / "report.html").read_text()).words).split())


def test_one_label_beside_a_number_is_a_label_of_yes_or_no(binary: Path) -> None:
    results, words = results_in(binary), words_in(binary)
    assert (results["task"], results["labels"]) == ("two_heads", ["reduced_ef", "EF"])
    assert "says whether reduced_ef is there and estimates EF." in words
    assert "a probability of reduced_ef, and an estimate of EF" in words
    assert "Conditions other than reduced_ef: it says nothing of others." in words
    assert title_of("auroc", results) == "AUROC" and "Macro" not in words and "averaged over" not in words
    row = results["models"]["pretrained"]["test"]["per_class"]["reduced_ef"]
    assert f"It found {100 * row['sensitivity']['value']:.1f} %" in words
    error = results["models"]["pretrained"]["test"]["numbers"]["EF"]["mae"]["value"]
    assert f"EF: mean absolute error {error:.3f}" in words
    assert "A case's answer: mean of the probabilities of a case's images. " in words
    assert "how many patients each stratum has is drawn too" in words


def test_classes_beside_a_number_are_decided_by_the_largest_probability(exclusive: Path) -> None:
    results, words = results_in(exclusive), words_in(exclusive)
    assert results["task"] == "two_heads" and label_kind(results) == "multiclass"
    assert "says which of 3 classes it is (high, low and middle) and estimates EF." in words
    assert "It named the right class in" in words and "averaged over the labels" in words
    assert "a probability of each of high, low and middle, and an estimate of EF" in words
    assert "Conditions other than high, low and middle: it must choose among these" in words
    assert title_of("auroc", results) == "Macro AUROC"
    evidence = read_evidence((exclusive / "predictions.parquet").read_bytes(), results)
    assert evidence is not None and evidence.labels == ("high", "low", "middle")
    decided = decisions(evidence, results)
    assert (decided.decided_NC.sum(axis=1) == 1).all()
    assert [
        [int((decided.true_NC[:, t] & decided.decided_NC[:, d]).sum()) for d in range(3)] for t in range(3)
    ] == results["models"]["pretrained"]["test"]["confusion"]["cases"]
    assert "false alarms" not in words and "mistaken" in words


@pytest.mark.parametrize("kind", ["binary", "exclusive"])
def test_the_page_of_two_heads_fits_a_phone(kind: str, request: pytest.FixtureRequest, browser: Browser) -> None:
    shown = opened(browser, request.getfixturevalue(kind) / "report.html", PHONE, "dark")
    assert shown.overflow_px() == 0 and shown.complaints == [] and shown.left_the_page() == []
    assert len(shown.numbers("Estimated numbers, in the units of the labels.")) == 3
    assert shown.page.locator("svg.plot").count() > 0 and shown.page.evaluate(WIDEST) <= PHONE
    pictures = shown.pictures()
    assert pictures and all(size > 0 and alt for size, alt in pictures)
    shown.page.close()


@pytest.mark.parametrize("kind", ["binary", "exclusive"])
def test_differences_of_numbers_are_paired_and_say_which_way_is_better(
    kind: str, request: pytest.FixtureRequest
) -> None:
    out = request.getfixturevalue(kind)
    results, words = results_in(out), words_in(out)
    frame = pq.read_table(out / "predictions.parquet").to_pandas()
    errors = {}
    for name, rows in frame[frame.split == "test"].groupby("model"):
        cases = rows.groupby("key").mean(numeric_only=True)
        errors[name] = (cases["predicted.EF"] - cases["number.EF"]).abs()
    for baseline in ("untrained", "pca"):
        (row,) = [r for r in results["comparisons"] if (r["baseline"], r["figure"]) == (baseline, "mae")]
        assert row["label"] == "EF"
        assert row["value"] == pytest.approx((errors["pretrained"] - errors[baseline]).mean())
        assert row["low"] <= row["value"] <= row["high"] and row["p"] <= row["p_holm"]
    assert "MAE, EF (smaller is better)" in words and "RMSE, EF (smaller is better)" in words
    assert "Pearson, EF" in words and "Pearson, EF (" not in words
