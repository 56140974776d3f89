"""Self-contained HTML pages: no network, no script, readable on a phone, in light and dark.

Text is escaped wherever it goes in; only `Html`, which the functions here return, is taken as it is. So a
file name or a label can never become markup.
"""

import base64
import html
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

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
        f"<title>{html.escape(title)}</title><style>{STYLE}</style></head><body>{body}</body></html>\n"
    )


STYLE = """
:root{color-scheme:light dark;--paper:#fff;--ink:#1b2733;--soft:#5a6876;--line:#d8dee4;--wash:#f4f6f8;
--accent:#0b6e75;--accent-rgb:11 110 117;--other:#9a5b13;--third:#6b4fa0;--fourth:#4d6b1f;
--good:#2b7a4b;--bad:#b3372f;--warn:#fff5e0;--warn-line:#d9a441}
@media(prefers-color-scheme:dark){:root{--paper:#12181f;--ink:#e3e9ee;--soft:#9babb9;--line:#2d3843;
--wash:#1a222b;--accent:#5cc4cb;--accent-rgb:72 170 178;--other:#e0a458;--third:#b9a2ea;--fourth:#a9cc6e;
--good:#6cc48d;--bad:#ee8277;--warn:#2c2413;--warn-line:#a07a2d}}
*{box-sizing:border-box}
body{margin:0;background:var(--paper);color:var(--ink);line-height:1.5;
font:1rem/1.5 system-ui,-apple-system,"Segoe UI",Roboto,"Helvetica Neue",Arial,sans-serif}
header,main,nav{max-width:64rem;margin:0 auto;padding:0 1.25rem}
header{padding-top:2rem}
h1{font-size:1.7rem;line-height:1.2;margin:0 0 .4rem;font-weight:650}
h2{font-size:1.2rem;margin:2.4rem 0 .8rem;padding-top:.9rem;border-top:1px solid var(--line);font-weight:650}
h3{font-size:1rem;margin:1.4rem 0 .5rem;font-weight:650}
p,dl{margin:.6rem 0;max-width:46rem}
h1,h2,h3,p,li,caption,summary,nav a,.note,.warning{overflow-wrap:anywhere}
.lead{color:var(--soft)}
a{color:var(--accent)}
nav{display:flex;flex-wrap:wrap;gap:.2rem 1.1rem;padding-top:.5rem;font-size:.9rem}
nav a{text-decoration:none}
.tiles{display:grid;grid-template-columns:repeat(auto-fit,minmax(9.5rem,1fr));gap:.8rem;margin:1rem 0}
.tiles>div{background:var(--wash);border:1px solid var(--line);border-radius:.5rem;padding:.7rem .9rem;
display:flex;flex-direction:column;font-size:.82rem;color:var(--soft)}
.tiles strong{font-size:1.7rem;line-height:1.25;color:var(--ink);font-variant-numeric:tabular-nums;
font-weight:650}
.scroll{overflow-x:auto;margin:.8rem 0}
table{border-collapse:collapse;font-size:.88rem;font-variant-numeric:tabular-nums}
caption{text-align:left;color:var(--soft);padding-bottom:.3rem}
th,td{padding:.32rem .7rem .32rem 0;border-bottom:1px solid var(--line);text-align:left;vertical-align:top;
font-weight:400}
thead th{color:var(--soft);font-size:.8rem;vertical-align:bottom}
tbody th{font-weight:550}
.numeric td,.numeric thead th:not(:first-child){text-align:right;white-space:nowrap}
.bars{width:100%;max-width:46rem}
.bars tbody th{overflow-wrap:anywhere;min-width:6rem;max-width:14rem}
.bars .bar{width:45%;min-width:4rem;vertical-align:middle}
@media(max-width:34rem){.bars .bar{min-width:1.8rem;width:20%}.bars tbody th{min-width:6rem}
.bars th,.bars td{padding-right:.45rem;font-size:.82rem}.bars thead th{font-size:.76rem}}
.bars caption{color:var(--ink);font-weight:550}
.fill{display:block;height:.7rem;background:var(--accent);border-radius:.15rem}
.forest{width:100%}
.forest td,.forest th{border:0;padding:.15rem .7rem .15rem 0;vertical-align:middle}
.forest .bar{width:55%;min-width:7rem}
.forest svg{display:block;width:100%;height:1.5rem;overflow:visible}
.confusion td{text-align:center;min-width:3.4rem;border:1px solid var(--paper);padding:.35rem .3rem}
.confusion td span{display:block;font-size:.72rem;opacity:.75}
.confusion thead th{text-align:center;padding:.2rem .3rem;white-space:normal}
dl{display:grid;grid-template-columns:minmax(7rem,max-content) 1fr;gap:.2rem 1rem;font-size:.9rem}
dt{color:var(--soft)}
dd{margin:0;overflow-wrap:anywhere}
.note,.warning{background:var(--wash);border-left:3px solid var(--accent);padding:.6rem .9rem;margin:.8rem 0;
max-width:46rem;font-size:.92rem}
.warning{background:var(--warn);border-color:var(--warn-line)}
figure{margin:.8rem 0}
figcaption{color:var(--soft);font-size:.82rem;margin-top:.3rem}
.grid{display:grid;grid-template-columns:repeat(auto-fill,minmax(14rem,1fr));gap:1rem}
.grid.wide{grid-template-columns:repeat(auto-fit,minmax(min(100%,22rem),1fr));gap:1rem 2.5rem;align-items:start}
.grid figure{margin:0}
.plot{display:block;width:100%;height:auto;max-width:24rem}
.plot text{font-size:10px;fill:var(--soft)}
.frame{fill:none;stroke:var(--line)}
.rule{stroke:var(--line);stroke-width:1;vector-effect:non-scaling-stroke}
.chance{stroke:var(--soft);stroke-dasharray:3 3;stroke-width:1}
.series-0,.series-1,.series-2,.series-3,.dot{vector-effect:non-scaling-stroke;stroke-linejoin:round;fill:none}
.series-0{stroke:var(--accent);stroke-width:2.2}
.series-1{stroke:var(--other);stroke-width:1.6;stroke-dasharray:6 3}
.series-2{stroke:var(--third);stroke-width:1.6;stroke-dasharray:2 2.5}
.series-3{stroke:var(--fourth);stroke-width:1.6;stroke-dasharray:8 3 2 3}
.forest .series-1,.forest .series-2,.forest .series-3{stroke-dasharray:none;stroke-width:2.2}
.dot{stroke-width:9;stroke-linecap:round}
.key{display:inline-block;width:1.8rem;height:.7rem;vertical-align:middle;margin-right:.4rem}
.legend span{margin-right:1.2rem;white-space:nowrap;font-size:.85rem}
.chart{min-width:0}
.chart figcaption{margin:0 0 .2rem;color:var(--soft)}
.chart figcaption b{color:var(--ink);font-weight:600}
.chart figure{display:flex;flex-direction:column-reverse}
.chart .legend{margin:.1rem 0 0}
.map{max-width:42rem}
.map .plot{max-width:none}
.mark-0{fill:var(--accent);stroke:var(--accent)}
.mark-1{fill:var(--other);stroke:var(--other)}
.mark-2{fill:var(--third);stroke:var(--third)}
.mark-3{fill:var(--fourth);stroke:var(--fourth)}
.mark-0,.mark-1,.mark-2,.mark-3{fill-opacity:.75;stroke-width:.8}
.hollow{fill-opacity:0;stroke-width:1.4}
.strip{display:grid;grid-template-columns:repeat(auto-fill,minmax(9rem,1fr));gap:.9rem;margin:.8rem 0}
.strip figure{margin:0;border-top:3px solid var(--line);padding-top:.3rem}
.strip .good{border-color:var(--good)}
.strip .bad{border-color:var(--bad)}
.strip img{width:100%;display:block;border-radius:.25rem}
.cases{display:flex;flex-wrap:wrap;align-items:flex-start;gap:1rem 1.2rem;margin:.8rem 0}
.cases figure{margin:0;max-width:100%;border-top:3px solid var(--line);padding-top:.4rem}
.cases figcaption{contain:inline-size;min-width:8rem;overflow-wrap:anywhere;line-height:1.35}
.cases figcaption b{color:var(--ink);font-weight:550}
.thumbs{display:flex;flex-wrap:wrap;gap:.25rem;align-items:flex-end}
.thumbs img{display:block;max-width:100%;border-radius:.2rem}
.spots circle{fill:rgb(var(--accent-rgb)/.45);stroke:var(--accent);stroke-width:.8}
pre{background:var(--wash);border:1px solid var(--line);border-radius:.4rem;padding:.7rem .9rem;overflow-x:auto;
font-size:.8rem;line-height:1.45}
code{font-size:.88em;overflow-wrap:anywhere}
details{margin:.6rem 0}
summary{cursor:pointer;color:var(--accent)}
@media print{nav{display:none}body{font-size:10pt}details{display:block}}
"""
