"""Pages of sections: nothing is loaded, no name becomes code, and two makings give the same bytes."""

from __future__ import annotations

import re
from html.parser import HTMLParser
from xml.etree import ElementTree

import pytest
from markdown_it import MarkdownIt

from studies.report.drawing import VARIABLES, sheet, style, svg
from studies.report.page import Figure, Section, TableSection, Text, clean, html, markdown, picture_files

HOSTILE = (
    "<script>alert(1)</script>",
    "a|b \\| c\\",
    "*a* _b_ **c** ~~d~~ `e` $f$",
    "[l](javascript:alert(1)) ![i](http://evil.example/x.png)",
    '"><img src=x onerror=alert(1)>',
    "{{ 7 * 7 }} {% raw %}",
    "&amp; &lt;b&gt;",
    "tweet_irony",
)


def picture(label: str = "x") -> str:
    """A small plot with a clip path, a marker and a text of its own."""
    with style():
        figure = sheet(1.0)
        axes = figure.add_axes((0.1, 0.3, 0.8, 0.6))
        axes.plot([0, 1], [0, 1], "o-", color="#332288")
        axes.set_xlabel(label)
        return svg(figure, f"title {label}")


def everything(label: str = "x") -> list[Section]:
    """A section of each kind, every text of it hostile, and two pictures that are the same."""
    rows = tuple((name, "81.0 ± 1.2", name) for name in HOSTILE)
    return [
        Text(label, (label, *HOSTILE)),
        TableSection(label, ("task", "mean", label), rows, label),
        Figure("one", picture(label), label, "gains"),
        Figure("two", picture(label), label, "gains"),
    ]


