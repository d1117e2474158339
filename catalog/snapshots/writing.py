"""A catalog as a snapshot: what others may have of it, as Parquet files with a manifest."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import Any

from sqlalchemy import func, or_, select
from sqlalchemy.orm import Session

from catalog.adapters import objection
from catalog.database import (
    Adapter,
    AdapterReason,
    Annotation,
    AnnotationTag,
    BaseModelRow,
    BaseSpellingRow,
    Crawl,
    CrawlItem,
    CrawlRetry,
    CrawlState,
    DocumentRow,
    Embedding,
    Evaluation,
    FingerprintRow,
    ItemList,
    Repository,
    RepositoryAlias,
    WeightsFile,
    frontier,
    head,
)
from catalog.files import digest_of
from catalog.index import content_of
from catalog.scores import BASE
from catalog.snapshots import layout
from catalog.snapshots.layout import CARD_FACTS, FORMAT, MANIFEST, TABLES, SnapshotTable

# Rows of a group and characters of its values, and rows of a file.
_GROUP = 10_000
_MOST_CHARACTERS = 100_000_000
_MOST_ROWS = 500_000
_BLOCK = 500
_README = """\
---
configs:
{configs}
---

# Snapshot of a loradex catalog

Facts about LoRA adapters on {hubs}, as Parquet files. Read one table by
`datasets.load_dataset(PATH, "adapters")`, by pandas or by DuckDB; bring all of them into a catalog by
`loradex snapshot import PATH`. An adapter is named by the `_id` of its repository, its commit and its folder;
vectors are float32. Licenses of the adapters are in the column `license`.
{cards}

