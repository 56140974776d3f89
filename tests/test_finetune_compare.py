"""Models of different runs against each other, from what their folders hold."""

import json
import shutil
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from clusters.config import InputError
from data.dataset import Dataset
from finetune.__main__ import _main
from finetune.compare import differences, markdown, run
from finetune.config import FinetuneConfig
from finetune.run import finetune
from finetune.trained import open_trained
from tests import miniatures
from tests.finetune_runs import recipe, write_encoder
from tests.finetune_ways import ECHO
from tests.importers import imported


@pytest.fixture(scope="module")
def runs(synthetic_dataset: Dataset, tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """Both encoders in one run, and the second by itself; not to be altered."""
    folder = tmp_path_factory.mktemp("compare")
    first, second = (write_encoder(folder / str(seed), synthetic_dataset, seed=seed) for seed in (0, 1))
    for out, encoder, baselines in (("both", first, [second]), ("second", second, [])):
        finetune(recipe(synthetic_dataset, encoder, folder / out, head="linear", baselines=baselines))
    return [str(folder / "both"), str(folder / "second")]


def test_differences_are_those_of_one_run_of_both(runs: list[str]) -> None:
    """Value, interval and p-values: the resamples are the same, whether the two were fitted together or apart."""
    rows, _ = differences([open_trained(location) for location in runs], ["one", "two"])
    expected = json.loads((Path(runs[0]) / "results.json").read_text())["comparisons"]
    assert len(rows) == len(expected) > 6
    assert any(row["value"] for row in rows)
    for row, other in zip(rows, expected):
        assert (row["model"], row["baseline"]) == ("one", "two")
        for name in ("figure", "label"):
            assert row[name] == other[name]
        for name in ("value", "low", "high", "p", "p_holm", "p_delong"):
            assert row[name] == pytest.approx(other[name], abs=1e-9), (row["figure"], row["label"], name)


def test_the_table_has_a_row_a_figure(runs: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    _main(["compare", *runs])
    lines = capsys.readouterr().out.splitlines()
    header = "| figure | first | other | other's | difference (95 % interval) | p | p after Holm |"
    assert lines[0] == header and lines[1].count("---") == 7
    assert any(line.startswith("| top-1 accuracy |") for line in lines)
    test = json.loads((Path(runs[0]) / "results.json").read_text())["models"]["pretrained"]["test"]
    (auroc,) = (line for line in lines if line.startswith("| AUROC |"))
    assert auroc.startswith(f"| AUROC | {test['auroc']['value']:.3f} | {runs[1]} | ")


def test_numbers_beside_labels_are_compared_too(tmp_path: Path) -> None:
    dataset = imported("table", miniatures.echo_table(tmp_path / "raw"), tmp_path / "dataset", *ECHO)
    out = []
    for seed in (0, 1):
        encoder = write_encoder(tmp_path / str(seed), dataset, seed=seed)
        changed = {"head": "linear", "label": "reduced_ef", "numbers": ["EF"]}
        finetune(recipe(dataset, encoder, tmp_path / f"out-{seed}", **changed))
        out.append(str(tmp_path / f"out-{seed}"))
    rows, reported = differences([open_trained(location) for location in out], ["one", "two"])
    assert "| accuracy |" in markdown(rows, reported) and "top-1" not in markdown(rows, reported)
    (mae,) = (row for row in rows if (row["figure"], row["label"]) == ("mae", "EF"))
    results = [json.loads((Path(location) / "results.json").read_text()) for location in out]
    values = [found["models"]["pretrained"]["test"]["numbers"]["EF"]["mae"]["value"] for found in results]
    assert mae["value"] == pytest.approx(values[0] - values[1], abs=1e-9)


def test_runs_of_other_cases_or_labels_are_refused(runs: list[str], synthetic_dataset: Dataset, tmp_path: Path) -> None:
    encoder = write_encoder(tmp_path, synthetic_dataset)
    finetune(recipe(synthetic_dataset, encoder, tmp_path / "out", head="linear", label="melanoma"))
    with pytest.raises(InputError, match=r"has the labels .*, melanoma, .* and .*/out melanoma; give runs of the same"):
        run([runs[0], str(tmp_path / "out")])
    with pytest.raises(InputError, match="names the same folder twice"):
        run([runs[0], runs[0]])
    with pytest.raises(InputError, match="give two results folders or more"):
        run(runs[:1])


@pytest.mark.parametrize("told", ["hash", "no hash"])
def test_predictions_of_others_are_told_in_one_line(
    runs: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str], told: str
) -> None:
    """By the hash in results.json or, in results of before, by a missing column; the command makes them again."""
    out = tmp_path / "out"
    shutil.copytree(runs[1], out)
    results = json.loads((out / "results.json").read_text())
    if told == "no hash":
        del results["predictions_sha256"], results["sha256"]
        (out / "results.json").write_text(json.dumps(results))
        assert len(differences([open_trained(one) for one in (runs[0], str(out))], ["one", "two"])[0]) > 6
    foreign = pa.table({"image": ["a.png"], **{f"probability.{label}": [0.2] for label in results["labels"]}})
    pq.write_table(foreign, out / "predictions.parquet")
    why = {"hash": "its SHA-256 is another", "no hash": "it has no column 'model'"}[told]
    for command in (["compare", runs[0], str(out)], ["report", str(out)]):
        with pytest.raises(SystemExit):
            _main(command)
        error = capsys.readouterr().err
        assert f"out/predictions.parquet: not the predictions of these results ({why}); restore it" in error
        assert error.count("\n") == 1
    config = json.loads((out / "config.json").read_text())["config"]
    finetune(FinetuneConfig.model_validate({**config, "out": str(out)}))
    assert f"is not that of these results ({why}); the results are made again" in capsys.readouterr().out
    _main(["compare", runs[0], str(out)])
    assert json.loads((out / "results.json").read_text())["test_evaluations"] == 2
