"""DeLong's variance of AUROC, for patients with one score each, in the time of a sort.

DeLong, DeLong & Clarke-Pearson (1988, Biometrics 44:837) with the mid-ranks of Sun & Xu (2014, IEEE Signal
Processing Letters 21:1389). Where patients have several cases its intervals are far too narrow: the bootstrap over
patients is for those.
Shapes: N patients, M models, p positives, n negatives.
"""

from dataclasses import dataclass

import numpy as np
from scipy.stats import norm, rankdata

from finetune.bootstrap import Floats

ROUNDING = 1e-14
"""A variance of a difference that is a smaller share of the two variances is the rounding of 0."""
NO_VARIANCE = 1e-28
"""One AUROC's variance below this is the rounding of 0: one pair of a million by a million patients has more."""


@dataclass(frozen=True)
class Delong:
    """AUROC of each model, (M,), and their covariance, (M, M)."""

    auroc_M: Floats
    covariance_MM: Floats

    def interval(self, model: int, confidence: float) -> tuple[float, float] | None:
        """The normal interval of one model, cut off at 0 and 1; None without variance, as of an AUROC of 1.

        However few the patients, it would have no width there.
        """
        variance = float(self.covariance_MM[model, model])
        if variance < NO_VARIANCE:
            return None
        half = norm.ppf((1 + confidence) / 2) * np.sqrt(variance)
        return max(0.0, float(self.auroc_M[model] - half)), min(1.0, float(self.auroc_M[model] + half))

    def p_of_difference(self, one: int, other: int) -> float | None:
        """Two-sided p of equal AUROC: 1 where the two are the same, None where they differ without any variance."""
        difference = abs(float(self.auroc_M[one] - self.auroc_M[other]))
        if difference < 1e-12:
            return 1.0
        c = self.covariance_MM
        variance = float(c[one, one] + c[other, other] - 2 * c[one, other])
        if variance <= ROUNDING * float(c[one, one] + c[other, other]):
            return None
        return float(2 * norm.sf(difference / np.sqrt(variance)))


def delong(truth_N: Floats, scores_MN: Floats) -> Delong | None:
    """AUROC and covariance of some models on the same patients; NaN truth does not count.

    None with fewer than two positives or two negatives, which have no variance.
    """
    positive, negative = np.flatnonzero(truth_N == 1), np.flatnonzero(truth_N == 0)
    num_p, num_n = len(positive), len(negative)
    if num_p < 2 or num_n < 2:
        return None
    scores_Mp, scores_Mn = scores_MN[:, positive], scores_MN[:, negative]
    # A mid-rank among all less that among one's own counts the other side below, ties half.
    among_all = rankdata(np.concatenate([scores_Mp, scores_Mn], axis=1), axis=1)
    won_Mp = (among_all[:, :num_p] - rankdata(scores_Mp, axis=1)) / num_n
    lost_Mn = 1 - (among_all[:, num_p:] - rankdata(scores_Mn, axis=1)) / num_p
    covariance = np.atleast_2d(np.cov(won_Mp)) / num_p + np.atleast_2d(np.cov(lost_Mn)) / num_n
    return Delong(won_Mp.mean(axis=1), covariance)
