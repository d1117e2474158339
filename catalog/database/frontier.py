"""The progress of a crawl: its pages, its items, and their outcomes; it is stored in the database alone.

Functions take a session and never commit. A page is written together with its rows and its next-page URL, an
item is settled in the transaction that writes its adapters: the two agree even if the process is killed.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from sqlalchemy import Select, delete, func, or_, select, update
from sqlalchemy.orm import Session

from catalog.database.schema import (
    Adapter,
    AdapterReason,
    Crawl,
    CrawlItem,
    CrawlPage,
    CrawlState,
    ItemOutcome,
    Repository,
    WeightsItem,
)
from catalog.database.store import count_rows, has_reason

# In addition to the fields of a pending row: the other names under which its repository was listed.
OTHER_NAMES = "_other_names"


@dataclass(frozen=True)
class ItemRecord:
    """One listing row to be written: raw, with its identity, or quarantined with a reason."""

    hub_id: str | None
    name: str | None
    row: Any
    error: str | None = None


def digest(question: Mapping[str, Any]) -> str:
    """The sha256 of a question as JSON: the same query has the same digest, everywhere."""
    return hashlib.sha256(json.dumps(question, sort_keys=True).encode()).hexdigest()


def crawl_to_resume(session: Session, scope: str, not_before: datetime) -> Crawl | None:
    """The newest crawl of this scope, if its listing or one of its items is still to be done.

    A crawl that began before `not_before` is ignored: its rows name outdated commits.
    """
    crawl = session.scalar(select(Crawl).where(Crawl.scope == scope).order_by(Crawl.id.desc()).limit(1))
    if crawl is None or crawl.state is CrawlState.COMPLETE or crawl.started_at < not_before:
        return None
    pages = (newest_page(session, crawl.id, n) for n in range(len(crawl.asked["queries"])))
    if (
        crawl.state is CrawlState.RUNNING
        or any(page is None or page.next_url is not None for page in pages)
        or pending(session, crawl.id, 0, 1)
    ):
        return crawl
    return None


def reopen(session: Session, crawl: Crawl) -> None:
    """Resumes an unfinished crawl: its failed items are pending again."""
    crawl.state = CrawlState.RUNNING
    session.execute(
        update(CrawlItem)
        .where(CrawlItem.crawl_id == crawl.id, CrawlItem.outcome == ItemOutcome.FAILED)
        .values(outcome=ItemOutcome.PENDING, error=None, detail=None)
    )


def hold(session: Session, crawl: Crawl, holder: str, now: datetime) -> None:
    """Notes which process works on a crawl; weights that other crawls offered are removed."""
    session.execute(delete(WeightsItem).where(WeightsItem.crawl_id != crawl.id))
    crawl.holder, crawl.held_since, crawl.phase = holder, now, "listing"


def watermark(session: Session, scope: str) -> datetime | None:
    """The newest last-modified time up to which this scope is known, except for pending retries."""
    return session.scalar(select(func.max(Crawl.watermark)).where(Crawl.scope == scope))


def last_whole(session: Session, scope: str) -> datetime | None:
    """The start of the newest complete crawl of this scope, which listed everything and not only changes."""
    rows = session.execute(
        select(Crawl.started_at, Crawl.asked)
        .where(Crawl.scope == scope, or_(Crawl.state == CrawlState.COMPLETE, Crawl.watermark.is_not(None)))
        .order_by(Crawl.id.desc())
    )
    return next((started for started, question in rows if question["since"] is None), None)


def open_crawl(
    session: Session, listing: str, scope: str, question: Mapping[str, Any], now: datetime
) -> Crawl:
    """A new crawl's row, flushed; an unfinished older one of its scope is abandoned."""
    older = update(Crawl).where(Crawl.scope == scope, Crawl.state == CrawlState.RUNNING)
    session.execute(older.values(state=CrawlState.PARTIAL))
    crawl = Crawl(
        listing=listing, scope=scope, asked=dict(question), state=CrawlState.RUNNING, started_at=now
    )
    session.add(crawl)
    session.flush()
    return crawl


