"""The command from end to end: results, reuse, refusals, and a page that holds everything."""

import csv
import json
import re
import shutil
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import pyarrow.parquet as pq
import pytest
import safetensors.torch
import torch
from sklearn.metrics import roc_auc_score

from clusters.config import InputError, load_config, validate
from data.dataset import Dataset, open_dataset
from data.loader import evaluation_batches
from data.shards import write_dataset
from data.sources import read_raw, table
from finetune.config import FinetuneConfig
from finetune.run import finetune
from finetune.table import run as run_table
from pretrain.encoder import EncoderConfig, create_encoder
from tests import miniatures
from tests.finetune_runs import recipe, write_encoder
from tests.finetune_ways import ECHO
from tests.importers import imported
from tests.test_data_page import Outline

RECIPES = Path(__file__).resolve().parents[1] / "finetune" / "recipes"


@pytest.fixture(scope="module")
def linear(synthetic_dataset, tmp_path_factory):
    """A finished linear run with three baselines."""
    folder = tmp_path_factory.mktemp("linear")
    encoder = write_encoder(folder / "pretrained", synthetic_dataset)
    other = write_encoder(folder / "other", synthetic_dataset, seed=1)
    baselines = ["untrained", "pca", other]
    config = recipe(synthetic_dataset, encoder, folder / "out", head="linear", baselines=baselines)
    finetune(config)
    return config


def results_of(config: FinetuneConfig) -> dict:
    return json.loads((Path(config.out) / "results.json").read_text())


def test_all_models_stand_in_the_results_with_intervals_and_paired_differences(linear):
    results = results_of(linear)
    names = list(results["models"])
    assert names[:3] == ["pretrained", "untrained", "pca"]
    assert names[3].startswith("encoder-")
    for model in results["models"].values():
        auroc = model["test"]["auroc"]
        assert 0 <= auroc["low"] <= auroc["value"] <= auroc["high"] <= 1
        assert model["head"] == "linear"
    compared = {(row["model"], row["baseline"]) for row in results["comparisons"]}
    assert compared == {("pretrained", name) for name in names[1:]}
    for row in results["comparisons"]:
        tests = [results["models"][row[side]]["test"] for side in ("model", "baseline")]
        tests = tests if row["label"] is None else [test["per_class"][row["label"]] for test in tests]
        values = [test[row["figure"]]["value"] for test in tests]
        if None in values:
            assert row["value"] is row["p"] is None
            continue
        assert row["value"] == pytest.approx(values[0] - values[1])
        if row["low"] is not None:
            assert row["low"] <= row["value"] <= row["high"]
            assert row["p"] <= row["p_holm"] <= 1
    assert results["test_evaluations"] == 1
    assert results["models"]["pretrained"]["lineage"][0]["method"] == "simclr"


def test_predictions_hold_each_image_once_and_give_the_figures(linear, synthetic_dataset):
    frame = pq.read_table(Path(linear.out) / "predictions.parquet").to_pandas()
    results = results_of(linear)
    for name, model in results["models"].items():
        rows = frame[(frame.model == name) & (frame.split == "test")]
        assert len(rows) == len(synthetic_dataset.rows(["test"])) == rows.member.nunique()
        cases = rows.drop(columns=["model", "split", "member", "patient"]).groupby("key").mean()
        for label, figures in model["test"]["per_class"].items():
            truth, scores = cases[f"label.{label}"], cases[f"probability.{label}"]
            expected = roc_auc_score(truth, scores) if 0 < truth.sum() < len(truth) else None
            assert figures["auroc"]["value"] == (expected if expected is None else pytest.approx(expected))
    assert sorted(frame.split.unique()) == ["test", "val"]


