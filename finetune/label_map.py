"""Which labels a study or a model is about, and which of a dataset's labels mean them.

Labels of one name are the same; a `label_map` tells {theirs: ours}, and several of theirs may mean one of ours.
Shapes: N images, L labels of the dataset, K labels of ours.
"""

import json
import re
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from typing import Annotated, Any

import numpy as np
import yaml
from numpy.typing import NDArray
from pydantic import BeforeValidator

from clusters.config import InputError, nearest
from data.dataset import Dataset
from data.sources.chestxray14 import FINDINGS as NIH14
from finetune.bootstrap import Floats

LABEL_SETS: dict[str, tuple[str, ...]] = {
    # The five findings on which the CheXpert competition was judged (Irvin et al., 2019).
    "chexpert5": ("Atelectasis", "Cardiomegaly", "Consolidation", "Edema", "Pleural Effusion"),
    "nih14": NIH14,
}


def _blank_after_colon(label_map: Any) -> Any:
    """YAML takes `{a:b}` for one key without a value."""
    for name, value in label_map.items() if isinstance(label_map, dict) else ():
        if value is None and ":" in str(name):
            raise ValueError(f"write a blank after the colon: {{{str(name).replace(':', ': ', 1)}}}, not {{{name}}}")
    return label_map


LabelMap = Annotated[dict[str, str], BeforeValidator(_blank_after_colon)]
"""{theirs: ours}, as people write it."""
UNSEEN, IGNORE = "unseen", "ignore"
"""In evaluation, what else a label of theirs can be: a condition that the model never learned; left out."""


@dataclass(frozen=True)
class Matched:
    """The truth of each image in a model's labels, NaN where unknown, and which show a condition it never learned.

    `known`: images that it can be evaluated on; `absent`: labels of the model that the dataset says nothing of.
    """

    truth: Floats
    known: NDArray[np.bool_]
    unseen: NDArray[np.bool_]
    label_map: dict[str, str]
    absent: tuple[str, ...]


def label_names(dataset: Dataset, labels: str | Sequence[str] | None) -> tuple[str, ...]:
    """The names that `labels` means: those of a set, those given, or all of the dataset."""
    if labels is None:
        return tuple(dataset.label_names)
    return LABEL_SETS[labels] if isinstance(labels, str) else tuple(labels)


def theirs(dataset: Dataset, names: Sequence[str], label_map: Mapping[str, str]) -> dict[str, list[str]]:
    """For a study: the dataset's labels for each of ours, of which none may be missing.

    Raises InputError where the names do not match, with both lists and the map to write.
    """
    there, lists = dataset.label_names, _lists(dataset, names)
    _check_map(label_map, there, names, lists)
    found = _groups(there, names, label_map)
    missing = [ours for ours, others in found.items() if not others]
    if missing:
        free = [other for other in there if other not in label_map and other not in names]
        likely = {other: ours for ours in missing if (other := _likely(ours, free))}
        mend = f"Write {_typed({**label_map, **likely})} {{theirs: ours}}, if they mean the same"
        without = ", ".join(ours for ours in missing if ours not in likely.values())
        leave = f"eave {without} out of labels="
        mend = f"{mend}; l{leave}" if likely and without else mend if likely else f"L{leave}"
        raise InputError(f"labels: {dataset.location} has no {', '.join(missing)}. {lists}. {mend}")
    return found


def mapped_truth(
    dataset: Dataset, truth_NL: Floats, names: Sequence[str], label_map: Mapping[str, str], exclusive: bool
) -> Floats:
    """For a study: the truth (N, K) of our labels from that of the dataset's. Raises InputError as `theirs`."""
    theirs(dataset, names, label_map)  # refuses what does not match
    return _joined(truth_NL, dataset.label_names, names, label_map, exclusive)


def match_labels(
    dataset: Dataset, names: Sequence[str], exclusive: bool, label_map: Mapping[str, str], elsewhere: Sequence[str] = ()
) -> Matched:
    """For a model that is evaluated: the truth of a dataset in its labels, of which some may be missing.

    `label_map`: theirs → ours, `unseen` or `ignore`; of theirs some may be `elsewhere`, labels of other datasets that
    share the map. Raises InputError, with both lists and the map to write, where a
    class of theirs has no counterpart among exclusive classes of ours, or where a label of ours might be one of theirs
    by another name.
    """
    there, where, lists = list(dataset.label_names), dataset.location, _lists(dataset, names)
    _check_map(label_map, [*there, *elsewhere], (*names, UNSEEN, IGNORE), lists)
    groups = _groups(there, names, label_map)
    meant = {other: ours for ours, others in groups.items() for other in others} | dict(label_map)
    meant = {other: meant[other] for other in there if other in meant}
    absent = tuple(ours for ours, others in groups.items() if not others)
    if exclusive and dataset.task != "multiclass":
        raise InputError(
            f"{where}: its task is '{dataset.task}', the model's is one of {len(names)} classes; evaluate a "
            "model of one label (label=NAME when fine-tuning) on it"
        )
    left = [other for other in there if other not in meant]
    untold = not any(other in label_map for other in there)
    if len(absent) == len(names) or (left and (exclusive or (absent and untold))):
        raise InputError(
            f"labels of {where} do not match the model's. {lists}. {_mend(left, absent, label_map, len(names))}"
        )
    truth_NL = np.asarray(dataset.labels, dtype=np.float64)
    said_NL = likeliest(truth_NL, there, label_map) if dataset.task == "multiclass" else truth_NL
    unseen_N, ignored_N = (
        np.asarray((said_NL[:, [meant.get(other) == what for other in there]] >= 0.5).any(axis=1))
        for what in (UNSEEN, IGNORE)
    )
    truth_NK = _joined(truth_NL if exclusive else said_NL, there, names, label_map, exclusive)
    if dataset.task == "multiclass":
        truth_NK[unseen_N | ignored_N] = np.nan
    return Matched(truth_NK, np.asarray(np.isfinite(truth_NK).any(axis=1)), unseen_N, meant, absent)


