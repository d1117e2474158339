"""One sink for results, on stdout: a table, JSON, a JSON line a row, CSV or TSV; talk goes to stderr.

What comes from the Hub is hostile: control characters, line breaks and marks that turn the reading direction
are shown as escapes, and rich's markup is never interpreted. JSON and CSV hold the values as they are, but
CSV puts an apostrophe before a text that a spreadsheet would take for a formula.
"""

from __future__ import annotations

import csv
import enum
import io
import json
import math
import re
import shutil
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, is_dataclass, replace
from dataclasses import fields as fields_of
from datetime import UTC, datetime
from itertools import chain, zip_longest
from pathlib import Path
from typing import Any, TypeVar

import click

from loradex.progress import ProgressCallback, show_progress
from loradex.rows import cell_text
from loradex.text import plain

Command = TypeVar("Command", bound=Callable[..., Any])

# What is not read on a terminal is never folded.
WIDTH_WITHOUT_TERMINAL = 1 << 30
# A column of a table becomes narrower than its longest word, but than this only where all others are so too.
NARROWEST = 12
# What the widest character takes.
_LEAST = 2
# Between two words that stay on one line.
NO_BREAK = "\u00a0"
_GAP = "  "
# A word that is too long is broken after one of these where it can be.
_JOINTS = "/-_.:,@"
# A cell that begins so is a formula to spreadsheets, which may send its neighbours elsewhere (OWASP, CSV
# Injection); the wide forms are those of East Asian keyboards.
_FORMULA = tuple("=+-@\t\r\n＝＋－＠")


# Where a context's `meta` holds the command that runs.
RUNNING = "loradex.command"
# A parameter in a text of the library, with or without a value, or a call with one.
_PARAMETER = re.compile(r"`(?P<name>[a-z_]+)(?:=(?P<value>[^`]+))?`")
_CALL = re.compile(r"`(?P<name>[a-z_]+)\((?P<arguments>[^`()]*)\)`")
# The command of a call whose name is another.
_COMMANDS = {
    "import_scores": "scores import",
    "keep_base": "base keep",
    "repair_weights": "blobs repair",
    "run_study": "study run",
    "upgrade": "db upgrade",
}


class Format(enum.StrEnum):
    """How results are written to stdout."""

    TABLE = "table"
    JSON = "json"
    JSONL = "jsonl"
    CSV = "csv"
    TSV = "tsv"


@dataclass(frozen=True)
class Column:
    """A field of the rows as a column; numbers look better with `right`, and `show` says it for people.

    Without `in_table` it is a column of CSV and TSV alone.
    """

    field: str
    title: str = ""
    right: bool = False
    show: Callable[[Any], str] | None = None
    in_table: bool = True


@dataclass(frozen=True)
class Output:
    """Where a command puts its results; `quiet` silences the talk, never the results."""

    format: Format = Format.TABLE
    quiet: bool = False

    def document(self, value: Any, render: Callable[[Any], str]) -> None:
        """Writes one result: as JSON, or as the text that `render` makes of it, made safe line by line."""
        if self.format in _DIALECTS:
            click.echo(delimited_text([value], (), self.format), nl=False)
        elif self.format is not Format.TABLE:
            click.echo(_dumps(value, indent=2 if self.format is Format.JSON else None))
        else:
            click.echo("\n".join(plain(line) for line in render(value).split("\n")))

    def rows(
        self, rows: Iterable[Any], columns: Sequence[str | Column], fields: Sequence[str] | None = None
    ) -> None:
        """Writes a list: JSON, JSON lines, CSV or TSV with all fields, or a table of the columns.

        With the names of the `fields`, CSV and TSV are written row by row.
        """
        if self.format is Format.JSONL:
            for row in rows:
                click.echo(_dumps(row))
        elif self.format is Format.JSON:
            click.echo(_dumps(list(rows), indent=2))
        elif self.format in _DIALECTS and fields is not None:
            for line in delimited_lines(rows, fields, self.format):
                click.echo(line, nl=False)
        elif self.format in _DIALECTS:
            click.echo(delimited_text(rows, columns, self.format), nl=False)
        elif lines := table(rows, columns):
            header, *body = lines
            click.echo("\n".join([click.style(header, bold=True), *body]))
        else:
            self.say("nothing to list")

    def say(self, text: str) -> None:
        """Writes a line of talk to stderr, unless quiet; parameters are named as options."""
        if not self.quiet:
            click.echo(plain(name_options(text)), err=True)

    def say_all(self, texts: Iterable[str]) -> None:
        """Writes each text as a line of talk."""
        for text in texts:
            self.say(text)

    @contextmanager
    def show_progress(self) -> Iterator[ProgressCallback]:
        """What a call of the library reports its progress to: bars on a terminal, else a line a minute.

        Notes are written as talk; with `quiet` there is neither.
        """
        if self.quiet:
            yield lambda _event: None
            return
        with show_progress(self.say) as callback:
            yield callback


