"""A fine-tuning run from end to end: what is reused, what is computed, and the results at the end."""

import time
from typing import Any

import numpy as np

from clusters import distributed
from clusters.config import InputError, absolute
from clusters.launch import launch
from clusters.preflight import Needs
from clusters.run_lock import run_lock
from clusters.storage import Folder
from data.combined import tell_of_caches
from data.dataset import open_dataset
from finetune.baselines import IMAGE_NUMBERS, check_baselines, fit_baseline
from finetune.checks import check_full
from finetune.claims import begin, is_begun, versions_begun_with
from finetune.cohort import Cohort, Rows, choose_cohort, find_leaks
from finetune.config import FinetuneConfig
from finetune.contenders import CLASSICAL, Contender, absolute_baseline, contenders, load, weights_bytes
from finetune.evaluate import Outcome
from finetune.features import cache_name, compute_parts, read_parts
from finetune.heads import pool_images
from finetune.lineage import tell_lineage, tracker_of
from finetune.linear import fit_linear
from finetune.made_with import VERSIONS, Part, changed, made_with_other_code
from finetune.results import REPORT, RESULTS, Fitted, is_whole, write_results


def finetune(config: FinetuneConfig) -> None:
    """Check what can be checked before anything is started, train, evaluate once on test, and report.

    Raises InputError for bad input, leakage, and a results folder that was made with another config.
    """
    config = _with_absolute_locations(config)
    out = Folder(config.out)
    sizes = _possible_workers(config)
    dataset, entrants = open_dataset(config.data, config.loader.place), contenders(config)
    identity = {
        "recipe": config.recipe(),
        "dataset": dataset.fingerprint,
        "models": {entrant.name: entrant.fingerprint for entrant in entrants},
    }
    cohort = choose_cohort(dataset, config)
    check_full(config, cohort, entrants)
    check_baselines(entrants, cohort.task, dataset.location)
    warnings = [*cohort.notes, *told_of_the_past(entrants, cohort, config)]
    if is_begun(out, identity) and is_whole(out):
        print(f"reused: these results were finished earlier: {out.file(REPORT)}")
        if others := changed(out.read_json(RESULTS).get("versions")):
            print(f"they were made with other code than is here: {'; '.join(others)}")
        return
    with run_lock(out, config.tracking.privacy):
        begun_with = versions_begun_with(out)
        begin(out, identity, config.model_dump(mode="json"))
        started = time.time()
        launch(work, config, config.cluster, out, sizes, needs_of(config, entrants), heeds=config.head == "full")
        fitted = [_fit(entrant, cohort, config, out) for entrant in entrants]
        parts: list[Part] = [("what had been trained here", begun_with)]
        parts += [_numbers_made_with(entrant, cohort, config, out) for entrant in entrants]
        write_results(out, config, cohort, identity, fitted, [*warnings, *made_with_other_code(parts)], started)


def _numbers_made_with(entrant: Contender, cohort: Cohort, config: FinetuneConfig, out: Folder) -> Part:
    """The numbers of a contender's images, which may be those of another run."""
    folder, _ = _cache(entrant, cohort, config, out)
    made_with = folder.read_json(VERSIONS) if folder.exists(VERSIONS) else None
    return f"{'answers' if entrant.head == 'full' else 'features'} of {entrant.name}", made_with


def told_of_the_past(entrants: list[Contender], cohort: Cohort, config: FinetuneConfig) -> list[str]:
    """Whom the networks have met, or that nobody knows. Raises InputError as `find_leaks`."""
    warnings = []
    for entrant in entrants:
        if entrant.kind == "encoder":
            warnings += find_leaks(cohort, entrant.location, config.on_leak)
        elif entrant.kind == "published" and ":" in entrant.location:
            warnings.append(
                f"{entrant.title}: weights of others, of which nobody knows whether they were trained on test images"
            )
    return warnings


