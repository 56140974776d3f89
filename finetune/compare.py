"""`python -m finetune compare RESULTS RESULTS …`: paired differences between models of different runs.

Nothing is predicted anew: the cases are those of predictions.parquet, with the thresholds that each run froze.
Shapes: I images, N cases, K labels.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from clusters.config import InputError, absolute
from finetune.bootstrap import BootstrapConfig, Floats, Integers
from finetune.calibration import is_uncalibrated, uncalibrated
from finetune.comparisons import comparisons
from finetune.evaluate import report_figures, resample, scored
from finetune.metrics import ScoredCases
from finetune.regression import ScoredNumbers, score_numbers
from finetune.report.evidence import read_columns
from finetune.report.words import NAMES, in_words, shown
from finetune.reported import Reported
from finetune.results import PREDICTIONS
from finetune.tasks import pool_cases
from finetune.trained import Trained, open_trained


@dataclass(frozen=True)
class Judged:
    """The test cases of a finished run as its model answered them."""

    keys: list[str]
    truth_NK: Floats
    test: ScoredCases
    numbers: ScoredNumbers | None


def usage() -> str:
    """What `--help` prints."""
    return """usage: python -m finetune compare RESULTS RESULTS [RESULTS …]

Compares the model of the first results folder with that of each other one on the test cases that all of them were
evaluated on: paired differences with intervals, p-values, and p-values after Holm's correction, as a Markdown table.
Of Brier score, MAE and RMSE a difference below 0 is for the first model, of all others one above. It reads what is in
the folders, and evaluates nothing again; to choose a model by it would be to choose on test.

  python -m finetune compare /runs/ham-full /runs/ham-linear"""


def run(argv: Sequence[str]) -> None:
    """Print the table. Raises InputError for folders that were not tested on the same cases."""
    if len(argv) < 2:
        raise InputError("compare: give two results folders or more")
    if len({absolute(location.rstrip("/")) for location in argv}) < len(argv):
        raise InputError("compare: names the same folder twice; take one out")
    trained = [open_trained(location) for location in argv]
    print(markdown(*differences(trained, list(argv))))
    for warning in uncalibrated({name: one.entry.get("temperature", 1.0) for name, one in zip(argv, trained)}):
        print(f"\n{warning}, nor compared in Brier score")


def differences(trained: list[Trained], names: list[str]) -> tuple[list[dict[str, Any]], dict[str, Reported]]:
    """The first model against each other one, and the figures of each, by the names given."""
    judged = {name: tested_cases(one) for name, one in zip(names, trained)}
    _check_same(trained, judged)
    results = trained[0].results
    config = BootstrapConfig.model_validate({k: results["bootstrap"][k] for k in BootstrapConfig.model_fields})
    values = resample(judged, config, results["identity"]["recipe"]["seed"])
    reported = {name: report_figures(one, values[name], config.confidence) for name, one in judged.items()}
    bound = [name for name, one in zip(names, trained) if is_uncalibrated(one.entry.get("temperature"))]
    return comparisons(reported, bound), reported


def tested_cases(trained: Trained) -> Judged:
    """The test cases of a finished run, in the order of its dataset, with the decisions that its thresholds make.

    Raises InputError where its predictions are not there, or others lie in their place.
    """
    folder = trained.folder
    if not folder.exists(PREDICTIONS):
        raise InputError(f"{folder}: no {PREDICTIONS} here; run the fine-tuning again")
    column = read_columns(folder.read(PREDICTIONS), trained.results, folder.file(PREDICTIONS))
    mine = (column["split"] == "test") & (column["model"] == trained.name)
    task = trained.model.task
    places = [
        ("number", "predicted") if name in task.number_names else ("label", "probability") for name in task.label_names
    ]
    truth_IK, answers_IK = (
        np.stack([column[f"{pair[side]}.{name}"][mine] for pair, name in zip(places, task.label_names)], axis=1)
        for side in (0, 1)
    )
    keys, first, case_I = _in_order(column["key"][mine].astype(str))
    patient_N = np.unique(column["patient"][mine].astype(str), return_inverse=True)[1][first]
    _, scores_NK = pool_cases(case_I, answers_IK.astype(np.float64))
    truth_NK = truth_IK[first].astype(np.float64)
    test = scored(task, truth_NK, scores_NK, patient_N, trained.frozen())
    return Judged(keys, truth_NK, test, score_numbers(task, truth_NK, scores_NK, test.patient_N))


def _in_order(key_I: Any) -> tuple[list[str], Integers, Integers]:
    """The keys as they come, the first image of each, and each image's case (I,)."""
    keys, first, case_I = np.unique(key_I, return_index=True, return_inverse=True)
    order = np.argsort(first)
    return keys[order].tolist(), first[order], np.argsort(order)[case_I]


def _check_same(trained: list[Trained], judged: dict[str, Judged]) -> None:
    (name, one), *others = judged.items()
    for (other_name, other), run in zip(others, trained[1:]):
        ours, theirs = trained[0].results["labels"], run.results["labels"]
        if ours != theirs:
            raise InputError(
                f"{name} has the labels {', '.join(ours)} and {other_name} {', '.join(theirs)}; give runs of the same"
            )
        same = one.keys == other.keys and np.array_equal(one.truth_NK, other.truth_NK, equal_nan=True)
        if not same or not np.array_equal(one.test.patient_N, other.test.patient_N):
            raise InputError(
                f"{name} and {other_name} were not tested on the same cases of the same patients; run one again on the "
                "dataset of the other"
            )


def markdown(rows: list[dict[str, Any]], reported: dict[str, Reported]) -> str:
    """The differences as a table, a row for each figure, label and model."""
    confidence = f"{100 * next(iter(reported.values())).confidence:g} %"
    header = ["figure", "first", "other", "other's", f"difference ({confidence} interval)", "p", "p after Holm"]
    lines = [header, ["---"] * len(header)]
    cases = next(iter(reported.values())).cases
    yes_or_no = bool(cases.class_names) and not cases.exclusive
    for row in rows:
        key = (row["figure"],) if row["label"] is None else (row["figure"], row["label"])
        figure = NAMES[in_words(row["figure"], yes_or_no)] + (f", {row['label']}" if row["label"] else "")
        values = [reported[row[side]].plain[key] for side in ("model", "baseline")]
        first, theirs = ("undefined" if not np.isfinite(value) else f"{value:.3f}" for value in values)
        lines.append([figure, first, row["baseline"], theirs, shown(row, signed=True), _p(row["p"]), _p(row["p_holm"])])
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def _p(p: float | None) -> str:
    return "" if p is None else "< 0.001" if p < 0.001 else f"{p:.3f}"
