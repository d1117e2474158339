"""Measured scores in the catalog, with their number of samples and source; another source never overwrites
them.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from sqlalchemy import Select, delete, func, insert, or_, select
from sqlalchemy.orm import Session

from catalog.adapters import AdapterReference, adapter_name
from catalog.database.schema import Adapter, Evaluation, ItemList, Repository
from catalog.errors import NotFoundError, UsageError
from catalog.scores import BASE, OTHER_METRICS, SCORE_METRICS, SUCCESSORS, Outcomes, Score

# How many tasks with several metrics a sentence names.
_NAMED_TASKS = 3


@dataclass(frozen=True)
class Saved:
    """How many scores were new, how many replaced another value of the same source, how many were known."""

    new: int
    changed: int
    known: int
    unknown_adapters: int


def save_scores(session: Session, scores: Iterable[Score]) -> Saved:
    """Writes scores; one of the same subject, task, split, metric, source and protocol is replaced if it
    differs.

    Scores of adapters that are not in the catalog are stored too: a later crawl may find them. The same value
    without outcomes does not remove those on record. Raises UsageError if a list of items has another length
    than on record.
    """
    listed = list(scores)
    sources = {score.source for score in listed}
    stored_rows = {
        (row.subject, row.task, row.split, row.metric, row.source, row.protocol): row
        for row in session.scalars(select(Evaluation).where(Evaluation.source.in_(sources)))
    }
    _save_item_lists(session, listed)
    ids = _adapter_ids(session)
    changed = 0
    fresh: dict[tuple[str, ...], dict[str, Any]] = {}
    for score in listed:
        key = (score.subject, score.task, score.split, score.metric, score.source, score.protocol)
        row, values = stored_rows.get(key), _values(score)
        if row is None:
            fresh[key] = {**values, "adapter_id": ids.get(score.subject)}
        elif _differs(row, score):
            for name, value in values.items():
                setattr(row, name, value)
            changed += 1
    if fresh:
        session.execute(insert(Evaluation), list(fresh.values()))
    session.flush()
    if changed:
        lists_in_use = select(Evaluation.items_sha).where(Evaluation.items_sha.is_not(None))
        session.execute(delete(ItemList).where(ItemList.items_sha.not_in(lists_in_use)))
    unknown = {score.subject for score in listed} - ids.keys() - {BASE}
    return Saved(len(fresh), changed, len(listed) - len(fresh) - changed, len(unknown))


def _values(score: Score) -> dict[str, Any]:
    """The columns of a score, but for the adapter's number."""
    values = {name: value for name, value in vars(score).items() if name != "outcomes"}
    outcomes = score.outcomes
    return values | {
        "items_sha": outcomes.items_sha if outcomes else None,
        "outcomes": outcomes.bitmap if outcomes else None,
        "margins": outcomes.margins or None if outcomes else None,
    }


def _differs(row: Evaluation, score: Score) -> bool:
    """Whether a score says something else than the row, or more."""
    if (row.value, row.n) != (score.value, score.n):
        return True
    outcomes = score.outcomes
    record = (row.items_sha, row.outcomes, row.margins or b"")
    return outcomes is not None and record != (outcomes.items_sha, outcomes.bitmap, outcomes.margins)


def _save_item_lists(session: Session, scores: Iterable[Score]) -> None:
    """Writes the lists of items that are not on record, and the hashes of those known without."""
    lists: dict[str, tuple[int, bytes]] = {}
    for score in scores:
        if score.outcomes is not None and score.n is not None:
            n, hashes = lists.get(score.outcomes.items_sha, (score.n, b""))
            if n != score.n:
                raise _other_length(score.outcomes.items_sha, n, score.n)
            lists[score.outcomes.items_sha] = (n, hashes or score.outcomes.hashes)
    stored_lists = {row.items_sha: row for row in session.scalars(select(ItemList))} if lists else {}
    for sha, (n, hashes) in lists.items():
        row = stored_lists.get(sha)
        if row is None:
            session.add(ItemList(items_sha=sha, n=n, hashes=hashes or None))
        elif row.n != n:
            raise _other_length(sha, row.n, n)
        elif row.hashes is None and hashes:
            row.hashes = hashes
    session.flush()


def _other_length(sha: str, n: int, other: int) -> UsageError:
    return UsageError(f"The items {sha} are {n} in one place and {other} in another; correct the items_sha.")


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
    """Scores as rows and columns: `cells` maps (adapter, task) to value and number of samples.

    `metrics` has the metric of each task's column, and `other_metrics` those whose scores are left out.
    """

    adapters: tuple[str, ...]
    tasks: tuple[str, ...]
    cells: Mapping[tuple[str, str], tuple[float, int | None]]
    base: Mapping[str, float]
    metrics: Mapping[str, str]
    other_metrics: Mapping[str, tuple[str, ...]]

    @property
    def note(self) -> str:
        """A sentence on tasks with scores by several metrics; empty if there are none."""
        choices = [
            f"{task} by {self.metrics[task]}, without {' and '.join(names)}"
            for task, names in self.other_metrics.items()
        ]
        more = f"; and {len(choices) - _NAMED_TASKS:,} more" if len(choices) > _NAMED_TASKS else ""
        listed = "; ".join(choices[:_NAMED_TASKS])
        return f"Scores of a task are compared by one metric: {listed}{more}." if choices else ""


