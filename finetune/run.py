"""A fine-tuning run from end to end: what is reused, what is computed, and the results at the end."""

import io
import time
from typing import Any

import numpy as np

from clusters import distributed
from clusters.config import InputError, absolute, differences
from clusters.launch import launch
from clusters.storage import Folder
from clusters.tracking import Tracker, say
from data.dataset import open_dataset
from finetune.baselines import IMAGE_NUMBERS, check_baselines, fit_baseline
from finetune.checks import check_full
from finetune.cohort import Cohort, Rows, choose_cohort, find_leaks
from finetune.config import FinetuneConfig
from finetune.contenders import CLASSICAL, Contender, absolute_baseline, contenders, load
from finetune.evaluate import Judged, Outcome, compare, judge, one_sided
from finetune.features import cache_name, compute_parts, read_parts
from finetune.heads import pool_images
from finetune.linear import Choice, fit_linear
from finetune.model_folder import MODEL_FILES, write_model
from pretrain.encoder_folder import SEEN, Seen, read_seen
from pretrain.export import seen_in, seen_table

RESULTS, LEDGER, PREDICTIONS = "results.json", "test_evaluations.json", "predictions.parquet"
REPORT, MODEL = "report.html", "model"
OUTPUTS = (RESULTS, LEDGER, PREDICTIONS, REPORT, SEEN, *(f"{MODEL}/{name}" for name in MODEL_FILES))
SCHEMA_VERSION = 2


def finetune(config: FinetuneConfig) -> None:
    """Check what can be checked before anything is started, train, evaluate once on test, and report.

    Raises InputError for bad input, leakage, and a results folder that was made with another config.
    """
    config = _with_absolute_locations(config)
    out = Folder(config.out)
    _check_workers(config)
    dataset, entrants = open_dataset(config.data, config.loader.place), contenders(config)
    identity = {
        "recipe": config.recipe(),
        "dataset": dataset.fingerprint,
        "models": {entrant.name: entrant.fingerprint for entrant in entrants},
    }
    cohort = choose_cohort(dataset, config)
    check_full(config, cohort, entrants)
    check_baselines(entrants, cohort.task, dataset.location)
    warnings = [*cohort.notes] + [
        warning
        for entrant in entrants
        if entrant.kind == "encoder"
        for warning in find_leaks(cohort, entrant.location, config.on_leak)
    ]
    if _is_finished(out, identity):
        print(f"reused: these results were finished earlier: {out.file(REPORT)}")
        return
    out.write_json("config.json", {"identity": identity, "config": config.model_dump(mode="json")})

    started = time.time()
    launch(work, config, config.cluster, out)
    heads = {entrant.name: _fit(entrant, cohort, config, out) for entrant in entrants}
    _finish(config, out, cohort, identity, heads, warnings, started)


def work(config: FinetuneConfig) -> dict[str, Any]:
    """What each worker runs: features for linear heads, whole trainings for full ones."""
    from finetune.loop import images_to_numbers, train_full

    out, dataset = Folder(config.out), open_dataset(config.data, config.loader.place)
    cohort = choose_cohort(dataset, config)
    name = out.location.rsplit("/", 1)[-1]
    tracker = Tracker(out, config.tracking, name, config.model_dump(mode="json"))
    for entrant in contenders(config):
        if entrant.kind in IMAGE_NUMBERS:
            size_px, compute = IMAGE_NUMBERS[entrant.kind]
        elif entrant.head == "full":
            model, card = train_full(entrant, cohort, config, out / "training" / entrant.name, tracker)
            size_px, compute = config.size_px or card.size_px, images_to_numbers(model, card, config)
        else:
            encoder, card = load(entrant, config)
            encoder.eval().to(distributed.device())
            size_px, compute = config.size_px or card.size_px, images_to_numbers(encoder, card, config)
        folder, rows = _cache(entrant, cohort, config, out)
        compute_parts(folder, dataset, rows, size_px, config.feature_batch_size, compute, entrant.name, config.tracking)
    tracker.close()
    return {}


def _fit(entrant: Contender, cohort: Cohort, config: FinetuneConfig, out: Folder) -> tuple[Outcome, Choice | None]:
    """The contender's answers to validation and test images; for a linear one the head is fitted here."""
    folder, rows = _cache(entrant, cohort, config, out)
    numbers, dataset = read_parts(folder, rows), cohort.dataset

    def of(some: Rows) -> Any:
        return numbers[np.searchsorted(rows, some)]

    if entrant.head == "full":
        chosen = (out / "training" / entrant.name).read_json("finished.json")["chosen"]
        probabilities = [
            cohort.task.probabilities(pool_images(of(some), dataset.case_of[some], config.full.pooling))
            for some in (cohort.val, cohort.test)
        ]
        return Outcome(entrant, chosen, [], *probabilities), None
    if entrant.kind in CLASSICAL:
        fitted = fit_baseline(entrant.kind, cohort, of, config)
        probabilities = [cohort.task.probabilities(fitted.logits(of(some))) for some in (cohort.val, cohort.test)]
        return Outcome(entrant, fitted.chosen, fitted.tried, *probabilities), None
    choice = fit_linear(
        cohort, of(cohort.train), of(cohort.val), config.class_weighting, config.linear, entrant.name, config.seed
    )  # fmt: skip
    probabilities = [
        cohort.task.probabilities(choice.head.logits(of(some), dataset.case_of[some]))
        for some in (cohort.val, cohort.test)
    ]
    return Outcome(entrant, choice.chosen, choice.tried, *probabilities), choice


