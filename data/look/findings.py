"""What a person should see in a dataset before training on it: each finding in a sentence.

The thresholds are meant to show too much rather than too little; whether a finding is a fault, a person
decides. Shapes: C cases, P patients, K labels, S splits, V values of an attribute.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from data.look.overview import NEGATIVE, POSITIVE, UNLABELLED, Coded, Integers, Overview, crossed, shortened
from data.splits import SPLITS

MIN_PATIENTS = 5  # of a class in a split: with fewer a figure means little
MIN_CASES = 20  # of a value of an attribute, before anything is said of it
TELLING_SHARE, TELLING_DIFFERENCE = 0.95, 0.3
MAX_Z, MIN_SHIFT = 5.0, 0.1
HUGE_SHARE, HUGE_IMAGES = 0.05, 20
SMALL_PX, LONG_RATIO = 64, 4.0
MAX_LISTED = 8


@dataclass(frozen=True)
class Finding:
    """One sentence; `serious` where a figure of this dataset would likely be wrong."""

    sentence: str
    serious: bool = False


def findings(overview: Overview) -> list[Finding]:
    """Everything found in the index and the manifest, the serious first."""
    found = [
        *_splits(overview),
        *_classes(overview),
        *_copies(overview),
        *_telling_attributes(overview),
        *_shifted_attributes(overview),
        *_patients(overview),
        *_images(overview),
    ]
    return sorted(found, key=lambda finding: not finding.serious)


def _splits(overview: Overview) -> Iterator[Finding]:
    for split in SPLITS:
        if split not in overview.splits:
            yield Finding(f"The split {split} is empty: there is no patient in it.", serious=split != "val")
    left_out = overview.dataset.manifest.quarantined
    if left_out.count:
        cases = f", and {left_out.dropped_cases:,} cases with them" if left_out.dropped_cases else ""
        yield Finding(f"{_count(left_out.count, 'raw image')} could not be used, left out of the dataset{cases}.")


def _classes(overview: Overview) -> Iterator[Finding]:
    """Classes without enough patients, and what has no label."""
    names = overview.dataset.label_names
    sides = [(name, k, POSITIVE) for k, name in enumerate(names)]
    if overview.dataset.task != "multiclass":
        sides += [(f"not {name}", k, NEGATIVE) for k, name in enumerate(names)]
    patients = {title: overview.patients_by_split(overview.state_CK[:, k] == state) for title, k, state in sides}
    nobody = [title for title, counts in patients.items() if not counts.sum()]
    if nobody:
        yield Finding(f"No case at all is labelled {_listed(nobody)}.", serious=True)
    for place, split in enumerate(overview.splits):
        counts_here = {title: int(counts[place]) for title, counts in patients.items() if counts.sum()}
        none = [title for title, number in counts_here.items() if not number]
        few = [f"{shortened(title)} ({number})" for title, number in counts_here.items() if 0 < number < MIN_PATIENTS]
        if none:
            yield Finding(f"No {split} patient has {_listed(none)}.", serious=True)
        if few:
            yield Finding(f"Fewer than {MIN_PATIENTS} {split} patients have {_listed(few)}.")
    unlabelled = (overview.state_CK == UNLABELLED).all(axis=1) if names else np.zeros(0, bool)
    if unlabelled.any():
        yield Finding(f"{unlabelled.sum():,} of {len(unlabelled):,} cases have no label.")


def _copies(overview: Overview) -> Iterator[Finding]:
    """The same pixels twice."""
    labels = np.nan_to_num(overview.labels_CK, nan=-1)
    across, contradictory, inside = 0, 0, 0
    for rows in overview.exact_duplicates():
        cases = np.unique(overview.case_of[rows])
        across += overview.crosses_splits(rows)
        contradictory += len(np.unique(labels[cases], axis=0)) > 1
        inside += len(rows) - len(cases)
    if across:
        yield Finding(
            f"{_count(across, 'image')} in two splits, pixel for pixel the same: test scores are too good.",
            serious=True,
        )
    if contradictory:
        yield Finding(
            f"{_count(contradictory, 'image')} in cases with different labels, pixel for pixel the same.", serious=True
        )
    if inside:
        yield Finding(f"{_count(inside, 'exact copy', 'exact copies')} inside a case: MICLe learns nothing from them.")


def _telling_attributes(overview: Overview) -> Iterator[Finding]:
    """Attributes that give the label away: a model may learn them and not the disease."""
    found = []
    names = overview.dataset.label_names
    for k in range(len(names)):
        labelled = (overview.state_CK[:, k] == POSITIVE) | (overview.state_CK[:, k] == NEGATIVE)
        positive = (overview.state_CK[labelled, k] == POSITIVE).astype(np.int64)
        for attribute, values in overview.attributes.items():
            here = Coded(values.codes[overview.first_C][labelled], values.names)
            found += _telling(names[k], attribute, here, positive, overview.dataset.task != "multiclass")
    for _, sentence in sorted(found, reverse=True):
        yield Finding(sentence)


def _telling(
    label: str, attribute: str, values: Coded, positive: Integers, both_sides: bool
) -> Iterator[tuple[float, str]]:
    """(strength in cases, sentence) where a value has nearly one class only, or a class nearly one value only."""
    table = crossed(values.codes, len(values.names), positive, 2)
    total = table.sum(axis=0)
    for name, counts in zip(values.names, table):
        for side, title in ((1, label), (0, f"not {label}"))[: 1 + both_sides]:
            others = total - counts
            if counts.sum() >= MIN_CASES and others.sum():
                share, elsewhere = counts[side] / counts.sum(), others[side] / others.sum()
                if share >= TELLING_SHARE and share - elsewhere >= TELLING_DIFFERENCE:
                    yield (
                        float(share - elsewhere) * int(counts.sum()),
                        f"{_pair(attribute, name)} tells the label: {_percent(share)} of its {counts.sum():,} cases "
                        f"are {shortened(title)}, {_percent(elsewhere)} elsewhere.",
                    )
        if total[1] >= MIN_CASES and total[0]:
            share, elsewhere = counts[1] / total[1], counts[0] / total[0]
            if share >= TELLING_SHARE and share - elsewhere >= TELLING_DIFFERENCE:
                yield (
                    float(share - elsewhere) * int(total[1]),
                    f"{_percent(share)} of the {total[1]:,} cases of {shortened(label)} have "
                    f"{_pair(attribute, name)}, {_percent(elsewhere)} of the others.",
                )


def _shifted_attributes(overview: Overview) -> Iterator[Finding]:
    """Attributes whose patients are spread over the splits as chance would hardly do it."""
    _, first_case = np.unique(overview.patient_C, return_index=True)
    rows = overview.first_C[first_case]
    split_P = overview.split_N[rows]
    share_S = np.bincount(split_P, minlength=len(overview.splits)) / len(rows)
    for attribute, values in overview.attributes.items():
        table = crossed(values.codes[rows], len(values.names), split_P, len(overview.splits))
        for name, counts in zip(values.names, table):
            patients = counts.sum()
            if patients < MIN_CASES or patients == len(rows):
                continue
            telling = np.maximum(MIN_SHIFT, MAX_Z * np.sqrt(share_S * (1 - share_S) / patients))
            shift = counts / patients - share_S
            worst = next((k for k in (shift.argmax(), shift.argmin()) if abs(shift[k]) > telling[k]), None)
            if worst is not None:
                here, expected = float(counts[worst] / patients), float(share_S[worst])
                yield Finding(
                    f"{_pair(attribute, name)} is not spread as the patients are: {_percent(here)} of its "
                    f"{patients:,} patients are in {overview.splits[worst]}, {_percent(expected)} of all."
                )


def _patients(overview: Overview) -> Iterator[Finding]:
    images_P: NDArray[np.int64] = np.bincount(overview.patient_N)
    most = int(images_P.argmax())
    share = images_P[most] / overview.dataset.num_images
    if len(images_P) > 1 and images_P[most] >= HUGE_IMAGES and share >= HUGE_SHARE:
        patient = overview.column("patient")[int(np.flatnonzero(overview.patient_N == most)[0])]
        yield Finding(f"One patient, {patient}, has {images_P[most]:,} images: {_percent(share)} of all.")
    if len(images_P) == overview.dataset.num_cases > 1:
        yield Finding(
            "Every case is its own patient. Where that is so only because no patient was published, images of "
            "one person may stand in two splits."
        )
    if overview.images_C.max() == 1:
        yield Finding("No case has two images: MICLe finds no pair here, SimCLR does not need one.")


def _images(overview: Overview) -> Iterator[Finding]:
    width, height = overview.column("width"), overview.column("height")
    short, long = np.minimum(width, height), np.maximum(width, height)
    if (short < SMALL_PX).any():
        yield Finding(f"{_count(int((short < SMALL_PX).sum()), 'image')} smaller than {SMALL_PX} px on the short side.")
    stretched = long > LONG_RATIO * short
    if stretched.any():
        number = _count(int(stretched.sum()), "image")
        yield Finding(f"{number} more than {LONG_RATIO:g} times as long as wide: strips or banners?")


def _pair(attribute: str, value: str) -> str:
    return f"{shortened(attribute)} = {shortened(value)}"


def _count(number: int, one: str, many: str = "") -> str:
    return f"{number:,} {one if number == 1 else many or f'{one}s'}"


def _percent(share: float) -> str:
    """A share in per cent; 100 % and 0 % are said only where they are exact."""
    text = f"{100 * share:.0f}"
    if (text == "100" and share < 1) or (text == "0" and share > 0):
        text = f"{min(max(100 * share, 0.1), 99.9):.1f}"
    return f"{text} %"


def _listed(names: list[str]) -> str:
    """`a, b or c`; of many the first ones and how many more."""
    names = [shortened(name) for name in names]
    if len(names) > MAX_LISTED:
        return f"{', '.join(names[:MAX_LISTED])} or {len(names) - MAX_LISTED} more"
    return " or ".join([", ".join(names[:-1]), names[-1]] if len(names) > 1 else names)
