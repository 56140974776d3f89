"""What a dataset has how much of, as tables and bars: labels, cases, patients, attributes, sizes."""

import numpy as np

from data.look.overview import (
    NEGATIVE,
    NOT_STATED,
    POSITIVE,
    UNCERTAIN,
    UNLABELLED,
    Coded,
    Overview,
    crossed,
    shortened,
)
from data.page import (
    Bar,
    Content,
    Html,
    bars,
    figure,
    folded,
    grid,
    join,
    pairs,
    paragraph,
    shape,
    svg,
    tag,
    text,
)

MAX_VALUES, MAX_OPEN_ATTRIBUTES, MAX_ATTRIBUTES, MAX_LABEL_ROWS = 10, 8, 60, 200
MAX_SIZES, PLOT_PX, PLOT_MARGIN = 400, 240, 34
BINS = ((1, 1), (2, 2), (3, 3), (4, 4), (5, 5), (6, 9), (10, 19), (20, 49), (50, 99), (100, 0))


def labels_section(overview: Overview) -> Html:
    """Cases by label and split; the bar is the share of all cases."""
    names, state = overview.dataset.label_names, overview.state_CK
    if not names:
        return paragraph("The dataset has no labels.")
    exclusive = overview.dataset.task == "multiclass"
    rows = []
    for k, name in enumerate(names[:MAX_LABEL_ROWS]):
        positive = state[:, k] == POSITIVE
        more = [f"{number:,}" for number in overview.by_split(positive)]
        if not exclusive:
            more += [f"{(state[:, k] == kind).sum():,}" for kind in (NEGATIVE, UNCERTAIN, UNLABELLED)]
        rows.append(Bar(shortened(name), int(positive.sum()), tuple(more)))
    if exclusive:
        for title, kind in (("uncertain", UNCERTAIN), ("not labelled", UNLABELLED)):
            rest = _without_class(state, kind)
            if rest.any() or kind == UNLABELLED:
                counts = tuple(f"{number:,}" for number in overview.by_split(rest))
                rows.append(Bar(tag("i", title), int(rest.sum()), counts))
    caption = "Cases by label and split" if exclusive else "Cases that are positive, by label and split"
    header = ["label", "cases" if exclusive else "positive", *overview.splits]
    parts = [bars(header if exclusive else [*header, "negative", "uncertain", "not labelled"], rows, caption)]
    if len(names) > MAX_LABEL_ROWS:
        parts.append(paragraph(f"and {len(names) - MAX_LABEL_ROWS:,} labels more"))
    if exclusive and overview.num_soft:
        parts.append(paragraph(f"{overview.num_soft:,} cases have soft labels; each counts for its likeliest class."))
    return join(parts)


def _without_class(state: np.ndarray, kind: int) -> np.ndarray:
    """Cases `(C,)` of no class: those with a doubtful one, or those where nothing is said."""
    no_class = ~(state == POSITIVE).any(axis=1)
    doubtful = no_class & (state == UNCERTAIN).any(axis=1)
    return doubtful if kind == UNCERTAIN else no_class & ~doubtful


def cases_section(overview: Overview) -> Html:
    """Images per case and cases per patient."""
    cases_P = np.bincount(overview.patient_C)
    return grid([_histogram(overview.images_C, "images", "case"), _histogram(cases_P, "cases", "patient")], wide=True)


def _histogram(counts: np.ndarray, what: str, whose: str) -> Html:
    rows = []
    for low, high in BINS:
        number = int(((counts >= low) & ((counts <= high) | (high == 0))).sum())
        name = str(low) if low == high else f"{low} to {high}" if high else f"{low} or more"
        rows.append(Bar(name, number))
    while len(rows) > 1 and not rows[-1].number:
        rows.pop()
    return bars([what, f"{whose}s"], rows, f"{what.capitalize()} per {whose} (most: {counts.max():,})")


def attributes_section(overview: Overview) -> Html:
    """For each attribute its commonest values, with their share in each split."""
    if not overview.attributes:
        return paragraph("The dataset has no attributes.")
    tables = [_attribute(overview, name, values) for name, values in overview.attributes.items()]
    about = paragraph("Images by value, and the share of each split's images that has it.")
    parts = [about, grid(tables[:MAX_OPEN_ATTRIBUTES], wide=True)]
    if len(tables) > MAX_OPEN_ATTRIBUTES:
        rest = grid(tables[MAX_OPEN_ATTRIBUTES:MAX_ATTRIBUTES], wide=True)
        parts.append(folded(f"{len(tables) - MAX_OPEN_ATTRIBUTES} more", rest))
    return join(parts)


