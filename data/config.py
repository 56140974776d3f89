"""What an import is told: one frozen config; each source adds its own fields to it."""

import math
import os
import re
from contextlib import suppress
from pathlib import Path
from typing import Literal

from pydantic import ConfigDict, Field, field_validator, model_validator

from clusters.config import Config, absolute

QUOTA = Path("/sys/fs/cgroup/cpu.max")
NAME = re.compile(r"(?!\.)[^/\\\x00-\x1f\x7f-\x9f]{0,100}")
"""A dataset's name, which folders are called by and terminals show: no path, and nothing that steers a terminal."""


def local_keyring(values: object) -> object:
    """The values of a config as they are. Raises ValueError where `keyring` is no local file, or the keys themselves.

    For validators of the whole config, whose errors do not quote what they refuse.
    """
    keyring = values.get("keyring", "") if isinstance(values, dict) else ""
    text = keyring if isinstance(keyring, str) else "{"
    if "://" in text:
        raise ValueError("keyring= takes a local file, readable by you alone, and no URL; copy it here")
    if text.lstrip().startswith(("{", "[")) or re.search("id_key|split_salt|^[0-9a-fA-F]{32,}$", text):
        raise ValueError("keyring= takes the name of a local file; keys on a command line are there for all to see")
    return values


def num_cores() -> int:
    """Cores that this process may use: those it is bound to, as far as its container's quota goes."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return max(1, min(cores, _quota() or cores))


def _quota() -> int | None:
    """Whole cores that a container's control group (version 2) grants; none where it sets no bound."""
    with suppress(OSError, ValueError):
        granted_us, period_us = map(int, QUOTA.read_text().split())  # "max" is no number
        return math.ceil(granted_us / period_us)
    return None


class SplitFractions(Config):
    """Share of the patients in each split."""

    train: float = Field(default=0.7, ge=0, le=1, description="share of patients, 0 to 1")
    val: float = Field(default=0.1, ge=0, le=1, description="share of patients, 0 to 1")
    test: float = Field(default=0.2, ge=0, le=1, description="share of patients, 0 to 1")

    @model_validator(mode="after")
    def _sum_to_one(self) -> "SplitFractions":
        total = self.train + self.val + self.test
        if abs(total - 1) > 1e-9:
            raise ValueError(f"splits.train + splits.val + splits.test must be 1, not {total:g}")
        return self


class SourceChoice(Config):
    """Only the name of the source, read before the source's own config is known."""

    model_config = ConfigDict(extra="ignore")
    source: str


class ImportConfig(Config):
    """One import: where from, where to, and what is done to the images on the way."""

    source: str = Field(description="which importer reads the raw data")
    raw: str = Field(description="raw dataset as published: folder, file or URL")
    out: str = Field(description="dataset folder to write: local path or fsspec URL")
    name: str = Field(default="", description="name in the manifest and reports; empty: the source's name")
    licence: str = Field(default="", description="licence in the manifest; empty: the source's own")
    ids: Literal["source", "keyed"] = Field(
        default="source", description="source: published ids as they are; keyed: HMAC-SHA256 of each id"
    )
    keyring: str = Field(
        default="",
        description="local JSON file with the secret keys for ids=keyed; empty: one per user, made on first use",
    )
    link: str = Field(
        default="",
        description="dataset that must share its patients' ids with this one; refused where the keyring is another",
    )
    splits: SplitFractions = Field(default=SplitFractions(), description="patients per split")
    short_side_px: int = Field(default=256, ge=16, description="px; larger images are shrunk to it, none is enlarged")
    jpeg_quality: int = Field(default=92, ge=50, le=100, description="1 to 100, of the stored JPEGs (no chroma loss)")
    images_per_shard: int = Field(default=0, ge=0, description="images; 0: about 256 MB a shard (8192 at 256 px)")
    max_pixels: int = Field(default=200_000_000, ge=1, description="px; a larger raw image counts as bad")
    max_bad_fraction: float = Field(default=0.01, ge=0, le=1, description="share of bad images above which it fails")
    duplicates: Literal["refuse", "keep"] = Field(
        default="refuse", description="what to do where the same pixels stand with two patients or in two splits"
    )
    missing: Literal["refuse", "skip"] = Field(
        default="refuse", description="what to do with an image that the table names and that is not there"
    )
    burned_in: Literal["refuse", "leave_out", "keep"] = Field(
        default="refuse",
        description="what to do with a DICOM image that says that text is burned into its pixels, or that somebody (a "
        "face) can be recognized in them",
    )
    num_processes: int = Field(default=0, ge=0, description="processes that decode images; 0: one per core")
    on_ray: bool = Field(
        default=False, description="write each shard as a task on the Ray cluster of RAY_ADDRESS, or on a local Ray"
    )

    @field_validator("name")
    @classmethod
    def _is_no_path(cls, name: str) -> str:
        if not NAME.fullmatch(name):
            raise ValueError("no / or \\ in it, no dot before it, nothing that is no character, 100 of them at most")
        return name

    @model_validator(mode="before")
    @classmethod
    def _local_keyring(cls, values: object) -> object:
        return local_keyring(values)

    @field_validator("raw", "out", "keyring", "link")
    @classmethod
    def _absolute(cls, location: str) -> str:
        return absolute(location) if location else location

    @property
    def processes(self) -> int:
        """Number of processes that decode images."""
        return self.num_processes or num_cores()

    @property
    def shard_images(self) -> int:
        """Number of images in a shard. A stored image has about 31 KB at 256 px, and grows with its area."""
        return self.images_per_shard or min(100_000, max(1000, 8192 * 256**2 // self.short_side_px**2))


# What may change between two runs of one import without changing a byte of the dataset.
WITHOUT_EFFECT = {"raw", "out", "keyring", "link", "num_processes", "on_ray"}
# These decide whether it is written at all; what `refuse` lets through is what the other choice writes.
WITHOUT_EFFECT |= {"max_bad_fraction", "duplicates", "missing"}


def settings(config: ImportConfig) -> dict[str, object]:
    """The fields that determine the dataset, for its manifest: no location, no secret."""
    # What `refuse` lets through is what `leave_out` writes, so a refused import can go on with it.
    same = WITHOUT_EFFECT if config.burned_in == "keep" else WITHOUT_EFFECT | {"burned_in"}
    return {**config.model_dump(mode="json", exclude=same), "images_per_shard": config.shard_images}
