"""How `predict` gets through a folder of 100,000 images when it is killed on the way; no ratio, so no `bench_`.

`python -m tests.benchmarks.resume_predict [NUM_IMAGES]`: small JPEGs and a small network of random weights; killed with
nine tenths of the parts done, the same command does the rest. Each image must be in the answer once.
"""

import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pyarrow.parquet as pq
import torch

from clusters.storage import Folder
from finetune.model_folder import save_model
from finetune.predict import PART_IMAGES
from pretrain.encoder import EncoderConfig, create_encoder
from tests.benchmarks.bench_predict import untrained_card

LABELS, SIZE_PX, IN_A_FOLDER = ["a", "b"], 32, 1000


def main(num_images: int) -> int:
    """Print what was done and how fast; the exit code is 1 where an image is missing or there twice."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        _write_images(folder / "images", num_images)
        _write_model(Folder(folder / "model"))
        words = [sys.executable, "-m", "finetune", "predict", str(folder / "model"), str(folder / "images")]
        words += [f"out={folder / 'out'}", "batch_size=256"]
        first, killed = _killed(words, folder / "out/parts", int(num_images / PART_IMAGES * 0.9))
        started = time.monotonic()
        subprocess.run(words, check=True, stdout=subprocess.DEVNULL)
        rest = time.monotonic() - started
        table = pq.read_table(folder / "out/predictions.parquet", columns=["image", "error"])
        images, errors = table["image"].to_pylist(), [one for one in table["error"].to_pylist() if one]
    whole = len(images) == len(set(images)) == num_images and not errors
    print(
        f"{num_images:,} images of {SIZE_PX} px: killed after {killed * PART_IMAGES:,} of them and {first:.0f} s, "
        f"the rest in {rest:.0f} s; {'each is there once' if whole else 'NOT each is there once'}"
    )
    return 0 if whole else 1


def _killed(words: list[str], parts: Path, at: int) -> tuple[float, int]:
    """Seconds, and the parts that were there once it was killed."""
    started = time.monotonic()
    process = subprocess.Popen(words, stdout=subprocess.DEVNULL)
    while process.poll() is None and len(list(parts.glob("part-*"))) < at:
        time.sleep(0.1)
    process.send_signal(signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL, "it had ended before it could be killed"
    return time.monotonic() - started, len(list(parts.glob("part-*")))


def _write_images(folder: Path, num_images: int) -> None:
    rng = np.random.default_rng(0)
    for number in range(num_images):
        place = folder / f"{number // IN_A_FOLDER:04d}"
        place.mkdir(parents=True, exist_ok=True)
        cv2.imwrite(str(place / f"{number:07d}.jpg"), rng.integers(0, 256, (SIZE_PX, SIZE_PX, 3), np.uint8))


def _write_model(folder: Folder) -> None:
    torch.manual_seed(0)
    config = EncoderConfig(name="test_resnet")
    encoder = create_encoder(config)
    num_features: Any = encoder.num_features
    head = {"weight": torch.randn(len(LABELS), num_features), "bias": torch.zeros(len(LABELS))}
    processing = {"short_side_px": SIZE_PX, "jpeg_quality": 92}
    seen = {"size_px": SIZE_PX, "mean": [0.5] * 3, "std": [0.5] * 3, "processing": processing}
    told = untrained_card(config, LABELS, seen)
    save_model(folder, {"encoder": encoder.state_dict(), "head": head}, told)


if __name__ == "__main__":
    sys.exit(main(int(sys.argv[1]) if len(sys.argv) > 1 else 100_000))
