"""Choosing a pool: a question, a table of strategies that rank candidates, limits, and the manifest.

A strategy ranks; it never decides how many are taken. All of them are deterministic given catalog, question
and seed, and each says of every member why it was chosen. Writes no rows.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from sqlalchemy.orm import Session

from catalog import bases, likeness
from catalog.blobs import BlobStore
from catalog.candidates import Candidate, candidates, pinned
from catalog.choose import Limits, Ranked, by_rank, chosen, matched, random_order, shuffled, without
from catalog.completion import completion, from_like_tasks
from catalog.duplicates import representatives
from catalog.embed import Embedder
from catalog.errors import NotFoundError, UsageError
from catalog.families import families
from catalog.licenses import Use, objection
from catalog.neighbours import Subject, neighbours
from catalog.pool_store import find_pool
from catalog.pools import Manifest, checked_name
from catalog.query import parse
from catalog.score_store import score_table
from catalog.scores import Ranking, ScoreMatrix, by_score, prior, score_matrix
from catalog.search import open_texts, search
from catalog.terms import to_text

# Random stand-ins for the members, which the merging side makes from their files (see docs/selection.md).
STAND_INS: tuple[str, ...] = ("random-pooled", "random-each", "random-directions")


@dataclass(frozen=True)
class Question:
    """What was asked for; every field that is set stands in the manifest."""

    name: str
    by: str
    count: int
    seed: int = 0
    base: str | None = None
    rules: str = "ours"
    where: str = ""
    text: str | None = None
    task: str | None = None
    like: str | None = None
    to: str | None = None
    kind: str = "output"
    use: Use = "research"
    per_owner: int | None = None
    per_family: int | None = None
    parameters: int | None = None
    distinct: str | None = None
    exclude: tuple[str, ...] = ()
    splits: tuple[str, ...] = ()
    texts: str | None = None


@dataclass(frozen=True)
class Sources:
    """What strategies ask: the database, the caches, and what the caller made ready for the one chosen."""

    session: Session
    refusing: Collection[str]
    index: Path
    blobs: BlobStore
    embedder: Callable[[], Embedder | None]
    subject: Callable[[str], Subject]
    texts: Mapping[str, str] = field(default_factory=dict)


Rank = Callable[[Question, Sequence[Candidate], Sources], list[Ranked]]


@dataclass(frozen=True)
class Strategy:
    """A way to rank: what it does in one sentence, what of the question it needs, and the function."""

    sentence: str
    needs: tuple[str, ...]
    rank: Rank


@dataclass(frozen=True)
class Selection:
    """The pool and those that it is to be compared with, by name."""

    pool: Manifest
    controls: tuple[Manifest, ...] = ()
    ranking: tuple[Ranked, ...] = field(default=(), repr=False)


def _by_text(question: Question, rows: Sequence[Candidate], sources: Sources) -> list[Ranked]:
    by_name = {row.adapter: row for row in rows}
    where = parse(question.where) if question.where else None
    with open_texts(sources.session, sources.index, sources.embedder()) as texts:
        found = search(
            sources.session,
            texts,
            question.text or "",
            max(len(rows), 1),
            query=where,
            refusing=sources.refusing,
        )
    return [Ranked(by_name[hit.adapter], hit.score, hit.why) for hit in found.hits if hit.adapter in by_name]


def _by_adapter(question: Question, rows: Sequence[Candidate], sources: Sources) -> list[Ranked]:
    by_name = {row.adapter: row for row in rows}
    subject = sources.subject(question.like or "")
    found = neighbours(
        sources.session,
        subject,
        sources.index,
        sources.blobs,
        sources.refusing,
        by=likeness.kind(question.kind),
        count=max(len(rows), 1),
    )
    return [Ranked(by_name[row.adapter], row.score, row.why) for row in found if row.adapter in by_name]


def _by_score(question: Question, rows: Sequence[Candidate], sources: Sources) -> list[Ranked]:
    return _by_scores(by_score(_matrix(question, rows, sources), _task(question)), rows)


def _by_prior(question: Question, rows: Sequence[Candidate], sources: Sources) -> list[Ranked]:
    return _by_scores(prior(_matrix(question, rows, sources), _task(question)), rows)


def _by_like_tasks(question: Question, rows: Sequence[Candidate], sources: Sources) -> list[Ranked]:
    ranking = from_like_tasks(_matrix(question, rows, sources), _task(question), _texts(question, sources))
    return _by_scores(ranking, rows)


def _by_completion(question: Question, rows: Sequence[Candidate], sources: Sources) -> list[Ranked]:
    ranking = completion(_matrix(question, rows, sources), _task(question), _texts(question, sources))
    return _by_scores(ranking, rows)


def _task(question: Question) -> str:
    return question.task or ""


def _texts(question: Question, sources: Sources) -> dict[str, str]:
    """What tasks ask for, in words; that of the question's own task is --query where it is given."""
    said = {_task(question): question.text} if question.text else {}
    return {**sources.texts, **said}


