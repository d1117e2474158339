"""The vectors in the database, as `catalog.index.vectors` reads them: fingerprints of weights files by key.

A key names a weights file and, where the scaling differs between modules, the pattern of scalings. Each base
model has indexes of its own: vectors of others are never compared.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from sqlalchemy import ColumnElement, exists, func, select
from sqlalchemy.orm import Session

from catalog.adapters import vector_key
from catalog.database import Adapter, BaseModelRow, FingerprintRow, read_token, read_versions
from catalog.errors import StorageError
from catalog.fingerprints import DELTA_SIZE, FINGERPRINT_VERSION, OUTPUT_SIZE
from catalog.index import (
    IndexKind,
    IndexState,
    Space,
    VectorIndex,
    check_index,
    check_words,
    open_index,
    rebuild_words,
    remove_index,
)
from catalog.search.rows import plain_rows
from catalog.search.texts import CardTexts, read_parts

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

Kind = Literal["delta", "output"]
SPACES: dict[Kind, Space] = {
    "delta": Space("delta", str(FINGERPRINT_VERSION), DELTA_SIZE),
    "output": Space("output", str(FINGERPRINT_VERSION), OUTPUT_SIZE),
}
_BLOCK = 500
# Up to this part of all vectors is looked up by key.
_SPARSE = 4
_COLUMNS = {"delta": FingerprintRow.delta, "output": FingerprintRow.output}


class Fingerprints:
    """The delta or output vectors of the newest version in a catalog, by key."""

    def __init__(self, session: Session, kind: Kind) -> None:
        self._session, self._column = session, _COLUMNS[kind]

    def vectors(self, keys: Sequence[str]) -> Iterator[NDArray[np.float32]]:
        """The vectors of these keys in their order, in blocks of (at most 500, size)."""
        import numpy as np

        for start in range(0, len(keys), _BLOCK):
            block = keys[start : start + _BLOCK]
            vectors_by_key = self.by_key(block)
            yield np.stack([vectors_by_key[key] for key in block])

    def stored(self, keys: Collection[str]) -> Iterator[tuple[str, NDArray[np.float32]]]:
        """The vectors of these keys that the catalog holds, with their keys, in any order.

        Where they are most of all, the table is read as it lies on the disk.
        """
        import numpy as np

        count = self._session.scalar(select(func.count()).select_from(FingerprintRow)) or 0
        if len(keys) * _SPARSE < count:
            names = list(keys)
            for start in range(0, len(names), _BLOCK):
                yield from self.by_key(names[start : start + _BLOCK]).items()
            return
        query = select(FingerprintRow.weights_digest, FingerprintRow.scaling_pattern, self._column)
        query = query.where(FingerprintRow.version == FINGERPRINT_VERSION)
        for digest, pattern, blob in plain_rows(self._session, query):
            if (key := vector_key(digest, pattern)) in keys:
                yield key, np.frombuffer(blob, dtype="<f4")

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


class BaseFingerprints(Fingerprints):
    """Those of the adapters of one base model, None for an unknown one; a `catalog.index.VectorSource`.

    Adapters at older commits, refused ones and those of vanished repositories are included.
    """

    def __init__(self, session: Session, kind: Kind, base: str | None) -> None:
        super().__init__(session, kind)
        self._base = base

    def token(self) -> str:
        """The token of all fingerprints."""
        return read_token(self._session, "fingerprints")

    def versions(self) -> Mapping[str, int]:
        """The version of each part of all fingerprints."""
        return read_versions(self._session, "fingerprints")

    def keys(self, parts: Collection[str] | None = None) -> Sequence[str]:
        """The keys of the fingerprints, sorted; of some parts, or all."""
        query = (
            select(Adapter.weights_digest, Adapter.scaling_pattern)
            .join(
                FingerprintRow,
                (FingerprintRow.weights_digest == Adapter.weights_digest)
                & (FingerprintRow.scaling_pattern == Adapter.scaling_pattern),
            )
            .where(FingerprintRow.version == FINGERPRINT_VERSION, _is_of(self._base))
            .distinct()
        )
        rows = read_parts(self._session, query, Adapter.weights_digest, parts)
        return sorted(vector_key(str(digest), str(pattern)) for digest, pattern in rows)


def _is_of(base: str | None) -> ColumnElement[bool]:
    """Whether an adapter is of a base model, or of an unknown one."""
    if base is None:
        return Adapter.base_model_id.is_(None)
    return (
        Adapter.base_model_id
        == select(BaseModelRow.id).where(BaseModelRow.canonical == base).scalar_subquery()
    )


def base_space(kind: Kind, base: str | None) -> Space:
    """The space of the vectors of one base model: others are never compared with them."""
    title = "unknown" if base is None else hashlib.sha256(base.encode()).hexdigest()[:16]
    return replace(SPACES[kind], name=f"{kind}-{title}")


def open_base_index(session: Session, folder: Path, kind: Kind, base: str | None) -> VectorIndex:
    """The index of one base model, from the cache in the folder as far as that fits; raises like
    `open_index`.
    """
    return open_index(folder, base_space(kind, base), BaseFingerprints(session, kind, base))


def measured_bases(session: Session) -> list[str | None]:
    """The base models that adapters with a fingerprint have, sorted, the unknown one (None) last."""
    measured = exists().where(
        FingerprintRow.weights_digest == Adapter.weights_digest,
        FingerprintRow.scaling_pattern == Adapter.scaling_pattern,
        FingerprintRow.version == FINGERPRINT_VERSION,
    )
    of_base = exists().where(Adapter.base_model_id == BaseModelRow.id, measured)
    names = session.scalars(select(BaseModelRow.canonical).where(of_base).order_by(BaseModelRow.canonical))
    unknown = session.scalar(select(Adapter.id).where(_is_of(None), measured).limit(1))
    return [*names, *([] if unknown is None else [None])]


@dataclass(frozen=True)
class Cache:
    """One index of a catalog: of the vectors of one base model, or of the texts of all (`kind` "words")."""

    name: str
    base: str | None
    check: Callable[[Path], IndexState]
    rebuild: Callable[[Path, IndexKind | None], IndexState]


def indexes(session: Session) -> list[Cache]:
    """The indexes that a catalog can have: two for each base model with fingerprints, and the words."""
    caches = [_vector_cache(session, kind, base) for kind in SPACES for base in measured_bases(session)]
    texts = CardTexts(session)
    words = Cache(
        "words",
        None,
        lambda folder: check_words(folder, texts),
        lambda folder, _kind: rebuild_words(folder, texts),
    )
    return [*caches, words]


def _vector_cache(session: Session, kind: Kind, base: str | None) -> Cache:
    space, source = base_space(kind, base), BaseFingerprints(session, kind, base)

    def check(folder: Path) -> IndexState:
        return check_index(folder, space, source, recall=True)

    def rebuild(folder: Path, index_kind: IndexKind | None) -> IndexState:
        remove_index(folder, space)
        open_index(folder, space, source, index_kind)
        state = check(folder)
        if state.state != "current":
            raise StorageError(f"The index {state.path} cannot be written: it is still {state.state}.")
        return state

    return Cache(kind, base, check, rebuild)
