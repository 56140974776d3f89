"""One file per raw dataset, yielding cases; adding one is a file here and a line in SOURCES.

A source has TITLE (one line of help), LICENCE, CITATION, CASE (what a case is, and why two images of it show the
same condition), `Options` (its config, an ImportConfig) and `read(options) -> RawDataset`.
"""

import importlib
from typing import Any

from clusters.config import InputError, nearest
from data.cases import RawDataset
from data.config import ImportConfig

SOURCES = (
    "synthetic",
    "ham10000",
    "isic2019",
    "isic2020",
    "pad_ufes20",
    "scin",
    "fitzpatrick17k",
    "ddi",
    "hannover_cxr",
    "chexpert",
    "chestxray14",
    "mimic_cxr_jpg",
    "vindr_cxr",
    "kermany",
    "pcam",
    "table",
    "folder",
    "dicom",
    "wds",
)


def source_module(name: str) -> Any:
    """The module of a source. Raises InputError with the nearest name where there is none."""
    if name not in SOURCES:
        raise InputError(f"no source '{name}'{nearest(name, list(SOURCES))}; there are {', '.join(SOURCES)}")
    return importlib.import_module(f"data.sources.{name}")


def read_raw(config: ImportConfig) -> RawDataset:
    """What the config's source finds. Raises InputError, naming where, for raw data that cannot be read."""
    return source_module(config.source).read(config)
