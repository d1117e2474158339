"""Weights of one crawl, read by several processes: the crawl offers them, workers lease and read them.

A worker writes what it read next to the lease alone; the crawl takes it from there and writes the rows of the
catalog in its own order, so that they equal those of one process.
"""

from __future__ import annotations

import base64
import itertools
import json
import logging
import threading
import uuid
import zlib
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from sqlalchemy import Engine
from sqlalchemy.orm import Session

from catalog import errors
from catalog.adapters import FingerprintRecord, header_bytes, parse_config
from catalog.database import for_writing, is_crawled, leases
from catalog.errors import (
    CatalogError,
    ConfigError,
    HubAccessError,
    HubPayloadError,
    IntegrityError,
    LoradexError,
    NotFoundError,
    ProcessLostError,
    UnreadableError,
    UsageError,
    WeightsError,
)
from catalog.files import BlobStore
from catalog.fingerprints import FingerprintPool, Measurement
from crawler.crawl.known import DigestLocks
from crawler.hub import Hub, HubSettings, RemoteFile
from crawler.reading import reading

log = logging.getLogger(__name__)

# What says something of the file, wherever it is read; another error may pass.
_LASTING = (HubAccessError, IntegrityError, HubPayloadError, WeightsError, ConfigError)
# Seconds between two looks at the rows of others.
PAUSE = 0.2
# A third of the time of a lease.
_EXTEND_AFTER = leases.LEASE.total_seconds() / 3


@dataclass(frozen=True)
class WeightsTask:
    """A weights file to be read: its place on the Hub, and the config of its adapter."""

    name: str
    commit: str
    file: RemoteFile
    config: bytes

    def as_json(self) -> dict[str, Any]:
        """The task as it is stored."""
        config = base64.b64encode(self.config).decode()
        return {"name": self.name, "commit": self.commit, "file": vars(self.file), "config": config}

    @classmethod
    def from_json(cls, stored: dict[str, Any]) -> WeightsTask:
        """The task that was stored."""
        file = RemoteFile(**stored["file"])
        return cls(stored["name"], stored["commit"], file, base64.b64decode(stored["config"]))


@dataclass(frozen=True)
class WeightsReading:
    """What is read of a weights file: its header, and its measurement."""

    header: bytes
    measurement: Measurement


def read_weights(
    task: WeightsTask, hub: Hub, store: BlobStore, fingerprints: FingerprintPool
) -> WeightsReading:
    """Fetches a weights file, verifies and measures it, and deletes it."""
    sha256 = task.file.sha256 or ""
    try:
        path = hub.download(task.name, task.commit, task.file, store)
        return measure(path, task, fingerprints)
    finally:
        store.remove(sha256)


@contextmanager
def reading_weights(what: str) -> Iterator[None]:
    """Turns what a parser of a weights file raises, except the program's own errors, into WeightsError."""
    try:
        with reading(what):
            yield
    except UnreadableError as error:
        # It may come from another process, which does not know what it reads.
        message = f"{what} cannot be read: the parser ends with {error.fault}"
        raise WeightsError("unreadable", message) from error


def measure(path: Path, task: WeightsTask, fingerprints: FingerprintPool) -> WeightsReading:
    """What a verified file contains."""
    header = header_bytes(path)
    with reading_weights(f"the values of {task.file.path}"):
        return WeightsReading(header, fingerprints.measure(path, parse_config(task.config)))


