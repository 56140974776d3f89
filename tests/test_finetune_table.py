"""The table of several results folders."""

import json
from pathlib import Path
from typing import Any

import pytest

from clusters.config import InputError
from clusters.storage import Folder
from finetune.__main__ import _main
from finetune.sealed import read_sealed, sealed
from finetune.table import markdown, run


def results(share: float, value: float | None, head: str = "linear", **changed: Any) -> dict[str, Any]:
    figure = {
        "value": value,
        "low": None if value is None else value - 0.1,
        "high": None if value is None else value + 0.1,
    }
    test = {"auroc": figure, "balanced_accuracy": {"value": 0.5, "low": None, "high": None}}
    model = {"head": head, "title": "resnet18, simclr", "test": test}
    return {
        "kind": "finetune",
        "identity": {"recipe": {"label_fraction": share}},
        "models": {"pretrained": model},
        "dataset": {"name": "ham", "fingerprint": "a" * 64},
        "labels": ["nevus", "melanoma"],
        "bootstrap": {"confidence": 0.95},
        **changed,
    }


def test_rows_are_models_and_columns_shares_of_the_labels() -> None:
    lines = markdown([results(1.0, 0.8), results(0.1, 0.7), results(1.0, None, "full")]).splitlines()
    assert lines[0] == (
        "| head | model | AUROC, 10 % of labels | balanced accuracy, 10 % of labels | AUROC, 100 % of labels | "
        "balanced accuracy, 100 % of labels |"
    )
    assert lines[2] == "| linear | resnet18, simclr | 0.700 (0.600–0.800) | 0.500 | 0.800 (0.700–0.900) | 0.500 |"
    assert lines[3] == "| full | resnet18, simclr |  |  | undefined | 0.500 |"


def test_results_that_contradict_each_other_or_are_not_there_are_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for name, value in (("a", 0.8), ("b", 0.7)):
        (tmp_path / name).mkdir()
        (tmp_path / name / "results.json").write_text(json.dumps(results(1.0, value)))
    (tmp_path / "c").mkdir()
    (tmp_path / "c/results.json").write_text(json.dumps({"kind": "external", "identity": {"model": "f"}}))
    for given, said in (
        ("a c", "c is of another command; give results folders of fine-tuning itself"),
        ("a b", "two results folders differ in its figures"),
        ("a nowhere", "nowhere has no results.json"),
    ):
        with pytest.raises(SystemExit) as ended:
            _main(["table", *(str(tmp_path / name) for name in given.split())])
        assert ended.value.code == 2
        assert said in capsys.readouterr().err
    _main(["table", str(tmp_path / "a")])
    assert "0.800 (0.700–0.900)" in capsys.readouterr().out


def test_small_shares_have_headings_of_their_own() -> None:
    header = markdown([results(0.001, 0.6), results(0.004, 0.7)]).splitlines()[0]
    assert "AUROC, 0.1 % of labels" in header and "AUROC, 0.4 % of labels" in header


def test_models_of_one_title_in_one_folder_have_rows_of_their_own() -> None:
    found = results(1.0, 0.8)
    found["models"]["encoder-2"] = results(1.0, 0.7)["models"]["pretrained"]
    rows = [line.split(" | ")[1:3] for line in markdown([found]).splitlines()[2:]]
    assert rows == [
        ["resnet18, simclr", "0.800 (0.700–0.900)"],
        ["resnet18, simclr (encoder-2)", "0.700 (0.600–0.800)"],
    ]


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        (
            {"dataset": {"name": "ham", "fingerprint": "b" * 64}},
            r"dataset: ham \(aaaaaaaa\) in .*a and ham \(bbbbbbbb\)",
        ),
        ({"labels": ["nevus"]}, r"labels: nevus, melanoma in .*a and nevus in .*b; give"),
        ({"bootstrap": {"confidence": 0.9}}, r"confidence of the intervals: 95 % in .*a and 90 % in .*b; give"),
    ],
)
def test_figures_of_different_studies_do_not_stand_in_one_table(
    tmp_path: Path, changed: dict[str, Any], said: str
) -> None:
    for name, told in (("a", results(1.0, 0.8)), ("b", results(0.1, 0.7, **changed))):
        Folder(tmp_path / name).write_json("results.json", told)
    with pytest.raises(InputError, match=said):
        run([str(tmp_path / "a"), str(tmp_path / "b")])


def test_a_figure_that_was_changed_is_not_printed(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = Folder(tmp_path / "a")
    folder.write_json("results.json", sealed(results(1.0, 0.861)))
    run([folder.location])
    assert "0.861" in capsys.readouterr().out
    file = tmp_path / "a/results.json"
    file.write_text(file.read_text().replace("0.861", "0.961"))
    with pytest.raises(InputError, match=r"results\.json was altered \(its own hash differs\); run the command that"):
        run([folder.location])


def test_a_seal_holds_whatever_json_makes_of_what_is_told(tmp_path: Path) -> None:
    told = {"count": {10: 1, 9: (0.1, float("nan"))}, "name": "Größe", "none": None}
    Folder(tmp_path).write_json("results.json", sealed(told))
    found = read_sealed(Folder(tmp_path), "results.json")
    assert found["count"]["10"] == 1 and read_sealed(Folder(tmp_path), "results.json")["name"] == "Größe"
