"""The strategies: each ranks the candidates for a question and gives the reason for each rank.

A strategy only ranks; limits decide the number of members. All of them are deterministic given catalog,
question and seed. Writes no rows.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sqlalchemy.orm import Session

from catalog.adapters import Engine, Use
from catalog.database import find_pool, score_table
from catalog.errors import NotFoundError, UsageError
from catalog.files import BlobStore
from catalog.index import Embedder
from catalog.scores import (
    Measure,
    Ranking,
    ScoreMatrix,
    by_score,
    completion,
    from_like_tasks,
    prior,
    race,
    score_matrix,
)
from catalog.search import Subject, downhill, likeness, neighbours, open_texts, search
from catalog.selection.limits import Ranked, by_rank, match_recipes, random_order
from catalog.selection.pinning import Candidates, stored_adapters
from catalog.selection.pinning import candidates as all_candidates

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray


# The best of each ranking of texts that are joined.
_JOINED = 5000
# The minimum number of adapters that are compared exactly, if requested.
SHORTLIST = 20


@dataclass(frozen=True)
class Question:
    """The question of a selection; every field that is set is part of the manifest. `count` is None for
    all."""

    name: str
    by: str
    count: int | None
    seed: int = 0
    base: str | None = None
    rules: str = "ours"
    where: str = ""
    text: str | None = None
    task: str | None = None
    task_digest: str | None = None
    samples: int | None = None
    exact: bool = False
    budget: int | None = None
    like: str | None = None
    adapters: tuple[str, ...] = ()
    to: str | None = None
    kind: str = "output"
    use: Use = "research"
    per_owner: int | None = None
    per_family: int | None = None
    parameters: int | None = None
    distinct: str | None = None
    exclude: tuple[str, ...] = ()
    without: tuple[str, ...] = ()
    splits: tuple[str, ...] = ()
    texts: str | None = None
    beside: tuple[str, ...] = ()
    date: str | None = None
    left_out: int | None = None


@dataclass(frozen=True)
class Sources:
    """The sources of strategies: the database, the caches, and the values that the caller prepared.

    `measure` scores adapters, by short name, on further samples of the question's task, by `metric`; `note`
    is called with sentences on what is left out. `direction`, of
    (size,), is the query of `catalog.search.nearest.downhill` to the index of the question's kind, from the
    candidates' base model; `backgrounds`, of (several, size), are the same of other tasks; `exact` gives, by
    short name, the exact values that sketches estimate. `engines` have the rules that the filter follows, by
    default the program's own.
    """

    session: Session
    refusing: Collection[str]
    index: Path
    blobs: BlobStore
    embedder: Callable[[], Embedder | None]
    subject: Callable[[str], Subject]
    texts: Mapping[str, str] = field(default_factory=dict)
    measure: Measure | None = None
    metric: str = ""
    note: Callable[[str], None] = field(default=lambda _: None)
    exact: Callable[[Sequence[str]], Sequence[float]] | None = None
    direction: NDArray[np.floating[Any]] | None = None
    backgrounds: NDArray[np.floating[Any]] | None = None
    engines: Sequence[Engine] | None = None


Rank = Callable[[Question, Candidates, Sources], list[Ranked]]
Head = Callable[[Question, Candidates, Sources, int], list[Ranked]]
Explain = Callable[[Question, Sequence[Ranked], Sources], list[Ranked]]


@dataclass(frozen=True)
class Strategy:
    """A strategy: its description in one sentence, the fields of the question that it requires, and the
    function.

    `head` gives about as many of the first of the ranking as asked for, where that is cheaper; `explain`
    says of those chosen why, where that is not known of all.
    """

    sentence: str
    needs: tuple[str, ...]
    rank: Rank
    head: Head | None = None
    explain: Explain | None = None


def _by_text(question: Question, candidates: Candidates, sources: Sources) -> list[Ranked]:
    return _text_head(question, candidates, sources, len(candidates))


def _text_head(question: Question, candidates: Candidates, sources: Sources, count: int) -> list[Ranked]:
    """The first of the ranking: all are ranked, and these get their reasons."""
    with open_texts(sources.session, sources.index, sources.embedder()) as texts:
        found = search(
            sources.session,
            texts,
            question.text or "",
            len(candidates),
            among=candidates.among,
            most=count,
            joined=_JOINED,
        )
    rows = candidates.with_ids([hit.id for hit in found.hits])
    return [Ranked(row, hit.score, hit.why) for row, hit in zip(rows, found.hits, strict=True)]


def _by_adapter(question: Question, candidates: Candidates, sources: Sources) -> list[Ranked]:
    return _nearest(question, candidates, sources, len(candidates))


def _adapter_head(question: Question, candidates: Candidates, sources: Sources, count: int) -> list[Ranked]:
    """The first of the ranking, without those that are as near as the last one: more may be."""
    head = _nearest(question, candidates, sources, count)
    return [ranked for ranked in head if len(head) < count or ranked.score != head[-1].score]


def _nearest(question: Question, candidates: Candidates, sources: Sources, count: int) -> list[Ranked]:
    nearest = neighbours(
        sources.session,
        sources.subject(question.like or ""),
        sources.index,
        sources.blobs,
        sources.refusing,
        by=likeness.kind(question.kind),
        count=count,
        among=candidates.among,
    )
    by_name = candidates.named([row.adapter for row in nearest])
    return [Ranked(by_name[row.adapter], row.score, row.why) for row in nearest]


def _by_name(question: Question, candidates: Candidates, _: Sources) -> list[Ranked]:
    names = dict.fromkeys(question.adapters)
    by_name = candidates.named(names)
    if missing := [name for name in names if name not in by_name]:
        raise UsageError(
            f"{missing[0]} is not among the adapters to select from: the catalog does not contain it, the "
            f"rules {question.rules} refuse it, its license forbids {question.use}, or its base model is not "
            f"{candidates.base}. Leave it out of `adapters`."
        )
    return [Ranked(by_name[name], None, "named") for name in names]


def _by_texts(predict: Callable[[ScoreMatrix, str, Mapping[str, str]], Ranking]) -> Rank:
    """The strategy of a prediction from scores and the instructions of tasks."""

    def rank(question: Question, candidates: Candidates, sources: Sources) -> list[Ranked]:
        matrix, texts = _matrix(question, candidates, sources), _texts(question, sources)
        return _by_scores(predict(matrix, _task(question), texts), candidates)

    return rank


_by_score = _by_texts(lambda matrix, task, _: by_score(matrix, task))


def _by_racing(question: Question, candidates: Candidates, sources: Sources) -> list[Ranked]:
    if sources.measure is None:
        raise UsageError("Selecting by racing requires a base model that measures adapters on the `task`.")
    matrix = _matrix(question, candidates, sources, racing=True)
    result = race(
        matrix, _task(question), sources.measure, question.budget or 0, texts=_texts(question, sources)
    )
    return _by_scores(result.ranking, candidates)


def _by_gradient(question: Question, candidates: Candidates, sources: Sources) -> list[Ranked]:
    if sources.direction is None:
        raise UsageError("Selecting by gradient requires a base model with a gradient on the `task`.")
    backgrounds = () if sources.backgrounds is None else sources.backgrounds
    keys = {row.key for row in candidates.rows}
    kind = likeness.kind(question.kind)
    scores = downhill(
        sources.session, sources.index, keys, sources.direction, backgrounds, kind, candidates.base
    )
    what = f"sd of the cosine, less those on {len(backgrounds)} others" if len(backgrounds) else "cosine"
    ranked = [
        Ranked(row, scores[row.key], f"down the slope of {_task(question)}: {scores[row.key]:+.3f} {what}")
        for row in candidates.rows
        if row.key in scores
    ]
    ranked.sort(key=lambda row: (-scores[row.candidate.key], row.candidate.adapter))
    return ranked if sources.exact is None else _reorder(question, ranked, sources.exact)


def _reorder(
    question: Question, ranked: Sequence[Ranked], exact: Callable[[Sequence[str]], Sequence[float]]
) -> list[Ranked]:
    """The best first by exact scores, the rest as they were."""
    best = ranked[: max(2 * (question.count or len(ranked)), SHORTLIST)]
    scores = exact([row.candidate.adapter for row in best])
    what = f"down the slope of {_task(question)}, exactly"
    head = [
        Ranked(row.candidate, score, f"{what}: {score:+.4g}") for row, score in zip(best, scores, strict=True)
    ]
    head.sort(key=lambda row: (-(row.score or 0.0), row.candidate.adapter))
    return head + list(ranked[len(best) :])


def _task(question: Question) -> str:
    return question.task or ""


def _texts(question: Question, sources: Sources) -> dict[str, str]:
    """The instructions of tasks; that of the question's task is `text` if it is given."""
    texts = {_task(question): question.text} if question.text else {}
    return {**sources.texts, **texts}


