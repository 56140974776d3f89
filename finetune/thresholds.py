"""From which score on to say yes: chosen on validation, frozen, and judged on test.

Shapes: N cases, K labels.
"""

from dataclasses import dataclass

import numpy as np
from pydantic import Field

from clusters.config import Config
from finetune.bootstrap import Floats
from finetune.ranking import roc_curve


class OperatingConfig(Config):
    """Where sensitivity and specificity are reported beside the decision."""

    specificity: float = Field(default=0.9, gt=0, lt=1, description="at this specificity on validation: how sensitive?")
    sensitivity: float = Field(default=0.9, gt=0, lt=1, description="at this sensitivity on validation: how specific?")


@dataclass(frozen=True)
class Thresholds:
    """Of each label, (K,): the decision's, and those of the operating points, NaN where there is none.

    `one_sided` names the labels that have no positives or no negatives in validation: they are decided at 0.5.
    """

    decision_K: Floats
    at_specificity_K: Floats
    at_sensitivity_K: Floats
    one_sided: tuple[str, ...]

    @property
    def operating(self) -> dict[str, Floats]:
        """The operating points by name."""
        return {"at_specificity": self.at_specificity_K, "at_sensitivity": self.at_sensitivity_K}


def choose_thresholds(
    truth_NK: Floats, scores_NK: Floats, label_names: tuple[str, ...], config: OperatingConfig
) -> Thresholds:
    """The thresholds that validation cases suggest, each label for itself; unknown truth (NaN) does not count."""
    found, one_sided = [], []
    for k, label in enumerate(label_names):
        truth_N, scores_N = truth_NK[:, k], scores_NK[:, k]
        if two_sided(truth_N):
            found.append(
                (
                    youden_threshold(truth_N, scores_N),
                    threshold_at_specificity(truth_N, scores_N, config.specificity),
                    threshold_at_sensitivity(truth_N, scores_N, config.sensitivity),
                )
            )
        else:
            one_sided.append(label)
            found.append((0.5, np.nan, np.nan))
    decision_K, at_specificity_K, at_sensitivity_K = np.array(found).T
    return Thresholds(decision_K, at_specificity_K, at_sensitivity_K, tuple(one_sided))


def two_sided(truth_N: Floats) -> bool:
    """Whether there are positives and negatives."""
    return bool((truth_N == 1).any() and (truth_N == 0).any())


def youden_threshold(truth_N: Floats, scores_N: Floats) -> float:
    """The threshold from which on to say positive: largest sensitivity + specificity (Youden, 1950).

    Of equally good ones the lowest, which misses fewest, and halfway to the next lower score. 0.5 where only one class
    is there.
    """
    if not two_sided(truth_N):
        return 0.5
    false, true, scores = roc_curve(truth_N, scores_N)
    gain = np.round((true - false)[1:], 12)
    return _below(scores, int(np.flatnonzero(gain == gain.max())[-1]) + 1)


def threshold_at_specificity(truth_N: Floats, scores_N: Floats, target: float) -> float:
    """The lowest threshold, so the most sensitive, from which on to say positive and keep at least this specificity.

    Halfway between two scores; infinite, so that nobody is positive, where even the highest has too many negatives.
    """
    false, _, scores = roc_curve(truth_N, scores_N)
    return _below(scores, int(np.flatnonzero(1 - false >= target - 1e-12)[-1]))


def threshold_at_sensitivity(truth_N: Floats, scores_N: Floats, target: float) -> float:
    """The highest threshold, so the most specific, from which on to say positive and have at least this sensitivity.

    Halfway between two scores.
    """
    _, true, scores = roc_curve(truth_N, scores_N)
    return _below(scores, int(np.flatnonzero(true >= target - 1e-12)[0]))


def _below(scores: Floats, place: int) -> float:
    """Halfway from a score to the next lower one, which decides validation as the score itself does.

    At the score itself the case that has it would be decided the other way where its probability comes out lower in
    the last digit, as on another machine. Below the lowest is 0, the least that a probability can be.
    """
    score = float(scores[place])
    lower = float(scores[place + 1]) if place + 1 < len(scores) else min(0.0, score)
    halfway = lower + (score - lower) / 2
    return halfway if halfway > lower else score
