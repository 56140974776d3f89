"""The figure of REMEDIS: with which share of the labels an encoder is as good as the baseline with all of them."""

import math
from collections.abc import Sequence
from itertools import pairwise
from typing import Any


def matching_fraction(fractions: Sequence[float], values: Sequence[float], target: float) -> float | None:
    """The smallest share from which on a curve stays at or above a value; None where it ends below.

    Between two shares the curve is a line over the logarithm of the share. A curve that is above already at the
    smallest share gives that share: it may need fewer labels still.
    """
    points = list(zip(fractions, values))
    if points[-1][1] < target:
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
        fractions = [point["fraction"] for point in points]
        most = max(len(point["draws"]) for point in points)
        by_draw = [
            matching_fraction(fractions, [p["draws"][min(draw, len(p["draws"]) - 1)]["test"] for p in points], target)
            for draw in range(most)
        ]
        fraction = matching_fraction(fractions, [point["mean"] for point in points], target)
        saved[name] = {
            "target": target,
            "fraction": fraction,
            "at_smallest": fraction == fractions[0],
            "by_draw": by_draw,
        }
    return saved


def told(saved: dict[str, Any]) -> str:
    """`12 % of the labels (draws: 8 % to not reached)`."""

    def percent(fraction: float | None) -> str:
        return "not reached" if fraction is None else f"{100 * fraction:.2g} %" if fraction < 1 else "100 %"

    if saved["fraction"] is None:
        return "not reached"
    reached = f"{'at most ' if saved['at_smallest'] else ''}{percent(saved['fraction'])} of the labels"
    ordered = sorted(saved["by_draw"], key=lambda fraction: math.inf if fraction is None else fraction)
    if len(ordered) > 1 and ordered[0] != ordered[-1]:
        reached += f" (draws: {percent(ordered[0])} to {percent(ordered[-1])})"
    return reached


def summary(results: dict[str, Any]) -> str:
    """The table for a terminal, and a line an encoder on the labels that it saves."""
    curves = results["curves"]
    cells = [["labels", "patients", *curves]]
    for place, row in enumerate(results["training"]):
        patients = sorted(counts["patients"] for counts in row["draws"])
        shown = [f"{100 * row['fraction']:g} %", str(patients[len(patients) // 2])]
        for curve in curves.values():
            point = curve["points"][place]
            shown.append(f"{point['mean']:.3f} ({point['low']:.3f} to {point['high']:.3f})")
        cells.append(shown)
    widths = [max(len(row[place]) for row in cells) for place in range(len(cells[0]))]
    lines = ["  ".join(cell.ljust(width) for cell, width in zip(row, widths)).rstrip() for row in cells]
    lines.append(f"{results['figure']} on test: mean of the draws (lowest to highest)")
    baseline = results["baseline"]
    for name, saved in results["labels_saved"].items():
        lines.append(f"{name} reaches {baseline}'s {saved['target']:.3f} with all labels at: {told(saved)}")
    return "\n".join(lines)
