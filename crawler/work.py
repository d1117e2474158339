"""The items of a crawl, settled one by one in listing order by workers that read and one thread that writes.

The order makes the rows independent of which worker was quicker; one transaction writes a repository, its
adapters and what became of the item, so that they agree whatever kills the process.
"""

from __future__ import annotations

import logging
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Executor, Future, ThreadPoolExecutor
from dataclasses import dataclass
from datetime import datetime

from sqlalchemy import Engine
from sqlalchemy.orm import Session

from catalog import frontier, store
from catalog.errors import HubBusyError, HubUnreachableError, LoradexError, StorageError
from catalog.records import RepositoryRecord
from catalog.schema import Crawl, CrawlItem, Outcome, Repository
from crawler.describe import repository_record
from crawler.hub import Hub
from crawler.listing import BadRow, ListedRepository, parse_row
from crawler.progress import Progress
from crawler.report import error_kind
from crawler.screen import refusing
from crawler.stages import MEASURE_VERSION, Gone, Processed, Tools, look_up, process

log = logging.getLogger(__name__)

# The raw row of a repository that an earlier crawl knew and the listing did not show.
NOT_LISTED = {"not_listed": True}
BATCH = 64
# So many items in a row that fail for want of the Hub or the disk, and the rest is left for the next run.
PATIENCE = 8
OUT_OF_REACH = (HubUnreachableError, HubBusyError, StorageError)


@dataclass(frozen=True)
class Unchanged:
    """A repository at the commit that the catalog holds: only what the listing says of it is new."""

    repository: RepositoryRecord


Result = Processed | Unchanged | Gone


@dataclass(frozen=True)
class Task:
    """An item under way."""

    position: int
    hub_id: str
    name: str
    result: Future[Result]


class Meter:
    """What a crawl costs: the totals of its earlier runs and of this one."""

    def __init__(self, hub: Hub, crawl: Crawl, started: float) -> None:
        self._hub, self._crawl_id, self._started = hub, crawl.id, started
        self._before = (crawl.api_requests, crawl.resolver_requests, crawl.bytes, crawl.seconds)

    def write(self, session: Session) -> None:
        """Writes the totals to the crawl's row."""
        api, resolver, received, seconds = self._before
        usage = self._hub.usage
        crawl = session.get_one(Crawl, self._crawl_id)
        crawl.api_requests, crawl.resolver_requests = api + usage.api, resolver + usage.resolver
        crawl.bytes = received + usage.bytes
        crawl.seconds = seconds + time.monotonic() - self._started


@dataclass(frozen=True)
class Work:
    """The pending items of one crawl and what it takes to settle them."""

    engine: Engine
    tools: Tools
    crawl_id: int
    meter: Meter
    progress: Progress
    stop: threading.Event
    now: Callable[[], datetime]

    def settle_all(self, workers: int) -> None:
        """Settles the pending items in order, at most two a worker in flight.

        Stops early, with items left pending, where the Hub or the disk fails PATIENCE items in a row.
        """
        done, total = self._counts()
        failing = 0
        window: deque[Task] = deque()
        pool = ThreadPoolExecutor(workers, thread_name_prefix="crawl")
        try:
            tasks = self._tasks(pool)
            while failing < PATIENCE:
                while len(window) < 2 * workers and (task := next(tasks, None)) is not None:
                    window.append(task)
                if not window:
                    break
                failing = 0 if self._settle(window.popleft()) else failing + 1
                done += 1
                self.progress.working(done, total)
        except BaseException:
            self.stop.set()
            raise
        finally:
            pool.shutdown(wait=True, cancel_futures=True)

    def _counts(self) -> tuple[int, int]:
        with Session(self.engine) as session:
            counts = frontier.outcomes(session, self.crawl_id)
        total = sum(counts.values()) - counts[Outcome.QUARANTINED.value]
        return total - counts[Outcome.PENDING.value], total

    def _tasks(self, pool: Executor) -> Iterator[Task]:
        after = 0
        while True:
            with Session(self.engine) as session:
                items = frontier.pending(session, self.crawl_id, after, BATCH)
                planned = [(item, self._job(session, item)) for item in items]
            if not planned:
                return
            for item, job in planned:
                yield Task(item.position, item.hub_id or "", item.name or "", pool.submit(job))
            after = planned[-1][0].position

    def _job(self, session: Session, item: CrawlItem) -> Callable[[], Result]:
        """What a worker is to do for an item; what the catalog says of it is read here."""
        tools = self.tools
        known = store.known_repository(session, item.hub_id or "")
        commit = known.commit if known is not None and self._is_read(session, known) else None
        if item.row == NOT_LISTED:
            hub_id, name = item.hub_id or "", item.name or ""
            return lambda: _look_again(hub_id, name, commit, tools)
        listed = parse_row(item.row)
        if isinstance(listed, BadRow):
            raise TypeError(f"item {item.position} was listed and is no repository: {listed.reason}")
        return lambda: _read(listed, commit, tools)

    def _is_read(self, session: Session, known: Repository) -> bool:
        """Whether the catalog holds all of a repository that the weights policy asks for."""
        policy = self.tools.weights
        if policy == "headers":
            return True
        wanted = store.acceptable_weights(session, known.id, refusing(self.tools.rules))
        if policy == "keep":
            return all(self.tools.blobs.has(weights.digest) for weights in wanted)
        return all((weights.measured or 0) >= MEASURE_VERSION for weights in wanted)

    def _settle(self, task: Task) -> bool:
        """Writes the result of a task; False where the Hub or the disk was out of reach."""
        try:
            result = task.result.result()
        except LoradexError as error:
            self._fail(task, error_kind(error), str(error))
            return not isinstance(error, OUT_OF_REACH)
        except Exception as error:
            log.exception("%s could not be read because of a fault in loradex", task.name)
            self._fail(task, error_kind(error), f"{type(error).__name__}: {error}")
            return True
        with Session(self.engine) as session, session.begin():
            outcome = self._write(session, task, result)
            detail = result.detail if isinstance(result, Gone) else None
            frontier.settle(session, self.crawl_id, task.position, outcome, detail=detail)
            self.meter.write(session)
        return True

    def _write(self, session: Session, task: Task, result: Result) -> Outcome:
        now = self.now()
        known = store.known_repository(session, task.hub_id)
        if isinstance(result, Gone):
            if known is None and result.repository is not None:
                known = store.touch_repository(session, result.repository, now)
            if known is not None:
                store.mark_gone(session, known, now)
            return Outcome.GONE
        if isinstance(result, Unchanged):
            store.touch_repository(session, result.repository, now)
            return Outcome.UNCHANGED
        before = known.commit if known is not None else None
        store.save_repository(session, result.repository, result.adapters, now)
        if before is None:
            return Outcome.NEW
        return Outcome.UNCHANGED if before == result.repository.commit else Outcome.CHANGED

    def _fail(self, task: Task, kind: str, detail: str) -> None:
        log.warning("%s: %s", task.name, detail)
        with Session(self.engine) as session, session.begin():
            frontier.settle(session, self.crawl_id, task.position, Outcome.FAILED, error=kind, detail=detail)
            self.meter.write(session)


def _read(listed: ListedRepository, commit: str | None, tools: Tools) -> Result:
    if commit is not None and listed.sha == commit:
        return Unchanged(repository_record(listed))
    return process(listed, tools)


def _look_again(hub_id: str, name: str, commit: str | None, tools: Tools) -> Result:
    """What became of a repository that the listing no longer shows."""
    listed = look_up(hub_id, name, tools)
    if listed is None:
        return Gone(None, "the Hub no longer has it")
    return _read(listed, commit, tools)
