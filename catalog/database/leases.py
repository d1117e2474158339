"""Weights files that processes share out among them: a row each, leased to one process at a time.

Functions take a session and never commit. A process that stops returns its files. One that dies stops
extending its leases; after the time of a lease another process takes the file. Times are those of the
database, whose clock all processes share.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from datetime import timedelta
from typing import Any

from sqlalchemy import ColumnElement, CursorResult, and_, delete, func, or_, select, update
from sqlalchemy.orm import Session

from catalog.database.opening import take_turn
from catalog.database.schema import Crawl, CrawlState, RequestBudgetRow, WeightsItem

# Processes that may begin a file before it is given up.
MOST_TRIES = 3
LEASE = timedelta(seconds=60)


def publish(session: Session, crawl_id: int, digest: str, task: Mapping[str, Any]) -> None:
    """Offers a file to all processes; what an earlier run of the crawl has read of the same task stays.

    A process that reads another task of the file loses its lease.
    """
    # Locked: a process that leases the row meanwhile would keep its lease, and write what the old task gave.
    row = session.get(WeightsItem, (crawl_id, digest), with_for_update=True)
    if row is None:
        row = WeightsItem(crawl_id=crawl_id, digest=digest, task=dict(task), state="pending", tries=0)
        session.add(row)
    elif row.state == "failed" or row.task != task:
        row.task, row.state, row.tries = dict(task), "pending", 0
        row.lease = row.until = row.result = None
    session.flush()


def claim(session: Session, crawl_id: int, lease: str, count: int) -> Sequence[WeightsItem]:
    """At most `count` files that nobody reads, now leased; the rows are those of this moment.

    A `lease` is of one claim, the name of its worker and a number: a worker may claim a file again, for
    another task, while it reads it.
    """
    rows = session.scalars(
        select(WeightsItem)
        .where(WeightsItem.crawl_id == crawl_id, WeightsItem.tries < MOST_TRIES, _is_free())
        .order_by(WeightsItem.state.desc(), WeightsItem.digest)
        .limit(count)
        .with_for_update(skip_locked=True)
    ).all()
    keys = [row.digest for row in rows]
    leased = {"state": "leased", "lease": lease, "until": func.now() + LEASE, "tries": WeightsItem.tries + 1}
    session.execute(
        update(WeightsItem)
        .where(WeightsItem.crawl_id == crawl_id, WeightsItem.digest.in_(keys))
        .values(leased)
        .execution_options(synchronize_session=False)
    )
    return rows


def extend(session: Session, worker: str) -> None:
    """Keeps the files of a worker leased to it."""
    session.execute(update(WeightsItem).where(_is_leased_to(worker)).values(until=func.now() + LEASE))


def finish(session: Session, crawl_id: int, digest: str, lease: str, result: bytes) -> bool:
    """Writes what was read of a file; False, and nothing is written, if this is no longer its lease."""
    return _settle(session, crawl_id, digest, lease, state="done", result=result)


def give_back(session: Session, crawl_id: int, digest: str, lease: str, result: bytes) -> bool:
    """Returns a file that could not be read now, with the error; the last try leaves it failed."""
    last = session.scalar(
        select(WeightsItem.tries >= MOST_TRIES).where(
            WeightsItem.crawl_id == crawl_id, WeightsItem.digest == digest
        )
    )
    state = "failed" if last else "pending"
    return _settle(session, crawl_id, digest, lease, state=state, result=result)


def return_unread(session: Session, worker: str) -> None:
    """Returns the files of a worker that stops: others may take them at once, and none was tried."""
    session.execute(
        update(WeightsItem)
        .where(_is_leased_to(worker))
        .values(state="pending", lease=None, until=None, tries=WeightsItem.tries - 1)
        .execution_options(synchronize_session=False)
    )


def settled(session: Session, crawl_id: int, digests: Collection[str]) -> dict[str, bytes | None]:
    """What was read, or the error, of those of these files that need no more work.

    None for a file whose processes all died.
    """
    of_crawl = WeightsItem.crawl_id == crawl_id
    lost = and_(
        WeightsItem.state == "leased", WeightsItem.until < func.now(), WeightsItem.tries >= MOST_TRIES
    )
    session.execute(
        update(WeightsItem)
        .where(of_crawl, lost)
        .values(state="failed", lease=None, until=None, result=None)
        .execution_options(synchronize_session=False)
    )
    rows = select(WeightsItem.digest, WeightsItem.result).where(
        of_crawl, WeightsItem.digest.in_(digests), WeightsItem.state.in_(["done", "failed"])
    )
    return dict(session.execute(rows).all())


def forget(session: Session, crawl_id: int) -> None:
    """Removes the files of a crawl that has ended."""
    session.execute(delete(WeightsItem).where(WeightsItem.crawl_id == crawl_id))


def lock_budget(
    session: Session, account: str, kind: str, initial: Mapping[str, Any]
) -> tuple[RequestBudgetRow, float]:
    """The row of an account's requests, which no other process changes before the commit, and the time."""
    found = select(RequestBudgetRow).where(RequestBudgetRow.account == account, RequestBudgetRow.kind == kind)
    row = session.scalar(found.with_for_update())
    if row is None:
        take_turn(session)
        row = session.scalar(found.with_for_update())
    if row is None:
        row = RequestBudgetRow(account=account, kind=kind, state=dict(initial))
        session.add(row)
        session.flush()
    now = session.scalar(select(func.extract("epoch", func.clock_timestamp())))
    return row, float(now or 0)


def crawl_at_work(session: Session) -> Crawl | None:
    """The crawl that a process carries out, or carried out when it died."""
    rows = select(Crawl).where(Crawl.holder.is_not(None), Crawl.state == CrawlState.RUNNING)
    return session.scalar(rows.order_by(Crawl.held_since.desc()).limit(1))


def _is_leased_to(worker: str) -> ColumnElement[bool]:
    mine = WeightsItem.lease.startswith(f"{worker}/", autoescape=True)
    return and_(WeightsItem.state == "leased", mine)


def _is_free() -> ColumnElement[bool]:
    expired = and_(WeightsItem.state == "leased", WeightsItem.until < func.now())
    return or_(WeightsItem.state == "pending", expired)


def _settle(session: Session, crawl_id: int, digest: str, lease: str, *, state: str, result: bytes) -> bool:
    written = session.execute(
        update(WeightsItem)
        .where(WeightsItem.crawl_id == crawl_id, WeightsItem.digest == digest, WeightsItem.lease == lease)
        .values(state=state, lease=None, until=None, result=result)
        .execution_options(synchronize_session=False)
    )
    return isinstance(written, CursorResult) and written.rowcount == 1
