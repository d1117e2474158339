"""The known content that is not requested from the Hub: that of the catalog, and what was read recently.

Rows are written in listing order, a little after they are read; until then `Known` remembers them, so that
two folders with the same config, card or weights cost one request.
"""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Callable
from queue import SimpleQueue
from typing import Generic, TypeVar

from sqlalchemy import Engine
from sqlalchemy.orm import Session

from catalog.adapters import CardFacts, DocumentRecord, WeightsRecord
from catalog.database import store

V = TypeVar("V")

# The number of bytes of each kind that are cached; evicted ones are fetched again.
MOST_BYTES = 64 * 1024 * 1024
# The size of a record in addition to its header: the vectors of its values.
BASE_COST = 16 * 1024
LOCKS = 64


class _Recent(Generic[V]):
    """The values used last, by digest, up to MOST_BYTES."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._values: OrderedDict[str, tuple[V, int]] = OrderedDict()
        self._bytes = 0

    def get(self, digest: str) -> V | None:
        with self._lock:
            if digest not in self._values:
                return None
            self._values.move_to_end(digest)
            return self._values[digest][0]

    def put(self, digest: str, value: V, size: int) -> None:
        with self._lock:
            self._bytes += size - self._values.pop(digest, (value, 0))[1]
            self._values[digest] = (value, size)
            while self._bytes > MOST_BYTES:
                self._bytes -= self._values.popitem(last=False)[1][1]


class DigestLocks:
    """A lock for each digest; some share one."""

    def __init__(self) -> None:
        self._locks = tuple(threading.Lock() for _ in range(LOCKS))

    def of(self, digest: str) -> threading.Lock:
        """The lock of a digest."""
        return self._locks[int(digest[:8], 16) % LOCKS]


class Known:
    """The recorded content, read in short transactions, and the recent one not yet recorded; thread-safe."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        self._documents: _Recent[bytes] = _Recent()
        self._weights: _Recent[WeightsRecord] = _Recent()
        self._fresh: SimpleQueue[DocumentRecord] = SimpleQueue()
        self._small, self._large = DigestLocks(), DigestLocks()

    def fetching(self, digest: str) -> threading.Lock:
        """The lock to hold while a small file or a header is fetched, so that it is fetched only once."""
        return self._small.of(digest)

    def reading(self, digest: str) -> threading.Lock:
        """The lock to hold while weights are fetched and read, which may take minutes."""
        return self._large.of(digest)

    def document(self, digest: str) -> bytes | None:
        """The content of a small file that was fetched before."""
        content = self._documents.get(digest)
        return self._read(store.known_document, digest) if content is None else content

    def card_facts(self, hub_id: str, digest: str) -> CardFacts | None:
        """The facts of a repository's card that a snapshot left out."""
        return self._read(lambda session, name: store.card_facts(session, hub_id, name), digest)

    def weights(self, digest: str) -> WeightsRecord | None:
        """The record of a safetensors file that was read before."""
        return self._weights.get(digest) or self._read(store.known_weights, digest)

    def _read(self, find: Callable[[Session, str], V | None], digest: str) -> V | None:
        with Session(self._engine) as session:
            return find(session, digest)

    def learn_document(self, record: DocumentRecord) -> None:
        """Stores a small file that was just fetched, to be recorded later."""
        self._documents.put(record.digest, record.content, len(record.content))
        self._fresh.put(record)

    def fresh_documents(self) -> list[DocumentRecord]:
        """Returns the small files fetched since the last call, to be recorded."""
        return [self._fresh.get_nowait() for _ in range(self._fresh.qsize())]

    def learn_weights(self, record: WeightsRecord) -> None:
        """Stores the record of a safetensors file; a less complete one never replaces it."""
        for digest in filter(None, (record.digest, record.git_oid)):
            if record.fingerprints or self._weights.get(digest) is None:
                self._weights.put(digest, record, len(record.header or b"") + BASE_COST)
