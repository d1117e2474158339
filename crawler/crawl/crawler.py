"""One crawl from the first listing page to the last adapter: resumes, lists, processes, reports.

Listing comes first and is written page by page; then the items are processed in listing order
(`crawler.crawl.items`). A crawl that was stopped is continued by the next one of the same query.
"""

from __future__ import annotations

import getpass
import logging
import os
import platform
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta

from sqlalchemy import Engine
from sqlalchemy.orm import Session

from catalog.adapters import BaseTable, table_with
from catalog.database import (
    Crawl,
    CrawlState,
    ItemOutcome,
    for_writing,
    frontier,
    leases,
    refresh_engine_features,
    register_catalog,
    retries,
    store,
    take_turn,
    writer_lock,
)
from catalog.errors import HubError
from catalog.files import BlobStore, remove_abandoned, temporary_store
from catalog.fingerprints import FingerprintPool
from crawler.crawl.description import description_digest
from crawler.crawl.items import NOT_LISTED, ItemQueue, Meter
from crawler.crawl.known import Known
from crawler.crawl.options import (
    CrawlOptions,
    Query,
    bases_of,
    explain_no_listing,
    listing,
    queries,
    question_document,
)
from crawler.crawl.outcomes import CrawlReport, Preview, Progress, error_kind, report
from crawler.crawl.pages import Walk, preview, walk
from crawler.crawl.sharing import SharedWeights, Worker
from crawler.crawl.stages import Tools
from crawler.hub import Hub

log = logging.getLogger(__name__)

# Changes within this time before the newest known change are listed again: the Hub's index has a delay.
OVERLAP = timedelta(days=1)
# The earliest possible time; a listing may contain any date.
EARLIEST = datetime.min.replace(tzinfo=UTC) + OVERLAP
# The whole listing is read again after this time: it shows what vanished, and what was added with an old
# date.
WHOLE_EVERY = timedelta(days=7)


