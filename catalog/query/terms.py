"""The algebra of filters: terms and their combinations, each as SQL and as a predicate, which agree.

`clause` is SQL for a statement that selects from Adapter joined with Repository; `match` is called with a
plain row, as `catalog.query.query_row` makes it. Whether an adapter is accepted depends on the rule set, so a
clause takes `refusing`, the reasons for which they refuse; a row contains the verdict. Values are never null
here (`catalog.query.fields`), so that Not is the complement in both.
"""

from __future__ import annotations

import re
from abc import ABC, abstractmethod
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass
from datetime import UTC, date, datetime, timedelta
from typing import Any, TypeAlias

from sqlalchemy import ColumnElement, and_, not_, or_, true

from catalog.adapters import Engine, verdict
from catalog.database import Adapter
from catalog.query.fields import FIELDS, NAMES, AsciiLower, fold, is_read, refused_by, texts_in

Number: TypeAlias = "int | float"
_PLAIN_WORD = re.compile(r"[a-z0-9_./@#+][a-z0-9_./@#+-]*")
# Next to a field these would be read as operators of another language.
_OPERATORS = ("and", "or", "not")
# After the name of a field these would be.
COMPARING_WORDS = ("is", "in", "like", "contains", "equals", "between")
_PLAIN_VALUE = re.compile(r"[a-z0-9_./@#+:-]+")