| table | rows |
|---|--:|
{tables}
"""


@dataclass(frozen=True)
class SnapshotChoice:
    """What a snapshot has beyond public facts: cards whose licenses allow it, what only this account may
    read, and what the user wrote.
    """

    cards: bool = False
    with_private: bool = False
    with_notes: bool = False


@dataclass(frozen=True)
class SnapshotCounts:
    """The rows of each table, the bytes of all files, and how much was left out, by the reason."""

    tables: dict[str, int]
    bytes: int
    left_out: dict[str, int]


@dataclass
class _Digests:
    """The files and texts that the adapters of a snapshot have."""

    weights: set[str] = field(default_factory=set)
    documents: set[str] = field(default_factory=set)
    contents: set[str] = field(default_factory=set)
    bases: set[int] = field(default_factory=set)
    cards_left_out: int = 0


class _Writer:
    """The files of a table, written in groups of rows; `close` returns what the manifest says of them."""

    def __init__(self, folder: Path, table: SnapshotTable) -> None:
        self._folder, self._table, self._schema = folder, table, table.schema()
        self._rows: list[dict[str, Any]] = []
        self._characters = 0
        self._files: list[tuple[Path, int]] = []
        self._writer: Any = None

    def add(self, row: dict[str, Any]) -> None:
        """Adds a row."""
        values = self._table.encode(row)
        self._rows.append(values)
        self._characters += sum(len(value) for value in values.values() if isinstance(value, str | bytes))
        if len(self._rows) == _GROUP or self._characters >= _MOST_CHARACTERS:
            self._flush()

    def close(self) -> dict[str, Any]:
        """Ends the files: columns with their kinds, rows, and files with their digests."""
        if self._rows or not self._files:
            self._flush()
        self._writer.close()
        return {
            "columns": self._table.columns,
            "rows": sum(rows for _, rows in self._files),
            "files": [
                {
                    "path": path.relative_to(self._folder).as_posix(),
                    "rows": rows,
                    "bytes": path.stat().st_size,
                    "sha256": digest_of(path),
                }
                for path, rows in self._files
            ],
        }

    def abandon(self) -> None:
        """Closes the file that is open."""
        if self._writer is not None:
            self._writer.close()

    def _flush(self) -> None:
        import pyarrow
        from pyarrow import parquet

        if self._writer is None or self._files[-1][1] >= _MOST_ROWS:
            self.abandon()
            path = self._folder / self._table.name / f"train-{len(self._files):05}.parquet"
            path.parent.mkdir(parents=True, exist_ok=True)
            self._files.append((path, 0))
            self._writer = parquet.ParquetWriter(path, self._schema, compression="zstd")
        self._writer.write_table(pyarrow.Table.from_pylist(self._rows, schema=self._schema), _GROUP)
        path, rows = self._files[-1]
        self._files[-1] = path, rows + len(self._rows)
        self._rows, self._characters = [], 0


def write_snapshot(
    session: Session,
    folder: Path,
    choice: SnapshotChoice,
    version: str,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> SnapshotCounts:
    """Writes a snapshot into an empty folder; equal catalogs have equal bytes.

    Args:
        session: A session on the catalog, which is read as it is at one moment.
        folder: The folder.
        choice: What to write beyond public facts.
        version: That of the program.
        progress: Called with the number of repositories done, and of all.
    """
    if session.get_bind().dialect.name == "postgresql":
        session.connection(execution_options={"isolation_level": "REPEATABLE READ"})
    left_out = {"private": 0, "gated": 0, "cards": 0, "spellings": 0, "scores": 0, "crawls": 0}
    repositories = _public(session, choice, left_out)
    digests = _Digests()
    with ExitStack() as stack:
        names = [name for name in TABLES if choice.with_notes or name not in ("notes", "tags")]
        writers = {name: _Writer(folder, TABLES[name]) for name in names}
        for writer in writers.values():
            stack.callback(writer.abandon)
        for start in range(0, len(repositories), _BLOCK):
            progress(start, len(repositories))
            _write_block(session, writers, repositories[start : start + _BLOCK], choice, digests)
            session.expunge_all()
        progress(len(repositories), len(repositories))
        hub_ids = {hub_id for _, hub_id, _ in repositories}
        _write_content(session, writers, digests)
        _write_scores(session, writers, repositories, choice, left_out)
        _write_bases(session, writers, digests, choice, left_out)
        if choice.with_notes:
            for name, source in (("notes", Annotation), ("tags", AnnotationTag)):
                for row in sorted(session.scalars(select(source)), key=lambda row: _key(row, source)):
                    writers[name].add(vars(row))
        crawls = _write_listed(session, writers, hub_ids, left_out)
        tables = {name: writer.close() for name, writer in writers.items()}
    left_out["cards"] = digests.cards_left_out
    asked = [question for question in session.scalars(select(Crawl.asked)) if isinstance(question, dict)]
    hubs = sorted({str(question["hub"]) for question in asked if "hub" in question})
    manifest = {
        "format": FORMAT,
        "versions": {"loradex": version, "schema": head()},
        "hubs": hubs,
        "crawls": crawls,
        "choice": vars(choice),
        "left_out": left_out,
        "tables": tables,
    }
    rows = {name: entry["rows"] for name, entry in tables.items()}
    (folder / "README.md").write_text(_readme(rows, hubs, left_out), encoding="utf-8")
    text = json.dumps(manifest, indent=1, sort_keys=True, ensure_ascii=False)
    (folder / MANIFEST).write_text(text + "\n", encoding="utf-8")
    size = sum(file["bytes"] for entry in tables.values() for file in entry["files"])
    return SnapshotCounts(rows, size, left_out)


def _readme(rows: dict[str, int], hubs: Sequence[str], left_out: dict[str, int]) -> str:
    lines = []
    for name in rows:
        lines += [f"- config_name: {name}", f"  data_files: {name}/*.parquet"]
        lines += ["  default: true"] if name == "adapters" else []
    counts = ", ".join(f"{count:,} {name}" for name, count in left_out.items() if count)
    return _README.format(
        configs="\n".join(lines),
        hubs=", ".join(hubs) or "a Hub",
        cards=f"Left out: {counts}." if counts else "",
        tables="\n".join(f"| {name} | {count:,} |" for name, count in rows.items()),
    )


def _public(session: Session, choice: SnapshotChoice, left_out: dict[str, int]) -> list[tuple[str, str, int]]:
    """(name, `_id`, row) of the repositories to write, sorted; the others are counted."""
    behind = (
        select(Adapter.repository_id)
        .where(~select(AdapterReason).where(_has_reason("gated")).correlate(Adapter).exists())
        .scalar_subquery()
    )
    read = Repository.gated.is_not(None) & Repository.id.in_(behind)
    query = select(Repository.name, Repository.hub_id, Repository.id, Repository.private, read)
    rows = []
    for name, hub_id, key, private, gated in session.execute(query):
        reason = "private" if private else "gated" if gated else None
        if reason is None or choice.with_private:
            rows.append((name, hub_id, key))
        else:
            left_out[reason] += 1
    return sorted(rows)


def _has_reason(reason: str) -> Any:
    return (AdapterReason.adapter_id == Adapter.id) & (AdapterReason.reason == reason)


def _write_block(
    session: Session,
    writers: dict[str, _Writer],
    block: Sequence[tuple[str, str, int]],
    choice: SnapshotChoice,
    digests: _Digests,
) -> None:
    """Writes repositories with all that belongs to them."""
    keys = [key for _, _, key in block]
    repositories = {row.id: row for row in session.scalars(select(Repository).where(Repository.id.in_(keys)))}
    aliases = session.scalars(select(RepositoryAlias).where(RepositoryAlias.repository_id.in_(keys)))
    names: dict[int, list[str]] = {}
    for alias in aliases:
        names.setdefault(alias.repository_id, []).append(alias.name)
    query = select(Adapter).where(Adapter.repository_id.in_(keys)).order_by(Adapter.id)
    adapters: dict[int, list[Adapter]] = {}
    for adapter in session.scalars(query):
        adapters.setdefault(adapter.repository_id, []).append(adapter)
    ids = [adapter.id for rows in adapters.values() for adapter in rows]
    reasons: dict[int, list[AdapterReason]] = {}
    ordered = select(AdapterReason).where(AdapterReason.adapter_id.in_(ids)).order_by(AdapterReason.position)
    for reason in session.scalars(ordered):
        reasons.setdefault(reason.adapter_id, []).append(reason)
    for key in keys:
        repository = repositories[key]
        writers["repositories"].add(_values(repository))
        for name in sorted(names.get(key, ())):
            writers["aliases"].add({"hub_id": repository.hub_id, "name": name})
        for adapter in adapters.get(key, ()):
            _write_adapter(writers, repository, adapter, choice, digests)
            at = _adapter_key(repository, adapter)
            for reason in reasons.get(adapter.id, ()):
                writers["reasons"].add({**_values(reason), **at})


def _write_adapter(
    writers: dict[str, _Writer],
    repository: Repository,
    adapter: Adapter,
    choice: SnapshotChoice,
    digests: _Digests,
) -> None:
    at, values = _adapter_key(repository, adapter), _values(adapter)
    front = adapter.card_front if isinstance(adapter.card_front, dict) else {}
    digest = adapter.card_digest or adapter.left_out_card
    has_card = digest is not None or adapter.card_left_out or bool(adapter.card_text)
    there = choice.cards and has_card and not adapter.card_left_out
    shown = there and objection(adapter.license, "publish") is None
    facts = {name: front[name] for name in CARD_FACTS if name in front}
    base = adapter.base_model.canonical if adapter.base_model else None
    own = {"repository": repository.name, "base": base, "card_digest": digest, "card_facts": facts}
    writers["adapters"].add({**values, **at, **own})
    for position, file in enumerate(adapter.files or ()):
        writers["files"].add({**at, "position": position, "file": file})
    writers["training"].add({**at, "training": adapter.training})
    if shown or not has_card:
        writers["cards"].add({**at, **{name: values[name] for name in layout.CARDS.own}})
    digests.cards_left_out += has_card and not shown
    digests.weights.update(filter(None, [adapter.weights_digest]))
    digests.documents.update(filter(None, [adapter.config_digest, adapter.card_digest if shown else None]))
    digests.bases.update(filter(None, [adapter.base_model_id]))
    # A card that is left out of a snapshot with cards has no vectors there: they could not return with it.
    if shown or not has_card or not choice.cards:
        digests.contents.add(content_of(adapter.card_text))


def _write_content(session: Session, writers: dict[str, _Writer], digests: _Digests) -> None:
    """Writes the files, fingerprints and vectors of texts that adapters of the snapshot have."""
    for name, source, column, keys in (
        ("weights", WeightsFile, WeightsFile.digest, digests.weights),
        ("documents", DocumentRow, DocumentRow.digest, digests.documents),
        ("fingerprints", FingerprintRow, FingerprintRow.weights_digest, digests.weights),
        ("embeddings", Embedding, Embedding.content, digests.contents),
    ):
        for row in _rows_of(session, source, column, keys):
            writers[name].add(_values(row))


def _rows_of(session: Session, source: type[Any], column: Any, keys: Iterable[str]) -> Iterator[Any]:
    """The rows of these keys, sorted by all that identifies them."""
    ordered = sorted(keys)
    for start in range(0, len(ordered), _BLOCK):
        query = select(source).where(column.in_(ordered[start : start + _BLOCK]))
        yield from sorted(session.scalars(query), key=lambda row: _key(row, source))
        session.expunge_all()


def _write_scores(
    session: Session,
    writers: dict[str, _Writer],
    repositories: Sequence[tuple[str, str, int]],
    choice: SnapshotChoice,
    left_out: dict[str, int],
) -> None:
    """Writes the scores of the base model and of adapters of the snapshot, and the items that they name."""
    names = {name for name, _, _ in repositories}
    query = select(Evaluation, Repository.hub_id, Adapter.commit, Adapter.subfolder)
    query = query.outerjoin(Adapter, Adapter.id == Evaluation.adapter_id).outerjoin(Adapter.repository)
    hub_ids, lists = {hub_id for _, hub_id, _ in repositories}, set[str]()
    order = ("subject", "task", "split", "metric", "source", "protocol")
    rows = sorted(session.execute(query), key=lambda row: tuple(str(getattr(row[0], name)) for name in order))
    for score, hub_id, commit, subfolder in rows:
        repository = score.subject.partition(":")[0].partition("@")[0]
        public = score.subject == BASE or hub_id in hub_ids or (hub_id is None and repository in names)
        if not (public or choice.with_private):
            left_out["scores"] += 1
            continue
        at = {"adapter_hub_id": hub_id, "adapter_commit": commit, "adapter_subfolder": subfolder}
        writers["scores"].add({**_values(score), **at})
        lists.update(filter(None, [score.items_sha]))
    for row in _rows_of(session, ItemList, ItemList.items_sha, lists):
        writers["items"].add(_values(row))


def _write_bases(
    session: Session,
    writers: dict[str, _Writer],
    digests: _Digests,
    choice: SnapshotChoice,
    left_out: dict[str, int],
) -> None:
    """Writes the base models of the adapters and of built-in spellings; a user's spellings are own words."""
    by_user = BaseSpellingRow.by_user
    spellings = session.scalars(
        select(BaseSpellingRow) if choice.with_notes else select(BaseSpellingRow).where(~by_user)
    ).all()
    if not choice.with_notes:
        left_out["spellings"] = session.scalar(select(func.count()).where(by_user)) or 0
    ids = digests.bases | {row.base_model_id for row in spellings}
    bases = {row.id: row for row in session.scalars(select(BaseModelRow)) if row.id in ids}
    for base in sorted(bases.values(), key=lambda row: row.canonical):
        writers["bases"].add(_values(base))
    for row in sorted(spellings, key=lambda row: row.spelling):
        writers["spellings"].add({**_values(row), "base": bases[row.base_model_id].canonical})


