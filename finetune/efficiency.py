"""`python -m finetune efficiency RECIPE encoders=[A,B] …`: how good an encoder is with few labels.

Shares of the training patients, smaller ones within larger ones, drawn several times; a model for each encoder, share
and draw, chosen on validation and evaluated on test once; and the figure of REMEDIS (Azizi et al., 2023): the share of
the labels with which an encoder reaches the figure of the baseline with all of them.
"""

import re
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import numpy as np

from clusters.command import describe
from clusters.config import InputError, absolute, load_config
from clusters.launch import launch
from clusters.preflight import Needs
from clusters.run_lock import run_lock
from clusters.storage import Folder
from clusters.tracking import say
from data.dataset import Dataset, open_dataset
from finetune.bootstrap import Floats
from finetune.checks import check_full
from finetune.claims import claim
from finetune.cohort import Cohort, Rows, case_score, choose_cohort
from finetune.config import FinetuneConfig
from finetune.contenders import CLASSICAL, WORDS, Contender, absolute_baseline, contenders, names_published
from finetune.efficiency_config import EfficiencyConfig
from finetune.efficiency_page import FILES, write_outputs
from finetune.evaluate import frozen_temperature
from finetune.labels_saved import labels_saved, learned_from, summary
from finetune.linear import fit_linear
from finetune.patients import unknown_patients
from finetune.results import LEDGER
from finetune.run import finetune, numbers_of, told_of_the_past, work
from finetune.sealed import sealed
from finetune.tasks import AUROC

RESULTS = "efficiency.json"
SCHEMA_VERSION = 1

Numbers = Callable[[Rows], Floats]
Point = dict[str, Any]
Cohorts = dict[tuple[float, int], Cohort]
"""By share and draw."""


def usage() -> str:
    """The help."""
    return f"""usage: python -m finetune efficiency RECIPE.yaml data=DIR encoders=[A,B] out=DIR [key=value …]

Fits the recipe with small and larger shares of the labelled training patients, several draws of each, on the features
of each encoder (head=full: trains each whole), and writes {RESULTS} and
{", ".join(FILES)}. The same command
continues an interrupted run, and one with more fractions or draws adds to it.

  python -m finetune efficiency finetune/recipes/ham10000_linear.yaml data=/data/ham \\
    encoders=[/runs/ham,untrained,imagenet:timm:default] fractions=[0.01,0.1,1] draws=5 out=/runs/ham-efficiency

key                                  default          meaning
{describe(EfficiencyConfig)}"""


def run(argv: Sequence[str]) -> None:
    """The command."""
    config = load_config(EfficiencyConfig, argv)
    config.tracking.apply_privacy()
    efficiency(config)


def efficiency(config: EfficiencyConfig) -> None:
    """Check everything, fit every model that is not there yet, and write the curves.

    Raises InputError as fine-tuning does, before anything is computed.
    """
    started = time.time()
    _check_words(config.encoders)
    with _told_as_encoders():
        config = _with_absolute_locations(config)
        entrants = contenders(config.plain())
    out, dataset = Folder(config.out), open_dataset(config.data, config.loader.place)
    cohorts = draw_cohorts(dataset, config)
    _check_cohorts(config, cohorts, entrants)
    warnings = [*unknown_patients(dataset.manifest), *cohorts[1.0, 0].notes]
    warnings += told_of_the_past(entrants, cohorts[1.0, 0], config)
    identity = {
        "recipe": config.recipe(),
        "dataset": dataset.fingerprint,
        "models": {entrant.name: entrant.fingerprint for entrant in entrants},
    }
    with run_lock(out, config.tracking.privacy):
        claim(out, identity)
        points = _points_there(out, entrants, cohorts)
        if config.head == "full":
            points |= _train_all(config, out, entrants, cohorts, points)
        else:
            points |= _fit_all(config, out, entrants, cohorts, points)
        results = _results(config, identity, entrants, cohorts, points, warnings)
        results["test_evaluations"] = _evaluations(out, config)
        results["seconds"] = round(time.time() - started, 1)
        write_outputs(out, results)
        out.write_json(RESULTS, sealed(results))
    print(summary(results))
    print(f"page: {out.file('efficiency.html')}")


