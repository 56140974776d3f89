"""Drawings of the report, each with the numbers it shows: curves, reliability, intervals, confusion.

Shapes: N cases, M points.
"""

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from data.charts import NUM_STYLES, short, thinned, ticks
from data.page import Html, join, polyline, shape, svg
from finetune.metrics import roc_curve
from finetune.report.words import Figure, shown

SIZE, LEFT, RIGHT, TOP, BOTTOM = 240, 38, 8, 10, 32
WIDE, LINE_HEIGHT, NAME_WIDTH, NUMBER_WIDTH = 640, 22, 190, 170
MAX_NAME = 34
Points = NDArray[np.floating]
Row = Sequence[str | int | float | None]


@dataclass(frozen=True)
class Drawing:
    """An SVG with the table of what it shows; `name` is that of its files, `series` say which line is whose."""

    name: str
    title: str
    content: Html
    header: tuple[str, ...]
    rows: list[Row]
    series: tuple[str, ...] = ()


def roc_drawing(label: str, truth_N: Points, scores: Mapping[str, Points]) -> Drawing | None:
    """ROC curves of one label, a line a model; None where it has no positives or no negatives."""
    curves = _curves(truth_N, scores)
    if curves is None:
        return None
    drawn = {name: thinned(false, true) for name, (false, true) in curves.items()}
    content = _square(drawn, (0, 1), (0, 1), "1 − specificity", "sensitivity", f"ROC curves of {label}", "diagonal")
    rows: list[Row] = [(name, float(x), float(y)) for name, points in drawn.items() for x, y in points]
    return Drawing(f"roc-{slug(label)}", f"ROC, {label}", content,
                   ("model", "1 - specificity", "sensitivity"), rows, tuple(scores))  # fmt: skip


def precision_recall_drawing(label: str, truth_N: Points, scores: Mapping[str, Points]) -> Drawing | None:
    """Precision over sensitivity of one label, a line a model; the dashed line is what guessing gives."""
    curves = _curves(truth_N, scores)
    if curves is None:
        return None
    positives, negatives = int((truth_N == 1).sum()), int((truth_N == 0).sum())
    drawn = {}
    for name, (false, true) in curves.items():
        right, wrong = true[1:] * positives, false[1:] * negatives
        drawn[name] = thinned(true[1:], right / (right + wrong))
    steps = {name: _stepped(points) for name, points in drawn.items()}
    prevalence = positives / (positives + negatives)
    label_text = f"Precision and sensitivity of {label}"
    content = _square(steps, (0, 1), (0, 1), "sensitivity", "precision", label_text, prevalence)
    rows: list[Row] = [(name, float(x), float(y)) for name, points in drawn.items() for x, y in points]
    return Drawing(f"pr-{slug(label)}", f"Precision and sensitivity, {label}", content,
                   ("model", "sensitivity", "precision"), rows, tuple(scores))  # fmt: skip


def reliability_drawing(label: str, bins: Sequence[dict[str, Any]]) -> Drawing | None:
    """What happened against what was said, a point a bin of equally many cases, with its interval."""
    if not bins:
        return None
    points = np.array([[row["mean_score"], row["share_positive"]] for row in bins], dtype=np.float64)
    highest = max([row.get("high") or row["share_positive"] for row in bins] + [row["mean_score"] for row in bins])
    top = next(step for step in (0.02, 0.05, 0.1, 0.2, 0.5, 1.0) if highest <= step or step == 1.0)
    at = _placer((0, top), (0, top))
    extra = []
    for row in bins:
        x, middle = at(row["mean_score"], row["share_positive"])
        low, high = (middle if row.get(end) is None else at(0, row[end])[1] for end in ("low", "high"))
        extra.append(shape("line", {"x1": x, "x2": x, "y1": low, "y2": high, "class": "series-0"}))
        extra.append(shape("path", {"d": f"M{x:.2f} {middle:.2f}h.001", "class": "series-0 dot"}))
    content = _square({label: points}, (0, top), (0, top), "probability said", "share that had it",
                      f"Reliability of {label}", "diagonal", join(extra))  # fmt: skip
    columns = ("cases", "mean_score", "share_positive", "low", "high")
    rows: list[Row] = [tuple(row.get(name) for name in columns) for row in bins]
    return Drawing(f"calibration-{slug(label)}", f"Reliability, {label}", content, columns, rows)