def _worst(question: Question, rows: Sequence[Candidate], sources: Sources) -> list[Ranked]:
    return _by_score(question, rows, sources)[::-1]


def _matrix(question: Question, rows: Sequence[Candidate], sources: Sources) -> ScoreMatrix:
    """The measured scores of the candidates and of all others; of no test split unless it is asked for."""
    table = score_table(
        sources.session, question.splits or None, leave_out=() if question.splits else ("test",)
    )
    cells = ((adapter, task, value, n) for (adapter, task), (value, n) in table.cells.items())
    matrix = score_matrix(cells, base=table.base.items(), adapters=[row.adapter for row in rows])
    task = _task(question)
    unmeasured = task not in matrix.tasks and task in _texts(question, sources)
    return matrix.blank(task) if unmeasured else matrix


def _by_scores(ranking: Ranking, rows: Sequence[Candidate]) -> list[Ranked]:
    """The candidates that a ranking can say something of, best first."""
    by_name = {row.adapter: row for row in rows}
    found = []
    for place in ranking.order():
        row, score = by_name.get(ranking.adapters[place]), float(ranking.scores[place])
        if row is not None and not math.isnan(score):
            found.append(Ranked(row, score, ranking.why[place]))
    return found


def _random(question: Question, rows: Sequence[Candidate], sources: Sources) -> list[Ranked]:
    return random_order(rows, question.seed)


def _largest(question: Question, rows: Sequence[Candidate], sources: Sources) -> list[Ranked]:
    return by_rank(rows, question.seed)


def _matched(question: Question, rows: Sequence[Candidate], sources: Sources) -> list[Ranked]:
    manifest = find_pool(sources.session, question.to or "")
    everybody = candidates(sources.session, sources.refusing)
    members = {(member.hub_id, member.commit, member.subfolder) for member in manifest.members}
    pool = [row for row in everybody if (row.hub_id, row.commit, row.subfolder) in members]
    if len(pool) < len(members):
        raise NotFoundError(f"The catalog no longer holds all members of {question.to}; crawl them again.")
    return matched(rows, pool, question.seed)


STRATEGIES: dict[str, Strategy] = {
    "text": Strategy("Names and cards that fit --query, by words and meaning.", ("text",), _by_text),
    "adapter": Strategy("Weights like those of --like, an adapter or a folder.", ("like",), _by_adapter),
    "score": Strategy("What they scored on --task.", ("task",), _by_score),
    "prior": Strategy("How they stand out on other tasks than --task.", ("task",), _by_prior),
    "tasks": Strategy(
        "How they stand out on other tasks, those that read like --task most.", ("task",), _by_like_tasks
    ),
    "completion": Strategy(
        "Their expected score on --task, from it, from other tasks and from like adapters.",
        ("task",),
        _by_completion,
    ),
    "worst": Strategy("The lowest scores on --task first.", ("task",), _worst),
    "random": Strategy("Chance.", (), _random),
    "matched": Strategy("Chance, with the recipes of the pool --to.", ("to",), _matched),
    "rank": Strategy("The largest rank first.", (), _largest),
}
OPTIONS = {"text": "--query", "task": "--task", "like": "--like", "to": "--to"}


def select(question: Question, sources: Sources, *, controls: bool = False) -> Selection:
    """The pool that answers the question, with its controls where they are asked for.

    Raises UsageError and NotFoundError, in one sentence each, for a question that cannot be answered.
    """
    strategy = _checked(question)
    where = parse(question.where) if question.where else None
    rows = candidates(sources.session, sources.refusing, question.base, where)
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
    if question.distinct or question.per_family:
        known = list(likeness.fingerprinted(sources.session, sources.refusing, question.base))
        copies = likeness.copies(sources.session, known)
        if question.distinct:
            exact = likeness.exact_delta(sources.session, known, sources.blobs)
            groups = representatives(copies, question.distinct, exact)
        if question.per_family:
            members = {name: family.name for family in families(copies) for name in family.members}
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
    if question.by != "adapter":
        said.pop("kind")
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
        **({"blind": _by_prior(question, rows, sources)} if question.by == "score" else {}),
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
