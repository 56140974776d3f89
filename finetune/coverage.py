"""`python -m finetune coverage`: how often the intervals hold the truth, in studies whose truth is known.

Patients are made up whose images resemble each other, a study of them is evaluated as any other is, and it is counted
in how many of many studies the interval holds the figure that a study without end would find. 95 % intervals should
in 93 to 97 % of them. They take the number of patients of each class as drawn, as it is where patients come by chance;
where a study fixes it, AUPRC, F1 and Brier score vary somewhat less than they say. Beside it DeLong's interval that
takes every image for a patient of its own.
"""

import time
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor

import numpy as np
from pydantic import Field

from clusters.command import describe
from clusters.config import Config, load_config
from data.config import num_cores
from finetune.bootstrap import BootstrapConfig, Key
from finetune.simulated_studies import STUDIES, Ends, Study


class CoverageConfig(Config):
    """What is simulated."""

    draws: int = Field(default=2000, ge=10, description="studies of each kind")
    patients: int = Field(default=300, ge=40, description="in each study, of 1 to 5 images that resemble each other")
    resamples: int = Field(default=400, ge=50, description="bootstrap resamples in each study")


def usage() -> str:
    """What `--help` says."""
    return f"""usage: python -m finetune coverage run [key=value …]

Simulates studies whose truth is known and prints how often the 95 % intervals hold it.

key          default   meaning
{describe(CoverageConfig)}"""


def run(argv: Sequence[str]) -> None:
    """Simulate and print, one kind of study after another. `coverage run` is the command without settings."""
    config = load_config(CoverageConfig, [word for word in argv if word != "run"])
    print(f"{config.draws} studies of {config.patients} patients each; 95 % intervals, {config.resamples} resamples")
    for study in STUDIES:
        started = time.time()
        rows = measure(study, config)
        print(f"\n{study.title} ({time.time() - started:.0f} s)")
        print(f"{'figure':<28}{'truth':>8}{'covered':>10}{'mean width':>12}{'none':>8}")
        for key, (truth, covered, width, none) in rows.items():
            print(f"{key[0]:<28}{truth:>8.3f}{covered:>10.3f}{width:>12.3f}{none:>8.3f}", flush=True)


def measure(study: Study, config: CoverageConfig) -> dict[Key, tuple[float, float, float, float]]:
    """Of each figure: truth, share of intervals that hold it, their mean width, share of studies without one."""
    truth = study.truth()
    numbers = np.array_split(np.arange(config.draws), min(config.draws, 4 * num_cores()))
    if num_cores() > 1 and config.draws > 100:
        with ProcessPoolExecutor(num_cores()) as processes:
            parts = list(processes.map(_studies, [study] * len(numbers), [config] * len(numbers), numbers))
    else:
        parts = [_studies(study, config, some) for some in numbers]
    ends = {key: np.array([one[key] for part in parts for one in part]) for key in truth}
    return {key: (truth[key], *_covered(low_high, truth[key])) for key, low_high in ends.items()}


def _covered(low_high: np.ndarray, truth: float) -> tuple[float, float, float]:
    low, high = low_high[np.isfinite(low_high).all(axis=1)].T
    none = 1 - len(low) / len(low_high)
    if not len(low):
        return float("nan"), float("nan"), none
    return float(((low <= truth) & (truth <= high)).mean()), float((high - low).mean()), none


def _studies(study: Study, config: CoverageConfig, numbers: np.ndarray) -> list[Ends]:
    bootstrap = BootstrapConfig(resamples=config.resamples)
    return [study.intervals(config.patients, bootstrap, int(number)) for number in numbers]
