"""Tables that are half drawings: intervals beside each other, and the confusion matrix."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from data.charts import NUM_STYLES
from data.page import Html, join, shape, tag, text
from finetune.report.words import Figure, shown


def forest(rows: Sequence[tuple[str, Figure, int]], label: str, rule: float | None = None) -> Html:
    """Figures with their intervals on one scale: (name, figure, style) each; `rule` is a line to compare with.

    A row without value says `undefined`. The scale spans what is shown.
    """
    ends = [v for _, number, _ in rows for v in (number.get("low"), number.get("high"), number["value"])]
    known = [v for v in [*ends, rule] if v is not None]
    low, high = (min(known), max(known)) if known else (0.0, 1.0)
    shares = low >= 0 and high <= 1
    low, high = np.floor(low * 20 - 0.2) / 20, np.ceil(high * 20 + 0.2) / 20
    low, high = (max(low, 0.0), min(high, 1.0)) if shares else (low, high)

    def place(value: float) -> float:
        return 100 * (value - low) / (high - low)

    body = []
    for name, number, row_style in rows:
        kind, parts = f"series-{row_style % NUM_STYLES}", []
        if rule is not None:
            parts.append(shape("line", {"x1": place(rule), "x2": place(rule), "y1": 0, "y2": 10, "class": "rule"}))
        if number.get("low") is not None:
            ends_px = {"x1": place(number["low"]), "x2": place(number["high"]), "y1": 5, "y2": 5}
            parts.append(shape("line", {**ends_px, "class": kind}))
        if number["value"] is not None:
            parts.append(shape("path", {"d": f"M{place(number['value']):.2f} 5h.001", "class": f"{kind} dot"}))
        cells = [
            tag("th", name, {"scope": "row"}),
            tag("td", _stretched(join(parts)), {"class": "bar"}),
            tag("td", _in_two(shown(number))),
        ]
        body.append(tag("tr", join(cells)))
    ticks = tag("span", f"{low:.2f}") + tag("span", f"{(low + high) / 2:.3g}") + tag("span", f"{high:.2f}")
    scale = tag("div", ticks, {"class": "scale"})
    body.append(tag("tr", tag("td") + tag("td", scale, {"class": "bar"}) + tag("td")))
    return tag("table", tag("tbody", join(body)), {"class": "forest", "aria-label": label})


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
    box = {"class": "scroll", "tabindex": 0, "role": "region", "aria-label": "confusion matrix"}
    return tag("div", tag("table", whole, {"class": "confusion"}), box)


def _in_two(number: str) -> Html:
    """A figure and its interval, which stay whole where a line is too short for both."""
    value, _, interval = number.partition(" ")
    return text(f"{value} ") + tag("span", interval)


def _stretched(content: Html) -> Html:
    """Units of one per cent of the box's width; lines keep their thickness."""
    attributes = {"viewBox": "0 0 100 10", "preserveAspectRatio": "none", "aria-hidden": "true"}
    return tag("svg", content, attributes)
