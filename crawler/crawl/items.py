"""The items of a crawl, settled in listing order by workers that read and one thread that writes.

The order makes the rows independent of the workers' speed; one transaction writes a repository, its adapters
and the outcome of the item, so that they agree even if the process is killed.
"""

from __future__ import annotations

import logging
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Executor, Future, ThreadPoolExecutor, wait
from dataclasses import dataclass, field, replace
from datetime import datetime
from functools import partial

from sqlalchemy import Engine, update
from sqlalchemy.orm import Session

from catalog.adapters import RepositoryRecord
from catalog.database import Crawl, CrawlItem, ItemOutcome, Repository, for_writing, frontier, retries, store
from catalog.errors import (
    HubAccessError,
    HubBusyError,
    HubError,
    HubUnreachableError,
    LoradexError,
    ProcessLostError,
    StorageError,
)
from catalog.rules import UNREADABLE
from crawler.crawl.outcomes import Progress, error_kind
from crawler.crawl.screening import refusing
from crawler.crawl.stages import Gone, Processed, Tools, look_up, process
from crawler.hub import BadRow, Hub, ListedRepository, parse_row

log = logging.getLogger(__name__)

# The raw row of a repository that an earlier crawl knew and the listing did not show.
NOT_LISTED = {"not_listed": True}
BATCH = 256
# Seconds that results wait for further ones: a transaction of sixteen costs little more than one of one.
WRITE_DELAY = 0.2
# After this many consecutive failures of the Hub or the disk, the remaining items are left for the next run.
PATIENCE = 8
# Threads of which most wait for the weights that other processes read.
WAITING = 64
# Reasons that may pass without a new commit; no hash covers the head of a file.
PASSING = (
    "gated",
    "disabled",
    "private",
    "vanished",
    "integrity",
    "not_read",
    "truncated",
    "header_invalid",
    "weights_unreadable",
)
# The reason for leaving out a row whose repository has the identity of another one on the Hub.
SAME_ID = "another repository has the same _id"
OUT_OF_REACH = (HubUnreachableError, HubBusyError, StorageError)


@dataclass(frozen=True)
class Unchanged:
    """A repository at the commit in the catalog: only its listing row is new."""

    repository: RepositoryRecord


@dataclass(frozen=True)
class ItemFailure:
    """An item that can be retried; `in_reach` is False if the Hub or the disk was the cause.

    `own` is True if the user of this machine can fix it: the disk, the token.
    """

    kind: str
    detail: str
    in_reach: bool
    own: bool = False


@dataclass(frozen=True)
class Identified:
    """The outcome of a repository whose `_id` has several names; `others` are those of other repositories."""

    name: str
    others: tuple[str, ...]
    result: Processed | Unchanged | Gone


Result = Processed | Unchanged | Gone | Identified
Job = Callable[[], Result]


@dataclass(frozen=True)
class ItemTask:
    """An item under way."""

    position: int
    hub_id: str
    name: str
    result: Future[Result] = field(default_factory=Future)


class Meter:
    """The costs of a crawl: the totals of its earlier runs and of this one."""

    def __init__(self, hub: Hub, crawl: Crawl, started: float) -> None:
        self._hub, self._crawl_id, self._started = hub, crawl.id, started
        self._before = (crawl.api_requests, crawl.resolver_requests, crawl.bytes, crawl.seconds)

    def write(self, session: Session) -> None:
        """Writes the totals to the crawl's row."""
        api, resolver, received, seconds = self._before
        usage = self._hub.usage
        totals = {
            "api_requests": api + usage.api,
            "resolver_requests": resolver + usage.resolver,
            "bytes": received + usage.bytes,
            "seconds": seconds + time.monotonic() - self._started,
        }
        session.execute(update(Crawl).where(Crawl.id == self._crawl_id).values(totals))


