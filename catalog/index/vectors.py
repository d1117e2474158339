"""Nearest vectors by cosine: FAISS as a cache over vectors that live in the database.

A space has these files in the folder `index/` of the data folder: `NAME.faiss`, memory-mapped, with unit
vectors in the order of their keys; `NAME.keys`; `NAME.tail`, the vectors that came later; beyond
`MOST_FLAT` vectors `NAME.rows`; and `NAME.json`, written last, with the token of what was indexed, the
sha256 of each file, and the size, dates and inode at which it had that sha256. A file is read for its
sha256 only where these differ.

An index of another token compares the versions of the parts of its keys with those in `NAME.versions`, and
the vectors of the parts that changed with its own: new and changed vectors are appended to the tail, vanished
ones are passed over, and the index is built again when both come to more than a tenth of it. Up to
`MOST_FLAT` vectors are compared one by one, which is exact; more are found in lists of 8-bit codes (IVF,
SQ8), and their scores worked out again from the float32 rows. This is the only module that imports faiss.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import logging
import math
import mmap
import os
import re
import sys
from bisect import bisect_left, bisect_right
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import cached_property
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, Protocol, overload

from catalog.errors import CatalogError, StorageError, UsageError
from catalog.files import (
    DAMAGES,
    compare_file,
    file_facts,
    lock_cache,
    read_facts,
    replace_file,
    write_facts,
)
from catalog.fingerprints import cosines, rounding

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

log = logging.getLogger(__name__)

State = Literal["current", "missing", "stale", "corrupt"]
IndexKind = Literal["flat", "ivf"]
KINDS: tuple[IndexKind, ...] = ("flat", "ivf")
# More vectors are found in lists of codes. Measured: a flat search takes 15 ms for 100,000.
MOST_FLAT = 300_000
_FORMAT = 3
# The part of a key: its first characters. Keys begin with a digest, so that parts are of one size.
PART_LENGTH = 4
# Rows whose float64 copies are held at once, and those that are multiplied at once.
_ROWS = 1024
_BLOCK = 1 << 16
# Up to this many rows are copied and multiplied; more use a selector.
_FEW = 300
# Candidates beyond those asked for, so that a tie at the end is seen.
_MARGIN = 16
# Of lists of codes: how many are searched, and how many candidates have their scores worked out again, at
# least.
_PROBES, _RESCORED, _PER_LIST = 16, 200, 64
# Keys of a part are looked up in an index of so many times more keys than parts; else all keys are read.
_PER_PART = 32
# The part of an index that new and vanished vectors may come to.
_PART_CHANGED = 10


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

    def token(self) -> str:
        """A text that differs whenever a version does; quick."""
        ...

    def versions(self) -> Mapping[str, int]:
        """The version of each part, the first `PART_LENGTH` characters of keys: another one whenever a key of
        the part came, went or got another vector.
        """
        ...

    def keys(self, parts: Collection[str] | None = None) -> Sequence[str]:
        """All keys, or those of some parts, sorted and unique; without line ends."""
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

    `vectors` is the number in a current or stale file, else 0; `path` is the path of the file. `kind` is
    the type of a current index, and `recall` the part of the ten nearest of some vectors that it finds.
    """

    state: State
    vectors: int
    path: Path
    kind: IndexKind | None = None
    recall: float | None = None


class _Keys(Sequence[str]):
    """Keys in one run of bytes, each with a line end; `count` of them, where that is known."""

    def __init__(self, data: mmap.mmap | bytes, count: int | None = None) -> None:
        self._data, self._ends = data, _line_ends(data, count)

    def __len__(self) -> int:
        return len(self._ends)

    @overload
    def __getitem__(self, place: int) -> str: ...
    @overload
    def __getitem__(self, place: slice) -> list[str]: ...
    def __getitem__(self, place: int | slice) -> str | list[str]:
        if isinstance(place, slice):
            return [self[n] for n in range(*place.indices(len(self)))]
        start = int(self._ends[place - 1]) + 1 if place else 0
        return self._data[start : int(self._ends[place])].decode()

    def all(self) -> list[str]:
        """All keys at once."""
        return self._data[:].decode().split("\n")[:-1]