def _matrix(
    question: Question, candidates: Candidates, sources: Sources, *, racing: bool = False
) -> ScoreMatrix:
    """The measured scores of the candidates and of all others, without test splits unless requested.

    For a race only those of the candidates, which may be empty.
    """
    names, task = [row.adapter for row in candidates.rows], _task(question)
    try:
        splits = question.splits
        table = score_table(
            sources.session,
            splits or None,
            leave_out=() if splits else ("test",),
            # A column has the metric by which the race measures.
            metrics={task: sources.metric} if racing and sources.metric else {},
        )
    except NotFoundError:
        if racing:
            return score_matrix((), adapters=names).blank(task)
        raise
    if table.note:
        sources.note(table.note)
    among = set(names) if racing else set(table.adapters)
    cells = (
        (adapter, task, value, n) for (adapter, task), (value, n) in table.cells.items() if adapter in among
    )
    matrix = score_matrix(cells, base=table.base.items(), adapters=names)
    unmeasured = task not in matrix.tasks and (racing or task in _texts(question, sources))
    return matrix.blank(task) if unmeasured else matrix


def _by_scores(ranking: Ranking, candidates: Candidates) -> list[Ranked]:
    """The candidates that a ranking has a score for, best first."""
    by_name = {row.adapter: row for row in candidates.rows}
    ranked = []
    for place in ranking.order():
        row, score = by_name.get(ranking.adapters[place]), float(ranking.scores[place])
        if row is not None and not math.isnan(score):
            ranked.append(Ranked(row, score, ranking.why[place]))
    return ranked


