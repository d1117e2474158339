"""Fingerprints of kept files and features for engines, made again where their definition changed."""

from __future__ import annotations

import logging
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Executor, Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import TypeVar

from sqlalchemy import Engine, or_, select, update
from sqlalchemy.orm import Session

from catalog.adapters import FACTS_VERSION, engine_columns, parse_config
from catalog.database import store
from catalog.database.engine import for_writing
from catalog.database.opening import writer_lock
from catalog.database.schema import Adapter, DocumentRow, WeightsFile
from catalog.errors import ConfigError, DamagedFileError, ProcessLostError, WeightsError
from catalog.files import BlobStore
from catalog.fingerprints import FingerprintPool, Measurement

Row = TypeVar("Row")
Result = TypeVar("Result")
log = logging.getLogger(__name__)
_BATCH = 256


@dataclass(frozen=True)
class Reread:
    """How many fingerprints were made, how many files are not kept, and how many could not be read."""

    made: int
    not_kept: int
    unreadable: int


def reread(
    engine: Engine, blobs: BlobStore, progress: Callable[[int, int], None], *, processes: int = 1
) -> Reread:
    """Makes the missing fingerprints of all kept files, one transaction each; does not use the Hub.

    `progress` is called with the number done and the total. Raises CatalogBusyError if another process
    writes.
    """
    computed = unreadable = 0
    with (
        writer_lock(engine),
        ThreadPoolExecutor(processes, thread_name_prefix="fingerprint") as threads,
        FingerprintPool(processes) as fingerprints,
    ):
        refresh_engine_features(engine)
        with Session(engine) as session:
            missing = store.without_fingerprint(session)
        readable = [(digest, config) for digest, _, config in missing if blobs.has(digest)]

        def measure(row: tuple[str, bytes]) -> Measurement:
            digest, config = row
            path = blobs.path_of(digest) or blobs.path(digest)
            return fingerprints.measure(path, parse_config(config))

        for done, ((digest, _), future) in enumerate(_in_order(threads, measure, readable, 2 * processes)):
            progress(done, len(readable))
            try:
                result = future.result()
            except (ConfigError, DamagedFileError, ProcessLostError, WeightsError) as error:
                log.warning("%s: %s", digest[:12], error)
                unreadable += 1
                continue
            with Session(for_writing(engine)) as session, session.begin():
                store.save_fingerprint(session, digest, result.record, result.tensor_digest)
            computed += 1
        progress(len(readable), len(readable))
    return Reread(computed, len(missing) - len(readable), unreadable)


def _in_order(
    executor: Executor, function: Callable[[Row], Result], rows: Iterable[Row], most: int
) -> Iterator[tuple[Row, Future[Result]]]:
    """Each row with its call, of which at most so many are under way."""
    window: deque[tuple[Row, Future[Result]]] = deque()
    for row in rows:
        if len(window) == most:
            yield window.popleft()
        window.append((row, executor.submit(function, row)))
    yield from window


def refresh_engine_features(engine: Engine) -> int:
    """Writes the features for engines of current adapters that have none of this version; returns how many.

    They come from stored configurations and headers alone. The caller holds the lock of the writer.
    """
    columns = (Adapter.id, DocumentRow.content, WeightsFile.header, WeightsFile.size)
    missing = or_(Adapter.engine_version.is_(None), Adapter.engine_version != FACTS_VERSION)
    query = (
        select(*columns)
        .outerjoin(DocumentRow, DocumentRow.digest == Adapter.config_digest)
        .outerjoin(WeightsFile, WeightsFile.digest == Adapter.weights_digest)
        .where(Adapter.current, missing)
        .order_by(Adapter.id)
        .limit(_BATCH)
    )
    refreshed = last = 0
    while True:
        with Session(for_writing(engine)) as session, session.begin():
            # Those before have been looked at.
            rows = session.execute(query.where(Adapter.id > last)).all()
            for adapter_id, config, header, size in rows:
                facts = store.engine_facts_of(config, header, size or 0)
                session.execute(update(Adapter).where(Adapter.id == adapter_id).values(engine_columns(facts)))
        refreshed += len(rows)
        if len(rows) < _BATCH:
            return refreshed
        last = rows[-1].id