def curve_drawing(
    name: str, title: str, curves: dict[str, list[dict[str, Any]]], across: str, up: str
) -> Drawing | None:
    """Curves with bands over a logarithmic scale: each point has `x`, `value`, and `low` and `high` or None."""
    points = [point for curve in curves.values() for point in curve if point["value"] is not None]
    xs = sorted({float(point["x"] or 0) for point in points if point["x"]})
    if not xs:
        return None
    ends = [float(v) for point in points for v in (point["value"], point["low"], point["high"]) if v is not None]
    steps = ticks(min(ends), max(ends), 4)
    span = (np.log10(xs[0]) - 0.05, np.log10(xs[-1]) + 0.05)
    at = _placer(span, (steps[0], steps[-1]))
    extra, drawn = [], {}
    for number, (title_of_curve, curve) in enumerate(curves.items()):
        known = [p for p in curve if p["value"] is not None and p["x"]]
        drawn[title_of_curve] = np.array([[np.log10(p["x"]), p["value"]] for p in known], dtype=float).reshape(-1, 2)
        banded = [p for p in known if p["low"] is not None and p["high"] is not None]
        if banded:
            there = [at(float(np.log10(p["x"])), p["high"]) for p in banded]
            back = [at(float(np.log10(p["x"])), p["low"]) for p in reversed(banded)]
            outline = " ".join(f"{x:.2f},{y:.2f}" for x, y in [*there, *back])
            extra.append(shape("polygon", {"points": outline, "class": f"band-{number % NUM_STYLES}"}))
    marks = [(float(np.log10(x)), short(x)) for x in xs]
    content = _square(drawn, span, (steps[0], steps[-1]), across, up, title, None, join(extra), marks, steps)
    header = ("model", across, up, "low", "high")
    rows: list[Row] = [(n, p["x"], p["value"], p["low"], p["high"]) for n, c in curves.items() for p in c]
    return Drawing(name, title, content, header, rows, tuple(curves))


def forest_drawing(name: str, title: str, rows: Sequence[tuple[str, Figure]]) -> Drawing | None:
    """Figures with their intervals below each other, for print; None where none is defined.

    The numbers beside it have DeLong's intervals too, where there are any.
    """
    ends = [v for _, f in rows for v in (f["value"], f.get("low"), f.get("high")) if v is not None]
    if not ends:
        return None
    steps = ticks(min(ends), max(ends), 4)
    low, high = steps[0], steps[-1]
    first, last = NAME_WIDTH, WIDE - NUMBER_WIDTH

    def place(value: float) -> float:
        return first + (last - first) * (value - low) / (high - low)

    parts = []
    for number, (row_name, figure) in enumerate(rows):
        y = LINE_HEIGHT * (number + 0.5)
        parts.append(shape("text", {"x": 0, "y": y + 4}, _cut(row_name)))
        if figure.get("low") is not None:
            line = {"x1": place(figure["low"]), "x2": place(figure["high"]), "y1": y, "y2": y, "class": "series-0"}
            parts.append(shape("line", line))
        if figure["value"] is not None:
            parts.append(shape("path", {"d": f"M{place(figure['value']):.2f} {y:.2f}h.001", "class": "series-0 dot"}))
        parts.append(shape("text", {"x": WIDE, "y": y + 4, "text-anchor": "end"}, shown(figure)))
    bottom = LINE_HEIGHT * len(rows)
    for step in steps:
        across = {"x1": place(step), "x2": place(step), "y1": 0, "y2": bottom, "class": "rule"}
        parts.insert(0, shape("line", across))
        parts.append(shape("text", {"x": place(step), "y": bottom + 14, "text-anchor": "middle"}, short(step)))
    numbers: list[Row] = [(n, f["value"], f.get("low"), f.get("high")) for n, f in rows]
    header = ("", "value", "low", "high")
    delong = [f.get("delong") or {} for _, f in rows]
    if any(delong):
        header += ("low, DeLong", "high, DeLong")
        numbers = [(*row, found.get("low"), found.get("high")) for row, found in zip(numbers, delong)]
    return Drawing(name, title, svg(WIDE, bottom + 20, join(parts), title), header, numbers)


def confusion_drawing(confusion: dict[str, Any]) -> Drawing:
    """The confusion matrix for print: shares of each true class, and cases."""
    names = confusion["classes"]
    cell, left, top = 64, 120, 40
    parts = []
    for column, name in enumerate(names):
        where = {"x": left + cell * (column + 0.5), "y": top - 8, "text-anchor": "middle"}
        parts.append(shape("text", where, _cut(name, 10)))
    for row, name in enumerate(names):
        y = top + cell * row
        parts.append(shape("text", {"x": left - 8, "y": y + cell / 2 + 4, "text-anchor": "end"}, _cut(name, 18)))
        for column, (count, share) in enumerate(zip(confusion["cases"][row], confusion["shares"][row])):
            x, part = left + cell * column, share["value"] or 0.0
            box = {"x": x, "y": y, "width": cell - 2, "height": cell - 2, "class": "cell", "fill-opacity": 0.85 * part}
            parts.append(shape("rect", box))
            ink = {"class": "on-dark"} if part > 0.6 else {}
            middle = {"x": x + cell / 2 - 1, "text-anchor": "middle", **ink}
            told = "–" if share["value"] is None else f"{100 * part:.0f} %"
            parts.append(shape("text", {**middle, "y": y + cell / 2 - 1}, told))
            parts.append(shape("text", {**middle, "y": y + cell / 2 + 13}, str(count)))
    rows: list[Row] = [
        (
            truth,
            decided,
            confusion["cases"][i][j],
            *(confusion["shares"][i][j].get(k) for k in ("value", "low", "high")),
        )
        for i, truth in enumerate(names)
        for j, decided in enumerate(names)
    ]
    side = left + cell * len(names), top + cell * len(names)
    title = "Confusion: truth in rows, decision in columns"
    header = ("truth", "decision", "cases", "share of the truth", "low", "high")
    return Drawing("confusion", title, svg(*side, join(parts), title), header, rows)