def test_the_model_folder_alone_gives_the_predictions(linear, synthetic_dataset):
    folder = Path(linear.out) / "model"
    card = json.loads((folder / "model.json").read_text())
    encoder = create_encoder(EncoderConfig(**card["encoder"]))
    encoder.load_state_dict(safetensors.torch.load_file(folder / "encoder.safetensors"))
    head = safetensors.torch.load_file(folder / "head.safetensors")
    rows = synthetic_dataset.rows(["test"])[:5]
    ((_, pixels),) = evaluation_batches(synthetic_dataset, rows, card["input"]["size_px"], 5)
    mean, std = (torch.tensor(card["input"][name]).view(1, 3, 1, 1) for name in ("mean", "std"))
    with torch.no_grad():
        logits = encoder.eval()((pixels / 255 - mean) / std) @ head["weight"].T + head["bias"]
    frame = pq.read_table(Path(linear.out) / "predictions.parquet").to_pandas()
    frame = frame[(frame.model == "pretrained") & (frame.split == "test")][:5]
    expected = frame[[f"probability.{label}" for label in card["labels"]]].to_numpy()
    temperature = results_of(linear)["models"]["pretrained"]["temperature"]
    assert (logits / temperature).softmax(1).numpy() == pytest.approx(expected, abs=1e-3)


def test_the_report_is_one_whole_page(linear):
    content = (Path(linear.out) / "report.html").read_text()
    outline = Outline(content)
    words = " ".join(outline.words)
    assert all(link.startswith(("data:image/jpeg", "#")) for link in outline.links)
    assert "http" not in content.replace("http-equiv", "")
    assert outline.tags.count("img") >= 5
    for phrase in ("test_resnet, untrained", "PCA-64", "surest mistakes", "1-simclr", "resampl", "Limits"):
        assert phrase in words, phrase
    results = results_of(linear)
    assert f"{results['models']['pretrained']['test']['auroc']['value']:.3f}" in words
    assert results["dataset"]["fingerprint"] in words
    assert linear.data not in content
    assert linear.out not in content


def test_the_same_command_again_reuses_and_another_is_refused(linear, capsys):
    before = (Path(linear.out) / "results.json").read_bytes()
    finetune(linear.model_copy(update={"feature_batch_size": 7}))
    assert "reused" in capsys.readouterr().out
    assert (Path(linear.out) / "results.json").read_bytes() == before
    with pytest.raises(InputError, match=r"made with another config \(recipe.label_fraction: 1.0 -> 0.5\)"):
        finetune(linear.model_copy(update={"label_fraction": 0.5}))


def test_an_evaluation_that_did_not_finish_is_counted(linear, tmp_path, synthetic_dataset):
    config = recipe(synthetic_dataset, linear.encoder, tmp_path / "out", head="linear")
    finetune(config)
    (tmp_path / "out" / "results.json").unlink()
    finetune(config)
    assert results_of(config)["test_evaluations"] == 2


@pytest.mark.parametrize(
    "name", ["report.html", "predictions.parquet", "model/head.safetensors", "test_evaluations.json"]
)
def test_results_with_a_file_removed_are_made_again(linear, tmp_path, name, capsys):
    out = tmp_path / "out"
    shutil.copytree(linear.out, out)
    config = linear.model_copy(update={"out": str(out)})
    expected = results_of(config)
    (out / name).unlink()
    finetune(config)
    assert f"{name} is missing" in capsys.readouterr().out
    assert (out / name).stat().st_size > 0
    assert results_of(config)["models"] == expected["models"]
    assert results_of(config)["test_evaluations"] == 2
    finetune(config)
    assert "reused" in capsys.readouterr().out


def test_results_with_a_changed_figure_are_made_again(linear, tmp_path, capsys):
    out = tmp_path / "out"
    shutil.copytree(linear.out, out)
    config = linear.model_copy(update={"out": str(out)})
    expected = results_of(config)
    told = {**expected, "cohort": {**expected["cohort"], "test": {**expected["cohort"]["test"], "patients": 999}}}
    (out / "results.json").write_text(json.dumps(told))
    finetune(config)
    assert "results.json was altered (its own hash differs)" in capsys.readouterr().out
    assert results_of(config)["cohort"] == expected["cohort"]
    del told["sha256"]  # results of before carry none
    (out / "results.json").write_text(json.dumps(told))
    finetune(config)
    assert "reused" in capsys.readouterr().out


