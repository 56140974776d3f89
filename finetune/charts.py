"""Drawings of the report: intervals beside each other, ROC curves, the confusion matrix."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from data.charts import NUM_STYLES, thinned
from data.page import Html, figure, join, polyline, shape, svg, tag, text
from finetune.metrics import ScoredCases, roc_curve

ROC_SIZE, MARGIN = 220, 26


def shown(number: dict[str, Any], signed: bool = False, digits: int = 3) -> str:
    """`0.861 (0.845 to 0.876)`, or `undefined`."""
    if number["value"] is None:
        return "undefined"
    sign = "+" if signed else ""
    inside = "no interval" if number["low"] is None else (
        f"{number['low']:{sign}.{digits}f} to {number['high']:{sign}.{digits}f}"
    )  # fmt: skip
    return f"{number['value']:{sign}.{digits}f} ({inside})"


def forest(rows: Sequence[tuple[str, dict[str, Any], int]], label: str, rule: float | None = None) -> Html:
    """Figures with their intervals on one scale: (name, figure, style) each; `rule` is a line to compare with.

    A row without value says `undefined`. The scale spans what is shown.
    """
    ends = [v for _, number, _ in rows for v in (number["low"], number["high"], number["value"]) if v is not None]
    ends += [] if rule is None else [rule]
    low, high = (min(ends), max(ends)) if ends else (0.0, 1.0)
    low, high = np.floor(low * 20 - 0.2) / 20, np.ceil(high * 20 + 0.2) / 20

    def place(value: float) -> float:
        return 100 * (value - low) / (high - low)

    body = []
    for name, number, style in rows:
        parts = []
        if rule is not None:
            parts.append(shape("line", {"x1": place(rule), "x2": place(rule), "y1": 0, "y2": 10, "class": "rule"}))
        if number["low"] is not None:
            ends_px = {"x1": place(number["low"]), "x2": place(number["high"]), "y1": 5, "y2": 5}
            parts.append(shape("line", {**ends_px, "class": f"series-{style % NUM_STYLES}"}))
        if number["value"] is not None:
            dot = f"M{place(number['value']):.2f} 5h.001"
            parts.append(shape("path", {"d": dot, "class": f"series-{style % NUM_STYLES} dot"}))
        cells = [
            tag("th", name, {"scope": "row"}),
            tag("td", _stretched(join(parts)), {"class": "bar"}),
            tag("td", shown(number)),
        ]
        body.append(tag("tr", join(cells)))
    ticks = tag("span", f"{low:.2f}") + tag("span", f"{(low + high) / 2:.3g}") + tag("span", f"{high:.2f}")
    scale = tag("div", ticks, {"style": "display:flex;justify-content:space-between;font-size:.72rem"})
    body.append(tag("tr", tag("td") + tag("td", scale, {"class": "bar"}) + tag("td")))
    return tag("table", tag("tbody", join(body)), {"class": "forest", "aria-label": label})


def roc_plot(label: str, models: Sequence[ScoredCases], caption: str) -> Html:
    """ROC curves of one label, one line a model; says so where they are undefined."""
    side = ROC_SIZE - 2 * MARGIN

    def at(x: float, y: float) -> tuple[float, float]:
        return MARGIN + side * x, MARGIN / 2 + side * (1 - y)

    left, top = at(0, 1)
    parts = [shape("rect", {"x": left, "y": top, "width": side, "height": side, "class": "frame"})]
    parts.append(polyline([at(0, 0), at(1, 1)], "chance"))
    for number, cases in enumerate(models):
        k = cases.label_names.index(label)
        truth = cases.truth_NK[:, k]
        if not (truth == 1).any() or not (truth == 0).any():
            return figure(tag("p", "ROC curve undefined: one class only."), caption)
        false, true, _ = roc_curve(truth, cases.scores_NK[:, k])
        points = [at(float(x), float(y)) for x, y in thinned(false, true)]
        parts.append(polyline(points, f"series-{number % NUM_STYLES}"))
    for value in (0, 0.5, 1):
        x, y = at(value, 0)
        parts.append(shape("text", {"x": x, "y": y + 12, "text-anchor": "middle"}, f"{value:g}"))
        x, y = at(0, value)
        parts.append(shape("text", {"x": x - 4, "y": y + 3, "text-anchor": "end"}, f"{value:g}"))
    x, y = at(0.5, 0)
    parts.append(shape("text", {"x": x, "y": y + 25, "text-anchor": "middle"}, "1 − specificity"))
    turned = f"rotate(-90 8 {MARGIN / 2 + side / 2:.0f})"
    middle = {"x": 8, "y": MARGIN / 2 + side / 2, "text-anchor": "middle", "transform": turned}
    parts.append(shape("text", middle, "sensitivity"))
    return figure(svg(ROC_SIZE, ROC_SIZE, join(parts), f"ROC curves of {label}"), caption)


def confusion_table(confusion: dict[str, Any]) -> Html:
    """Shares of each true class, the number of cases below; darker is more."""
    names = confusion["classes"]
    head = [tag("th", "truth ↓ decision →"), *(tag("th", name, {"scope": "col"}) for name in names)]
    body = []
    for name, counts, shares in zip(names, confusion["cases"], confusion["shares"]):
        cells = [tag("th", name, {"scope": "row"})]
        for count, number in zip(counts, shares):
            share = number["value"]
            content = text("–" if share is None else f"{100 * share:.0f} %") + tag("span", str(count))
            colour = f"background:rgb(var(--accent-rgb)/{0.85 * (share or 0):.2f})"
            colour += ";color:#fff" if (share or 0) > 0.65 else ""
            hint = "" if share is None else shown(number, digits=2)
            cells.append(tag("td", content, {"style": colour, "title": hint}))
        body.append(tag("tr", join(cells)))
    whole = tag("thead", tag("tr", join(head))) + tag("tbody", join(body))
    return tag("div", tag("table", whole, {"class": "confusion"}), {"class": "scroll", "tabindex": 0})


def _stretched(content: Html) -> Html:
    """Units of one per cent of the box's width; lines keep their thickness."""
    attributes = {"viewBox": "0 0 100 10", "preserveAspectRatio": "none", "aria-hidden": "true"}
    return tag("svg", content, attributes)
