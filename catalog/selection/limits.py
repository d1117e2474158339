"""From a ranking to a pool: limits on owners, families, duplicates and size, and rankings that need no data.

A ranking is a list of candidates, best first, each with a score (None where there is none) and why. All here
is a pure function of its arguments and of the seed: random order comes from a hash of seed and identity, so
that it depends neither on the order of rows nor on which other adapters are there.
"""

from __future__ import annotations

import hashlib
import math
from collections import Counter
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import Protocol, TypeVar

from catalog.adapters import StoredAdapter
from catalog.errors import UsageError

# Norms within this factor of each other count as equal when a pool is matched.
NORM_FACTOR = 2.0


class Candidate(Protocol):
    """What every strategy needs to know of an adapter: a `StoredAdapter`, or the few columns of it that are
    read of all candidates.
    """

    @property
    def id(self) -> int: ...
    @property
    def adapter(self) -> str: ...
    @property
    def key(self) -> str: ...
    @property
    def repository(self) -> str: ...
    @property
    def hub_id(self) -> str: ...
    @property
    def owner(self) -> str: ...
    @property
    def subfolder(self) -> str: ...
    @property
    def base(self) -> str | None: ...
    @property
    def rank(self) -> int | None: ...
    @property
    def parameters(self) -> int | None: ...
    @property
    def license(self) -> str | None: ...


CandidateType = TypeVar("CandidateType", bound=Candidate)


@dataclass(frozen=True)
class Ranked:
    """A candidate at its place in a ranking."""

    candidate: Candidate
    score: float | None
    why: str


