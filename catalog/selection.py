"""Choosing a pool: a question, a ranking of the candidates, limits, the manifest, and its controls.

Deterministic given catalog, question and seed. Writes no rows.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from catalog import bases, likeness
from catalog.candidates import Candidate, candidates, pinned
from catalog.choose import Limits, Ranked, chosen, matched, random_order, shuffled, without
from catalog.duplicates import representatives
from catalog.errors import NotFoundError, UsageError
from catalog.families import families
from catalog.licenses import objection
from catalog.pools import Manifest, checked_name
from catalog.query import parse
from catalog.strategies import OPTIONS, STRATEGIES, Question, Sources, Strategy
from catalog.terms import to_text

__all__ = ["STAND_INS", "STRATEGIES", "Question", "Selection", "Sources", "asked", "select"]

# Random stand-ins for the members, which the merging side makes from their files.
STAND_INS: tuple[str, ...] = (
    "random-pooled",
    "random-each",
    "random-directions",
    "shuffled-layers",
    "permuted-ranks",
)


@dataclass(frozen=True)
class Selection:
    """The pool and those that it is to be compared with, by name."""

    pool: Manifest
    controls: tuple[Manifest, ...] = ()
    ranking: tuple[Ranked, ...] = field(default=(), repr=False)


def select(question: Question, sources: Sources, *, controls: bool = False) -> Selection:
    """The pool that answers the question, with its controls where they are asked for.

    Raises UsageError and NotFoundError, in one sentence each, for a question that cannot be answered.
    """
    strategy = _checked(question)
    where = parse(question.where) if question.where else None
    rows = candidates(sources.session, sources.refusing, question.base, where, question.without)
    if question.base is None:
        usual = _usual_base(rows)
        rows = [row for row in rows if row.base == usual]
    rows = [row for row in without(rows, question.exclude) if objection(row.license, question.use) is None]
    if not rows:
        raise NotFoundError(
            "No adapter satisfies the filter, the rules and the use; loosen them or crawl more."
        )
    ranking = strategy.rank(question, rows, sources)
    limits = _limits(question, rows, sources)
    taken = chosen(ranking, limits)
    pool = _manifest(question, taken, rows, sources)
    if not controls:
        return Selection(pool, (), tuple(ranking))
    others = _controls(question, ranking, taken, rows, limits, sources)
    named = [{"kind": kind, "pool": other.name, "digest": other.digest} for kind, other in others.items()]
    stand_ins = [{"kind": kind, "seed": question.seed} for kind in STAND_INS]
    return Selection(replace(pool, controls=(*named, *stand_ins)), tuple(others.values()), tuple(ranking))


def _usual_base(rows: Sequence[Candidate]) -> str | None:
    """The base model of most candidates, the first by name among equals."""
    counts = Counter(row.base for row in rows if row.base is not None)
    return min(counts, key=lambda base: (-counts[base], base), default=None)


def _checked(question: Question) -> Strategy:
    checked_name(question.name)
    if question.by not in STRATEGIES:
        raise UsageError(f"{question.by!r} is no way to choose; there are {', '.join(STRATEGIES)}.")
    strategy = STRATEGIES[question.by]
    for need in strategy.needs:
        if not getattr(question, need):
            raise UsageError(f"Choosing by {question.by} takes {OPTIONS[need]}.")
    return strategy


def _limits(question: Question, rows: Sequence[Candidate], sources: Sources) -> Limits:
    """The limits of a question, with the groups and families that it asks for."""
    groups = members = None
    if question.distinct:
        copies = likeness.copies(sources.session, rows, deltas=question.distinct == "delta")
        exact = likeness.exact_delta(sources.session, rows, sources.blobs)
        groups = representatives(copies, question.distinct, exact)
    if question.per_family:
        # A series may go on beyond the filter.
        known = list(likeness.fingerprinted(sources.session, sources.refusing, rows[0].base))
        found = families(likeness.copies(sources.session, known))
        members = {name: family.name for family in found for name in family.members}
    return Limits(
        question.count, question.per_owner, question.per_family, question.parameters, groups, members
    )


def _manifest(
    question: Question, taken: Sequence[Ranked], rows: Sequence[Candidate], sources: Sources
) -> Manifest:
    picked = {row.candidate.id: (row.score, row.why) for row in taken}
    base = taken[0].candidate.base
    return Manifest(
        name=question.name,
        base=base,
        members=tuple(pinned(sources.session, picked, rows)),
        chosen=asked(question),
        base_license=bases.license(base) if base else None,
        use=question.use,
    )


def asked(question: Question) -> dict[str, Any]:
    """The question as it stands in the manifest: every option that was set."""
    options: Mapping[str, Any] = {
        name: value for name, value in vars(question).items() if name not in ("name", "use")
    }
    said = {name: list(value) if isinstance(value, tuple) else value for name, value in options.items()}
    said["where"] = to_text(parse(question.where)) if question.where else ""
    if question.by not in ("adapter", "gradient"):
        said.pop("kind")
    if not question.exact:
        said.pop("exact")
    return {name: value for name, value in said.items() if value not in (None, "", [])}


def _controls(
    question: Question,
    ranking: Sequence[Ranked],
    taken: Sequence[Ranked],
    rows: Sequence[Candidate],
    limits: Limits,
    sources: Sources,
) -> dict[str, Manifest]:
    """The pools that keep a choice honest: random ones, of its recipes, and with shuffled scores."""
    pool = [row.candidate for row in taken]
    rankings = {
        **({"blind": STRATEGIES["prior"].rank(question, rows, sources)} if question.by == "score" else {}),
        "random": random_order(rows, question.seed + 1),
        "matched": matched(rows, pool, question.seed),
        "shuffled": shuffled(ranking, question.seed),
    }
    found = {}
    for kind, other in rankings.items():
        loose = replace(limits, per_owner=None, parameters=None) if kind == "matched" else limits
        asked_for = replace(question, name=f"{question.name}-{kind}", by=question.by)
        manifest = _manifest(asked_for, chosen(other, loose), rows, sources)
        found[kind] = replace(manifest, chosen={**asked(asked_for), "control": kind, "of": question.name})
    return found
