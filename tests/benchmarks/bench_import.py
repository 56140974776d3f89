"""An import of JPEGs against the loop that a script would write around Pillow, on the same number of processes.

The peer opens, resizes and saves, and no more; the import also hashes the pixels before and the bytes after,
keeps full colour resolution, writes shards, an index and a manifest, and counts duplicates.
"""

import io
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from PIL import Image

from data.config import num_cores
from data.shards import write_dataset
from data.sources import read_raw, table

NUM_IMAGES, WIDTH, HEIGHT, SIDE, QUALITY, ROUNDS = 2000, 600, 450, 256, 92, 3


def run() -> list[dict[str, Any]]:
    """Images per second in all, the start of the processes included; best of the rounds, taken in turns."""
    with tempfile.TemporaryDirectory() as folder:
        raw = Path(folder)
        _write_images(raw)
        peer, ours = [], []
        for number in range(ROUNDS):
            peer.append(_rate(lambda out=raw / f"peer-{number}": _peer(raw, out)))
            ours.append(_rate(lambda out=raw / f"ours-{number}": _ours(raw, out)))
    return [
        {
            "name": f"import of {NUM_IMAGES} JPEGs, {WIDTH} x {HEIGHT}, {num_cores()} processes; peer plain Pillow",
            "ours": round(max(ours), 1),
            "peer": round(max(peer), 1),
            "unit": "images/s",
            "ratio": round(max(ours) / max(peer), 2),
            "floor": 1.0,
            "goal": 1.5,
        }
    ]


def _rate(work: Callable[[], None]) -> float:
    started = time.perf_counter()
    work()
    return NUM_IMAGES / (time.perf_counter() - started)


def _ours(raw: Path, out: Path) -> None:
    config = table.Options(
        source="table", raw=str(raw / "table.csv"), out=str(out), image="image", patient="none", ids="source",
        short_side_px=SIDE, jpeg_quality=QUALITY,
    )  # fmt: skip
    assert write_dataset(read_raw(config), config).manifest.counts.images == NUM_IMAGES


def _peer(raw: Path, out: Path) -> None:
    out.mkdir()
    files = sorted(raw.glob("*.jpg"))
    with ProcessPoolExecutor(num_cores(), get_context("spawn")) as pool:
        list(pool.map(_resize, files, [out / file.name for file in files], chunksize=16))


def _resize(file: Path, out: Path) -> None:
    with Image.open(file) as image:
        scale = SIDE / min(image.size)
        size = (round(image.width * scale), round(image.height * scale))
        image.convert("RGB").resize(size, Image.Resampling.LANCZOS).save(out, quality=QUALITY)


def _write_images(folder: Path) -> None:
    """Windows of a noise with the spectrum of photographs (amplitude 1 / frequency), as a folder that `table` reads."""
    rng = np.random.default_rng(0)
    side = 2048
    frequency = np.hypot(*np.meshgrid(np.fft.fftfreq(side), np.fft.fftfreq(side)))
    spectrum = np.fft.fft2(rng.normal(size=(3, side, side))) / np.maximum(frequency, 1 / WIDTH)
    noise = np.real(np.fft.ifft2(spectrum))
    pixels = np.clip(128 + 48 * (noise - noise.mean()) / noise.std(), 0, 255).astype(np.uint8).transpose(1, 2, 0)
    pixels = cv2.add(pixels, rng.integers(0, 8, pixels.shape, dtype=np.uint8))
    lines = ["image"]
    for number in range(NUM_IMAGES):
        top, left = rng.integers(0, side - HEIGHT), rng.integers(0, side - WIDTH)
        content = io.BytesIO()
        Image.fromarray(pixels[top : top + HEIGHT, left : left + WIDTH]).save(content, "JPEG", quality=95)
        (folder / f"{number}.jpg").write_bytes(content.getvalue())
        lines.append(f"{number}.jpg")
    (folder / "table.csv").write_text("\n".join(lines) + "\n")
