"""What is known already and need not be asked of the Hub: what the catalog holds, and what was read just now.

Rows are written in listing order, a little after they are read; until then `Known` remembers them, so that
two folders with the same config, card or weights cost one request.
"""

from __future__ import annotations

import threading
from collections import OrderedDict
from queue import SimpleQueue
from typing import Generic, Protocol, TypeVar

from sqlalchemy import Engine
from sqlalchemy.orm import Session

from catalog.adapters import DocumentRecord, WeightsRecord
from catalog.database import store

V = TypeVar("V")

# So many bytes of each kind are remembered; what is forgotten is fetched again.
MOST_BYTES = 64 * 1024 * 1024
# What a record weighs beside its header: the vectors of its values.
BASE_COST = 16 * 1024
LOCKS = 64


class Facts(Protocol):
    """What is on record under a digest."""

    def document(self, digest: str) -> bytes | None:
        """The content of a small file that was fetched before."""
        ...

    def weights(self, digest: str) -> WeightsRecord | None:
        """What was learned of a safetensors file before."""
        ...


class CatalogFacts:
    """What the catalog holds, each question in a short read of its own, from any thread."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine

    def document(self, digest: str) -> bytes | None:
        """The content of a small file that was fetched before."""
        with Session(self._engine) as session:
            return store.known_document(session, digest)

    def weights(self, digest: str) -> WeightsRecord | None:
        """What was learned of a safetensors file before."""
        with Session(self._engine) as session:
            return store.known_weights(session, digest)


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


class Known:
    """What is on record, and what was read lately and is not on record yet; safe to share between threads."""

    def __init__(self, facts: Facts) -> None:
        self._facts = facts
        self._documents: _Recent[bytes] = _Recent()
        self._weights: _Recent[WeightsRecord] = _Recent()
        self._fresh: SimpleQueue[DocumentRecord] = SimpleQueue()
        self._small = tuple(threading.Lock() for _ in range(LOCKS))
        self._large = tuple(threading.Lock() for _ in range(LOCKS))

    def fetching(self, digest: str) -> threading.Lock:
        """The lock to hold while a small file or a header is fetched: nobody else then fetches it too."""
        return self._small[int(digest[:8], 16) % LOCKS]

    def reading(self, digest: str) -> threading.Lock:
        """The lock to hold while weights are fetched and read, which may take minutes."""
        return self._large[int(digest[:8], 16) % LOCKS]

    def document(self, digest: str) -> bytes | None:
        """The content of a small file that was fetched before."""
        content = self._documents.get(digest)
        return self._facts.document(digest) if content is None else content

    def weights(self, digest: str) -> WeightsRecord | None:
        """What was learned of a safetensors file before."""
        return self._weights.get(digest) or self._facts.weights(digest)

    def learn_document(self, record: DocumentRecord) -> None:
        """Remembers a small file that was just fetched, and that it is to be put on record."""
        self._documents.put(record.digest, record.content, len(record.content))
        self._fresh.put(record)

    def fresh_documents(self) -> list[DocumentRecord]:
        """Hands over the small files fetched since the last call: on record, nobody fetches them twice."""
        return [self._fresh.get_nowait() for _ in range(self._fresh.qsize())]

    def learn_weights(self, record: WeightsRecord) -> None:
        """Remembers what was just learned of a safetensors file; less never replaces more."""
        for digest in filter(None, (record.digest, record.git_oid)):
            if record.fingerprints or self._weights.get(digest) is None:
                self._weights.put(digest, record, len(record.header or b"") + BASE_COST)
