"""`python -m finetune coverage`: how often the intervals hold the truth, in studies whose truth is known.

Patients are made up whose images resemble each other, a study of them is evaluated as any other is, and it is counted
in how many of many studies the interval holds the figure that a study without end would find. 95 % intervals should
in 93 to 97 % of them. They take the number of patients of each class as drawn, as it is where patients come by chance;
where a study fixes it, AUPRC, F1 and Brier score vary somewhat less than they say. Beside it DeLong's interval that
takes every image for a patient of its own.
Shapes: N cases (here one image each), C classes, P patients.
"""

import time
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from functools import cache

import numpy as np
from pydantic import Field

from clusters.command import describe
from clusters.config import Config, load_config
from data.config import num_cores
from finetune.bootstrap import Floats, Key, bootstrap, patient_strata
from finetune.delong import delong
from finetune.intervals import Intervals
from finetune.metrics import CaseFigures, RankFigures, ScoredCases, figures_of

CONFIDENCE, RESEMBLANCE, MOST_IMAGES = 0.95, 0.6, 5
PATIENTS_WITHOUT_END = 100_000
NAIVE, DIFFERENCE = ("images as patients",), ("difference in auroc",)
SHOWN: tuple[Key, ...] = (
    ("auroc",), ("auprc",), ("balanced_accuracy",), ("sensitivity",), ("specificity",), ("f1",), ("top1",), ("brier",),
    DIFFERENCE, NAIVE,
)  # fmt: skip


@dataclass(frozen=True)
class Setting:
    """A kind of study: the share of patients of each class, how far apart the classes lie, and who was drawn.

    `mix_drawn`: the number of patients of a class is itself drawn, where otherwise every study has the same.
    """

    title: str
    shares: tuple[float, ...]
    strength: float
    mix_drawn: bool = False


SETTINGS = (
    Setting("yes or no, 30 % of patients positive", (0.7, 0.3), 1.2),
    Setting("yes or no, 5 % of patients positive", (0.95, 0.05), 1.8),
    Setting("five classes, the rarest 5 %", (0.5, 0.2, 0.15, 0.1, 0.05), 1.6),
    Setting("yes or no, 30 % positive, their number drawn too", (0.7, 0.3), 1.2, mix_drawn=True),
)


class CoverageConfig(Config):
    """What is simulated."""

    draws: int = Field(default=2000, ge=10, description="studies of each kind")
    patients: int = Field(default=300, ge=40, description="in each study, of 1 to 5 images that resemble each other")
    resamples: int = Field(default=400, ge=50, description="bootstrap resamples in each study")


def usage() -> str:
    """What `--help` says."""
    return f"""usage: python -m finetune coverage [key=value …]

Simulates studies whose truth is known and prints how often the 95 % intervals hold it.

key          default   meaning
{describe(CoverageConfig)}"""


def run(argv: Sequence[str]) -> None:
    """Simulate and print, one kind of study after another. `coverage run` is the command without settings."""
    config = load_config(CoverageConfig, [word for word in argv if word != "run"])
    print(f"{config.draws} studies of {config.patients} patients each; 95 % intervals, {config.resamples} resamples")
    for setting in SETTINGS:
        started = time.time()
        rows = measure(setting, config)
        print(f"\n{setting.title} ({time.time() - started:.0f} s)")
        print(f"{'figure':<22}{'truth':>8}{'covered':>10}{'mean width':>12}")
        for key, (truth, covered, width) in rows.items():
            print(f"{key[0]:<22}{truth:>8.3f}{covered:>10.3f}{width:>12.3f}", flush=True)


def measure(setting: Setting, config: CoverageConfig) -> dict[Key, tuple[float, float, float]]:
    """Of each figure the truth, the share of studies whose interval holds it, and the intervals' mean width."""
    truth = truth_of(setting)
    numbers = np.array_split(np.arange(config.draws), min(config.draws, 4 * num_cores()))
    if num_cores() > 1 and config.draws > 100:
        with ProcessPoolExecutor(num_cores()) as processes:
            parts = list(processes.map(_studies, [setting] * len(numbers), [config] * len(numbers), numbers))
    else:
        parts = [_studies(setting, config, some) for some in numbers]
    ends = {key: np.array([study[key] for part in parts for study in part if key in study]) for key in truth}
    return {
        key: (truth[key], float(((low_high[:, 0] <= truth[key]) & (truth[key] <= low_high[:, 1])).mean()),
              float((low_high[:, 1] - low_high[:, 0]).mean()))
        for key, low_high in ends.items() if len(low_high)
    }  # fmt: skip


