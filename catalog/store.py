"""The only module that writes facts about repositories and adapters.

Functions take a session and never commit: the caller's transaction is the unit of work. What is stored
depends only on the records handed in, never on the order in which threads finished.
"""

from __future__ import annotations

import zlib
from collections.abc import Collection, Iterable, Sequence
from dataclasses import fields
from datetime import datetime

from sqlalchemy import delete, exists, func, select, update
from sqlalchemy.orm import Session

from catalog.bases import BaseSpelling as SpellingRecord
from catalog.bases import license as base_license
from catalog.bases import seed_spellings
from catalog.records import AdapterRecord, DocumentRecord, ReasonRecord, RepositoryRecord, WeightsRecord
from catalog.schema import (
    Adapter,
    AdapterReason,
    BaseModel,
    BaseSpelling,
    Document,
    Repository,
    RepositoryAlias,
    Spelling,
    WeightsFile,
)

_ELSEWHERE = {"base_canonical", "config", "card", "weights", "reasons"}
_COLUMNS = tuple(f.name for f in fields(AdapterRecord) if f.name not in _ELSEWHERE)
_LISTED = tuple(
    f.name for f in fields(RepositoryRecord) if f.name not in {"hub_id", "name", "commit", "tags"}
)


def known_repository(session: Session, hub_id: str) -> Repository | None:
    """The repository with this Hub `_id`, or None."""
    return session.scalar(select(Repository).where(Repository.hub_id == hub_id))


def touch_repository(session: Session, record: RepositoryRecord, now: datetime) -> Repository:
    """Writes what a listing says of a repository, new or known, and gives its row; adapters are left alone.

    A new name keeps the row and leaves the old name as an alias. A name that another row still holds was
    deleted and created again on the Hub: that row becomes a tombstone.
    """
    row = known_repository(session, record.hub_id)
    if row is None:
        row = Repository(hub_id=record.hub_id, name=record.name, first_seen=now)
        session.add(row)
    elif row.name != record.name:
        session.merge(RepositoryAlias(repository_id=row.id, name=row.name))
        row.name = record.name
    for name in _LISTED:
        setattr(row, name, getattr(record, name))
    row.owner = record.owner
    row.tags = list(record.tags)
    row.last_seen = now
    row.gone_at = None
    session.flush()
    session.execute(
        update(Repository)
        .where(Repository.name == record.name, Repository.id != row.id, Repository.gone_at.is_(None))
        .values(gone_at=now)
    )
    return row


def save_repository(
    session: Session, record: RepositoryRecord, adapters: Sequence[AdapterRecord], now: datetime
) -> Repository:
    """Writes a repository and all its adapters at one commit; adapters of older commits stay as history."""
    row = touch_repository(session, record, now)
    row.commit = record.commit
    session.execute(update(Adapter).where(Adapter.repository_id == row.id).values(current=False))
    for adapter in adapters:
        save_adapter(session, row, adapter)
    session.flush()
    return row


def save_adapter(session: Session, repository: Repository, record: AdapterRecord) -> Adapter:
    """Writes one adapter folder at one commit with its documents, weights facts and reasons."""
    row = session.scalar(
        select(Adapter).where(
            Adapter.repository_id == repository.id,
            Adapter.commit == record.commit,
            Adapter.subfolder == record.subfolder,
        )
    )
    if row is None:
        row = Adapter(repository_id=repository.id)
        session.add(row)
    for name in _COLUMNS:
        value = getattr(record, name)
        setattr(row, name, list(value) if isinstance(value, tuple) else value)
    row.current = True
    base = record.base_canonical
    row.base_model_id = _base_model_id(session, base) if base is not None else None
    row.config_digest = _save_document(session, record.config)
    row.card_digest = _save_document(session, record.card)
    row.weights_digest = _save_weights(session, record.weights)
    session.flush()
    _save_reasons(session, row, record.reasons)
    return row


def mark_gone(session: Session, repository: Repository, now: datetime) -> None:
    """Makes a repository a tombstone; its rows stay."""
    if repository.gone_at is None:
        repository.gone_at = now