def _match_control(question: Question, candidates: Candidates, sources: Sources) -> list[Ranked]:
    manifest = find_pool(sources.session, question.to or "")
    everybody = stored_adapters(sources.session, all_candidates(sources.session, sources.refusing).rows)
    members = {(member.hub_id, member.commit, member.subfolder) for member in manifest.members}
    pool = [row for row in everybody if (row.hub_id, row.commit, row.subfolder) in members]
    if len(pool) < len(members):
        raise NotFoundError(f"Some members of {question.to} are no longer in the catalog; crawl them again.")
    return match_recipes(stored_adapters(sources.session, candidates.rows), pool, question.seed)


STRATEGIES: dict[str, Strategy] = {
    "text": Strategy(
        "Names and cards that fit `query`, by words and meaning.", ("text",), _by_text, _text_head
    ),
    "adapter": Strategy(
        "Weights similar to those of `like`, an adapter or a folder.", ("like",), _by_adapter, _adapter_head
    ),
    "score": Strategy("Their scores on `task`.", ("task",), _by_score),
    "prior": Strategy(
        "Their lead over other adapters on tasks other than `task`.",
        ("task",),
        _by_texts(lambda matrix, task, _: prior(matrix, task)),
    ),
    "tasks": Strategy(
        "Their lead over other adapters on other tasks, weighted by similarity to `task`.",
        ("task",),
        _by_texts(from_like_tasks),
    ),
    "completion": Strategy(
        "Their expected score on `task`, from `task`, other tasks and similar adapters.",
        ("task",),
        _by_texts(completion),
    ),
    "racing": Strategy(
        "Their expected score on `task` after `budget` samples, spent where they are most informative.",
        ("task", "budget"),
        _by_racing,
    ),
    "gradient": Strategy(
        "The alignment of their weights with the negative gradient of the base model's loss on `task`.",
        ("task",),
        _by_gradient,
    ),
    "worst": Strategy(
        "The lowest scores on `task` first.",
        ("task",),
        lambda question, candidates, sources: _by_score(question, candidates, sources)[::-1],
    ),
    "random": Strategy(
        "Chance.",
        (),
        lambda question, candidates, _: random_order(candidates.rows, question.seed),
        lambda question, candidates, _, count: random_order(
            candidates.random_head(question.seed, count), question.seed
        ),
    ),
    "matched": Strategy("At random, with the recipes of the pool `to`.", ("to",), _match_control),
    "rank": Strategy(
        "The largest rank first.",
        (),
        lambda _question, candidates, _: by_rank(candidates.rows),
        lambda _question, candidates, _, count: by_rank(candidates.rank_head(count), count),
    ),
    "named": Strategy("The members that `adapters` names, in this order.", ("adapters",), _by_name),
}
# The parameter of the public call for what a strategy needs.
PARAMETERS = {
    "text": "query",
    "task": "task",
    "budget": "budget",
    "like": "like",
    "to": "to",
    "adapters": "adapters",
}
