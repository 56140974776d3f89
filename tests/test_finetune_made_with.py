"""With which code results and cached features were made: noted, and said where it is other."""

import json
from pathlib import Path
from typing import Any

import pytest

from clusters import versions as of_clusters
from clusters.storage import Folder
from data.dataset import Dataset
from finetune.config import FinetuneConfig
from finetune.made_with import changed, versions
from finetune.report.command import run as make_page
from finetune.report.reproduce import reproduce
from finetune.run import finetune
from tests.finetune_runs import recipe, write_encoder
from tests.test_data_page import Outline


def linear(dataset: Dataset, folder: Path, out: str) -> FinetuneConfig:
    encoder = str(folder / "pretrained")
    features = {"features": str(folder / "features"), "linear": {"strengths": [1.0]}}
    return recipe(dataset, encoder, folder / out, head="linear", baselines=["pca"], **features)


def results_of(config: FinetuneConfig) -> dict[str, Any]:
    return json.loads((Path(config.out) / "results.json").read_text())


def words_of(config: FinetuneConfig) -> str:
    return " ".join(Outline((Path(config.out) / "report.html").read_text()).words)


def with_other_sources(monkeypatch: pytest.MonkeyPatch) -> str:
    """As if our sources had been changed since; what is then said of it."""
    here = of_clusters.versions_here()
    monkeypatch.setattr("finetune.made_with.versions_here", lambda: {**here, "manyview": "0badc0de"})
    return f"manyview: {here['manyview']} -> 0badc0de"


def test_what_figures_depend_on_is_noted_our_own_sources_among_it() -> None:
    noted = versions()
    packages = ("torch", "numpy", "scipy", "scikit-learn", "timm", "peft", "pillow", "opencv-python-headless", "python")
    assert all(noted[name] for name in packages)
    assert noted["manyview"] == of_clusters.source_hash(of_clusters.ROOT)
    assert changed(noted) == changed(None) == []
    assert changed({"torch": "1.0.0"}) == [f"torch: 1.0.0 -> {noted['torch']}"]  # and of no package that is not there


def test_results_and_features_made_with_other_code_say_so(
    synthetic_dataset: Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    write_encoder(tmp_path / "pretrained", synthetic_dataset)
    first, second = (linear(synthetic_dataset, tmp_path, out) for out in ("first", "second"))
    finetune(first)
    told = results_of(first)
    assert told["versions"] == versions() and not any("other code" in warning for warning in told["warnings"])
    assert f"Manyview's sources (a hash of them) {told['versions']['manyview']}" in words_of(first)
    assert "other code" not in words_of(first)

    others = with_other_sources(monkeypatch)
    capsys.readouterr()
    finetune(first)
    assert f"they were made with other code than is here: {others}" in capsys.readouterr().out
    make_page([first.out])
    assert f"This page was made from those figures with other code: {others}." in words_of(first)

    finetune(second)
    of_features = f"features of pretrained, features of pca ({others})"
    (warning,) = [warning for warning in results_of(second)["warnings"] if "other code" in warning]
    assert warning.startswith("made earlier, with other code than the rest") and warning.endswith(of_features)
    assert warning in words_of(second)

    (Path(first.out) / "results.json").unlink()
    finetune(first)
    (warning,) = [warning for warning in results_of(first)["warnings"] if "other code" in warning]
    assert warning.endswith(f"what had been trained here, {of_features}")


def test_folders_that_note_nothing_or_less_are_taken_as_before(
    synthetic_dataset: Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_encoder(tmp_path / "pretrained", synthetic_dataset)
    config = linear(synthetic_dataset, tmp_path, "out")
    finetune(config)
    out, features = Folder(config.out), Folder(str(tmp_path / "features"))
    for name in features.names():
        (features / name).remove("versions.json")
    begun = out.read_json("config.json")
    out.write_json("config.json", {"identity": begun["identity"], "config": begun["config"]})
    out.remove("results.json")
    with_other_sources(monkeypatch)
    finetune(config)
    assert not any("other code" in warning for warning in results_of(config)["warnings"])
    assert "versions" not in out.read_json("config.json")

    told = results_of(config)
    told["versions"] = {name: told["versions"][name] for name in ("torch", "timm", "scikit-learn", "numpy")}
    page = " ".join(Outline(str(reproduce(told, None))).words)
    assert "and the same sources of Manyview, which were not noted then" in page and "other code" not in page
