"""The repositories that a crawl could not read: what failed, how often, and when they are tried again.

The list belongs to the scope of a crawl. Whoever stands on it does not hold the watermark back: later crawls
of the scope work it off, whether the listing shows the repository again or not. Functions take a session and
never commit.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any

from sqlalchemy import delete, func, select
from sqlalchemy.orm import Session

from catalog.database.schema import Crawl, CrawlItem, CrawlRetry, ItemOutcome

# After the second failure a repository rests for so long, after each further one twice as long, up to a day.
FIRST_REST = timedelta(minutes=10)
LONGEST_REST = timedelta(days=1)
# What of a question may change so that the new one takes the place of the old.
_PASSING = ("since", "described_with", "fingerprint_version")


@dataclass(frozen=True)
class FailedItem:
    """An item that could not be read; `at_once` where nothing is gained by waiting."""

    hub_id: str
    name: str
    commit: str | None
    error: str
    detail: str
    at_once: bool = False


def rest(attempts: int) -> timedelta:
    """How long a repository rests after so many failures: not at all after the first.

    Within a crawl each request was repeated with pauses already; whoever starts the next one means it.
    """
    if attempts < 2:
        return timedelta(0)
    return min(FIRST_REST * (1 << min(attempts - 2, 20)), LONGEST_REST)


def postpone(session: Session, scope: str, failed: FailedItem, now: datetime) -> None:
    """Puts a repository on the list, or counts one more failure of it."""
    row = session.get(CrawlRetry, (scope, failed.hub_id))
    if row is None:
        row = CrawlRetry(scope=scope, hub_id=failed.hub_id, attempts=0, failed_at=now)
        session.add(row)
    row.name, row.commit, row.error, row.detail = failed.name, failed.commit, failed.error, failed.detail
    row.attempts += 1
    row.next_at = now if failed.at_once else now + rest(row.attempts)


def settle(session: Session, scope: str, hub_ids: Collection[str]) -> None:
    """Takes repositories off the list: they were read, or are gone."""
    session.execute(delete(CrawlRetry).where(CrawlRetry.scope == scope, CrawlRetry.hub_id.in_(hub_ids)))


def enlist(session: Session, crawl: Crawl, now: datetime, row: Any, *, all_of_them: bool) -> None:
    """Gives a crawl, whose listing is read, an item with this row for each repository whose time has come.

    Pending items of those that still rest are taken away, unless their commit is another one than failed.

    Args:
        all_of_them: None rests: all are tried now.
    """
    waiting = select(CrawlRetry).where(CrawlRetry.scope == crawl.scope).order_by(CrawlRetry.hub_id)
    retries = session.scalars(waiting).all()
    ids = [retry.hub_id for retry in retries]
    items = select(CrawlItem).where(CrawlItem.crawl_id == crawl.id, CrawlItem.hub_id.in_(ids))
    listed = {item.hub_id: item for item in session.scalars(items)}
    last = session.scalar(select(func.max(CrawlItem.position)).where(CrawlItem.crawl_id == crawl.id)) or 0
    for retry in retries:
        item = listed.get(retry.hub_id)
        if all_of_them or retry.next_at <= now:
            if item is None:
                last += 1
                added = CrawlItem(crawl_id=crawl.id, position=last, hub_id=retry.hub_id, name=retry.name)
                added.outcome, added.row = ItemOutcome.PENDING, row
                session.add(added)
        elif item is not None and item.outcome is ItemOutcome.PENDING:
            commit = item.row.get("sha") if isinstance(item.row, dict) else None
            if commit in (None, retry.commit):
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
    """The number of repositories of a crawl's scope that it did not try, because they rest."""
    tried = select(CrawlItem.hub_id).where(CrawlItem.crawl_id == crawl.id, CrawlItem.hub_id.is_not(None))
    waiting = select(func.count()).where(CrawlRetry.scope == crawl.scope, CrawlRetry.hub_id.not_in(tried))
    return session.scalar(waiting) or 0


def list_retries(session: Session) -> list[dict[str, Any]]:
    """Everything that is to be tried again, by name, as plain values."""
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
