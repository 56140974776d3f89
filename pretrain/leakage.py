"""Nobody who is evaluated on is learned from: patients and images across all datasets of a run.

The import keeps a patient within one split of its dataset. Two datasets may still share patients or
photographs, and what one of them holds out for evaluation must not stand in the pretraining of the other.
"""

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from clusters.config import InputError
from clusters.tracking import say
from data.combined import AnyDataset, parts_of
from data.dataset import Dataset, open_dataset
from pretrain.config import PretrainConfig
from pretrain.export import ids_scheme, rows_of_parts
from pretrain.stage import Rows


@dataclass(frozen=True)
class Overlap:
    """What the pretraining images share with the images that are held out, in whichever dataset.

    `rows` are the pretraining images of the patients concerned; `patients` of them are known by their ids,
    `images` are held-out images pixel for pixel, and `look_alikes` have the perceptual hash of one in
    another dataset (reported only: a hash of 64 bits proves nothing).
    """

    rows: Rows
    patients: int
    images: int
    look_alikes: int


def pretraining_rows(dataset: AnyDataset, config: PretrainConfig) -> Rows:
    """The images that are learned from: those of `splits`, less what `on_leak=exclude` takes out. Says nothing."""
    rows = dataset.rows(config.splits)
    if config.on_leak == "refuse":
        return rows
    return np.setdiff1d(rows, find_overlap(dataset, config.splits, held_out_datasets(config)).rows)


def held_out_datasets(config: PretrainConfig) -> list[Dataset]:
    """The datasets that are not learned from, whose held-out splits are to be kept out."""
    return [open_dataset(location, config.loader.place) for location in config.held_out]


def check_leakage(dataset: AnyDataset, config: PretrainConfig) -> None:
    """Say what is unknown and what is left out. Raises InputError for leakage unless on_leak=exclude."""
    for part in parts_of(dataset):
        _check_patients(part, config.splits)
    others = held_out_datasets(config)
    for line in unknown(parts_of(dataset), others):
        say(line)
    overlap = find_overlap(dataset, config.splits, others)
    if overlap.look_alikes:
        say(
            f"{overlap.look_alikes} pretraining images have the perceptual hash of an image that another dataset holds "
            "out: perhaps near duplicates; they are kept"
        )
    if not len(overlap.rows):
        return
    found = (
        f"{overlap.patients} patients and {overlap.images} images of splits {', '.join(config.splits)} stand in splits "
        f"that {' or '.join(part.location for part in (*parts_of(dataset), *others))} holds out for evaluation"
    )
    if config.on_leak == "refuse":
        raise InputError(f"{found}; set on_leak=exclude to leave these patients' {len(overlap.rows)} images out")
    say(f"{found}: the {len(overlap.rows)} images of these patients are left out of pretraining")
    for part, left_out in rows_of_parts(dataset, overlap.rows):
        if len(left_out) == len(part.rows(config.splits)):
            raise InputError(f"{part.location}: on_leak=exclude leaves none of its images; take it out of data")


def find_overlap(dataset: AnyDataset, splits: Sequence[str], others: Sequence[Dataset]) -> Overlap:
    """Compare images in `splits` with all others of these datasets and of `others`.

    Patients are compared where their ids have one scheme, images by the hash of their pixels everywhere. An
    image tells whose it is, so with a shared image all images of its patient are found.
    """
    parts = parts_of(dataset)
    held_patients: dict[str, set[str]] = defaultdict(set)
    held_images: set[str] = set()
    for part in (*parts, *others):
        held = np.setdiff1d(np.arange(part.num_images), _in_splits(part, splits))
        held_patients[ids_scheme(part)].update(part.column("patient")[held].tolist())
        held_images.update(part.column("pixel_sha256")[held].tolist())

    found: list[Rows] = []
    start = num_patients = num_images = 0
    for part in parts:
        rows = part.rows(splits)
        patients, images = part.column("patient")[rows], part.column("pixel_sha256")[rows]
        known = set(patients.tolist()) & held_patients[ids_scheme(part)]
        same = np.array([image in held_images for image in images.tolist()], dtype=bool)
        concerned = known | set(patients[same].tolist())
        leaking = np.array([patient in concerned for patient in patients.tolist()], dtype=bool)
        found.append(start + rows[leaking])
        num_patients, num_images = num_patients + len(known), num_images + len(set(images[same].tolist()))
        start += part.num_images
    return Overlap(np.concatenate(found), num_patients, num_images, _look_alikes(parts, others, splits, held_images))


def unknown(parts: Sequence[Dataset], others: Sequence[Dataset]) -> list[str]:
    """A line for each pair of datasets whose patient ids cannot be compared."""
    lines = []
    for number, part in enumerate(parts):
        for other in (*parts[number + 1 :], *others):
            if ids_scheme(part) != ids_scheme(other):
                lines.append(
                    f"whether {part.location} and {other.location} share patients is unknown: their ids are of "
                    f"schemes {ids_scheme(part)} and {ids_scheme(other)}; images were compared by their pixels"
                )
    return lines


def _in_splits(dataset: Dataset, splits: Sequence[str]) -> Rows:
    return np.flatnonzero(np.isin(dataset.column("split").astype(str), list(splits))).astype(np.int64)


def _look_alikes(parts: Sequence[Dataset], others: Sequence[Dataset], splits: Sequence[str], exact: set[str]) -> int:
    """Pretraining images with the perceptual hash of a held-out image of another dataset, not the same pixels."""
    datasets = (*parts, *others)
    held = [np.setdiff1d(np.arange(d.num_images), _in_splits(d, splits)) for d in datasets]
    count = 0
    for part in parts:
        rows = part.rows(splits)
        foreign = [d.column("dhash")[mine] for d, mine in zip(datasets, held) if d is not part]
        if foreign:
            hashes = part.column("dhash")[rows]
            alike = np.isin(hashes, np.concatenate(foreign)) & (hashes != 0)  # 0: nothing but one colour
            count += sum(image not in exact for image in part.column("pixel_sha256")[rows[alike]].tolist())
    return count


def _check_patients(dataset: Dataset, splits: Sequence[str]) -> None:
    """The import keeps patients within a split; a run checks it again, since all evaluation rests on it."""
    patients, rows = dataset.column("patient"), dataset.rows(splits)
    others = np.setdiff1d(np.arange(dataset.num_images), rows)
    crossing = set(patients[rows]) & set(patients[others])
    if crossing:
        raise InputError(
            f"{dataset.location}: {len(crossing)} patients stand in the pretraining splits and in others, "
            f"e.g. {sorted(crossing)[0]}; import the dataset again"
        )