def _write_listed(
    session: Session, writers: dict[str, _Writer], hub_ids: set[str], left_out: dict[str, int]
) -> list[dict[str, Any]]:
    """Writes what each question listed that the snapshot answers completely; returns these questions."""
    entries: dict[str, dict[str, Any]] = {}
    listings: dict[str, list[str]] = {}
    stored = set(session.scalars(select(Repository.hub_id)))
    retried = set(session.scalars(select(CrawlRetry.scope).distinct()))
    whole = or_(Crawl.state == CrawlState.COMPLETE, Crawl.watermark.is_not(None))
    for crawl in session.scalars(select(Crawl).where(whole).order_by(Crawl.scope, Crawl.id.desc())):
        asked = crawl.asked if isinstance(crawl.asked, dict) else {}
        mark = frontier.watermark(session, crawl.scope)
        if crawl.scope in entries or mark is None or asked.get("since", "") is not None:
            continue
        items = select(CrawlItem.hub_id).join(Crawl, Crawl.id == CrawlItem.crawl_id)
        of_listing = items.where(Crawl.listing == crawl.listing, CrawlItem.hub_id.is_not(None))
        listed = {hub_id for hub_id in session.scalars(of_listing) if hub_id is not None}
        if crawl.scope in retried or listed & stored - hub_ids:
            left_out["crawls"] += 1
            continue
        listings[crawl.listing] = sorted(listed & stored)
        entries[crawl.scope] = {
            "scope": crawl.scope,
            "listing": crawl.listing,
            "asked": asked,
            "started_at": _text(crawl.started_at),
            "watermark": _text(mark),
        }
    for listing in sorted(listings):
        for hub_id in listings[listing]:
            writers["listed"].add({"listing": listing, "hub_id": hub_id})
    return list(entries.values())


def _values(row: Any) -> dict[str, Any]:
    """The columns of a row by name."""
    return {column.name: getattr(row, column.name) for column in row.__table__.columns}


def _key(row: Any, source: type[Any]) -> tuple[Any, ...]:
    return tuple(getattr(row, column.name) for column in source.__table__.primary_key)


def _adapter_key(repository: Repository, adapter: Adapter) -> dict[str, str]:
    return {"hub_id": repository.hub_id, "commit": adapter.commit, "subfolder": adapter.subfolder}


def _text(instant: datetime) -> str:
    return instant.isoformat()