@dataclass(frozen=True)
class ItemQueue:
    """The pending items of one crawl and the resources for settling them.

    With `again`, repositories that the Hub refused or sent with wrong bytes are requested again, even if they
    did not change.
    """

    engine: Engine
    tools: Tools
    crawl_id: int
    scope: str
    meter: Meter
    progress: Progress
    stop: threading.Event
    now: Callable[[], datetime]
    started_at: datetime
    again: bool

    def settle_all(self, workers: int, processes: int = 1) -> None:
        """Settles the pending items in order, at most four a thread in flight.

        While fingerprints are made in processes, as many threads wait for them in addition to `workers`, so
        that requests go on. Stops early, with items left pending, if PATIENCE consecutive items fail because
        of the disk, or of a Hub that does not answer a simple request either.
        """
        add_settled = self._tally()
        failing = 0
        window: deque[ItemTask] = deque()
        threads = workers + (processes if processes > 1 else 0)
        if self.tools.shared is not None:
            threads = max(threads, WAITING)
        pool = ThreadPoolExecutor(threads, thread_name_prefix="crawl")
        try:
            tasks = self._tasks(pool, add_settled)
            while True:
                while len(window) < 4 * threads and (task := next(tasks, None)) is not None:
                    window.append(task)
                if not window:
                    break
                # Half of the window is left to the workers while results are awaited and written.
                batch = _ready(window, 2 * threads)
                for failure in self._settle(batch):
                    failing = failing + 1 if failure is not None and not failure.in_reach else 0
                    if failing == PATIENCE and failure is not None:
                        if failure.kind == "storage" or not self._hub_answers():
                            return
                        failing = 0
                add_settled(len(batch))
        finally:
            # Nothing is in flight when all is settled; if the loop ended otherwise, work in flight is not
            # waited for.
            if window:
                self.stop.set()
                self.tools.fingerprints.cancel()
            pool.shutdown(wait=True, cancel_futures=True)

    def _hub_answers(self) -> bool:
        """Whether the Hub still answers listings: then only single repositories fail."""
        try:
            self.tools.hub.page(self.tools.hub.listing_url(("peft",), sort="createdAt"))
        except HubError as error:
            log.warning("%s", error)
            return False
        return True

    def _tally(self) -> Callable[[int], None]:
        """Shows how many items are settled; returns what adds to their number."""
        with Session(self.engine) as session:
            counts = frontier.outcomes(session, self.crawl_id)
        total = sum(counts.values()) - counts[ItemOutcome.QUARANTINED.value]
        done = total - counts[ItemOutcome.PENDING.value]

        def add(count: int) -> None:
            nonlocal done
            done += count
            self.progress.working(done, total)

        add(0)
        return add

    def _tasks(self, pool: Executor, add_settled: Callable[[int], None]) -> Iterator[ItemTask]:
        """The items that need the Hub, in order; the others are settled immediately."""
        after = 0
        while True:
            with Session(for_writing(self.engine)) as session, session.begin():
                items = frontier.pending(session, self.crawl_id, after, BATCH)
                jobs = self._jobs(session, items)
                add_settled(len(items) - len(jobs))
                after = items[-1].position if items else after
            if not items:
                return
            for task, job in jobs:
                yield replace(task, result=pool.submit(job))

    def _jobs(self, session: Session, items: Sequence[CrawlItem]) -> list[tuple[ItemTask, Job]]:
        """The workers' tasks for these items; an unchanged repository is settled immediately."""
        repositories = store.known_repositories(session, [item.hub_id for item in items if item.hub_id])
        unread = self._unread(session, [row.id for row in repositories.values()])
        jobs: list[tuple[ItemTask, Job]] = []
        touched: list[Repository] = []
        for item in items:
            task = ItemTask(item.position, item.hub_id or "", item.name or "")
            row = repositories.get(task.hub_id)
            commit = row.commit if row is not None and row.id not in unread else None
            if item.row == NOT_LISTED:
                jobs.append((task, partial(_look_again, task.hub_id, task.name, commit, self.tools)))
                continue
            listed = parse_row(item.row)
            if isinstance(listed, BadRow):
                frontier.settle(item, ItemOutcome.QUARANTINED, error=listed.reason)
            elif len(names := _names(item, row, listed)) > 1:
                jobs.append((task, partial(_identify, listed, names, commit, self.tools)))
            elif row is not None and self._is_older(listed, row):
                frontier.settle(item, ItemOutcome.UNCHANGED, detail="the catalog contains a newer state")
            elif row is not None and commit is not None and listed.commit == commit:
                touched.append(store.touch_repository(session, row, listed, self.now()))
                frontier.settle(item, ItemOutcome.UNCHANGED)
            else:
                jobs.append((task, partial(process, listed, self.tools)))
        store.bury_namesakes(session, touched, self.now())
        unchanged = [item.hub_id or "" for item in items if item.outcome is ItemOutcome.UNCHANGED]
        retries.settle(session, self.scope, unchanged)
        return jobs

    def _is_older(self, listed: ListedRepository, row: Repository) -> bool:
        """Whether a listing row, perhaps of a page read hours ago, is older than the catalog's state."""
        if listed.last_modified is None or row.last_modified is None or row.last_seen <= self.started_at:
            return False
        return listed.last_modified < row.last_modified

    def _unread(self, session: Session, repositories: Sequence[int]) -> set[int]:
        """The repositories for which the catalog lacks data that this crawl requires."""
        tools = self.tools
        unread = store.repositories_to_read(
            session,
            repositories,
            tools.described_with,
            passing=PASSING if self.again else (),
            # A higher limit includes what an earlier one left out.
            up_to=0 if tools.weights == "headers" else tools.most_weights,
        )
        if tools.weights == "headers":
            return unread
        unreadable = [reason.value for reason in UNREADABLE]
        for owner, digest, is_measured, accepted in store.readable_weights(
            session, repositories, refusing(tools.rules), unreadable
        ):
            if not is_measured or (tools.weights == "keep" and accepted and not tools.blobs.has(digest)):
                unread.add(owner)
        return unread

    def _settle(self, tasks: Sequence[ItemTask], *, again: bool = False) -> list[ItemFailure | None]:
        """Writes the outcomes of tasks in one transaction; returns for each the failure, None if it was read.

        If a row is refused, the tasks are written once more, one by one: another process may have written the
        same row. The one that is refused again, because of a bug in loradex, fails.
        """
        results = [_result(task) for task in tasks]
        try:
            with Session(for_writing(self.engine)) as session, session.begin():
                self._write(session, tasks, results)
        except LoradexError:
            raise
        except Exception as error:
            if len(tasks) > 1 or not again:
                return [failure for task in tasks for failure in self._settle([task], again=True)]
            results = [_failure(tasks[0], error)]
            with Session(for_writing(self.engine)) as session, session.begin():
                self._write(session, tasks, results)
        return [result if isinstance(result, ItemFailure) else None for result in results]

    def _write(
        self, session: Session, tasks: Sequence[ItemTask], results: Sequence[Result | ItemFailure]
    ) -> None:
        repositories = store.known_repositories(session, [task.hub_id for task in tasks])
        plain = [
            self._name_result(session, task, result) for task, result in zip(tasks, results, strict=True)
        ]
        commits = {hub_id: row.commit for hub_id, row in repositories.items()}
        items = frontier.items_at(session, self.crawl_id, [task.position for task in tasks])
        read = [(r.repository, r.adapters) for r in plain if isinstance(r, Processed)]
        if read:
            store.save_repositories(session, read, self.now())
        for task, result in zip(tasks, plain, strict=True):
            item, row = items[task.position], repositories.get(task.hub_id)
            if isinstance(result, ItemFailure):
                cause = result.kind, result.detail
                retries.postpone(session, self.scope, item, *cause, self.now(), at_once=result.own)
                frontier.settle(item, ItemOutcome.FAILED, error=result.kind, detail=result.detail)
            elif isinstance(result, Gone):
                self._bury(session, row, result)
                frontier.settle(item, ItemOutcome.GONE, detail=result.detail)
            elif isinstance(result, Unchanged):
                touched = store.touch_repository(session, row, result.repository, self.now())
                store.bury_namesakes(session, [touched], self.now())
                frontier.settle(item, ItemOutcome.UNCHANGED)
            else:
                before, same = commits.get(task.hub_id), ItemOutcome.UNCHANGED
                again = same if before == result.repository.commit else ItemOutcome.CHANGED
                frontier.settle(item, ItemOutcome.NEW if before is None else again)
        read_ids = [t.hub_id for t, r in zip(tasks, plain, strict=True) if not isinstance(r, ItemFailure)]
        retries.settle(session, self.scope, read_ids)
        store.save_documents(session, self.tools.known.fresh_documents())
        self.meter.write(session)

    def _name_result(
        self, session: Session, task: ItemTask, result: Result | ItemFailure
    ) -> Processed | Unchanged | Gone | ItemFailure:
        """The plain result; the name of a repository and those with its `_id` are recorded."""
        if not isinstance(result, Identified):
            return result
        frontier.items_at(session, self.crawl_id, [task.position])[task.position].name = result.name
        if result.others:
            log.warning("%s: left out, %s has the same _id", ", ".join(result.others), result.name)
            frontier.add_namesakes(session, self.crawl_id, task.hub_id, result.others, SAME_ID)
        return result.result

    def _bury(self, session: Session, row: Repository | None, gone: Gone) -> None:
        """Makes a repository a tombstone, even if it was never read."""
        if row is None and gone.repository is not None:
            row = store.touch_repository(session, None, gone.repository, self.now())
        if row is not None:
            row.gone_at = row.gone_at or self.now()


