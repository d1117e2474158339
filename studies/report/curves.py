"""A number of the cells against one of their settings: a line for each remaining point of the grid."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from studies.design import label
from studies.report.comparing import Cell, Results, by_task, finite, spread

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


def lines(cells: Sequence[Cell], key: str, of: Callable[[Cell], float | None]) -> tuple[Line, ...]:
    """Lines of the mean of a number against the setting `key`, in the order of the grid; those with points.

    The mean is over the tasks where every seed has the number.
    """
    found: dict[str, dict[float, list[Cell]]] = defaultdict(lambda: defaultdict(list))
    for one in cells:
        x = finite(one.settings.get(key))
        if x is not None:
            found[rest(one, key)][x].append(one)
    made = (_line(name, at, of) for name, at in found.items())
    return tuple(line for line in made if line.points)


def rest(cell: Cell, key: str) -> str:
    """The label of a cell without one of its settings."""
    return label(
        cell.method, cell.pool, {name: value for name, value in cell.settings.items() if name != key}
    )


def varied(results: Results) -> tuple[str, ...]:
    """The numeric settings of two values or more, of methods whose learning rate is not varied too."""
    found: dict[str, set[float]] = defaultdict(set)
    for one in results.cells:
        if RATE not in one.settings:
            for name, value in one.settings.items():
                number = finite(value)
                if number is not None:
                    found[name].add(number)
    return tuple(sorted(name for name, values in found.items() if len(values) > 1))


def _line(name: str, at: dict[float, list[Cell]], of: Callable[[Cell], float | None]) -> Line:
    points = []
    for x in sorted(at):
        means = by_task(at[x], of)
        over = spread(means)
        if over is not None:
            whole = len(means) == len({one.task for one in at[x]})
            points.append(Point(x, over.mean, over.error, over.tasks, whole))
    known = {point.x for point in points}
    return Line(name, tuple(points), tuple(x for x in sorted(at) if x not in known))
