"""Measured scores of adapters on tasks, and the rankings that use each adapter's own scores.

A score is a share of right answers, from 0 to 1, on a number of samples. The score of an adapter never
depends on names: adapters with the same row have the same score. `catalog.scores.prediction` ranks by the
similarity of adapters and of tasks, `catalog.scores.racing` by further measurements.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from catalog.errors import NotFoundError, UsageError

Floats = NDArray[np.float64]

# The number of samples of a cell whose source does not give it: the usual one of published evaluations.
UNSAID = 100
# The quantile from which the gain of a column counts: the best quarter of the adapters, which lies close to
# the base model's score, so that this need not be known.
QUANTILE = 0.75
# Added to a column's standard deviation, so that a column without differences stays constant.
_LEAST_SPREAD = 0.01


@dataclass(frozen=True, slots=True, eq=False)
class ScoreMatrix:
    """Scores of adapters (rows) on tasks (columns) with holes.

    `values` of (adapters, tasks) holds shares from 0 to 1, NaN where nothing was measured; `n` of the same
    shape holds numbers of samples, 0 there; `base` of (tasks,) is the base model's score, NaN where unknown.
    Raises UsageError if they do not match.
    """

    adapters: tuple[str, ...]
    tasks: tuple[str, ...]
    values: Floats
    n: Floats
    base: Floats

    def __post_init__(self) -> None:
        shape = (len(self.adapters), len(self.tasks))
        if self.values.shape != shape or self.n.shape != shape or self.base.shape != shape[1:]:
            raise UsageError("Scores, numbers of samples and names differ in number; give one for each cell.")
        for what, names in (("adapter", self.adapters), ("task", self.tasks)):
            if len(set(names)) < len(names):
                twice = next(name for name in names if names.count(name) > 1)
                raise UsageError(f"The table contains the {what} {twice} twice; leave one out.")
        measured = self.values[~np.isnan(self.values)]
        if measured.size and not 0 <= measured.min() <= measured.max() <= 1:
            raise UsageError("A score lies outside 0 to 1; give shares of right answers.")
        if not np.array_equal(~np.isnan(self.values), self.n > 0):
            raise UsageError("A score without samples, or samples without a score; give both or neither.")

    def column(self, task: str) -> int:
        """The column of a task; raises NotFoundError that names the nearest ones."""
        if task in self.tasks:
            return self.tasks.index(task)
        near = difflib.get_close_matches(task, self.tasks, n=3)
        hint = f"did you mean {' or '.join(near)}?" if near else "give a task that has scores."
        raise NotFoundError(f"No scores found for the task {task}; {hint}")

    def with_column(self, task: str, values: Floats, n: Floats) -> ScoreMatrix:
        """The matrix with these scores (adapters,) and samples on a task that it has, or at its end."""
        tasks = self.tasks if task in self.tasks else (*self.tasks, task)
        at = tasks.index(task)
        new, samples = (np.insert(a, at, b, axis=1) for a, b in ((self.values, values), (self.n, n)))
        base = self.base
        if task in self.tasks:
            new, samples = np.delete(new, at + 1, axis=1), np.delete(samples, at + 1, axis=1)
        else:
            base = np.append(base, np.nan)
        return replace(self, tasks=tasks, values=new, n=samples, base=base)

    def blank(self, task: str) -> ScoreMatrix:
        """The matrix as if nothing had been measured on this task; it is appended where it is not there."""
        size = len(self.adapters)
        return self.with_column(task, np.full(size, np.nan), np.zeros(size))

    def without(self, *tasks: str) -> ScoreMatrix:
        """The matrix without these tasks."""
        gone = [self.column(task) for task in tasks]
        tasks_left = tuple(task for task in self.tasks if task not in tasks)
        # One layout in memory, so that sums are rounded alike whatever was taken out.
        values, n = (np.ascontiguousarray(np.delete(a, gone, axis=1)) for a in (self.values, self.n))
        return replace(self, tasks=tasks_left, values=values, n=n, base=np.delete(self.base, gone))


@dataclass(frozen=True, slots=True, eq=False)
class Ranking:
    """A ranker's result for every adapter: a score (NaN if it has none), and its reason in a few words.

    `deviation` is the standard deviation of a score that is a prediction, None for a ranker without one.
    """

    adapters: tuple[str, ...]
    scores: Floats
    why: tuple[str, ...]
    deviation: Floats | None = None

    def order(self) -> list[int]:
        """The adapters' numbers, best first; equal scores by name, those without a score last."""
        scores = np.where(np.isnan(self.scores), -np.inf, self.scores)
        return sorted(range(len(self.adapters)), key=lambda i: (-scores[i], self.adapters[i]))


