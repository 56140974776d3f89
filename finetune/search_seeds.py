"""The chosen pair of a search with several seeds: trained, tested, and their figures together."""

from typing import Any

import numpy as np

from clusters.config import InputError
from clusters.storage import Folder
from clusters.tracking import say
from finetune.config import FinetuneConfig
from finetune.results import LEDGER
from finetune.run import finetune

TRIAL = "trial.json"
"""What a run of a search has come to on validation, or why it failed."""


def train_seed(config: FinetuneConfig) -> None:
    """One seed of the chosen pair, trained and tested. That it diverges is written down as a trial's, and once."""
    out = Folder(config.out)
    if failure(out):
        return
    try:
        finetune(config)
    except InputError as error:
        overflows = config.head == "full" and "not finite" in str(error)  # in its answers, with finite weights
        if not (diverged(error) or overflows):
            raise
        out.write_json(TRIAL, {"failed": str(error)})
        say(f"seed {config.seed} has diverged and is left out of the mean: {error}")


def failure(run: Folder) -> str | None:
    """Why a run of a search has diverged; None where it has not."""
    return run.read_json(TRIAL).get("failed") if run.exists(TRIAL) else None


def diverged(error: InputError) -> bool:
    """Whether a training has failed by itself, rather than by what it was given."""
    return "weights are not finite" in str(error) or "the loss is" in str(error)


def seeds_on_test(runs: list[FinetuneConfig], seeds: list[int]) -> dict[str, Any]:
    """The figures of each seed on test, and their mean and spread over those that have not diverged.

    Raises InputError where all have.
    """
    told: list[dict[str, Any]] = []
    evaluations = 0
    for seed, run_config in zip(seeds, runs):
        folder = Folder(run_config.out)
        row = {"seed": seed, "run": f"runs/{folder.location.rsplit('/', 1)[-1]}"}
        if why := failure(folder):
            told.append({**row, "failed": why})
            continue
        model = folder.read_json("results.json")["models"]["pretrained"]
        told.append({**row, **model["chosen"], "test": _figures(model["test"])})
        evaluations += folder.read_json(LEDGER)["count"]
    figures = [row["test"] for row in told if "failed" not in row]
    if not figures:
        raise InputError(f"grid.seeds: no seed of the chosen pair has ended well; the first: {told[0]['failed']}")
    earlier = sum(
        ledger["count"] for ledger in _ledgers(Folder(runs[0].out.rsplit("/", 1)[0]), [run.out for run in runs])
    )
    return {
        "seeds": told,
        "test": _over_seeds(figures),
        "test_evaluations": evaluations + earlier,
        "test_evaluations_of_earlier_choices": earlier,
    }


def _figures(test: dict[str, Any]) -> dict[str, Any]:
    """The values alone of a model's figures, with those of each predicted number."""
    plain = {name: found["value"] for name, found in test.items() if isinstance(found, dict) and "value" in found}
    numbers = {name: _figures(found) for name, found in test.get("numbers", {}).items()}
    return plain | ({"numbers": numbers} if numbers else {})


def _over_seeds(told: list[Any]) -> dict[str, Any]:
    """Mean and spread of each figure, in the shape of what each seed tells."""
    if isinstance(told[0], dict):
        return {name: _over_seeds([one[name] for one in told]) for name in told[0]}
    values = [value for value in told if value is not None]
    spread = float(np.std(values, ddof=1)) if len(values) > 1 else None
    return {"mean": float(np.mean(values)) if values else None, "sd": spread, "seeds": len(values)}


def _ledgers(folder: Folder, without: list[str]) -> list[dict[str, Any]]:
    """How often test was looked at by runs in a folder, those left out that are named."""
    there = [folder / name for name in folder.names()]
    return [one.read_json(LEDGER) for one in there if one.location not in without and one.exists(LEDGER)]
