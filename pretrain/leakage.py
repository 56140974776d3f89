"""Nobody who is evaluated on is learned from: patients and images across all datasets of a run.

The import keeps a patient within one split of its dataset. Two datasets may still share patients or
photographs, and what one of them holds out for evaluation must not stand in the pretraining of the other.
"""

import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from clusters import distributed
from clusters.config import InputError
from clusters.tracking import say
from data.combined import AnyDataset, parts_of
from data.dataset import Dataset, open_dataset
from pretrain.config import PretrainConfig
from pretrain.encoder_folder import Seen, hash64, read_seen
from pretrain.export import ids_scheme, rows_of_parts
from pretrain.stage import Rows
from pretrain.weights_source import NONE, find_weights


@dataclass(frozen=True)
class Overlap:
    """What the pretraining images share with the images that are held out, in whichever dataset.

    `rows` are the pretraining images of the patients concerned; `patients` of them are known by their ids,
    `images` are held-out images pixel for pixel, and `look_alikes` have the perceptual hash of one in
    another dataset (reported only: a hash of 64 bits proves nothing). `shared` images are learned from in
    more than one dataset, each copy the other's negative.
    """

    rows: Rows
    patients: int
    images: int
    look_alikes: int
    shared: int


def pretraining_rows(dataset: AnyDataset, config: PretrainConfig) -> Rows:
    """The images that are learned from: those of `splits`, less what `on_leak=exclude` takes out. Says nothing."""
    rows = dataset.rows(config.splits)
    if config.on_leak == "refuse":
        return rows
    found = find_overlap(dataset, config.splits, held_out_datasets(config)).rows if distributed.is_main() else None
    return np.setdiff1d(rows, distributed.broadcast_object(found))


def held_out_datasets(config: PretrainConfig) -> list[Dataset]:
    """The datasets that are evaluated on alone: whoever stands in them, in whichever split, is to be kept out."""
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
    if overlap.shared:
        say(f"{overlap.shared} images are learned from in more than one of the datasets, pixel for pixel the same")
    if not len(overlap.rows):
        return
    found = (
        f"{overlap.patients} patients and {overlap.images} images of splits {', '.join(config.splits)} stand in what "
        f"{' or '.join(part.location for part in (*parts_of(dataset), *others))} holds out for evaluation"
    )
    if config.on_leak == "refuse":
        schemes = [ids_scheme(part) for part in (*parts_of(dataset), *others)]
        namesakes = if_namesakes([s for s in schemes if schemes.count(s) > 1], overlap.patients, overlap.images)
        raise InputError(
            f"{found}; set on_leak=exclude to leave these patients' {len(overlap.rows)} images out{namesakes}"
        )
    say(f"{found}: the {len(overlap.rows)} images of these patients are left out of pretraining")
    for part, left_out in rows_of_parts(dataset, overlap.rows):
        if len(left_out) == len(part.rows(config.splits)):
            raise InputError(f"{part.location}: on_leak=exclude leaves none of its images; take it out of data")


def check_seen_before(dataset: AnyDataset, config: PretrainConfig) -> None:
    """Say what is unknown of the weights that are started from. Raises InputError where they saw who is held out."""
    if config.encoder.weights == NONE:
        return
    source = find_weights(config.encoder)
    if source.card is None or source.card.began_elsewhere:
        say(f"encoder.weights: whom {source.title} was trained on is unknown, and so whether they are held out here")
    if source.card is None:
        return
    seen = read_seen(source.folder.location)
    others = [(other, np.arange(other.num_images)) for other in held_out_datasets(config)]
    for part, held in (*((part, _out_of_splits(part, config.splits)) for part in parts_of(dataset)), *others):
        patients, images = seen_of(part, held, seen)
        if patients or images:
            raise InputError(
                f"encoder.weights: {source.folder} was pretrained on {patients} patients and {images} images that "
                f"{part.location} holds out for evaluation; start from other weights, or make these again with "
                f"held_out=[{part.location}] on_leak=exclude{if_namesakes([ids_scheme(part)], patients, images)}"
            )
        if ids_scheme(part) not in seen.ids:
            say(
                f"encoder.weights: whether they saw patients that {part.location} holds out is unknown: the ids are of "
                f"schemes {', '.join(sorted(seen.ids))} and {ids_scheme(part)}; of images only exact copies are known "
                "again"
            )


def if_namesakes(schemes: Sequence[str], patients: int, images: int) -> str:
    """A clause of refusals for patients who may be others: under one keyring equal numbers are one person.

    Nothing where ids are as published, and where as many images are found as patients, which makes them the same.
    """
    if images >= patients or not any(scheme.startswith("keyed:") for scheme in schemes):
        return ""
    return "; if these are different people with equal numbers (two hospitals), import each with a keyring= of its own"