def score_matrix(
    cells: Iterable[tuple[str, str, float, int | None]],
    *,
    base: Iterable[tuple[str, float]] = (),
    adapters: Iterable[str] = (),
) -> ScoreMatrix:
    """The matrix of (adapter, task, score, samples) cells, rows and columns sorted by name.

    `base` gives the base model's score by task; `adapters` names rows to include without a score. None
    samples count as 100. Raises UsageError for a repeated cell and for an invalid score.
    """
    measured_cells: dict[tuple[str, str], tuple[float, int]] = {}
    for adapter, task, value, n in cells:
        if (adapter, task) in measured_cells:
            raise UsageError(f"{adapter} has two scores on {task}; choose one split, metric and source.")
        if not (0 <= value <= 1 and (n is None or n > 0)):
            raise UsageError(f"{adapter} on {task}: {value} of {n} samples is not a score from 0 to 1.")
        measured_cells[adapter, task] = (value, UNSAID if n is None else n)
    base_scores = dict(base)
    rows = sorted({adapter for adapter, _ in measured_cells} | set(adapters))
    tasks = sorted({task for _, task in measured_cells})
    row, column = {name: i for i, name in enumerate(rows)}, {name: i for i, name in enumerate(tasks)}
    values, n_cells = np.full((len(rows), len(tasks)), np.nan), np.zeros((len(rows), len(tasks)))
    for (adapter, task), (value, n) in measured_cells.items():
        values[row[adapter], column[task]], n_cells[row[adapter], column[task]] = value, n
    bases = np.array([base_scores.get(task, np.nan) for task in tasks], dtype=np.float64)
    return ScoreMatrix(tuple(rows), tuple(tasks), values, n_cells, bases)


def by_score(matrix: ScoreMatrix, task: str) -> Ranking:
    """Adapters by their scores on the task itself; NaN for those not measured on it.

    Raises NotFoundError for an unknown task and UsageError if no adapter was measured on it.
    """
    at = matrix.column(task)
    values, n = matrix.values[:, at], matrix.n[:, at]
    if not n.any():
        raise UsageError(f"No adapter was measured on {task}; measure some or rank by other tasks.")
    why = tuple(
        f"{value:.3f} on {count:.0f} samples of {task}" if count else f"not measured on {task}"
        for value, count in zip(values, n, strict=True)
    )
    return Ranking(matrix.adapters, values.copy(), why)


def prior(matrix: ScoreMatrix, task: str) -> Ranking:
    """Adapters by how far they stand out on the other tasks, shrunk towards the mean if few are known.

    The score is the mean over tasks of the excess (see `excess`), in standard deviations, times
    n_i / (n_i + sigma^2 / tau^2): n_i the number of tasks that adapter i was measured on, sigma^2 the
    variance within an adapter and tau^2 that between adapters, by the method of moments (empirical Bayes;
    Morris, JASA 78 (1983)). Scores on the task itself are not used. Raises NotFoundError for an unknown task
    and UsageError if no other task has a score.
    """
    matrix.column(task)
    other_matrix = other_tasks(matrix, task)
    columns = excess(other_matrix.values)
    count = (~np.isnan(columns)).sum(axis=1)
    means, effects = _means(columns), effect(columns)
    gains = _means(other_matrix.values - other_matrix.base)
    why = tuple(
        f"stands out by {mean:+.2f} sd over {tasks} other task(s), shrunk to {shrunk:+.2f}"
        + (f"; mean gain over the base {gain:+.3f}" if not np.isnan(gain) else "")
        if tasks
        else "measured on no other task"
        for mean, shrunk, gain, tasks in zip(means, effects, gains, count, strict=True)
    )
    return Ranking(matrix.adapters, effects, why)


def other_tasks(matrix: ScoreMatrix, task: str) -> ScoreMatrix:
    """The other tasks that any adapter was measured on; raises UsageError if there are none."""
    empty = [name for name, n in zip(matrix.tasks, matrix.n.T, strict=True) if name != task and not n.any()]
    other_matrix = matrix.without(*{task, *empty} & set(matrix.tasks))
    if not other_matrix.tasks:
        raise UsageError(f"No adapter was measured on a task other than {task}; import scores first.")
    return other_matrix


def excess(values: Floats) -> Floats:
    """max(score - q, 0) of every cell with q the column's upper quartile, centred, over its spread.

    Takes and gives (adapters, tasks) with NaN for holes. The spread is the standard deviation of the excess
    plus 0.01. The head of a ranking depends on the tasks where an adapter is among the best; a mean of scores
    depends more on those where it fails, mostly by a wrong form of answers.
    """
    above = np.maximum(values - np.nanquantile(values, QUANTILE, axis=0), 0)
    result: Floats = (above - np.nanmean(above, axis=0)) / (np.nanstd(above, axis=0) + _LEAST_SPREAD)
    return result


def standardise(values: Floats) -> Floats:
    """Every column with mean 0 and variance 1 over its measured cells; all 0 where they do not differ."""
    spread = np.nanstd(values, axis=0)
    result: Floats = (values - np.nanmean(values, axis=0)) / np.where(spread > 0, spread, 1)
    return result


def effect(columns: Floats) -> Floats:
    """The mean of every row of (adapters, tasks) shrunk towards 0 by empirical Bayes; 0 for an empty row."""
    count = (~np.isnan(columns)).sum(axis=1)
    means = np.nan_to_num(_means(columns))
    inside = columns - means[:, None]
    freedom = int(count.sum() - (count > 0).sum())
    sigma2 = float(np.nansum(inside**2)) / freedom if freedom > 0 else 1.0
    measured = count > 0
    tau2 = float(np.mean(means[measured] ** 2 - sigma2 / count[measured])) if measured.any() else 0.0
    tau2 = max(tau2, 1e-9)
    result: Floats = means * count / np.where(measured, count + sigma2 / tau2, 1)
    return result


def _means(columns: Floats) -> Floats:
    """The mean of every row over its measured cells; NaN for an empty row."""
    count = (~np.isnan(columns)).sum(axis=1)
    result: Floats = np.where(count > 0, np.nansum(columns, axis=1) / np.maximum(count, 1), np.nan)
    return result
