"""`python -m finetune predict` against a plain timm loop: Pillow, timm's transform, a DataLoader, the network.

Both begin with a folder of photographs of 600 x 450 px and a file of weights, and have the same batch, cores and
network (ResNet-50 at 224 px, fp32). Ours also checks hashes, takes every pixel through what an import does to it, and
writes its parts, parquet and CSV; the peer keeps its probabilities in memory. By the wall clock, in turns.
"""

import contextlib
import io
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import safetensors.torch
import timm
import timm.data
import torch
from PIL import Image
from torch.utils.data import DataLoader, Dataset

from clusters import distributed
from clusters.storage import Folder
from data.config import num_cores
from finetune.heads import POOLING
from finetune.model_folder import save_model
from finetune.predict import PredictConfig, predict
from finetune.tasks import MultiClass
from pretrain.encoder import EncoderConfig

NAME, LABELS = "resnet50", [f"class {number}" for number in range(7)]
NUM_IMAGES, BATCH, ROUNDS, WIDTH, HEIGHT = 256, 32, 3, 600, 450


def run() -> list[dict[str, Any]]:
    """Images per second from the command to the last prediction, best of the rounds."""
    torch.set_num_threads(num_cores())
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        _write_images(folder / "images")
        _write_model(folder)
        best = {"ours": 0.0, "peer": 0.0}
        for turn in range(ROUNDS):
            out = str(folder / f"out-{turn}")
            best["ours"] = max(best["ours"], _rate(lambda out=out: _ours(folder, out)))
            best["peer"] = max(best["peer"], _rate(lambda: _peer(folder)))
    return [
        {
            "name": f"predict, {NAME} at 224 px, {_where()}, batch {BATCH}; peer timm with a DataLoader",
            "ours": round(best["ours"], 1),
            "peer": round(best["peer"], 1),
            "unit": "images/s",
            "ratio": round(best["ours"] / best["peer"], 2),
            "floor": 1.0,
            "goal": 1.3,
        }
    ]


def _where() -> str:
    gpu = f", {torch.cuda.get_device_name()}" if torch.cuda.is_available() else ""
    return f"{num_cores()} cores{gpu}"


def _rate(work: Callable[[], Any]) -> float:
    started = time.perf_counter()
    work()
    return NUM_IMAGES / (time.perf_counter() - started)


def _ours(folder: Path, out: str) -> None:
    values = {"model": str(folder / "model"), "images": str(folder / "images"), "out": out, "batch_size": BATCH}
    with contextlib.redirect_stdout(io.StringIO()):
        predict(PredictConfig.model_validate(values))


class _Images(Dataset[torch.Tensor]):
    def __init__(self, files: list[Path], transform: Callable[[Image.Image], torch.Tensor]) -> None:
        self._files, self._transform = files, transform

    def __len__(self) -> int:
        return len(self._files)

    def __getitem__(self, number: int) -> torch.Tensor:
        with Image.open(self._files[number]) as image:
            return self._transform(image.convert("RGB"))


@torch.inference_mode()
def _peer(folder: Path) -> torch.Tensor:
    model = timm.create_model(NAME, num_classes=len(LABELS)).eval()
    model.load_state_dict(safetensors.torch.load_file(folder / "whole.safetensors"))
    transform: Any = timm.data.create_transform(**timm.data.resolve_data_config({"input_size": (3, 224, 224)}))
    images = _Images(sorted((folder / "images").iterdir()), transform)
    device = distributed.device()
    loader = DataLoader(images, BATCH, num_workers=num_cores(), pin_memory=device.type == "cuda")
    model.to(device)
    return torch.cat([model(batch.to(device, non_blocking=True)).softmax(1) for batch in loader]).cpu()


def _write_images(folder: Path) -> None:
    """Smooth pictures with some grain: JPEGs of about the size of photographs of skin."""
    folder.mkdir()
    rng = np.random.default_rng(0)
    for number in range(NUM_IMAGES):
        smooth = cv2.resize(rng.integers(60, 220, (9, 12, 3), np.uint8), (WIDTH, HEIGHT), interpolation=cv2.INTER_CUBIC)
        pixels = (smooth + rng.normal(0, 6, smooth.shape)).clip(0, 255).astype(np.uint8)
        Image.fromarray(pixels).save(folder / f"{number:04d}.jpg", quality=92)


def _write_model(folder: Path) -> None:
    """The same random weights for both, one file in each one's layout."""
    torch.manual_seed(0)
    whole = timm.create_model(NAME, num_classes=len(LABELS)).state_dict()
    safetensors.torch.save_file(whole, folder / "whole.safetensors")
    encoder = {name: tensor for name, tensor in whole.items() if not name.startswith("fc.")}
    known = timm.get_pretrained_cfg(NAME)
    assert known is not None
    processing = {"short_side_px": 256, "jpeg_quality": 92}
    seen = {"size_px": 224, "mean": list(known.mean), "std": list(known.std), "processing": processing}
    told = untrained_card(EncoderConfig(name=NAME), LABELS, seen)
    parts = {"encoder": encoder, "head": {"weight": whole["fc.weight"], "bias": whole["fc.bias"]}}
    save_model(Folder(folder / "model"), parts, told)


def untrained_card(encoder: EncoderConfig, labels: list[str], seen: dict[str, Any]) -> dict[str, Any]:
    """The card of a model of random weights; `seen` is what it takes for an image."""
    return {
        "task": "multiclass",
        "labels": labels,
        "classes": labels,
        "task_described": MultiClass(labels).describe(),
        "thresholds": {},
        "temperature": 1.0,
        "pooling": POOLING["none"],
        "encoder": encoder.structure(),
        "projection": [],
        "input": seen,
        "made_from": {},
    }
