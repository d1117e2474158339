"""The cells of a grid summed up: means over tasks, lines of these, differences that are paired over tasks.

Seeds are averaged within a task first, so that a task counts once. A task counts for a label where every cell
that the grid has there is done; a difference is over the tasks where both labels count, and there over the
seeds that both have.
"""

from __future__ import annotations

import math
import statistics
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from catalog.scores import paired_bootstrap
from studies.design import label

# Below so many tasks an interval is not to be trusted.
FEW = 5
# Differences of shares such as 0.81 - 0.79 are not exact in binary.
_EXACT = 1e-9
NO_NUMBER = "The value is not a finite number."

RATE = "learning_rate"

Means = dict[str, float]


@dataclass(frozen=True, slots=True)
class ResultCell:
    """One line of results.jsonl, its label made; `value` is None unless it is done."""

    label: str
    task: str
    seed: int
    method: str
    pool: str | None
    settings: Mapping[str, Any]
    status: str
    error: str | None
    value: float | None
    loss: float | None
    n: int
    detail: Mapping[str, Any] = field(default_factory=dict)

    def known(self, name: str) -> float | None:
        """A number of the detail; None where there is none, or no finite one."""
        return finite(self.detail.get(name))


@dataclass(frozen=True, slots=True)
class Spread:
    """A mean over tasks and its standard error, None for a single task."""

    mean: float
    error: float | None
    tasks: int


@dataclass(frozen=True, slots=True)
class Difference:
    """A mean paired difference over tasks, its 95 % interval (None for a single task), and who wins where."""

    mean: float
    low: float | None
    high: float | None
    tasks: int
    wins: int
    ties: int
    losses: int
    by_task: Means


@dataclass(frozen=True, slots=True)
class LabelRow:
    """A label summed up over the tasks that count, of the `expected` ones where the grid has cells.

    `seeds` is how many seeds the grid has for it.
    """

    label: str
    value: Spread | None
    loss: float | None
    difference: Difference | None
    tasks: int
    expected: int
    seeds: int
    done: int
    failed: int
    missing: int


@dataclass(frozen=True, slots=True)
class Point:
    """A mean over tasks, seeds averaged first, and its standard error; `whole` where all cells are done."""

    x: float
    mean: float
    error: float | None
    tasks: int
    whole: bool


@dataclass(frozen=True, slots=True)
class Line:
    """The points of one line in the order of x; at `left_out` no task is complete."""

    label: str
    points: tuple[Point, ...]
    left_out: tuple[float, ...]


class Results:
    """All cells of a grid, in its order."""

    def __init__(self, cells: Sequence[Mapping[str, Any]]) -> None:
        self.cells = tuple(_cell(row) for row in cells)
        self.labels = tuple(dict.fromkeys(row.label for row in self.cells))
        self.tasks = tuple(dict.fromkeys(row.task for row in self.cells))
        self.seeds = tuple(sorted({row.seed for row in self.cells}))
        self._at: dict[tuple[str, str], list[ResultCell]] = defaultdict(list)
        for row in self.cells:
            self._at[row.label, row.task].append(row)
        examples: dict[str, list[int]] = defaultdict(list)
        for row in self.cells:
            if row.n:
                examples[row.task].append(row.n)
        # What one test example is worth on each task.
        self.steps: Means = {task: 1 / min(counts) for task, counts in examples.items()}
        self.examples = {task: min(counts) for task, counts in examples.items()}

    def at(self, label: str, task: str) -> list[ResultCell]:
        """The cells of a label on a task, one a seed."""
        return self._at.get((label, task), [])

    def of(self, label: str) -> list[ResultCell]:
        """The cells of a label."""
        return [cell for task in self.tasks for cell in self.at(label, task)]

    def values(self, label: str) -> Means:
        """The value on each task that counts for the label."""
        return by_task(self.of(label), lambda cell: cell.value)

    def losses(self, label: str) -> Means:
        """The loss on each task that counts for the label."""
        return by_task(self.of(label), lambda cell: cell.loss)

    def compare(self, label: str, against: str) -> Difference | None:
        """The paired difference over the seeds that both have; None where no task counts for both."""
        return compare(self._pair(label, against), self._pair(against, label), self.steps)

    def _pair(self, label: str, other: str) -> Means:
        """The value on each task that counts, over the seeds that the other label has there too."""
        means = {}
        for task in self.values(label):
            seeds = {cell.seed for cell in self.at(other, task)}
            values = [
                cell.value for cell in self.at(label, task) if cell.seed in seeds and cell.value is not None
            ]
            if values:
                means[task] = statistics.fmean(values)
        return means

    def row(self, label: str, against: str | None) -> LabelRow:
        """The label summed up, and compared with another one, if that is not the same."""
        cells, values, losses = self.of(label), self.values(label), self.losses(label)
        states = [cell.status for cell in cells]
        return LabelRow(
            label=label,
            value=mean_and_error(values),
            loss=statistics.fmean(losses.values()) if losses else None,
            difference=self.compare(label, against) if against and against != label else None,
            tasks=len(values),
            expected=len({cell.task for cell in cells}),
            seeds=len({cell.seed for cell in cells}),
            done=states.count("done"),
            failed=states.count("failed"),
            missing=states.count("missing"),
        )