class Tags(HTMLParser):
    """All tags of a page with their attributes, and its text."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.text = ""
        self.feed(page)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        """Keeps the tag."""
        self.tags.append((tag, dict(attrs)))

    def handle_data(self, data: str) -> None:
        """Keeps the text."""
        self.text += data


@pytest.mark.parametrize("name", HOSTILE)
def test_names_are_text_and_never_code(name: str) -> None:
    page = html(name, everything(name), name)
    result = Tags(page)
    assert name in result.text
    assert not {tag for tag, _ in result.tags} & {
        "script",
        "img",
        "iframe",
        "object",
        "link",
        "base",
        "form",
        "b",
    }
    assert not [key for _, attributes in result.tags for key in attributes if key.startswith("on")]


def test_nothing_is_loaded_from_elsewhere() -> None:
    page = html("T", everything(), "Q")
    for tag, attributes in Tags(page).tags:
        for key in ("src", "href", "xlink:href", "srcset", "data", "action"):
            assert (attributes.get(key) or "#").startswith("#"), (tag, attributes)
    assert all(target.startswith("#") for target in re.findall(r"url\(([^)]*)\)", page))
    assert "@import" not in page
    assert "default-src 'none'; style-src 'unsafe-inline'" in page


def test_ids_are_unique_and_every_reference_has_its_target() -> None:
    page = html("T", everything())
    result = [attributes["id"] for _, attributes in Tags(page).tags if "id" in attributes]
    assert len(result) == len(set(result))
    expected = re.findall(r"(?:url\(#|href=\"#|aria-labelledby=\")([^\")]+)", page)
    assert expected
    assert set(expected) <= set(result)


def test_two_makings_give_the_same_bytes() -> None:
    assert html("T", everything(), "Q") == html("T", everything(), "Q")
    assert markdown("T", everything(), "pictures") == markdown("T", everything(), "pictures")
    assert picture_files(everything()) == picture_files(everything())


def test_columns_of_numbers_are_to_the_right_and_rows_have_headings() -> None:
    rows = (
        ("1", "81.0 ± 1.2", "7 of 8", "24 done", "failed", ".19", "below .001"),
        ("2", "—", "8", "23 done, 1 failed", "41.0 (1 failed)", "—", ".025"),
    )
    page = html("T", [TableSection("t", ("a", "b", "c", "d", "e", "p", "Holm"), rows)])
    cells = [attributes.get("class") for tag, attributes in Tags(page).tags if tag == "td"]
    assert cells == ["n", "n", None, "n", "n", "n"] * 2
    assert page.count('<th scope="row">') == 2
    assert page.count('scope="col"') == 7


def test_a_long_name_in_a_head_breaks_after_an_underscore_and_is_still_escaped() -> None:
    page = html("T", [TableSection("t", ("method", "hate_or_<b>"), (("a", "1"),))])
    assert "hate_<wbr>or_<wbr>&lt;b&gt;</th>" in page


def test_every_colour_of_a_picture_is_a_variable_with_a_light_and_a_dark_value() -> None:
    page = html("T", everything())
    dark = page[page.index("prefers-color-scheme: dark") :].split("}", 1)[0]
    light = page[: page.index("prefers-color-scheme: dark")]
    used = set(re.findall(r"var\(--(\w+), #", page))
    assert {"ink", "c1", "faint"} <= used
    for name in used | set(VARIABLES.values()):
        assert f"--{name}:" in light
        assert f"--{name}:" in dark
    assert not re.findall(r"(?:fill|stroke): #", page)


def test_a_picture_keeps_its_text_as_text_and_a_name_as_it_is() -> None:
    result = ElementTree.fromstring(picture('#332288 <b> $x$ & id="y"'))
    texts = ["".join(item.itertext()) for item in result.iter("{http://www.w3.org/2000/svg}text")]
    assert '#332288 <b> $x$ & id="y"' in texts
    title = result.find("{http://www.w3.org/2000/svg}title")
    assert title is not None
    assert title.text == 'title #332288 <b> $x$ & id="y"'
    assert title.get("id") == result.get("aria-labelledby")


def test_files_of_pictures_have_plain_colours_on_white_and_names_of_their_own() -> None:
    sections = [*everything(), Figure("three", picture(), name="../../Evil Name"), Figure("four", picture())]
    files = picture_files(sections)
    assert list(files) == ["gains.svg", "gains-4.svg", "evil-name.svg", "figure-6.svg"]
    for text in files.values():
        assert "var(--ink" not in text
        assert "var(--c1" not in text
        root = ElementTree.fromstring(text)
        assert root[1].get("fill") == "#ffffff"
    for name in files:
        assert f"](pictures/{name})" in markdown("T", sections, "pictures/")


@pytest.mark.parametrize("name", HOSTILE)
def test_markdown_reads_as_what_was_written(name: str) -> None:
    tokens = (
        MarkdownIt("commonmark")
        .enable(["table", "strikethrough"])
        .parse(markdown(name, everything(name), "p"))
    )
    inline = [token for token in tokens if token.type == "inline"]
    kinds = {child.type for token in inline for child in token.children or []}
    assert kinds == {"text", "image"} or kinds == {"text", "image", "text_special"}
    assert "html_block" not in {token.type for token in tokens}
    output = ["".join(child.content for child in token.children or []) for token in inline]
    assert output[:3] == [name, name, name]
    # The headings of two tables' worth of cells: one head and a row for each name.
    first = next(i for i, token in enumerate(tokens) if token.type == "table_open")
    last = next(i for i, token in enumerate(tokens) if token.type == "table_close")
    table = tokens[first:last]
    rows = [i for i, token in enumerate(table) if token.type == "tr_open"]
    assert len(rows) == len(HOSTILE) + 1
    cells = [
        "".join(child.content for child in token.children or []) for token in table if token.type == "inline"
    ]
    assert cells == ["task", "mean", name, *(text for row in HOSTILE for text in (row, "81.0 ± 1.2", row))]


def test_tables_of_markdown_have_the_same_number_of_columns_in_each_row() -> None:
    text = markdown("T", everything("a|b\nc"), "p")
    lines = [line for line in text.splitlines() if line.startswith("|")]
    assert len(lines) == len(HOSTILE) + 2
    assert {len(re.findall(r"(?<!\\)(?:\\\\)*\|", line)) for line in lines} == {4}
    assert lines[1] == "|---|---:|---|"


def test_a_paragraph_that_begins_like_a_list_or_heading_is_none() -> None:
    for start in ("# a", "- a", "+ a", "> a", "1. a", "=== a", "    a", "2) a"):
        tokens = MarkdownIt("commonmark").parse(markdown("T", [Text("t", (start,))], "p"))
        assert [token.type for token in tokens[6:]] == ["paragraph_open", "inline", "paragraph_close"], start
        assert tokens[7].children is not None
        assert "".join(child.content for child in tokens[7].children) == start.strip()


@pytest.mark.parametrize("title", ["What is C #", "All of ##", "#", "A # B"])
def test_a_heading_keeps_the_signs_at_its_end(title: str) -> None:
    tokens = MarkdownIt("commonmark").parse(markdown(title, [Text(title, ("a",))], "p"))
    headings = [tokens[n + 1] for n, token in enumerate(tokens) if token.type == "heading_open"]
    texts = ["".join(child.content for child in token.children or []) for token in headings]
    assert texts == [title, title]


def test_characters_that_cannot_be_seen_are_spelled_out() -> None:
    assert clean("a\u202eb\x07c\u200bd\ud800") == "a\\u202eb\\x07c\\u200bd\\ud800"
    assert clean(" two\nlines\tand  spaces ") == "two lines and spaces"
    assert clean("Größe 出典 ± −1.0\u00a0%") == "Größe 出典 ± −1.0\u00a0%"
    html("\ud800", [Text("\x00", ("\udfff",))]).encode()
