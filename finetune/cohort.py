"""Who is in the study: the labelled images of each split, the share of training patients, and leakage.

Shapes: I images, K labels, N numbers, S columns of both, P patients.
"""

import hashlib
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from clusters.config import InputError
from data.dataset import Dataset
from finetune.bootstrap import Floats, Integers, patient_strata
from finetune.config import FinetuneConfig
from finetune.regression import upper_half
from finetune.study import study_of
from finetune.study_checks import (
    check_classes,
    check_splits,
    class_members,
    classified,
    notes_on,
    notes_on_left_out,
    notes_on_other_classes,
    notes_on_ties,
)
from finetune.tasks import Task, pool_cases
from finetune.two_heads import TwoHeads
from pretrain.encoder_folder import encoder_folder, read_card, read_seen
from pretrain.export import ids_scheme
from pretrain.leakage import if_namesakes, seen_of

Rows = NDArray[np.int64]
SPLITS = ("train", "val", "test")
LEAKAGE, COPIES = "LEAKAGE: ", "LEAKAGE between splits: "
"""How a warning begins where a network has met those of test, and where a study's own splits share images."""


@dataclass(frozen=True)
class Cohort:
    """The labelled images of each split by row number, and what is known of every row of the dataset.

    `truth` is (num_images, K), the task's labels as 0, 1 or between them, and numbers; NaN where unknown. `notes` are
    for the reader of the results.
    """

    dataset: Dataset
    task: Task
    truth: Floats
    train: Rows
    val: Rows
    test: Rows
    all_train: Rows
    patient_of: Integers
    notes: tuple[str, ...] = ()
    labelled_patients: int | None = None  # in the training split, of whom a share may be drawn

    def rows(self, split: str) -> Rows:
        """The labelled images of a split that are used."""
        return {"train": self.train, "val": self.val, "test": self.test}[split]

    def class_of(self, rows: Rows) -> Integers:
        """Class number of each image, (I,)."""
        return self.task.class_of(self.truth[rows])

    def training_weights(self, class_weighting: str) -> Floats:
        """Weight of each training image in the loss, (I,); they sum to the number of cases.

        A case weighs the same however many photographs it has, since a case is what is diagnosed.
        `balanced`: and every class weighs the same, as in scikit-learn's class_weight; where the class is unknown, an
        image keeps its weight.
        """
        _, place, images = np.unique(self.dataset.case_of[self.train], return_inverse=True, return_counts=True)
        weights = 1.0 / images[place]
        if class_weighting == "balanced":
            known = classified(self.task, self.truth[self.train])
            classes = self.class_of(self.train)[known]
            cases_per_class = np.zeros(len(self.task.class_names))
            np.add.at(cases_per_class, classes, weights[known])
            present = np.count_nonzero(cases_per_class)
            weights[known] *= weights[known].sum() / (present * cases_per_class[classes])
        return weights

    def counts(self) -> dict[str, dict[str, Any]]:
        """Images, cases, patients and cases per class of each split, for the results; of how many training is drawn."""
        counts = {split: self._counts(self.rows(split)) for split in SPLITS}
        counts["train"]["of_patients"] = self.labelled_patients
        return counts

    def _counts(self, rows: Rows) -> dict[str, Any]:
        _, first = np.unique(self.dataset.case_of[rows], return_index=True)
        members = class_members(self.task, self.truth[rows[first]])
        names = self.task.class_names or self.task.label_names
        return {
            "images": len(rows),
            "cases": len(first),
            "patients": len(np.unique(self.patient_of[rows])),
            "cases_per_class": {name: int(members[name].sum()) for name in names if name in members},
        }


def case_auroc(cohort: Cohort, rows: Integers, logits_IK: Floats) -> float:
    """What models are chosen by: the task's score over cases, a case's probability being the mean of its images'."""
    return case_score(cohort, rows, cohort.task.probabilities(logits_IK))