def newest_page(session: Session, crawl_id: int, query: int) -> CrawlPage | None:
    """The page of one query that was read last; its `next_url` is None where that was the end."""
    pages = select(CrawlPage).where(CrawlPage.crawl_id == crawl_id, CrawlPage.query == query)
    return session.scalar(pages.order_by(CrawlPage.number.desc()).limit(1))


def seen_urls(session: Session, crawl_id: int, query: int) -> set[str]:
    """The pages of one query that were read: a listing that leads back to one of them is broken."""
    return set(
        session.scalars(select(CrawlPage.url).where(CrawlPage.crawl_id == crawl_id, CrawlPage.query == query))
    )


def add_page(session: Session, page: CrawlPage, items: Sequence[ItemRecord]) -> int:
    """Writes one page with its items; returns the number of repositories that the crawl had not listed yet.

    A repository listed twice keeps one item; if the first is still pending it takes the later row. One that
    is listed under two names keeps the first row, with the other names added, and is pending again.
    """
    session.add(page)
    position, added = last_position(session, page.crawl_id), 0
    of_crawl = select(CrawlItem).where(CrawlItem.crawl_id == page.crawl_id)
    ids = [item.hub_id for item in items if item.hub_id is not None]
    known_ids = {row.hub_id: row for row in session.scalars(of_crawl.where(CrawlItem.hub_id.in_(ids)))}
    quarantined = of_crawl.where(CrawlItem.outcome == ItemOutcome.QUARANTINED)
    refused = [row.row for row in session.scalars(quarantined)] if len(ids) < len(items) else []
    for item in items:
        if item.hub_id is None and item.row in refused:
            continue
        row = known_ids.get(item.hub_id) if item.hub_id is not None else None
        if row is not None:
            if row.name != item.name:
                _add_name(row, item)
            elif row.outcome is ItemOutcome.PENDING:
                row.row = {**item.row, OTHER_NAMES: names} if (names := other_names(row)) else item.row
            continue
        position += 1
        outcome = ItemOutcome.PENDING if item.error is None else ItemOutcome.QUARANTINED
        row = CrawlItem(crawl_id=page.crawl_id, position=position, outcome=outcome, **vars(item))
        session.add(row)
        if item.hub_id is not None:
            known_ids[item.hub_id] = row
            added += 1
    session.flush()
    return added


def last_position(session: Session, crawl_id: int) -> int:
    """The position of the last item of a crawl; 0 if it has none."""
    return session.scalar(select(func.max(CrawlItem.position)).where(CrawlItem.crawl_id == crawl_id)) or 0


def other_names(item: CrawlItem) -> list[str]:
    """The other names under which an item's repository was listed."""
    names = item.row.get(OTHER_NAMES) if isinstance(item.row, dict) else None
    return list(names) if isinstance(names, list) else []


def _add_name(row: CrawlItem, item: ItemRecord) -> None:
    names = other_names(row)
    if row.outcome is not ItemOutcome.PENDING:
        # It is settled; a later listing has its own row, and which repository has the identity is checked
        # again.
        names, row.row, row.name = [row.name or ""], item.row, item.name
        row.outcome, row.error, row.detail = ItemOutcome.PENDING, None, None
    elif item.name not in names:
        names.append(item.name or "")
    row.row = {**row.row, OTHER_NAMES: names}


def add_namesakes(session: Session, crawl_id: int, hub_id: str, names: Sequence[str], error: str) -> None:
    """Adds a quarantined row for each repository with the `_id` of another one."""
    last = last_position(session, crawl_id)
    state = {"crawl_id": crawl_id, "outcome": ItemOutcome.QUARANTINED, "error": error}
    session.add_all(
        CrawlItem(position=position, name=name, row={"_id": hub_id, "id": name}, **state)
        for position, name in enumerate(names, start=last + 1)
    )
    session.flush()


