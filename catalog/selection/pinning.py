"""The candidates of a pool: the adapters of a catalog that can be pinned, as plain values."""

from __future__ import annotations

import hashlib
import re
import zlib
from collections import Counter
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import fields
from functools import cached_property
from heapq import nsmallest
from typing import Any, NamedTuple

from sqlalchemy import ColumnElement, Select, and_, func, or_, select
from sqlalchemy.orm import Session, aliased

from catalog.adapters import (
    IN_LAYERS,
    StoredAdapter,
    Use,
    adapter_name,
    layers_to_leave_out,
    lora_modules,
    objection,
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
from catalog.search import (
    BY_NAME,
    COLUMNS,
    from_current,
    from_visible,
    likeness,
    matching,
    of_base,
    plain_rows,
)
from catalog.selection.limits import Candidate, Ranked, draw_digest, without


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


class Candidates:
    """The candidates of a pool: counted at once, their rows read as far as they are asked for.

    `groups` counts them by base model and license; `removed` are rows of the statement that are none.
    """

    def __init__(
        self,
        session: Session,
        statement: Select[Any],
        groups: Mapping[tuple[str | None, str | None], int],
        removed: Collection[int] = (),
    ) -> None:
        self.groups = {group: count for group, count in groups.items() if count}
        self._session, self._statement, self._removed = session, statement, frozenset(removed)

    def __len__(self) -> int:
        return sum(self.groups.values())

    @property
    def base(self) -> str | None:
        """Their most frequent base model, the first by name on a tie."""
        counts: Counter[str | None] = Counter()
        for (base, _), count in self.groups.items():
            counts[base] += count
        return likeness.usual_base(counts)

    def of_base(self, base: str | None) -> Candidates:
        """Those of a base model; all for None."""
        if base is None:
            return self
        groups = {group: count for group, count in self.groups.items() if group[0] == base}
        statement = of_base(self._session, self._statement, base)
        return Candidates(self._session, statement, groups, self._removed)

    def without(self, excluded: Collection[str]) -> Candidates:
        """Those whose name, repository or owner is not excluded; an unknown name is a UsageError."""
        names = sorted(set(excluded))
        rows = self._rows(_in_repositories(names, owners=names)) if names else []
        kept = {row.id for row in without(rows, names)}
        return self.without_rows([row for row in rows if row.id not in kept])

    def without_rows(self, rows: Sequence[CandidateRow]) -> Candidates:
        """Those but these."""
        groups = Counter(self.groups)
        groups.subtract((row.base, row.license) for row in rows)
        removed = self._removed.union(row.id for row in rows)
        return Candidates(self._session, self._statement, groups, removed)

    def usable_for(self, use: Use) -> Candidates:
        """Those whose license does not forbid a use."""
        forbidden = {name for _, name in self.groups if objection(name, use) is not None}
        if not forbidden:
            return self
        groups = {group: count for group, count in self.groups.items() if group[1] not in forbidden}
        other = Adapter.license.not_in(sorted(name for name in forbidden if name is not None))
        is_none = Adapter.license.is_(None)
        allowed = and_(~is_none, other) if None in forbidden else or_(is_none, other)
        return Candidates(self._session, self._statement.where(allowed), groups, self._removed)

    @cached_property
    def rows(self) -> list[CandidateRow]:
        """All, sorted by name."""
        return self._rows()

    def among(self, ids: Collection[int] | None = None) -> set[int]:
        """Their ids, or those of some rows among them."""
        return matching(self._session, self._statement, ids) - self._removed

    def with_ids(self, ids: Sequence[int]) -> list[CandidateRow]:
        """Those with these ids, in their order."""
        blocks = (ids[start : start + _BLOCK] for start in range(0, len(ids), _BLOCK))
        rows = {row.id: row for block in blocks for row in self._rows(Adapter.id.in_(block))}
        return [rows[id_] for id_ in ids if id_ in rows]

    def named(self, names: Collection[str]) -> dict[str, CandidateRow]:
        """Those with one of these names, by name."""
        asked_for = set(names)
        if len(asked_for) > _BLOCK:
            rows = self.rows
        else:
            rows = self._rows(_in_repositories(asked_for)) if asked_for else []
        return {row.adapter: row for row in rows if row.adapter in asked_for}

    def random_head(self, seed: int, count: int) -> list[CandidateRow]:
        """The first `count` in the random order of a seed.

        Where many of all adapters are candidates, the first of all are drawn: an index has what they are
        drawn by, and the rows of a few are read to see which are candidates.
        """
        every = select(Adapter.id).join(Adapter.repository)
        total, query, size = count_rows(self._session, every), self._statement, count + len(self._removed)
        if len(self) * _PART_DRAWN > total:
            query, size = every, 2 * count * total // len(self)
        places = query.with_only_columns(Adapter.id, Repository.hub_id, Adapter.subfolder)
        begin = f"{seed}\0".encode()
        while True:
            drawn = (
                (draw_digest(begin, f"{hub_id}\0{subfolder}"), id_)
                for id_, hub_id, subfolder in plain_rows(self._session, places)
            )
            first = self.with_ids([id_ for _, id_ in nsmallest(size, drawn)])
            if len(first) >= count or size >= total:
                return first[:count]
            size *= _PART_DRAWN

    def rank_head(self, count: int) -> list[CandidateRow]:
        """The `count` of the largest ranks, of equal ones those with the most parameters, and all that are
        level with the last of them; sorted by name.
        """
        rank, size = Adapter.rank, func.coalesce(Adapter.parameters, 0)
        query = self._statement.with_only_columns(Adapter.id, rank, size).where(rank.is_not(None))
        query = query.order_by(rank.desc(), size.desc())
        asked_for = count + len(self._removed)
        first = self._session.execute(query.limit(asked_for + _BLOCK)).all()
        if not first:
            return []
        least = first[min(asked_for, len(first)) - 1][1:]
        if len(first) == asked_for + _BLOCK and first[-1][1:] == least:
            # More may be level with the last.
            return self._rows(or_(rank > least[0], and_(rank == least[0], size >= least[1])))
        rows = self.with_ids([row[0] for row in first if row[1:] >= least])
        return sorted(rows, key=lambda row: (row.repository, row.hub_id, row.subfolder))

    def _rows(self, condition: ColumnElement[bool] | None = None) -> list[CandidateRow]:
        """Those that meet a condition, sorted by name."""
        return list(map(CandidateRow._make, self._read(_NARROW, condition, BY_NAME)))

    def _read(
        self,
        columns: Sequence[Any],
        condition: ColumnElement[bool] | None = None,
        order: Sequence[Any] = (),
    ) -> Iterable[Sequence[Any]]:
        """The columns, of which the first is the id, of those that meet a condition."""
        query = self._statement.with_only_columns(*columns).order_by(*order)
        query = query if condition is None else query.where(condition)
        rows = plain_rows(self._session, query)
        return (row for row in rows if row[0] not in self._removed) if self._removed else rows


def candidates(
    session: Session,
    refusing: Collection[str],
    base: str | None = None,
    where: Query | None = None,
    without: Collection[str] = (),
) -> Candidates:
    """The current adapters that these reasons do not refuse and that match the filter.

    Adapters that are plain LoRA without the layers in `without` are included, although they contain whole
    weights of these layers.
    """
    query = from_visible(select(Adapter.id), where).where(~_is_refused(refusing, without), *_PINNABLE)
    if base is not None:
        query = of_base(session, query, base)
    if where is not None:
        query = query.where(where.clause(refusing))
    # By the number of the base model, whose name is not read for each row, and which no index has: rows are
    # read in their own order.
    group = (func.coalesce(Adapter.base_model_id, 0), Adapter.license)
    counts = session.execute(query.with_only_columns(*group, func.count()).group_by(*group)).all()
    bases: dict[int, str] = dict(session.execute(select(BaseModelRow.id, BaseModelRow.canonical)).all())
    groups = {(bases.get(id_), license_): count for id_, license_, count in counts}
    found = Candidates(session, query, groups)
    layers = _layers_of(session, set(refusing) & IN_LAYERS) if without else {}
    unreadable = [id_ for id_, names in layers.items() if not set() < set(names) <= set(without)]
    return found.without_rows(found.with_ids(unreadable))


def _in_repositories(names: Collection[str], owners: Collection[str] = ()) -> ColumnElement[bool]:
    """Whether an adapter is in a repository that one of these names, of adapters or repositories, can mean,
    or that is of one of these owners; the indexes of names and owners find these first.
    """
    repository, places = aliased(Repository), re.compile(":|$")
    beginnings = {name[: match.start()] for name in names for match in places.finditer(name)}
    named = select(repository.id).where(repository.name.in_(sorted(beginnings)))
    owned = select(repository.id).where(repository.owner.in_(sorted(owners)))
    return Adapter.repository_id.in_(named.union(owned) if owners else named)


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
    everybody, visible = from_current(select(Adapter.id)), from_visible(select(Adapter.id), where)
    if base is not None:
        everybody, visible = (of_base(session, query, base) for query in (everybody, visible))
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
# Of candidates that are more than this part of all adapters, the first of all are drawn.
_PART_DRAWN = 5
# A weights file is on record: the digest is a foreign key.
_PINNABLE = (func.length(Adapter.weights_digest) == 64, Adapter.config_digest.is_not(None))


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
