"""The candidates of a pool: the adapters of a catalog that can be pinned, as plain values."""

from __future__ import annotations

import hashlib
import zlib
from collections.abc import Collection, Sequence
from dataclasses import fields
from typing import Any, NamedTuple

from sqlalchemy import ColumnElement, Select, func, select
from sqlalchemy.orm import Session

from catalog.adapters import (
    IN_LAYERS,
    StoredAdapter,
    adapter_name,
    layers_to_leave_out,
    lora_modules,
    parse_config,
    parse_header,
    vector_key,
)
from catalog.database import (
    Adapter,
    BaseModelRow,
    DocumentRow,
    Repository,
    WeightsFile,
    count_rows,
    has_reason,
)
from catalog.errors import PoolError
from catalog.pools import Manifest, Member, PinnedFile
from catalog.query import Query
from catalog.search import BY_NAME, COLUMNS, from_current, from_visible
from catalog.selection.limits import Candidate, Ranked


class CandidateRow(NamedTuple):
    """The columns of a candidate that strategies and limits need of all; a
    `catalog.selection.limits.Candidate`.
    """

    id: int
    repository: str
    hub_id: str
    owner: str
    subfolder: str
    base: str | None
    rank: int | None
    parameters: int | None
    license: str | None
    scaling_pattern: str | None
    weights_digest: str

    @property
    def adapter(self) -> str:
        """Its short name."""
        return adapter_name(self.repository, self.subfolder)

    @property
    def key(self) -> str:
        """The key of its vectors."""
        return vector_key(self.weights_digest, self.scaling_pattern or "")


_NARROW = [
    COLUMNS[[field.name for field in fields(StoredAdapter)].index(name)] for name in CandidateRow._fields
]


def candidates(
    session: Session,
    refusing: Collection[str],
    base: str | None = None,
    where: Query | None = None,
    without: Collection[str] = (),
) -> list[CandidateRow]:
    """The current adapters that these reasons do not refuse and that match the filter, sorted by name.

    Adapters that are plain LoRA without the layers in `without` are included, although they contain whole
    weights of these layers.
    """
    query = (
        _adapters(select(*_NARROW), base, where)
        .where(~_is_refused(refusing, without), *_PINNABLE)
        .order_by(*BY_NAME)
    )
    if where is not None:
        query = query.where(where.clause(refusing))
    rows = [CandidateRow._make(row) for row in session.execute(query)]
    layers = _layers_of(session, set(refusing) & IN_LAYERS) if without else {}
    return [row for row in rows if row.id not in layers or set() < set(layers[row.id]) <= set(without)]


def stored_adapters(session: Session, rows: Sequence[Candidate]) -> list[StoredAdapter]:
    """All that is known of these candidates, in their order."""
    query = from_current(select(*COLUMNS)).join(WeightsFile, WeightsFile.digest == Adapter.weights_digest)
    ids, by_id = [row.id for row in rows], dict[int, StoredAdapter]()
    for start in range(0, len(ids), _BLOCK):
        block = query.where(Adapter.id.in_(ids[start : start + _BLOCK]))
        by_id |= {row.id: row for row in (StoredAdapter(*values) for values in session.execute(block))}
    return [by_id[id_] for id_ in ids]


def left_out(
    session: Session,
    refusing: Collection[str],
    base: str | None = None,
    where: Query | None = None,
    without: Collection[str] = (),
) -> dict[str, int]:
    """The number of current adapters of a base model that are not candidates, by the first reason in
    words."""
    everybody = from_current(select(Adapter.id))
    everybody = everybody if base is None else everybody.where(BaseModelRow.canonical == base)
    visible = _adapters(select(Adapter.id), base, where)
    filtered = visible if where is None else visible.where(where.clause(refusing))
    accepted = filtered.where(~_is_refused(refusing, without))
    pinnable = accepted.where(*_PINNABLE)
    counts = [count_rows(session, query) for query in (everybody, visible, filtered, accepted, pinnable)]
    layers = counts[4] - len(candidates(session, refusing, base, where, without)) if without else 0
    return {
        HIDDEN: counts[0] - counts[1],
        "not let through by the filter": counts[1] - counts[2],
        "refused by the rules": counts[2] - counts[3] + layers,
        "without weights of a known sha256": counts[3] - counts[4],
    }


