"""What changed in the catalog since an instant, as far as its rows tell. Writes nothing."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from itertools import groupby

from sqlalchemy import func, or_, select
from sqlalchemy.orm import Session, load_only

from catalog.adapters import adapter_name
from catalog.database import Adapter, AdapterReason, Crawl, CrawlItem, ItemOutcome, Repository
from catalog.query import Query

CHANGES = ("new", "changed", "gone", "license", "gated")
_BLOCK = 5000


@dataclass(frozen=True)
class CatalogChange:
    """One change of a repository, or of the license of one of its adapters.

    `change` is new, changed (its commit), gone, license or gated; `before` and `after` are commits, licenses
    or gates. `at` is when a crawl noticed it: for a commit, when the crawl began or, in a catalog
    whose earlier version no longer tells that, when the Hub says that it was last modified.
    """

    adapter: str
    change: str
    at: datetime
    before: str | None
    after: str | None


def changes(
    session: Session, since: datetime, *, where: Query | None = None, refusing: Collection[str] = ()
) -> list[CatalogChange]:
    """What changed since an instant, the newest first; of the adapters that a filter accepts, if there is
    one, which is judged by the reasons `refusing`.
    """
    noticed = _noticed(session, since)
    query = select(Repository).where(
        or_(
            Repository.first_seen >= since,
            Repository.gone_at >= since,
            Repository.last_modified >= since,
            Repository.hub_id.in_(noticed),
        )
    )
    if where is not None:
        ids = select(Adapter.repository_id).join(Adapter.repository).outerjoin(Adapter.base_model)
        query = query.where(Repository.id.in_(ids.where(Adapter.current, where.clause(refusing))))
    repositories = session.scalars(query.order_by(Repository.id)).all()
    rows = [
        row
        for start in range(0, len(repositories), _BLOCK)
        for row in _changes_of(session, repositories[start : start + _BLOCK], since, noticed)
    ]
    return sorted(rows, key=lambda row: (-row.at.timestamp(), row.adapter, CHANGES.index(row.change)))


def _noticed(session: Session, since: datetime) -> dict[str, datetime]:
    """When the newest crawl that met a repository at another commit began, by the repository's `_id`."""
    items = select(CrawlItem.hub_id, func.max(Crawl.started_at)).join(Crawl, Crawl.id == CrawlItem.crawl_id)
    changed = (CrawlItem.outcome == ItemOutcome.CHANGED, CrawlItem.hub_id.is_not(None))
    query = items.where(*changed, Crawl.started_at >= since).group_by(CrawlItem.hub_id)
    return {hub_id: at for hub_id, at in session.execute(query) if hub_id is not None}


def _changes_of(
    session: Session, block: Sequence[Repository], since: datetime, noticed: Mapping[str, datetime]
) -> Iterator[CatalogChange]:
    known = [row for row in block if row.first_seen < since]
    history = _history(session, [row.id for row in known])
    for row in block:
        if row.first_seen >= since:
            yield CatalogChange(row.name, "new", row.first_seen, None, row.commit)
        if row.gone_at is not None and row.gone_at >= since:
            yield CatalogChange(row.name, "gone", row.gone_at, row.commit, None)
    for row in known:
        at = noticed.get(row.hub_id) or row.last_modified
        if at is None or at < since:
            continue
        adapters = history.get(row.id, [])
        older = [adapter for adapter in adapters if adapter.commit != row.commit]
        if older or row.hub_id in noticed:
            yield CatalogChange(row.name, "changed", at, older[-1].commit if older else None, row.commit)
            yield from _changed_licenses(row, adapters, older, at)
            yield from _changed_gate(session, row, older, at)


def _history(session: Session, repositories: Sequence[int]) -> dict[int, list[Adapter]]:
    """The adapters of these repositories at all commits, in the order in which they were first read."""
    query = select(Adapter).where(Adapter.repository_id.in_(repositories))
    columns = (Adapter.repository_id, Adapter.commit, Adapter.subfolder, Adapter.license, Adapter.current)
    rows = session.scalars(
        query.options(load_only(*columns)).order_by(Adapter.repository_id, Adapter.id)
    ).all()
    return {key: list(of_key) for key, of_key in groupby(rows, lambda row: row.repository_id)}


def _changed_licenses(
    row: Repository, adapters: Sequence[Adapter], older: Sequence[Adapter], at: datetime
) -> Iterator[CatalogChange]:
    before = {adapter.subfolder: adapter.license for adapter in older}
    for adapter in adapters:
        license_before = before.get(adapter.subfolder)
        if adapter.current and adapter.subfolder in before and adapter.license != license_before:
            name = adapter_name(row.name, adapter.subfolder)
            yield CatalogChange(name, "license", at, license_before, adapter.license)


def _changed_gate(
    session: Session, row: Repository, older: Sequence[Adapter], at: datetime
) -> Iterator[CatalogChange]:
    """The gate of a repository whose last commit was read and whose current one could not be."""
    if row.gated is None or not older:
        return
    gated = select(Adapter.commit).join(AdapterReason).where(AdapterReason.reason == "gated")
    commits = set(session.scalars(gated.where(Adapter.repository_id == row.id)))
    if row.commit in commits and older[-1].commit not in commits:
        yield CatalogChange(row.name, "gated", at, None, row.gated)
