"""The current adapters of a catalog as plain values: the data for comparing, drawing and selecting them."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass, fields
from itertools import chain
from typing import Any

from sqlalchemy import ColumnElement, ScalarSelect, Select, func, select
from sqlalchemy.orm import Session

from catalog.adapters import StoredAdapter
from catalog.database import (
    Adapter,
    AdapterReason,
    Annotation,
    AnnotationTag,
    BaseModelRow,
    Repository,
    WeightsFile,
    count_hidden,
    count_rows,
    is_hidden,
)
from catalog.query import And, Flag, Not, Query, asks_for

# The fields of `StoredAdapter` that are no columns of its own table.
_ELSEWHERE: dict[str, Any] = {
    "repository": Repository.name,
    "hub_id": Repository.hub_id,
    "owner": Repository.owner,
    "base": BaseModelRow.canonical,
    "tensor_digest": WeightsFile.tensor_digest,
    "library": Repository.library,
    "front": Adapter.card_front,
}
_NAMES = [field.name for field in fields(StoredAdapter)]
_COLUMNS = [
    _ELSEWHERE[name] if name in _ELSEWHERE else getattr(Adapter, name)
    for name in _NAMES[: _NAMES.index("is_refused")]
]
# In the order of the fields of `StoredAdapter`; those of maps follow.
COLUMNS, SHOWN_COLUMNS = _COLUMNS[: _NAMES.index("health")], _COLUMNS[_NAMES.index("health") :]
# By the names of their fields.
ALL_COLUMNS: dict[str, Any] = dict(zip(_NAMES, _COLUMNS, strict=False))
# Gives those of some rows that match, and all that match for None.
Among = Callable[[Collection[int] | None], set[int]]
# Up to so many rows are looked up, so many in a statement; of more, all that match are read.
_MOST_LOOKED_UP, _MOST_IDS = 100_000, 5000
_SCATTERED = 5
_FETCHED = 500
HIDDEN_OUT = Not(Flag("hidden", True))
BY_NAME: tuple[Any, ...] = (Repository.name, Repository.hub_id, Adapter.subfolder)


def from_current(columns: Select[*tuple[Any, ...]]) -> Select[Any]:
    """The statement over the current adapters that still exist, with their repository and base model."""
    query = columns.join(Adapter.repository).outerjoin(Adapter.base_model)
    return query.where(Adapter.current, Repository.gone_at.is_(None))


def from_visible(columns: Select[*tuple[Any, ...]], where: Query | None = None) -> Select[Any]:
    """The same without those that the user hid, unless the filter asks for `hidden`."""
    query = from_current(columns)
    return query if where is not None and asks_for(where, "hidden") else query.where(~is_hidden())


def plain_rows(session: Session, statement: Select[*tuple[Any, ...]]) -> Iterator[Any]:
    """The rows of a statement of columns, without what the session does for each row.

    A row that is fetched by itself takes twice as long, and so does one of many: more than 700 new objects
    make Python look for unreachable ones.
    """
    rows = session.connection().execute(statement.execution_options(yield_per=_FETCHED))
    return chain.from_iterable(rows.partitions())


def matching(session: Session, statement: Select[Any], ids: Collection[int] | None = None) -> set[int]:
    """The rows that a statement of ids gives, or those of some rows among them."""
    if ids is None or len(ids) > _MOST_LOOKED_UP:
        every = set(session.scalars(statement))
        return every if ids is None else every.intersection(ids)
    listed = sorted(ids)
    parts = (listed[start : start + _MOST_IDS] for start in range(0, len(listed), _MOST_IDS))
    return {id_ for part in parts for id_ in session.scalars(statement.where(Adapter.id.in_(part)))}


def of_base(session: Session, statement: Select[Any], base: str) -> Select[Any]:
    """The statement over the adapters of one base model.

    Few are looked up in the index of base models; it would give many in the order of their weights, which are
    five times as slow to read as all adapters in their own.
    """
    count = select(func.count()).select_from(Adapter)
    indexed = Adapter.base_model_id == _id_of(base)
    of_base = session.scalar(count.where(indexed)) or 0
    if of_base * _SCATTERED < (session.scalar(count) or 0):
        return statement.where(indexed)
    return statement.where(is_of_base(base))


def is_of_base(base: str) -> ColumnElement[bool]:
    """Whether an adapter is of a base model, as no index has it."""
    return func.coalesce(Adapter.base_model_id, 0) == _id_of(base)


def _id_of(base: str) -> ScalarSelect[int]:
    return select(BaseModelRow.id).where(BaseModelRow.canonical == base).scalar_subquery()


def without_hidden(session: Session, where: Query | None) -> Query | None:
    """The filter that leaves out what the user hid too, unless it asks for `hidden` or nothing is hidden."""
    if (where is not None and asks_for(where, "hidden")) or not count_hidden(session):
        return where
    return HIDDEN_OUT if where is None or where == And(()) else And((where, HIDDEN_OUT))


def hidden_notes(session: Session, where: Query | None = None, of: str = "") -> list[str]:
    """A sentence on how many adapters that match the filter are left out because the user hid them; `of` says
    of what.
    """
    if where is not None and asks_for(where, "hidden"):
        return []
    hidden = from_current(select(Adapter.id)).where(is_hidden())
    count = count_rows(session, hidden if where is None else hidden.where(where.clause(())))
    if not count:
        return []
    what, them = ("hidden adapter is", "it") if count == 1 else ("hidden adapters are", "them")
    return [f"{count:,} {what} left out{of}; the filter hidden:yes lists {them}."]


@dataclass(frozen=True)
class PageNotes:
    """What other tables have of some adapters: reasons by row; tags, notes and hidden marks of the user by
    (hub_id, subfolder).
    """

    reasons: dict[int, list[str]]
    tags: dict[tuple[str, str], list[str]]
    marks: dict[tuple[str, str], tuple[str | None, bool]]

    def verdict(self, id_: int, refusing: Collection[str]) -> str:
        """ "skipped" if one of its reasons refuses an adapter, else "accepted"."""
        return "accepted" if set(refusing).isdisjoint(self.reasons.get(id_, ())) else "skipped"


def read_page_notes(session: Session, page: Sequence[Any]) -> PageNotes:
    """What other tables have of the adapters of these rows, which have an id and a hub_id."""
    ids, hub_ids = [row.id for row in page], {row.hub_id for row in page}
    notes = PageNotes({}, {}, {})
    reasons = select(AdapterReason.adapter_id, AdapterReason.reason).order_by(AdapterReason.position)
    for key, reason in session.execute(reasons.where(AdapterReason.adapter_id.in_(ids))):
        notes.reasons.setdefault(key, []).append(reason)
    tags = select(AnnotationTag.hub_id, AnnotationTag.subfolder, AnnotationTag.tag)
    for *place, tag in session.execute(
        tags.where(AnnotationTag.hub_id.in_(hub_ids)).order_by(AnnotationTag.tag)
    ):
        notes.tags.setdefault((place[0], place[1]), []).append(tag)
    marks = select(Annotation.hub_id, Annotation.subfolder, Annotation.note, Annotation.hidden)
    for hub_id, subfolder, note, hidden in session.execute(marks.where(Annotation.hub_id.in_(hub_ids))):
        notes.marks[hub_id, subfolder] = note, hidden
    return notes
