"""Families: adapters of one owner that belong together, such as checkpoints and series.

Pure: from rows to groups, no database.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import chain
from typing import TYPE_CHECKING, Protocol

from catalog.fingerprints.copies import (
    Copy,
    Deltas,
    Link,
    all_roots,
    by_name,
    by_root,
    group_nodes,
    join,
    join_equal,
    links_above,
    own_deltas,
    parts,
    root,
    strongest_forest,
    unit_rows,
)

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

# The cosine of continued training, and of a series with too few names.
CONTINUED = 0.9
SERIES = 0.5
SERIES_NAMES = 3
_CHANGING = re.compile(
    r"[0-9a-f]{8}(?:-[0-9a-f]{4}){3}-[0-9a-f]{12}"
    r"|(?<![0-9a-z])[0-9a-f]{8,}(?![0-9a-z])"
    r"|[0-9]+(?:\.[0-9]+)*(?:e[-+]?[0-9]+(?![0-9a-z]))?",
    re.IGNORECASE,
)


class Relative(Copy, Protocol):
    """What families need to know of an adapter in addition."""

    @property
    def repository(self) -> str: ...
    @property
    def owner(self) -> str: ...


@dataclass(frozen=True)
class Family:
    """Adapters of one owner that belong together, sorted, under a name that a user can read, and why."""

    name: str
    members: tuple[str, ...]
    why: str


def families(copies: Iterable[Relative], *, deltas: Deltas = own_deltas) -> list[Family]:
    """The families of two and more adapters, sorted by name; every adapter is in at most one.

    Joined are the adapters of one repository (checkpoints, folders); an owner's repositories whose names are
    equal by `series_name`, three at least, or two with updates whose sketches have a cosine of 0.5; and
    adapters of one owner whose sketches have a cosine of 0.9 (continued training). Updates are compared as in
    `duplicates`, within one known base model. Links chain. A family is named by the series with most of its
    members, else by its first repository. `deltas` reads the vectors, by default those that the rows have.
    """
    rows = by_name(copies)
    units = _units(rows, deltas)
    parents = list(range(len(rows)))
    join_equal(parents, [row.repository for row in rows])
    series = _join_series(rows, units, parents)
    near = (
        link
        for nodes in group_nodes(units.places, lambda node: (rows[node].owner, rows[node].base))
        for link in units.links(nodes, CONTINUED)
        if root(parents, link.left) != root(parents, link.right)
    )
    continued = strongest_forest(near, parents)
    for link in continued:
        join(parents, link.left, link.right)
    roots = all_roots(parents)
    own = by_root(continued, roots)
    result = [_family(rows, nodes, series, own.get(nodes[0], ())) for nodes in parts(roots)]
    return sorted(result, key=lambda family: family.name)


@dataclass(frozen=True)
class _Units:
    """The normalised updates (nodes, size) of the nodes that can be compared with others of their owner, and
    the place of each.
    """

    places: Mapping[int, int]
    rows: NDArray[np.float32]

    def links(self, nodes: Sequence[int], at_least: float) -> Iterator[Link]:
        """The links between some of these nodes from a cosine of their sketches on."""
        return links_above(
            self.rows[[self.places[node] for node in nodes]], nodes, range(len(nodes)), at_least
        )


def _units(rows: Sequence[Relative], deltas: Deltas) -> _Units:
    # Modules of two base models have the same names and other meanings; an unknown base may be any.
    known = (node for node, row in enumerate(rows) if row.base is not None)
    groups = group_nodes(known, lambda node: (rows[node].owner, rows[node].base))
    measured, units = unit_rows(rows, sorted(chain(*(group for group in groups if len(group) > 1))), deltas)
    return _Units({node: place for place, node in enumerate(measured)}, units)


def series_name(name: str) -> str:
    """The name with `#` for each uuid, hexadecimal word of eight digits or more, and number (1.5, 2e-5)."""
    return _CHANGING.sub("#", name)


def _join_series(rows: Sequence[Relative], units: _Units, parents: list[int]) -> dict[int, str]:
    """Joins the series of each owner; gives the name of its series for each node that is in one."""
    series: dict[int, str] = {}
    names = [series_name(row.repository.rpartition("/")[2]) for row in rows]
    for nodes in group_nodes(range(len(rows)), lambda node: (rows[node].owner, names[node])):
        repositories = {rows[node].repository for node in nodes}
        if len(repositories) >= SERIES_NAMES or (len(repositories) > 1 and _is_series(rows, units, nodes)):
            for node in nodes:
                join(parents, nodes[0], node)
                series[node] = f"{rows[node].owner}/{names[node]}"
    return series


def _is_series(rows: Sequence[Relative], units: _Units, nodes: Sequence[int]) -> bool:
    """Whether updates in two of the repositories have the cosine of a series."""
    return any(
        rows[link.left].repository != rows[link.right].repository
        for group in group_nodes(filter(units.places.__contains__, nodes), lambda node: rows[node].base)
        for link in units.links(group, SERIES)
    )


def _family(
    rows: Sequence[Relative], nodes: Sequence[int], series: Mapping[int, str], links: Sequence[Link]
) -> Family:
    """The family of these nodes, which repositories, series and links of continued training joined."""
    repositories = Counter(rows[node].repository for node in nodes)
    series_counts = Counter(series[node] for node in nodes if node in series)
    why = []
    if series_counts:
        names = len({rows[node].repository for node in nodes if node in series})
        why.append(
            f"{names} names of {'one series' if len(series_counts) == 1 else f'{len(series_counts)} series'}"
        )
        if names < SERIES_NAMES:
            why[-1] += f" with delta cosine from {SERIES}"
    if len(nodes) > len(repositories):
        several = sum(count > 1 for count in repositories.values())
        why.append(f"several adapters in {'one repository' if several == 1 else f'{several} repositories'}")
    if links:
        why.append(f"delta cosine from {min(link.cosine for link in links):.2f}")
    return Family(
        name=min(series_counts, key=lambda name: (-series_counts[name], name))
        if series_counts
        else min(repositories),
        members=tuple(rows[node].adapter for node in nodes),
        why="; ".join(why),
    )
