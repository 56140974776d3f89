"""The recipes: what each says of itself, and each from raw files in the published layout to its results."""

import itertools
import json
import math
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from safetensors.torch import load_file
from sklearn.metrics import roc_auc_score

from clusters.config import load_config, validate
from data.dataset import Dataset
from data.loader import evaluation_batches
from finetune.cohort import choose_cohort
from finetune.config import FinetuneConfig
from finetune.full_batches import FullBatches, Targets
from finetune.label_map import LABEL_SETS
from finetune.model_folder import load_model
from finetune.run import finetune, work
from pretrain.encoder_folder import load_encoder
from pretrain.views import ViewConfig, draw
from tests import miniatures
from tests.finetune_runs import recipe, write_encoder
from tests.finetune_ways import ECHO
from tests.importers import imported
from tests.ranks import Ranks

ROOT = Path(__file__).parents[1]
RECIPES = sorted((ROOT / "finetune" / "recipes").glob("*.yaml"))
THIRDS = ("splits.train=0.5", "splits.val=0.25", "splits.test=0.25")
MADE: dict[str, tuple[str, Callable[[Path], Path], tuple[str, ...]]] = {
    "scin": ("scin", miniatures.scin_miniature, ("min_cases=5", *THIRDS)),
    "chexpert": ("chexpert", miniatures.chexpert_folder, ()),
    "nih14": ("chestxray14", miniatures.nih_folder, ("splits.train=0.6", "splits.val=0.3", "splits.test=0.1")),
    "pcam": ("pcam", miniatures.pcam_folder, ()),
    "echo": ("table", miniatures.echo_table, ECHO),
}
KIND = {"scin": "multiclass", "chexpert": "multilabel", "nih14": "multilabel", "pcam": "binary", "echo": "two_heads"}


@pytest.fixture(scope="module")
def datasets(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], tuple[Dataset, str]]:
    """The miniature of a recipe, and an encoder that has seen its training split; made once each."""
    made: dict[str, tuple[Dataset, str]] = {}

    def get(name: str) -> tuple[Dataset, str]:
        if name not in made:
            folder = tmp_path_factory.mktemp(name)
            source, make, words = MADE[name]
            raw = make(folder / "raw")
            dataset = imported(source, raw, folder / "dataset", *words)
            made[name] = dataset, write_encoder(folder / "encoder", dataset)
        return made[name]

    return get


def run(name: str, datasets: Any, out: Path, *words: str) -> dict[str, Any]:
    """A recipe on its miniature; returns the results."""
    dataset, encoder = datasets(name)
    quick = ["bootstrap.resamples=20", "tracking.wandb=disabled", "full.epochs=1", "full.batch_size=16", *words]
    path = next(str(path) for path in RECIPES if path.stem == name)
    finetune(
        load_config(FinetuneConfig, [path, f"data={dataset.location}", f"encoder={encoder}", f"out={out}", *quick])
    )
    return json.loads((out / "results.json").read_text())


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.stem)
def test_a_recipe_opens_with_its_command_its_hardware_and_its_score(path: Path) -> None:
    opening = "\n".join(line for line in path.read_text().splitlines() if line.startswith("#"))
    assert f"python -m finetune finetune/recipes/{path.name} data=DIR encoder=RUN out=DIR" in opening
    assert "Hardware: " in opening and "core" in opening.lower()
    assert max(map(len, path.read_text().splitlines())) <= 120
    load_config(FinetuneConfig, [str(path), "data=/d", "encoder=/e", "out=/o"])


@pytest.mark.parametrize("name", MADE)
def test_a_linear_head_learns_the_labels_of_a_recipe(name: str, datasets: Any, tmp_path: Path) -> None:
    """By PCA of pixels, which shows each label in a band of its own: columns that were mixed up would show."""
    results = run(name, datasets, tmp_path / "out", "baselines=[pca]")
    dataset, _ = datasets(name)
    assert results["task"] == KIND[name]
    wanted = {"chexpert": LABEL_SETS["chexpert5"], "nih14": LABEL_SETS["nih14"]}.get(name, tuple(dataset.label_names))
    assert tuple(results["labels"]) == (*wanted, *(["EF"] if name == "echo" else []))
    figures = results["models"]["pca"]["test"]
    defined = [row["auroc"]["value"] for row in figures["per_class"].values() if row["auroc"]["value"] is not None]
    assert len(defined) >= len(wanted) - 1
    assert np.mean(defined) > 0.9
    frame = pq.read_table(tmp_path / "out" / "predictions.parquet").to_pandas()
    test = frame[(frame.model == "pca") & (frame.split == "test")].groupby("key").mean(numeric_only=True)
    for label, row in figures["per_class"].items():
        truth = test[f"label.{label}"]
        if name == "scin":  # the likeliest class
            truth = test[[f"label.{other}" for other in wanted]].idxmax(axis=1) == f"label.{label}"
        known = truth.notna()
        if row["auroc"]["value"] is not None:
            expected = roc_auc_score(truth[known].astype(float), test[f"probability.{label}"][known])
            assert row["auroc"]["value"] == pytest.approx(expected)
    if name == "scin":
        assert figures["top1"]["value"] <= figures["top3"]["value"]
    if name == "echo":
        number = figures["numbers"]["EF"]
        truth, predicted = test["number.EF"], test["predicted.EF"]
        assert number["mae"]["value"] == pytest.approx(np.abs(truth - predicted).mean())
        assert number["mae"]["value"] < 5 and number["pearson"]["value"] > 0.9 and number["spearman"]["low"] > 0.5


