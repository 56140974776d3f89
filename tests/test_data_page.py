import base64
from html.parser import HTMLParser

from hypothesis import given
from hypothesis import strategies as st

from data.page import (
    Bar,
    Html,
    Image,
    Section,
    bars,
    folded,
    grid,
    image_rows,
    image_strip,
    join,
    note,
    page,
    pairs,
    paragraph,
    polyline,
    shape,
    svg,
    table,
    tag,
    text,
    tiles,
)

VOID = {"meta", "br", "img"}


class Outline(HTMLParser):
    """Checks that what is opened is closed, and collects the tags, attributes and text."""

    def __init__(self, content: str) -> None:
        super().__init__()
        self.open, self.tags, self.links, self.words = [], [], [], []
        self.feed(content)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self.links += [value for key, value in attrs if key in ("src", "href", "xlink:href", "data")]
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.words.append(data)


def whole_page(word: str) -> str:
    sections = [
        Section(word, join([paragraph(word), note(word, kind="warning"), folded(word, paragraph(word))])),
        Section("Tables", table([word, "b"], [[word, 1.5], [word, None]], word) + pairs({word: word})),
        Section("Bars", bars([word, word, word], [Bar(word, 3, (word,)), Bar(word, 0, (1,))], word)),
        Section("Rows", image_rows([([Image(b"\xff\xd8 jpeg", "", alt=word)], word)])),
        Section(
            "Drawings",
            tiles([(word, word, word)])
            + image_strip([Image(b"\xff\xd8 jpeg", word, "good")])
            + grid([svg(10, 10, polyline([(0, 0), (1, 2)], "series-0") + shape("text", {"x": 1.0}, word), word)]),
        ),
    ]
    return page(word, sections, word)


@given(st.text(min_size=1))
def test_no_text_becomes_markup(word):
    plain, odd = Outline(whole_page("x")), Outline(whole_page(word))
    assert plain.tags == odd.tags


def test_what_is_added_to_markup_is_escaped_and_markup_stays():
    assert tag("b", "a<b") + "<i>" == "<b>a&lt;b</b>&lt;i&gt;"
    assert text(tag("b", 1)) == "<b>1</b>"
    assert tag("p", tag("b") + tag("i")) == "<p><b></b><i></i></p>"
    assert tag("a", "x", {"title": '"><script>'}) == '<a title="&quot;&gt;&lt;script&gt;">x</a>'
    assert isinstance(tag("b") + "x", Html)
    assert text(None) == "–"


def test_the_page_loads_nothing_and_holds_its_pictures():
    content = whole_page("word")
    links = Outline(content).links
    assert "data:image/jpeg;base64," + base64.b64encode(b"\xff\xd8 jpeg").decode() in links
    assert all(link.startswith(("data:", "#")) for link in links)
    assert "http" not in content.replace("http-equiv", "")
    assert "url(" not in content
    assert "default-src 'none'" in content
    assert "script" not in Outline(content).tags


def test_links_at_the_top_lead_to_the_sections():
    content = whole_page("word")
    for number in (1, 2, 3, 4, 5):
        assert f'href="#part-{number}"' in content
        assert f'<section id="part-{number}">' in content


def test_numbers_in_drawings_are_short():
    assert shape("line", {"x1": 0.3333333, "x2": 2.0, "y1": 100.0, "n": 5}) == (
        '<line x1="0.33" x2="2" y1="100" n="5"></line>'
    )


def test_bars_are_as_long_as_their_numbers_say():
    drawn = bars(["name", "count"], [Bar("a", 40), Bar("b", 10), Bar("none", 0)])
    assert [part.split('"')[0] for part in drawn.split('style="width:')[1:]] == [
        "max(100.0%,1px)",
        "max(25.0%,1px)",
        "0",
    ]
    assert bars(["name", "count"], [Bar("none", 0)]).count('style="width:0"') == 1