def by_task(cells: Sequence[ResultCell], of: Callable[[ResultCell], float | None]) -> Means:
    """The mean of a number over the seeds of each task where all cells are done and have it."""
    values_by_task: dict[str, list[float | None]] = defaultdict(list)
    for cell in cells:
        values_by_task[cell.task].append(of(cell) if cell.status == "done" else None)
    means = {}
    for task, numbers in values_by_task.items():
        measured = [number for number in numbers if number is not None]
        if len(measured) == len(numbers):
            means[task] = statistics.fmean(measured)
    return means


def mean_and_error(means: Means) -> Spread | None:
    """Mean and standard error over tasks; None without tasks."""
    if not means:
        return None
    values = list(means.values())
    error = statistics.stdev(values) / math.sqrt(len(values)) if len(values) > 1 else None
    return Spread(statistics.fmean(values), error, len(values))


def compare(mine: Means, other: Means, steps: Means) -> Difference | None:
    """The paired difference mine - other over the tasks of both; None where there is none.

    A difference on a task is a tie where it is smaller than `steps` has it for the task, or zero.
    """
    tasks = [task for task in mine if task in other]
    if not tasks:
        return None
    gaps = {task: mine[task] - other[task] for task in tasks}
    first, second = (np.array([means[task] for task in tasks]) for means in (mine, other))
    interval = paired_bootstrap(first, second)
    ties = [task for task in tasks if abs(gaps[task]) < max(steps.get(task, 0.0) - _EXACT, _EXACT)]
    wins = sum(gaps[task] > 0 for task in tasks if task not in ties)
    few = len(tasks) == 1
    return Difference(
        mean=interval.mean,
        low=None if few else interval.low,
        high=None if few else interval.high,
        tasks=len(tasks),
        wins=wins,
        ties=len(ties),
        losses=len(tasks) - len(ties) - wins,
        by_task=gaps,
    )


def verdict(difference: Difference | None, margin: float) -> str:
    """What interval and margin allow to say, in a word or two: a key of `studies.report.wording.VERDICTS`."""
    if difference is None:
        return "nothing to compare"
    if difference.low is None or difference.high is None:
        return "one task"
    low, high = difference.low, difference.high
    if low >= -margin - _EXACT and high <= margin + _EXACT:
        return "about the same"
    if low > margin + _EXACT:
        return "more"
    if high < -margin - _EXACT:
        return "less"
    if low > _EXACT:
        return "more, perhaps little"
    if high < -_EXACT:
        return "less, perhaps little"
    return "cannot be told"


def finite(value: Any) -> float | None:
    """The value as a number; None for what is none, or not finite."""
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not math.isfinite(value):
        return None
    return float(value)


def lines(
    cells: Sequence[ResultCell], key: str, of: Callable[[ResultCell], float | None]
) -> tuple[Line, ...]:
    """Lines of the mean of a number against the setting `key`, in the order of the grid; those with points.

    The mean is over the tasks where every seed has the number.
    """
    cells_by_line: dict[str, dict[float, list[ResultCell]]] = defaultdict(lambda: defaultdict(list))
    for cell in cells:
        x = finite(cell.settings.get(key))
        if x is not None:
            cells_by_line[rest(cell, key)][x].append(cell)
    line_candidates = (_line(name, at, of) for name, at in cells_by_line.items())
    return tuple(line for line in line_candidates if line.points)


def rest(cell: ResultCell, key: str) -> str:
    """The label of a cell without one of its settings."""
    return label(
        cell.method, cell.pool, {name: value for name, value in cell.settings.items() if name != key}
    )


def varying_settings(results: Results) -> tuple[str, ...]:
    """The numeric settings of two values or more, of methods whose learning rate is not varied too."""
    values_by_setting: dict[str, set[float]] = defaultdict(set)
    for cell in results.cells:
        if RATE not in cell.settings:
            for name, value in cell.settings.items():
                number = finite(value)
                if number is not None:
                    values_by_setting[name].add(number)
    return tuple(sorted(name for name, values in values_by_setting.items() if len(values) > 1))


def _line(name: str, at: dict[float, list[ResultCell]], of: Callable[[ResultCell], float | None]) -> Line:
    points = []
    for x in sorted(at):
        means = by_task(at[x], of)
        over = mean_and_error(means)
        if over is not None:
            complete = len(means) == len({cell.task for cell in at[x]})
            points.append(Point(x, over.mean, over.error, over.tasks, complete))
    xs = {point.x for point in points}
    return Line(name, tuple(points), tuple(x for x in sorted(at) if x not in xs))


def _cell(row: Mapping[str, Any]) -> ResultCell:
    value, status, error = finite(row.get("value")), str(row["status"]), row.get("error")
    if status == "done" and value is None:
        status, error = "failed", NO_NUMBER
    done = status == "done"
    settings, pool = dict(row.get("settings") or {}), row.get("pool")
    return ResultCell(
        label=label(str(row["method"]), pool, settings),
        task=str(row["task"]),
        seed=int(row["seed"]),
        method=str(row["method"]),
        pool=pool,
        settings=settings,
        status=status,
        error=error,
        value=value if done else None,
        loss=finite(row.get("loss")) if done else None,
        n=int(row.get("n") or 0) if done else 0,
        detail=row.get("detail") or {},
    )