def test_no_crop_of_the_pcam_recipe_loses_the_centre_that_the_label_is_about() -> None:
    path = next(str(path) for path in RECIPES if path.stem == "pcam")
    config = load_config(FinetuneConfig, [path, "data=/d", "encoder=/e", "out=/o"])
    views = ViewConfig(size_px=96, crop_area=config.full.augmentation.crop_area)
    for position in range(400):
        top, left, height, width = draw(views, (96, 96), 0, 0, position, 0)[:4]
        assert max(top, left) <= 32 and min(top + height, left + width) >= 64


def pasted(path: Path, folder: Path) -> dict[str, list[str]]:
    """What `python -m finetune` is given where a recipe's comments are pasted into a shell, by the name of `out`."""
    lines = [line.removeprefix("#   ") for line in path.read_text().splitlines() if line.startswith("#   ")]
    script = "\n".join(lines).replace("DIR", str(folder)).replace("RUN", str(folder / "run"))
    echo = "python() { printf '%s\\n' \"$*\"; }\n"
    told = subprocess.run(["bash", "-euc", echo + script], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    commands = [line.split() for line in told.splitlines()]
    assert all(words[:2] == ["-m", "finetune"] for words in commands)
    return {Path(words[-1]).name: words[2:] for words in commands}


def leaves(values: dict[str, Any], *above: str) -> dict[tuple[str, ...], Any]:
    """The settings of a recipe by where they stand."""
    found = {}
    for key, value in values.items():
        found |= leaves(value, *above, key) if isinstance(value, dict) else {(*above, key): value}
    return found


def test_each_line_of_the_ablation_adds_its_trick_and_all_of_them_train(
    synthetic_dataset: Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As they stand in the recipe's comments; the last one, which has them all, for an epoch."""
    monkeypatch.chdir(ROOT)
    path = next(path for path in RECIPES if path.stem == "bag_of_tricks")
    commands = pasted(path, tmp_path)
    settings = [leaves(load_config(FinetuneConfig, words).recipe()) for words in commands.values()]
    added = [
        {key: line[key] for key in line if line[key] != before[key]} for before, line in itertools.pairwise(settings)
    ]
    assert dict(zip(commands, [{}, *added], strict=True)) == {
        "0-plain": {},
        "1-warmup": {("full", "optim", "warmup"): 0.05},
        "2-zero-gamma": {("untrained", "zero_gamma"): True},
        "3-no-bias-decay": {("full", "optim", "decay_biases"): False},
        "4-resnet-c": {("untrained", "stem"): "deep"},
        "5-resnet-d": {("untrained", "downsample"): "averaged"},
        "6-cosine": {("full", "optim", "schedule"): "cosine"},
        "7-label-smoothing": {("full", "loss", "label_smoothing"): 0.1},
        "8-mixup": {("full", "augmentation", "mixup"): 0.2},
    }
    encoder = write_encoder(tmp_path / "encoder", synthetic_dataset, name="resnet18")
    quick = ["full.epochs=1", "full.batch_size=16", "bootstrap.resamples=20", "tracking.wandb=disabled",
             f"data={synthetic_dataset.location}", f"encoder={encoder}"]  # fmt: skip
    config = load_config(FinetuneConfig, [*commands["8-mixup"], *quick])
    finetune(config)
    results = json.loads((tmp_path / "8-mixup/results.json").read_text())
    trained = load_file(tmp_path / "8-mixup/training/untrained/model.safetensors")
    assert {name: model["head"] for name, model in results["models"].items()} == dict.fromkeys(
        ("pretrained", "untrained"), "full"
    )
    assert results["models"]["untrained"]["test"]["auroc"]["value"] is not None
    assert all(tensor.isfinite().all() for tensor in trained.values())
    given, _ = load_encoder(encoder)
    for name in ("conv1.6.weight", "layer2.0.downsample.1.weight"):  # third convolution of the stem; after a mean
        assert trained[f"encoder.{name}"].ndim == 4
        assert name not in given.state_dict() or given.state_dict()[name].ndim == 1


def test_two_heads_train_on_two_processes_as_on_one(datasets: Any, tmp_path: Path, ranks: Ranks) -> None:
    """The scales of the two losses are learned with the rest, and are the same on all."""
    dataset, encoder = datasets("echo")
    weights = {}
    for name in ("one", "two"):
        full = {"epochs": 1, "batch_size": 22, "optim": {"name": "sgd", "lr": 0.003}}
        config = recipe(dataset, encoder, tmp_path / name, full=full, numbers=["EF"])
        if name == "one":
            work(config)
        else:
            ranks.run("finetune_work", config.model_dump(mode="json"))
        *_, last = sorted((tmp_path / name / "training" / "pretrained" / "checkpoints").glob("*/state.safetensors"))
        weights[name] = load_file(last)
    (scales,) = (t for name, t in weights["one"].items() if name.endswith("scale_T") and "best" not in name)
    assert (scales - 1).abs().min() > 1e-4
    assert weights["one"].keys() == weights["two"].keys()
    for name, tensor in weights["one"].items():
        assert weights["two"][name].float().numpy() == pytest.approx(tensor.float().numpy(), abs=1e-3), name


@pytest.mark.parametrize("name", MADE)
def test_a_recipe_runs_end_to_end_with_the_whole_encoder_trained(name: str, datasets: Any, tmp_path: Path) -> None:
    results = run(name, datasets, tmp_path / "out", "head=full", "baselines=[]")
    assert results["task"] == KIND[name]
    assert results["models"]["pretrained"]["head"] == "full"
    _assert_labels_keep_their_columns(datasets(name)[0], results, tmp_path / "out")
    losses = [
        json.loads(line)["loss"]
        for line in (tmp_path / "out" / "training" / "pretrained" / "metrics.jsonl").read_text().splitlines()
        if "loss" in line
    ]
    assert losses and all(map(math.isfinite, losses))


def _assert_labels_keep_their_columns(dataset: Dataset, results: dict[str, Any], out: Path) -> None:
    """What is learned, what the model's head says and what is evaluated, column by column of the dataset's own names.

    One epoch on a miniature teaches too little for mixed-up columns to show in the figures.
    """
    config = validate(FinetuneConfig, json.loads((out / "config.json").read_text())["config"], "config.json")
    cohort, names = choose_cohort(dataset, config), results["labels"]
    kinds = {name: "number" if name in dataset.number_names else "label" for name in names}
    truth = np.stack([dataset.column(f"{kind}.{name}") for name, kind in kinds.items()], axis=1)
    batch = FullBatches(cohort, ViewConfig(size_px=32), config)(0)
    learned, _ = Targets(cohort, config).of(batch)
    rows = batch.views.rows_VB[0].numpy()
    known = np.isfinite(truth[rows])  # what is doubtful is learned as the recipe says
    assert known.any(axis=0).all()
    np.testing.assert_allclose(learned.numpy()[known], truth[rows][known], rtol=1e-6)

    frame = pq.read_table(out / "predictions.parquet").to_pandas()
    frame = frame[frame.split == "test"].set_index("member").loc[dataset.column("member")[cohort.test].astype(str)]
    model = load_model(str(out))
    assert model.card.labels == tuple(names)
    parts = evaluation_batches(dataset, cohort.test, model.card.size_px, 64)
    logits = torch.cat([model(pixels.float() / 255) for _, pixels in parts]).numpy()
    answers = model.probabilities(model.pooled(dataset.case_of[cohort.test], logits))
    assert len({tuple(column) for column in answers.T.round(6)}) == len(names), "no two columns are alike"
    for k, (name, kind) in enumerate(kinds.items()):
        np.testing.assert_allclose(frame[f"{kind}.{name}"], truth[cohort.test, k], rtol=1e-6)
        predicted = frame[f"{'predicted' if kind == 'number' else 'probability'}.{name}"]
        np.testing.assert_allclose(predicted, answers[:, k], rtol=1e-3, atol=1e-4)
    for name, row in results["models"]["pretrained"]["test"]["per_class"].items():
        cases = frame.groupby("key")[[f"label.{name}", f"probability.{name}"]].mean()
        if results["task"] != "multiclass" and row["auroc"]["value"] is not None:
            cases = cases[cases[f"label.{name}"].notna()]
            assert row["auroc"]["value"] == pytest.approx(roc_auc_score(*cases.to_numpy().T)), name
