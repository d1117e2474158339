"""Adapters with the same or nearly the same weights.

Pure: from rows to groups, no database. Groups come from a ladder of levels, the cheapest first: the same
file, the same tensors in another file, and the same update up to a cast, quantisation or rescaling.
"""

from __future__ import annotations

import math
import mmap
import os
import tempfile
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import islice
from typing import TYPE_CHECKING, Any, Literal, Protocol, TypeVar

from catalog.errors import UsageError

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

Level = Literal["file", "tensor", "delta"]
Exact = Callable[[str, str], "float | None"]


class Copy(Protocol):
    """What comparing needs to know of an adapter: a `StoredAdapter`, or a row of a few columns of it."""

    @property
    def adapter(self) -> str: ...
    @property
    def key(self) -> str: ...
    @property
    def base(self) -> str | None: ...
    @property
    def weights_digest(self) -> str | None: ...
    @property
    def tensor_digest(self) -> str | None: ...
    @property
    def norm(self) -> float | None: ...
    @property
    def scaling(self) -> float | None: ...


CopyType = TypeVar("CopyType", bound=Copy)
# The delta vectors of some adapters that have one, each with its place among these, in any order; of one key
# there is one vector.
Deltas = Callable[[Sequence[Any]], Iterable[tuple[int, "NDArray[np.float32]"]]]

LEVELS: tuple[Level, ...] = ("file", "tensor", "delta")
_DIGESTS = {"file": "weights_digest", "tensor": "tensor_digest"}
# Cosines of updates. From the first on, sketches are worth an exact look; from the next two on, the exact
# value, or the sketch alone, means the same weights (a cast leaves 1 - 2e-6, int8 by rows 1 - 6e-5).
CANDIDATE = 0.99
SAME_EXACT = 1 - 1e-4
SAME_SKETCH = 0.999
# Norms further apart than this are another scaling, not another data type.
_SAME_NORM = 1.01
_MOST_NORMS = 4
# Rows of a tile of cosines and its numbers (1 MiB), and rows and pairs that are held in float64: what the
# processor's cache holds.
_STRIP, _TILE = 256, 1 << 18
_PAIRS = 256
# Links that are held at once, or twice those that are needed.
_MOST_LINKS = 1 << 17
# The updates that are compared with all others one by one, before all pairs are compared at once.
_MOST_ASKED = 1000
# The least size of a vector's head, and the part of the cosines that heads may leave; more is multiplied in
# full.
_LEAST_HEAD, _FEW = 16, 100
# How many times longer the heads of the pairs that are left are, and rows that are looked at together.
_LONGER, _LEFT = 6, 1 << 12
# From so many vectors on cells are compared. The fewest and the most cells, and the vectors to each; how many
# of these decide where it lies, and how often; and of how many the one least like the others begins a cell.
_LEAST_DIVIDED = 1 << 15
_LEAST_CELLS, _MOST_CELLS, _ROWS_OF_CELL = 64, 512, 1 << 10
_SAMPLE_OF_CELL, _ROUNDS, _TRIED = 16, 3, 64
# Bytes of vectors that are held in memory; more lie in a temporary file.
_MOST_HELD = 1 << 30


@dataclass(frozen=True)
class Group:
    """Adapters that are duplicates of each other, sorted.

    `level` is the cheapest that holds for all members, the loosest that was needed. `cosine` is that of the
    weakest link that holds the group together, None where files and tensors do; `exact` says that no link
    rests on sketches alone. `note` names subgroups of a cheaper level, and differing scalings.
    """

    level: Level
    members: tuple[str, ...]
    cosine: float | None
    exact: bool
    note: str


@dataclass(frozen=True)
class Link:
    left: int
    right: int
    cosine: float
    exact: bool = False