def seen_of(dataset: Dataset, rows: Rows, seen: Seen) -> tuple[int, int]:
    """How many patients and how many images of these rows an encoder has seen."""
    patients = {hash64(str(p)) for p in set(dataset.column("patient")[rows])}
    images = {hash64(str(h)) for h in set(dataset.column("pixel_sha256")[rows])}
    return len(patients & seen.patients.get(ids_scheme(dataset), frozenset())), len(images & seen.images)


def find_overlap(dataset: AnyDataset, splits: Sequence[str], others: Sequence[Dataset]) -> Overlap:
    """Compare images in `splits` with all others of these datasets, and with all of `others`.

    Patients are compared where their ids have one scheme, images by the hash of their pixels everywhere. An
    image tells whose it is, so with a shared image all images of its patient are found, in every dataset, and
    with those whoever else has one of them.
    """
    parts = parts_of(dataset)
    datasets = (*parts, *others)
    person = numbered([d.column("patient") for d in datasets], [ids_scheme(d) for d in datasets])
    image = numbered([d.column("pixel_sha256") for d in datasets], [""] * len(datasets))
    starts = np.cumsum([0, *(d.num_images for d in datasets)])
    learned = np.concatenate([start + part.rows(splits) for start, part in zip(starts, parts)])
    kept = np.concatenate([start + _in_splits(part, splits) for start, part in zip(starts, parts)])
    held = np.setdiff1d(np.arange(starts[-1]), kept)

    held_persons, held_images = np.unique(person[held]), np.unique(image[held])
    persons, images = np.zeros(person.max() + 1, bool), np.zeros(image.max() + 1, bool)
    persons[held_persons] = images[held_images] = True
    size = 0
    while size != (size := int(persons.sum() + images.sum())):  # until nobody and nothing is added
        persons[person[images[image]]] = True
        images[image[persons[person]]] = True

    alike = _look_alikes(datasets, learned, held, image)
    sizes = [len(np.unique(image[learned[(learned >= a) & (learned < b)]])) for a, b in itertools.pairwise(starts)]
    return Overlap(
        rows=learned[persons[person[learned]]],
        patients=len(np.intersect1d(person[learned], held_persons)),
        images=len(np.intersect1d(image[learned], held_images)),
        look_alikes=alike,
        shared=sum(sizes) - len(np.unique(image[learned])),
    )


def numbered(columns: Sequence[NDArray[Any]], kinds: Sequence[str]) -> Rows:
    """A number for each text of the columns laid end to end; equal texts of one kind have equal ones."""
    texts = pa.chunked_array([pa.array(column, pa.string()) for column in columns]).combine_chunks()
    codes = texts.dictionary_encode().indices.to_numpy().astype(np.int64)
    kind_of = np.unique(list(kinds), return_inverse=True)[1]
    kind = np.repeat(kind_of, [len(column) for column in columns])
    return np.unique(kind * (codes.max() + 1) + codes, return_inverse=True)[1].astype(np.int64)


def unknown(parts: Sequence[Dataset], others: Sequence[Dataset]) -> list[str]:
    """A line for each pair of datasets whose patient ids cannot be compared."""
    lines = []
    for number, part in enumerate(parts):
        for other in (*parts[number + 1 :], *others):
            if ids_scheme(part) != ids_scheme(other):
                lines.append(
                    f"whether {part.location} and {other.location} share patients is unknown: their ids are of "
                    f"schemes {ids_scheme(part)} and {ids_scheme(other)}; of images only exact copies are known again"
                )
    return lines


def _in_splits(dataset: Dataset, splits: Sequence[str]) -> Rows:
    return np.flatnonzero(np.isin(dataset.column("split").astype(str), list(splits))).astype(np.int64)


def _out_of_splits(dataset: Dataset, splits: Sequence[str]) -> Rows:
    return np.setdiff1d(np.arange(dataset.num_images), _in_splits(dataset, splits))


def _look_alikes(datasets: Sequence[Dataset], learned: Rows, held: Rows, image: Rows) -> int:
    """Pretraining images with the perceptual hash of a held-out image of another dataset, not the same pixels."""
    hashes = np.concatenate([d.column("dhash") for d in datasets])
    owner = np.repeat(np.arange(len(datasets)), [d.num_images for d in datasets])
    new = learned[~np.isin(image[learned], image[held]) & (hashes[learned] != 0)]  # 0: nothing but one colour
    return sum(
        int(np.isin(hashes[new[owner[new] == number]], hashes[held[owner[held] != number]]).sum())
        for number in range(len(datasets))
    )


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
