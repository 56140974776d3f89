"""What makes no study, told before anything is computed, and what its reader should know.

Shapes: N images, K columns of the task.
"""

from typing import Any

import numpy as np
from numpy.typing import NDArray

from clusters.config import InputError
from data.dataset import Dataset
from data.splits import SPLITS, mend_of_empty
from finetune.bootstrap import Floats
from finetune.tasks import Task

Rows = NDArray[np.int64]


def class_members(task: Task, truth_NK: Floats) -> dict[str, NDArray[np.bool_]]:
    """Who is known to be of each class, (N,); of labels that do not exclude each other, `not <label>` is one too."""
    labels = task.parts[0]
    truth_NK = truth_NK[:, : len(labels.label_names)]
    if labels.class_names:
        known, classes = labels.usable(truth_NK, training=True), labels.class_of(truth_NK)
        return {name: known & (classes == c) for c, name in enumerate(labels.class_names)}
    hard_NK = labels.hard(truth_NK)
    with_it = {name: hard_NK[:, k] == 1 for k, name in enumerate(labels.label_names)}
    return with_it | {f"not {name}": hard_NK[:, k] == 0 for k, name in enumerate(labels.label_names)}


def classified(task: Task, truth_NK: Floats) -> NDArray[np.bool_]:
    """Rows of which some class is known, (N,)."""
    return np.any(list(class_members(task, truth_NK).values()), axis=0)


def check_splits(dataset: Dataset) -> None:
    """Raise InputError where a split has nobody."""
    there = [split for split in SPLITS if dataset.manifest.splits[split].images]
    for split in SPLITS:
        if split not in there:
            mend = mend_of_empty(split, there, dataset.manifest.source)
            raise InputError(
                f"no split '{split}' in {dataset.location}; there are {', '.join(there)}, and fine-tuning needs all "
                f"three: {mend or 'import into a new out= with patients in each'}"
            )


def check_classes(task: Task, truth: Floats, location: str, by_split: dict[str, Rows]) -> None:
    """Raise InputError for what cannot be learned, cannot be chosen by, or stands in no training case."""
    _check_numbers(task, truth, location, by_split)
    there = {s: {n for n, who in class_members(task, truth[rows]).items() if who.any()} for s, rows in by_split.items()}
    if len(there["train"]) < 2:
        raise InputError(f"{location}: the training split has one class only; nothing can be learned")
    both = () if task.class_names else task.parts[0].label_names
    for label in both:
        if absent := [name for name in (label, f"not {label}") if name not in there["train"]]:
            raise InputError(
                f"{location}: the training split has no case of '{absent[0]}', so the label cannot be learned; import "
                f"with a larger splits.train, or leave '{label}' out of labels="
            )
    decidable = [label for label in both if {label, f"not {label}"} <= there["val"]]
    if len(there["val"]) < 2 or (both and not decidable):
        what = "no label with both positives and negatives" if both else "one class only"
        raise InputError(
            f"{location}: the validation split has {what}, so nothing can be chosen on it; "
            "import with a larger splits.val"
        )
    unseen = [n for n in task.class_names if n in (there["val"] | there["test"]) - there["train"]]
    if unseen:
        raise InputError(
            f"{location}: class '{unseen[0]}' has no labelled patient in the "
            "training split; import with a larger splits.train or leave the class out of labels="
        )


def _check_numbers(task: Task, truth: Floats, location: str, by_split: dict[str, Rows]) -> None:
    first = len(task.label_names) - len(task.number_names)
    for k, name in enumerate(task.number_names, first):
        for split in ("train", "val"):
            values = truth[by_split[split], k]
            if len(np.unique(values[np.isfinite(values)])) < 2:
                raise InputError(
                    f"{location}: number '{name}' has fewer than two different values in split '{split}'; import more "
                    "of them, or leave it out of numbers="
                )


