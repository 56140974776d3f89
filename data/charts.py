"""Drawings for pages: lines over steps, points in a plane, and the legend that both need."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from data.page import EMPTY, Content, Html, figure, join, polyline, shape, svg, tag, text

NUM_STYLES, NUM_SHAPES, NUM_MARKS = 8, 4, 8
MAX_POINTS = 200
WIDTH, HEIGHT, LEFT, RIGHT, TOP, BOTTOM = 340, 180, 44, 10, 10, 22
MAP_WIDTH, MAP_HEIGHT = 480, 360


@dataclass(frozen=True)
class Line:
    """A named line through points (x, y), x ascending; where y is None it is broken."""

    name: str
    points: Sequence[tuple[float, float | None]]


def line_chart(title: str, lines: Sequence[Line], rule: tuple[float, str] | None = None, caption: str = "") -> Html:
    """Lines over one scale, thinned to what can be seen; `rule` is a value to compare with, and its name.

    Empty where no line has a point.
    """
    shown = [Line(line.name, _thinned_line(line.points)) for line in lines]
    shown = [line for line in shown if any(y is not None for _, y in line.points)]
    if not shown:
        return EMPTY
    xs = [x for line in shown for x, _ in line.points]
    ys = [y for line in shown for _, y in line.points if y is not None] + ([] if rule is None else [rule[0]])
    y_ticks, x_ticks = ticks(min(ys), max(ys), 4), ticks(min(xs), max(xs), 4, inside=True)
    low, high, first, last = min(*y_ticks, *ys), max(*y_ticks, *ys), min(xs), max(xs)

    def at(x: float, y: float) -> tuple[float, float]:
        across = (x - first) / (last - first) if last > first else 0.5
        up = (y - low) / (high - low)
        return LEFT + (WIDTH - LEFT - RIGHT) * across, HEIGHT - BOTTOM - (HEIGHT - TOP - BOTTOM) * up

    parts = []
    for value in y_ticks:
        _, y = at(first, value)
        parts.append(shape("line", {"x1": LEFT, "x2": WIDTH - RIGHT, "y1": y, "y2": y, "class": "rule"}))
        parts.append(shape("text", {"x": LEFT - 5, "y": y + 3.5, "text-anchor": "end"}, short(value)))
    for value in x_ticks:
        x, _ = at(value, low)
        parts.append(shape("text", {"x": x, "y": HEIGHT - 7, "text-anchor": "middle"}, short(value)))
    if rule is not None:
        parts.append(polyline([at(first, rule[0]), at(last, rule[0])], "chance"))
        _, y = at(first, rule[0])
        parts.append(shape("text", {"x": WIDTH - RIGHT, "y": y - 4, "text-anchor": "end"}, rule[1]))
    for number, line in enumerate(shown):
        parts += [_drawn([at(*point) for point in segment], number) for segment in _segments(line.points)]
    head = tag("b", title) + (tag("span", f" {caption}") if caption else EMPTY)
    names = legend([line.name for line in shown]) if len(shown) > 1 else EMPTY
    told = ", ".join(f"{line.name} ends at {short(_last(line))}" for line in shown)
    return tag("div", figure(svg(WIDTH, HEIGHT, join(parts), f"{title}: {told}"), head) + names, {"class": "chart"})


def scatter(title: str, points_N2: NDArray[np.floating], group_N: Sequence[int], names: Sequence[str]) -> Html:
    """Points in a plane without scale, each marked by its group; `names` tells the groups, at most NUM_MARKS."""
    assert len(names) <= NUM_MARKS
    low_2, high_2 = points_N2.min(axis=0), points_N2.max(axis=0)
    span_2 = np.where(high_2 > low_2, high_2 - low_2, 1.0)
    margin = 12
    placed_N2 = margin + (points_N2 - low_2) / span_2 * (np.array([MAP_WIDTH, MAP_HEIGHT]) - 2 * margin)
    parts = [shape("rect", {"x": 0, "y": 0, "width": MAP_WIDTH, "height": MAP_HEIGHT, "class": "frame"})]
    parts += [_mark(float(x), float(y), group) for (x, y), group in zip(placed_N2, group_N)]
    keys = []
    for group, name in enumerate(names):
        key = tag("svg", _mark(7, 5, group), {"viewBox": "0 0 14 10", "class": "key", "aria-hidden": "true"})
        keys.append(tag("span", key + text(name)))
    drawing = svg(MAP_WIDTH, MAP_HEIGHT, join(parts), f"{title}: {len(points_N2)} points in {len(names)} groups")
    return tag("div", drawing, {"class": "map"}) + tag("p", join(keys), {"class": "legend"})


def legend(titles: Sequence[Content]) -> Html:
    """Which line belongs to whom."""
    keys = []
    for number, title in enumerate(titles):
        line = shape("line", {"x1": 0, "x2": 28, "y1": 5, "y2": 5, "class": f"series-{number % NUM_STYLES}"})
        key = tag("svg", line, {"viewBox": "0 0 28 10", "class": "key", "aria-hidden": "true"})
        keys.append(tag("span", key + text(title)))
    return tag("p", join(keys), {"class": "legend"})


def thinned(x: NDArray[np.floating], y: NDArray[np.floating]) -> NDArray[np.floating]:
    """At most MAX_POINTS points (M, 2) of a curve, its ends among them."""
    return np.stack([x, y], axis=1)[_chosen(len(x))]


def ticks(low: float, high: float, number: int, inside: bool = False) -> list[float]:
    """About so many round values from below the low one to above the high one, or all between them."""
    if high <= low:
        spread = abs(low) / 2 or 1.0
        return [low] if inside else [low - spread, low, low + spread]
    raw = (high - low) / number
    power = 10.0 ** math.floor(math.log10(raw))
    step = next(factor * power for factor in (1, 2, 5, 10) if factor * power >= raw * 0.999)
    begin, end = (math.ceil(low / step), math.floor(high / step)) if inside else (
        math.floor(low / step), math.ceil(high / step))  # fmt: skip
    return [k * step for k in range(begin, end + 1)]


def short(value: float) -> str:
    """A number in few characters."""
    shown = f"{value:.3g}"
    if "e" not in shown:
        return shown
    if 1000 <= abs(value) < 1e6:
        return f"{value / 1000:.3g}k"
    mantissa, exponent = shown.split("e")
    return f"{mantissa}e{int(exponent)}"


def _chosen(number: int) -> NDArray[np.int64]:
    return np.unique(np.linspace(0, number - 1, min(number, MAX_POINTS)).round().astype(np.int64))


def _thinned_line(points: Sequence[tuple[float, float | None]]) -> list[tuple[float, float | None]]:
    return [points[place] for place in _chosen(len(points)).tolist()] if points else []


def _last(line: Line) -> float:
    return next(y for _, y in reversed(line.points) if y is not None)


def _segments(points: Sequence[tuple[float, float | None]]) -> list[list[tuple[float, float]]]:
    """The unbroken pieces of a line."""
    pieces: list[list[tuple[float, float]]] = [[]]
    for x, y in points:
        if y is None:
            pieces.append([])
        else:
            pieces[-1].append((x, y))
    return [piece for piece in pieces if piece]


def _drawn(segment: list[tuple[float, float]], number: int) -> Html:
    kind = f"series-{number % NUM_STYLES}"
    if len(segment) > 1:
        return polyline(segment, kind)
    (x, y), = segment  # fmt: skip
    return shape("circle", {"cx": x, "cy": y, "r": 2.5, "class": kind})


def _mark(x: float, y: float, group: int) -> Html:
    """Groups differ in shape and colour, the later ones are hollow."""
    kind = f"mark-{group % NUM_SHAPES}" + (" hollow" if group >= NUM_SHAPES else "")
    size = 3.2
    if group % NUM_SHAPES == 0:
        return shape("circle", {"cx": x, "cy": y, "r": size, "class": kind})
    corners = {
        1: [(-size, -size), (size, -size), (size, size), (-size, size)],
        2: [(0, -1.3 * size), (1.2 * size, size), (-1.2 * size, size)],
        3: [(0, -1.4 * size), (1.4 * size, 0), (0, 1.4 * size), (-1.4 * size, 0)],
    }[group % NUM_SHAPES]
    path = " ".join(f"{x + dx:.1f},{y + dy:.1f}" for dx, dy in corners)
    return shape("polygon", {"points": path, "class": kind})