def already_listed(session: Session, crawl_id: int, hub_ids: Collection[str]) -> set[str]:
    """The repositories among these for which a crawl already has an item."""
    return set(
        session.scalars(
            select(CrawlItem.hub_id).where(CrawlItem.crawl_id == crawl_id, CrawlItem.hub_id.in_(hub_ids))
        )
    )


def prune(session: Session, crawl: Crawl) -> None:
    """Deletes the items of earlier crawls of this listing whose repositories this one met as well.

    One item per repository and listing is kept: it records that the listing contained it. Another one says
    which crawl found its newest change, until a crawl finds the next: nothing else tells when that was.
    """
    here = select(CrawlItem.hub_id).where(CrawlItem.crawl_id == crawl.id, CrawlItem.hub_id.is_not(None))
    changed = CrawlItem.outcome == ItemOutcome.CHANGED
    earlier = select(Crawl.id).where(
        Crawl.listing == crawl.listing,
        Crawl.id < crawl.id,
        # An unfinished crawl of another scope may still be resumed.
        or_(Crawl.scope == crawl.scope, Crawl.state == CrawlState.COMPLETE),
    )
    session.execute(
        delete(CrawlItem)
        .where(CrawlItem.crawl_id.in_(earlier), CrawlItem.hub_id.in_(here))
        .where(or_(~changed, CrawlItem.hub_id.in_(here.where(changed))))
        .execution_options(synchronize_session=False)
    )


def count_listed(session: Session, crawl_id: int) -> int:
    """The number of repositories that a crawl has listed; rows without an identity do not count."""
    items = select(CrawlItem.position).where(CrawlItem.crawl_id == crawl_id, CrawlItem.hub_id.is_not(None))
    return count_rows(session, items)


def rows_by_query(session: Session, crawl_id: int) -> dict[int, int]:
    """The number of matching rows of each query of a crawl of which a page was read."""
    rows = (
        select(CrawlPage.query, func.sum(CrawlPage.rows))
        .where(CrawlPage.crawl_id == crawl_id)
        .group_by(CrawlPage.query)
    )
    return {query: int(count) for query, count in session.execute(rows)}


def restart_query(session: Session, crawl_id: int, query: int) -> None:
    """Deletes the pages of a query whose cursor the Hub no longer accepts; its items are kept."""
    session.execute(delete(CrawlPage).where(CrawlPage.crawl_id == crawl_id, CrawlPage.query == query))


def pending(session: Session, crawl_id: int, after: int, count: int) -> Sequence[CrawlItem]:
    """The next items that are not settled, in listing order."""
    return session.scalars(
        select(CrawlItem)
        .where(
            CrawlItem.crawl_id == crawl_id,
            CrawlItem.outcome == ItemOutcome.PENDING,
            CrawlItem.position > after,
        )
        .order_by(CrawlItem.position)
        .limit(count)
    ).all()


def items_at(session: Session, crawl_id: int, positions: Collection[int]) -> dict[int, CrawlItem]:
    """The items at these positions, by position."""
    items = select(CrawlItem).where(CrawlItem.crawl_id == crawl_id, CrawlItem.position.in_(positions))
    return {item.position: item for item in session.scalars(items)}


def settle(
    item: CrawlItem, outcome: ItemOutcome, *, error: str | None = None, detail: str | None = None
) -> None:
    """Sets the outcome of an item; its raw row is deleted unless the item failed and may be retried."""
    item.outcome, item.error, item.detail = outcome, error, detail
    if outcome is not ItemOutcome.FAILED:
        item.row = None


