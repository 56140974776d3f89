"""Self-contained HTML pages: no network, no script, readable on a phone, in light and dark.

Text is escaped wherever it goes in; only `Html`, which the functions here return, is taken as it is. So a
file name or a label can never become markup.
"""

import base64
import html
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

Attributes = Mapping[str, str | int | float]


class Html(str):
    """Markup that is safe as it stands. What is added to it is escaped where it is not `Html` itself."""

    def __add__(self, other: str) -> "Html":
        return Html(str(self) + str(text(other)))


Content = Html | str | int | float | None
EMPTY = Html("")
LINE_BREAK = Html("<br>")


@dataclass(frozen=True)
class Section:
    """One titled part of a page."""

    title: str
    body: Html


@dataclass(frozen=True)
class Image:
    """A picture with its caption; `mark` colours its frame (`good`, `bad` or nothing), `alt` is read aloud."""

    jpeg: bytes
    caption: Html | str
    mark: str = ""
    alt: str = ""


@dataclass(frozen=True)
class Bar:
    """One row of `bars`: its name, the number that is drawn, and what else stands in the row."""

    name: Content
    number: int | float
    more: tuple[Content, ...] = ()


def text(content: Content) -> Html:
    """Anything as safe markup; None becomes a dash."""
    if isinstance(content, Html):
        return content
    return Html("–" if content is None else html.escape(str(content)))


def join(parts: Iterable[Content]) -> Html:
    """Several pieces one after another."""
    return Html("".join(text(part) for part in parts))


def tag(name: str, content: Content = EMPTY, attributes: Attributes | None = None) -> Html:
    """One element. `name`, and the names of attributes, are the program's own, never data."""
    shown = "".join(f' {key}="{html.escape(str(value))}"' for key, value in (attributes or {}).items())
    return Html(f"<{name}{shown}>{text(content)}</{name}>")


def paragraph(*parts: Content) -> Html:
    """A paragraph of text and inline markup."""
    return tag("p", join(parts))


def note(*parts: Content, kind: str = "note") -> Html:
    """A box that stands out: `note` or `warning`."""
    return tag("div", join(parts), {"class": kind, "role": "note"})


def table(
    header: Sequence[Content], rows: Iterable[Sequence[Content]], caption: str = "", numeric: bool = True
) -> Html:
    """A table; with `numeric` all columns but the first are aligned right. Scrolls sideways if too wide."""
    kind = "numeric" if numeric else "words"
    parts = [tag("caption", caption)] if caption else []
    parts.append(tag("thead", tag("tr", join(tag("th", cell, {"scope": "col"}) for cell in header))))
    body = [
        tag("tr", join([tag("th", row[0], {"scope": "row"}), *(tag("td", cell) for cell in row[1:])])) for row in rows
    ]
    parts.append(tag("tbody", join(body)))
    return _scrolling(tag("table", join(parts), {"class": kind}), caption)


def bars(header: Sequence[Content], rows: Sequence[Bar], caption: str = "") -> Html:
    """A table whose first number is also drawn as a bar, the longest filling its column.

    `header` names the first column, the number and what else stands in the rows.
    """
    longest = max([float(row.number) for row in rows], default=0.0) or 1.0
    parts = [tag("caption", caption)] if caption else []
    titles = [tag("th", cell, {"scope": "col"}) for cell in header]
    parts.append(tag("thead", tag("tr", join([titles[0], tag("td", EMPTY, {"class": "bar"}), *titles[1:]]))))
    body = []
    for row in rows:
        width = f"max({100 * float(row.number) / longest:.1f}%,1px)" if row.number else "0"
        fill = tag("span", EMPTY, {"class": "fill", "style": f"width:{width}"})
        number = f"{row.number:,}" if isinstance(row.number, int) else f"{row.number:,.1f}"
        cells = [tag("th", row.name, {"scope": "row"}), tag("td", fill, {"class": "bar", "aria-hidden": "true"})]
        body.append(tag("tr", join([*cells, tag("td", number), *(tag("td", cell) for cell in row.more)])))
    parts.append(tag("tbody", join(body)))
    return _scrolling(tag("table", join(parts), {"class": "numeric bars"}), caption)