def score_table(
    session: Session,
    splits: Collection[str] | None = None,
    sources: Collection[str] | None = None,
    leave_out: Collection[str] = (),
    metrics: Mapping[str, str] | None = None,
    protocol: str = "",
) -> ScoreTable:
    """The scores of adapters by short name and task, of some splits and sources, or of all except some.

    Scores by metrics that are not shares (`catalog.scores.metrics`) and of other protocols are left out. A
    column has scores by one metric: that of `metrics` where it names the task, else the one that most
    adapters have, of several the first in the list of metrics; the previous rule of comparing answers only
    where there are none by the current one. Where several sources or splits measured a cell, their mean
    weighted by the number of samples; a source that does not give its number counts as one sample. Raises
    NotFoundError where there are none.
    """
    query = select(Evaluation).order_by(Evaluation.subject, Evaluation.task, Evaluation.id)
    query = query.where(Evaluation.metric.not_in(OTHER_METRICS), Evaluation.protocol == protocol)
    if splits is not None:
        query = query.where(Evaluation.split.in_(splits))
    if leave_out:
        query = query.where(or_(Evaluation.split.not_in(leave_out), Evaluation.subject == BASE))
    if sources is not None:
        query = query.where(Evaluation.source.in_(sources))
    evaluations = list(session.scalars(query))
    columns, others = _choose_metrics(evaluations, metrics or {})
    sums: dict[tuple[str, str], list[tuple[float, int | None]]] = {}
    for row in evaluations:
        if row.metric == columns[row.task]:
            sums.setdefault((_short(row.subject), row.task), []).append((row.value, row.n))
    if not sums:
        raise NotFoundError("The catalog contains no scores; import some with `import_scores(FILE)`.")
    cells = {key: _mean(values) for key, values in sums.items()}
    base = {task: value for (subject, task), (value, _) in cells.items() if subject == BASE}
    adapters = tuple(sorted({subject for subject, _ in cells} - {BASE}))
    of_adapters = {key: cell for key, cell in cells.items() if key[0] != BASE}
    tasks = tuple(sorted({task for _, task in cells}))
    return ScoreTable(adapters, tasks, of_adapters, base, columns, others)


def _choose_metrics(
    evaluations: Iterable[Evaluation], metrics: Mapping[str, str]
) -> tuple[dict[str, str], dict[str, tuple[str, ...]]]:
    """By task the metric of its column, and where there are several the others."""
    subjects: dict[str, dict[str, set[str]]] = {}
    for row in evaluations:
        subjects.setdefault(row.task, {}).setdefault(row.metric, set()).add(row.subject)
    order = {name: place for place, name in enumerate(SCORE_METRICS)}
    columns, others = {}, {}
    for task, by_metric in sorted(subjects.items()):
        current = [name for name in by_metric if SUCCESSORS.get(name) not in by_metric]
        columns[task] = metrics.get(task) or min(
            current,
            key=lambda name: (-len(by_metric[name] - {BASE}), order.get(name, len(order)), name),
        )
        if left_out := sorted(by_metric.keys() - {columns[task]}):
            others[task] = tuple(left_out)
    return columns, others


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
    """The number of scores of each source, by split, metric and protocol, and how many have outcomes."""
    key = (Evaluation.source, Evaluation.split, Evaluation.metric, Evaluation.protocol)
    rows = session.execute(
        select(
            *key,
            func.count(Evaluation.id),
            func.count(func.distinct(Evaluation.subject)),
            func.count(func.distinct(Evaluation.task)),
            func.count(Evaluation.adapter_id),
            func.count(Evaluation.items_sha),
        )
        .group_by(*key)
        .order_by(*key)
    )
    counts = ("scores", "subjects", "tasks", "of_known_adapters", "with_outcomes")
    names = ("source", "split", "metric", "protocol", *counts)
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
            "protocol": row.protocol,
            "items_sha": row.items_sha,
        }
        for row in session.scalars(query)
    ]


@dataclass(frozen=True)
class ScoreFilter:
    """Which scores: on one task, and of these splits, metrics, protocols, sources where they are not None."""

    task: str | None = None
    split: str | None = None
    metric: str | None = None
    protocol: str | None = None
    source: str | None = None

    def select(self) -> Select[Evaluation, bytes | None]:
        """The query, with the hashes of items; the highest value first within a task, split and metric."""
        clauses = [
            getattr(Evaluation, name) == value for name, value in vars(self).items() if value is not None
        ]
        return (
            select(Evaluation, ItemList.hashes)
            .outerjoin(ItemList, ItemList.items_sha == Evaluation.items_sha)
            .where(*clauses)
            .order_by(
                *(Evaluation.task, Evaluation.split, Evaluation.metric, Evaluation.protocol),
                *(Evaluation.value.desc(), Evaluation.subject, Evaluation.source),
            )
        )


def stored_scores(
    session: Session, which: ScoreFilter, adapters: Collection[str] | None = None
) -> list[Score]:
    """The scores that a filter admits, of these subjects or of all, with their outcomes."""
    query = which.select()
    if adapters is not None:
        query = query.where(Evaluation.subject.in_(adapters))
    return [_score(row, hashes) for row, hashes in session.execute(query)]


def _score(row: Evaluation, hashes: bytes | None) -> Score:
    outcomes = None
    if row.items_sha is not None and row.outcomes is not None:
        outcomes = Outcomes(row.items_sha, row.outcomes, row.margins or b"", hashes or b"")
    return Score(
        subject=row.subject,
        task=row.task,
        split=row.split,
        metric=row.metric,
        value=row.value,
        n=row.n,
        source=row.source,
        protocol=row.protocol,
        outcomes=outcomes,
    )