def _line_ends(data: mmap.mmap | bytes, count: int | None) -> Sequence[int] | NDArray[np.int64]:
    """The places of the line ends; of a known number of lines of one length, which most files have, these are
    looked at alone.
    """
    import numpy as np

    if not len(data):
        return ()
    letters, first = np.frombuffer(data, dtype=np.uint8), data.find(b"\n")
    width = first + 1
    if count is not None and count * width == len(data) and (letters[first::width] == ord("\n")).all():
        return range(first, len(data), width)
    return np.flatnonzero(letters == ord("\n"))


class VectorIndex:
    """The vectors of one space, L2-normalised in float32; made by `open_index`.

    `main` holds those of `keys`, in the order of the keys, and `rows` their float32 rows; `tail` those of
    `tail_keys`. Rows in `removed` are no longer there. `skipped` are keys whose vector is zero and has no
    cosine.
    """

    def __init__(
        self,
        keys: _Keys,
        main: Any,
        rows: NDArray[np.float32],
        *,
        tail_keys: Sequence[str] = (),
        tail: NDArray[np.float32] | None = None,
        removed: Collection[int] = (),
        skipped: Sequence[str] = (),
    ) -> None:
        import numpy as np

        if len(keys) != main.ntotal or len(rows) != len(keys):
            raise ValueError(f"{main.ntotal} vectors for {len(keys)} keys")
        self.size, self.skipped = int(main.d), tuple(skipped)
        self._main_keys, self._tail_keys, self._main, self._rows = keys, tail_keys, main, rows
        self._tail = np.empty((0, self.size), dtype=np.float32) if tail is None else tail
        self._removed = np.array(sorted(removed), dtype=np.int64)
        self.count = len(keys) + len(tail_keys) - len(self._removed)

    @cached_property
    def keys(self) -> tuple[str, ...]:
        """The keys that can be found, sorted."""
        gone = set(self._removed.tolist())
        every = self._main_keys.all() + list(self._tail_keys)
        return tuple(sorted(key for row, key in enumerate(every) if row not in gone))

    @property
    def kind(self) -> IndexKind:
        """The type of the index."""
        return "ivf" if hasattr(self._main, "nprobe") else "flat"

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
        allowed = None if among is None else np.array(sorted(self._rows_of(among)), dtype=np.int64)
        total = self.count if allowed is None else len(allowed)
        if not total:
            return []
        candidates = self._candidates(unit.astype(np.float32), min(k, total), allowed, total)
        scores = self._exact_scores(candidates, unit)
        keys = [self._key(row) for row in candidates.tolist()]
        # Those of the file are in the order of their keys already.
        by_key = np.array(sorted(range(len(keys)), key=keys.__getitem__), dtype=np.int64)
        order = by_key[np.argsort(-scores[by_key], kind="stable")][:k]
        return [VectorHit(keys[n], float(scores[n])) for n in order.tolist()]

    def recall(self, queries: int = 20, k: int = 10) -> float:
        """The part of the k nearest of some vectors that `search` finds, by comparing with every vector."""
        import numpy as np

        if self.kind == "flat" or not self.count:
            return 1.0
        found = expected = 0
        for row in np.linspace(0, len(self._main_keys) - 1, queries, dtype=np.int64).tolist():
            query = self._rows[row].astype(np.float64)
            unit = (query / np.linalg.norm(query)).astype(np.float32)
            live = self._live_rows()
            exact = self._scan(unit, min(k, len(live)), live)
            best = {self._key(at) for at in exact[np.argsort(-self._exact_scores(exact, query))][:k].tolist()}
            found += len(best & {hit.key for hit in self.search(query, k)})
            expected += len(best)
        return found / expected

    def rows_in_parts(self, parts: Collection[str] | None) -> dict[str, int]:
        """The row of each key that can be found, of some parts or of all."""
        main, removed = self._main_keys, set(self._removed.tolist())
        rows: dict[str, int] = {}
        if parts is not None and len(parts) * _PER_PART < len(main):
            for part in parts:
                start = bisect_left(main, part)
                end = bisect_right(main, part, start, key=lambda key: key[:PART_LENGTH])
                rows |= {main[place]: place for place in range(start, end)}
        else:
            rows = {key: place for place, key in enumerate(main.all()) if _in_parts(key, parts)}
        # A key whose vector changed has its newest row at the end of the tail.
        tail = enumerate(self._tail_keys, len(main))
        rows |= {key: place for place, key in tail if _in_parts(key, parts)}
        return {key: place for key, place in rows.items() if place not in removed}

    def equal_rows(self, rows: NDArray[np.int64], units: NDArray[np.float32]) -> NDArray[np.bool_]:
        """Which of these vectors are those of the rows; a row of -1 is none."""
        import numpy as np

        order = np.argsort(rows, kind="stable")
        order = order[rows[order] >= 0]
        is_equal = np.zeros(len(rows), dtype=np.bool_)
        is_equal[order] = (self._vectors(rows[order]) == units[order]).all(axis=1)
        return is_equal

    def _key(self, row: int) -> str:
        split = len(self._main_keys)
        return self._main_keys[row] if row < split else self._tail_keys[row - split]

    @cached_property
    def _place_of_key(self) -> dict[str, int]:
        return {key: row for row, key in enumerate([*self._main_keys.all(), *self._tail_keys])}

    def _rows_of(self, keys: Collection[str]) -> set[int]:
        """The rows of those of these keys that can be found."""
        if len(keys) > len(self._main_keys) // 16:
            rows = {place for key in keys if (place := self._place_of_key.get(key)) is not None}
        else:
            tail = {key: row for row, key in enumerate(self._tail_keys, len(self._main_keys))}
            rows = {place for key in keys if (place := self._look_up(key, tail)) is not None}
        return rows.difference(self._removed.tolist())

    def _look_up(self, key: str, tail: Mapping[str, int]) -> int | None:
        place = bisect_left(self._main_keys, key)
        if place < len(self._main_keys) and self._main_keys[place] == key:
            return place if not self._removed.size or place not in self._removed else tail.get(key)
        return tail.get(key)

    def _live_rows(self) -> NDArray[np.int64]:
        import numpy as np

        every = np.arange(len(self._main_keys) + len(self._tail_keys))
        return np.setdiff1d(every, self._removed, assume_unique=True)

    def _vectors(self, rows: NDArray[np.int64]) -> NDArray[np.float32]:
        """The float32 rows of main and tail, in ascending order of rows."""
        import numpy as np

        split = len(self._main_keys)
        if not self._tail_keys:
            plain: NDArray[np.float32] = self._rows[rows]
            return plain
        parts = (self._rows[rows[rows < split]], self._tail[rows[rows >= split] - split])
        joined: NDArray[np.float32] = np.concatenate(parts)
        return joined

    def _exact_scores(self, rows: NDArray[np.int64], unit: NDArray[np.float64]) -> NDArray[np.float64]:
        """Float64 cosines of ascending rows."""
        import numpy as np

        parts = (rows[start : start + _ROWS] for start in range(0, len(rows), _ROWS))
        return np.concatenate([cosines(self._vectors(part), unit) for part in parts])

    def _candidates(
        self, query: NDArray[np.float32], k: int, allowed: NDArray[np.int64] | None, total: int
    ) -> NDArray[np.int64]:
        """Rows that hold the k best, ascending: all whose float32 score is too near the k-th one to be
        ruled out.
        """
        import numpy as np

        if allowed is not None and len(allowed) <= _FEW:
            return self._scan(query, k, allowed)
        if self.kind == "ivf" and 8 * k > total:
            return self._scan(query, k, self._live_rows() if allowed is None else allowed)
        live = np.arange(len(self._tail_keys)) + len(self._main_keys)
        tail_rows = np.setdiff1d(live, self._removed) if allowed is None else np.intersect1d(live, allowed)
        tail_scores = self._tail[tail_rows - len(self._main_keys)] @ query
        main_total = total - len(tail_rows)
        count = max(k + _MARGIN, _RESCORED if self.kind == "ivf" else 0)
        while True:
            count = min(count, main_total)
            scores, rows = self._nearest(query, count, allowed)
            scores, rows = np.concatenate([scores, tail_scores]), np.concatenate([rows, tail_rows])
            if len(rows) < k:  # too few in the lists that were searched
                return self._scan(query, k, self._live_rows() if allowed is None else allowed)
            least = np.partition(scores, -k)[-k] - rounding(self.size)
            if self.kind == "ivf" or count == main_total or scores[count - 1] < least:
                kept = rows if self.kind == "ivf" else rows[scores >= least]
                return np.sort(kept)
            count *= 2  # the tie goes on

    def _scan(self, query: NDArray[np.float32], k: int, rows: NDArray[np.int64]) -> NDArray[np.int64]:
        """The rows among some, ascending, that can be of the k best, by comparing with each."""
        import numpy as np

        parts = (rows[start : start + _BLOCK] for start in range(0, len(rows), _BLOCK))
        near = np.concatenate([self._vectors(part) @ query for part in parts])
        kept: NDArray[np.int64] = rows[near >= np.partition(near, -k)[-k] - rounding(self.size)]
        return kept

    def _nearest(
        self, query: NDArray[np.float32], count: int, allowed: NDArray[np.int64] | None
    ) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
        """What FAISS finds of the rows of the file: scores, best first, and rows, both of at most
        (count,).
        """
        import numpy as np

        if count < 1:
            return np.empty(0, dtype=np.float32), np.empty(0, dtype=np.int64)
        with _faiss() as faiss:
            selector = None
            if allowed is not None or len(self._removed):
                admitted = np.ones(len(self._main_keys), dtype=bool)
                if allowed is not None:
                    admitted[:] = False
                    admitted[allowed[allowed < len(admitted)]] = True
                admitted[self._removed[self._removed < len(admitted)]] = False
                bits = np.packbits(admitted, bitorder="little")
                selector = faiss.IDSelectorBitmap(bits)
            if self.kind == "ivf":
                parameters = faiss.SearchParametersIVF(sel=selector, nprobe=min(_PROBES, self._main.nlist))
            else:
                parameters = faiss.SearchParameters(sel=selector) if selector else None
            scores, rows = self._main.search(query[None], count, params=parameters)
        there = rows[0] >= 0
        return scores[0][there], rows[0][there]


