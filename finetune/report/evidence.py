"""The cases behind the figures, read back from predictions.parquet, which results.json knows by its hash.

Shapes: N cases, K labels.
"""

import hashlib
import io
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from clusters.config import InputError
from finetune.report.words import Results, first_model, label_kind

Floats = NDArray[np.float64]
Integers = NDArray[np.int64]
HASH = "predictions_sha256"
"""Of predictions.parquet, in results.json."""


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


def hash_of(predictions: bytes) -> str:
    """What results.json says of predictions.parquet as `HASH`."""
    return hashlib.sha256(predictions).hexdigest()


def why_not_theirs(predictions: bytes, results: Results) -> str | None:
    """What shows that a predictions.parquet is not that of these results; None where nothing does.

    Results of before tell no hash: their predictions are known by their columns.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    if HASH in results:
        return None if results[HASH] == hash_of(predictions) else "its SHA-256 is another"
    try:
        names = set(pq.read_schema(io.BytesIO(predictions)).names)
    except (pa.ArrowException, OSError):
        return "it cannot be read"
    answers = [{f"probability.{label}", f"predicted.{label}"} for label in results["labels"]]
    wanted = [{name} for name in ("model", "split", "key", "patient", "member")] + answers
    missing = next((min(some) for some in wanted if not some & names), None)
    return None if missing is None else f"it has no column '{missing}'"


def read_columns(predictions: bytes, results: Results, where: str) -> dict[str, NDArray[Any]]:
    """The columns of predictions.parquet. Raises InputError where it is not that of these results."""
    import pyarrow.parquet as pq

    if why := why_not_theirs(predictions, results):
        raise InputError(
            f"{where}: not the predictions of these results ({why}); restore it from a backup, or remove it and run "
            "the command that made these results again"
        )
    table = pq.read_table(io.BytesIO(predictions))
    return {name: table.column(name).to_numpy(zero_copy_only=False) for name in table.column_names}


def read_evidence(predictions: bytes, results: Results, where: str = "predictions.parquet") -> Evidence | None:
    """The evaluated cases of a results folder; None where its task has no label to decide on.

    Raises InputError as `read_columns`.
    """
    columns = read_columns(predictions, results, where)
    labels = tuple(name for name in results["labels"] if f"probability.{name}" in columns)
    if not labels:
        return None
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