def notes_on(
    task: Task, truth: Floats, patients: NDArray[Any], by_split: dict[str, Rows], unit: str = "patient"
) -> tuple[str, ...]:
    """Sentences for the warnings of the results: classes of one patient, and classes without a case to judge them.

    `unit` is what counts as a patient.
    """
    meaning = {
        "train": f"what is learned of it rests on that {unit}",
        "val": f"what is chosen by it rests on that {unit}",
        "test": f"its figures say nothing of other {unit}s and have no interval, nor have differences of means over it",
    }
    without = {
        "val": "nothing is chosen by it",
        "test": "figures that need one are undefined, and means leave them out",
    }
    notes = []
    for split, rows in by_split.items():
        members = class_members(task, truth[rows])
        single = [name for name, who in members.items() if len(np.unique(patients[rows[who]])) == 1]
        if single:
            notes.append(f"the {split} split has one {unit} of {_quoted(single)}: {meaning[split]}")
    for split, told in without.items():
        absent = [name for name, who in class_members(task, truth[by_split[split]]).items() if not who.any()]
        if absent:
            notes.append(f"the {split} split has no case of {_quoted(absent)}: {told}")
    return tuple(notes)


def notes_on_left_out(task: Task, truth: Floats, case_of: NDArray[Any], rows_of: dict[str, Rows]) -> tuple[str, ...]:
    """Of cases that are not evaluated although something of them is known, since something else is not."""
    notes = []
    for split, rows in rows_of.items():
        known, used = np.isfinite(truth[rows]), task.usable(truth[rows], training=False)
        left_out = known.any(axis=1) & ~used
        always = np.atleast_1d(known[left_out].all(axis=0))
        missing = [name for name, has in zip(task.label_names, always) if not has]
        if missing:
            gone, whole = (len(np.unique(case_of[rows[some]])) for some in (left_out, known.any(axis=1)))
            notes.append(
                f"{gone} of {whole} cases of the {split} split are left out, for not all of it is known of them: "
                f"{_quoted(missing)}"
            )
    return tuple(notes)


def notes_on_other_classes(
    labels_IK: Floats, truth: Floats, case_of: NDArray[Any], rows_of: dict[str, Rows]
) -> tuple[str, ...]:
    """Of labelled cases of which none of the labels that are asked for is known: who is not studied should be said."""
    notes = []
    for split, rows in rows_of.items():
        labelled, asked = np.isfinite(labels_IK[rows]).any(axis=1), np.isfinite(truth[rows]).any(axis=1)
        gone, whole = (len(np.unique(case_of[rows[some]])) for some in (labelled & ~asked, labelled))
        if gone:
            notes.append(
                f"{gone} of {whole} labelled cases of the {split} split are left out by labels=: of other classes, or "
                "with none of these labels known"
            )
    return tuple(notes)


def notes_on_ties(task: Task, truth: Floats, case_of: NDArray[Any], rows: Rows) -> tuple[str, ...]:
    """Of test cases whose soft labels leave open which class is the true one."""
    labels = task.parts[0]
    if not labels.class_names:
        return ()
    truth_NK = truth[rows, : len(labels.label_names)]
    if len(labels.label_names) == 1:
        truth_NK = np.concatenate([1 - truth_NK, truth_NK], axis=1)
    largest_N1 = truth_NK.max(axis=1, keepdims=True)
    tied_N = np.isclose(truth_NK, largest_N1, rtol=0, atol=1e-6).sum(axis=1) > 1
    if not tied_N.any():
        return ()
    tied, whole = (len(np.unique(case_of[some])) for some in (rows[tied_N], rows))
    counted = f"as '{labels.label_names[0]}'" if len(labels.label_names) == 1 else "as the first of these columns"
    return (
        f"{tied} of {whole} cases of the test split are as likely of one class as of another by their labels: each "
        f"counts {counted}, of {_quoted(list(labels.class_names))}",
    )


def _quoted(names: list[str]) -> str:
    return ", ".join(f"'{name}'" for name in names)