def _ready(window: deque[ItemTask], most: int) -> list[ItemTask]:
    """Takes the first task, and following ones that are done, or soon are, and have different names."""
    batch = [window.popleft()]
    names = {batch[0].name}
    wait({batch[0].result})
    deadline = time.monotonic() + WRITE_DELAY
    while window and window[0].name not in names and len(batch) < most:
        if not wait({window[0].result}, max(0.0, deadline - time.monotonic())).done:
            break
        names.add(window[0].name)
        batch.append(window.popleft())
    return batch


def _result(task: ItemTask) -> Result | ItemFailure:
    """The result of a worker, or its failure."""
    try:
        return task.result.result()
    except Exception as error:
        return _failure(task, error)


def _failure(task: ItemTask, error: Exception) -> ItemFailure:
    if isinstance(error, LoradexError):
        log.warning("%s: %s", task.name, error)
        unauthorized = getattr(error, "status", None) == "unauthorized"
        out_of_reach = isinstance(error, OUT_OF_REACH) or unauthorized
        own = isinstance(error, (StorageError, ProcessLostError)) or unauthorized
        return ItemFailure(error_kind(error), str(error), not out_of_reach, own)
    fault = f"{type(error).__name__}: {error}"
    log.error("%s could not be read because of a bug in loradex: %s", task.name, fault)
    log.info("the traceback", exc_info=error)
    return ItemFailure(error_kind(error), fault, in_reach=True)