def duplicates(
    copies: Iterable[Copy],
    level: str = "delta",
    exact: Exact | None = None,
    *,
    deltas: Deltas | None = None,
    kept: Collection[str] | None = None,
) -> list[Group]:
    """The groups of two and more duplicates up to a level, which includes the cheaper ones; sorted.

    At level delta, adapters of the same known base model whose sketches have a cosine of 0.99 are candidates;
    `exact(left, right)`, called with adapter names, accepts them from 1 - 1e-4 where it gives a number, and
    the sketch alone from 0.999 where it gives None. An update of opposite sign is not a duplicate, and one
    that is zero, not finite or unread is compared by file and tensors only. Accepted pairs are joined, most
    alike first (union-find), so that groups chain: two members may be less alike than `cosine`, which is the
    lowest among the pairs that joined them; pairs in one group by then are not compared again. Of copies with
    one name the last counts.

    `deltas` reads vectors as they are needed, by default those that the rows have. `kept` are the digests of
    the weights files that `exact` can compare, None for all. Raises UsageError for a level that does not
    exist.
    """
    rows, roots, links = _join(copies, level, exact, deltas, kept)
    every = list(roots.values())[-1]
    own = by_root(links, every)
    return [_group(rows, nodes, roots, own.get(nodes[0], ())) for nodes in parts(every)]


def representatives(
    copies: Iterable[Copy],
    level: str = "delta",
    exact: Exact | None = None,
    *,
    deltas: Deltas | None = None,
    kept: Collection[str] | None = None,
) -> dict[str, str]:
    """The id of each adapter's group: the first member's name, its own if it has no duplicate; arguments as
    for `duplicates`.
    """
    rows, roots, _ = _join(copies, level, exact, deltas, kept)
    every = list(roots.values())[-1]
    return {row.adapter: rows[every[node]].adapter for node, row in enumerate(rows)}


class RepresentativesOnDemand(Mapping[str, str]):
    """`representatives` up to level delta, worked out for an adapter when it is asked for.

    A pool asks for the few adapters that may become members: each is compared with all others, and so is
    every adapter that is joined with it. After `_MOST_ASKED` that were compared, all groups are formed.
    """

    def __init__(
        self,
        copies: Iterable[Copy],
        exact: Exact | None = None,
        *,
        deltas: Deltas | None = None,
        kept: Collection[str] | None = None,
    ) -> None:
        self._exact, self._deltas, self._kept = exact, deltas, kept
        # Below the bound of sketches, only pairs that can be compared exactly count.
        exactly = exact is not None and (kept is None or len(kept) > 0)
        self._at_least = CANDIDATE if exactly else SAME_SKETCH
        self._rows, roots, _ = _join(copies, "tensor", None, None, None)
        self._roots = roots["tensor"]
        self._nodes = {row.adapter: node for node, row in enumerate(self._rows)}
        # The name of the group, by the root of adapters with the same tensors.
        self._found: dict[int, str] = {}
        self._asked = 0

    def __getitem__(self, name: str) -> str:
        start = self._roots[self._nodes[name]]
        if start not in self._found:
            self._find(start)
        return self._found[start]

    def __iter__(self) -> Iterator[str]:
        return iter(self._nodes)

    def __len__(self) -> int:
        return len(self._nodes)

    @cached_property
    def _places(self) -> dict[int, list[tuple[_Updates, int]]]:
        """Where the updates of adapters with the same tensors are, by their root."""
        places: dict[int, list[tuple[_Updates, int]]] = {}
        for nodes in _with_update(self._rows, self._roots, self._deltas):
            measured, units = unit_rows(self._rows, nodes, self._deltas or own_deltas)
            updates = _Updates(measured, units, _heads(units, self._at_least), self._at_least)
            for place, node in enumerate(measured):
                places.setdefault(self._roots[node], []).append((updates, place))
        return places

    def _find(self, start: int) -> None:
        """Finds all that is joined with the adapters of a root."""
        joined, waiting = {start}, [start]
        while waiting:
            for updates, place in self._places.get(waiting.pop(), ()):
                self._asked += 1
                if self._asked > _MOST_ASKED:
                    self._find_all()
                    return
                for other, cosine in updates.near(place):
                    to = self._roots[other]
                    if to not in joined and self._is_same(updates.nodes[place], other, cosine):
                        joined.add(to)
                        waiting.append(to)
        # The root of a part is its smallest node.
        self._found |= dict.fromkeys(joined, self._rows[min(joined)].adapter)

    def _find_all(self) -> None:
        names = representatives(self._rows, "delta", self._exact, deltas=self._deltas, kept=self._kept)
        self._found |= {root: names[self._rows[root].adapter] for root in self._roots}

    def _is_same(self, left: int, right: int, cosine: float) -> bool:
        pair = [self._rows[node] for node in sorted((left, right))]
        kept = self._kept is None or all(row.weights_digest in self._kept for row in pair)
        if cosine < SAME_SKETCH and not kept:
            return False
        exactly = self._exact(pair[0].adapter, pair[1].adapter) if self._exact else None
        return cosine >= SAME_SKETCH if exactly is None else exactly >= SAME_EXACT


