"""Tags, notes and hidden marks of a user, by the `_id` of a repository and the folder: for all its commits.

They outlive the adapters: a crawl that removes or renames a repository leaves them as they are.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from sqlalchemy import ColumnElement, and_, delete, exists, func, select
from sqlalchemy.orm import Session, aliased

from catalog.adapters import AdapterNotes, adapter_name
from catalog.database.schema import Adapter, Annotation, AnnotationTag, Repository
from catalog.errors import UsageError
from catalog.files import UNSTORABLE

LONGEST_TAG = 100
LONGEST_NOTE = 10_000
_BLOCK = 5000


def is_hidden() -> ColumnElement[bool]:
    """Whether a user hid an adapter, in a statement on Adapter and Repository.

    The repositories with a hidden mark are found first, once for the statement: they are few.
    """
    other = aliased(Repository)
    hub_ids = select(Annotation.hub_id).where(Annotation.hidden)
    repositories = select(other.id).where(other.hub_id.in_(hub_ids))
    marked = exists().where(_of_adapter(Annotation), Annotation.hidden)
    return and_(Adapter.repository_id.in_(repositories), marked.correlate(Adapter, Repository))


def _of_adapter(table: type[Annotation] | type[AnnotationTag]) -> ColumnElement[bool]:
    return and_(table.hub_id == Repository.hub_id, table.subfolder == Adapter.subfolder)


def check_tag(tag: str) -> str:
    """The tag without spaces around it; raises UsageError for one that is empty, too long or unprintable."""
    tag = tag.strip()
    if not tag or len(tag) > LONGEST_TAG or not tag.isprintable():
        raise UsageError(
            f"{tag[:40]!r} is not a tag; give 1 to {LONGEST_TAG} printable characters on one line."
        )
    return tag


def check_note(note: str) -> str:
    """The note without spaces around it; raises UsageError for one that is empty, too long or unstorable."""
    note = note.strip()
    if not note or len(note) > LONGEST_NOTE or UNSTORABLE.search(note):
        raise UsageError(f"A note has 1 to {LONGEST_NOTE:,} characters; this one has {len(note):,}.")
    return note


def read_notes(session: Session, hub_id: str, subfolder: str, adapter: str = "") -> AdapterNotes:
    """What is written about one adapter."""
    row = session.get(Annotation, (hub_id, subfolder))
    tags = session.scalars(
        select(AnnotationTag.tag)
        .where(AnnotationTag.hub_id == hub_id, AnnotationTag.subfolder == subfolder)
        .order_by(AnnotationTag.tag)
    )
    note, hidden = (None, False) if row is None else (row.note, row.hidden)
    return AdapterNotes(adapter, hub_id, subfolder, tuple(tags), note, hidden)


def all_notes(session: Session) -> list[AdapterNotes]:
    """What is written about all adapters, by name; those that the catalog does not contain come last."""
    tags: dict[tuple[str, str], list[str]] = {}
    for row in session.scalars(select(AnnotationTag).order_by(AnnotationTag.tag)):
        tags.setdefault((row.hub_id, row.subfolder), []).append(row.tag)
    marks = {(row.hub_id, row.subfolder): row for row in session.scalars(select(Annotation))}
    keys = {*tags, *marks}
    names: dict[str, str] = {}
    hub_ids = sorted({hub_id for hub_id, _ in keys})
    for start in range(0, len(hub_ids), _BLOCK):
        block = Repository.hub_id.in_(hub_ids[start : start + _BLOCK])
        named = select(Repository.hub_id, Repository.name).where(block)
        names |= dict(session.execute(named).all())
    rows = []
    for key in keys:
        name, mark = names.get(key[0]), marks.get(key)
        rows.append(
            AdapterNotes(
                "" if name is None else adapter_name(name, key[1]),
                *key,
                tuple(tags.get(key, ())),
                mark.note if mark else None,
                mark.hidden if mark else False,
            )
        )
    return sorted(rows, key=lambda row: (not row.adapter, row.adapter, row.hub_id, row.subfolder))


def write_notes(session: Session, row: AdapterNotes) -> None:
    """Replaces what is written about an adapter; what is empty is removed."""
    for table in (AnnotationTag, Annotation):
        session.execute(delete(table).where(table.hub_id == row.hub_id, table.subfolder == row.subfolder))
    for tag in sorted(set(row.tags)):
        session.add(AnnotationTag(hub_id=row.hub_id, subfolder=row.subfolder, tag=tag))
    if row.note is not None or row.hidden:
        session.add(Annotation(hub_id=row.hub_id, subfolder=row.subfolder, note=row.note, hidden=row.hidden))
    session.flush()


def count_hidden(session: Session) -> int:
    """The number of current adapters that a user hid, of repositories that still exist."""
    query = select(func.count(Adapter.id)).join(Adapter.repository)
    hidden = query.where(Adapter.current, Repository.gone_at.is_(None), is_hidden())
    return session.scalar(hidden) or 0


def merge_notes(
    session: Session, rows: Iterable[AdapterNotes], *, replace: bool
) -> tuple[int, Sequence[AdapterNotes]]:
    """Adds notes to those on record: the number of adapters changed, and those whose note was left.

    Tags and hidden marks are united. Where another note is on record, that stays unless `replace`.
    """
    changed, left = 0, []
    for row in rows:
        before = read_notes(session, row.hub_id, row.subfolder, row.adapter)
        note = row.note if before.note is None or (replace and row.note is not None) else before.note
        if row.note is not None and note != row.note:
            left.append(row)
        tags = tuple(sorted({*before.tags, *row.tags}))
        after = AdapterNotes(row.adapter, row.hub_id, row.subfolder, tags, note, before.hidden or row.hidden)
        if after != before:
            write_notes(session, after)
            changed += 1
    return changed, left