def case_score(cohort: Cohort, rows: Integers, probabilities_IK: Floats) -> float:
    """The task's score over cases, from probabilities of images."""
    cases, scores = pool_cases(cohort.dataset.case_of[rows], probabilities_IK)
    _, first = np.unique(cohort.dataset.case_of[rows], return_index=True)
    assert len(cases) == len(first)
    return cohort.task.score(cohort.truth[rows[first]], scores)


def choose_cohort(dataset: Dataset, config: FinetuneConfig) -> Cohort:
    """The study's images. Raises InputError for splits or classes that make no study."""
    task, truth = study_of(dataset, config)
    if config.class_weighting == "balanced" and not task.class_names:
        raise InputError(
            "class_weighting: balanced weighs images by their class, and these labels do not exclude each other; "
            "give class_weighting=none"
        )
    check_splits(dataset)
    patients = dataset.column("patient").astype(str)
    by_split, rows_of = {}, {split: dataset.rows([split]) for split in SPLITS}
    for split, rows in rows_of.items():
        by_split[split] = rows[task.usable(truth[rows], training=split == "train")]
        if not len(by_split[split]):
            raise InputError(f"{dataset.location}: no labelled image in split '{split}'; import labels for it")
    _check_patients(dataset, patients)
    check_classes(task, truth, dataset.location, by_split)
    labels, numbers = np.split(task.hard(truth[by_split["train"]]), [len(task.parts[0].label_names)], axis=1)
    chosen = choose_patients(
        patients[by_split["train"]], labels, config.label_fraction, config.seed_of_labels, upper_half(numbers)
    )
    train = by_split["train"][np.isin(patients[by_split["train"]], list(chosen))]
    if isinstance(task, TwoHeads):
        task = task.fitted(truth[train])
    return Cohort(
        dataset=dataset,
        task=task,
        truth=truth,
        train=train,
        val=by_split["val"],
        test=by_split["test"],
        all_train=dataset.rows(["train"]),
        patient_of=np.unique(patients, return_inverse=True)[1],
        labelled_patients=len(np.unique(patients[by_split["train"]])),
        notes=(
            *notes_on_copies(dataset, {"train": train, "val": by_split["val"], "test": by_split["test"]}),
            *notes_on(task, truth, patients, {**by_split, "train": train}, dataset.manifest.patient_unit),
            *notes_on_ties(task, truth, dataset.case_of, by_split["test"]),
            *notes_on_left_out(task, truth, dataset.case_of, {name: rows_of[name] for name in ("val", "test")}),
            *(notes_on_other_classes(dataset.labels, truth, dataset.case_of, rows_of) if config.labels else ()),
        ),
    )


def choose_patients(
    patient_I: NDArray[Any], truth_IK: Floats, fraction: float, seed: int, halves_IN: Floats | None = None
) -> set[str]:
    """The share of the patients whose labels are used: the same share of each stratum, at least one of each class.

    Patients of a stratum (`patient_strata`: by their rarest class) stand in an order that depends on the
    seed alone and a share takes the first ones, so that a smaller subset lies within a larger one. A class that is
    nobody's rarest has no stratum, so whoever would come first with it as the share grows (`_always`) is in every one.
    So is one of each half of a number (`upper_half`), of which a share without two values could learn nothing.
    """
    names, numbers = np.unique(patient_I, return_inverse=True)
    strata_P = patient_strata(truth_IK, numbers)
    order_of = {str(name): hashlib.sha256(f"label subset:{seed}:{name}".encode()).digest() for name in names}
    entered_P, chosen = np.zeros(len(names)), set[str]()
    for stratum in np.unique(strata_P):
        members = sorted(np.flatnonzero(strata_P == stratum), key=lambda p: order_of[str(names[p])])
        entered_P[members[1:]] = (np.arange(1, len(members)) + 0.5) / len(members)
        chosen.update(str(name) for name in names[members[: max(1, round(fraction * len(members)))]])
    arrivals = sorted(range(len(names)), key=lambda p: (entered_P[p], order_of[str(names[p])]))
    sides_IS = truth_IK if halves_IN is None else np.concatenate([truth_IK, halves_IN], axis=1)
    return chosen | {str(names[p]) for p in _always(sides_IS, numbers, arrivals, int((entered_P == 0).sum()))}