def test_full_fine_tuning_leaves_the_same_files(linear, synthetic_dataset, tmp_path):
    config = recipe(
        synthetic_dataset, linear.encoder, tmp_path / "out", baselines=["untrained", "pca"],
        full={"epochs": 1, "batch_size": 32}, label_fraction=0.5,
    )  # fmt: skip
    finetune(config)
    results = results_of(config)
    heads = {name: model["head"] for name, model in results["models"].items()}
    assert heads == {"pretrained": "full", "untrained": "full", "pca": "linear"}
    head = safetensors.torch.load_file(tmp_path / "out" / "model" / "head.safetensors")
    assert head["weight"].shape == (5, 96)
    assert results["cohort"]["train"]["patients"] < results_of(linear)["cohort"]["train"]["patients"]
    assert (tmp_path / "out" / "report.html").exists()


@pytest.fixture(scope="module")
def binary_dataset(tmp_path_factory):
    """A table with one yes-or-no label that the pictures show."""
    import cv2

    folder = tmp_path_factory.mktemp("binary")
    rng = np.random.default_rng(0)
    rows = [["image", "patient", "dark"]]
    for number in range(90):
        patient = number // 2
        dark = int(rng.random() < 0.4)
        pixels = rng.integers(0, 60, (40, 40, 3)) + (40 if dark else 120) + int(rng.normal(0, 25))
        cv2.imwrite(str(folder / f"{number}.png"), pixels.clip(0, 255).astype(np.uint8))
        rows.append([f"{number}.png", f"p{patient}", str(dark)])
    with (folder / "labels.csv").open("w", newline="") as file:
        csv.writer(file).writerows(rows)
    values = {
        "source": "table", "raw": str(folder / "labels.csv"), "out": str(folder / "out"), "image": "image",
        "patient": "patient", "label": "dark", "num_processes": 1, "ids": "source",
    }  # fmt: skip
    config = validate(table.Options, values, "the test")
    write_dataset(read_raw(config), config)
    return open_dataset(str(folder / "out"))


@pytest.mark.parametrize("head", ["linear", "full"])
def test_a_binary_label_has_a_threshold_from_validation(binary_dataset, tmp_path, head):
    assert binary_dataset.task == "binary"
    encoder = write_encoder(tmp_path / "encoder", binary_dataset)
    full = {"epochs": 2, "batch_size": 16}
    config = recipe(binary_dataset, encoder, tmp_path / "out", head=head, full=full, class_weighting="balanced")
    finetune(config)
    results = results_of(config)
    model = results["models"]["pretrained"]
    assert 0 < model["threshold"] < 1
    assert "top3" not in model["test"]
    assert len(results["labels"]) == 1
    assert len(results["classes"]) == 2
    if head == "linear":
        assert model["test"]["auroc"]["value"] > 0.9
    page = (tmp_path / "out" / "report.html").read_text()
    assert "Youden" in page
    assert json.loads((tmp_path / "out" / "model" / "model.json").read_text())["thresholds"] == {
        "dark": model["threshold"]
    }


def test_a_figure_that_rests_on_one_patient_is_told_without_an_interval(tmp_path, capsys):
    """One patient of the test split has the disease: an AUROC, of which nobody knows how sure it is."""
    path = miniatures.echo_table(tmp_path / "raw")
    lines = [line.split(",") for line in path.read_text().splitlines()]
    lines = [[*row[:2], str(int(row[1] == "p030")), *row[3:]] if row[4] == "test" else row for row in lines]
    path.write_text("\n".join(",".join(row) for row in lines) + "\n")
    dataset = imported("table", path, tmp_path / "dataset", *ECHO)
    config = recipe(dataset, write_encoder(tmp_path / "encoder", dataset), tmp_path / "out", head="linear")
    finetune(config)
    auroc = results_of(config)["models"]["pretrained"]["test"]["auroc"]
    assert auroc["value"] is not None and auroc["low"] is None and auroc["high"] is None
    assert f"test AUROC {auroc['value']:.3f} (no interval)" in capsys.readouterr().out
    assert "(no interval)" in (tmp_path / "out" / "report.html").read_text()
    assert any("one patient of 'reduced_ef'" in warning for warning in results_of(config)["warnings"])
    run_table([config.out])
    assert f"{auroc['value']:.3f}" in capsys.readouterr().out


