"""The vector index as it grows: seconds to build and load it, milliseconds to search it; all pairs of 1,000.

Run as `python -m tools.bench.index [--large]`. Vectors are generated, in clusters of ten, and are
already in memory, so that building does not count the time to read them from a database.

`python -m tools.bench.index --count N --type ivf` measures one large index instead, in processor seconds:
vectors in families as in a generated catalog, made again for each block; building counts their making. The
recall is that of `loradex index check`.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import fields
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from catalog.adapters import StoredAdapter
from catalog.fingerprints import duplicates, near_pairs
from catalog.index.vectors import KINDS, IndexKind, Space, VectorHit, VectorIndex, open_index
from tools.generated_catalog import CHECKPOINTS, DIRECTIONS, FAMILY_PART, SEEDS

SIZE = 1024
CLUSTER = 10
BLOCK = 1000
QUERIES = 30
NEIGHBOURS = 10
SPACE = Space("delta", "1", SIZE)
COLUMNS = ("vectors", "build s", "load s", "MiB", "p50 ms", "a tenth, ms")
Result = TypeVar("Result")


class NumberedVectors:
    """A source of vectors with numbers for keys, which never changes."""

    def __init__(self, count: int) -> None:
        self.names = [f"{number:07d}" for number in range(count)]

    def token(self) -> str:
        """The number of vectors."""
        return str(len(self.names))

    def versions(self) -> Mapping[str, int]:
        """One part for all vectors."""
        return {"": len(self.names)}

    def keys(self, parts: Collection[str] | None = None) -> Sequence[str]:
        """The numbers of the vectors, as texts."""
        return self.names


class Generated(NumberedVectors):
    """A source of vectors in clusters, the same for the same count."""

    def __init__(self, count: int) -> None:
        super().__init__(count)
        generator = np.random.default_rng(0)
        centres = generator.standard_normal((count // CLUSTER, SIZE), dtype=np.float32)
        self.values = np.repeat(centres, CLUSTER, axis=0)
        self.values += generator.standard_normal((count, SIZE), dtype=np.float32)

    def vectors(self, keys: Sequence[str]) -> Iterator[NDArray[np.float32]]:
        """All of them, in blocks of 500."""
        for start in range(0, len(keys), 500):
            yield self.values[start : start + 500]


class Families(NumberedVectors):
    """A source of `count` vectors as sketches are: families around a few directions, of one to many members
    that are two seeds or checkpoints of a run. Each block of 1,000 is made when it is asked for.
    """

    def __init__(self, count: int) -> None:
        super().__init__(count)
        self._directions = _unit(np.random.default_rng(0).standard_normal((DIRECTIONS, SIZE)))

    def vectors(self, keys: Sequence[str]) -> Iterator[NDArray[np.float32]]:
        """All of them, in blocks of 1,000."""
        for start in range(0, len(keys), BLOCK):
            yield self.block(start)[: len(keys) - start]

    def block(self, start: int) -> NDArray[np.float32]:
        """The vectors from one that begins a block."""
        generator = np.random.default_rng(start + 1)
        families = int(FAMILY_PART * BLOCK)
        weights = 1 / (np.arange(families) + 10.0)
        members = generator.choice(families, size=BLOCK - families, p=weights / weights.sum())
        family = generator.permutation(np.concatenate([np.arange(families), members]))
        centres = generator.standard_normal((families, SIZE), dtype=np.float32) / SIZE**0.5
        centres = _unit(0.5 * self._directions[np.arange(families) % DIRECTIONS] + centres)
        noise = generator.standard_normal((BLOCK, SIZE), dtype=np.float32) / SIZE**0.5
        ratio = np.where(family % 2, CHECKPOINTS, SEEDS)[:, None]
        rows: NDArray[np.float32] = (centres[family] + ratio * noise).astype(np.float32)
        return rows


def _unit(rows: NDArray[Any]) -> NDArray[np.float32]:
    unit: NDArray[np.float32] = (rows / np.linalg.norm(rows, axis=1, keepdims=True)).astype(np.float32)
    return unit


def report_large(count: int, kind: IndexKind) -> None:
    """Prints what one large index costs."""
    source = Families(count)
    say("vectors", "type", "build cpu s", "MiB", "open cpu ms", "p50 cpu ms", "recall@10")
    with tempfile.TemporaryDirectory() as place:

        def load_index() -> VectorIndex:
            return open_index(Path(place), SPACE, source, kind)

        _, build = cpu_seconds(load_index)
        index, load = cpu_seconds(load_index)
        size = sum(file.stat().st_size for file in Path(place).iterdir()) / 2**20
        queries = source.block(BLOCK * (count // BLOCK // 2))[:QUERIES]
        times = [cpu_seconds(partial(index.search, query, NEIGHBOURS))[1] for query in queries]
        say(
            f"{count:,}",
            index.kind,
            f"{build:.0f}",
            f"{size:.0f}",
            f"{1000 * load:.0f}",
            f"{1000 * statistics.median(times):.1f}",
            f"{index.recall():.3f}",
        )


def cpu_seconds(work: Callable[[], Result]) -> tuple[Result, float]:
    """What the work gives, and its processor seconds."""
    began = time.process_time()
    result = work()
    return result, time.process_time() - began


def main(argv: Sequence[str] | None = None) -> None:
    """Measures and prints a table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--large", action="store_true", help="also 100,000 vectors, in 1.5 GB of memory")
    parser.add_argument("--count", type=int, help="measure one large index of so many vectors instead")
    parser.add_argument("--type", choices=KINDS, default="ivf", help="its type")
    options = parser.parse_args(argv)
    if options.count is not None:
        report_large(options.count, options.type)
        return
    say(*COLUMNS)
    for count in (1000, 20_000, 100_000) if options.large else (1000, 20_000):
        source = Generated(count)
        report(source)
    all_pairs()


