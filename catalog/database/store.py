"""The only module that writes facts about repositories and adapters.

Functions take a session and never commit: the caller's transaction is the unit of work. The rows depend only
on the given records, never on the order in which threads finished.
"""

from __future__ import annotations

import zlib
from collections.abc import Collection, Mapping, Sequence
from dataclasses import asdict, fields
from datetime import datetime
from typing import Any

from sqlalchemy import ColumnElement, Select, and_, exists, func, insert, or_, select, update
from sqlalchemy.dialects import postgresql, sqlite
from sqlalchemy.orm import Session

from catalog.adapters import (
    AdapterRecord,
    CardFacts,
    DocumentRecord,
    EngineFacts,
    FingerprintRecord,
    RepositoryRecord,
    WeightsRecord,
    engine_facts,
    initial_spellings,
    license_of_base,
    lora_modules,
    parse_config,
    parse_header,
    table_with,
)
from catalog.adapters import BaseSpelling as SpellingRecord
from catalog.database.columns import TableBase
from catalog.database.schema import (
    NOT_IN_SNAPSHOT,
    Adapter,
    AdapterReason,
    BaseModelRow,
    BaseSpellingRow,
    DocumentRow,
    FingerprintRow,
    Repository,
    RepositoryAlias,
    WeightsFile,
)
from catalog.errors import ConfigError, WeightsError
from catalog.fingerprints import FINGERPRINT_VERSION
from catalog.rules import Reason

_ELSEWHERE = {"base_canonical", "config", "card", "weights", "reasons"}
_COLUMNS = tuple(f.name for f in fields(AdapterRecord) if f.name not in _ELSEWHERE)
_LISTED = tuple(
    f.name for f in fields(RepositoryRecord) if f.name not in {"hub_id", "name", "commit", "tags"}
)


def known_repositories(session: Session, hub_ids: Collection[str]) -> dict[str, Repository]:
    """The repositories with these Hub `_id`s, by `_id`."""
    return {
        row.hub_id: row for row in session.scalars(select(Repository).where(Repository.hub_id.in_(hub_ids)))
    }


def touch_repository(
    session: Session, repository: Repository | None, record: RepositoryRecord, now: datetime
) -> Repository:
    """Writes the listing's facts about a repository, new or known; returns its row. Adapters are not changed.

    A new name keeps the row and leaves the old name as an alias.
    """
    row = repository or Repository(hub_id=record.hub_id, name=record.name, first_seen=now)
    if row.name != record.name:
        session.merge(RepositoryAlias(repository_id=row.id, name=row.name))
        row.name = record.name
    for name in _LISTED:
        setattr(row, name, getattr(record, name))
    row.owner = record.owner
    row.tags = list(record.tags)
    row.last_seen = now
    row.gone_at = None
    session.add(row)
    return row


def bury_namesakes(session: Session, repositories: Collection[Repository], now: datetime) -> None:
    """Makes tombstones of other rows whose name one of these repositories now has on the Hub."""
    session.flush()
    bearers = {row.hub_id for row in repositories}
    names = {row.name for row in repositories}
    namesakes = update(Repository).where(Repository.name.in_(names), Repository.hub_id.not_in(bearers))
    session.execute(namesakes.where(Repository.gone_at.is_(None)).values(gone_at=now))


def save_repositories(
    session: Session, records: Sequence[tuple[RepositoryRecord, Sequence[AdapterRecord]]], now: datetime
) -> None:
    """Writes repositories with all adapters of one commit each; adapters of older commits are kept as
    history.

    No two of them may have the same name: which of them still exists would depend on the order.
    """
    adapters = [adapter for _, inside in records for adapter in inside]
    repositories = known_repositories(session, [record.hub_id for record, _ in records])
    old = [row.id for row in repositories.values()]
    session.execute(update(Adapter).where(Adapter.repository_id.in_(old)).values(current=False))
    save_documents(session, [d for adapter in adapters for d in (adapter.config, adapter.card) if d])
    _save_weights(session, [adapter.weights for adapter in adapters if adapter.weights])
    bases = _base_model_ids(session, {a.base_canonical for a in adapters if a.base_canonical is not None})
    with session.no_autoflush:
        rows = [
            touch_repository(session, repositories.get(record.hub_id), record, now) for record, _ in records
        ]
    bury_namesakes(session, rows, now)
    commits = {record.commit for record, _ in records}
    same = select(Adapter).where(Adapter.repository_id.in_(old), Adapter.commit.in_(commits))
    stored_adapters = (
        {(a.repository_id, a.commit, a.subfolder): a for a in session.scalars(same)} if old else {}
    )
    with session.no_autoflush:
        for row, (record, inside) in zip(rows, records, strict=True):
            row.commit = record.commit
            for adapter in inside:
                at = stored_adapters.get((row.id, adapter.commit, adapter.subfolder)) or Adapter(
                    repository_id=row.id
                )
                _write_adapter(at, adapter, bases.get(adapter.base_canonical or ""))
                session.add(at)
    session.flush()


