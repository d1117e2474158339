"""Listing pages → items of the crawl, page by page, each page in one transaction with its next-page URL."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import datetime
from pathlib import PurePosixPath

from sqlalchemy import Engine
from sqlalchemy.orm import Session

from catalog.database import CrawlPage, ItemRecord, for_writing, frontier
from catalog.errors import CursorExpiredError, HubError, HubPayloadError
from crawler.crawl.options import Query
from crawler.crawl.outcomes import Progress
from crawler.hub import MARKERS, BadRow, Hub, Page, parse_row, reduce_row

log = logging.getLogger(__name__)

# No listing of the Hub is so long; the limit stops an endless one.
MOST_PAGES = 20_000


@dataclass(frozen=True)
class Walk:
    """The listings of one crawl: all queries, newest change first and down to `since`, else newest first."""

    crawl_id: int
    queries: tuple[Query, ...]
    since: datetime | None
    limit: int | None

    @property
    def sort(self) -> str:
        """`lastModified` for what changed since; else `createdAt`, a key that no edit changes meanwhile."""
        return "createdAt" if self.since is None else "lastModified"


def walk(engine: Engine, hub: Hub, plan: Walk, progress: Progress) -> HubError | None:
    """Reads every query to its end and writes its pages; continues where an earlier run of the crawl stopped.

    Returns the first error that stopped a query, None without errors. A failed query does not stop the
    others, unless two consecutive ones fail: then the Hub is at fault.
    """
    errors: list[HubError] = []
    failing = 0
    for number in range(len(plan.queries)):
        try:
            _read_query(engine, hub, plan, number, progress)
            failing = 0
        except HubError as error:
            log.warning("%s", error)
            errors.append(error)
            failing += 1
            if failing == 2:
                break
    return errors[0] if errors else None


def _read_query(engine: Engine, hub: Hub, plan: Walk, number: int, progress: Progress) -> None:
    """Reads one query to its end; restarts it, once, if the Hub no longer accepts the saved page."""
    try:
        for listed in _pages(engine, hub, plan, number):
            progress.report_listing(listed)
    except CursorExpiredError:
        progress.note("The Hub no longer accepts the saved page; this listing starts again.")
        with Session(for_writing(engine)) as session, session.begin():
            frontier.restart_query(session, plan.crawl_id, number)
        for listed in _pages(engine, hub, plan, number):
            progress.report_listing(listed)


def preview(hub: Hub, plan: Walk) -> Iterator[ItemRecord]:
    """The items that `walk` would write, each `_id` once, without writing anything."""
    urls: set[str] = set()
    for query in plan.queries:
        url: str | None = hub.listing_url(query.filters, sort=plan.sort)
        read: set[str] = set()
        while url is not None and url not in read and len(read) < MOST_PAGES:
            read.add(url)
            page = hub.page(url)
            for item in _items(page, query, plan.since)[0]:
                if plan.limit is not None and len(urls) >= plan.limit:
                    return
                if item.hub_id is not None and item.hub_id not in urls:
                    urls.add(item.hub_id)
                    yield item
            url = None if _is_known(page, plan.since) else page.next_url


def _pages(engine: Engine, hub: Hub, plan: Walk, number: int) -> Iterator[int]:
    """Reads one query page by page, writes each, and returns the number of repositories listed so far."""
    query = plan.queries[number]
    with Session(engine) as session:
        last = frontier.newest_page(session, plan.crawl_id, number)
        urls = frontier.seen_urls(session, plan.crawl_id, number)
        listed = frontier.count_listed(session, plan.crawl_id)
    place = 0 if last is None else last.number + 1
    url = hub.listing_url(query.filters, sort=plan.sort) if last is None else last.next_url
    while url is not None:
        if place == MOST_PAGES:
            raise HubPayloadError(
                f"A listing of the Hub has more than {MOST_PAGES:,} pages; the others are left out."
            )
        room = None if plan.limit is None else plan.limit - listed
        page = Page((), None) if room == 0 else hub.page(url)
        items, passed = _items(page, query, plan.since)
        urls.add(url)
        if page.next_url in urls:
            raise HubPayloadError(
                "The Hub's listing refers back to a page that was already read; try again later.",
                url=page.next_url.partition("?")[0],
            )
        with Session(for_writing(engine)) as session, session.begin():
            fresh = items if room is None else _first(session, plan.crawl_id, items, room)
            full = room is not None and len(fresh) < len(items)
            done = _is_known(page, plan.since) or full or room == 0
            next_url = None if done else page.next_url
            record = CrawlPage(crawl_id=plan.crawl_id, query=number, number=place, url=url, next_url=next_url)
            record.rows, record.passed_over = len(fresh), passed
            added = frontier.add_page(session, record, fresh)
        # Counting all that the crawl has listed with each page would be quadratic.
        listed += added
        yield listed
        place, url = place + 1, next_url


def _first(
    session: Session, crawl_id: int, items: tuple[ItemRecord, ...], room: int
) -> tuple[ItemRecord, ...]:
    """The items up to the one that fills the room; repositories that are already listed do not count."""
    listed_ids = frontier.already_listed(session, crawl_id, [item.hub_id for item in items if item.hub_id])
    records: list[ItemRecord] = []
    for item in items:
        if item.hub_id is not None and item.hub_id not in listed_ids:
            if room == 0:
                break
            listed_ids.add(item.hub_id)
            room -= 1
        records.append(item)
    return tuple(records)


def _items(page: Page, query: Query, since: datetime | None) -> tuple[tuple[ItemRecord, ...], int]:
    """The matching rows of a page, as items, and the number of those skipped."""
    items = tuple(item for raw in page.rows if (item := _item(raw, query, since)) is not None)
    return items, len(page.rows) - len(items)


def _item(raw: object, query: Query, since: datetime | None) -> ItemRecord | None:
    row = parse_row(raw)
    if isinstance(row, BadRow):
        return ItemRecord(None, None, {"excerpt": row.excerpt}, error=row.reason)
    if since is not None and row.last_modified is not None and row.last_modified < since:
        return None
    if (
        not query.adapters_only
        and row.siblings is not None
        and not any(PurePosixPath(path).name in MARKERS for path in row.siblings)
    ):
        return None
    return ItemRecord(row.hub_id, row.name, reduce_row(raw))


def _is_known(page: Page, since: datetime | None) -> bool:
    """Whether a page sorted by change has reached known repositories."""
    if since is None or not page.rows:
        return False
    row = parse_row(page.rows[-1])
    return not isinstance(row, BadRow) and row.last_modified is not None and row.last_modified < since
