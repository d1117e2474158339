"""Fingerprints of the files that are kept, made again if the version of the definition changed."""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import dataclass

from sqlalchemy import Engine
from sqlalchemy.orm import Session

from catalog.adapters import parse_config
from catalog.database import store
from catalog.database.engine import for_writing
from catalog.database.opening import writer_lock
from catalog.errors import ConfigError, DamagedFileError, WeightsError
from catalog.files import BlobStore
from catalog.fingerprints import fingerprint, record_of, use_one_thread

log = logging.getLogger(__name__)


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