def likeliest(truth_NL: Floats, there: Sequence[str], label_map: Mapping[str, str]) -> Floats:
    """1 for one class of each row, else 0; unknown rows stay unknown.

    The shares of theirs that mean the same are added before the likeliest meaning is taken, the first of equal ones;
    of those that mean it the likeliest stands for it.
    """
    known_N = np.isfinite(truth_NL).all(axis=1)
    meant = _added(truth_NL[known_N], there, label_map)
    best_N = np.stack(list(meant.values()), axis=1).argmax(axis=1)
    places_L = np.array([list(meant).index(label_map.get(other, other)) for other in there])
    shares_NL = np.where(places_L == best_N[:, None], truth_NL[known_N], -1.0)
    hard_NL = np.full(truth_NL.shape, np.nan, dtype=truth_NL.dtype)
    hard_NL[known_N] = np.eye(truth_NL.shape[1])[shares_NL.argmax(axis=1)]
    return hard_NL


def _added(truth_NL: Floats, there: Sequence[str], label_map: Mapping[str, str]) -> dict[str, Floats]:
    """The shares (N,) of what theirs mean, in the order of theirs."""
    found: dict[str, Floats] = {}
    for other, column in zip(there, truth_NL.T):
        meaning = label_map.get(other, other)
        found[meaning] = found[meaning] + column if meaning in found else column
    return found


def _joined(
    truth_NL: Floats, there: Sequence[str], names: Sequence[str], label_map: Mapping[str, str], exclusive: bool
) -> Floats:
    """The truth (N, K) of our labels, NaN where unknown or of no counterpart.

    Several of theirs for one of ours: any of them. Where labels exclude each other their shares are added, a row whose
    likeliest meaning is none of ours is unknown altogether, and the shares of ours are made to sum to 1.
    """
    if not exclusive:
        columns, nowhere = dict(zip(there, truth_NL.T)), np.full(len(truth_NL), np.nan)
        found = [[columns[other] for other in others] for others in _groups(there, names, label_map).values()]
        return np.stack([_any(group) if group else nowhere for group in found], axis=1).astype(np.float32)
    added = _added(truth_NL, there, label_map)
    truth_NK = np.stack([added.pop(name, np.zeros(len(truth_NL))) for name in names], axis=1)
    left_N = np.max(list(added.values()), axis=0) if added else np.zeros(len(truth_NL))
    total_N1 = truth_NK.sum(axis=1, keepdims=True)
    shares_NK = truth_NK / np.where(total_N1 > 0, total_N1, np.nan)
    return np.where((left_N > truth_NK.max(axis=1))[:, None], np.nan, shares_NK).astype(np.float32)


def _any(columns: Sequence[Floats]) -> Floats:
    """The largest; unknown where one is unknown and none of the others says yes."""
    known = np.where(np.isfinite(columns), columns, -np.inf).max(axis=0)
    unknown = np.isnan(columns).any(axis=0) & (known < 0.5)
    return np.where(unknown, np.nan, known)


def _groups(there: Sequence[str], names: Sequence[str], label_map: Mapping[str, str]) -> dict[str, list[str]]:
    return {ours: [other for other in there if label_map.get(other, other) == ours] for ours in names}


def _check_map(label_map: Mapping[str, str], there: Sequence[str], ours: Sequence[str], lists: str) -> None:
    for other, meant in label_map.items():
        for name, known in ((other, there), (meant, ours)):
            if name not in known:
                hint = nearest(name, known)
                raise InputError(f"label_map: '{name}'{hint} is not known; it says {{theirs: ours}}. {lists}")


def _lists(dataset: Dataset, names: Sequence[str]) -> str:
    return f"Wanted: {', '.join(names)}. The dataset has: {', '.join(dataset.label_names) or 'none'}"


def _mend(left: Sequence[str], absent: Sequence[str], label_map: Mapping[str, str], num_names: int) -> str:
    """The map to write for labels of theirs without a counterpart."""
    if not left:
        return "Map one of its labels to one of the model's, import labels for it, or evaluate another dataset"
    proposed = {**label_map, **{other: _likely(other, absent) or UNSEEN for other in left}}
    if not (set(proposed.values()) - {UNSEEN, IGNORE}) and len(absent) == num_names:
        return (
            f"Write {_typed({left[0]: '…'})}: each of theirs is a label of the model, '{UNSEEN}' (a condition that it "
            f"never learned) or '{IGNORE}', and one at least a label of the model"
        )
    return (
        f"Write {_typed(proposed)}, if that is what they mean: each is a label of the model, '{UNSEEN}' (a "
        f"condition that it never learned) or '{IGNORE}'"
    )


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


def _typed(found: Mapping[str, str]) -> str:
    """As it is typed in a shell."""
    entries = ", ".join(f"{_word(other)}: {_word(ours)}" for other, ours in found.items())
    return shlex.quote(f"label_map={{{entries}}}")


def _word(name: str) -> str:
    """A label in YAML: quoted where it would be read as anything but this text."""
    plain = name == "…" or (re.fullmatch(r"[A-Za-z][\w ()-]*", name) and yaml.safe_load(name) == name)
    return name if plain else json.dumps(name, ensure_ascii=False)