@dataclass(frozen=True)
class Crawler:
    """The resources of one crawl; `now` returns the time with its time zone."""

    engine: Engine
    hub: Hub
    blobs: BlobStore
    options: CrawlOptions
    progress: Progress
    stop: threading.Event
    now: Callable[[], datetime] = lambda: datetime.now(UTC)

    def crawl(self) -> CrawlReport:
        """Brings the catalog up to date, or continues an unfinished crawl of the same query.

        A Hub that cannot be reached makes the report partial. Raises CatalogBusyError if another process
        writes to the catalog.
        """
        with (
            writer_lock(self.engine) as killed,
            self._open_stream() as streamed,
            FingerprintPool(self.options.processes) as fingerprints,
        ):
            started = time.monotonic()
            self.progress.note(_announcement(self.hub, self.options))
            self.progress.watch_bytes(lambda: self.hub.usage.bytes)
            self.progress.report_listing(0)
            if killed is not None:
                self.progress.note(killed)
            if self.options.weights == "keep" or self.blobs.root.is_dir():
                register_catalog(self.engine.url, self.blobs)
            refresh_engine_features(self.engine)
            with Session(for_writing(self.engine)) as session, session.begin():
                take_turn(session)
                store.sync_bases(session)
                bases = BaseTable(store.spellings(session))
                crawl = self._open(session, bases)
                frontier.hold(session, crawl, _this_process(), datetime.now(UTC))
                plan, meter = _plan(crawl), Meter(self.hub, crawl, started)
                scope, started_at = crawl.scope, crawl.started_at
            error = self._list(plan)
            self._note_unlisted(plan, bases)
            with Session(for_writing(self.engine)) as session, session.begin():
                session.get_one(Crawl, plan.crawl_id).phase = "reading"
            work = ItemQueue(
                self.engine,
                self._tools(bases, streamed, fingerprints, plan.crawl_id),
                plan.crawl_id,
                scope,
                meter,
                self.progress,
                self.stop,
                self.now,
                started_at=started_at,
                again=plan.since is None and plan.limit is None,
            )
            with self._share(work.tools, plan.crawl_id):
                work.settle_all(self.options.workers, self.options.processes)
            with Session(for_writing(self.engine)) as session, session.begin():
                crawl = session.get_one(Crawl, plan.crawl_id)
                meter.write(session)
                self._close(session, crawl, finished=error is None)
                session.flush()
                return report(session, crawl, error_kind(error) if error else None)

    def _open(self, session: Session, bases: BaseTable) -> Crawl:
        """The current crawl: the unfinished one of this scope, else a new one."""
        planned, endpoint, now = queries(self.options, bases), self.hub.settings.endpoint, self.now()
        question = question_document(self.options, endpoint, planned, description_digest(bases))
        scope = frontier.digest(question)
        crawl = frontier.crawl_to_resume(session, scope, now - OVERLAP)
        if crawl is not None and not (self.options.full and crawl.asked["since"]):
            self.progress.note(f"continuing the crawl that began {crawl.started_at:%Y-%m-%d %H:%M} UTC")
            frontier.reopen(session, crawl)
            return crawl
        since = _since(session, self.options, scope, now)
        question["since"] = since.isoformat() if since else None
        of = frontier.digest(listing(endpoint, planned))
        crawl = frontier.open_crawl(session, of, scope, question, now)
        retries.forget_superseded(session, crawl)
        return crawl

    def _list(self, plan: Walk) -> HubError | None:
        """Reads the listings to their end; returns the error that stopped one, if any."""
        error = walk(self.engine, self.hub, plan, self.progress)
        if error is not None:
            return error
        with Session(for_writing(self.engine)) as session, session.begin():
            crawl = session.get_one(Crawl, plan.crawl_id)
            # An empty listing means a failure of the Hub's index, not that all repositories vanished.
            complete = plan.since is None and plan.limit is None and frontier.count_listed(session, crawl.id)
            if complete:
                frontier.add_missing(session, crawl, NOT_LISTED)
            retries.enlist(session, crawl, self.now(), NOT_LISTED, all_of_them=self.options.full)
        return None

    def _note_unlisted(self, plan: Walk, bases: BaseTable) -> None:
        """Reports the base models that no repository names, if their listings were read to the end."""
        with Session(self.engine) as session:
            full = plan.limit is not None and frontier.count_listed(session, plan.crawl_id) >= plan.limit
            rows = {} if full else frontier.rows_by_query(session, plan.crawl_id)
            for base in bases_of(self.options):
                own = queries(replace(self.options, bases=(base,)), bases)
                counts = [rows.get(number) for number, query in enumerate(plan.queries) if query in own]
                if any(count != 0 for count in counts):
                    continue
                if plan.since is None or not store.has_adapters(session, bases.known(base) or base):
                    self.progress.note(explain_no_listing(base, bases, store.base_names(session)))

    @contextmanager
    def _open_stream(self) -> Iterator[BlobStore]:
        """A store for files that are not kept; the remains of killed crawls are removed."""
        parent = self.blobs.root.parent
        remove_abandoned(parent)
        if self.options.weights == "headers":
            yield self.blobs  # no weights are read
            return
        with temporary_store(parent) as store:
            yield store

    def _tools(
        self, bases: BaseTable, streamed: BlobStore, fingerprints: FingerprintPool, crawl_id: int
    ) -> Tools:
        shares = self.engine.dialect.name != "sqlite" and self.options.weights == "stream"
        return Tools(
            hub=self.hub,
            blobs=self.blobs,
            streamed=streamed,
            bases=bases,
            known=Known(self.engine),
            weights=self.options.weights,
            rules=self.options.rules,
            described_with=description_digest(bases),
            most_weights=self.options.max_weights,
            fingerprints=fingerprints,
            shared=SharedWeights(self.engine, crawl_id, self.stop) if shares else None,
        )

    @contextmanager
    def _share(self, tools: Tools, crawl_id: int) -> Iterator[None]:
        """Inside the block weights are offered to other processes, if the catalog can be shared."""
        if tools.shared is None:
            yield
            return
        threads = self.options.workers + (self.options.processes if self.options.processes > 1 else 0)
        resources = (self.engine, self.hub, tools.streamed, tools.fingerprints)
        with tools.shared.at_work(Worker(*resources, threads, self.stop, tools.shared.changed)):
            yield

    def _close(self, session: Session, crawl: Crawl, *, finished: bool) -> None:
        """Writes the crawl's end; the watermark moves if everything is listed and nothing is pending.

        Failures do not hold it back: they are on the list of retries.
        """
        counts = frontier.outcomes(session, crawl.id)
        complete = finished and not counts[ItemOutcome.PENDING.value]
        clean = complete and not counts[ItemOutcome.FAILED.value]
        crawl.state = CrawlState.COMPLETE if clean else CrawlState.PARTIAL
        crawl.finished_at = self.now()
        crawl.holder = crawl.phase = None
        if not counts[ItemOutcome.PENDING.value]:
            leases.forget(session, crawl.id)
        if complete and crawl.asked["limit"] is None:
            # A change after the listing began may concern a page that was read before.
            newest, before = frontier.newest(session, crawl.id), frontier.watermark(session, crawl.scope)
            marks = (before, min(newest, crawl.started_at) if newest is not None else None)
            crawl.watermark = max((mark for mark in marks if mark is not None), default=None)
        if finished:
            frontier.prune(session, crawl)