def slug(name: str) -> str:
    """A name as part of a file's name: where that leaves something out, with digits that tell it from others."""
    plain = name.lower().replace(" ", "-").replace("_", "-")
    kept = "".join(c if c.isascii() and c.isalnum() else "-" for c in plain)
    short = "-".join(part for part in kept.split("-") if part)[:60]
    return short if short == plain else f"{short or 'label'}-{hashlib.sha256(name.encode()).hexdigest()[:8]}"


def _curves(truth_N: Points, scores: Mapping[str, Points]) -> dict[str, tuple[Points, Points]] | None:
    if not (truth_N == 1).any() or not (truth_N == 0).any():
        return None
    return {name: roc_curve(truth_N, scores_N)[:2] for name, scores_N in scores.items()}


def _stepped(points_M2: Points) -> Points:
    """Precision holds back to the sensitivity before, as average precision counts it (Davis & Goadrich, 2006)."""
    before_M = np.concatenate([[0.0], points_M2[:-1, 0]])
    corners = np.stack([np.stack([before_M, points_M2[:, 1]], axis=1), points_M2], axis=1)
    return corners.reshape(-1, 2)


def _placer(xs: tuple[float, float], ys: tuple[float, float]) -> Any:
    def at(x: float, y: float) -> tuple[float, float]:
        across, up = (x - xs[0]) / (xs[1] - xs[0]), (y - ys[0]) / (ys[1] - ys[0])
        return LEFT + (SIZE - LEFT - RIGHT) * across, SIZE - BOTTOM - (SIZE - TOP - BOTTOM) * up

    return at


def _square(
    lines: dict[str, Points],
    xs: tuple[float, float],
    ys: tuple[float, float],
    across: str,
    up: str,
    told: str,
    chance: float | str | None,
    extra: Html | None = None,
    x_marks: Sequence[tuple[float, str]] = (),
    y_steps: Sequence[float] = (),
) -> Html:
    """Lines in a square with its axes; `chance` is the height of a dashed line, or `diagonal`."""
    at = _placer(xs, ys)
    left, top = at(xs[0], ys[1])
    right, bottom = at(xs[1], ys[0])
    parts = [shape("rect", {"x": left, "y": top, "width": right - left, "height": bottom - top, "class": "frame"})]
    if chance is not None:
        begin, end = (ys[0], ys[1]) if chance == "diagonal" else (float(chance), float(chance))
        parts.append(polyline([at(xs[0], begin), at(xs[1], end)], "chance"))
    parts += [extra] if extra else []
    for number, points in enumerate(lines.values()):
        placed = [at(float(x), float(y)) for x, y in points]
        parts.append(polyline(placed, f"series-{number % NUM_STYLES}"))
    for x, name in x_marks or [(xs[0] + share * (xs[1] - xs[0]), short(xs[0] + share * (xs[1] - xs[0])))
                               for share in (0, 0.5, 1)]:  # fmt: skip
        parts.append(shape("text", {"x": at(x, ys[0])[0], "y": bottom + 13, "text-anchor": "middle"}, name))
    for y in y_steps or [ys[0] + share * (ys[1] - ys[0]) for share in (0, 0.5, 1)]:
        parts.append(shape("text", {"x": left - 4, "y": at(xs[0], y)[1] + 3.5, "text-anchor": "end"}, short(y)))
    parts.append(shape("text", {"x": (left + right) / 2, "y": SIZE - 5, "text-anchor": "middle"}, across))
    middle = (top + bottom) / 2
    turned = {"x": 9, "y": middle, "text-anchor": "middle", "transform": f"rotate(-90 9 {middle:.0f})"}
    parts.append(shape("text", turned, up))
    return svg(SIZE, SIZE, join(parts), told)


def _cut(name: str, most: int = MAX_NAME) -> str:
    return name if len(name) <= most else name[: most - 1] + "…"
