"""The cases behind the figures, read back from predictions.parquet.

Shapes: N cases, K labels.
"""

import io
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from finetune.report.words import Results, first_model, label_kind

Floats = NDArray[np.float64]
Integers = NDArray[np.int64]


@dataclass(frozen=True)
class Evidence:
    """What each model said of each evaluated case, cases by key.

    `truth_NK` is 0 or 1, NaN where unknown; `member_N` names the first image of each case; `scores` are of each
    model by its name, (N, K).
    """

    labels: tuple[str, ...]
    key_N: NDArray[np.str_]
    member_N: NDArray[np.str_]
    truth_NK: Floats
    scores: dict[str, Floats]

    def column(self, label: str) -> int:
        """Where a label stands."""
        return self.labels.index(label)


@dataclass(frozen=True)
class Decisions:
    """What the first model decided, as classes that a case is or is not in.

    `kinds` names them; `true_NC` and `decided_NC` say who is in which, `known_NC` where that is known; `sure_NC` is
    how far the model's score is from the other decision, so that the surest mistakes can be found.
    """

    kinds: tuple[str, ...]
    true_NC: NDArray[np.bool_]
    decided_NC: NDArray[np.bool_]
    known_NC: NDArray[np.bool_]
    sure_NC: Floats


def read_evidence(predictions: bytes, results: Results) -> Evidence | None:
    """The evaluated cases of a results folder; None where its task has no label to decide on."""
    import pyarrow.parquet as pq

    table = pq.read_table(io.BytesIO(predictions))
    labels = tuple(name for name in results["labels"] if f"probability.{name}" in table.column_names)
    if not labels:
        return None
    columns = {name: table.column(name).to_numpy(zero_copy_only=False) for name in table.column_names}
    # Of another hospital, all that was predicted is evaluated.
    evaluated = (columns["split"] == "test") | (results.get("kind") == "external")
    scores: dict[str, Floats] = {}
    found: dict[str, Any] = {}
    kind = label_kind(results)
    for name in results["models"]:
        mine = evaluated & (columns["model"].astype(str) == name)
        if not mine.any():
            continue
        keys, first, place = np.unique(columns["key"][mine].astype(str), return_index=True, return_inverse=True)
        of_image = np.stack([columns[f"probability.{label}"][mine] for label in labels], axis=1).astype(np.float64)
        sums = np.zeros((len(keys), len(labels)))
        np.add.at(sums, place, of_image)
        scores[name] = sums / np.bincount(place)[:, None]
        if not found:
            truth = np.stack([columns[f"label.{label}"][mine][first] for label in labels], axis=1)
            members = columns["member"][mine].astype(str)[first]
            found = {"key_N": keys, "member_N": members, "truth_NK": _hard(truth.astype(np.float64), kind)}
    return Evidence(labels, scores=scores, **found) if found else None


def decisions(evidence: Evidence, results: Results) -> Decisions:
    """What the first model decided, with the thresholds of the results."""
    scores_NK = evidence.scores[next(iter(results["models"]))]
    truth_NK = evidence.truth_NK
    if label_kind(results) == "multiclass":
        num_labels = len(evidence.labels)
        decided_NK = np.eye(num_labels, dtype=bool)[scores_NK.argmax(axis=1)]
        sure_NK = np.broadcast_to(scores_NK.max(axis=1, keepdims=True), scores_NK.shape)
    else:
        threshold_K = np.array([thresholds_of(results).get(label, 0.5) for label in evidence.labels])
        decided_NK, sure_NK = scores_NK >= threshold_K, np.abs(scores_NK - threshold_K)
    return Decisions(evidence.labels, truth_NK == 1, decided_NK, np.isfinite(truth_NK), sure_NK)


def thresholds_of(results: Results) -> dict[str, float]:
    """The decision threshold of each label that has one."""
    model = first_model(results)
    if model.get("thresholds"):
        return model["thresholds"]
    old = model.get("threshold")
    return {} if old is None else {results["labels"][0]: old}


def _hard(truth_NK: Floats, kind: str) -> Floats:
    """Soft labels as figures take them: the likeliest class, or the nearer of no and yes."""
    known_NK = np.isfinite(truth_NK)
    if kind == "multiclass":
        known_N = known_NK.all(axis=1)
        hard = np.full(truth_NK.shape, np.nan)
        hard[known_N] = np.eye(truth_NK.shape[1])[truth_NK[known_N].argmax(axis=1)]
        return hard
    return np.where(known_NK, truth_NK >= 0.5, np.nan)