@dataclass(frozen=True)
class _Updates:
    """The nodes of one base model that have an update to compare, the normalised updates, and their heads for
    a least cosine.
    """

    nodes: Sequence[int]
    units: NDArray[np.float32]
    heads: NDArray[np.float32]
    at_least: float

    def near(self, place: int) -> list[tuple[int, float]]:
        """The other nodes with at least that cosine with the one at a place, and the cosines."""
        import numpy as np

        least = self.at_least - rounding(self.units.shape[1])
        places = np.flatnonzero(self.heads @ self.heads[place] >= least)
        places = places[places != place]
        values = cosines(self.units[places], self.units[place])
        near = zip(places.tolist(), values.tolist(), strict=True)
        return [(self.nodes[other], value) for other, value in near if value >= self.at_least]


def _join(
    copies: Iterable[CopyType],
    level: str,
    exact: Exact | None,
    deltas: Deltas | None,
    kept: Collection[str] | None,
) -> tuple[list[CopyType], dict[Level, list[int]], list[Link]]:
    """The copies by name, the root of each after every level, and the links that joined updates."""
    if level not in LEVELS:
        raise UsageError(f"{level!r} is not a level of likeness; choose one of {', '.join(LEVELS)}.")
    rows = by_name(copies)
    parents = list(range(len(rows)))
    roots: dict[Level, list[int]] = {}
    links: list[Link] = []
    for stage in LEVELS:
        if stage == "delta":
            links = _join_alike(rows, parents, exact, deltas, kept)
        else:
            join_equal(parents, [getattr(row, _DIGESTS[stage]) for row in rows])
        roots[stage] = all_roots(parents)
        if stage == level:
            break
    return rows, roots, links


def cosines(left: NDArray[Any], right: NDArray[Any]) -> NDArray[np.float64]:
    """Cosines in float64 of rows (n, size) with rows, or with one vector; equal rows give equal bits."""
    import numpy as np

    a, b = left.astype(np.float64), right.astype(np.float64)
    # Row by row: a matrix product adds in an order that depends on the other rows.
    dots, of_a, of_b = (np.einsum("...j,...j", x, y) for x, y in ((a, b), (a, a), (b, b)))
    values: NDArray[np.float64] = np.clip(dots / np.sqrt(of_a * of_b), -1.0, 1.0)
    return values


def rounding(size: int) -> float:
    """Twice the error of a float32 dot product of unit vectors of this size (n u: Higham 2002, 3.1)."""
    return (size + 8) * 2.0**-23


def near_pairs(units: NDArray[np.float32], at_least: float) -> Iterator[tuple[int, int, float]]:
    """Each pair of rows (left < right) whose cosine is `at_least` or more, with it; sorted by rows, unless
    these are so many that `_cells` divides them.

    `units` is (n, size), L2-normalised. Tiles of 1 MiB are multiplied in float32, of high bounds only the
    heads of the vectors where these rule out most pairs, and the cosines that may reach the bound are worked
    out again in float64.
    """
    heads = _heads(units, at_least)
    if heads is not units and len(units) >= _LEAST_DIVIDED:
        for places, own in _cells(units, at_least):
            yield from _compare_cell(units, heads, at_least, places, own)
    else:
        yield from _compare_cell(units, heads, at_least, slice(None), len(units))


