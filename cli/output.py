"""One sink for results: a table, one JSON document, or one JSON line a row, on stdout; talk goes to stderr.

What comes from the Hub is hostile: control characters, line breaks and marks that turn the reading direction
are shown as escapes, and rich's markup is never interpreted.
"""

from __future__ import annotations

import enum
import json
import math
import re
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, is_dataclass, replace
from datetime import datetime, timezone
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol, TypeVar

import click

if TYPE_CHECKING:
    from rich.console import Console, RenderableType
    from rich.table import Table

Command = TypeVar("Command", bound=Callable[..., Any])

WIDTH_WITHOUT_TERMINAL = 80
_UNSAFE = re.compile("[\x00-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069\ufeff\ud800-\udfff]")


class Format(str, enum.Enum):
    """How results are written to stdout."""

    TABLE = "table"
    JSON = "json"
    JSONL = "jsonl"


@dataclass(frozen=True)
class Column:
    """A field of the rows as a column; numbers look better with `right`, and `show` says it for people."""

    field: str
    title: str = ""
    right: bool = False
    show: Callable[[Any], str] | None = None


class Progress(Protocol):
    """What a long command tells while it works; the same shape as `crawler.progress.Progress`."""

    def listed(self, repositories: int) -> None:
        """So many things are found by now."""
        ...

    def working(self, done: int, total: int) -> None:
        """So many of them are done."""
        ...

    def note(self, text: str) -> None:
        """Something worth a line."""
        ...


@dataclass(frozen=True)
class Output:
    """Where a command puts its results; `quiet` silences the talk, never the results."""

    format: Format = Format.TABLE
    quiet: bool = False

    def document(self, value: Any, render: Callable[[Any], str | RenderableType]) -> None:
        """Writes one result: as JSON, or as what `render` makes of it (a text is made safe)."""
        if self.format is not Format.TABLE:
            click.echo(_dumps(value, indent=2 if self.format is Format.JSON else None))
            return
        shown = render(value)
        if isinstance(shown, str):
            click.echo("\n".join(plain(line) for line in shown.split("\n")))
        else:
            console().print(shown)

    def rows(self, rows: Iterable[Any], columns: Sequence[str | Column]) -> None:
        """Writes a list: one JSON array with all fields, one JSON line a row, or a table of the columns."""
        if self.format is Format.JSONL:
            for row in rows:
                click.echo(_dumps(row))
        elif self.format is Format.JSON:
            click.echo(_dumps(list(rows), indent=2))
        else:
            console().print(table(rows, columns))

    def say(self, text: str) -> None:
        """Writes a line of talk to stderr, unless quiet."""
        if not self.quiet:
            click.echo(plain(text), err=True)

    @contextmanager
    def progress(self, label: str) -> Iterator[Progress]:
        """Bars with rate and remaining time on stderr; without a terminal, the notes alone."""
        if self.quiet or not sys.stderr.isatty():
            yield _Notes(self)
            return
        from cli.bars import Bars

        with Bars(label) as bars:
            yield bars


class _Notes:
    """Progress where nobody watches: only the notes are written."""

    def __init__(self, output: Output) -> None:
        self.output = output

    def listed(self, repositories: int) -> None:
        """Shows nothing."""

    def working(self, done: int, total: int) -> None:
        """Shows nothing."""

    def note(self, text: str) -> None:
        """Writes the line, unless quiet."""
        self.output.say(text)


def output_options(*, lists: bool) -> Callable[[Command], Command]:
    """Gives a command --json, and --jsonl where it lists rows; its App's `output` then has that format."""

    def decorate(command: Command) -> Command:
        if lists:
            command = _option("--jsonl", Format.JSONL, "One JSON document a row.")(command)
        return _option("--json", Format.JSON, "One JSON document.")(command)

    return decorate


def _option(flag: str, chosen: Format, words: str) -> Callable[[Command], Command]:
    def choose(context: click.Context, _option: click.Parameter, given: bool) -> None:
        if given and context.obj is not None:
            context.obj = replace(context.obj, output=replace(context.obj.output, format=chosen))

    return click.option(flag, is_flag=True, expose_value=False, callback=choose, help=words)


def plain(text: str) -> str:
    """The text on one line, with everything that could steer a terminal shown as an escape."""
    return _UNSAFE.sub(_escape, text)


def _escape(match: re.Match[str]) -> str:
    code = ord(match.group())
    return f"\\x{code:02x}" if code < 0x100 else f"\\u{code:04x}"


def console() -> Console:
    """A console on stdout that interprets nothing it is given; plain and 80 wide without a terminal."""
    from rich.console import Console

    terminal = sys.stdout.isatty()
    return Console(
        file=sys.stdout,
        force_terminal=terminal,
        width=None if terminal else WIDTH_WITHOUT_TERMINAL,
        color_system="auto" if terminal else None,
        markup=False,
        highlight=False,
        emoji=False,
    )


def table(rows: Iterable[Any], columns: Sequence[str | Column]) -> Table:
    """The rows (mappings or dataclasses) as a table; what does not fit is folded, nothing is cut off."""
    from rich import box
    from rich.table import Table
    from rich.text import Text

    terminal = sys.stdout.isatty()
    made = Table(box=box.SIMPLE_HEAD if terminal else None, pad_edge=False, header_style="bold")
    chosen = [Column(column) if isinstance(column, str) else column for column in columns]
    for column in chosen:
        title = Text(column.title or column.field)
        made.add_column(title, justify="right" if column.right else "left", overflow="fold")
    for row in rows:
        fields = _mapping(row)
        made.add_row(*(Text(plain((column.show or cell)(fields.get(column.field)))) for column in chosen))
    return made


def cell(value: Any) -> str:
    """A value as people read it: nothing for None, days for instants, four digits for fractions."""
    if value is None:
        return ""
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, float):
        return f"{value:.4g}"
    if isinstance(value, datetime):
        return f"{value.astimezone(timezone.utc):%Y-%m-%d}"
    if isinstance(value, enum.Enum):
        return str(value.value)
    if isinstance(value, (set, frozenset)):
        value = sorted(value)
    if isinstance(value, (list, tuple)):
        return ", ".join(cell(item) for item in value)
    return str(value)


def jsonable(value: Any) -> Any:
    """The value as JSON can hold it: instants in UTC with Z, enums by value, non-finite numbers as null."""
    if isinstance(value, enum.Enum):
        return jsonable(value.value)
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if value is None or isinstance(value, (str, int)):
        return value
    if isinstance(value, datetime):
        return value.astimezone(timezone.utc).isoformat().replace("+00:00", "Z")
    if isinstance(value, Path):
        return str(value)
    if isinstance(value, (set, frozenset)):
        return [jsonable(item) for item in sorted(value)]
    if isinstance(value, (list, tuple)):
        return [jsonable(item) for item in value]
    return {str(key): jsonable(item) for key, item in _mapping(value).items()}


def _mapping(value: Any) -> Mapping[Any, Any]:
    if isinstance(value, Mapping):
        return value
    if is_dataclass(value) and not isinstance(value, type):
        return asdict(value)
    raise TypeError(f"{type(value).__name__} is no result")


def _dumps(value: Any, indent: int | None = None) -> str:
    return json.dumps(jsonable(value), sort_keys=True, allow_nan=False, indent=indent)