class SharedWeights:
    """The files that one crawl offers to all processes; its threads wait for what comes back."""

    def __init__(self, engine: Engine, crawl_id: int, stop: threading.Event) -> None:
        self._engine, self._crawl_id, self._stop = engine, crawl_id, stop
        self._closed = False
        self._lock = threading.Lock()
        self._waiting: dict[str, Future[WeightsReading]] = {}
        self.changed = threading.Event()

    def read(self, task: WeightsTask) -> WeightsReading:
        """What a process has read of a file, this one or another; raises the error that it raised.

        Only one thread at a time waits for a file.
        """
        digest = task.file.sha256 or ""
        with Session(for_writing(self._engine)) as session, session.begin():
            leases.publish(session, self._crawl_id, digest, task.as_json())
        # Until now the row may hold what was read for another config.
        future: Future[WeightsReading] = Future()
        with self._lock:
            self._waiting[digest] = future
        self.changed.set()
        if self._stop.is_set():
            self.cancel()
        return future.result()

    def deliver(self) -> None:
        """Gives what has come back to the threads that wait, until it is closed or the crawl is stopped."""
        while not (self._closed or self._stop.is_set()):
            with self._lock:
                digests = list(self._waiting)
            if digests:
                with Session(for_writing(self._engine)) as session, session.begin():
                    results = leases.settled(session, self._crawl_id, digests)
                for digest, result in results.items():
                    with self._lock:
                        future = self._waiting.pop(digest)
                    _resolve(future, result)
            self.changed.wait(PAUSE)
            self.changed.clear()
        self.cancel()

    @contextmanager
    def at_work(self, worker: Worker) -> Iterator[None]:
        """Inside the block files are offered, come back, and this process is a worker too."""

        def guard(function: Callable[..., object], *arguments: object) -> None:
            try:
                function(*arguments)
            except BaseException:
                self._stop.set()
                self.cancel()
                raise

        with ThreadPoolExecutor(2, thread_name_prefix="share") as threads:
            delivery = threads.submit(guard, self.deliver)
            reading = threads.submit(guard, worker.work, self._crawl_id, lambda: self._closed)
            try:
                yield
            except BaseException:
                self._stop.set()
                raise
            finally:
                self._closed = True
                self.changed.set()
        for future in (delivery, reading):
            future.result()

    def cancel(self) -> None:
        """Lets no thread wait any longer."""
        with self._lock:
            waiting, self._waiting = self._waiting, {}
        for future in waiting.values():
            future.set_exception(ProcessLostError("The weights were not read: the crawl was interrupted."))


@dataclass
class Worker:
    """What leases files of a crawl, reads them with `threads` threads, and returns what they contain."""

    engine: Engine
    hub: Hub
    store: BlobStore
    fingerprints: FingerprintPool
    threads: int
    stop: threading.Event
    changed: threading.Event = field(default_factory=threading.Event)
    name: str = field(default_factory=lambda: uuid.uuid4().hex)
    _claims: Iterator[int] = field(default_factory=itertools.count)
    # A file that is claimed again while it is read lies in the store until it has been read.
    _reading: DigestLocks = field(default_factory=DigestLocks)

    def work(self, crawl_id: int, is_over: Callable[[], bool]) -> int:
        """Reads files until the crawl is over or stopped; how many it returned.

        What it has not read then, others may read at once.
        """
        read, running, ended = 0, set[Future[bool]](), threading.Event()
        threading.Thread(target=self._extend_leases, args=(ended,), daemon=True).start()
        pool = ThreadPoolExecutor(self.threads, thread_name_prefix="weights")
        try:
            while not self.stop.is_set():
                done = {future for future in running if future.done()}
                read += sum(future.result() for future in done)
                running -= done
                tasks = self._claim(crawl_id, self.threads - len(running))
                running |= {pool.submit(self._carry_out, crawl_id, *task) for task in tasks}
                if not running and is_over():
                    break
                if not tasks:
                    self.changed.wait(PAUSE)
                    self.changed.clear()
        except BaseException:
            self.stop.set()
            self.fingerprints.cancel()
            raise
        finally:
            pool.shutdown(wait=True, cancel_futures=True)
            ended.set()
            self._change_leases(leases.return_unread)
        return read

    def _claim(self, crawl_id: int, count: int) -> list[tuple[str, str, WeightsTask]]:
        if count == 0:
            return []
        lease = f"{self.name}/{next(self._claims)}"
        with Session(for_writing(self.engine)) as session, session.begin():
            rows = leases.claim(session, crawl_id, lease, count)
            return [(lease, row.digest, WeightsTask.from_json(row.task)) for row in rows]

    def _carry_out(self, crawl_id: int, lease: str, digest: str, task: WeightsTask) -> bool:
        """Reads one file and writes what it contains, if it still has this lease."""
        settle: Callable[[Session, int, str, str, bytes], bool] = leases.finish
        try:
            with self._reading.of(digest):
                result = _pack(read_weights(task, self.hub, self.store, self.fingerprints))
        except _LASTING as error:
            result = _pack_error(error)
        except Exception as error:
            if self.stop.is_set():
                return False
            log.warning("%s: %s", task.name, error)
            settle, result = leases.give_back, _pack_error(error)
        with Session(for_writing(self.engine)) as session, session.begin():
            written = settle(session, crawl_id, digest, lease, result)
        self.changed.set()
        return written

    def _extend_leases(self, ended: threading.Event) -> None:
        while not ended.wait(_EXTEND_AFTER):
            self._change_leases(leases.extend)

    def _change_leases(self, change: Callable[[Session, str], None]) -> None:
        """Changes all leases of this process; where the catalog cannot be reached they end by themselves."""
        try:
            with Session(for_writing(self.engine)) as session, session.begin():
                change(session, self.name)
        except CatalogError as error:
            log.warning("%s", error)