def _compare_cell(
    units: NDArray[np.float32],
    heads: NDArray[np.float32],
    at_least: float,
    places: NDArray[np.int64] | slice,
    own: int,
) -> Iterator[tuple[int, int, float]]:
    """The pairs of `near_pairs` between the rows at some places and the first `own` of these."""
    import numpy as np

    every, step = np.arange(len(units))[places], min(_STRIP, _TILE)
    least, near_heads = at_least - rounding(units.shape[1]), heads[places]
    # In full, rows are taken as they are needed: a cell may have most of all.
    in_full = units.__getitem__ if isinstance(places, slice) else lambda part: units[places[part]]
    for start in range(0, own, step):
        strip = slice(start, min(start + step, own))
        most = step * (len(every) - start) // _FEW
        lefts, rights = _near_places(
            near_heads.__getitem__, strip, len(every), least, None if heads is units else most
        )
        if heads is not units and len(lefts) > most:
            lefts, rights = _near_places(in_full, strip, len(every), least)
        lefts, rights = every[lefts], every[rights]
        lefts, rights = np.minimum(lefts, rights), np.maximum(lefts, rights)
        if heads is not units:
            lefts, rights = _filter_by_heads(units, _LONGER * heads.shape[1], lefts, rights, least)
        for first in range(0, len(lefts), _PAIRS):
            left, right = (side[first : first + _PAIRS] for side in (lefts, rights))
            values = cosines(units[left], units[right])
            is_near = values >= at_least
            yield from zip(
                left[is_near].tolist(), right[is_near].tolist(), values[is_near].tolist(), strict=True
            )