def _this_process() -> str:
    """The user, machine and number of this process."""
    try:
        user = getpass.getuser()
    except (OSError, KeyError):  # a user without a name, as in a container
        user = str(os.getuid())
    return f"{user}@{platform.node()}, process {os.getpid()},"


def _plan(crawl: Crawl) -> Walk:
    since = crawl.asked["since"]
    return Walk(
        crawl_id=crawl.id,
        queries=tuple(Query(tuple(filters), only) for filters, only in crawl.asked["queries"]),
        since=datetime.fromisoformat(since) if since else None,
        limit=crawl.asked["limit"],
    )


def _since(session: Session, options: CrawlOptions, scope: str, now: datetime) -> datetime | None:
    """The time from which changes are requested; None requests everything, as once a week."""
    if options.full or options.limit is not None:
        return None
    mark, complete = frontier.watermark(session, scope), frontier.last_whole(session, scope)
    if mark is None or complete is None or complete < now - WHOLE_EVERY:
        return None
    return max(mark, EARLIEST) - OVERLAP


def _announcement(hub: Hub, options: CrawlOptions) -> str:
    bases = ", ".join(bases_of(options)) or "every base model"
    return f"Crawling {hub.settings.endpoint} for adapters of {bases}"


def preview_crawl(session: Session | None, hub: Hub, options: CrawlOptions, progress: Progress) -> Preview:
    """The repositories that a crawl would read, by requesting only the listings; writes nothing.

    Without a catalog every repository is new, and a base model has its built-in spellings.
    """
    counts = dict.fromkeys(("new", "changed", "unchanged"), 0)
    progress.note(_announcement(hub, options))
    progress.watch_bytes(lambda: hub.usage.bytes)
    progress.report_listing(0)
    bases = table_with(store.spellings(session) if session is not None else ())
    planned = queries(options, bases)
    question = question_document(options, hub.settings.endpoint, planned, description_digest(bases))
    scope, now = frontier.digest(question), datetime.now(UTC)
    since = _since(session, options, scope, now) if session is not None else None
    for item in preview(hub, Walk(0, planned, since, options.limit)):
        rows = store.known_repositories(session, [item.hub_id or ""]) if session is not None else {}
        row = rows.get(item.hub_id or "")
        counts["new" if row is None else "unchanged" if row.commit == item.row.get("sha") else "changed"] += 1
        progress.report_listing(sum(counts.values()))
    if since is None and not sum(counts.values()):
        base_names = store.base_names(session) if session is not None else ()
        for base in bases_of(options):
            progress.note(explain_no_listing(base, bases, base_names))
    return Preview(tuple(query.filters for query in planned), counts, hub.usage.api)