def _write_adapter(row: Adapter, record: AdapterRecord, base_id: int | None) -> None:
    """Sets every column of one adapter folder at one commit, and its reasons."""
    for name in _COLUMNS:
        value = getattr(record, name)
        setattr(row, name, list(value) if isinstance(value, tuple) else value)
    row.current = True
    row.base_model_id = base_id
    row.config_digest = record.config.digest if record.config else None
    row.card_digest = record.card.digest if record.card else None
    row.weights_digest = record.weights.digest if record.weights else None
    row.reasons = [
        AdapterReason(reason=reason.reason, position=position, detail=reason.detail)
        for position, reason in enumerate(record.reasons)
    ]


def known_document(session: Session, digest: str) -> bytes | None:
    """The content of a small file that was fetched before, or None."""
    return session.scalar(select(DocumentRow.content).where(DocumentRow.digest == digest))


def card_facts(session: Session, hub_id: str, digest: str) -> CardFacts | None:
    """The facts of a repository's card that a snapshot left out, None of any other card.

    Only a snapshot that named the digest had all of them.
    """
    rows = _without_card(session, hub_id)
    row = next((row for row in rows if row.card_front[NOT_IN_SNAPSHOT] == digest), None)
    if row is None:
        return None
    details = (reason.detail for reason in row.reasons if reason.reason == Reason.CARD_UNREADABLE)
    problems = tuple(filter(None, next(details, "").split(", ")))
    training = row.training if isinstance(row.training, dict) else {}
    return CardFacts(row.card_front, row.card_quality, training, problems)


def save_card(
    session: Session,
    hub_id: str,
    commit: str,
    subfolder: str,
    card: DocumentRecord,
    text: str,
    front: Mapping[str, Any],
) -> None:
    """Writes a card that a snapshot left out to an adapter, and to all of its repository that have it."""
    save_documents(session, [card])
    session.flush()
    for row in _without_card(session, hub_id):
        if row.left_out_card == card.digest or (row.commit, row.subfolder) == (commit, subfolder):
            row.card_digest, row.card_text, row.card_front = card.digest, text, dict(front)


def _without_card(session: Session, hub_id: str) -> list[Adapter]:
    """The adapters of a repository whose cards a snapshot left out."""
    query = select(Adapter).join(Adapter.repository).where(Repository.hub_id == hub_id)
    rows = session.scalars(query.where(Adapter.card_digest.is_(None)).order_by(Adapter.id))
    return [row for row in rows if row.card_left_out]


def known_weights(session: Session, digest: str) -> WeightsRecord | None:
    """The facts about a safetensors file from any adapter that has it, or None.

    A git blob id finds the file under its sha256 where that is known.
    """
    of_git = select(WeightsFile).where(WeightsFile.git_oid == digest).order_by(WeightsFile.digest).limit(1)
    row = session.scalar(of_git) or session.get(WeightsFile, digest)
    if row is None:
        return None
    header = zlib.decompress(row.header) if row.header is not None else None
    statement = select(FingerprintRow).where(
        FingerprintRow.weights_digest == row.digest, FingerprintRow.version == FINGERPRINT_VERSION
    )
    fingerprints = tuple(
        FingerprintRecord(f.scaling_pattern, f.version, f.spectrum, f.delta, f.output)
        for f in session.scalars(statement.order_by(FingerprintRow.scaling_pattern))
    )
    return WeightsRecord(row.digest, row.size, header, row.tensor_digest, fingerprints, row.git_oid)


def read_facts(session: Session, adapter: Adapter) -> EngineFacts | None:
    """What engines look at in an adapter, from its stored files; None without a valid configuration."""
    document = session.get(DocumentRow, adapter.config_digest) if adapter.config_digest else None
    file = session.get(WeightsFile, adapter.weights_digest) if adapter.weights_digest else None
    return engine_facts_of(
        document.content if document else None, file.header if file else None, file.size if file else 0
    )


def engine_facts_of(config: bytes | None, header: bytes | None, size: int) -> EngineFacts | None:
    """What engines look at in an adapter with this configuration and this compressed header of its file.

    By the configuration alone without a valid header; None without a valid configuration.
    """
    try:
        parsed = parse_config(config or b"")
    except ConfigError:
        return None
    try:
        head = parse_header(zlib.decompress(header), size) if header is not None else None
    except WeightsError:
        head = None
    return engine_facts(parsed, lora_modules(head, parsed) if head is not None else None)