def open_index(
    folder: Path, space: Space, source: VectorSource, kind: IndexKind | None = None
) -> VectorIndex:
    """The index of a space over all vectors of the source, from the cache in the folder as far as that fits.

    Else it is built and written; where the folder cannot be written to, the log has a warning and the index
    works from memory. Without a `kind`, the one that the cache was forced to have, else that of its size.

    Raises CatalogError for a vector that is not finite or has another size, by its key, and where the source
    gives more or fewer vectors than keys; ValueError for keys that are not sorted and unique.
    """
    files = _Files(folder, space)
    token = source.token()
    state, facts = files.look(trusting=True)
    if state == "current" and facts["token"] == token and kind in (None, facts["forced"]):
        index = files.open(facts)
        if index is not None:
            return index
        state = "corrupt"
    # Read before the keys and vectors that they stand for.
    now = _Moment(token, source.versions())
    forced = kind or (facts.get("forced") if state == "current" else None)
    if state == "current" and kind in (None, facts["forced"]):
        index = files.extend(facts, now, source)
        if index is not None:
            return index
        state = "stale"
    level = logging.WARNING if state == "corrupt" else logging.INFO
    log.log(level, "%s is %s: rebuilding it", files.main, state)
    return files.build(now, _check_keys(source), source, forced)


