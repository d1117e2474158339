"""The vectors in the database, as `catalog.index.vectors` reads them: fingerprints of weights files by key.

A key names a weights file and, where the scaling differs between modules, the pattern of scalings. The vector
of a key and version never changes, so that the keys alone determine whether an index is current.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from sqlalchemy import select
from sqlalchemy.orm import Session

from catalog.adapters import vector_key
from catalog.database import FingerprintRow
from catalog.errors import StorageError
from catalog.fingerprints import DELTA_SIZE, FINGERPRINT_VERSION, OUTPUT_SIZE
from catalog.index import IndexState, Space, VectorSource, check_index, open_index

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

Kind = Literal["delta", "output"]
SPACES: dict[Kind, Space] = {
    "delta": Space("delta", str(FINGERPRINT_VERSION), DELTA_SIZE),
    "output": Space("output", str(FINGERPRINT_VERSION), OUTPUT_SIZE),
}
_BLOCK = 500
_COLUMNS = {"delta": FingerprintRow.delta, "output": FingerprintRow.output}


class Fingerprints:
    """The delta or output vectors of the newest version in a catalog; a `catalog.index.VectorSource`."""

    def __init__(self, session: Session, kind: Kind) -> None:
        self._session, self._column = session, _COLUMNS[kind]

    def keys(self) -> Sequence[str]:
        """The keys of all fingerprints, sorted."""
        rows = self._session.execute(
            select(FingerprintRow.weights_digest, FingerprintRow.scaling_pattern).where(
                FingerprintRow.version == FINGERPRINT_VERSION
            )
        )
        return sorted(vector_key(*row) for row in rows)

    def vectors(self, keys: Sequence[str]) -> Iterator[NDArray[np.float32]]:
        """The vectors of these keys in their order, in blocks of (at most 500, size)."""
        import numpy as np

        for start in range(0, len(keys), _BLOCK):
            block = keys[start : start + _BLOCK]
            vectors_by_key = self.by_key(block)
            yield np.stack([vectors_by_key[key] for key in block])

    def by_key(self, keys: Sequence[str]) -> dict[str, NDArray[np.float32]]:
        """The vectors of these keys that the catalog holds."""
        import numpy as np

        query = select(FingerprintRow.weights_digest, FingerprintRow.scaling_pattern, self._column)
        query = query.where(FingerprintRow.version == FINGERPRINT_VERSION)
        vectors: dict[str, NDArray[np.float32]] = {}
        for start in range(0, len(keys), _BLOCK):
            block = set(keys[start : start + _BLOCK])
            digests = {key.partition("+")[0] for key in block}
            for *name, blob in self._session.execute(query.where(FingerprintRow.weights_digest.in_(digests))):
                if (key := vector_key(*name)) in block:
                    vectors[key] = np.frombuffer(blob, dtype="<f4")
        return vectors


def matrix(source: Fingerprints, keys: Sequence[str]) -> NDArray[np.float32]:
    """The vectors of these keys, repeated ones too, as (keys, size)."""
    import numpy as np

    unique = sorted(set(keys))
    rows = np.concatenate(list(source.vectors(unique)))
    place = {key: at for at, key in enumerate(unique)}
    result: NDArray[np.float32] = rows[[place[key] for key in keys]]
    return result


@dataclass(frozen=True)
class Cache:
    """The index of one space of a catalog."""

    space: Space
    source: VectorSource

    def check(self, folder: Path) -> IndexState:
        """The state of the cache in the folder."""
        return check_index(folder, self.space, self.source)

    def rebuild(self, folder: Path) -> IndexState:
        """Rebuilds the cache; returns its state. Raises StorageError."""
        state = self.check(folder)
        try:
            state.path.unlink(missing_ok=True)
        except OSError as error:
            raise StorageError(f"The index {state.path} cannot be removed: {error.strerror}.") from error
        open_index(folder, self.space, self.source)
        cache_state = self.check(folder)
        if cache_state.state != "current":
            raise StorageError(
                f"The index {cache_state.path} cannot be written: it is still {cache_state.state}."
            )
        return cache_state


def indexes(session: Session) -> dict[str, Cache]:
    """The indexes of a catalog by the name of their space."""
    return {kind: Cache(space, Fingerprints(session, kind)) for kind, space in SPACES.items()}
