"""Forms of intervals: what a figure, its variance and its degrees of freedom make of each other."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from scipy.optimize import brentq
from scipy.special import nctdtrinc
from scipy.stats import chi2, norm
from scipy.stats import t as student

POWER = 0.8
FAR = 1e4
"""Quantile of Student's beyond which a figure's own scatter is nothing beside that of its standard error."""
LARGEST_EXPONENT = 300.0
"""Of e, for a factor that leaves room for any error of a number."""


@dataclass(frozen=True)
class Interval:
    """An interval, and in how many resamples the figure was undefined (they are left out)."""

    low: float
    high: float
    num_undefined: int


@dataclass(frozen=True)
class Difference:
    """Of a difference: interval, two-sided p, and the smallest that such a study finds four times in five."""

    interval: Interval
    p: float | None
    detectable: float


@dataclass(frozen=True)
class Spread:
    """A corrected variance, with its degrees of freedom (Welch, 1947, of a mean of several figures)."""

    variance: float
    degrees: float
    patients: int


def student_difference(difference: float, spread: Spread, confidence: float, num_undefined: int) -> Difference:
    """Interval, p and smallest detectable difference of a difference with this spread."""
    error = float(np.sqrt(spread.variance))
    reach = float(student.ppf((1 + confidence) / 2, spread.degrees))
    half = reach * error
    p = 1.0 if abs(difference) < 1e-12 else None
    if error > 0:
        p = float(2 * student.sf(abs(difference) / error, spread.degrees))
    smallest = _detectable(reach, spread.degrees) * error
    return Difference(Interval(difference - half, difference + half, num_undefined), p, smallest)


def _detectable(reach: float, degrees: float) -> float:
    """How many standard errors a difference must be to lie beyond `reach` estimated ones with probability POWER."""
    if reach > FAR:
        return reach * float(np.sqrt(chi2.ppf(POWER, degrees) / degrees))
    return float(nctdtrinc(degrees, 1 - POWER, reach))


def hanley_variance(auroc: float, num_positive: int, num_negative: int) -> float:
    """Variance of AUROC with one score each and exponential scores (Hanley & McNeil, 1982, equations 1 and 2)."""
    one_negative, one_positive = auroc / (2 - auroc), 2 * auroc**2 / (1 + auroc)
    pairs = (num_positive - 1) * (one_negative - auroc**2) + (num_negative - 1) * (one_positive - auroc**2)
    return (auroc * (1 - auroc) + pairs) / (num_positive * num_negative)


def at_bound(bounds: tuple[float, float], value: float) -> bool:
    """Whether a figure between two bounds is at one of them."""
    low, high = bounds
    return min(value - low, high - value) < 1e-9 * (high - low)


def within(
    bounds: tuple[float, float], value: float, half: float, spread: Spread, confidence: float
) -> tuple[float, float] | None:
    """Value ± half on the logit scale; at a bound, which resampling cannot leave, Wilson's.

    On the log scale where there is no largest value. None at the least one then, as of a mean error of 0, since nothing
    shows how large another would be; and where the high end is too large for a number, as of two patients at a
    confidence of nearly 1.
    """
    low, high = bounds
    if np.isinf(high):
        distance = value - low
        if distance <= 0 or half / distance > LARGEST_EXPONENT:
            return None
        factor = float(np.exp(half / distance))
        return low + distance / factor, low + distance * factor
    place = (value - low) / (high - low)
    if at_bound(bounds, value):
        z2 = float(norm.ppf((1 + confidence) / 2)) ** 2
        reach = z2 / (spread.patients + z2) * (high - low)
        return (low, low + reach) if place < 0.5 else (high - reach, high)
    centre, half = np.log(place / (1 - place)), half / (high - low) / (place * (1 - place))
    ends = low + (high - low) * 0.5 * (1 + np.tanh(0.5 * np.array([centre - half, centre + half])))
    return float(ends[0]), float(ends[1])


def scored(value: float, reach: float, formula: Callable[[float], float]) -> tuple[float, float]:
    """All values from which the figure is no further than the root of `reach` times the formula's variance there."""

    def outside(place: float) -> float:
        return (value - place) ** 2 - reach * formula(place)

    inside = 1e-9
    low = 0.0 if value < inside else _root(outside, 0.0, min(value, 1 - inside))
    high = 1.0 if value > 1 - inside else _root(outside, max(value, inside), 1.0)
    return low, high


def _root(function: Callable[[float], float], low: float, high: float) -> float:
    found: Any = brentq(function, low, high)
    return float(found)