def check_index(folder: Path, space: Space, source: VectorSource, *, recall: bool = False) -> IndexState:
    """The state of the cache of a space, by reading all its files and comparing all keys and vectors. Writes
    nothing.

    With `recall`, that of a current index is measured. A file whose manifest is missing or unreadable
    counts as corrupt.
    """
    files, keys = _Files(folder, space), _check_keys(source)
    state, facts = files.look(trusting=False)
    if state != "current":
        return IndexState(state, 0, files.main)
    index = files.open(facts)
    if index is None:
        return IndexState("corrupt", 0, files.main)
    if facts["token"] != source.token() or files.differences(index, None, keys, source, most=0) is None:
        return IndexState("stale", index.count, files.main)
    return IndexState("current", index.count, files.main, index.kind, index.recall() if recall else None)


def remove_index(folder: Path, space: Space) -> None:
    """Removes the files of a space; raises StorageError."""
    files = _Files(folder, space)
    try:
        for path in (files.main.with_suffix(".json"), files.main, *files.others):
            path.unlink(missing_ok=True)
    except OSError as error:
        raise StorageError(f"The index {files.main} cannot be removed: {error.strerror}.") from error


@dataclass(frozen=True)
class _Moment:
    """The token and the versions of a source, read before its keys and vectors."""

    token: str
    versions: Mapping[str, int]


