"""Two finished views of each image against webdataset with lightly's SimCLRTransform, one core each."""

import tempfile
import time
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import torch

from data.config import ImportConfig
from data.dataset import open_dataset
from data.shards import write_dataset
from data.sources import read_raw
from pretrain.batches import ViewBatches
from pretrain.methods.method import one_image
from pretrain.methods.simclr import SimCLR
from pretrain.views import ViewConfig

NUM_IMAGES, BATCH, ROUNDS, SIDE = 128, 32, 3, 256


def run() -> list[dict[str, Any]]:
    """Samples per second and core (CPU time of this thread), 256 px JPEGs, 224 px views; best of the rounds."""
    torch.set_num_threads(1)
    cv2.setNumThreads(0)
    with tempfile.TemporaryDirectory() as folder:
        dataset = open_dataset(write_images(Path(folder)))
        rows = np.arange(dataset.num_images)
        samples = SimCLR.samples(dataset, rows)
        batches = {
            augment: ViewBatches(
                dataset, samples, one_image, ViewConfig(policy="dermatology"), 0, 0, BATCH, 0, 1, augment
            )
            for augment in (True, False)
        }
        shards = [str(path) for path in sorted(Path(dataset.location).glob("*.tar"))]
        peer = max(_rate(lambda: _peer(shards)) for _ in range(ROUNDS))
        all_here = max(_rate(lambda: _ours(batches[True])) for _ in range(ROUNDS))
        crops_only = max(_rate(lambda: _ours(batches[False])) for _ in range(ROUNDS))
    return [
        _row("loader, all augmentation in the loader", all_here, peer, 5, 8),
        _row("loader, crops only (the rest on the accelerator)", crops_only, peer, 10, 18),
    ]


def _row(name: str, ours: float, peer: float, floor: float, goal: float) -> dict[str, Any]:
    return {
        "name": f"{name}; peer webdataset + lightly",
        "ours": round(ours, 1),
        "peer": round(peer, 1),
        "unit": "samples/s per core",
        "ratio": round(ours / peer, 1),
        "floor": floor,
        "goal": goal,
    }


def _rate(work: Any) -> float:
    started = time.thread_time()
    count = work()
    return count / (time.thread_time() - started)


def _ours(batches: ViewBatches) -> int:
    for step in range(NUM_IMAGES // BATCH):
        batches(step)
    return NUM_IMAGES


def _peer(shards: list[str]) -> int:
    from lightly.transforms import SimCLRTransform
    from webdataset.compat import WebDataset

    transform: Any = SimCLRTransform(input_size=224, vf_prob=0.5, normalize=None)  # ours leaves it to the trainer too
    samples: Any = WebDataset(shards, shardshuffle=False).decode("pil")
    count = 0
    for sample in samples:
        transform(sample["0.jpg"])
        count += 1
    return count


def write_images(folder: Path) -> str:
    """Noise with a spectrum like that of photographs (amplitude 1 / frequency^1.75), as `table` imports it.

    It makes JPEGs of 20 KB, 2.4 bits a pixel; HAM10000 and radiographs have 1.8 at this size and quality.
    """
    rng = np.random.default_rng(0)
    frequency = np.hypot(*np.meshgrid(np.fft.fftfreq(SIDE), np.fft.fftfreq(SIDE)))
    lines = ["image"]
    for number in range(NUM_IMAGES):
        grey, colours = rng.normal(size=(1, SIDE, SIDE)), rng.normal(size=(3, SIDE, SIDE))
        spectrum = np.fft.fft2(grey + 0.3 * colours) / np.maximum(frequency, 1 / SIDE) ** 1.75
        pixels = np.real(np.fft.ifft2(spectrum))
        pixels = 128 + 48 * (pixels - pixels.mean()) / pixels.std()
        cv2.imwrite(str(folder / f"{number}.png"), np.clip(pixels, 0, 255).astype(np.uint8).transpose(1, 2, 0))
        lines.append(f"{number}.png")
    (folder / "table.csv").write_text("\n".join(lines) + "\n")
    config = _table_config(folder)
    write_dataset(read_raw(config), config)
    return config.out


def _table_config(folder: Path) -> ImportConfig:
    from data.sources import table

    return table.Options(
        source="table", raw=str(folder / "table.csv"), out=str(folder / "dataset"), image="image", patient="none",
        ids="source", num_processes=1,
    )  # fmt: skip