def work(config: FinetuneConfig) -> dict[str, Any]:
    """What each worker runs: features for linear heads, whole trainings for full ones."""
    from finetune.loop import images_to_numbers, train_full

    out, dataset = Folder(config.out), open_dataset(config.data, config.loader.place)
    tell_of_caches(dataset)
    cohort = choose_cohort(dataset, config)
    tracker = tracker_of(config)
    for entrant in contenders(config):
        if entrant.kind in IMAGE_NUMBERS:
            size_px, compute = IMAGE_NUMBERS[entrant.kind]
        elif entrant.head == "full":
            model, card = train_full(entrant, cohort, config, out / "training" / entrant.name, tracker)
            as_used = config.model_copy(update={"precision": "fp32"})  # as `predict` does, whatever it was trained in
            size_px, compute = config.size_px or card.size_px, images_to_numbers(model, card, as_used)
        else:
            encoder, card = load(entrant, config)
            encoder.eval().to(distributed.device())
            size_px, compute = config.size_px or card.size_px, images_to_numbers(encoder, card, config)
        folder, rows = _cache(entrant, cohort, config, out)
        compute_parts(folder, dataset, rows, size_px, config.feature_batch_size, compute, entrant.name, config.tracking)
    tell_lineage(tracker, config, dataset.fingerprint, contenders(config))
    tracker.close()
    return {}


def _fit(entrant: Contender, cohort: Cohort, config: FinetuneConfig, out: Folder) -> Fitted:
    """The contender's answers to validation and test images; for a linear one the head is fitted here."""
    folder, rows = _cache(entrant, cohort, config, out)
    numbers, dataset = read_parts(folder, rows), cohort.dataset

    def of(some: Rows) -> Any:
        return numbers[np.searchsorted(rows, some)]

    if entrant.head == "full":
        chosen = (out / "training" / entrant.name).read_json("finished.json")["chosen"]
        pooling = config.full.pooling
        logits = [pool_images(of(some), dataset.case_of[some], pooling) for some in (cohort.val, cohort.test)]
        return Outcome(entrant, chosen, [], *logits), None
    if entrant.kind in CLASSICAL:
        fitted = fit_baseline(entrant.kind, cohort, of, config)
        logits = [fitted.logits(of(some)) for some in (cohort.val, cohort.test)]
        return Outcome(entrant, fitted.chosen, fitted.tried, *logits), None
    choice = fit_linear(
        cohort, of(cohort.train), of(cohort.val), config.class_weighting, config.linear, entrant.name, config.seed
    )  # fmt: skip
    logits = [choice.head.logits(of(some), dataset.case_of[some]) for some in (cohort.val, cohort.test)]
    return Outcome(entrant, choice.chosen, choice.tried, *logits), choice


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


def _with_absolute_locations(config: FinetuneConfig) -> FinetuneConfig:
    baselines = [absolute_baseline(word) for word in config.baselines]
    locations = {name: absolute(getattr(config, name)) for name in ("data", "encoder", "out")}
    features = config.features and absolute(config.features)
    return config.model_copy(update={**locations, "baselines": baselines, "features": features})


def needs_of(config: FinetuneConfig, entrants: list[Contender], num_runs: int = 1) -> Needs:
    """What so many runs ask of the nodes of a cluster, up to cluster.num_workers of several at a time.

    Of each full training a state is its weights, the best ones, and the optimiser's two numbers for each.
    """
    states = [4 * weights_bytes(entrant, config) for entrant in entrants if entrant.head == "full"] * num_runs
    at_once = min(num_runs, config.cluster.sizes[-1])
    return Needs([config.data], states, config.checkpoint.keep, config.checkpoint.keep_every_h, at_once)


def _possible_workers(config: FinetuneConfig) -> list[int]:
    """The numbers of workers that cluster.num_workers allows and that a full training's batches can be shared among."""

    def check(num_workers: int) -> None:
        if config.head == "full" and config.full.batch_size % num_workers:
            raise InputError(
                f"full.batch_size: {config.full.batch_size} cannot be divided equally among "
                f"{num_workers} workers; choose a multiple"
            )

    return config.cluster.sizes_that_pass(check)


def numbers_of(entrant: Contender, cohort: Cohort, config: FinetuneConfig, out: Folder) -> tuple[Rows, Any]:
    """Rows of the dataset, ascending, and what `work` has computed of them, (I, D)."""
    folder, rows = _cache(entrant, cohort, config, out)
    return rows, read_parts(folder, rows)