def test_bad_input_is_said_in_one_line(linear, synthetic_dataset, tmp_path):
    def refused(match: str, **changed) -> None:
        with pytest.raises(InputError, match=match) as caught:
            finetune(recipe(synthetic_dataset, changed.pop("encoder", linear.encoder), tmp_path / "out", **changed))
        assert "\n" not in str(caught.value)

    refused("no model.safetensors and config.json here", encoder=str(tmp_path / "nothing"))
    refused("'untrained' is compared already", baselines=["untrained", "untrained"])
    refused("cannot be divided equally among 5 workers", cluster={"num_workers": 5})
    refused(r"full.batch_size: 4096 is more than the \d+ training images", full={"batch_size": 4096})
    leaky = write_encoder(tmp_path / "leaky", synthetic_dataset, ["train", "test"])
    refused("so its test figures would mean nothing", encoder=leaky)
    other = write_encoder(tmp_path / "other", synthetic_dataset, ["train", "test"], seed=3)
    refused("so its test figures would mean nothing", baselines=[other])
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("word", "message"),
    [
        ("linear.strengths=[1,-1]", "'linear.strengths.1' in the command line: Input should be greater than 0"),
        ("linear.strengths=[.nan]", "'linear.strengths.0' in the command line: Input should be"),
        ("full.augmentation.crop_area=[0,1]", "'full.augmentation.crop_area.0' in the command line: Input should be"),
        ("full.augmentation.crop_area=[0.5,1.2]", "'full.augmentation.crop_area.1' in the command line: Input should"),
        (
            "full.augmentation.crop_area=[0.9,0.5]",
            "'full.augmentation.crop_area' in the command line: must go from low",
        ),
    ],
)
def test_a_number_out_of_bounds_is_refused_with_its_key(word, message):
    with pytest.raises(InputError, match=re.escape(message)):
        load_config(FinetuneConfig, ["data=/d", "encoder=/e", "out=/o", word])


@pytest.mark.parametrize("name", sorted(path.name for path in RECIPES.glob("*.yaml")))
def test_recipes_load_and_open_with_their_command(name):
    config = load_config(FinetuneConfig, [str(RECIPES / name), "data=/d", "encoder=/e", "out=/o"])
    assert config.baselines
    opening = (RECIPES / name).read_text().splitlines()[:6]
    assert any(f"python -m finetune finetune/recipes/{name}" in line for line in opening)
    assert any("Hardware" in line for line in opening)


def test_results_that_were_made_in_spite_of_a_leak_are_not_reused_without_the_word(synthetic_dataset, tmp_path):
    encoder = write_encoder(tmp_path / "leaky", synthetic_dataset, ["train", "test"])
    warned = recipe(synthetic_dataset, encoder, tmp_path / "out", head="linear", on_leak="warn")
    finetune(warned)
    finetune(warned)
    with pytest.raises(InputError, match="test patients"):
        finetune(warned.model_copy(update={"on_leak": "refuse"}))


@pytest.mark.parametrize(
    ("word", "told"),
    [("untraind", r"'untraind' \(nearest: untrained\)"), ("vgg-16:/weights", r"'vgg-16' \(nearest: vgg16\)")],
)
def test_a_misspelt_baseline_is_told_the_word(linear, tmp_path, word, told):
    with pytest.raises(InputError, match=f"baselines: {told} is neither a known baseline .* nor a folder here"):
        finetune(linear.model_copy(update={"baselines": [word], "out": str(tmp_path)}))
    with pytest.raises(InputError, match=r"elsewhere: no model.safetensors and config.json here"):
        finetune(linear.model_copy(update={"baselines": ["elsewhere"], "out": str(tmp_path)}))


@pytest.mark.parametrize(("head", "said"), [("full", 1), ("linear", 0)])
def test_gpus_that_stand_idle_are_said_at_the_start_of_a_full_training(
    synthetic_dataset: Dataset, tmp_path: Path, capsys: pytest.CaptureFixture[str], head: str, said: int
) -> None:
    encoder = write_encoder(tmp_path / "encoder", synthetic_dataset)
    begun: list[str] = []

    def work(_: FinetuneConfig) -> dict[str, Any]:
        begun.append(capsys.readouterr().out)
        raise InterruptedError

    there = mock.patch("torch.cuda.device_count", return_value=4)
    with there, mock.patch("finetune.run.work", work), pytest.raises(InterruptedError):
        finetune(recipe(synthetic_dataset, encoder, tmp_path / "out", head=head))
    assert begun[0].count("4 GPUs here and 1 is used; cluster.num_workers=4 uses all\n") == said
