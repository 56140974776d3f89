"""What an import is told: one frozen config; each source adds its own fields to it."""

import os
from typing import Literal

from pydantic import ConfigDict, Field, field_validator, model_validator

from clusters.config import Config, absolute


def num_cores() -> int:
    """Cores that this process may use; all of them where the system does not tell (macOS)."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


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
        description="JSON file with the secret keys for ids=keyed; empty: one per user, made on first use",
    )
    splits: SplitFractions = Field(default=SplitFractions(), description="patients per split")
    short_side_px: int = Field(default=256, ge=16, description="px; larger images are shrunk to it, none is enlarged")
    jpeg_quality: int = Field(default=92, ge=50, le=100, description="1 to 100, of the stored JPEGs (no chroma loss)")
    images_per_shard: int = Field(default=8192, ge=1, description="images; about 256 MB a shard at 256 px")
    max_pixels: int = Field(default=200_000_000, ge=1, description="px; a larger raw image counts as bad")
    max_bad_fraction: float = Field(default=0.01, ge=0, le=1, description="share of bad images above which it fails")
    duplicates: Literal["refuse", "keep"] = Field(
        default="refuse", description="what to do where the same pixels stand in two splits"
    )
    num_processes: int = Field(default=0, ge=0, description="processes that decode images; 0: one per core")

    @field_validator("raw", "out", "keyring")
    @classmethod
    def _absolute(cls, location: str) -> str:
        return absolute(location) if location else location

    @property
    def processes(self) -> int:
        """Number of processes that decode images."""
        return self.num_processes or num_cores()


# What may change between two runs of one import without changing a byte of the dataset.
WITHOUT_EFFECT = {"raw", "out", "keyring", "num_processes", "max_bad_fraction", "duplicates"}


def settings(config: ImportConfig) -> dict[str, object]:
    """The fields that determine the dataset, for its manifest: no location, no secret."""
    return config.model_dump(mode="json", exclude=WITHOUT_EFFECT)