@cache
def truth_of(setting: Setting) -> dict[Key, float]:
    """What a study without end would find, each patient with one image."""
    one, other = draw_study(setting, PATIENTS_WITHOUT_END, np.random.default_rng(0), most_images=1)
    found, others = figures_of(one), figures_of(other)
    truth = {key: found[key] for key in SHOWN if key in found}
    truth[DIFFERENCE] = found["auroc",] - others["auroc",]
    if len(setting.shares) == 2:
        truth[NAIVE] = found["auroc",]
    return truth


def draw_study(
    setting: Setting, num_patients: int, rng: np.random.Generator, most_images: int = MOST_IMAGES
) -> tuple[ScoredCases, ScoredCases]:
    """What a model and a somewhat worse one say of some patients."""
    shares = np.array(setting.shares)
    if setting.mix_drawn:
        class_P = rng.choice(len(shares), num_patients, p=shares)
    else:
        class_P = np.searchsorted(np.cumsum(shares), (np.arange(num_patients) + 0.5) / num_patients)
    patient_N = np.repeat(np.arange(num_patients), rng.integers(1, most_images + 1, num_patients))
    true_N = class_P[patient_N]

    def noise() -> Floats:
        of_patient = rng.normal(size=(num_patients, len(shares)))
        of_image = rng.normal(size=(len(patient_N), len(shares)))
        return np.sqrt(RESEMBLANCE) * of_patient[patient_N] + np.sqrt(1 - RESEMBLANCE) * of_image

    shared = noise()
    seen = setting.strength * np.eye(len(shares))[true_N] + shared
    return _scored(setting, seen, true_N, patient_N), _scored(setting, seen + 0.5 * noise(), true_N, patient_N)


def _scored(setting: Setting, seen_NC: Floats, true_N: np.ndarray, patient_N: np.ndarray) -> ScoredCases:
    logits_NC = setting.strength * seen_NC + np.log(setting.shares)
    powers = np.exp(logits_NC - logits_NC.max(axis=1, keepdims=True))
    scores_NC = powers / powers.sum(axis=1, keepdims=True)
    names = tuple(f"class {c}" for c in range(len(setting.shares)))
    if len(names) == 2:
        scores = scores_NC[:, 1]
        decided_N = (scores >= setting.shares[1]).astype(np.int64)
        truth = (true_N == 1).astype(np.float64)
        return ScoredCases(truth[:, None], scores[:, None], true_N, decided_N, patient_N, names[1:], names)
    truth_NC = np.eye(len(names))[true_N]
    return ScoredCases(truth_NC, scores_NC, true_N, scores_NC.argmax(axis=1), patient_N, names, names)


def _studies(setting: Setting, config: CoverageConfig, numbers: np.ndarray) -> list[dict[Key, tuple[float, float]]]:
    return [_study(setting, config, int(number)) for number in numbers]


def _study(setting: Setting, config: CoverageConfig, number: int) -> dict[Key, tuple[float, float]]:
    """The interval of each figure in one study."""
    one, other = draw_study(setting, config.patients, np.random.default_rng([1, number]))
    figures, others, intervals = CaseFigures(one), RankFigures(other, precision=False), Intervals(one, CONFIDENCE)

    def both(counts_PR: np.ndarray) -> dict[Key, np.ndarray]:
        return figures(counts_PR) | {("other", *key): values for key, values in others(counts_PR).items()}

    values = bootstrap(both, patient_strata(one.truth_NK, one.patient_N), config.resamples, number)
    plain, values_other = figures_of(one), {key[1:]: v for key, v in values.items() if key[0] == "other"}
    found = {key: intervals.of(key, plain, values) for key in SHOWN if key in plain}
    difference, _ = intervals.of_difference(("auroc",), (plain, values), (figures_of(other), values_other))
    found[DIFFERENCE] = difference.interval if difference else None
    ends = {key: (one.low, one.high) if one else (np.nan, np.nan) for key, one in found.items()}
    by_image = delong(one.truth_NK[:, 0], one.scores_NK.T) if len(one.label_names) == 1 else None
    if by_image is not None:
        ends[NAIVE] = by_image.interval(0, CONFIDENCE)
    return ends
