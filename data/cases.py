"""The unit of everything downstream: a case, its images, and whose it is.

A case is one condition seen once or many times: a lesion with its photographs, a study with its
views. Two images of a case show the same condition, which is what MICLe learns from; a patient may
have several cases, and only the patient decides the split.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from clusters.storage import Folder

TASKS = ("multiclass", "binary", "multilabel", "unlabelled")


@dataclass(frozen=True)
class SourceImage:
    """One raw image: how to get its bytes, and what to call it in messages.

    `read` returns the encoded file and raises FileNotFoundError where it is absent; it is pickled to
    worker processes. `name` is a file name or, where ids are keyed, a row number: it may be printed.
    `file` is what the source calls the file: never printed and never written where ids are keyed.
    """

    name: str
    read: Callable[[], bytes]
    attributes: dict[str, str] = field(default_factory=dict)
    file: str = ""


@dataclass(frozen=True)
class Case:
    """One case. `labels` holds one float per label name, NaN where not labelled.

    Multi-class labels are one-hot over all label names (all NaN where unlabelled), a binary label is
    one name with 0 or 1, multi-label is 0, 1 or NaN each. `split` is set only by a source that
    publishes official splits.
    """

    key: str
    patient: str
    images: tuple[SourceImage, ...]
    labels: dict[str, float] = field(default_factory=dict)
    attributes: dict[str, str] = field(default_factory=dict)
    split: str | None = None


@dataclass(frozen=True)
class RawDataset:
    """What a source found: its cases and what is to be known about all of them."""

    licence: str
    citation: str
    task: str
    label_names: tuple[str, ...]
    cases: Sequence[Case]


@dataclass(frozen=True)
class RawFile:
    """Reads one file of a raw dataset, wherever the folder lies."""

    folder: Folder
    name: str

    def __call__(self) -> bytes:
        """The file's bytes. Raises FileNotFoundError."""
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
