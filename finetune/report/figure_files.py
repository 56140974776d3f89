"""`figures/` in a results folder: each drawing as an SVG that stands alone, and its numbers as CSV."""

import csv
import io
import re

from clusters.storage import Folder
from data.charts import NUM_STYLES
from data.page import Html, join, shape, style, tag
from finetune.cells import safe
from finetune.report.drawings import Drawing

FIGURES = "figures"
GAP, LINE_HEIGHT, MARGIN = 8, 14, 10
DRAWN = re.compile(r"^\.(plot |frame|rule|chance|series-|dot|band-|cell)")
"""The rules of the page's style that drawings follow."""


def write_figures(folder: Folder, drawings: list[Drawing]) -> None:
    """Write `figures/NAME.svg` and `figures/NAME.csv` of each drawing."""
    for drawing in drawings:
        folder.write(f"{FIGURES}/{drawing.name}.svg", standalone(drawing).encode())
        folder.write(f"{FIGURES}/{drawing.name}.csv", numbers(drawing).encode())


def numbers(drawing: Drawing) -> str:
    """What a drawing shows, as CSV; undefined is empty."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerows([safe(cell) for cell in row] for row in [drawing.header, *drawing.rows])
    return text.getvalue()


def standalone(drawing: Drawing) -> str:
    """The drawing as a file: with its title, its legend and its own style, dark on white."""
    found = re.match(r'<svg viewBox="0 0 (\d+) (\d+)"[^>]*>(.*)</svg>$', drawing.content, flags=re.DOTALL)
    assert found is not None
    width, height, content = int(found[1]), int(found[2]), Html(found[3])
    legend = []
    for number, name in enumerate(drawing.series if len(drawing.series) > 1 else ()):
        y = height + GAP + LINE_HEIGHT * (number + 0.5)
        kind = f"series-{number % NUM_STYLES}"
        legend.append(shape("line", {"x1": 0, "x2": 24, "y1": y, "y2": y, "class": kind}))
        legend.append(shape("text", {"x": 30, "y": y + 3.5}, name))
    longest = max((len(name) for name in (drawing.title, *drawing.series)), default=0)
    wide = max(width, 30 + 6 * longest) + 2 * MARGIN
    high = height + len(legend) // 2 * LINE_HEIGHT + GAP + LINE_HEIGHT + 2 * MARGIN
    title = shape("text", {"x": MARGIN, "y": MARGIN + 10, "class": "title"}, drawing.title)
    moved = tag("g", content + join(legend), {"transform": f"translate({MARGIN} {MARGIN + LINE_HEIGHT + 4})"})
    paper = shape("rect", {"width": wide, "height": high, "fill": "#fff"})
    attributes = {
        "xmlns": "http://www.w3.org/2000/svg",
        "viewBox": f"0 0 {wide} {high}",
        "width": 2 * wide,
        "height": 2 * high,
        "class": "plot",
        "role": "img",
        "aria-label": drawing.title,
    }
    return tag("svg", tag("style", _svg_style()) + paper + title + moved, attributes) + "\n"


def _svg_style() -> Html:
    """The page's rules for drawings, with the colours of its light scheme written out."""
    rules = style()
    colours = dict(reversed(re.findall(r"--([\w-]+):([^;}]+)", rules)))  # the first of a name wins: it is the light one
    chosen = [line for line in rules.splitlines() if DRAWN.match(line)]
    written = re.sub(r"var\(--([\w-]+)\)", lambda name: colours[name[1]].replace(" ", ","), "".join(chosen))
    font = "text{font-family:Helvetica,Arial,sans-serif;font-size:10px}.plot .title{font-size:12px}"
    return Html(font + re.sub(r"rgb\((\d+),(\d+),(\d+)/([.\d]+)\)", r"rgba(\1,\2,\3,\4)", written))
