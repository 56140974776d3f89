"""`python -m finetune search RECIPE …`: the protocol of Azizi et al. (2021) for learning rate and weight decay.

Every pair of a grid is trained as a trial and judged on validation alone; the best pair is then trained with several
seeds, and only those models see test. A trial's folder is that of a plain run, so the chosen trial becomes its first
seed's run without being trained again.
"""

import math
import time
from collections.abc import Sequence
from typing import Annotated, Any

import numpy as np
from pydantic import Field, field_validator, model_validator

from clusters.command import describe
from clusters.config import Config, InputError, absolute, load_config
from clusters.launch import launch
from clusters.preflight import Needs
from clusters.run_lock import run_lock
from clusters.search import one_ray, run_trials
from clusters.storage import Folder
from clusters.tracking import say
from data.dataset import open_dataset
from finetune.checks import check_full
from finetune.claims import SWEEP, claim
from finetune.cohort import choose_cohort, find_leaks
from finetune.config import FinetuneConfig, SgdConfig, Strength
from finetune.contenders import contenders
from finetune.lineage import tracker_of
from finetune.run import needs_of, numbers_of, work
from finetune.search_page import score_of, search_page, summary
from finetune.search_seeds import TRIAL, diverged, seeds_on_test, train_seed

RESULTS, PAGE = "search.json", "search.html"
SCHEMA_VERSION = 1

Decay = Annotated[float, Field(ge=0, allow_inf_nan=False)]
Row = dict[str, Any]


class GridConfig(Config):
    """What is tried on validation, and how the best is tested; by default as in the paper."""

    learning_rates: list[Strength] = Field(
        default=[float(f"{10 ** (power / 2):.3g}") for power in range(-7, 0)],
        min_length=1,
        description="seven from 10^-3.5 to 10^-0.5, as for SGD with momentum",
    )
    weight_decays: list[Decay] = Field(default=[0.0, 1e-5, 1e-4, 1e-3], min_length=1, description="on weights")
    seeds: int = Field(default=5, ge=1, description="how often the best pair is trained and tested, from seed= on")

    @field_validator("learning_rates", "weight_decays")
    @classmethod
    def _each_once(cls, values: list[float]) -> list[float]:
        if len({f"{value:g}" for value in values}) < len(values):
            raise ValueError("must not hold the same value twice")
        return sorted(values)


class SearchConfig(FinetuneConfig):
    """A recipe of fine-tuning, and the grid around it. Baselines are left out: each would need its own search."""

    grid: GridConfig = Field(default=GridConfig(), description="learning rates and weight decays")

    @model_validator(mode="after")
    def _linear_trials_go_by_images(self) -> "SearchConfig":
        if self.head == "linear" and self.linear.pooling != "none":
            raise ValueError("linear.pooling: a search trains linear heads by SGD, image by image; set it to none")
        return self

    def recipe(self) -> dict[str, Any]:
        """The settings that determine a trial: more pairs and seeds may be asked for later."""
        return {name: value for name, value in super().recipe().items() if name != "grid"}

    def pairs(self) -> list[tuple[float, float]]:
        """Learning rate and weight decay of each trial."""
        return [(lr, decay) for lr in self.grid.learning_rates for decay in self.grid.weight_decays]

    def trial(self, lr: float, decay: float, seed: int) -> FinetuneConfig:
        """The plain run of a pair, in a folder of its own, in this one process.

        Whatever its seed, it learns from the labels that were searched with.
        """
        values = {name: getattr(self, name) for name in FinetuneConfig.model_fields}
        pair = {"lr": lr, "weight_decay": decay}
        if self.head == "linear":
            sgd = (self.linear.sgd or SgdConfig()).model_copy(update=pair)
            values["linear"] = self.linear.model_copy(update={"sgd": sgd})
            values["features"] = self.features or f"{self.out}/features"
        else:
            optim = self.full.optim.model_copy(update=pair)
            values["full"] = self.full.model_copy(update={"optim": optim})
        values["cluster"] = self.cluster.model_copy(update={"num_workers": 0})
        name = f"lr-{lr:g}-wd-{decay:g}-seed-{seed}"
        values |= {"out": f"{self.out}/runs/{name}", "seed": seed, "label_seed": self.seed_of_labels, "baselines": []}
        return FinetuneConfig.model_validate(values)


def usage() -> str:
    """The help."""
    return f"""usage: python -m finetune search RECIPE.yaml data=DIR encoder=RUN_OR_FOLDER out=DIR [key=value …]

Trains the recipe with every pair of learning rate and weight decay, chooses the best on validation, trains that with
several seeds and evaluates those on test. head=linear: by SGD on features that are computed once. Up to
cluster.num_workers trials run at a time, each with one worker's share of the cluster; 0: one after another, here.
Writes {RESULTS} and {PAGE}. The same command continues an interrupted search.

  python -m finetune search finetune/recipes/ham10000_search.yaml data=/data/ham encoder=/runs/ham out=/runs/ham-search

key                                  default          meaning
{describe(SearchConfig)}"""