def save_fingerprint(session: Session, weights_digest: str, record: FingerprintRecord, tensors: str) -> None:
    """Writes one fingerprint of a known weights file, and the digest of its tensors."""
    session.get_one(WeightsFile, weights_digest).tensor_digest = tensors
    session.merge(FingerprintRow(weights_digest=weights_digest, **asdict(record)))
    session.flush()


def without_fingerprint(session: Session) -> list[tuple[str, str, bytes]]:
    """(digest of weights in LFS, pattern of scalings, config) of current adapters that have no fingerprint.

    Sorted, each pair once; unread files are included.
    """
    rows = session.execute(
        select(Adapter.weights_digest, Adapter.scaling_pattern, DocumentRow.content)
        .join(DocumentRow, DocumentRow.digest == Adapter.config_digest)
        .where(Adapter.current, Adapter.weights_digest.is_not(None), Adapter.scaling_pattern.is_not(None))
        .where(func.length(Adapter.weights_digest) == 64, ~_has_fingerprint())
        .order_by(Adapter.weights_digest, Adapter.scaling_pattern, Adapter.config_digest)
    )
    configs = {(str(digest), str(pattern)): content for digest, pattern, content in rows}
    return [(digest, pattern, content) for (digest, pattern), content in configs.items()]


def readable_weights(
    session: Session, repository_ids: Collection[int], refusing: Collection[str], unreadable: Collection[str]
) -> list[tuple[int, str, bool, bool]]:
    """(repository, digest of weights, whether their values are known, whether the reasons in `refusing` let
    the adapter pass) of their current adapters with LoRA factors, those with a reason in `unreadable` left
    out.
    """
    rows = session.execute(
        select(Adapter.repository_id, Adapter.weights_digest, _known(), ~has_reason(refusing)).where(
            Adapter.repository_id.in_(repository_ids), Adapter.current, readable(unreadable)
        )
    )
    return [(owner, str(digest), bool(measured), bool(passes)) for owner, digest, measured, passes in rows]


def waiting(session: Session, unreadable: Collection[str]) -> int:
    """The number of current adapters with LoRA factors that could be read and were not, whatever rules refuse
    them.
    """
    listed = select(Adapter.id).join(Adapter.repository).where(Adapter.current, Repository.gone_at.is_(None))
    return count_rows(session, listed.where(readable(unreadable), ~_known()))


def count_rows(session: Session, query: Select[Any]) -> int:
    """The number of rows of a statement."""
    return session.scalar(select(func.count()).select_from(query.subquery())) or 0


def readable(unreadable: Collection[str]) -> ColumnElement[bool]:
    """Whether an adapter has LoRA factors that none of these reasons kept from being read."""
    return and_(Adapter.scaling_pattern.is_not(None), Adapter.modules > 0, ~has_reason(unreadable))


def _known() -> ColumnElement[bool]:
    """Whether the values of an adapter's weights were read as they are read now."""
    return and_(Adapter.norm.is_not(None), _has_fingerprint())


def _has_fingerprint() -> ColumnElement[bool]:
    condition = exists().where(
        FingerprintRow.weights_digest == Adapter.weights_digest,
        FingerprintRow.scaling_pattern == Adapter.scaling_pattern,
        FingerprintRow.version == FINGERPRINT_VERSION,
    )
    return condition.correlate(Adapter)


def has_reason(reasons: Collection[str]) -> ColumnElement[bool]:
    """Whether an adapter has one of these reasons."""
    # An adapter has few, which are read at once: no index has this, where SQLite would look for each of
    # `reasons`.
    reason = func.coalesce(AdapterReason.reason, "")
    condition = exists().where(AdapterReason.adapter_id == Adapter.id, reason.in_(reasons))
    return condition.correlate(Adapter)


def repositories_to_read(
    session: Session,
    repository_ids: Collection[int],
    described_with: str,
    *,
    passing: Collection[str] = (),
    up_to: int = 0,
) -> set[int]:
    """The repositories with a current adapter that was judged with other rules or spellings than these, that
    has one of the reasons in `passing`, or whose weights were too large and have at most `up_to` bytes.
    """
    small = exists().where(WeightsFile.digest == Adapter.weights_digest, WeightsFile.size <= up_to)
    left_out = and_(has_reason(["too_large"]), small.correlate(Adapter))
    query = select(Adapter.repository_id).where(Adapter.repository_id.in_(repository_ids), Adapter.current)
    unread = or_(Adapter.described_with != described_with, has_reason(passing), left_out)
    return set(session.scalars(query.where(unread)))


def add_spelling(session: Session, record: SpellingRecord) -> None:
    """Writes a user's spelling of a base model, which replaces the built-in one."""
    row = session.get(BaseSpellingRow, record.spelling) or BaseSpellingRow(spelling=record.spelling)
    row.base_model_id = _base_model_ids(session, {record.canonical})[record.canonical]
    row.kind, row.note, row.by_user = record.kind, record.note, True
    session.add(row)
    session.flush()


