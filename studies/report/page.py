"""Sections as one HTML page that needs nothing else, and as Markdown with its pictures beside it.

The page has no script and loads nothing; a policy in its head forbids both. Titles, cells and paragraphs may
hold names that others chose: they are escaped, and characters that cannot be seen are spelled out.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from importlib.resources import files
from typing import TYPE_CHECKING, ClassVar

from studies.report.drawing import standalone, unique

if TYPE_CHECKING:
    from jinja2 import Template

# A cell of digits, signs and brackets, perhaps with a remark; a column of these is aligned to the right.
_NUMBER = re.compile(r"(below )?[+−-]?\.?\d[\d\s.,%+−±/\[\]-]*(e-?\d+|of \d+)?( \(.*\))?")
_EMPTY = {"", "—", "failed", "missing"}
# Controls, marks of reading direction and the like, halves of pairs, line and paragraph separators.
_UNSEEN = {"Cc", "Cf", "Cs", "Co", "Cn", "Zl", "Zp"}
_MARKED = re.compile(r"([\\`*~|$])|(?<![^\W_])(_)|(_)(?![^\W_])|(\])(?=[(\[:])")
# What at the beginning of a paragraph would make it a heading, a list or a rule.
_FIRST = re.compile(r"^(\d*)(?=[#=+.)-])")


@dataclass(frozen=True, slots=True)
class TableSection:
    """Rows of text, ready to read; the first column names the row."""

    kind: ClassVar[str] = "table"
    title: str
    columns: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    note: str = ""


@dataclass(frozen=True, slots=True)
class Figure:
    """A picture as an <svg> element (by `studies.report.drawing.svg`); `name` is the stem of its file."""

    kind: ClassVar[str] = "figure"
    title: str
    svg: str
    note: str = ""
    name: str = ""


@dataclass(frozen=True, slots=True)
class Text:
    """Paragraphs under a title."""

    kind: ClassVar[str] = "text"
    title: str
    paragraphs: tuple[str, ...]


Section = TableSection | Figure | Text


def html(title: str, sections: Sequence[Section], question: str = "") -> str:
    """One page: title, question, contents and the sections in their order."""
    return _template().render(title=title, question=clean(question), sections=sections) + "\n"


def markdown(title: str, sections: Sequence[Section], pictures: str, question: str = "") -> str:
    """The same for GitHub; figures are links to files of `picture_files` in the folder `pictures`."""
    blocks = [f"# {_heading(title)}", *([_paragraph(question)] if question else [])]
    for section, name in zip(sections, _names(sections), strict=True):
        blocks.append(f"## {_heading(section.title)}")
        if isinstance(section, Text):
            blocks += [_paragraph(text) for text in section.paragraphs]
        elif isinstance(section, TableSection):
            blocks += [_grid(section), *([_paragraph(section.note)] if section.note else [])]
        else:
            link = f"{pictures.rstrip('/')}/{name}" if pictures else name
            alternative = re.sub(r"[\[\]]", "", _escape(section.title))
            blocks += [f"![{alternative}]({link})", *([_paragraph(section.note)] if section.note else [])]
    return "\n\n".join(blocks) + "\n"


def picture_files(sections: Sequence[Section]) -> dict[str, str]:
    """The content of each figure's file by name, in plain colours on white."""
    pairs = zip(sections, _names(sections), strict=True)
    return {name: standalone(section.svg) for section, name in pairs if isinstance(section, Figure)}


def clean(text: str) -> str:
    r"""The text in one line, with an escape (\x07) for each character that cannot be seen."""
    cells = (
        char if unicodedata.category(char) not in _UNSEEN else char.encode("unicode_escape").decode("ascii")
        for char in re.sub(r"[ \t\r\n]+", " ", text)
    )
    return "".join(cells).strip()


def _numeric_columns(table: TableSection) -> list[bool]:
    """For each column whether most of what it says is numbers; never the first."""
    numeric = [False]
    for n in range(1, len(table.columns)):
        values = [cell for cell in (clean(row[n]) for row in table.rows) if cell not in _EMPTY]
        count = sum(bool(_NUMBER.fullmatch(cell)) for cell in values)
        numeric.append(bool(values) and 2 * count > len(values))
    return numeric


@cache
def _template() -> Template:
    from jinja2 import Environment, StrictUndefined

    environment = Environment(
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        finalize=lambda value: clean(value) if type(value) is str else value,
    )
    environment.filters |= {"clean": clean, "numeric": _numeric_columns, "unique": unique}
    return environment.from_string(files("studies.report").joinpath("page.html.j2").read_text("utf-8"))


def _names(sections: Sequence[Section]) -> list[str]:
    """A file name for each section's picture, all different."""
    names: list[str] = []
    for number, section in enumerate(sections, 1):
        name = section.name if isinstance(section, Figure) else ""
        stem = re.sub(r"[^a-z0-9]+", "-", name.lower()).strip("-") or f"figure-{number}"
        names.append(f"{stem}.svg" if f"{stem}.svg" not in names else f"{stem}-{number}.svg")
    return names


def _grid(table: TableSection) -> str:
    rule = ["---:" if numeric else "---" for numeric in _numeric_columns(table)]
    rows = [table.columns, *table.rows]
    lines = ["| " + " | ".join(_escape(cell) or " " for cell in row) + " |" for row in rows]
    return "\n".join([lines[0], "|" + "|".join(rule) + "|", *lines[1:]])


def _escape(text: str) -> str:
    """The text with everything escaped that Markdown or HTML would read as a sign."""
    text = clean(text).replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
    return _MARKED.sub(lambda match: f"\\{match[0]}", text)


def _heading(text: str) -> str:
    """Escaped too are the signs at the end that Markdown would take for the end of a heading."""
    return re.sub(r"(#+)$", lambda match: match[0].replace("#", "\\#"), _escape(text))


def _paragraph(text: str) -> str:
    return _FIRST.sub(r"\1\\", _escape(text))