def run(argv: Sequence[str]) -> None:
    """The command."""
    config = load_config(SearchConfig, argv)
    config.tracking.apply_privacy()
    search(config)


def search(config: SearchConfig) -> None:
    """Run the trials that are not there yet, choose, run the seeds, and write what was found.

    Raises InputError as fine-tuning does, and where no trial has ended well, or no seed of the best pair.
    """
    started = time.time()
    places = {name: absolute(getattr(config, name)) for name in ("data", "encoder", "out")}
    config = config.model_copy(update={**places, "features": config.features and absolute(config.features)})
    out, first = Folder(config.out), config.trial(*config.pairs()[0], config.seed)
    dataset, (entrant,) = open_dataset(config.data, config.loader.place), contenders(first)
    cohort = choose_cohort(dataset, config)
    check_full(first, cohort, [entrant])
    warnings = [*cohort.notes, *find_leaks(cohort, entrant.location, config.on_leak)]
    with run_lock(out, config.tracking.privacy):
        # Searches of before drew other patients for each seed: said here, before a grid is trained for nothing.
        drawn = {"label_seed": config.seed_of_labels} if config.draws_labels and config.grid.seeds > 1 else {}
        identity = {"recipe": _ungridded(config), "dataset": dataset.fingerprint, "model": entrant.fingerprint}
        claim(out, identity | drawn)

        with one_ray(config.cluster, out):
            needs = needs_of(config, [entrant], len(config.pairs()) + config.grid.seeds)
            rows = _trials(config, out, needs)
            best = _best(rows)
            say(f"chosen: learning rate {best['lr']:g}, weight decay {best['weight_decay']:g}, of {len(rows)} pairs")
            seeds = [config.seed + number for number in range(config.grid.seeds)]
            runs = [config.trial(best["lr"], best["weight_decay"], seed) for seed in seeds]
            run_trials(train_seed, runs, config.cluster, out, needs)

        results = {
            "schema_version": SCHEMA_VERSION,
            "identity": out.read_json(SWEEP),
            "model": entrant.describe(),
            "dataset": {name: getattr(dataset.manifest, name) for name in ("name", "licence", "patient_unit")},
            "warnings": warnings,
            "grid": rows,
            "chosen": best,
            **seeds_on_test(runs, seeds),
            "seconds": round(time.time() - started, 1),
        }
        out.write(PAGE, search_page(results).encode())
        out.write_json(RESULTS, results)
    print(summary(results))
    print(f"page: {out.file(PAGE)}")


def train_trial(config: FinetuneConfig) -> None:
    """One pair: trained, judged on validation, and written down. What diverges is a result too."""
    out = Folder(config.out)
    cohort = choose_cohort(open_dataset(config.data, config.loader.place), config)
    (entrant,) = contenders(config)
    try:
        if config.head == "full":
            from finetune.loop import train_full

            tracker = tracker_of(config)
            train_full(entrant, cohort, config, out / "training" / entrant.name, tracker)
            tracker.close()
            found = (out / "training" / entrant.name).read_json("finished.json")["chosen"]
        else:
            from finetune.linear import fit_linear

            rows, values = numbers_of(entrant, cohort, config, out)
            train, val = (values[np.searchsorted(rows, some)] for some in (cohort.train, cohort.val))
            title = f"learning rate {config.linear.sgd.lr:g}" if config.linear.sgd else ""
            found = fit_linear(cohort, train, val, config.class_weighting, config.linear, title, config.seed).chosen
    except InputError as error:
        if not diverged(error):
            raise
        found = {"failed": str(error)}
    out.write_json(TRIAL, found)


def _trials(config: SearchConfig, out: Folder, needs: Needs) -> list[Row]:
    """Every pair with what it came to on validation."""
    trials = [config.trial(lr, decay, config.seed) for lr, decay in config.pairs()]
    missing = [trial for trial in trials if not Folder(trial.out).exists(TRIAL)]
    say(f"{len(trials)} pairs of learning rate and weight decay, {len(missing)} to train")
    if missing and config.head == "linear":
        launch(work, config.model_copy(update={"baselines": []}), config.cluster, out, needs=needs)
    run_trials(train_trial, missing, config.cluster, out, needs)
    return [
        {"lr": lr, "weight_decay": decay, **Folder(trial.out).read_json(TRIAL)}
        for (lr, decay), trial in zip(config.pairs(), trials)
    ]


def _best(rows: list[Row]) -> Row:
    """The best on validation; of equal ones that with more decay, then that with the smaller rate."""
    judged = [row for row in rows if "failed" not in row and math.isfinite(score_of(row))]
    if not judged:
        raise InputError(f"grid: no trial has ended well; the first: {rows[0].get('failed', 'no score on validation')}")
    return max(judged, key=lambda row: (round(score_of(row), 9), row["weight_decay"], -row["lr"]))


def _ungridded(config: SearchConfig) -> dict[str, Any]:
    """The recipe without what the grid sets."""
    recipe = config.recipe()
    if config.head == "full":
        optim = {name: value for name, value in recipe["full"]["optim"].items() if name not in ("lr", "weight_decay")}
        recipe["full"] = {**recipe["full"], "optim": optim}
    return recipe
