"""The ways in which head=full trains, small, and what a run of one leaves: for what holds of each of them."""

import json
import shutil
from pathlib import Path
from typing import Any

import safetensors.torch
from torch import Tensor

from data.dataset import Dataset
from finetune.config import FinetuneConfig
from tests import miniatures
from tests.finetune_runs import NAME, recipe, write_encoder
from tests.importers import imported

# A small rate: a large one makes rounding errors grow until they hide whether the runs are the same.
SLOW = {"name": "sgd", "lr": 0.003}
CASES = {
    "epochs": 2,
    "batch_size": 12,
    "pooling": "attention",
    "images_per_case": 2,
    "optim": {**SLOW, "layer_decay": 0.7},
    "augmentation": {"mixup": 0.4, "cutmix": 1.0},
    "loss": {"label_smoothing": 0.1, "class_balanced_beta": 0.9},
}
WAYS: dict[str, dict[str, Any]] = {
    "cases": CASES,
    "last blocks": {"epochs": 2, "batch_size": 24, "train": "last_2", "optim": SLOW},
    "lora": {"epochs": 2, "batch_size": 24, "train": "lora", "optim": {"name": "sgd", "lr": 0.05}},
    "two heads": {"epochs": 3, "batch_size": 22, "optim": {**SLOW, "lr": 3e-4}},
    "patience": {"epochs": 12, "batch_size": 24, "train": "head", "patience": 2, "optim": {"name": "sgd", "lr": 0.5}},
}
ECHO = ("image=file", "patient=patient", "label=reduced_ef", "numbers=EF", "split=split", "ids=source")


def configured(way: str, dataset: Dataset, folder: Path) -> FinetuneConfig:
    """A run of a way, with the encoder that it takes; two heads are of echo frames."""
    changed: dict[str, Any] = {"full": WAYS[way]}
    if way == "two heads":
        dataset = imported("table", miniatures.echo_table(folder / "raw"), folder / "dataset", *ECHO)
        changed["numbers"] = ["EF"]
    encoder = write_encoder(folder / "encoder", dataset, name="test_vit" if way == "lora" else NAME)
    return recipe(dataset, encoder, folder / "out", **changed)


def training(config: FinetuneConfig) -> Path:
    """Where the encoder given was trained."""
    return Path(config.out) / "training" / "pretrained"


def records(config: FinetuneConfig, name: str) -> list[float]:
    """What was logged under a name."""
    lines = [json.loads(line) for line in (training(config) / "metrics.jsonl").read_text().splitlines()]
    return [line[name] for line in lines if name in line]


def scores(config: FinetuneConfig) -> list[float]:
    """The figure on validation that chooses the epoch, epoch by epoch."""
    return records(config, "val_score" if config.numbers else "val_auroc")


def weights(config: FinetuneConfig) -> dict[str, Tensor]:
    """Of the best epoch."""
    return safetensors.torch.load_file(training(config) / "model.safetensors")


def written(config: FinetuneConfig) -> dict[str, bytes]:
    """The best epoch, its score and its weights, to the bit."""
    return {name: (training(config) / name).read_bytes() for name in ("model.safetensors", "finished.json")}


def chosen(config: FinetuneConfig) -> int:
    """The best epoch."""
    return int(json.loads((training(config) / "finished.json").read_text())["chosen"]["epoch"])


def cut_off(config: FinetuneConfig, out: Path, after: int) -> FinetuneConfig:
    """The same run, killed after a step."""
    again = config.model_copy(update={"out": str(out)})
    shutil.copytree(training(config), training(again))
    for file in ("finished.json", "model.safetensors"):
        (training(again) / file).unlink()
    for checkpoint in (training(again) / "checkpoints").iterdir():
        if int(checkpoint.name.removeprefix("step-")) > after:
            shutil.rmtree(checkpoint)
    return again


def halfway(config: FinetuneConfig) -> int:
    """A step to be cut off after: with patience, one after the best epoch and before the end; else early on."""
    if config.full.patience is None:
        return 2
    steps = len(records(config, "loss")) // len(scores(config))
    saved = [int(folder.name.removeprefix("step-")) for folder in (training(config) / "checkpoints").glob("step-*")]
    best, end = chosen(config) * steps, len(records(config, "loss"))
    assert end < config.full.epochs * steps, "it is to end early"
    return max(step for step in saved if best < step < end)