def _names(item: CrawlItem, repository: Repository | None, listed: ListedRepository) -> list[str]:
    """The names that are given for an `_id`: that of the catalog first, then those of the listing."""
    of_catalog = [repository.name] if repository is not None and repository.gone_at is None else []
    return list(dict.fromkeys([*of_catalog, listed.name, *frontier.other_names(item)]))


def _identify(listed: ListedRepository, names: Sequence[str], commit: str | None, tools: Tools) -> Result:
    """The outcome of a repository for whose `_id` the listing, or the catalog and the listing, give two
    names.

    A renamed repository keeps its `_id`, and the Hub answers for its old name with the new one. If the Hub
    has several names with the same `_id`, the first is read, and the others are reported; if it has none of
    them, the row of the listing is used.
    """
    candidates: dict[str, ListedRepository] = {}
    for name in names:
        if name not in candidates and (row := _show(name, tools.hub)) and row.hub_id == listed.hub_id:
            candidates.setdefault(row.name, row)
    first, *others = candidates.values() or (listed,)
    return Identified(first.name, tuple(other.name for other in others), _process_new(first, commit, tools))


def _show(name: str, hub: Hub) -> ListedRepository | None:
    """The repository that the Hub has under a name, None if it shows none."""
    try:
        row = parse_row(hub.repository(name))
    except HubAccessError as error:
        if error.status == "unauthorized":
            raise
        return None
    return None if isinstance(row, BadRow) else row


def _look_again(hub_id: str, name: str, commit: str | None, tools: Tools) -> Result:
    """The outcome of a repository that the listing no longer contains."""
    listed = look_up(hub_id, name, tools)
    if listed is None:
        return Gone(None, "the Hub no longer has it")
    return _process_new(listed, commit, tools)


def _process_new(listed: ListedRepository, commit: str | None, tools: Tools) -> Processed | Unchanged | Gone:
    """Reads a repository that is at another commit than the catalog's."""
    return Unchanged(listed) if commit is not None and listed.commit == commit else process(listed, tools)