def known_document(session: Session, digest: str) -> bytes | None:
    """The content of a small file that was fetched before, or None."""
    return session.scalar(select(Document.content).where(Document.digest == digest))


def known_weights(session: Session, digest: str) -> WeightsRecord | None:
    """What is known of a safetensors file from any adapter that carries it, or None."""
    row = session.get(WeightsFile, digest)
    if row is None:
        return None
    header = zlib.decompress(row.header) if row.header is not None else None
    return WeightsRecord(row.digest, row.size, header, row.norms, row.measured)


def acceptable_weights(session: Session, repository_id: int, refusing: Collection[str]) -> list[WeightsFile]:
    """The LFS weights of a repository's current adapters that nothing but their values could still refuse."""
    refused = exists().where(AdapterReason.adapter_id == Adapter.id, AdapterReason.reason.in_(refusing))
    return list(
        session.scalars(
            select(WeightsFile)
            .join(Adapter, Adapter.weights_digest == WeightsFile.digest)
            .where(Adapter.repository_id == repository_id, Adapter.current, ~refused)
            .where(func.length(WeightsFile.digest) == 64)
        )
    )


def add_spelling(session: Session, record: SpellingRecord) -> None:
    """Writes one spelling of a base model that a user gives; it replaces what the program says of it."""
    row = session.get(BaseSpelling, record.spelling) or BaseSpelling(spelling=record.spelling)
    row.base_model_id = _base_model_id(session, record.canonical)
    row.kind, row.note, row.by_user = Spelling(record.kind), record.note, True
    session.add(row)
    session.flush()


def sync_bases(session: Session) -> None:
    """Brings the spellings that the program knows into the catalog; those of a user stay as they are."""
    known = set(session.scalars(select(BaseSpelling.spelling)))
    missing = [record for record in seed_spellings() if record.spelling not in known]
    bases = {name: _base_model_id(session, name) for name in dict.fromkeys(r.canonical for r in missing)}
    session.add_all(
        BaseSpelling(
            spelling=record.spelling,
            base_model_id=bases[record.canonical],
            kind=Spelling(record.kind),
            note=record.note,
            by_user=False,
        )
        for record in missing
    )
    session.flush()


def spellings(session: Session) -> tuple[SpellingRecord, ...]:
    """All spellings of all base models, sorted by base and spelling."""
    rows = session.execute(
        select(BaseModel.canonical, BaseSpelling.spelling, BaseSpelling.kind, BaseSpelling.note)
        .join(BaseSpelling.base_model)
        .order_by(BaseModel.canonical, BaseSpelling.spelling)
    )
    return tuple(
        SpellingRecord(canonical, spelling, kind.value, note) for canonical, spelling, kind, note in rows
    )


def _base_model_id(session: Session, canonical: str) -> int:
    found = session.scalar(select(BaseModel.id).where(BaseModel.canonical == canonical))
    if found is None:
        row = BaseModel(canonical=canonical, license=base_license(canonical))
        session.add(row)
        session.flush()
        found = row.id
    return found


def _save_document(session: Session, record: DocumentRecord | None) -> str | None:
    if record is None:
        return None
    if session.scalar(select(Document.digest).where(Document.digest == record.digest)) is None:
        session.add(Document(digest=record.digest, content=record.content))
        session.flush()
    return record.digest


def _save_weights(session: Session, record: WeightsRecord | None) -> str | None:
    if record is None:
        return None
    row = session.get(WeightsFile, record.digest)
    if row is None:
        row = WeightsFile(digest=record.digest, size=record.size)
        session.add(row)
    if record.header is not None and row.header is None:
        row.header = zlib.compress(record.header, 9)
    if record.measured is not None and (row.measured is None or record.measured >= row.measured):
        row.measured, row.norms = record.measured, dict(record.norms or {})
    session.flush()
    return record.digest


def _save_reasons(session: Session, adapter: Adapter, reasons: Iterable[ReasonRecord]) -> None:
    session.execute(delete(AdapterReason).where(AdapterReason.adapter_id == adapter.id))
    session.add_all(
        AdapterReason(adapter_id=adapter.id, reason=record.reason, position=position, detail=record.detail)
        for position, record in enumerate(reasons)
    )