def output_options(*, lists: bool) -> Callable[[Command], Command]:
    """Gives a command --json, and the other formats where it lists rows; its App's `output` then has it."""

    def decorate(command: Command) -> Command:
        if lists:
            command = _format_option("--tsv", Format.TSV, "The same with tabs.")(command)
            command = _format_option("--csv", Format.CSV, "A line of names, then one a row.")(command)
            command = _format_option("--jsonl", Format.JSONL, "One JSON document a row.")(command)
        return _format_option("--json", Format.JSON, "One JSON document.")(command)

    return decorate


def _format_option(flag: str, output_format: Format, help_text: str) -> Callable[[Command], Command]:
    def choose(context: click.Context, _option: click.Parameter, value: bool) -> None:
        if not value or context.obj is None:
            return
        if context.obj.output.format is not Format.TABLE:
            other = f"--{context.obj.output.format}"
            raise click.UsageError(f"{other} and {flag} are two formats of one output; give one of them.")
        context.obj = replace(context.obj, output=replace(context.obj.output, format=output_format))

    return click.option(flag, is_flag=True, expose_value=False, callback=choose, help=help_text)


def name_options(text: str) -> str:
    """The text of the library with each call named as its command, and each `parameter` of the command that
    runs as its option; in a thread none runs.
    """
    text = _CALL.sub(_command_of, text)
    context = click.get_current_context(silent=True)
    if context is None:
        return text
    parameters = context.meta.get(RUNNING, context.command).params
    return _PARAMETER.sub(lambda match: _option_of(match, parameters), text)


def _command_of(match: re.Match[str]) -> str:
    """`crawl(weights="keep")` as `loradex crawl --weights keep`."""
    words = ["loradex", _COMMANDS.get(match["name"], match["name"])]
    for argument in filter(None, match["arguments"].split(", ")):
        name, sign, value = argument.partition("=")
        words.append(_flag(name, value) if sign and name.isidentifier() else argument)
    return f"`{' '.join(words)}`"


def _flag(name: str, value: str | None) -> str:
    """A parameter as an option, with its value but for True."""
    flag = name if name.startswith("-") else f"--{name.replace('_', '-')}"
    return flag if value is None or value == "True" else f"{flag} {value.strip(chr(34))}"


def _option_of(match: re.Match[str], parameters: Sequence[click.Parameter]) -> str:
    """`rank` as --rank, `rank=16` as --rank 16; what the command has no option for stays as it is."""
    name, value = match.group("name", "value")
    options = [parameter for parameter in parameters if isinstance(parameter, click.Option)]
    of_flag = (option for option in options if f"--{name.replace('_', '-')}" in option.opts)
    of_name = (option for option in options if option.name == name)
    option = next(of_flag, None) or next(of_name, None)
    return match.group() if option is None else _flag(max(option.opts, key=len), value)


def width() -> int:
    """The columns of the terminal on stdout; without one, more than any text has."""
    return shutil.get_terminal_size().columns if sys.stdout.isatty() else WIDTH_WITHOUT_TERMINAL


def table(rows: Iterable[Any], columns: Sequence[str | Column]) -> list[str]:
    """The rows (mappings or dataclasses) as the lines of a table below its header; none without rows.

    What is too wide for the terminal goes on below, between words where that is possible; nothing is cut off.
    """
    shown_columns = [Column(column) if isinstance(column, str) else column for column in columns]
    shown_columns = [column for column in shown_columns if column.in_table]
    texts = [
        tuple(plain((column.show or cell_text)(fields.get(column.field))) for column in shown_columns)
        for fields in map(_mapping, rows)
    ]
    if not texts:
        return []
    texts.insert(0, tuple(column.title or column.field for column in shown_columns))
    widths = _widths(texts, width() - len(_GAP) * (len(shown_columns) - 1))
    lines = []
    for row in texts:
        folded = [fold(text, room) for text, room in zip(row, widths, strict=True)]
        for parts in zip_longest(*folded, fillvalue=""):
            cells = zip(parts, widths, shown_columns, strict=True)
            lines.append(_GAP.join(_pad(part, room, column.right) for part, room, column in cells))
    return [line.rstrip() for line in lines]


def delimited_text(rows: Iterable[Any], columns: Sequence[str | Column], output_format: Format) -> str:
    """The rows as CSV (RFC 4180) or with tabs, below their fields' names: those of the columns first.

    The fields are those of JSON. Nothing stands for null; lists and objects are JSON. A text that begins as
    a formula does gets an apostrophe in front.
    """
    documents = [jsonable(row) for row in rows]
    first = [column if isinstance(column, str) else column.field for column in columns]
    fields = {name for row in documents for name in row} if documents else set(first)
    names = [name for name in dict.fromkeys(first) if name in fields] + sorted(fields.difference(first))
    return "".join(delimited_lines(documents, names, output_format))


