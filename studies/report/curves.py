"""A number of the cells against one of their settings: a line for each remaining point of the grid."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from studies.design import label
from studies.report.comparing import ResultCell, Results, by_task, finite, mean_and_error

RATE = "learning_rate"


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
