"""Fingerprints of kept files and features for engines, made again where their definition changed."""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import dataclass

from sqlalchemy import Engine, or_, select, update
from sqlalchemy.orm import Session

from catalog.adapters import FACTS_VERSION, engine_columns, parse_config
from catalog.database import store
from catalog.database.engine import for_writing
from catalog.database.opening import writer_lock
from catalog.database.schema import Adapter, DocumentRow, WeightsFile
from catalog.errors import ConfigError, DamagedFileError, WeightsError
from catalog.files import BlobStore
from catalog.fingerprints import fingerprint, record_of, use_one_thread

log = logging.getLogger(__name__)
_BATCH = 256


@dataclass(frozen=True)
class Reread:
    """How many fingerprints were made, how many files are not kept, and how many could not be read."""

    made: int
    not_kept: int
    unreadable: int


def reread(engine: Engine, blobs: BlobStore, progress: Callable[[int, int], None]) -> Reread:
    """Makes the missing fingerprints of all kept files, one transaction each; does not use the Hub.

    `progress` is called with the number done and the total. Raises CatalogBusyError if another process
    writes.
    """
    computed = unreadable = 0
    use_one_thread()
    with writer_lock(engine):
        refresh_engine_features(engine)
        with Session(engine) as session:
            missing = store.without_fingerprint(session)
        readable = [row for row in missing if blobs.has(row[0])]
        for done, (digest, _, config) in enumerate(readable):
            progress(done, len(readable))
            try:
                path = blobs.path_of(digest) or blobs.path(digest)
                result = fingerprint(path, parse_config(config))
            except (ConfigError, DamagedFileError, WeightsError) as error:
                log.warning("%s", error)
                unreadable += 1
                continue
            with Session(for_writing(engine)) as session, session.begin():
                store.save_fingerprint(session, digest, record_of(result), result.tensor_digest)
            computed += 1
        progress(len(readable), len(readable))
    return Reread(computed, len(missing) - len(readable), unreadable)


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
    refreshed = 0
    while True:
        with Session(for_writing(engine)) as session, session.begin():
            rows = session.execute(query).all()
            for adapter_id, config, header, size in rows:
                facts = store.engine_facts_of(config, header, size or 0)
                session.execute(update(Adapter).where(Adapter.id == adapter_id).values(engine_columns(facts)))
        refreshed += len(rows)
        if len(rows) < _BATCH:
            return refreshed