def _check_cohorts(config: EfficiencyConfig, cohorts: Cohorts, entrants: list[Contender]) -> None:
    """Raise InputError where test says nothing of any model, or where a share's samples are too few for head=full."""
    whole = cohorts[1.0, 0]
    if config.head == "full":  # of which AUROC is drawn alone
        labels = whole.task.parts[0]
        whole = replace(whole, task=labels, truth=whole.truth[:, : len(labels.label_names)])
    chance = np.random.default_rng(0).random((len(whole.test), whole.truth.shape[1]))
    if not np.isfinite(case_score(whole, whole.test, chance)):
        names = ", ".join(whole.task.parts[0].label_names)
        raise InputError(
            f"{config.data}: no figure of {names} on its test cases, which lack one side of each label, or whose "
            "numbers do not vary, so that there is no curve to draw; choose other labels, or import it anew with other "
            "splits"
        )
    for (share, draw), cohort in cohorts.items():
        check_full(config.plain(label_fraction=share, seed=config.seed + draw), cohort, entrants)


def fit_point(cohort: Cohort, numbers: Numbers, config: FinetuneConfig, title: str, count: Callable[[], None]) -> Point:
    """One model: chosen on validation, then evaluated on test, which `count` is told before."""
    choice = fit_linear(
        cohort, numbers(cohort.train), numbers(cohort.val), config.class_weighting, config.linear, title, config.seed
    )

    def logits(rows: Rows) -> Floats:
        return choice.head.logits(numbers(rows), cohort.dataset.case_of[rows])

    _, probabilities = frozen_temperature(cohort, logits(cohort.val))
    count()
    return {**choice.chosen, "test": case_score(cohort, cohort.test, probabilities(logits(cohort.test)))}


def draw_cohorts(dataset: Dataset, config: EfficiencyConfig) -> Cohorts:
    """The patients and labels of every share and draw; one draw where none are drawn and the head is linear."""
    cohorts = {}
    for share in config.shares():
        alike = config.head == "linear" and not config.plain(label_fraction=share).draws_labels
        for draw in range(1 if alike else config.draws):
            plain = config.plain(label_fraction=share, seed=config.seed + draw)
            cohorts[share, draw] = choose_cohort(dataset, plain)
    return cohorts


def _fit_all(
    config: EfficiencyConfig,
    out: Folder,
    entrants: list[Contender],
    cohorts: Cohorts,
    there: dict[str, Point],
) -> dict[str, Point]:
    """Linear heads on features that are computed once an encoder."""
    wanted = [(entrant, *key) for entrant in entrants for key in cohorts if _name(entrant, *key) not in there]
    if not wanted:
        return {}
    plain = config.plain()
    launch(work, plain, config.cluster, out, needs=Needs([config.data]))
    found: dict[str, Point] = {}
    rows, values, read = np.empty(0, dtype=np.int64), np.empty((0, 0)), ""
    for entrant, share, draw in wanted:
        if read != entrant.name:
            rows, values = numbers_of(entrant, cohorts[1.0, 0], plain, out)
            read = entrant.name

        def numbers(some: Rows, rows: Rows = rows, values: Floats = values) -> Floats:
            return values[np.searchsorted(rows, some)]

        name = _name(entrant, share, draw)
        title = f"{entrant.name}, {share:g} of the labels, draw {draw}"
        found[name] = fit_point(cohorts[share, draw], numbers, config, title, lambda: _count(out))
        out.write_json(f"points/{name}.json", found[name])
    return found


def _train_all(
    config: EfficiencyConfig,
    out: Folder,
    entrants: list[Contender],
    cohorts: Cohorts,
    there: dict[str, Point],
) -> dict[str, Point]:
    """Full fine-tunings: for each share and draw one run of all encoders, as the plain command does it."""
    found: dict[str, Point] = {}
    for share, draw in cohorts:
        names = {entrant.name: _name(entrant, share, draw) for entrant in entrants}
        if all(name in there for name in names.values()):
            continue
        folder = out / f"runs/{share:g}-{draw}"
        finetune(config.plain(label_fraction=share, seed=config.seed + draw, out=folder.location))
        models = folder.read_json("results.json")["models"]
        for model, name in names.items():
            found[name] = {**models[model]["chosen"], "test": models[model]["test"]["auroc"]["value"]}
            out.write_json(f"points/{name}.json", found[name])
    return found