def _attribute(overview: Overview, name: str, values: Coded) -> Html:
    counts = crossed(values.codes, len(values.names), overview.split_N, len(overview.splits))
    totals = counts.sum(axis=0)
    ranked = np.argsort(-counts.sum(axis=1), kind="stable")
    shown = np.sort(ranked[:MAX_VALUES])

    def row(title: Content, numbers: np.ndarray) -> Bar:
        shares = tuple(_percent(100 * share) for share in (numbers / np.maximum(totals, 1)).tolist())
        return Bar(title, int(numbers.sum()), shares)

    rows = [row(_value(values.names[number]), counts[number]) for number in shown]
    if len(ranked) > len(shown):
        rest = ranked[MAX_VALUES:]
        rows.append(row(tag("i", f"{len(rest):,} other values"), counts[rest].sum(axis=0)))
    return bars(["value", "images", *overview.splits], rows, shortened(name))


def _percent(number: float) -> str:
    return f"{number:.1f} %" if 0 < number < 10 else f"{number:.0f} %"


def _value(name: str) -> Html:
    return tag("i", name) if name == NOT_STATED else text(shortened(name))


def sizes_section(overview: Overview) -> Html:
    """The commonest sizes as bars, all of them as spots."""
    width, height = (overview.column(name).astype(np.int64) for name in ("width", "height"))
    sizes, counts = np.unique(np.stack([width, height], axis=1), axis=0, return_counts=True)
    ranked = np.argsort(-counts, kind="stable")
    rows = [Bar(f"{sizes[k][0]} × {sizes[k][1]}", int(counts[k])) for k in ranked[:MAX_VALUES]]
    if len(ranked) > MAX_VALUES:
        rows.append(Bar(tag("i", f"{len(ranked) - MAX_VALUES:,} other sizes"), int(counts[ranked[MAX_VALUES:]].sum())))
    kilobytes = overview.column("size") / 1e3
    told = {
        "width": f"{width.min()} to {width.max()} px, median {np.median(width):g}",
        "height": f"{height.min()} to {height.max()} px, median {np.median(height):g}",
        "file": f"{kilobytes.min():,.1f} to {kilobytes.max():,.1f} kB, median {np.median(kilobytes):,.1f} kB",
    }
    shown = ranked[:MAX_SIZES]
    plot = _spots(sizes[shown], counts[shown])
    return pairs(told) + grid(
        [bars(["width × height, px", "images"], rows, "Commonest sizes, as stored"), plot], wide=True
    )


def _spots(sizes: np.ndarray, counts: np.ndarray) -> Html:
    """A spot for each size; its area is the number of images."""
    top = float(sizes.max())
    side = PLOT_PX - 2 * PLOT_MARGIN

    def at(width: float, height: float) -> tuple[float, float]:
        return PLOT_MARGIN + side * width / top, PLOT_MARGIN / 2 + side * (1 - height / top)

    left, upper = at(0, top)
    parts = [shape("rect", {"x": left, "y": upper, "width": side, "height": side, "class": "frame"})]
    for (width, height), count in zip(sizes.tolist(), counts.tolist()):
        x, y = at(width, height)
        parts.append(shape("circle", {"cx": x, "cy": y, "r": 2 + 8 * float(np.sqrt(count / counts.max()))}))
    for value in (0.0, top):
        x, y = at(value, 0)
        parts.append(shape("text", {"x": x, "y": y + 13, "text-anchor": "middle"}, f"{value:g}"))
        x, y = at(0, value)
        parts.append(shape("text", {"x": x - 4, "y": y + 3, "text-anchor": "end"}, f"{value:g}"))
    x, y = at(top / 2, 0)
    parts.append(shape("text", {"x": x, "y": y + 26, "text-anchor": "middle"}, "width, px"))
    turned = {"x": 10, "y": PLOT_MARGIN / 2 + side / 2, "text-anchor": "middle"}
    turned["transform"] = f"rotate(-90 10 {PLOT_MARGIN / 2 + side / 2:.0f})"
    parts.append(shape("text", turned, "height, px"))
    drawing = svg(PLOT_PX, PLOT_PX, shape("g", {"class": "spots"}, join(parts)), "Widths and heights of the images")
    return figure(drawing, "Each spot is a size, its area the number of images.")