@dataclass(frozen=True)
class _Differences:
    """What some parts of an index lack: keys with their vectors, in blocks, and keys whose vector is zero;
    and the rows that they have too much. A vector that changed is both.
    """

    keys: list[str]
    blocks: list[NDArray[np.float32]]
    zeros: list[str]
    rows: set[int]


class _Files:
    """The files of a space."""

    def __init__(self, folder: Path, space: Space) -> None:
        self.space, self.main = space, folder / f"{space.name}.faiss"
        self.others = tuple(folder / f"{space.name}.{end}" for end in ("keys", "rows", "tail", "versions"))
        self.names, self.rows, self.tail, self.versions = self.others

    def look(self, *, trusting: bool) -> tuple[State, dict[str, Any]]:
        """Whether the files are what their facts say, and these; "current" says nothing of the token.

        With `trusting`, a file that did not change since it had its sha256 is not read.
        """
        if not self.main.is_file():
            return "missing", {}
        try:
            facts = read_facts(self.main)
            if [facts["format"], facts["space"]] != [_FORMAT, asdict(self.space)]:
                return "stale", {}
            if facts.pop("seal") != _seal(facts):
                return "corrupt", {}
            files = facts["files"]
            if not {self.main.name, self.names.name, self.versions.name} <= files.keys():
                return "corrupt", {}
            now = {
                name: compare_file(self.main.with_name(name), known, trusting=trusting)
                for name, known in files.items()
            }
        except (*DAMAGES, AttributeError):
            return "corrupt", {}
        if None in now.values():
            return "corrupt", {}
        if trusting and now != files:
            self._rewrite(facts, {"files": now})
        return "current", {**facts, "files": now}

    def open(self, facts: Mapping[str, Any]) -> VectorIndex | None:
        """The index in the files; None where they cannot be read."""
        import numpy as np

        try:
            with _faiss() as faiss:
                main = faiss.read_index(str(self.main), faiss.IO_FLAG_MMAP_IFC)
            with self.names.open("rb") as file:
                named = self.names.stat().st_size
                names = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) if named else b""
                keys = _Keys(names, main.ntotal)
            rows = self._float_rows(main)
            tail = None
            if facts["tail_keys"]:
                shape = (len(facts["tail_keys"]), self.space.size)
                tail = np.memmap(self.tail, dtype="<f4", mode="r", shape=shape)
            index = VectorIndex(
                keys,
                main,
                rows,
                tail_keys=facts["tail_keys"],
                tail=tail,
                removed=facts["removed"],
                skipped=facts["skipped"],
            )
            # Another process may have replaced one of the files just now.
            files = {self.main.with_name(name): known for name, known in facts["files"].items()}
            same = all(compare_file(path, known, trusting=True) for path, known in files.items())
            return index if same else None
        except (*DAMAGES, RuntimeError):
            return None

    def _float_rows(self, main: Any) -> NDArray[np.float32]:
        import numpy as np

        if not hasattr(main, "nprobe"):
            return _stored_rows(main)
        shape = (int(main.ntotal), self.space.size)
        rows: NDArray[np.float32] = np.memmap(self.rows, dtype="<f4", mode="r", shape=shape)
        return rows

    def extend(self, facts: Mapping[str, Any], now: _Moment, source: VectorSource) -> VectorIndex | None:
        """The index brought up to date; None where it must be built again, or cannot be read."""
        index = self.open(facts)
        if index is None:
            return None
        try:
            before: dict[str, int] = json.loads(self.versions.read_bytes())
        except DAMAGES:
            return None
        parts = {part for part, _ in before.items() ^ now.versions.items()}
        keys = _check_keys(source, parts)
        tail_keys, removed = list(facts["tail_keys"]), set(facts["removed"])
        most = index.count // _PART_CHANGED - len(tail_keys) - len(removed)
        found = self.differences(index, parts, keys, source, most)
        if found is None:
            return None
        skipped = {key for key in facts["skipped"] if key[:PART_LENGTH] not in parts}
        changes = {
            "tail_keys": tail_keys + found.keys,
            "removed": sorted(removed | found.rows),
            "skipped": sorted(skipped.union(found.zeros)),
        }
        is_same = changes == {name: facts[name] for name in changes}
        if not self._rewrite(facts, {"token": now.token, **changes}, found.blocks, now.versions):
            return index if is_same else None
        return self.open(read_facts(self.main))

    def differences(
        self,
        index: VectorIndex,
        parts: Collection[str] | None,
        keys: Sequence[str],
        source: VectorSource,
        most: int,
    ) -> _Differences | None:
        """What parts of the index, or all, lack of these keys of a source and have too much; None where it is
        more than `most` vectors. Raises CatalogError as `open_index` does.
        """
        import numpy as np

        stored = index.rows_in_parts(parts)
        found = _Differences([], [], [], set(stored.values()).difference(map(stored.get, keys)))
        if len(found.rows) > most:
            return None
        for block_keys, units in _unit_blocks(self.space, keys, source, found.zeros):
            rows = np.array([stored.get(key, -1) for key in block_keys], dtype=np.int64)
            is_same = index.equal_rows(rows, units)
            found.keys.extend(key for key, same in zip(block_keys, is_same.tolist(), strict=True) if not same)
            found.blocks.append(units[~is_same])
            found.rows.update(rows[~is_same & (rows >= 0)].tolist())
            if len(found.keys) + len(found.rows) > most:
                return None
        found.rows.update(stored[key] for key in found.zeros if key in stored)
        return found

    def _rewrite(
        self,
        facts: Mapping[str, Any],
        changes: Mapping[str, Any],
        blocks: Iterable[NDArray[np.float32]] = (),
        versions: Mapping[str, int] | None = None,
    ) -> bool:
        """Appends vectors to the tail, and writes the versions and the facts; whether that was possible."""
        with lock_cache(self.main) as locked:
            if not locked or _digests(read_facts(self.main)) != _digests(facts):
                return False
            files = dict(facts["files"])
            if any(len(block) for block in blocks):
                end = len(facts["tail_keys"]) * 4 * self.space.size
                with self.tail.open("r+b" if end else "wb") as file:
                    file.truncate(end)
                    file.seek(end)
                    for block in blocks:
                        file.write(block.astype("<f4", copy=False).tobytes())
                    file.flush()
                    os.fsync(file.fileno())
                files[self.tail.name] = file_facts(self.tail)
            if versions is not None:
                files[self.versions.name] = self._write_versions(versions)
            self._write_facts({**facts, "files": files, **changes})
            return True
        return False

    def _write_versions(self, versions: Mapping[str, int]) -> dict[str, Any]:
        with replace_file(self.versions) as new:
            new.write_text(json.dumps(versions, sort_keys=True), encoding="ascii")
        return file_facts(self.versions)

    def build(
        self, now: _Moment, keys: Sequence[str], source: VectorSource, forced: IndexKind | None
    ) -> VectorIndex:
        """A new index over the vectors of all keys, written where the folder allows."""
        facts: dict[str, Any] = {}
        if (forced or ("flat" if len(keys) <= MOST_FLAT else "ivf")) == "ivf":
            with lock_cache(self.main) as locked:
                if locked:
                    with replace_file(self.rows) as new:
                        main, skipped = _ivf_index(self.space, keys, source, new)
                    facts = self._write(main, now, forced, keys, skipped)
            if facts and (index := self.open(facts)) is not None:
                return index
        main, rows, skipped = _flat_index(self.space, keys, source)
        with lock_cache(self.main) as locked:
            if locked:
                facts = self._write(main, now, forced, keys, skipped)
        if facts and (index := self.open(facts)) is not None:
            return index
        return VectorIndex(_keys_of(_without(keys, skipped)), main, rows, skipped=skipped)

    def _write(
        self, main: Any, now: _Moment, forced: IndexKind | None, keys: Sequence[str], skipped: list[str]
    ) -> dict[str, Any]:
        """Writes the files of a new index, the facts last; returns these. Raises OSError, RuntimeError."""
        with replace_file(self.main) as new, _faiss() as faiss:
            faiss.write_index(main, str(new))
        with replace_file(self.names) as new:
            new.write_bytes("".join(f"{key}\n" for key in _without(keys, skipped)).encode())
        self.tail.unlink(missing_ok=True)
        paths = [self.main, self.names]
        if hasattr(main, "nprobe"):
            paths.append(self.rows)
        else:
            self.rows.unlink(missing_ok=True)
        facts = {
            "format": _FORMAT,
            "space": asdict(self.space),
            "forced": forced,
            "token": now.token,
            "skipped": skipped,
            "tail_keys": [],
            "removed": [],
            "files": {
                **{path.name: file_facts(path) for path in paths},
                self.versions.name: self._write_versions(now.versions),
            },
        }
        self._write_facts(facts)
        return facts

    def _write_facts(self, facts: Mapping[str, Any]) -> None:
        write_facts(self.main, {**facts, "seal": _seal(facts)})


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
    """The rows of a flat index as a read-only view of (vectors, size)."""
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


