"""Workers of a crawl: what one is started with, here or on the machines of a Ray cluster.

Leases, not Ray, keep the work of a worker that dies; Ray only starts workers, and starts one again whose
process died.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from sqlalchemy import Engine
from sqlalchemy.orm import Session

from catalog.cluster import connect_ray
from catalog.database import disposing, open_catalog, same_schema
from catalog.errors import LoradexError, NotFoundError, ProcessLostError, UsageError
from catalog.extras import require_extra
from catalog.files import remove_abandoned, temporary_store
from catalog.fingerprints import FingerprintPool
from catalog.settings import Settings
from crawler.crawl.ledger import share_budget
from crawler.crawl.sharing import Worker, check_shared, is_over, shared_crawl
from crawler.hub import Hub, HubSettings

log = logging.getLogger(__name__)

# How often Ray starts a worker again whose process died.
_RESTARTS = 2


@dataclass(frozen=True)
class WorkReport:
    """How many weights files were read for a crawl that another process carries out."""

    read: int


@dataclass(frozen=True)
class WorkerSettings:
    """What a worker is started with: the catalog in PostgreSQL, the Hub, threads and processes."""

    settings: Settings
    hub: HubSettings
    threads: int
    processes: int


def work_for_crawl(worker: WorkerSettings, begin: Callable[[], None] = lambda: None) -> WorkReport:
    """Reads weights for the crawl at work until it is over; files are streamed through the data folder.

    `begin` is called once it is certain that there is work. Raises UsageError for a catalog or a crawl that
    is not shared, NotFoundError if there is no crawl.
    """
    stop = threading.Event()
    with (
        _open_shared(worker.settings) as engine,
        Hub(worker.hub, stop=stop) as hub,
        same_schema(engine),
    ):
        with Session(engine) as session:
            crawl_id = shared_crawl(session, worker.hub)
        begin()
        with (
            share_budget(hub, engine),
            temporary_store(worker.settings.data) as store,
            FingerprintPool(worker.processes) as fingerprints,
        ):
            work = Worker(engine, hub, store, fingerprints, worker.threads, stop)
            return WorkReport(work.work(crawl_id, lambda: is_over(engine, crawl_id)))


def work_by_ray(
    worker: WorkerSettings, count: int, address: str | None, begin: Callable[[], None] = lambda: None
) -> WorkReport:
    """Starts `count` workers on the cluster at `address`, or on this machine; returns when the crawl is over.

    A worker takes a core for each of its processes; `begin` as for `work_for_crawl`. Raises as that and
    `connect_ray`, and if no worker could work.
    """
    require_extra("ray", "Work on several processes")
    with _open_shared(worker.settings) as engine, Session(engine) as session:
        shared_crawl(session, worker.hub)
    failures: list[Exception] = []
    read = 0
    with connect_ray(address, count * worker.processes) as ray:
        cores = [node["Resources"].get("CPU", 0) for node in ray.nodes() if node["Alive"]]
        if worker.processes > max(cores):
            raise UsageError(
                f"No machine of the Ray cluster has {worker.processes} cores; use fewer `processes`."
            )
        begin()
        task = ray.remote(num_cpus=worker.processes, max_retries=_RESTARTS)(_work_if_any)
        for reference in [task.remote(worker) for _ in range(count)]:
            try:
                read += ray.get(reference).read
            except ray.exceptions.RayError as error:
                cause = getattr(error, "cause", None)
                failures.append(cause if isinstance(cause, LoradexError) else _lost(error))
                log.warning("a worker ended: %s", failures[-1])
    if len(failures) == count:
        raise failures[0]
    return WorkReport(read)


@contextmanager
def _open_shared(settings: Settings) -> Iterator[Engine]:
    """An engine on a catalog into which several programs crawl; raises as `open_catalog`, and UsageError."""
    with disposing(open_catalog(settings, create=False)) as engine:
        check_shared(engine)
        yield engine


def _work_if_any(worker: WorkerSettings) -> WorkReport:
    """`work_for_crawl` for a worker that may start when the crawl is over, in place of a killed one."""
    try:
        return work_for_crawl(worker)
    except NotFoundError:
        remove_abandoned(worker.settings.data)
        return WorkReport(0)


def _lost(error: Exception) -> ProcessLostError:
    first = str(error).strip().splitlines()[-1:] or [type(error).__name__]
    return ProcessLostError(f"A worker of the Ray cluster ended before the crawl: {first[0]}")
