"""Nearest vectors by cosine: FAISS as a cache over vectors that live in the database.

Each space has two files in the folder `index/` of the data folder: `<name>.faiss`, and `<name>.json`, written
last, with the stamp of what was indexed and the sha256 of the first. The stamp covers the space, the metric
and the ordered keys; a key and a version never get another vector, so that keys suffice.
A cache that does not match is built again from the database, which also handles deletions.
This is the only module that imports faiss.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import logging
import os
import re
import sys
from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import asdict, dataclass
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO, Literal, Protocol

from catalog.errors import CatalogError, UsageError
from catalog.files import DAMAGES, open_cache, read_facts, write_cache
from catalog.fingerprints import cosines, rounding

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

log = logging.getLogger(__name__)

State = Literal["current", "missing", "stale", "corrupt"]
_FORMAT = 1
# Rows whose float64 copies are held at once.
_ROWS = 1024
# Up to this many rows are copied and multiplied; more use a selector.
_FEW = 300
# Candidates beyond those asked for, so that a tie at the end is seen.
_MARGIN = 16


@dataclass(frozen=True)
class Space:
    """Vectors that may be compared: a name of lower-case letters, digits, - and _, a version, a length."""

    name: str
    version: str
    size: int

    def __post_init__(self) -> None:
        if not re.fullmatch(r"[a-z0-9][a-z0-9_-]{0,63}", self.name) or self.size < 1:
            raise ValueError(f"not a valid space of vectors: {self!r}")


class VectorSource(Protocol):
    """The source of the vectors of a space."""

    def keys(self) -> Sequence[str]:
        """All keys, sorted and unique."""
        ...

    def vectors(self, keys: Sequence[str]) -> Iterator[NDArray[np.float32]]:
        """The vectors of these keys in their order, in blocks of (any number, size)."""
        ...


@dataclass(frozen=True)
class VectorHit:
    """A vector that was found, and its cosine with the query."""

    key: str
    score: float


@dataclass(frozen=True)
class IndexState:
    """The state of the cache of a space: current, missing, stale (made from other vectors) or corrupt.

    `vectors` is the number in a current or stale file, else 0; `path` is the path of the file.
    """

    state: State
    vectors: int
    path: Path


class VectorIndex:
    """The vectors of one space, L2-normalised in float32, in memory; made by `open_index`.

    `keys` are those that can be found, sorted; `skipped` those whose vector is zero and has no cosine.
    """

    def __init__(self, keys: Sequence[str], skipped: Sequence[str], index: Any) -> None:
        zero = set(skipped)
        self.keys = tuple(key for key in keys if key not in zero)
        self.skipped = tuple(skipped)
        self.size = int(index.d)
        if len(self.keys) != index.ntotal:
            raise ValueError(f"{index.ntotal} vectors for {len(self.keys)} keys")
        self._index, self._rows = index, _stored_rows(index)
        self._places = {key: place for place, key in enumerate(self.keys)}

    def search(self, query: NDArray[Any], k: int, among: Collection[str] | None = None) -> list[VectorHit]:
        """The k keys of highest cosine with a query of (size,), best first, ties by key.

        Scores are worked out again in float64, so that equal vectors have equal scores and the order, also at
        the end of the list, depends only on them. `among` admits only these keys; those that are not in
        the index are passed over. A k beyond the index gives all. Raises UsageError for k below 1 and for a
        query of another size, with a value that is not finite, or zero.
        """
        import numpy as np

        unit = _unit_query(query, self.size)
        if k < 1:
            raise UsageError(f"The number of neighbours must be at least 1, not {k}.")
        rows = None
        if among is not None:
            rows = np.array(
                sorted({self._places[key] for key in among if key in self._places}), dtype=np.int64
            )
        total = len(self.keys) if rows is None else len(rows)
        if not total:
            return []
        candidates = self._candidates(unit.astype(np.float32), min(k, total), rows)
        parts = (candidates[start : start + _ROWS] for start in range(0, len(candidates), _ROWS))
        scores = np.concatenate([cosines(self._rows[part], unit) for part in parts])
        order = np.lexsort((candidates, -scores))[:k]
        return [VectorHit(self.keys[candidates[n]], float(scores[n])) for n in order]

    def _candidates(
        self, query: NDArray[np.float32], k: int, among: NDArray[np.int64] | None
    ) -> NDArray[np.int64]:
        """Rows that hold the k best: all whose float32 score is too near the k-th one to be ruled out."""
        import numpy as np

        if among is not None and len(among) <= _FEW:
            near = self._rows[among] @ query
            few: NDArray[np.int64] = among[near >= np.partition(near, -k)[-k] - rounding(self.size)]
            return few
        total = len(self.keys) if among is None else len(among)
        count = k + _MARGIN
        while True:
            count = min(count, total)
            scores, rows = self._nearest(query, count, among)
            if count == total or scores[-1] < scores[k - 1] - rounding(self.size):
                return rows
            count *= 2  # the tie goes on

    def _nearest(
        self, query: NDArray[np.float32], count: int, among: NDArray[np.int64] | None
    ) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
        """The results of FAISS: scores, best first, and rows, both of (wanted,)."""
        import numpy as np

        with _faiss() as faiss:
            selected = None
            if among is not None:
                admitted = np.zeros(len(self.keys), dtype=bool)
                admitted[among] = True
                bits = faiss.IDSelectorBitmap(np.packbits(admitted, bitorder="little"))
                selected = faiss.SearchParameters(sel=bits)
            scores, rows = self._index.search(query[None], count, params=selected)
        return scores[0], rows[0]


def open_index(folder: Path, space: Space, source: VectorSource) -> VectorIndex:
    """The index of a space over all vectors of the source, from the cache in the folder where that fits.

    Else it is built and written, file and manifest each by one rename; where the folder cannot be written to,
    the log has a warning and the index works from memory. It compares with every vector and is exact.
    Measured on one thread of a busy machine, ten neighbours: of 20,000 x 1,024 that takes 4 to 12 ms, of
    100,000 x 384 15 ms.

    Raises CatalogError for a vector that is not finite or has another size, by its key, and where the source
    gives more or fewer vectors than keys; ValueError for keys that are not sorted and unique.
    """

    def read(file: BinaryIO, skipped: Sequence[str]) -> VectorIndex:
        with _faiss() as faiss:
            return VectorIndex(keys, skipped, faiss.read_index(faiss.PyCallbackIOReader(file.read)))

    keys = _check_keys(source)
    place, stamp = folder / f"{space.name}.faiss", _stamp(space, keys)
    state, _, cached = _read_cache(place, stamp, read)
    if cached is None:
        log.log(
            logging.WARNING if state == "corrupt" else logging.INFO, "%s is %s: rebuilding it", place, state
        )
        index, skipped = _build(space, keys, source)

        def write(new: Path) -> dict[str, object]:
            with new.open("wb") as file, _faiss() as faiss:
                faiss.write_index(index, faiss.PyCallbackIOWriter(file.write))
            return {"stamp": stamp, "vectors": index.ntotal, "skipped": skipped}

        write_cache(place, write)
        cached = VectorIndex(keys, skipped, index)
    return cached


def check_index(folder: Path, space: Space, source: VectorSource) -> IndexState:
    """The state of the cache of a space; the file is read only for its checksum. Writes nothing.

    A file whose manifest is missing or unreadable counts as corrupt.
    """
    place, stamp = folder / f"{space.name}.faiss", _stamp(space, _check_keys(source))
    state, vectors, _ = _read_cache(place, stamp, lambda _file, _skipped: None)
    return IndexState(state, vectors, place)


@contextlib.contextmanager
def _faiss() -> Iterator[Any]:
    """The faiss module, set to one thread inside the block: the only place that sets the number.

    A second one did not help (a search is of one query), and a forked child hangs in FAISS whose parent had
    used more (its issue 5206).
    """
    import faiss

    before = faiss.omp_get_max_threads()  # torch's number too, where both share the OpenMP library
    faiss.omp_set_num_threads(1)
    try:
        yield faiss
    finally:
        faiss.omp_set_num_threads(before)


def _one_thread_in_child() -> None:
    faiss = sys.modules.get("faiss")
    if faiss is not None:
        faiss.omp_set_num_threads(1)


# A child has none of its parent's threads, and the OpenMP library would wait for them.
os.register_at_fork(after_in_child=_one_thread_in_child)


def _stored_rows(index: Any) -> NDArray[np.float32]:
    """The rows of an index as a read-only view of (vectors, size)."""
    import numpy as np

    if not index.ntotal:
        return np.empty((0, index.d), dtype=np.float32)
    with _faiss() as faiss:
        rows: NDArray[np.float32] = faiss.rev_swig_ptr(index.get_xb(), index.ntotal * index.d)
    rows.flags.writeable = False
    return rows.reshape(index.ntotal, index.d)


def _unit_query(query: NDArray[Any], size: int) -> NDArray[np.float64]:
    import numpy as np

    vector = np.asarray(query, dtype=np.float64)
    if vector.shape != (size,):
        raise UsageError(f"The query must be one vector of {size} numbers, not of shape {vector.shape}.")
    length = np.linalg.norm(vector)
    if not np.isfinite(length) or length == 0:
        raise UsageError("The query must be finite and not zero.")
    unit: NDArray[np.float64] = vector / length
    return unit


def _check_keys(source: VectorSource) -> Sequence[str]:
    keys = source.keys()
    if any(left >= right for left, right in pairwise(keys)):
        raise ValueError("the keys of a vector source must be sorted and unique")
    return keys


def _stamp(space: Space, keys: Sequence[str]) -> str:
    """The sha256 of everything that determines an index."""
    digest = hashlib.sha256(json.dumps([_FORMAT, asdict(space), "cosine", "flat"], sort_keys=True).encode())
    for key in keys:
        digest.update(b"\n" + json.dumps(key).encode())
    return digest.hexdigest()


def _build(space: Space, keys: Sequence[str], source: VectorSource) -> tuple[Any, list[str]]:
    """A new index over the vectors of all keys, and the keys left out because their vector is zero."""
    import numpy as np

    skipped: list[str] = []
    done = 0
    with _faiss() as faiss:
        index = faiss.IndexFlatIP(space.size)
        for block in source.vectors(keys) if keys else ():
            of, done = keys[done : done + len(block)], done + len(block)
            if len(of) < len(block):
                break
            lengths = _lengths(block, of, space)
            skipped += [key for key, length in zip(of, lengths, strict=True) if length == 0]
            nonzero = lengths > 0
            index.add(np.ascontiguousarray(block[nonzero] / lengths[nonzero, None], dtype=np.float32))
    if done != len(keys):
        raise CatalogError(f"The {space.name} vectors changed while they were read: run the command again.")
    return index, skipped


def _lengths(block: NDArray[np.float32], keys: Sequence[str], space: Space) -> NDArray[np.float64]:
    """The norms of a block's rows; raises CatalogError for rows that cannot be indexed."""
    import numpy as np

    if block.ndim != 2 or block.shape[1] != space.size:
        wrong, why = keys[0], f"does not have {space.size} numbers"
    else:
        lengths: NDArray[np.float64] = np.sqrt(np.square(block, dtype=np.float64).sum(axis=1))
        finite = np.isfinite(lengths)
        if finite.all():
            return lengths
        wrong, why = keys[int(np.argmin(finite))], "is not finite"
    raise CatalogError(f"The {space.name} vector of {wrong} {why}: crawl it again.")


_Read = Callable[[BinaryIO, Sequence[str]], "VectorIndex | None"]


def _read_cache(place: Path, stamp: str, read: _Read) -> tuple[State, int, VectorIndex | None]:
    """A cache's state, its number of vectors, and the result of `read` for valid bytes."""
    if not place.is_file():
        return "missing", 0, None
    try:
        facts = read_facts(place)
        if facts["stamp"] != stamp:
            return "stale", int(facts["vectors"]), None
        with open_cache(place, facts) as file:
            return "current", int(facts["vectors"]), read(file, facts["skipped"])
    except (*DAMAGES, RuntimeError):
        return "corrupt", 0, None