def delimited_lines(rows: Iterable[Any], names: Sequence[str], output_format: Format) -> Iterator[str]:
    """The header and the rows as lines of CSV or TSV, each as soon as it is there."""
    documents = (jsonable(row) for row in rows)
    cells = ([_delimited_cell(row.get(name)) for name in names] for row in documents)
    for values in chain([names], cells):
        written = io.StringIO()
        csv.writer(written, **_DIALECTS[output_format]).writerow(values)
        yield written.getvalue()


_DIALECTS: Mapping[Format, Any] = {
    Format.CSV: {"lineterminator": "\r\n"},
    Format.TSV: {"delimiter": "\t", "lineterminator": "\n"},
}


def _delimited_cell(value: Any) -> str:
    if value is None:
        return ""
    if isinstance(value, str):
        return f"'{value}" if value.startswith(_FORMULA) else value
    return json.dumps(value, sort_keys=True, allow_nan=False, ensure_ascii=False)


def label_lines(pairs: Iterable[tuple[str, str]], indent: str = "", least: int = 0) -> str:
    """Lines of `label  value`, the values aligned and wrapped below each other; empty values are left out.

    The labels take `least` columns or what the longest one takes.
    """
    from rich.cells import cell_len

    rows = [(plain(label), plain(value)) for label, value in pairs if value.strip()]
    left = max((cell_len(label) for label, _ in rows), default=0)
    left = max(left, least)
    room = max(width() - len(indent) - left - len(_GAP), NARROWEST)
    lines = []
    for label, value in rows:
        for part in fold(value, room):
            lines.append(f"{indent}{_pad(label, left)}{_GAP}{part}".rstrip())
            label = ""
    return "\n".join(lines)


def fold(text: str, room: int) -> list[str]:
    """The text as lines of at most `room` columns, broken between words, else after a joint of a name."""
    from rich.cells import cell_len

    room = max(room, 1)
    if cell_len(text) <= room:
        return [text.replace(NO_BREAK, " ")]
    lines, line = [], ""
    for word in text.split(" "):
        joined = f"{line} {word}" if line else word
        if cell_len(joined) <= room:
            line = joined
            continue
        if line:
            lines.append(line)
        while cell_len(word) > room:
            cut = _cut(word, room)
            lines.append(word[:cut])
            word = word[cut:]
        line = word
    if line or not lines:
        lines.append(line)
    return [line.replace(NO_BREAK, " ") for line in lines]


def _cut(word: str, room: int) -> int:
    """How many characters of a word to put on a line: up to a joint in its second half, else what fits."""
    from rich.cells import cell_len

    columns, fits = 0, 0
    for character in word:
        columns += cell_len(character)
        if columns > room:
            break
        fits += 1
    joint = max(word.rfind(joint, 0, fits) for joint in _JOINTS) + 1
    return joint if joint > fits // 2 else max(fits, 1)


def _widths(texts: Sequence[Sequence[str]], room: int) -> list[int]:
    """The columns' widths: those with spaces give way first, down to their longest word, then the widest.

    None becomes narrower than a character, so that a terminal of a few columns gets a table wider than it.
    """
    from rich.cells import cell_len

    room = max(room, _LEAST)
    columns = list(zip(*texts, strict=True))
    widths = [min(max(map(cell_len, column)), room) for column in columns]
    words = [max(cell_len(word) for text in column for word in text.split(" ")) for column in columns]
    for least in (words, [NARROWEST] * len(columns), [_LEAST] * len(columns)):
        while sum(widths) > room:
            wide = [n for n, size in enumerate(widths) if size > least[n]]
            if not wide:
                break
            widths[max(wide, key=widths.__getitem__)] -= 1
    return widths


def _pad(text: str, room: int, right: bool = False) -> str:
    from rich.cells import cell_len

    space = " " * (room - cell_len(text))
    return space + text if right else text + space


def jsonable(value: Any) -> Any:
    """The value as JSON can hold it: instants in UTC with Z, enums by value, non-finite numbers as null."""
    if isinstance(value, enum.Enum):
        return jsonable(value.value)
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if value is None or isinstance(value, (str, int)):
        return value
    if isinstance(value, datetime):
        return value.astimezone(UTC).isoformat().replace("+00:00", "Z")
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
        # `asdict` would copy every value first: for 100,000 rows that took longer than to read them.
        return {field.name: getattr(value, field.name) for field in fields_of(value)}
    raise TypeError(f"{type(value).__name__} is not a result")


def _dumps(value: Any, indent: int | None = None) -> str:
    return json.dumps(jsonable(value), sort_keys=True, allow_nan=False, indent=indent)
