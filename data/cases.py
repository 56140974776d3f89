"""The unit of everything downstream: a case, its images, and whose it is.

A case is one condition seen once or many times: a lesion with its photographs, a study with its
views. Two images of a case show the same condition, which is what MICLe learns from; a patient may
have several cases, and only the patient decides the split.
"""

import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from clusters.storage import Folder

TASKS = ("multiclass", "binary", "multilabel", "unlabelled")


@dataclass(frozen=True)
class SourceImage:
    """One raw image: how to get its bytes, and what to call it in messages.

    `read` returns the encoded file, or pixels where the raw format has no image files (uint8, `(H, W, 3)` RGB
    or `(H, W, 1)` grey), and raises FileNotFoundError where it is absent; it is pickled to worker processes.
    `name` is a file name or, where ids are keyed, a row number: it may be printed.
    `file` is what the source calls the file: never printed and never written where ids are keyed.
    """

    name: str
    read: "Callable[[], bytes | NDArray[np.uint8]]"
    attributes: dict[str, str] = field(default_factory=dict)
    file: str = ""


@dataclass(frozen=True)
class Case:
    """One case. `labels` holds one float per label name, NaN where not labelled.

    Multi-class labels sum to 1 over all label names (one-hot, or a soft label where experts disagree; all NaN
    where unlabelled), a binary label is one name with 0 or 1, multi-label is 0, 1 or NaN each. `uncertain`
    names the labels that the source marks as doubtful: they are NaN here, and what they count as is decided
    at fine-tuning time. `split` is set only by a source that publishes official splits; `train_val` leaves the
    cut between train and val to the hash. `numbers` are measurements in the units of the source, NaN where unknown.
    """

    key: str
    patient: str
    images: tuple[SourceImage, ...]
    labels: dict[str, float] = field(default_factory=dict)
    attributes: dict[str, str] = field(default_factory=dict)
    split: str | None = None
    uncertain: frozenset[str] = frozenset()
    numbers: dict[str, float] = field(default_factory=dict)


@dataclass(frozen=True)
class RawDataset:
    """What a source found: its cases and what is to be known about all of them.

    `case_meaning` says in a sentence what a case is here, and why two images of it show the same condition;
    `patient_unit` is a word for what counts as a patient: `lesion`, `image`, … where nobody says who is who.
    """

    licence: str
    citation: str
    task: str
    label_names: tuple[str, ...]
    cases: Sequence[Case]
    case_meaning: str
    number_names: tuple[str, ...] = ()
    patient_unit: str = "patient"


@dataclass(frozen=True)
class RawFile:
    """Reads one file of a raw dataset, wherever the folder lies."""

    folder: Folder
    name: str

    def is_absent(self) -> bool:
        """Whether there is certainly no such file; at a URL, and where access is denied, reading it tells."""
        if self.folder.path is None:
            return False
        try:
            os.stat(os.path.join(self.folder.path, self.name))  # noqa: PTH116, PTH118 (a Path for each of a million is slow)
        except (FileNotFoundError, NotADirectoryError):
            return True
        except OSError:
            return False
        return False

    def __call__(self) -> bytes:
        """The file's bytes. Raises FileNotFoundError, also for a pipe or device, which might never end."""
        if self.folder.path is not None and not (self.folder.path / self.name).is_file():
            raise FileNotFoundError(self.name)
        return self.folder.read(self.name)


def one_hot(label: str | None, names: Sequence[str]) -> dict[str, float]:
    """Multi-class labels of a case: 1 for its class, 0 elsewhere; all NaN for None."""
    assert label is None or label in names, label
    return {name: float("nan") if label is None else float(name == label) for name in names}


def age_band(text: str) -> str:
    """A ten-year band (`40-49`, from 90 on `90+`) of an age in years; empty where there is none.

    Single years above 89 identify people (HIPAA Safe Harbor, 45 CFR 164.514(b)(2)), and no analysis
    here needs finer steps.
    """
    try:
        decade = int(float(text)) // 10 * 10
    except (ValueError, OverflowError):
        return ""
    return "90+" if decade >= 90 else f"{decade}-{decade + 9}" if decade >= 0 else ""