def _always(sides_IS: Floats, patient_I: Integers, arrivals: list[int], num_first: int) -> set[int]:
    """The first `num_first` arrivals, and the first of each side, 1 or 0, of a column that none of them shows.

    They depend on no share, so that subsets stay nested; one that shows every class by itself has them already.
    """
    always = set(arrivals[:num_first])
    place_P = np.argsort(arrivals)
    for side_I in sides_IS.T:
        for side in (1, 0):
            having = np.unique(patient_I[side_I == side]).tolist()
            if having and not always & set(having):
                always.add(min(having, key=lambda p: place_P[p]))
    return always


def find_leaks(cohort: Cohort, location: str, on_leak: str) -> list[str]:
    """Test patients and test images that an encoder was pretrained on, in whichever of its datasets.

    Returns warnings, also for validation, on which models are chosen. Raises InputError with the numbers found in
    test, unless `on_leak` is `warn`. All images of a split count, labelled or not.
    """
    seen, card, dataset = read_seen(location), read_card(location), cohort.dataset
    name = f"encoder {card.fingerprint[:12]}"
    scheme = ids_scheme(dataset)
    warnings = []
    if card.began_elsewhere:
        warnings.append(
            f"{name} started from weights of others, of which nobody knows whether they were trained on test images"
        )
    others = sorted(seen.ids - {scheme})
    if others or scheme not in seen.ids:
        warnings.append(
            f"whether {name} saw test patients is unknown for ids of scheme {', '.join(others) or 'none'}: the "
            f"dataset's are of {scheme}; of images only exact copies are known again, "
            "none that was encoded again or cropped"
        )
    patients, images = seen_of(dataset, dataset.rows(["test"]), seen)
    if patients or images:
        found = f"was pretrained on {patients} test patients and {images} test images"
        if on_leak == "refuse":
            raise InputError(
                f"{encoder_folder(location)} {found} of {dataset.location}, so its test figures would mean nothing; "
                f"pretrain again with held_out=[{dataset.location}] on_leak=exclude, which leaves them out "
                f"(on_leak=warn goes on here and says so){if_namesakes([scheme], patients, images)}"
            )
        warnings.append(f"{LEAKAGE}{name} {found}; the test figures do not show how it does on new patients")
    patients, images = seen_of(dataset, dataset.rows(["val"]), seen)
    if patients or images:
        warnings.append(
            f"{name} was pretrained on {patients} validation patients and {images} validation images; what is chosen "
            "on validation may favour it"
        )
    return warnings


def notes_on_copies(dataset: Dataset, rows_of: dict[str, Rows]) -> tuple[str, ...]:
    """A sentence where images of one split are those of another pixel for pixel, as an import can be told to keep."""
    pixels = dataset.column("pixel_sha256")
    images = {split: set(pixels[rows]) for split, rows in rows_of.items()}
    names, found = {"train": "training", "val": "validation", "test": "test"}, []
    for split, other in (("test", "train"), ("test", "val"), ("val", "train")):
        if copies := sum(image in images[other] for image in pixels[rows_of[split]]):
            found.append(f"{copies} of {len(rows_of[split])} {names[split]} images in {names[other]}")
    if not found:
        return ()
    return (
        f"{COPIES}there stand, pixel for pixel the same, {', and '.join(found)}; the figures of such images are not "
        "those of new ones (an import with duplicates=refuse names them)",
    )


def _check_patients(dataset: Dataset, patients: NDArray[Any]) -> None:
    pairs = np.unique(np.stack([patients, dataset.column("split").astype(str)]), axis=1)
    names, counts = np.unique(pairs[0], return_counts=True)
    if (counts > 1).any():
        raise InputError(
            f"{dataset.location}: {int((counts > 1).sum())} patients stand in more than one split "
            f"(first: {names[counts > 1][0]}); import the dataset again"
        )