def check_shared(engine: Engine) -> None:
    """Returns if several programs crawl into this catalog; else raises UsageError."""
    if engine.dialect.name == "sqlite":
        raise UsageError(
            "Only a crawl into PostgreSQL is shared by several programs; on one machine use `processes`."
        )


def shared_crawl(session: Session, hub: HubSettings) -> int:
    """The id of the crawl at work, which is of this Hub and whose weights workers read.

    Raises UsageError for a crawl that is not shared, NotFoundError if there is no crawl.
    """
    crawl = leases.crawl_at_work(session)
    if crawl is None or not is_crawled(session):
        raise NotFoundError("No crawl is at work in this catalog; start one, then its workers.")
    if crawl.asked["weights"] != "stream":
        raise UsageError(
            f"The crawl at work has `weights` {crawl.asked['weights']!r}; only those that are streamed are "
            "shared."
        )
    if crawl.asked["hub"] != hub.endpoint:
        raise UsageError(f"The crawl at work is of {crawl.asked['hub']}; set HF_ENDPOINT to it.")
    return crawl.id


def is_over(engine: Engine, crawl_id: int) -> bool:
    """Whether no process carries out this crawl any longer."""
    with Session(engine) as session:
        crawl = leases.crawl_at_work(session)
        return crawl is None or crawl.id != crawl_id or not is_crawled(session)


def _pack(reading: WeightsReading) -> bytes:
    record = reading.measurement.record
    vectors = {name: _text(getattr(record, name)) for name in ("spectrum", "delta", "output")}
    document = {
        "header": _text(reading.header),
        "tensor_digest": reading.measurement.tensor_digest,
        "scaling_pattern": record.scaling_pattern,
        "version": record.version,
        **vectors,
    }
    return zlib.compress(json.dumps(document).encode(), 1)


def _pack_error(error: Exception) -> bytes:
    """The class, the text and the plain attributes of an error; of a fault of the program the class alone."""
    own = isinstance(error, LoradexError)
    document = {
        "error": type(error).__name__ if own else "",
        "text": str(error) if own else f"{type(error).__name__}: {error}",
        "attributes": vars(error) if own else {},
    }
    return zlib.compress(json.dumps(document, default=str).encode(), 1)


def _resolve(future: Future[WeightsReading], result: bytes | None) -> None:
    if result is None:
        text = f"{leases.MOST_TRIES} processes began to read the weights, and none of them ended."
        future.set_exception(ProcessLostError(text))
        return
    document = json.loads(zlib.decompress(result))
    if "error" in document:
        future.set_exception(_error(document))
        return
    spectrum, delta, output = (base64.b64decode(document[name]) for name in ("spectrum", "delta", "output"))
    record = FingerprintRecord(document["scaling_pattern"], document["version"], spectrum, delta, output)
    measurement = Measurement(record, document["tensor_digest"])
    future.set_result(WeightsReading(base64.b64decode(document["header"]), measurement))


def _error(document: dict[str, Any]) -> Exception:
    kind = getattr(errors, document["error"], None) if document["error"] else None
    if not (isinstance(kind, type) and issubclass(kind, LoradexError)):
        return RuntimeError(document["text"])
    error = kind.__new__(kind, document["text"])
    error.__dict__.update(document["attributes"])
    return error


def _text(content: bytes) -> str:
    return base64.b64encode(content).decode()
