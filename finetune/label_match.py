"""What the labels of another hospital's dataset are among the labels of a model.

Shapes: I images, J labels of the dataset, K labels of the model.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from clusters.config import InputError
from data.dataset import Dataset
from finetune.bootstrap import Floats

UNSEEN, IGNORE = "unseen", "ignore"


@dataclass(frozen=True)
class Matched:
    """The truth in the model's labels, (I, K), NaN where unknown; which images show a condition it never learned.

    `absent` are labels of the model that the dataset says nothing of.
    """

    truth_IK: Floats
    unseen_I: NDArray[np.bool_]
    label_map: dict[str, str]
    absent: tuple[str, ...]


def match_labels(
    dataset: Dataset, label_names: Sequence[str], exclusive: bool, label_map: Mapping[str, str]
) -> Matched:
    """Truth of a dataset in a model's labels. `label_map`: theirs → ours, `unseen` or `ignore`.

    Labels of one name are the same. Raises InputError, with both lists and the map to write, where a class of theirs
    has no counterpart among exclusive classes of ours, or a label of ours might be one of theirs by another name.
    """
    theirs, where = list(dataset.label_names), dataset.location
    for key, value in label_map.items():
        if key not in theirs or value not in (*label_names, UNSEEN, IGNORE):
            word = f"'{key}' is no label of theirs" if key not in theirs else f"'{value}' is no label of ours"
            raise InputError(f"label_map: {word}; {_lists(where, theirs, label_names)}")
    full = {name: name for name in theirs if name in label_names} | dict(label_map)
    left = [name for name in theirs if name not in full]
    absent = tuple(name for name in label_names if name not in full.values())
    if exclusive and dataset.task != "multiclass":
        raise InputError(
            f"{where}: its task is '{dataset.task}', the model's is one of {len(label_names)} classes; evaluate a "
            "model of one label (label=NAME when fine-tuning) on it"
        )
    if not theirs or (left and (exclusive or (absent and not label_map))) or len(absent) == len(label_names):
        raise InputError(f"labels do not match: {_lists(where, theirs, label_names)}; {_to_write(left or theirs)}")
    labels = np.asarray(dataset.labels, dtype=np.float64)
    if dataset.task == "multiclass":
        truth, unseen = _of_classes(labels, theirs, full, label_names, exclusive)
    else:
        truth, unseen = _of_labels(labels, theirs, full, label_names)
    return Matched(truth, unseen, full, absent)


def _of_classes(
    labels_IJ: Floats, theirs: list[str], full: dict[str, str], ours: Sequence[str], exclusive: bool
) -> tuple[Floats, NDArray[np.bool_]]:
    """Of images of one class each, the likeliest where labels are soft."""
    known = np.isfinite(labels_IJ).all(axis=1)
    class_I = np.where(known, np.nan_to_num(labels_IJ).argmax(axis=1), -1)
    truth = np.full((len(labels_IJ), len(ours)), np.nan)
    for number, name in enumerate(theirs):
        rows, meant = class_I == number, full.get(name)
        if meant not in (UNSEEN, IGNORE):
            # A class that has no counterpart is one more way not to have the label.
            truth[rows] = 0.0
            if meant is not None:
                truth[rows, ours.index(meant)] = 1.0
    if not exclusive:
        absent = [k for k, name in enumerate(ours) if name not in full.values()]
        truth[:, absent] = np.nan
    return truth, np.isin(class_I, [n for n, name in enumerate(theirs) if full.get(name) == UNSEEN])


def _of_labels(
    labels_IJ: Floats, theirs: list[str], full: dict[str, str], ours: Sequence[str]
) -> tuple[Floats, NDArray[np.bool_]]:
    """Of images with yes-or-no labels: yes where one of several that mean it is, no where all are known and none is."""
    truth = np.full((len(labels_IJ), len(ours)), np.nan)
    for k, label in enumerate(ours):
        columns = [j for j, name in enumerate(theirs) if full.get(name) == label]
        if columns:
            some = labels_IJ[:, columns]
            truth[:, k] = np.where((some == 1).any(axis=1), 1.0, np.where((some == 0).all(axis=1), 0.0, np.nan))
    unseen = [j for j, name in enumerate(theirs) if full.get(name) == UNSEEN]
    return truth, (labels_IJ[:, unseen] == 1).any(axis=1)


def _lists(where: str, theirs: Sequence[str], ours: Sequence[str]) -> str:
    return f"{where} has {', '.join(theirs) or 'none'}; the model has {', '.join(ours)}"


def _to_write(names: Sequence[str]) -> str:
    words = ", ".join(f"{name}: OURS" for name in names)
    return f"write label_map='{{{words}}}' with a label of the model, '{UNSEEN}' or '{IGNORE}' for each"
