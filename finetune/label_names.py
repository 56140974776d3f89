"""Which labels a study is about, and what another dataset calls them.

Shapes: N images, L labels of the dataset, K labels of the study.
"""

import json
import re
from collections.abc import Mapping, Sequence
from difflib import get_close_matches

import numpy as np

from clusters.config import InputError, nearest
from data.dataset import Dataset
from data.sources.chestxray14 import FINDINGS as NIH14
from finetune.bootstrap import Floats

LABEL_SETS: dict[str, tuple[str, ...]] = {
    # The five findings on which the CheXpert competition was judged (Irvin et al., 2019).
    "chexpert5": ("Atelectasis", "Cardiomegaly", "Consolidation", "Edema", "Pleural Effusion"),
    "nih14": NIH14,
}


def label_names(dataset: Dataset, labels: str | Sequence[str] | None) -> tuple[str, ...]:
    """The names that `labels` means: those of a set, those given, or all of the dataset."""
    if labels is None:
        return tuple(dataset.label_names)
    return LABEL_SETS[labels] if isinstance(labels, str) else tuple(labels)


def theirs(dataset: Dataset, names: Sequence[str], label_map: Mapping[str, str]) -> dict[str, list[str]]:
    """The dataset's labels for each of ours; `label_map` tells theirs → ours.

    Raises InputError where the names do not match, with both lists and the map to write.
    """
    there = dataset.label_names
    lists = f"Wanted: {', '.join(names)}. The dataset has: {', '.join(there) or 'none'}"
    for other, ours in label_map.items():
        for name, known in ((other, there), (ours, names)):
            if name not in known:
                hint = nearest(name, known)
                raise InputError(f"label_map: '{name}'{hint} is not known; it says {{theirs: ours}}. {lists}")
    found = {ours: [other for other in there if label_map.get(other, other) == ours] for ours in names}
    missing = [ours for ours, others in found.items() if not others]
    if missing:
        free = [other for other in there if other not in label_map and other not in names]
        likely = {ours: other for ours in missing if (other := _likely(ours, free))}
        proposed = {**label_map, **{other: ours for ours, other in likely.items()}}
        mend = f"Write label_map={_as_yaml(proposed)} {{theirs: ours}}, if they mean the same" if likely else ""
        without = ", ".join(ours for ours in missing if ours not in likely)
        mend += f"{'; leave' if mend else 'Leave'} {without} out of labels=" if without else ""
        raise InputError(f"labels: {dataset.location} has no {', '.join(missing)}. {lists}. {mend}")
    return found


def mapped_truth(
    dataset: Dataset, truth_NL: Floats, names: Sequence[str], label_map: Mapping[str, str], exclusive: bool
) -> Floats:
    """The truth (N, K) of our labels from that of the dataset's, NaN where unknown.

    Several of theirs for one of ours: any of them. Where labels exclude each other, a row whose likeliest class is none
    of ours is unknown altogether, and the shares of ours are made to sum to 1. Raises InputError as `theirs`.
    """
    found = theirs(dataset, names, label_map)
    columns = {name: truth_NL[:, place] for place, name in enumerate(dataset.label_names)}
    groups = [[columns[other] for other in found[ours]] for ours in names]
    truth_NK = np.stack([np.sum(group, axis=0) if exclusive else _any(group) for group in groups], axis=1)
    if exclusive:
        used = {other for others in found.values() for other in others}
        left = [columns[name] for name in dataset.label_names if name not in used]
        best_N = np.max([columns[name] for name in dataset.label_names if name in used], axis=0)
        outside_N = np.max(left, axis=0) > best_N if left else np.zeros(len(truth_NL), dtype=bool)
        total_N1 = truth_NK.sum(axis=1, keepdims=True)
        truth_NK = np.where(outside_N[:, None], np.nan, truth_NK / np.where(total_N1 > 0, total_N1, np.nan))
    return truth_NK.astype(np.float32)


def _any(columns: list[Floats]) -> Floats:
    """The largest; unknown where one is unknown and none of the others says yes."""
    known = np.where(np.isfinite(columns), columns, -np.inf).max(axis=0)
    unknown = np.isnan(columns).any(axis=0) & (known < 0.5)
    return np.where(unknown, np.nan, known)


def _likely(name: str, there: Sequence[str]) -> str | None:
    """The name that most likely means the same."""
    plain = {_plain(other): other for other in there}
    if _plain(name) in plain:
        return plain[_plain(name)]
    within = [other for key, other in plain.items() if set(key.split()) & set(_plain(name).split())]
    close = get_close_matches(_plain(name), plain, n=1, cutoff=0.7)
    return plain[close[0]] if close else within[0] if within else None


def _plain(name: str) -> str:
    return " ".join(re.split(r"[\W_]+", name.lower())).strip()


def _as_yaml(found: Mapping[str, str]) -> str:
    """As it is typed on a command line or written in a recipe."""
    return "{" + ", ".join(f"{_word(other)}: {_word(ours)}" for other, ours in found.items()) + "}"


def _word(name: str) -> str:
    return name if re.fullmatch(r"[A-Za-z][\w ()-]*", name) else json.dumps(name)