def _results(
    config: EfficiencyConfig,
    identity: dict[str, Any],
    entrants: list[Contender],
    cohorts: Cohorts,
    points: dict[str, Point],
    warnings: list[str],
) -> dict[str, Any]:
    """Everything that the page, the curves and the table are made from."""
    whole = cohorts[1.0, 0]
    training = learned_from({key: cohort.counts()["train"] for key, cohort in cohorts.items()})
    curves = {}
    for entrant in entrants:
        rows = []
        for row in training:
            keys = [key for key in cohorts if key[0] == row["fraction"]]
            draws = [{**points[_name(entrant, *key)], "share": its["share"]} for key, its in zip(keys, row["draws"])]
            test = np.array([point["test"] for point in draws])
            spread = float(test.std(ddof=1)) if len(test) > 1 else None
            ends = {"mean": float(test.mean()), "low": float(test.min()), "high": float(test.max()), "sd": spread}
            rows.append({"fraction": row["fraction"], "share": row["share"], **ends, "draws": draws})
        curves[entrant.name] = {**entrant.describe(), "points": rows}
    place = config.encoders.index(config.baseline) if config.baseline else len(entrants) - 1
    baseline = entrants[place].name
    figure = AUROC if config.head == "full" else whole.task.score_name  # as `_train_all` and `fit_point` take it
    if figure == AUROC and len(whole.task.parts[0].label_names) > 1:
        figure = f"macro {AUROC}"
    manifest = whole.dataset.manifest
    return {
        "schema_version": SCHEMA_VERSION,
        "identity": identity,
        "dataset": {name: getattr(manifest, name) for name in ("name", "source", "licence", "patient_unit")},
        "figure": figure,
        "head": config.head,
        "draws": config.draws,
        "test": whole.counts()["test"],
        "training": training,
        "baseline": baseline,
        "curves": curves,
        "labels_saved": labels_saved(curves, baseline),
        "warnings": warnings,
    }


def _check_words(words: list[str]) -> None:
    """Raise InputError for a baseline that has no network, and where the first word names no encoder of ours."""
    for word in words:
        if word in CLASSICAL:
            raise InputError(
                f"encoders: '{word}' is no encoder; name runs, encoder folders, untrained or imagenet:WEIGHTS (it can "
                "be a baseline of the plain command)"
            )
    if words[0] in WORDS or names_published(words[0]):
        raise InputError(
            f"encoders: '{words[0]}' cannot be the first, by whose network the others go; "
            "name a run or an encoder folder before it"
        )


@contextmanager
def _told_as_encoders() -> Iterator[None]:
    """Refusals of baselines name the key of the plain command."""
    try:
        yield
    except InputError as error:
        raise InputError(re.sub("^baselines: ", "encoders: ", str(error))) from None


def _points_there(out: Folder, entrants: list[Contender], cohorts: dict[tuple[float, int], Cohort]) -> dict[str, Point]:
    """Models of an earlier run of this command, by name."""
    names = set((out / "points").names())
    wanted = [_name(entrant, *key) for entrant in entrants for key in cohorts]
    there = {name: (out / "points").read_json(f"{name}.json") for name in wanted if f"{name}.json" in names}
    if there:
        say(f"{len(there)} of {len(wanted)} models are there already")
    return there


def _name(entrant: Contender, share: float, draw: int) -> str:
    return f"{entrant.name}-{share!r}-{draw}"


def _count(out: Folder) -> None:
    """One more look at test, counted before it is taken."""
    before = out.read_json(LEDGER)["count"] if out.exists(LEDGER) else 0
    out.write_json(LEDGER, {"count": before + 1})


def _evaluations(out: Folder, config: EfficiencyConfig) -> int:
    if config.head == "linear":
        return int(out.read_json(LEDGER)["count"])
    runs = out / "runs"
    return sum(int((runs / name).read_json(LEDGER)["count"]) for name in runs.names()) * len(config.encoders)


def _with_absolute_locations(config: EfficiencyConfig) -> EfficiencyConfig:
    changed = {"data": absolute(config.data), "out": absolute(config.out)}
    encoders = [absolute_baseline(word) for word in config.encoders]
    baseline = None if config.baseline is None else absolute_baseline(config.baseline)
    return config.model_copy(update={**changed, "encoders": encoders, "encoder": encoders[0], "baseline": baseline})
