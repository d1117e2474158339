"""What every report is made of: tables, figures and texts, as frozen values that any page can show."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class TableSection:
    """Rows of text, ready to read; the first column names the row."""

    title: str
    columns: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    note: str = ""


@dataclass(frozen=True, slots=True)
class Figure:
    """A picture as an <svg> element (`report.drawing.svg` makes one); `name` is the stem of its file."""

    title: str
    svg: str
    note: str = ""
    name: str = ""


@dataclass(frozen=True, slots=True)
class Text:
    """Paragraphs under a title."""

    title: str
    paragraphs: tuple[str, ...]


Section = TableSection | Figure | Text