@dataclass(frozen=True)
class PoolLimits:
    """The limits of a pool: `count` members (None for all), members per owner and per family, one of each
    group of duplicates, and LoRA parameters in total; None for no limit.

    `groups` and `families` map names of adapters to their groups; an adapter without an entry is alone.
    """

    count: int | None
    per_owner: int | None = None
    per_family: int | None = None
    parameters: int | None = None
    groups: Mapping[str, str] | None = None
    families: Mapping[str, str] | None = None

    def __post_init__(self) -> None:
        for name in ("count", "per_owner", "per_family", "parameters"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise UsageError(f"A pool's {name.replace('_', ' ')} must be at least 1, not {value}.")


def take_members(
    ranking: Sequence[Ranked], limits: PoolLimits, before: Mapping[str, int] = MappingProxyType({})
) -> list[Ranked]:
    """The first adapters of the ranking that satisfy the limits, in order.

    Raises UsageError if they are too few, with the number of adapters left out and why; `before` has the
    counts of those that are not in the ranking.
    """
    members, beyond = let_in(ranking, limits)
    if len(members) < (limits.count or 1):
        total = len(ranking) + sum(before.values())
        size = "" if limits.count is None else f", not {limits.count}"
        reasons = left_out_in_words({**before, **beyond})
        raise UsageError(
            f"Only {len(members)} of {total} adapters are left{size}{reasons and f': {reasons}'}; "
            "request fewer or relax the conditions."
        )
    return members


def left_out_in_words(left_out: Mapping[str, int]) -> str:
    """The counts of adapters left out by cause, such as `5 refused by the rules ours, 2 beyond 1 of one
    owner`."""
    return ", ".join(f"{count:,} {why}" for why, count in left_out.items() if count)


def let_in(ranking: Sequence[Ranked], limits: PoolLimits) -> tuple[list[Ranked], dict[str, int]]:
    """The first adapters of the ranking that satisfy the limits, and the counts of those skipped before the
    last."""
    members: list[Ranked] = []
    beyond: Counter[str] = Counter()
    owners: Counter[str] = Counter()
    families: Counter[str] = Counter()
    groups: set[str] = set()
    parameters = 0
    for row in ranking:
        if len(members) == limits.count:
            break
        candidate = row.candidate
        family = (limits.families or {}).get(candidate.adapter, candidate.adapter)
        group = (limits.groups or {}).get(candidate.adapter, candidate.adapter)
        size = parameters + (candidate.parameters or 0)
        why = {
            f"beyond {limits.per_owner} of one owner": _full(owners[candidate.owner], limits.per_owner),
            f"beyond {limits.per_family} of one family": _full(families[family], limits.per_family),
            "duplicates of another": limits.groups is not None and group in groups,
            f"beyond {limits.parameters or 0:,} parameters in all": limits.parameters is not None
            and size > limits.parameters,
        }
        if full := next((words for words, is_full in why.items() if is_full), None):
            beyond[full] += 1
            continue
        members.append(row)
        owners[candidate.owner] += 1
        families[family] += 1
        groups.add(group)
        parameters = size
    return members, dict(beyond)


def _full(count: int, limit: int | None) -> bool:
    return limit is not None and count >= limit


def draw(seed: int, *words: str) -> float:
    """A number of [0, 1) that seed and words determine, the same on every machine."""
    return int.from_bytes(draw_digest(f"{seed}\0".encode(), "\0".join(words)), "big") / 2**64


def draw_digest(seed: bytes, words: str) -> bytes:
    """The digest that `draw` reads as a number, which sorts alike; of a seed and words that zeros join."""
    return hashlib.blake2b(seed + words.encode(), digest_size=8).digest()


def random_order(rows: Sequence[Candidate], seed: int) -> list[Ranked]:
    """All candidates in random order."""
    why = f"drawn at random (seed {seed})"
    return [Ranked(row, None, why) for row in shuffled(rows, seed)]


def shuffled(rows: Sequence[CandidateType], seed: int) -> list[CandidateType]:
    """The candidates in random order."""
    return sorted(rows, key=lambda row: (draw(seed, row.hub_id, row.subfolder), row.adapter))


def by_rank(rows: Sequence[Candidate], count: int | None = None) -> list[Ranked]:
    """The largest rank first, then the most parameters; all, or the first `count`."""
    with_rank = [row for row in rows if row.rank is not None]
    ordered = sorted(with_rank, key=lambda row: (-(row.rank or 0), -(row.parameters or 0), row.adapter))
    return [Ranked(row, float(row.rank or 0), f"rank {row.rank}") for row in ordered[:count]]


def match_recipes(rows: Sequence[StoredAdapter], pool: Sequence[StoredAdapter], seed: int) -> list[Ranked]:
    """For each member of a pool one other adapter with the most similar recipe, else drawn at random.

    Alike: the same rank, the same target modules, a norm within a factor of two, an owner with as few
    adapters in the result as the member's in the pool. If no adapter satisfies all conditions, the last one
    is dropped first; `why` lists those satisfied.
    """
    members = {row.id for row in pool}
    free = [row for row in shuffled(rows, seed) if row.id not in members]
    most = max(Counter(row.owner for row in pool).values(), default=1)
    owners: Counter[str] = Counter()
    matches: list[Ranked] = []
    for member in pool:
        best = _best_match(member, free, owners, most)
        if best is None:
            break
        candidate, level = best
        free = [row for row in free if row.id != candidate.id]
        owners[candidate.owner] += 1
        same = ", ".join(level) or "nothing"
        matches.append(Ranked(candidate, None, f"drawn for {member.adapter}: same {same} (seed {seed})"))
    return matches


def _best_match(
    member: StoredAdapter, free: Sequence[StoredAdapter], owners: Mapping[str, int], most: int
) -> tuple[StoredAdapter, list[str]] | None:
    """The first free candidate that satisfies the most conditions, and these; None if none is free."""
    demands: tuple[tuple[str, Callable[[StoredAdapter], bool]], ...] = (
        ("rank", lambda row: row.rank == member.rank),
        ("targets", lambda row: set(row.targets or ()) == set(member.targets or ())),
        ("norm", lambda row: _near(row.norm, member.norm)),
        ("number an owner", lambda row: owners.get(row.owner, 0) < most),
    )
    for level in range(len(demands), -1, -1):
        for row in free:
            if all(meets(row) for _, meets in demands[:level]):
                return row, [name for name, _ in demands[:level]]
    return None


def _near(left: float | None, right: float | None) -> bool:
    if not left or not right:
        return left == right
    return abs(math.log(left / right)) <= math.log(NORM_FACTOR)


def shuffle_scores(ranking: Sequence[Ranked], seed: int) -> list[Ranked]:
    """The ranking with its scores randomly assigned to other adapters: same scores, no information."""
    ordered = random_order([row.candidate for row in ranking], seed)
    return [
        Ranked(other.candidate, row.score, f"the score of another adapter, by chance (seed {seed})")
        for row, other in zip(ranking, ordered, strict=True)
    ]


def without(rows: Sequence[CandidateType], excluded: Collection[str]) -> list[CandidateType]:
    """The candidates whose name, repository or owner is not excluded; an unknown name is a UsageError."""
    if not excluded:
        return list(rows)
    names = {name for row in rows for name in (row.adapter, row.repository, row.owner)}
    if unknown := sorted(set(excluded) - names):
        raise UsageError(f"{unknown[0]} is not among the adapters to select from; leave it out of `exclude`.")
    return [row for row in rows if not {row.adapter, row.repository, row.owner} & set(excluded)]