def sync_bases(session: Session) -> None:
    """Writes the built-in spellings into the catalog; those of a user are not changed."""
    stored_spellings = set(session.scalars(select(BaseSpellingRow.spelling)))
    missing = [record for record in initial_spellings() if record.spelling not in stored_spellings]
    bases = _base_model_ids(session, {record.canonical for record in missing})
    rows = [
        {
            "spelling": record.spelling,
            "base_model_id": bases[record.canonical],
            "kind": record.kind,
            "note": record.note,
            "by_user": False,
        }
        for record in missing
    ]
    if rows:
        session.execute(insert(BaseSpellingRow), rows)


def spellings(session: Session) -> tuple[SpellingRecord, ...]:
    """All spellings of all base models, sorted by base and spelling."""
    rows = session.execute(
        select(BaseModelRow.canonical, BaseSpellingRow.spelling, BaseSpellingRow.kind, BaseSpellingRow.note)
        .join(BaseSpellingRow.base_model)
        .order_by(BaseModelRow.canonical, BaseSpellingRow.spelling)
    )
    return tuple(SpellingRecord(canonical, spelling, kind, note) for canonical, spelling, kind, note in rows)


def base_names(session: Session) -> tuple[str, ...]:
    """The canonical names of all base models that the catalog has spellings or adapters of, sorted."""
    of_adapters = exists().where(Adapter.base_model_id == BaseModelRow.id)
    spelled = exists().where(BaseSpellingRow.base_model_id == BaseModelRow.id)
    statement = select(BaseModelRow.canonical).where(or_(of_adapters, spelled))
    return tuple(session.scalars(statement.order_by(BaseModelRow.canonical)))


def find_base(session: Session, name: str) -> str:
    """The canonical name of the base model that a user means, by any of its names.

    Raises NotFoundError with the nearest known names.
    """
    return table_with(spellings(session)).find(name, base_names(session))


def has_adapters(session: Session, canonical: str) -> bool:
    """Whether the catalog has current adapters of a base model."""
    condition = (
        select(Adapter.id)
        .join(Adapter.base_model)
        .where(BaseModelRow.canonical == canonical, Adapter.current)
    )
    return session.scalar(condition.limit(1)) is not None


def _base_model_ids(session: Session, names: Collection[str]) -> dict[str, int]:
    """The ids of base models by canonical name; missing ones are created."""
    statement = select(BaseModelRow.canonical, BaseModelRow.id).where(BaseModelRow.canonical.in_(names))
    ids = dict(session.execute(statement).all()) if names else {}
    if missing := sorted({*names} - ids.keys()):
        insert_new(
            session, BaseModelRow, [{"canonical": name, "license": license_of_base(name)} for name in missing]
        )
        ids = dict(session.execute(statement).all())
    return ids


def insert_new(session: Session, table: type[TableBase], rows: Sequence[Mapping[str, Any]]) -> None:
    """Writes rows of a table; one whose key is taken stays as it is, also where another session writes it at
    once.
    """
    insert_into = postgresql.insert if session.get_bind().dialect.name == "postgresql" else sqlite.insert
    if rows:
        session.execute(insert_into(table).on_conflict_do_nothing(), rows)


def save_documents(session: Session, records: Collection[DocumentRecord]) -> None:
    """Writes small files under their digests; existing ones are kept."""
    contents = {record.digest: record.content for record in records}
    stored_digests = set(session.scalars(select(DocumentRow.digest).where(DocumentRow.digest.in_(contents))))
    missing = sorted(contents.keys() - stored_digests)
    insert_new(session, DocumentRow, [{"digest": digest, "content": contents[digest]} for digest in missing])


def _save_weights(session: Session, records: Collection[WeightsRecord]) -> None:
    digests = {record.digest for record in records}
    rows = {
        row.digest: row for row in session.scalars(select(WeightsFile).where(WeightsFile.digest.in_(digests)))
    }
    for record in records:
        row = rows.get(record.digest)
        if row is None:
            row = rows[record.digest] = WeightsFile(digest=record.digest, size=record.size)
            session.add(row)
        # The header of a file that was read whole and verified replaces one that came by itself.
        if record.header is not None and (row.header is None or record.fingerprints):
            row.header = zlib.compress(record.header, 9)
        row.tensor_digest = record.tensor_digest or row.tensor_digest
        row.git_oid = record.git_oid or row.git_oid
    session.flush()
    for record in records:
        for fingerprint_record in record.fingerprints:
            session.merge(FingerprintRow(weights_digest=record.digest, **asdict(fingerprint_record)))
