"""Measured scores in the catalog, with their number of samples and source; another source never overwrites
them.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from sqlalchemy import func, insert, or_, select
from sqlalchemy.orm import Session

from catalog.adapters import AdapterReference, adapter_name
from catalog.database.schema import Adapter, Evaluation, Repository
from catalog.errors import NotFoundError
from catalog.scores import BASE, OTHER_METRICS, SUCCESSORS, Score


@dataclass(frozen=True)
class Saved:
    """How many scores were new, how many replaced another value of the same source, how many were known."""

    new: int
    changed: int
    known: int
    unknown_adapters: int


def save_scores(session: Session, scores: Iterable[Score]) -> Saved:
    """Writes scores; one of the same subject, task, split, metric and source is replaced if it differs.

    Scores of adapters that are not in the catalog are stored too: a later crawl may find them.
    """
    listed = list(scores)
    sources = {score.source for score in listed}
    stored_rows = {
        (row.subject, row.task, row.split, row.metric, row.source): row
        for row in session.scalars(select(Evaluation).where(Evaluation.source.in_(sources)))
    }
    ids = _adapter_ids(session)
    changed = 0
    fresh: dict[tuple[str, ...], dict[str, Any]] = {}
    for score in listed:
        key = (score.subject, score.task, score.split, score.metric, score.source)
        row = stored_rows.get(key)
        if row is None:
            fresh[key] = {**vars(score), "adapter_id": ids.get(score.subject)}
        elif (row.value, row.n) != (score.value, score.n):
            row.value, row.n = score.value, score.n
            changed += 1
    if fresh:
        session.execute(insert(Evaluation), list(fresh.values()))
    session.flush()
    unknown = {score.subject for score in listed} - ids.keys() - {BASE}
    return Saved(len(fresh), changed, len(listed) - len(fresh) - changed, len(unknown))


def _adapter_ids(session: Session) -> dict[str, int]:
    """The rows of current adapters by their short name."""
    rows = session.execute(
        select(Repository.name, Adapter.subfolder, Adapter.id)
        .join(Adapter.repository)
        .where(Adapter.current, Repository.gone_at.is_(None))
    )
    return {adapter_name(name, subfolder): id_ for name, subfolder, id_ in rows}


@dataclass(frozen=True)
class ScoreTable:
    """Scores as rows and columns: `cells` maps (adapter, task) to value and number of samples."""

    adapters: tuple[str, ...]
    tasks: tuple[str, ...]
    cells: Mapping[tuple[str, str], tuple[float, int | None]]
    base: Mapping[str, float]


def score_table(
    session: Session,
    splits: Collection[str] | None = None,
    sources: Collection[str] | None = None,
    leave_out: Collection[str] = (),
    renewed: Collection[str] = (),
) -> ScoreTable:
    """The scores of adapters by short name and task, of some splits and sources, or of all except some.

    Scores by metrics that are not shares (`catalog.scores.metrics`) are left out. A column has scores of one
    rule of comparing answers: if a task has scores by the current rule, or is `renewed`, those by the
    previous rule are left out. Where several sources or splits measured a cell, their mean weighted by the
    number of samples; a source that does not give its number counts as one sample. Raises NotFoundError where
    there are none.
    """
    query = select(Evaluation).order_by(Evaluation.subject, Evaluation.task, Evaluation.id)
    query = query.where(Evaluation.metric.not_in(OTHER_METRICS))
    if splits is not None:
        query = query.where(Evaluation.split.in_(splits))
    if leave_out:
        query = query.where(or_(Evaluation.split.not_in(leave_out), Evaluation.subject == BASE))
    if sources is not None:
        query = query.where(Evaluation.source.in_(sources))
    sums: dict[tuple[str, str], list[tuple[float, int | None]]] = {}
    evaluations = list(session.scalars(query))
    present = {(row.task, row.metric) for row in evaluations}
    for row in evaluations:
        successor = SUCCESSORS.get(row.metric)
        if successor and (row.task in renewed or (row.task, successor) in present):
            continue
        sums.setdefault((_short(row.subject), row.task), []).append((row.value, row.n))
    if not sums:
        raise NotFoundError("The catalog contains no scores; import some with `import_scores(FILE)`.")
    cells = {key: _mean(values) for key, values in sums.items()}
    base = {task: value for (subject, task), (value, _) in cells.items() if subject == BASE}
    adapters = tuple(sorted({subject for subject, _ in cells} - {BASE}))
    of_adapters = {key: cell for key, cell in cells.items() if key[0] != BASE}
    return ScoreTable(adapters, tuple(sorted({task for _, task in cells})), of_adapters, base)


def _short(subject: str) -> str:
    """The subject without its commit, as adapters are listed."""
    if "@" not in subject:
        return subject
    reference = AdapterReference.parse(subject)
    return adapter_name(reference.name, reference.subfolder or "")


def _mean(values: list[tuple[float, int | None]]) -> tuple[float, int | None]:
    weights = [n or 1 for _, n in values]
    mean = sum(value * weight for (value, _), weight in zip(values, weights, strict=True)) / sum(weights)
    counts = [n for _, n in values if n is not None]
    return mean, sum(counts) if counts else None


def summary(session: Session) -> list[dict[str, Any]]:
    """The number of scores of each source, by split and metric."""
    rows = session.execute(
        select(
            Evaluation.source,
            Evaluation.split,
            Evaluation.metric,
            func.count(Evaluation.id),
            func.count(func.distinct(Evaluation.subject)),
            func.count(func.distinct(Evaluation.task)),
            func.count(Evaluation.adapter_id),
        )
        .group_by(Evaluation.source, Evaluation.split, Evaluation.metric)
        .order_by(Evaluation.source, Evaluation.split, Evaluation.metric)
    )
    names = ("source", "split", "metric", "scores", "subjects", "tasks", "of_known_adapters")
    return [dict(zip(names, row, strict=True)) for row in rows]


def scores_of(session: Session, subject: str | None = None, task: str | None = None) -> list[dict[str, Any]]:
    """The scores of one subject, of one task, or of both, the highest first; those by earlier rules last."""
    query = select(Evaluation).order_by(
        Evaluation.task, Evaluation.metric.in_(SUCCESSORS), Evaluation.value.desc(), Evaluation.subject
    )
    if subject is not None:
        query = query.where(Evaluation.subject == subject)
    if task is not None:
        query = query.where(Evaluation.task == task)
    return [
        {
            "adapter": row.subject,
            "task": row.task,
            "split": row.split,
            "metric": row.metric,
            "value": row.value,
            "n": row.n,
            "source": row.source,
        }
        for row in session.scalars(query)
    ]
