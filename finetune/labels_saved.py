"""The figure of REMEDIS: with which share of the labels an encoder reaches what the baseline does with all."""

import math
from collections.abc import Mapping, Sequence
from itertools import pairwise
from statistics import fmean
from typing import Any


def learned_from(counts: Mapping[tuple[float, int], dict[str, Any]]) -> list[dict[str, Any]]:
    """What the draws of each fraction learned from, with its share of the patients of fraction 1, and their mean share.

    `counts` are by fraction, ascending, and draw.
    """
    whole, rows = counts[1.0, 0]["patients"], []
    for fraction in dict.fromkeys(fraction for fraction, _ in counts):
        draws = [{**its, "share": its["patients"] / whole} for key, its in counts.items() if key[0] == fraction]
        rows.append({"fraction": fraction, "share": fmean(draw["share"] for draw in draws), "draws": draws})
    return rows


def share_of(point: dict[str, Any]) -> float:
    """The share of the labelled patients that a point of a curve really learned from, on average over its draws.

    At least one patient of each class is drawn, so that a small fraction of few patients is a larger share than asked
    for. Results of earlier versions know what was asked for alone.
    """
    return float(point.get("share", point["fraction"]))


def percent(share: float, digits: int = 3) -> str:
    """`1.05 %`, to so many significant digits."""
    return f"{float(f'{100 * share:.{digits}g}'):g} %"


def in_words(point: dict[str, Any]) -> str:
    """`1.05 % (asked for: 0.1 %)`: the share, and what was asked for where it is another."""
    asked = f" (asked for: {percent(point['fraction'])})" if _is_another(point) else ""
    return percent(share_of(point)) + asked


def why_not_as_asked(points: Sequence[dict[str, Any]], units: str) -> str:
    """A sentence on shares of patients, or what stands for them, that are not those asked for; empty where all are."""
    if not any(_is_another(point) for point in points):
        return ""
    return f"Whole {units} are drawn, at least one of each class, so that some shares are not those asked for."


def _is_another(point: dict[str, Any]) -> bool:
    """Whether a share is not that asked for, by more than a twentieth: many patients differ by less, in rounding."""
    return abs(share_of(point) / point["fraction"] - 1) > 0.05


def matching_fraction(fractions: Sequence[float], values: Sequence[float], target: float) -> float | None:
    """The smallest share from which on a curve stays at or above a value; None where it ends below.

    Between two shares the curve is a line over the logarithm of the share. A curve that is above already at the
    smallest share gives that share: it may need fewer labels still.
    """
    points = list(zip(fractions, values))
    if not points[-1][1] >= target:  # a figure that is undefined reaches nothing
        return None
    found = points[-1][0]
    for (share, value), (higher_share, higher) in reversed(list(pairwise(points))):
        if value < target:
            part = (target - value) / (higher - value)
            return math.exp(math.log(share) + part * (math.log(higher_share) - math.log(share)))
        found = share
    return found


def labels_saved(curves: dict[str, Any], baseline: str) -> dict[str, Any]:
    """For each encoder but the baseline: the matching share of the mean curve, and of the curve of each draw."""
    target = curves[baseline]["points"][-1]["mean"]
    saved = {}
    for name, curve in curves.items():
        if name == baseline:
            continue
        points = curve["points"]
        shares = [share_of(point) for point in points]
        most = max(len(point["draws"]) for point in points)
        by_draw = []
        for number in range(most):
            draws = [point["draws"][min(number, len(point["draws"]) - 1)] for point in points]
            its_shares = [draw.get("share", share) for draw, share in zip(draws, shares)]
            by_draw.append(matching_fraction(its_shares, [draw["test"] for draw in draws], target))
        fraction = matching_fraction(shares, [point["mean"] for point in points], target)
        saved[name] = {
            "target": target,
            "fraction": fraction,
            "at_smallest": fraction == shares[0],
            "by_draw": by_draw,
        }
    return saved


def told(saved: dict[str, Any]) -> str:
    """`12 % of the labels (draws: 8 % to not reached)`."""

    def in_percent(fraction: float | None) -> str:
        return "not reached" if fraction is None else percent(fraction, 2)

    if saved["fraction"] is None:
        return "not reached"
    reached = f"{'at most ' if saved['at_smallest'] else ''}{in_percent(saved['fraction'])} of the labels"
    ordered = sorted(saved["by_draw"], key=lambda fraction: math.inf if fraction is None else fraction)
    if len(ordered) > 1 and ordered[0] != ordered[-1]:
        reached += f" (draws: {in_percent(ordered[0])} to {in_percent(ordered[-1])})"
    return reached


def untested(units: str) -> str:
    """What stands beside labels saved; `units` are patients, or what stands for them."""
    return f"The figures alone: whether the two differ on other {units} was not tested."


def sentence(name: str, baseline: str, figure: str, saved: dict[str, Any]) -> str:
    """What an encoder saves, without a word on whether that is chance."""
    theirs = f"the figure of {baseline} with all labels ({figure} {saved['target']:.3f})"
    if saved["fraction"] is None:
        return f"{name} does not reach {theirs}."
    return f"{name} reaches {theirs} at {told(saved)}."


def summary(results: dict[str, Any]) -> str:
    """The table for a terminal, and a line an encoder on the labels that it saves."""
    curves = results["curves"]
    units = f"{results['dataset'].get('patient_unit', 'patient')}s"
    cells = [["labels", units, *curves]]
    for place, row in enumerate(results["training"]):
        patients = sorted(counts["patients"] for counts in row["draws"])
        shown = [in_words(row), str(patients[len(patients) // 2])]
        for curve in curves.values():
            point = curve["points"][place]
            shown.append(f"{point['mean']:.3f} ({point['low']:.3f} to {point['high']:.3f})")
        cells.append(shown)
    widths = [max(len(row[place]) for row in cells) for place in range(len(cells[0]))]
    lines = ["  ".join(cell.ljust(width) for cell, width in zip(row, widths)).rstrip() for row in cells]
    lines.append(f"{results['figure']} on test: mean of the draws (lowest to highest)")
    lines += filter(None, [why_not_as_asked(results["training"], units)])
    baseline = results["baseline"]
    for name, saved in results["labels_saved"].items():
        lines.append(sentence(name, baseline, results["figure"], saved))
    lines += [untested(units)] if results["labels_saved"] else []
    return "\n".join(lines)