def _scrolling(content: Html, label: str) -> Html:
    """A box that scrolls sideways where its content is too wide, by keyboard too."""
    return tag("div", content, {"class": "scroll", "tabindex": 0, "role": "region", "aria-label": label or "table"})


def pairs(items: Mapping[str, Content]) -> Html:
    """Names and values, one below another."""
    return tag("dl", join(tag("dt", name) + tag("dd", value) for name, value in items.items()))


def tiles(items: Iterable[tuple[Content, Content, Content]]) -> Html:
    """Large figures: (name, figure, what stands below it)."""
    cells = [
        tag("div", tag("span", name, {"class": "name"}) + tag("strong", figure) + tag("span", below))
        for name, figure, below in items
    ]
    return tag("div", join(cells), {"class": "tiles"})


def grid(items: Iterable[Html], wide: bool = False) -> Html:
    """Equal boxes, as many beside each other as fit; `wide` ones leave room for tables."""
    return tag("div", join(items), {"class": "grid wide" if wide else "grid"})


def figure(content: Html, caption: Content) -> Html:
    """A drawing with its caption below."""
    return tag("figure", content + tag("figcaption", caption))


def folded(title: str, content: Html) -> Html:
    """Content that opens on a click."""
    return tag("details", tag("summary", title) + content)


def image_strip(images: Iterable[Image]) -> Html:
    """Pictures side by side, held in the page itself."""
    shown = []
    for image in images:
        picture = _img(image)
        shown.append(tag("figure", picture + tag("figcaption", image.caption), {"class": image.mark}))
    return tag("div", join(shown), {"class": "strip"})


def image_rows(groups: Iterable[tuple[Sequence[Image], Content]]) -> Html:
    """Groups of pictures, each group in a row with one caption, at their own size; wrapped where too wide."""
    shown = []
    for images, caption in groups:
        row = tag("div", join(_img(image) for image in images), {"class": "thumbs"})
        shown.append(tag("figure", row + tag("figcaption", caption)))
    return tag("div", join(shown), {"class": "cases"})


def _img(image: Image) -> Html:
    source = f"data:image/jpeg;base64,{base64.b64encode(image.jpeg).decode()}"
    return Html(f'<img src="{source}" alt="{html.escape(image.alt)}" decoding="async">')


def svg(width: int, height: int, content: Html, label: str) -> Html:
    """A drawing of so many units, which fills its box; `label` says what it shows to those who hear pages."""
    return tag(
        "svg", content, {"viewBox": f"0 0 {width} {height}", "role": "img", "aria-label": label, "class": "plot"}
    )


def shape(name: str, attributes: Attributes, content: Content = EMPTY) -> Html:
    """One SVG element; numbers are shortened to two decimals."""
    short = {k: f"{v:.2f}".rstrip("0").rstrip(".") if isinstance(v, float) else v for k, v in attributes.items()}
    return tag(name, content, short)


def polyline(points: Iterable[tuple[float, float]], kind: str) -> Html:
    """A line through points, drawn in the style of a class of the page."""
    path = " ".join(f"{x:.2f},{y:.2f}" for x, y in points)
    return tag("polyline", EMPTY, {"points": path, "class": kind, "fill": "none"})


def style() -> str:
    """The rules that every page follows."""
    return Path(__file__).with_suffix(".css").read_text(encoding="utf-8")


def page(title: str, sections: Sequence[Section], lead: Content = "") -> str:
    """The whole page. It may load nothing: its own policy forbids what is not in it."""
    anchors = [f"part-{number}" for number in range(1, len(sections) + 1)]
    links = join(tag("a", s.title, {"href": f"#{a}"}) for s, a in zip(sections, anchors))
    parts = [
        tag("section", tag("h2", section.title) + section.body, {"id": anchor})
        for section, anchor in zip(sections, anchors)
    ]
    head = tag("header", tag("h1", title) + (tag("p", lead, {"class": "lead"}) if lead else EMPTY))
    body = head + (tag("nav", links) if len(sections) > 1 else EMPTY) + tag("main", join(parts))
    return (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        '<meta http-equiv="Content-Security-Policy" '
        "content=\"default-src 'none'; img-src data:; style-src 'unsafe-inline'\">"
        f"<title>{html.escape(title)}</title><style>{style()}</style></head><body>{body}</body></html>\n"
    )