@dataclass(frozen=True)
class Period:
    """A year, a month or a day, in UTC."""

    year: int
    month: int | None = None
    day: int | None = None

    def __post_init__(self) -> None:
        _ = self.start  # raises ValueError where the calendar has no such day

    @property
    def start(self) -> datetime:
        """Its first instant."""
        return datetime(self.year, self.month or 1, self.day or 1, tzinfo=UTC)

    @property
    def end(self) -> datetime | None:
        """The first instant after it; None where the calendar of Python ends before."""
        try:
            if self.day is not None:
                return self.start + timedelta(days=1)
            if self.month is not None:
                return datetime(self.year + self.month // 12, self.month % 12 + 1, 1, tzinfo=UTC)
            return datetime(self.year + 1, 1, 1, tzinfo=UTC)
        except (ValueError, OverflowError):
            return None

    def shift(self, by: int) -> Period:
        """The period this many units later; raises ValueError outside of Python's calendar."""
        if self.day is not None:
            day = date.fromordinal(self.start.toordinal() + by)
            return Period(day.year, day.month, day.day)
        if self.month is not None:
            months = 12 * self.year + self.month - 1 + by
            return Period(months // 12, months % 12 + 1)
        return Period(self.year + by)

    def __str__(self) -> str:
        parts = [f"{self.year:04}"] + [f"{part:02}" for part in (self.month, self.day) if part is not None]
        return "-".join(parts)


class _Part(ABC):
    """A part of a query, with its two faces."""

    @abstractmethod
    def clause(self, refusing: Collection[str]) -> ColumnElement[bool]:
        """The adapters that match, as SQL over Adapter and Repository; `refusing` decides the verdict."""

    @abstractmethod
    def match(self, row: Mapping[str, Any]) -> bool:
        """Whether a row of `query_row` matches."""


class _Term(_Part):
    """A test of the values of one field: `_sql` and `_holds` test a single value."""

    field: str

    def clause(self, refusing: Collection[str]) -> ColumnElement[bool]:
        return FIELDS[self.field].some(self._sql, refusing)

    def match(self, row: Mapping[str, Any]) -> bool:
        return any(self._holds(value) for value in FIELDS[self.field].values(row))

    @abstractmethod
    def _sql(self, value: Any) -> ColumnElement[bool]:
        """Whether a value, as SQL, passes the test."""

    @abstractmethod
    def _holds(self, value: Any) -> bool:
        """Whether a value passes the test."""


@dataclass(frozen=True)
class Equals(_Term):
    """A text of the field is this one, which is folded."""

    field: str
    text: str

    def _sql(self, value: Any) -> ColumnElement[bool]:
        return AsciiLower(value) == self.text

    def _holds(self, value: Any) -> bool:
        return fold(value) == self.text


@dataclass(frozen=True)
class Prefix(_Term):
    """A text of the field begins with this one, which is folded."""

    field: str
    text: str

    def _sql(self, value: Any) -> ColumnElement[bool]:
        return AsciiLower(value).startswith(self.text, autoescape=True)

    def _holds(self, value: Any) -> bool:
        return fold(value).startswith(self.text)


@dataclass(frozen=True)
class Present(_Term):
    """The field has a value that is not an empty text."""

    field: str

    def _sql(self, value: Any) -> ColumnElement[bool]:
        return value != "" if FIELDS[self.field].kind == "text" else true()

    def _holds(self, value: Any) -> bool:
        return bool(value != "")


@dataclass(frozen=True)
class Flag(_Term):
    """The field is yes, or no."""

    field: str
    yes: bool

    def _sql(self, value: Any) -> ColumnElement[bool]:
        return and_(value) if self.yes else not_(value)

    def _holds(self, value: Any) -> bool:
        return bool(value) is self.yes


@dataclass(frozen=True)
class Between(_Term):
    """A number or date of the field lies between two, both included; None is an open end."""

    field: str
    low: Number | Period | None
    high: Number | Period | None

    def _sql(self, value: Any) -> ColumnElement[bool]:
        bounds = [true()] if self._from is None else [value >= self._from]
        if self._until is not None:
            bounds.append(value < self._until if isinstance(self.high, Period) else value <= self._until)
        return and_(*bounds)

    def _holds(self, value: Any) -> bool:
        if self._from is not None and value < self._from:
            return False
        if self._until is None:
            return True
        return bool(value < self._until if isinstance(self.high, Period) else value <= self._until)

    @property
    def _from(self) -> Any:
        return self.low.start if isinstance(self.low, Period) else self.low

    @property
    def _until(self) -> Any:
        return self.high.end if isinstance(self.high, Period) else self.high


@dataclass(frozen=True)
class Runs(_Term):
    """An engine runs the adapter as PEFT does, by its rules; for `runs_unknown`, that is not known."""

    field: str
    engine: Engine

    def _sql(self, value: Any) -> ColumnElement[bool]:
        return and_(is_read() if self.field == "runs" else not_(is_read()), not_(refused_by(self.engine)))

    def _holds(self, value: Any) -> bool:
        return verdict(self.engine, value).runs is (True if self.field == "runs" else None)


@dataclass(frozen=True)
class Word(_Part):
    """This text, which is folded, occurs in the name, a tag or the text of the card."""

    text: str

    def clause(self, refusing: Collection[str]) -> ColumnElement[bool]:
        def inside(value: Any) -> ColumnElement[bool]:
            return AsciiLower(value).contains(self.text, autoescape=True)

        clauses = (FIELDS[name].some(inside, refusing) for name in ("adapter", "tag"))
        return or_(*clauses, inside(Adapter.card_text))

    def match(self, row: Mapping[str, Any]) -> bool:
        texts = (row["adapter"], *texts_in(row["tags"]), row["card"])
        return any(self.text in fold(text) for text in texts)


@dataclass(frozen=True)
class Not(_Part):
    """What the part does not match."""

    part: Query

    def __post_init__(self) -> None:
        _stands_alone(self.part)

    def clause(self, refusing: Collection[str]) -> ColumnElement[bool]:
        return not_(self.part.clause(refusing))

    def match(self, row: Mapping[str, Any]) -> bool:
        return not self.part.match(row)


@dataclass(frozen=True)
class _Joined(_Part):
    """Several parts; those of the same kind are taken apart, so that equal queries are equal values."""

    parts: tuple[Query, ...]

    def __post_init__(self) -> None:
        inside = (part.parts if isinstance(part, type(self)) else (part,) for part in self.parts)
        flat = tuple(part for parts in inside for part in parts)
        if len(flat) == 1 or (not flat and isinstance(self, Or)):
            raise ValueError("a conjunction or disjunction joins two parts or more")
        _stands_alone(*flat)
        object.__setattr__(self, "parts", flat)


class And(_Joined):
    """What all parts match; without parts, everything."""

    def clause(self, refusing: Collection[str]) -> ColumnElement[bool]:
        return and_(true(), *(part.clause(refusing) for part in self.parts))

    def match(self, row: Mapping[str, Any]) -> bool:
        return all(part.match(row) for part in self.parts)


class Or(_Joined):
    """What one of the parts matches, of which there are two or more."""

    def clause(self, refusing: Collection[str]) -> ColumnElement[bool]:
        return or_(*(part.clause(refusing) for part in self.parts))

    def match(self, row: Mapping[str, Any]) -> bool:
        return any(part.match(row) for part in self.parts)


Query: TypeAlias = And | Or | Not | Word | Equals | Prefix | Present | Flag | Between | Runs


def texts_asked(query: Query, field: str) -> Iterator[Equals | Prefix]:
    """The tests of the texts of a field in a query, without those inside of what it leaves out."""
    if isinstance(query, (And, Or)):
        for part in query.parts:
            yield from texts_asked(part, field)
    elif isinstance(query, (Equals, Prefix)) and query.field == field:
        yield query


def asks_for(query: Query, field: str) -> bool:
    """Whether a query has a test of a field, also inside of what it leaves out."""
    if isinstance(query, Not):
        return asks_for(query.part, field)
    if isinstance(query, (And, Or)):
        return any(asks_for(part, field) for part in query.parts)
    return isinstance(query, _Term) and query.field == field


def _stands_alone(*parts: Query) -> None:
    """Raises ValueError for a part that matches everything: it has no text inside another query."""
    if any(isinstance(part, And) and not part.parts for part in parts):
        raise ValueError("the query that matches everything stands alone")


def to_text(query: Query) -> str:
    """The query as canonical text: `parse(to_text(query)) == query` for every query that `parse` gives."""
    if isinstance(query, And):
        return " ".join(map(_text_after, query.parts, (None, *query.parts)))
    if isinstance(query, Or):
        if (field := _common_field(query)) is not None:
            return f"{field}:{','.join(_value(part) for part in query.parts)}"
        return " | ".join(to_text(part) for part in query.parts)
    if isinstance(query, Not):
        grouped = isinstance(query.part, And) or _is_loose(query.part)
        return f"-({to_text(query.part)})" if grouped else f"-{to_text(query.part)}"
    if isinstance(query, Word):
        bare = _PLAIN_WORD.fullmatch(query.text) and query.text not in _OPERATORS
        return query.text if bare else _quote(query.text)
    return f"{query.field}:{_value(query)}"


def _text_after(part: Query, before: Query | None) -> str:
    """The text of one part of a conjunction after another one."""
    if isinstance(part, Word) and isinstance(before, Word):
        compares = before.text in NAMES and part.text in COMPARING_WORDS
        return _quote(part.text) if compares else to_text(part)
    return f"({to_text(part)})" if _is_loose(part) else to_text(part)


def number_text(value: Number) -> str:
    """A number as a filter has it: the shortest text that parses to it."""
    return repr(value).removesuffix(".0")


def _common_field(query: Or) -> str | None:
    """The field whose values commas can join; None where the parts are of several fields or of none."""
    fields = {part.field if isinstance(part, _Term) else None for part in query.parts}
    return fields.pop() if len(fields) == 1 else None


def _is_loose(query: Query) -> bool:
    """Whether it binds less tightly than terms beside each other."""
    return isinstance(query, Or) and _common_field(query) is None


def _value(term: Query) -> str:
    if isinstance(term, Flag):
        return "yes" if term.yes else "no"
    if isinstance(term, Between):
        low, high = (_end(end) for end in (term.low, term.high))
        return low if low == high else f"{low}..{high}"
    if isinstance(term, Runs):
        term = Equals(term.field, fold(term.engine.name))
    if isinstance(term, (Equals, Prefix)):
        text = term.text if _PLAIN_VALUE.fullmatch(term.text) else _quote(term.text)
        return f"{text}*" if isinstance(term, Prefix) else text
    return "*"


def _end(end: Number | Period | None) -> str:
    return "" if end is None else str(end) if isinstance(end, Period) else number_text(end)


def _quote(text: str) -> str:
    escaped = text.replace("\\", "\\\\").replace('"', '\\"')
    return f'"{escaped}"'