def _in_parts(key: str, parts: Collection[str] | None) -> bool:
    return parts is None or key[:PART_LENGTH] in parts


def _check_keys(source: VectorSource, parts: Collection[str] | None = None) -> Sequence[str]:
    keys = source.keys(parts)
    if any(left >= right for left, right in pairwise(keys)):
        raise ValueError("the keys of a vector source must be sorted and unique")
    return keys


def _seal(facts: Mapping[str, Any]) -> str:
    """The sha256 of the facts: a file of other keys, or without one that was removed, would give wrong
    answers.
    """
    return hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()


def _digests(facts: Mapping[str, Any]) -> dict[str, str]:
    return {name: known["sha256"] for name, known in facts["files"].items()}


def _without(keys: Sequence[str], skipped: Collection[str]) -> Iterable[str]:
    left_out = set(skipped)
    return (key for key in keys if key not in left_out)


def _keys_of(keys: Iterable[str]) -> _Keys:
    return _Keys("".join(f"{key}\n" for key in keys).encode())


def _flat_index(
    space: Space, keys: Sequence[str], source: VectorSource
) -> tuple[Any, NDArray[np.float32], list[str]]:
    """A new index over the vectors of all keys, its rows, and the keys left out because their vector is
    zero.
    """
    skipped: list[str] = []
    with _faiss() as faiss:
        index = faiss.IndexFlatIP(space.size)
    for _, block in _unit_blocks(space, keys, source, skipped):
        index.add(block)
    return index, _stored_rows(index), skipped


