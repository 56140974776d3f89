"""The table of several results folders."""

import json
from pathlib import Path
from typing import Any

import pytest

from finetune.__main__ import _main
from finetune.table import markdown


def results(share: float, value: float | None, head: str = "linear") -> dict[str, Any]:
    figure = {
        "value": value,
        "low": None if value is None else value - 0.1,
        "high": None if value is None else value + 0.1,
    }
    test = {"auroc": figure, "balanced_accuracy": {"value": 0.5, "low": None, "high": None}}
    model = {"head": head, "title": "resnet18, simclr", "test": test}
    return {"kind": "finetune", "identity": {"recipe": {"label_fraction": share}}, "models": {"pretrained": model}}


def test_rows_are_models_and_columns_shares_of_the_labels() -> None:
    lines = markdown([results(1.0, 0.8), results(0.1, 0.7), results(1.0, None, "full")]).splitlines()
    assert lines[0] == (
        "| head | model | AUROC, 10% of labels | balanced accuracy, 10% of labels | AUROC, 100% of labels | "
        "balanced accuracy, 100% of labels |"
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