def _finish(
    config: FinetuneConfig,
    out: Folder,
    cohort: Cohort,
    identity: dict[str, Any],
    heads: dict[str, tuple[Outcome, Choice | None]],
    warnings: list[str],
    started: float,
) -> None:
    """Evaluate on test, which is counted before it is looked at, and write everything; results.json last."""
    from finetune.inference import measure_latency
    from finetune.report.page import Beside, model_of, write_report
    from finetune.report.words import shown

    judged = [judge(cohort, outcome, config.operating) for outcome, _ in heads.values()]
    evaluations = 1 + _evaluations_so_far(out)
    out.write_json(LEDGER, {"count": evaluations})
    manifest = cohort.dataset.manifest
    results = {
        "schema_version": SCHEMA_VERSION,
        "kind": "finetune",
        "identity": identity,
        "test_evaluations": evaluations,
        "warnings": [*warnings, *one_sided(judged[0])],
        "task": cohort.task.kind,
        "labels": list(cohort.task.label_names),
        "classes": list(cohort.task.class_names),
        "dataset": {
            "name": manifest.name,
            "source": manifest.source,
            "licence": manifest.licence,
            "citation": manifest.citation,
            "fingerprint": cohort.dataset.fingerprint,
        },
        "cohort": cohort.counts(),
        **compare(cohort, judged, config.bootstrap, config.operating, config.seed),
        "versions": versions(),
        "seconds": round(time.time() - started, 1),
    }
    out.write(PREDICTIONS, predictions_table(cohort, judged))
    out.write(SEEN, seen_table(_seen_by(judged[0].outcome.contender, cohort)))
    write_model(out / MODEL, judged[0], heads[judged[0].outcome.contender.name][1], cohort, config, out)
    measure_latency(out / MODEL)
    write_report(out, results, cohort.dataset, Beside(*model_of(out)))
    out.write_json(RESULTS, results)
    for item in judged:
        test = results["models"][item.outcome.contender.name]["test"]
        say(f"{item.outcome.contender.name}: test AUROC {shown(test['auroc'])}")
    print(f"report: {out.file(REPORT)}")


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


def _cache(entrant: Contender, cohort: Cohort, config: FinetuneConfig, out: Folder) -> tuple[Folder, Rows]:
    """Where the numbers of a contender's images are kept, and of which images, ascending."""
    title, fingerprint = entrant.numbers_of or (entrant.name, entrant.fingerprint)
    what: list[object] = [fingerprint]
    if entrant.kind not in IMAGE_NUMBERS:
        what += [config.size_px, config.precision]
    if entrant.head == "full":
        what.append((out / "training" / entrant.name).read_json("finished.json")["weights_sha256"])
        rows = np.concatenate([cohort.val, cohort.test])
    else:
        train = cohort.all_train if entrant.kind == "pca" else cohort.train
        rows = np.concatenate([train, cohort.val, cohort.test])
    rows = np.unique(rows)
    folder = Folder(config.features or f"{out}/features") / cache_name(title, cohort.dataset, rows, *what)
    return folder, rows


def _is_finished(out: Folder, identity: dict[str, Any]) -> bool:
    """Whether these very results are there, each file of them. Raises InputError where others are."""
    if not out.exists("config.json"):
        return False
    changed = differences(out.read_json("config.json")["identity"], identity)
    if changed:
        raise InputError(
            f"{out}: made with another config ({'; '.join(changed[:3])}); give another out=, or remove this folder"
        )
    if not out.exists(RESULTS):
        return False
    missing = [name for name in OUTPUTS if not out.exists(name)]
    if missing:
        say(f"{out.file(missing[0])} is missing; the results are made again from what was trained")
    return not missing


def _evaluations_so_far(out: Folder) -> int:
    """How often test was evaluated: the ledger's word or, should it have been removed, that of the results."""
    told = [(LEDGER, "count"), (RESULTS, "test_evaluations")]
    return max((out.read_json(name)[key] for name, key in told if out.exists(name)), default=0)


def _with_absolute_locations(config: FinetuneConfig) -> FinetuneConfig:
    baselines = [absolute_baseline(word) for word in config.baselines]
    locations = {name: absolute(getattr(config, name)) for name in ("data", "encoder", "out")}
    features = config.features and absolute(config.features)
    return config.model_copy(update={**locations, "baselines": baselines, "features": features})


def _check_workers(config: FinetuneConfig) -> None:
    if config.head == "full" and config.full.batch_size % max(1, config.cluster.num_workers):
        raise InputError(
            f"full.batch_size: {config.full.batch_size} cannot be divided equally among "
            f"{config.cluster.num_workers} workers; choose a multiple"
        )


def versions() -> dict[str, str]:
    """Of the libraries that figures depend on."""
    import sklearn
    import timm
    import torch

    modules = {"torch": torch, "timm": timm, "scikit-learn": sklearn, "numpy": np}
    return {name: str(module.__version__) for name, module in modules.items()}


def numbers_of(entrant: Contender, cohort: Cohort, config: FinetuneConfig, out: Folder) -> tuple[Rows, Any]:
    """Rows of the dataset, ascending, and what `work` has computed of them, (I, D)."""
    folder, rows = _cache(entrant, cohort, config, out)
    return rows, read_parts(folder, rows)