def _ivf_index(
    space: Space, keys: Sequence[str], source: VectorSource, rows_file: Path
) -> tuple[Any, list[str]]:
    """An index of lists of codes over the vectors of all keys, whose float32 rows are written to a file."""
    import numpy as np

    skipped: list[str] = []
    count = 0
    with rows_file.open("wb") as file:
        for _, block in _unit_blocks(space, keys, source, skipped):
            file.write(block.astype("<f4", copy=False).tobytes())
            count += len(block)
    lists = max(1, math.isqrt(count))
    with _faiss() as faiss:
        quantizer = faiss.IndexFlatIP(space.size)
        index = faiss.IndexIVFScalarQuantizer(
            quantizer, space.size, lists, faiss.ScalarQuantizer.QT_8bit, faiss.METRIC_INNER_PRODUCT
        )
        if not count:
            return index, skipped
        rows: NDArray[np.float32] = np.memmap(rows_file, dtype="<f4", mode="r", shape=(count, space.size))
        sample = np.linspace(0, count - 1, min(count, _PER_LIST * lists), dtype=np.int64)
        index.cp.seed, index.cp.min_points_per_centroid = 1, 1
        index.train(np.ascontiguousarray(rows[sample]))
        for start in range(0, count, _BLOCK):
            index.add(np.ascontiguousarray(rows[start : start + _BLOCK]))
    return index, skipped


def _unit_blocks(
    space: Space, keys: Sequence[str], source: VectorSource, skipped: list[str]
) -> Iterator[tuple[list[str], NDArray[np.float32]]]:
    """The vectors of keys in their order, of length 1, in blocks with their keys; keys whose vector is zero
    are added to `skipped`.
    """
    import numpy as np

    done = 0
    for block in source.vectors(keys) if keys else ():
        of, done = keys[done : done + len(block)], done + len(block)
        if len(of) < len(block):
            break
        lengths = _lengths(block, of, space)
        skipped += [key for key, length in zip(of, lengths, strict=True) if length == 0]
        nonzero = lengths > 0
        units = np.ascontiguousarray(block[nonzero] / lengths[nonzero, None], dtype=np.float32)
        yield [key for key, length in zip(of, lengths, strict=True) if length > 0], units
    if done != len(keys):
        raise CatalogError(f"The {space.name} vectors changed while they were read: run the command again.")


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
