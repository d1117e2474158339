"""A checked snapshot, brought into a catalog in one transaction: what is missing, and what is later."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from sqlalchemy import insert, select, update
from sqlalchemy.exc import DataError, IntegrityError
from sqlalchemy.orm import Session

from catalog.database import (
    NOT_IN_SNAPSHOT,
    Adapter,
    AdapterReason,
    Annotation,
    AnnotationTag,
    BaseModelRow,
    BaseSpellingRow,
    Crawl,
    CrawlItem,
    CrawlState,
    DocumentRow,
    Embedding,
    Evaluation,
    FingerprintRow,
    ItemList,
    ItemOutcome,
    Repository,
    RepositoryAlias,
    WeightsFile,
    store,
)
from catalog.errors import CatalogError
from catalog.snapshots.layout import (
    ADAPTER_KEY,
    ADAPTERS,
    ALIASES,
    BASES,
    CARDS,
    DOCUMENTS,
    EMBEDDINGS,
    FILES,
    FINGERPRINTS,
    ITEMS,
    LISTED,
    NOTES,
    REASONS,
    REPOSITORIES,
    SCORES,
    SPELLINGS,
    TAGS,
    TRAINING,
    WEIGHTS,
    AdapterKey,
    SnapshotTable,
    adapter_key,
)
from catalog.snapshots.verification import SnapshotManifest


@dataclass
class ImportCounts:
    """What an import did: repositories and adapters that were added, replaced by later ones, or left as they
    were; `cards_missing` adapters whose cards the snapshot left out; and rows of the other tables added.
    `source` is the folder, or owner/name@commit of the data set.
    """

    repositories_added: int = 0
    repositories_replaced: int = 0
    repositories_left: int = 0
    adapters_added: int = 0
    adapters_replaced: int = 0
    cards_missing: int = 0
    watermarks: int = 0
    source: str = ""
    rows: dict[str, int] = field(default_factory=dict)


def import_snapshot(session: Session, manifest: SnapshotManifest) -> ImportCounts:
    """Writes what a catalog lacks of a snapshot; the caller commits.

    A repository that is there is replaced by a later crawl of the same `_id` alone, an adapter at the same
    commit never by one of which less was read. Pools, tags, notes and scores that are there stay.

    Raises:
        CatalogError: The rows contradict each other; nothing may be committed then.
    """
    try:
        return _Import(session, manifest).carry_out()
    except (IntegrityError, DataError) as error:
        raise CatalogError(f"the rows of the snapshot contradict each other: {error.orig}") from error


class _Details:
    """The rows of a table of details, taken in the order of the adapters that they belong to."""

    def __init__(self, manifest: SnapshotManifest, table: SnapshotTable) -> None:
        self._name = table.name
        self._rows = (row for batch in manifest.rows(table) for row in batch)
        self._next = next(self._rows, None)

    def take(self, key: AdapterKey) -> list[dict[str, Any]]:
        """The rows of the next adapter, which has this key."""
        rows = []
        while self._next is not None and adapter_key(self._next) == key:
            rows.append(self._next)
            self._next = next(self._rows, None)
        return rows

    def end(self) -> None:
        """Raises CatalogError for rows of adapters that there are not."""
        if self._next is not None:
            raise CatalogError(f"the snapshot's table {self._name} does not follow the order of its adapters")


class _Import:
    def __init__(self, session: Session, manifest: SnapshotManifest) -> None:
        self._session, self._manifest = session, manifest
        self._counts = ImportCounts()
        self._repositories: dict[str, int] = {}
        self._newer: set[str] = set()
        self._adapters: dict[AdapterKey, int] = {}
        self._bases: dict[str, int] = {}
        self._written: list[tuple[Adapter, AdapterKey]] = []

    def carry_out(self) -> ImportCounts:
        store.sync_bases(self._session)
        self._add_bases()
        self._add(DOCUMENTS, DocumentRow, ("digest",))
        self._add_weights()
        self._add(FINGERPRINTS, FingerprintRow, ("weights_digest", "scaling_pattern", "version"))
        self._add(EMBEDDINGS, Embedding, ("content", "model", "chunk"))
        self._add_repositories()
        self._add_adapters()
        self._add(ITEMS, ItemList, ("items_sha",))
        self._add_scores()
        self._add(NOTES, Annotation, ("hub_id", "subfolder"))
        self._add(TAGS, AnnotationTag, ("hub_id", "subfolder", "tag"))
        self._add_crawls()
        self._session.flush()
        return self._counts

    def _rows(self, table: SnapshotTable) -> Iterator[list[dict[str, Any]]]:
        return self._manifest.rows(table)

    def _count(self, name: str, count: int) -> None:
        self._counts.rows[name] = self._counts.rows.get(name, 0) + count

    def _add(self, table: SnapshotTable, source: type[Any], key: tuple[str, ...]) -> None:
        """Adds the rows of a table that are not there, by their key."""
        columns = [getattr(source, name) for name in key]
        for batch in self._rows(table):
            first = columns[0].in_({row[key[0]] for row in batch})
            stored = {tuple(row) for row in self._session.execute(select(*columns).where(first))}
            new = {}
            for row in batch:
                at = tuple(row[name] for name in key)
                if at not in stored:
                    new[at] = row
            if new:
                self._session.execute(insert(source), list(new.values()))
            self._count(table.name, len(new))

    def _add_bases(self) -> None:
        self._add(BASES, BaseModelRow, ("canonical",))
        self._bases = dict(self._session.execute(select(BaseModelRow.canonical, BaseModelRow.id)).all())
        stored = set(self._session.scalars(select(BaseSpellingRow.spelling)))
        for batch in self._rows(SPELLINGS):
            new = [
                {**row, "base_model_id": self._base(row.pop("base"))}
                for row in batch
                if row["spelling"] not in stored
            ]
            if new:
                self._session.execute(insert(BaseSpellingRow), new)
            self._count("spellings", len(new))

    def _base(self, name: str | None) -> int | None:
        if name is not None and name not in self._bases:
            raise CatalogError(f"the snapshot lacks the base model {name[:80]!r} of its adapters")
        return None if name is None else self._bases[name]

    def _add_weights(self) -> None:
        """Adds weights files, and what was not read of those that are there."""
        for batch in self._rows(WEIGHTS):
            digests = [row["digest"] for row in batch]
            query = select(WeightsFile).where(WeightsFile.digest.in_(digests))
            stored = {row.digest: row for row in self._session.scalars(query)}
            new = []
            for row in batch:
                there = stored.get(row["digest"])
                if there is None:
                    new.append(row)
                    continue
                for name in ("header", "tensor_digest", "git_oid"):
                    if getattr(there, name) is None:
                        setattr(there, name, row[name])
            if new:
                self._session.execute(insert(WeightsFile), new)
            self._count("weights", len(new))
            self._session.flush()
            self._session.expunge_all()

    def _add_repositories(self) -> None:
        for batch in self._rows(REPOSITORIES):
            stored = store.known_repositories(self._session, [row["hub_id"] for row in batch])
            new = [row for row in batch if row["hub_id"] not in stored]
            if new:
                self._session.execute(insert(Repository), new)
            for row in batch:
                there = stored.get(row["hub_id"])
                if there is None:
                    self._newer.add(row["hub_id"])
                elif there.last_seen < row["last_seen"]:
                    self._newer.add(row["hub_id"])
                    self._replace_repository(there, row)
            self._counts.repositories_added += len(new)
            self._counts.repositories_replaced += sum(row["hub_id"] in self._newer for row in batch) - len(
                new
            )
            self._counts.repositories_left += sum(row["hub_id"] not in self._newer for row in batch)
            self._session.flush()
            ids = select(Repository.hub_id, Repository.id)
            ids = ids.where(Repository.hub_id.in_([row["hub_id"] for row in batch]))
            self._repositories |= dict(self._session.execute(ids).all())
            self._bury_namesakes([row["name"] for row in batch])
            self._session.expunge_all()
        self._add_aliases()

    def _replace_repository(self, there: Repository, row: Mapping[str, Any]) -> None:
        """Writes the later state; its adapters follow."""
        if there.name != row["name"]:
            self._session.merge(RepositoryAlias(repository_id=there.id, name=there.name))
        for name, value in row.items():
            if name != "first_seen":
                setattr(there, name, value)
        older = update(Adapter).where(Adapter.repository_id == there.id).values(current=False)
        self._session.execute(older.execution_options(synchronize_session=False))

    def _bury_namesakes(self, names: Collection[str]) -> None:
        """Of several repositories of one name, the one that was met last is there."""
        rows = self._session.scalars(
            select(Repository)
            .where(Repository.name.in_(names), Repository.gone_at.is_(None))
            .order_by(Repository.last_seen.desc(), Repository.id)
        )
        bearers: dict[str, Repository] = {}
        for row in rows:
            if (bearer := bearers.setdefault(row.name, row)) is not row:
                row.gone_at = bearer.last_seen
        self._session.flush()

    def _add_aliases(self) -> None:
        for batch in self._rows(ALIASES):
            for row in batch:
                key = self._repositories.get(row["hub_id"])
                if key is None:
                    raise CatalogError("the snapshot names a repository before that it does not contain")
                self._session.merge(RepositoryAlias(repository_id=key, name=row["name"]))
            self._session.flush()

    def _add_adapters(self) -> None:
        """Adds adapters with their reasons, files, training facts and cards, all in the same order."""
        details = {table.name: _Details(self._manifest, table) for table in (REASONS, FILES, TRAINING, CARDS)}
        for batch in self._rows(ADAPTERS):
            owners = {self._repositories.get(row["hub_id"], 0) for row in batch}
            query = select(Adapter).where(Adapter.repository_id.in_(owners))
            stored = {
                (row.repository_id, row.commit, row.subfolder): row for row in self._session.scalars(query)
            }
            for row in batch:
                parts = {name: rows.take(adapter_key(row)) for name, rows in details.items()}
                self._add_adapter(row, parts, stored)
            self._session.flush()
            for adapter, key in self._written:
                self._adapters[key] = adapter.id
            self._written.clear()
            self._session.expunge_all()
        for rows in details.values():
            rows.end()

    def _add_adapter(
        self,
        row: dict[str, Any],
        parts: Mapping[str, list[dict[str, Any]]],
        stored: Mapping[tuple[int, str, str], Adapter],
    ) -> None:
        key = adapter_key(row)
        owner = self._repositories.get(row["hub_id"])
        if owner is None:
            raise CatalogError("the snapshot has an adapter of a repository that it does not contain")
        there = stored.get((owner, row["commit"], row["subfolder"]))
        newer = row["hub_id"] in self._newer
        if there is not None:
            self._written.append((there, key))
            if not newer:
                return
            if there.norm is not None and row["norm"] is None:
                there.current = row["current"]
                return
        values = self._adapter_values(row, parts, there)
        adapter = there or Adapter(repository_id=owner)
        for name, value in values.items():
            setattr(adapter, name, value)
        adapter.current = bool(row["current"]) and newer
        adapter.reasons = [
            AdapterReason(reason=part["reason"], position=part["position"], detail=part["detail"])
            for part in parts["reasons"]
        ]
        self._session.add(adapter)
        if there is None:
            self._written.append((adapter, key))
            self._counts.adapters_added += 1
        else:
            self._counts.adapters_replaced += 1

    def _adapter_values(
        self, row: Mapping[str, Any], parts: Mapping[str, list[dict[str, Any]]], there: Adapter | None
    ) -> dict[str, Any]:
        """The columns of an adapter; a card that is there stays where the snapshot left it out."""
        values = {name: row[name] for name in ADAPTERS.own}
        values["base_model_id"] = self._base(row["base"])
        values["files"] = [part["file"] for part in parts["files"]]
        values["training"] = parts["training"][0]["training"] if parts["training"] else {}
        if parts["cards"]:
            return values | {name: parts["cards"][0][name] for name in CARDS.own}
        if there is not None and there.card_digest is not None:
            return values
        self._counts.cards_missing += 1
        front = {**(row["card_facts"] or {}), NOT_IN_SNAPSHOT: row["card_digest"]}
        return values | {"card_digest": None, "card_text": "", "card_front": front}

    def _add_scores(self) -> None:
        """Adds scores that nobody measured here."""
        names = ("subject", "task", "split", "metric", "source", "protocol")
        columns = [getattr(Evaluation, name) for name in names]
        for batch in self._rows(SCORES):
            subjects = Evaluation.subject.in_({row["subject"] for row in batch})
            stored = {tuple(row) for row in self._session.execute(select(*columns).where(subjects))}
            new = []
            for row in batch:
                at = tuple(row.pop(f"adapter_{name}") for name in ADAPTER_KEY)
                if tuple(row[name] for name in names) not in stored:
                    new.append({**row, "adapter_id": self._adapters.get(at)})
            if new:
                self._session.execute(insert(Evaluation), new)
            self._count("scores", len(new))

    def _add_crawls(self) -> None:
        """Adds the watermarks of questions that this catalog never asked."""
        asked = set(self._session.scalars(select(Crawl.scope)))
        crawls: dict[str, int] = {}
        for entry in self._manifest.crawls:
            if entry.scope in asked:
                continue
            crawl = Crawl(
                listing=entry.listing,
                scope=entry.scope,
                asked=dict(entry.asked),
                state=CrawlState.COMPLETE,
                started_at=entry.started_at,
                finished_at=entry.started_at,
                watermark=entry.watermark,
            )
            self._session.add(crawl)
            self._session.flush()
            crawls.setdefault(entry.listing, crawl.id)
            self._counts.watermarks += 1
        positions: dict[int, int] = {}
        for batch in self._rows(LISTED):
            items = []
            for row in batch:
                crawl_id = crawls.get(row["listing"])
                if crawl_id is None:
                    continue
                if row["hub_id"] not in self._repositories:
                    raise CatalogError("the snapshot lists a repository that it does not contain")
                positions[crawl_id] = positions.get(crawl_id, 0) + 1
                item = {"crawl_id": crawl_id, "position": positions[crawl_id], "hub_id": row["hub_id"]}
                items.append({**item, "outcome": ItemOutcome.UNCHANGED})
            if items:
                self._session.execute(insert(CrawlItem), items)
