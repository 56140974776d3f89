"""Cases with small pictures of their own, and datasets written from them, for the tests of shards and verify."""

import io
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image

from data.cases import Case, RawDataset, SourceImage, one_hot
from data.config import ImportConfig
from data.dataset import open_dataset

CLASSES = ("bcc", "mel", "nv")


@dataclass(frozen=True)
class Drawn:
    """A small picture of its own; or fails while the file `unless` is not there."""

    seed: int
    unless: str = ""

    def __call__(self) -> bytes:
        if self.unless and not Path(self.unless).exists():
            raise RuntimeError("the machine stops here")
        buffer = io.BytesIO()
        pixels = np.random.default_rng(self.seed).integers(0, 255, (3, 4, 3), np.uint8)
        Image.fromarray(pixels).resize((40, 30)).save(buffer, "PNG")
        return buffer.getvalue()


@dataclass(frozen=True)
class Fixed:
    content: bytes

    def __call__(self) -> bytes:
        return self.content


@dataclass(frozen=True)
class Absent:
    def __call__(self) -> bytes:
        raise FileNotFoundError


def cases(number: int, read: Callable[[int], Callable[[], bytes]] = Drawn) -> RawDataset:
    """Cases of one to three images, two cases a patient; image k of case i has the seed 10 i + k."""
    found = []
    for i in range(number):
        images = tuple(
            SourceImage(f"image {i}.{k}", read(10 * i + k), {"site": "ear" if k else "nose"}) for k in range(i % 3 + 1)
        )
        label = None if i % 5 == 4 else CLASSES[i % 3]
        found.append(Case(f"case-{i}", f"p{i // 2}", images, one_hot(label, CLASSES), {"sex": "female"}))
    return RawDataset("CC0", "nobody", "multiclass", CLASSES, found, "a lesion")


def config(out: Path | str, **fields: object) -> ImportConfig:
    values = {"source": "drawn", "raw": "/raw", "out": str(out), "num_processes": 1, "images_per_shard": 16}
    return ImportConfig.model_validate({**values, **fields})


def interrupted(written: Path, repaired: Path) -> RawDataset:
    """The 30 cases of `written`, but the machine stops at the last one until the file `repaired` is there."""
    last = int(str(open_dataset(str(written)).column("key")[-1]).removeprefix("case-"))
    return cases(30, lambda seed: Drawn(seed, str(repaired) if seed == 10 * last else ""))


def files(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}