def add_missing(session: Session, crawl: Crawl, row: Any) -> None:
    """Adds an item with this row for each repository that earlier crawls of this listing listed and this one
    did not."""
    here = select(CrawlItem.hub_id).where(CrawlItem.crawl_id == crawl.id, CrawlItem.hub_id.is_not(None))
    earlier = (
        select(CrawlItem.hub_id)
        .join(Crawl, Crawl.id == CrawlItem.crawl_id)
        .where(Crawl.listing == crawl.listing, Crawl.id != crawl.id)
    )
    missing = session.execute(
        select(Repository.hub_id, Repository.name)
        .where(Repository.gone_at.is_(None), Repository.hub_id.in_(earlier), Repository.hub_id.not_in(here))
        .order_by(Repository.hub_id)
    ).all()
    add_pending(session, crawl.id, missing, row)


def add_pending(session: Session, crawl_id: int, repositories: Iterable[tuple[str, str]], row: Any) -> None:
    """Adds a pending item with this row for each (hub_id, name)."""
    state = {"crawl_id": crawl_id, "outcome": ItemOutcome.PENDING, "row": row}
    session.add_all(
        CrawlItem(position=position, hub_id=hub_id, name=name, **state)
        for position, (hub_id, name) in enumerate(repositories, start=last_position(session, crawl_id) + 1)
    )
    session.flush()


def newest(session: Session, crawl_id: int) -> datetime | None:
    """The newest last-modified time among a crawl's repositories."""
    return session.scalar(
        select(func.max(Repository.last_modified))
        .join(CrawlItem, CrawlItem.hub_id == Repository.hub_id)
        .where(CrawlItem.crawl_id == crawl_id)
    )


def outcomes(session: Session, crawl_id: int) -> dict[str, int]:
    """The number of items in each state."""
    counts = dict.fromkeys((outcome.value for outcome in ItemOutcome), 0)
    rows = session.execute(
        select(CrawlItem.outcome, func.count())
        .where(CrawlItem.crawl_id == crawl_id)
        .group_by(CrawlItem.outcome)
    )
    return counts | {outcome.value: n for outcome, n in rows}


def errors(session: Session, crawl_id: int, outcome: ItemOutcome) -> dict[str, int]:
    """The number of items of one outcome by the kind of their error."""
    rows = session.execute(
        select(CrawlItem.error, func.count())
        .where(CrawlItem.crawl_id == crawl_id, CrawlItem.outcome == outcome)
        .group_by(CrawlItem.error)
        .order_by(CrawlItem.error)
    )
    return {kind or "unknown": n for kind, n in rows}


def _adapters_of(crawl_id: int) -> Select[int]:
    return (
        select(Adapter.id)
        .join(Adapter.repository)
        .join(CrawlItem, CrawlItem.hub_id == Repository.hub_id)
        .where(CrawlItem.crawl_id == crawl_id, Adapter.current, Repository.gone_at.is_(None))
    )


def adapter_counts(
    session: Session, crawl_id: int, refusing: Iterable[str]
) -> tuple[int, int, dict[str, int]]:
    """(adapters, skipped, {reason: n}) of a crawl's repositories, under the rules that refuse for `refusing`.

    The reasons are all reasons of all adapters, those for which these rules do not refuse included.
    """
    ids = _adapters_of(crawl_id)
    skipped_ids = select(AdapterReason.adapter_id).where(
        AdapterReason.reason.in_(list(refusing)), AdapterReason.adapter_id.in_(ids)
    )
    rows = session.execute(
        select(AdapterReason.reason, func.count())
        .where(AdapterReason.adapter_id.in_(ids))
        .group_by(AdapterReason.reason)
        .order_by(func.count().desc(), AdapterReason.reason)
    )
    return count_rows(session, ids), count_rows(session, skipped_ids.distinct()), dict(rows.all())


def count_unmeasured(session: Session, crawl_id: int, refusing: Collection[str]) -> int:
    """The number of a crawl's adapters that are not refused and whose weights were not read."""
    return count_rows(session, _adapters_of(crawl_id).where(~has_reason(refusing), Adapter.norm.is_(None)))
