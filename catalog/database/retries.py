"""The repositories that a crawl could not read: the error, the number of failures, and when they are retried.

The list belongs to the scope of a crawl. Its repositories do not hold the watermark back: later crawls of the
scope retry them, whether or not the listing contains them again. Functions take a session and never commit.
"""

from __future__ import annotations

from collections.abc import Collection
from datetime import datetime, timedelta
from typing import Any

from sqlalchemy import delete, func, select
from sqlalchemy.orm import Session

from catalog.database.frontier import add_pending
from catalog.database.schema import Crawl, CrawlItem, CrawlRetry, ItemOutcome

# The pause after the second failure; each further failure doubles it, up to a day.
FIRST_REST = timedelta(minutes=10)
LONGEST_REST = timedelta(days=1)
# The parts of a query that may change so that the new one replaces the old.
_PASSING = ("since", "described_with", "fingerprint_version")


def rest(attempts: int) -> timedelta:
    """The pause after this number of failures: none after the first.

    Within a crawl each request was already repeated with pauses; the next crawl is a deliberate retry.
    """
    if attempts < 2:
        return timedelta(0)
    return min(FIRST_REST * (1 << min(attempts - 2, 20)), LONGEST_REST)


def postpone(
    session: Session, scope: str, item: CrawlItem, error: str, detail: str, now: datetime, *, at_once: bool
) -> None:
    """Puts a repository that could not be read on the list, or counts one more failure of it.

    Args:
        at_once: It may be tried again immediately: waiting does not help.
    """
    row = session.get(CrawlRetry, (scope, item.hub_id))
    if row is None:
        row = CrawlRetry(scope=scope, hub_id=item.hub_id, attempts=0, failed_at=now)
        session.add(row)
    row.name, row.commit, row.error, row.detail = item.name or "", _commit(item), error, detail
    row.attempts += 1
    row.next_at = now if at_once else now + rest(row.attempts)


def _commit(item: CrawlItem) -> str | None:
    """The commit that the row of an item names."""
    commit = item.row.get("sha") if isinstance(item.row, dict) else None
    return commit if isinstance(commit, str) else None


def settle(session: Session, scope: str, hub_ids: Collection[str]) -> None:
    """Takes repositories off the list: they were read, or are gone."""
    session.execute(delete(CrawlRetry).where(CrawlRetry.scope == scope, CrawlRetry.hub_id.in_(hub_ids)))


def enlist(session: Session, crawl: Crawl, now: datetime, row: Any, *, all_of_them: bool) -> None:
    """Adds to a crawl, whose listing is read, an item with this row for each repository whose retry is due.

    Pending items of repositories that are not due are removed, unless their commit differs from the failed
    one.

    Args:
        all_of_them: Retries all repositories now.
    """
    waiting = select(CrawlRetry).where(CrawlRetry.scope == crawl.scope).order_by(CrawlRetry.hub_id)
    retries = session.scalars(waiting).all()
    ids = [retry.hub_id for retry in retries]
    items = select(CrawlItem).where(CrawlItem.crawl_id == crawl.id, CrawlItem.hub_id.in_(ids))
    listed = {item.hub_id: item for item in session.scalars(items)}
    due = {retry.hub_id: retry.name for retry in retries if all_of_them or retry.next_at <= now}
    add_pending(session, crawl.id, [new for new in due.items() if new[0] not in listed], row)
    for retry in retries:
        item = None if retry.hub_id in due else listed.get(retry.hub_id)
        pending = item is not None and item.outcome is ItemOutcome.PENDING
        if item is not None and pending and _commit(item) in (None, retry.commit):
            session.delete(item)
    session.flush()


def forget_superseded(session: Session, crawl: Crawl) -> None:
    """Drops the lists of older questions whose place this crawl takes: it lists everything itself."""
    other_crawls = session.execute(
        select(Crawl.scope, Crawl.asked)
        .where(Crawl.listing == crawl.listing, Crawl.scope != crawl.scope)
        .where(Crawl.scope.in_(select(CrawlRetry.scope)))
    )
    superseded = {scope for scope, question in other_crawls if _lasting(question) == _lasting(crawl.asked)}
    session.execute(delete(CrawlRetry).where(CrawlRetry.scope.in_(superseded)))


def _lasting(question: Any) -> Any:
    return {key: value for key, value in question.items() if key not in _PASSING}


def resting(session: Session, crawl: Crawl) -> int:
    """The number of repositories of a crawl's scope whose retry is not due."""
    tried = select(CrawlItem.hub_id).where(CrawlItem.crawl_id == crawl.id, CrawlItem.hub_id.is_not(None))
    waiting = select(func.count()).where(CrawlRetry.scope == crawl.scope, CrawlRetry.hub_id.not_in(tried))
    return session.scalar(waiting) or 0


def list_retries(session: Session) -> list[dict[str, Any]]:
    """All pending retries, by name, as plain values."""
    rows = session.scalars(select(CrawlRetry).order_by(CrawlRetry.name, CrawlRetry.scope))
    return [
        {
            "repository": row.name,
            "hub_id": row.hub_id,
            "error": row.error,
            "detail": row.detail,
            "attempts": row.attempts,
            "first_failed": row.failed_at,
            "next_try": row.next_at,
        }
        for row in rows
    ]