def _near_places(
    rows: Callable[[slice], NDArray[np.float32]],
    part: slice,
    count: int,
    least: float,
    most: int | None = None,
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """The pairs of the rows of a part with later ones, of `count`, whose dot product is `least` or more,
    sorted; some of them if there are more than `most`.
    """
    import numpy as np

    strip, width = rows(part), max(1, _TILE // min(_STRIP, _TILE))
    lefts, rights, total = [], [], 0
    for column in range(part.start, count, width):
        tile = strip @ rows(slice(column, column + width)).T >= least
        # In one dimension, numpy skips what is False.
        left, right = np.divmod(np.flatnonzero(tile), tile.shape[1])
        left, right = left + part.start, right + column
        once = left < right
        lefts.append(left[once])
        rights.append(right[once])
        total += len(lefts[-1])
        if most is not None and total > most:
            break
    left, right = np.concatenate(lefts), np.concatenate(rights)
    order = np.lexsort((right, left))
    return left[order], right[order]


def _filter_by_heads(
    units: NDArray[np.float32], length: int, lefts: NDArray[np.int64], rights: NDArray[np.int64], least: float
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Of some pairs those whose heads of that length do not rule out a dot product of `least`: checkpoints of
    one run pass the shorter ones.
    """
    import numpy as np

    near = np.ones(len(lefts), dtype=np.bool_)
    for start in range(0, len(lefts), _LEFT):
        part = slice(start, start + _LEFT)
        left, right = (_rows_of_heads(units[side[part], :length]) for side in (lefts, rights))
        near[part] = np.einsum("ij,ij->i", left, right) >= least
    return lefts[near], rights[near]


def _cells(units: NDArray[np.float32], at_least: float) -> Iterator[tuple[NDArray[np.int64], int]]:
    """Rows to compare with each other: the places of those of a cell, how many, then of those of earlier
    cells that may have a row of this one as near as that cosine. Each pair is in one of these, once.

    A cell has the rows that are nearer to its centre than to any other. A row is as far from a cell as from
    the plane between both centres, at least, and so from each row in it.
    """
    import numpy as np

    count, size = units.shape
    centres = _centres(units)
    shifts = np.square(centres, dtype=np.float64).sum(axis=1, dtype=np.float64).astype(np.float32) / 2
    between = np.sqrt(np.maximum(shifts[:, None] + shifts - centres @ centres.T, 0) * 2 + rounding(size))
    reach = math.sqrt(2 * (1 - at_least) + rounding(size)) * between + 2 * rounding(size)
    cells = np.empty(count, dtype=np.int64)
    # A bit for each row and cell.
    is_near = np.empty((count, -(-len(centres) // 8)), dtype=np.uint8)
    for start in range(0, count, _LEFT):
        block = slice(start, start + _LEFT)
        scores = units[block] @ centres.T - shifts
        cells[block] = own = scores.argmax(axis=1)
        nearest = np.take_along_axis(scores, own[:, None], axis=1)
        is_near[block] = np.packbits(nearest - scores <= reach[own], axis=1)
    for cell in range(len(centres)):
        members = np.flatnonzero(cells == cell)
        bits = is_near[:, cell // 8] & (128 >> cell % 8) != 0
        yield np.concatenate([members, np.flatnonzero(bits & (cells < cell))]), len(members)


def _centres(units: NDArray[np.float32]) -> NDArray[np.float32]:
    """Centres of cells (k-means of some of the rows), the same for the same rows."""
    import numpy as np

    generator = np.random.default_rng(0)
    cells = min(_MOST_CELLS, max(_LEAST_CELLS, len(units) // _ROWS_OF_CELL))
    size = min(_SAMPLE_OF_CELL * cells, len(units))
    sample = units[np.sort(generator.choice(len(units), size, replace=False))]
    centres = sample[:cells].copy()
    most = np.full(len(sample), -1.0, dtype=np.float32)
    for cell in range(len(centres)):
        # The one of some that is least like the centres so far: of all it might be like no other.
        tried = generator.choice(len(sample), min(_TRIED, len(sample)), replace=False)
        centres[cell] = sample[tried[most[tried].argmin()]]
        most = np.maximum(most, sample @ centres[cell])
    for _ in range(_ROUNDS):
        shifts = np.square(centres).sum(axis=1) / 2
        own = (sample @ centres.T - shifts).argmax(axis=1)
        for cell in np.unique(own):
            centres[cell] = sample[own == cell].mean(axis=0)
    return centres


def _heads(units: NDArray[np.float32], at_least: float) -> NDArray[np.float32]:
    """Shorter rows whose dot products are never below those of the rows: their first numbers, then the norm
    of the others (Cauchy-Schwarz). As many as random directions need to fall below the bound.
    """
    size = units.shape[1]
    length = max(_LEAST_HEAD, math.ceil(4 * size * (1 - at_least)))
    if length > size // 2:
        return units
    return _rows_of_heads(units[:, :length])


def _rows_of_heads(first: NDArray[np.float32]) -> NDArray[np.float32]:
    """The first numbers of unit vectors, and the norm of the others."""
    import numpy as np

    heads = np.empty((len(first), first.shape[1] + 1), dtype=np.float32)
    heads[:, :-1] = first
    # The rows have length 1, up to rounding.
    squares = np.square(first, dtype=np.float64).sum(axis=1)
    heads[:, -1] = np.sqrt(np.maximum(1 - squares, 0) + rounding(1))
    return heads


def by_name(copies: Iterable[CopyType]) -> list[CopyType]:
    copies_by_name = {copy.adapter: copy for copy in copies}
    return [copies_by_name[name] for name in sorted(copies_by_name)]


def group_nodes(nodes: Iterable[int], by: Callable[[int], object]) -> list[list[int]]:
    groups: dict[object, list[int]] = {}
    for node in nodes:
        groups.setdefault(by(node), []).append(node)
    return list(groups.values())


def strongest_first(link: Link) -> tuple[float, int, int]:
    return -link.cosine, link.left, link.right


def strongest_forest(links: Iterable[Link], parents: Sequence[int]) -> list[Link]:
    """Of these links those that join parts, strongest first: a spanning forest, in memory of the number of
    nodes and not of links.
    """
    kept: list[Link] = []
    most = _MOST_LINKS
    for link in links:
        kept.append(link)
        if len(kept) > most:
            kept = _forest(kept, parents)
            most = max(_MOST_LINKS, 2 * len(kept))
    return _forest(kept, parents)


def _forest(links: Iterable[Link], parents: Sequence[int]) -> list[Link]:
    joined = list(parents)
    return [link for link in sorted(links, key=strongest_first) if join(joined, link.left, link.right)]


def root(parents: list[int], node: int) -> int:
    while parents[node] != node:
        parents[node] = parents[parents[node]]
        node = parents[node]
    return node


def all_roots(parents: list[int]) -> list[int]:
    return [root(parents, node) for node in range(len(parents))]


def join(parents: list[int], left: int, right: int) -> bool:
    """Joins two nodes into one part, whose root is its smallest; False if they were already joined."""
    low, high = sorted((root(parents, left), root(parents, right)))
    parents[high] = low
    return low != high


def join_equal(parents: list[int], values: Sequence[object]) -> None:
    first: dict[object, int] = {}
    for node, value in enumerate(values):
        if value is not None:
            join(parents, first.setdefault(value, node), node)


def parts(roots: Sequence[int]) -> list[list[int]]:
    """The parts of two and more nodes, each sorted, by their first node."""
    return [nodes for nodes in group_nodes(range(len(roots)), lambda node: roots[node]) if len(nodes) > 1]


def _join_alike(
    rows: Sequence[Copy],
    parents: list[int],
    exact: Exact | None,
    deltas: Deltas | None,
    kept: Collection[str] | None,
) -> list[Link]:
    """Joins nodes with the same update; returns the links used."""
    candidates: list[Link] = []
    for nodes in _with_update(rows, all_roots(parents), deltas):
        measured, units = unit_rows(rows, nodes, deltas or own_deltas)
        exactly = [n for n, node in enumerate(measured) if kept is None or rows[node].weights_digest in kept]
        if exact is None:
            exactly = []
        every, of_kept = range(len(measured)), set(map(measured.__getitem__, exactly))
        if len(exactly) < len(measured):
            # Sketches decide alone between these: whatever lies between, they are joined strongest first.
            surely = (
                link
                for link in links_above(units, measured, every, SAME_SKETCH)
                if link.left not in of_kept or link.right not in of_kept
            )
            candidates += strongest_forest(surely, parents)
        # Below the bound of sketches, only pairs that can be compared exactly count.
        candidates += links_above(units, measured, exactly, CANDIDATE)
    links = []
    for link in sorted(candidates, key=strongest_first):
        if root(parents, link.left) != root(parents, link.right):
            cosine = exact(rows[link.left].adapter, rows[link.right].adapter) if exact else None
            if cosine is not None:
                link = Link(link.left, link.right, cosine, exact=True)
            if link.cosine >= (SAME_EXACT if link.exact else SAME_SKETCH):
                join(parents, link.left, link.right)
                links.append(link)
    return links


def _with_update(rows: Sequence[Copy], roots: Sequence[int], deltas: Deltas | None) -> list[list[int]]:
    """The nodes whose updates are compared, of each base model; one of those with one root and vector."""
    first: dict[object, int] = {}
    for node, row in enumerate(rows):
        # Modules of two base models have the same names and other meanings; an unknown base may be any.
        if row.base is not None and (deltas is not None or _own_delta(row) is not None):
            # Copies of one file under one pattern of scalings have one vector: it is compared once.
            first.setdefault((row.base, roots[node], row.key or row.adapter), node)
    return group_nodes(sorted(first.values()), lambda node: rows[node].base)


def links_above(
    units: NDArray[np.float32], nodes: Sequence[int], places: Sequence[int], at_least: float
) -> Iterator[Link]:
    """The links between the nodes at some places from a cosine of their sketches on."""
    chosen = units if len(places) == len(units) else units[list(places)]
    for left, right, cosine in near_pairs(chosen, at_least) if len(places) > 1 else ():
        yield Link(nodes[places[left]], nodes[places[right]], cosine)


def _own_delta(row: Any) -> NDArray[np.float32] | None:
    delta: NDArray[np.float32] | None = row.delta
    return delta


def own_deltas(rows: Sequence[Any]) -> Iterator[tuple[int, NDArray[np.float32]]]:
    """The delta vectors that the rows have themselves."""
    deltas = ((place, _own_delta(row)) for place, row in enumerate(rows))
    return ((place, delta) for place, delta in deltas if delta is not None)


def unit_rows(
    rows: Sequence[Copy], nodes: Sequence[int], deltas: Deltas
) -> tuple[list[int], NDArray[np.float32]]:
    """Those of these nodes whose update can be compared, finite and not zero, and the normalised updates
    (nodes, size).
    """
    import numpy as np

    usable = np.zeros(len(nodes), dtype=np.bool_)
    units = np.empty((0, 0), dtype=np.float32)
    vectors = iter(deltas([rows[node] for node in nodes]))
    while batch := list(islice(vectors, _PAIRS)):
        values = np.array([vector for _, vector in batch], dtype=np.float64)
        # One product a row, as `numpy.linalg.norm` works it out.
        lengths = np.sqrt(np.array([row.dot(row) for row in values]))
        can_be_compared = np.isfinite(lengths) & (lengths > 0)
        lengths[~can_be_compared] = 1.0
        values /= lengths[:, None]
        if not len(units):
            units = _empty_rows(len(nodes), values.shape[1])
        places = [place for place, _ in batch]
        units[places], usable[places] = values, can_be_compared
    measured = [node for node, is_usable in zip(nodes, usable.tolist(), strict=True) if is_usable]
    if len(measured) < len(units):
        filled = 0
        for start in range(0, len(units), _PAIRS):
            kept = units[start : start + _PAIRS][usable[start : start + _PAIRS]]
            units[filled : filled + len(kept)] = kept
            filled += len(kept)
    return measured, units[: len(measured)]


def _empty_rows(count: int, size: int) -> NDArray[np.float32]:
    """Rows to be filled: many of them lie in a file that is gone when they are, where the disk has room and
    the system can reserve it, so that they take memory only as long as nobody else needs it.
    """
    import numpy as np

    length = 4 * count * size
    if length > _MOST_HELD and hasattr(os, "posix_fallocate"):
        try:
            with tempfile.TemporaryFile(prefix="loradex-") as file:
                # A hole in the file would end the process where the disk is full.
                os.posix_fallocate(file.fileno(), 0, length)
                return np.frombuffer(mmap.mmap(file.fileno(), length), dtype=np.float32).reshape(count, size)
        except OSError:
            pass
    return np.empty((count, size), dtype=np.float32)


def _group(
    rows: Sequence[Copy], nodes: list[int], roots: Mapping[Level, list[int]], links: Sequence[Link]
) -> Group:
    level = next(level for level in LEVELS if len({roots[level][node] for node in nodes}) == 1)
    notes = [_scale_difference([rows[node] for node in nodes])]
    groups: list[list[int]] = []
    for cheaper in LEVELS[: LEVELS.index(level)]:
        for part in group_nodes(nodes, roots[cheaper].__getitem__):
            if len(part) > 1 and part not in groups:
                groups.append(part)
                notes.append(f"same {cheaper}: {', '.join(rows[node].adapter for node in part)}")
    return Group(
        level=level,
        members=tuple(rows[node].adapter for node in nodes),
        cosine=min((link.cosine for link in links), default=None),
        exact=all(link.exact for link in links),
        note="; ".join(note for note in notes if note),
    )


def _scale_difference(members: Sequence[Copy]) -> str:
    """How the norms of equal updates differ, or their scalings if no norm is known; empty if they do not."""
    norms, scalings = _ratios(row.norm for row in members), _ratios(row.scaling for row in members)
    if norms:
        return f"{'alpha differs' if scalings else 'rescaled'}: norms {norms}"
    if scalings and all(row.norm is None for row in members):
        return f"alpha differs: scalings {scalings}"
    return ""


def _ratios(values: Iterable[float | None]) -> str:
    """The values that differ, over the smallest one: `1 : 2`; empty where they do not."""
    distinct: list[float] = []
    for value in sorted(abs(value) for value in values if value and math.isfinite(value)):
        if not distinct or value > distinct[-1] * _SAME_NORM:
            distinct.append(value)
    if len(distinct) < 2:
        return ""
    ratios = [f"{value / distinct[0]:.3g}" for value in distinct]
    return " : ".join(ratios) if len(ratios) <= _MOST_NORMS else f"1 to {ratios[-1]}"


def by_root(links: Iterable[Link], roots: Sequence[int]) -> dict[int, list[Link]]:
    links_of_root: dict[int, list[Link]] = {}
    for link in links:
        links_of_root.setdefault(roots[link.left], []).append(link)
    return links_of_root
