"""Raw datasets in miniature, for tests of importers: words in, cases or an opened dataset out."""

from pathlib import Path

import numpy as np
from PIL import Image

from clusters.config import load_config
from data.cases import RawDataset
from data.dataset import Dataset, open_dataset
from data.shards import write_dataset
from data.sources import read_raw, source_module


def read(source: str, raw: Path | str, *words: str) -> RawDataset:
    """The cases that a source finds."""
    given = [f"source={source}", f"raw={raw}", "out=/nowhere", *words]
    return read_raw(load_config(source_module(source).Options, given))


def imported(source: str, raw: Path, out: Path, *words: str) -> Dataset:
    """The dataset that an import writes, opened again."""
    given = [f"source={source}", f"raw={raw}", f"out={out}", "num_processes=1", *words]
    config = load_config(source_module(source).Options, given)
    write_dataset(read_raw(config), config)
    return open_dataset(str(out))


def grey(file: Path) -> None:
    """An image file of 40 x 32 px, another one for each path; its folder is made."""
    file.parent.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(list(str(file).encode()))
    Image.fromarray(rng.integers(0, 256, (32, 40), np.uint8)).save(file)


def everything(dataset: Dataset) -> bytes:
    """All that a dataset folder says, in lower case."""
    files = [path.read_bytes() for path in Path(dataset.location).rglob("*") if path.is_file()]
    return b"".join([*files, str(dataset.index.to_pylist()).encode()]).lower()