# The reason of those that the user hid.
HIDDEN = "hidden by you"
_BLOCK = 5000
# A weights file is on record: the digest is a foreign key.
_PINNABLE = (func.length(Adapter.weights_digest) == 64, Adapter.config_digest.is_not(None))


def _adapters(columns: Select[Any], base: str | None, where: Query | None = None) -> Select[Any]:
    """The statement over the visible adapters, those of one base model where it is named."""
    query = from_visible(columns, where)
    return query if base is None else query.where(BaseModelRow.canonical == base)


def _is_refused(refusing: Collection[str], without: Collection[str]) -> ColumnElement[bool]:
    return has_reason(set(refusing) - IN_LAYERS if without else set(refusing))


def _layers_of(session: Session, reasons: Collection[str]) -> dict[int, tuple[str, ...]]:
    """The layers that adapters with one of these reasons can be read without, by row; empty if that does not
    suffice.
    """
    query = (
        select(Adapter.id, DocumentRow.content, WeightsFile.header, WeightsFile.size)
        .join(DocumentRow, DocumentRow.digest == Adapter.config_digest)
        .join(WeightsFile, WeightsFile.digest == Adapter.weights_digest)
        .where(Adapter.current, has_reason(reasons))
    )
    layers = {}
    for id_, content, header, size in session.execute(query):
        config = parse_config(content)
        spec = lora_modules(parse_header(zlib.decompress(header), size), config) if header else None
        layers[id_] = () if spec is None else layers_to_leave_out(config, spec)
    return layers


def pin_members(session: Session, members: Sequence[Ranked]) -> list[Member]:
    """The members of a pool for chosen candidates.

    Raises PoolError if a small file to be pinned is missing in the catalog.
    """
    rows = stored_adapters(session, [ranked.candidate for ranked in members])
    return [
        _member(session, row, ranked.score, ranked.why) for row, ranked in zip(rows, members, strict=True)
    ]


_COPIED = {f.name for f in fields(Member)} & {f.name for f in fields(StoredAdapter)}


def _member(session: Session, row: StoredAdapter, score: float | None, why: str) -> Member:
    values: dict[str, Any] = {name: getattr(row, name) for name in _COPIED}
    values |= {"use_rslora": bool(row.use_rslora), "targets": tuple(row.targets or ())}
    rounded = None if score is None else round(score, 6)
    return Member(files=tuple(_files(session, row)), score=rounded, why=why, **values)


def _files(session: Session, row: StoredAdapter) -> list[PinnedFile]:
    """Configuration, weights and card, by name; small files are hashed from their content in the catalog."""
    files = session.scalar(select(Adapter.files).where(Adapter.id == row.id))
    listed = {file["digest"]: file for file in files or ()}
    weights = PinnedFile(str(row.weights_name), int(listed[row.weights_digest]["size"]), row.weights_digest)
    pinned_files = [weights]
    for digest in filter(None, (row.config_digest, row.card_digest)):
        content = session.scalar(select(DocumentRow.content).where(DocumentRow.digest == digest))
        if content is None:
            raise PoolError(f"A file of {row.adapter} is missing; read it again by `crawl(full=True)`.")
        if digest in listed:
            name = listed[digest]["name"]
            pinned_files.append(PinnedFile(name, len(content), hashlib.sha256(content).hexdigest()))
    return sorted(pinned_files, key=lambda file: file.name)


def documents_of(session: Session, manifest: Manifest) -> dict[str, bytes]:
    """The small files of a pool's members that the catalog holds, by their sha256."""
    hubs = {member.hub_id for member in manifest.members}
    commits = {member.commit for member in manifest.members}
    rows = session.execute(
        select(Adapter.config_digest, Adapter.card_digest)
        .join(Adapter.repository)
        .where(Repository.hub_id.in_(hubs), Adapter.commit.in_(commits))
    )
    digests = {digest for row in rows for digest in row if digest}
    contents = session.scalars(select(DocumentRow.content).where(DocumentRow.digest.in_(digests)))
    return {hashlib.sha256(content).hexdigest(): content for content in contents}
