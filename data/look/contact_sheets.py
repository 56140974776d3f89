"""A few images of a dataset as thumbnails: which cases are shown, and how few bytes that takes."""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass

import cv2
import numpy as np
from numpy.typing import NDArray

from clusters.config import InputError
from data.dataset import Dataset
from data.images import decode_stored, encode_jpeg
from data.look.overview import NEGATIVE, POSITIVE, UNCERTAIN, Integers, Overview

SIDE_PX, QUALITY, GIST_PX = 128, 78, 32
MAX_BYTES = 3_000_000  # of all thumbnails of a page; a third more as text
NUM_CASES, MIN_PER_LABEL, MAX_PER_LABEL, MAX_LABELS, IMAGES_PER_CASE = 84, 2, 28, 40, 6
DARK_MEAN, BRIGHT_MEAN, FLAT_SPREAD = 12.0, 246.0, 4.0
NOT_LABELLED, NOTHING_POSITIVE, DOUBTFUL = "not labelled", "no label positive", "uncertain"


@dataclass(frozen=True)
class Sheet:
    """Sampled cases of one label: their numbers, several images first, out of how many."""

    title: str
    cases: list[int]
    num_cases: int


class Album:
    """Reads images, each once, and keeps thumbnails as long as there is room on the page."""

    def __init__(self, dataset: Dataset) -> None:
        self.dataset = dataset
        self.num_bytes = self.num_left_out = 0
        self.unreadable: dict[int, str] = {}
        self.odd: dict[int, str] = {}
        self._thumbnails: dict[int, NDArray[np.uint8]] = {}

    def thumbnail(self, row: int) -> bytes | None:
        """A JPEG of at most SIDE_PX on its long side; None where the image is damaged or the page is full."""
        pixels = self._look_at(row)
        if pixels is None:
            return None
        content = encode_jpeg(pixels, QUALITY)
        if self.num_bytes + len(content) > MAX_BYTES:
            self.num_left_out += 1
            return None
        self.num_bytes += len(content)
        return content

    def gist(self, row: int) -> NDArray[np.float32] | None:
        """The image in GIST_PX x GIST_PX grey fields, to compare it with another one."""
        pixels = self._look_at(row)
        if pixels is None:
            return None
        grey = cv2.cvtColor(pixels, cv2.COLOR_RGB2GRAY)
        return cv2.resize(grey, (GIST_PX, GIST_PX), interpolation=cv2.INTER_AREA).astype(np.float32)

    def look_at(self, rows: Sequence[int]) -> int:
        """Read images only to see whether they are odd; returns how many were seen in all."""
        for row in rows:
            self._look_at(row)
        return len(self._thumbnails)

    def _look_at(self, row: int) -> NDArray[np.uint8] | None:
        if row in self.unreadable:
            return None
        if row not in self._thumbnails:
            try:
                pixels = decode_stored(self.dataset.read(row))
            except (InputError, ValueError, OSError) as error:
                self.unreadable[row] = str(error).splitlines()[0][:300]
                return None
            self._thumbnails[row] = _small(pixels)
            oddity = _oddity(pixels)
            if oddity:
                self.odd[row] = oddity
        return self._thumbnails[row]


def _small(pixels: NDArray[np.uint8]) -> NDArray[np.uint8]:
    height, width = pixels.shape[:2]
    scale = min(1.0, SIDE_PX / max(height, width))
    size = (max(1, round(width * scale)), max(1, round(height * scale)))
    return np.asarray(cv2.resize(pixels, size, interpolation=cv2.INTER_AREA), dtype=np.uint8)


def _oddity(pixels: NDArray[np.uint8]) -> str:
    mean, spread = float(pixels.mean()), float(pixels.std(axis=(0, 1)).max())
    if spread < FLAT_SPREAD:
        return "of one colour"
    return "very dark" if mean < DARK_MEAN else "very bright" if mean > BRIGHT_MEAN else ""


def contact_sheets(overview: Overview) -> list[Sheet]:
    """Cases to show, about as many of each label, drawn by the hash of their keys: the same every time.

    A case with several labels is shown under its rarest. Half of the places at least go to cases with
    several images where there are any.
    """
    groups = _groups(overview)
    shown = sorted(groups, key=lambda title: -len(groups[title]))[:MAX_LABELS]
    places = min(MAX_PER_LABEL, max(MIN_PER_LABEL, NUM_CASES // max(1, len(shown))))
    return [
        Sheet(title, _drawn(overview, cases, places), len(cases)) for title, cases in groups.items() if title in shown
    ]


def _groups(overview: Overview) -> dict[str, Integers]:
    """Cases by what they are shown under, in the order of the labels; only groups with a case."""
    names, state = overview.dataset.label_names, overview.state_CK
    if not names:
        return {NOT_LABELLED: np.arange(overview.dataset.num_cases)}
    titles = [*names, f"not {names[0]}" if len(names) == 1 else NOTHING_POSITIVE, DOUBTFUL, NOT_LABELLED]
    positive = state == POSITIVE
    rarity = np.where(positive, positive.sum(axis=0), np.iinfo(np.int64).max)
    group = np.where(
        positive.any(axis=1),
        rarity.argmin(axis=1),
        np.where(
            (state == NEGATIVE).any(axis=1),
            len(names),
            np.where((state == UNCERTAIN).any(axis=1), len(names) + 1, len(names) + 2),
        ),
    )
    found = {title: np.flatnonzero(group == number) for number, title in enumerate(titles)}
    return {title: cases for title, cases in found.items() if len(cases)}


def _drawn(overview: Overview, cases: Integers, places: int) -> list[int]:
    keys = overview.column("key")
    drawn = sorted(cases.tolist(), key=lambda case: hashlib.sha256(str(keys[overview.first_C[case]]).encode()).digest())
    several = [case for case in drawn if overview.images_C[case] > 1]
    single = [case for case in drawn if overview.images_C[case] == 1]
    num_single = min(len(single), max(places // 2, places - len(several)))
    return [*several[: places - num_single], *single[:num_single]]


def sampled_rows(dataset: Dataset, number: int) -> list[int]:
    """Rows drawn evenly from the whole dataset: the same every time."""
    return (
        np.unique(np.linspace(0, dataset.num_images - 1, min(number, dataset.num_images)).round()).astype(int).tolist()
    )