def report(source: Generated) -> None:
    """Prints a line of the table."""
    with tempfile.TemporaryDirectory() as place:

        def load_index() -> VectorIndex:
            return open_index(Path(place), SPACE, source)

        _, build = time_work(load_index)
        index, load = time_work(load_index)
        size = Path(place, f"{SPACE.name}.faiss").stat().st_size / 2**20
    milliseconds = search_each(index, source, None)
    of_a_tenth = search_each(index, source, source.names[::10])
    say(
        f"{len(source.names):,}",
        f"{build:.2f}",
        f"{load:.2f}",
        f"{size:.0f}",
        f"{milliseconds:.2f}",
        f"{of_a_tenth:.2f}",
    )


def search_each(index: VectorIndex, source: Generated, among: Sequence[str] | None) -> float:
    """The median of the milliseconds of queries."""
    times = []
    for row in np.random.default_rng(1).choice(len(source.names), QUERIES, replace=False):

        def search(query: NDArray[np.float32] = source.values[row]) -> list[VectorHit]:
            return index.search(query, NEIGHBOURS, among)

        _, seconds = time_work(search)
        times.append(1000 * seconds)
    return statistics.median(times)


def all_pairs() -> None:
    """Prints how long it takes to compare 1,000 adapters with each other."""
    source = Generated(1000)
    units = source.values / np.linalg.norm(source.values, axis=1, keepdims=True)
    unknown: dict[str, Any] = dict.fromkeys(field.name for field in fields(StoredAdapter))
    unknown |= {"owner": "o", "subfolder": "", "base": "base"}
    rows = [
        StoredAdapter(**(unknown | {"repository": f"o/{name}", "delta": vector}))
        for name, vector in zip(source.names, source.values, strict=True)
    ]
    pairs, seconds = time_work(lambda: list(near_pairs(units, 0.4)))
    say_line(f"near pairs of 1,000, {len(pairs):,} found: {seconds:.3f} s")
    groups, seconds = time_work(lambda: duplicates(rows))
    say_line(f"duplicates among 1,000, {len(groups)} groups: {seconds:.3f} s")


def time_work(work: Callable[[], Result]) -> tuple[Result, float]:
    """What the work gives, and its seconds."""
    began = time.perf_counter()
    result = work()
    return result, time.perf_counter() - began


def say(*cells: str) -> None:
    """Writes a line of the table."""
    say_line("".join(f"{cell:>13}" for cell in cells))


def say_line(line: str) -> None:
    """Writes a line at once."""
    sys.stdout.write(line + "\n")
    sys.stdout.flush()


if __name__ == "__main__":
    main()
