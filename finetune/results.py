"""What a finished run leaves: results.json, predictions.parquet, whom the model has seen, the model and the page."""

import io
import time
from typing import Any, TypeAlias

import numpy as np

from clusters.storage import Folder
from clusters.tracking import say
from data.dataset import Dataset
from finetune.calibration import uncalibrated
from finetune.cohort import Cohort
from finetune.config import FinetuneConfig
from finetune.contenders import Contender
from finetune.evaluate import Judged, Outcome, compare, judge, one_sided
from finetune.linear import Choice
from finetune.made_with import versions
from finetune.model_folder import MODEL_FILES, write_model
from finetune.patients import unknown_patients
from finetune.report.evidence import HASH, hash_of, why_not_theirs
from finetune.sealed import is_altered, sealed
from pretrain.encoder_folder import SEEN, Seen, read_seen
from pretrain.export import ids_scheme, seen_in, seen_table

RESULTS, LEDGER, PREDICTIONS = "results.json", "test_evaluations.json", "predictions.parquet"
REPORT, MODEL = "report.html", "model"
OUTPUTS = (RESULTS, LEDGER, PREDICTIONS, REPORT, SEEN, *(f"{MODEL}/{name}" for name in MODEL_FILES))
SCHEMA_VERSION = 2

Fitted: TypeAlias = tuple[Outcome, Choice | None]
"""A contender's answers, and its linear head if it has one that can be handed on."""


def write_results(
    out: Folder,
    config: FinetuneConfig,
    cohort: Cohort,
    identity: dict[str, Any],
    fitted: list[Fitted],
    warnings: list[str],
    started: float,
) -> None:
    """Evaluate on test, which is counted before it is looked at, and write everything; results.json last.

    The first of the fitted is the model that is handed on; `started` is the time when the work began, s.
    """
    from finetune.inference import measure_latency
    from finetune.report.page import Beside, model_of, write_report
    from finetune.report.words import shown

    judged = [judge(cohort, outcome, config.operating) for outcome, _ in fitted]
    first, choice = judged[0], fitted[0][1]
    warnings = [*unknown_patients(cohort.dataset.manifest), *warnings]
    temperatures = {item.outcome.contender.name: item.temperature for item in judged}
    evaluations, predictions = count_evaluation(out), predictions_table(cohort, judged)
    results = {
        "schema_version": SCHEMA_VERSION,
        "kind": "finetune",
        "identity": identity,
        "test_evaluations": evaluations,
        "warnings": [*warnings, *one_sided(first), *uncalibrated(temperatures)],
        "task": cohort.task.kind,
        "labels": list(cohort.task.label_names),
        "classes": list(cohort.task.class_names),
        "dataset": told_of(cohort.dataset),
        "cohort": cohort.counts(),
        **compare(cohort, judged, config.bootstrap, config.operating, config.seed),
        HASH: hash_of(predictions),
        "versions": versions(),
        "seconds": round(time.time() - started, 1),
    }
    out.write(PREDICTIONS, predictions)
    out.write(SEEN, seen_table(_seen_by(first.outcome.contender, cohort)))
    write_model(out / MODEL, first, choice, cohort, config, out)
    measure_latency(out / MODEL)
    write_report(out, results, cohort.dataset, Beside(*model_of(out)))
    out.write_json(RESULTS, sealed(results))
    for name, model in results["models"].items():
        say(f"{name}: test AUROC {shown(model['test']['auroc'])}")
    print(f"report: {out.file(REPORT)}")


def is_whole(out: Folder) -> bool:
    """Whether a folder has every file of finished results, unaltered, and their predictions. Says what it lacks."""
    if not out.exists(RESULTS):
        return False
    results = out.read_json(RESULTS)
    lack = next((f"{out.file(name)} is missing" for name in OUTPUTS if not out.exists(name)), None)
    if lack is None and is_altered(results):
        lack = f"{out.file(RESULTS)} was altered (its own hash differs)"
    if lack is None and (why := why_not_theirs(out.read(PREDICTIONS), results)):
        lack = f"{out.file(PREDICTIONS)} is not that of these results ({why})"
    if lack is not None:
        say(f"{lack}; the results are made again from what was trained")
    return lack is None


def told_of(dataset: Dataset) -> dict[str, Any]:
    """What results say of a dataset."""
    names = ("name", "source", "licence", "citation")
    told = {name: getattr(dataset.manifest, name) for name in names}
    told |= {"patient_unit": dataset.manifest.patient_unit, "ids": ids_scheme(dataset)}
    return {**told, "fingerprint": dataset.fingerprint}


def _seen_by(contender: Contender, cohort: Cohort) -> Seen:
    """Whom the fine-tuned model has seen: in pretraining, in training, and in validation, where it was chosen."""
    before = read_seen(contender.location) if contender.kind == "encoder" else None
    return seen_in(cohort.dataset, np.union1d(cohort.all_train, cohort.val), before)


def predictions_table(cohort: Cohort, judged: list[Judged]) -> bytes:
    """predictions.parquet: one row per model and validation or test image, each image once per model.

    Probabilities are those at the model's temperature; a case's is the mean over its rows (column `key`).
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    tables = []
    for item in judged:
        outcome = item.outcome
        for split, probabilities in (("val", item.val_probabilities), ("test", item.test_probabilities)):
            rows = cohort.rows(split)
            columns: dict[str, Any] = {
                "model": pa.array([outcome.contender.name] * len(rows)),
                "split": pa.array([split] * len(rows)),
            }
            for name in ("key", "patient", "member"):
                columns[name] = pa.array(cohort.dataset.column(name)[rows].astype(str))
            for k, label in enumerate(cohort.task.label_names):
                is_number = label in cohort.task.number_names
                columns[f"{'number' if is_number else 'label'}.{label}"] = cohort.truth[rows, k]
                columns[f"{'predicted' if is_number else 'probability'}.{label}"] = probabilities[:, k]
            tables.append(pa.table(columns))
    buffer = io.BytesIO()
    pq.write_table(pa.concat_tables(tables), buffer)
    return buffer.getvalue()


def count_evaluation(out: Folder) -> int:
    """Count one more look at test, before it is taken, and say how many there are.

    The number before is the ledger's or, should it have been removed, that of the results.
    """
    told = [(LEDGER, "count"), (RESULTS, "test_evaluations")]
    evaluations = 1 + max((out.read_json(name)[key] for name, key in told if out.exists(name)), default=0)
    out.write_json(LEDGER, {"count": evaluations})
    return evaluations
