"""Learning rates tuned by validation loss: each variant at its own best rate, and all at one rate."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from studies.report.comparing import (
    Cell,
    Difference,
    Means,
    Results,
    Spread,
    by_task,
    compare,
    finite,
    spread,
)
from studies.report.curves import RATE, rest

PLAIN = "lora"
_TOLD = frozenset({RATE, "variant", "rank"})


@dataclass(frozen=True, slots=True)
class Row:
    """One variant and rank: its test value and loss, and the value's difference to plain LoRA of the same
    rank (`against`).

    `rates` counts the rates it was trained at, over tasks and seeds; `edges` how often the lowest or highest
    rate tried was chosen; `failed` the trainings that failed, which can never be chosen.
    """

    label: str
    variant: str
    rank: float | None
    value: Spread | None
    loss: float | None
    against: str | None
    difference: Difference | None
    rates: dict[float, int]
    edges: int
    failed: int


@dataclass(frozen=True, slots=True)
class Extent:
    """The smallest and largest mean difference of `rows` rows; of `apart` the interval excludes zero.

    `tasks` is the largest number of tasks that one of them is over.
    """

    smallest: float
    largest: float
    apart: int
    rows: int
    tasks: int


@dataclass(frozen=True)
class _Trial:
    """The cells of one variant and rank, and one point of `others` that were varied, at every rate."""

    label: str
    method: str
    variant: str
    rank: float | None
    others: tuple[tuple[str, str], ...]
    cells: Sequence[Cell]


def tuned(results: Results, methods: Mapping[str, Any]) -> tuple[Row, ...]:
    """Each variant and rank at the rate with the lowest validation loss, chosen anew for every task and seed.

    A task counts where every seed has a training that is done and none that is missing.
    """
    trials = _trials(results, methods)
    return _rows(trials, {trial.label: _chosen(trial) for trial in trials}, results.steps)


def at_one_rate(results: Results, methods: Mapping[str, Any]) -> tuple[Row, ...]:
    """Each variant and rank at one rate: that with the lowest mean validation loss of plain LoRA at the rank.

    Only rates at which plain LoRA is done on every task and seed count; without one a rank has no rows.
    """
    trials = _trials(results, methods)
    best = {(trial.rank, trial.others): _best(trial) for trial in reversed(trials) if trial.variant == PLAIN}
    fixed = []
    for trial in trials:
        cells = [one for one in trial.cells if one.settings[RATE] == best.get((trial.rank, trial.others))]
        if cells:
            fixed.append(replace(trial, cells=cells))
    return _rows(fixed, {trial.label: trial.cells for trial in fixed}, results.steps)


def extent(rows: Sequence[Row]) -> Extent | None:
    """How far the rows differ from plain LoRA; None where none is compared."""
    found = [row.difference for row in rows if row.difference]
    if not found:
        return None
    apart = sum(one.low is not None and one.high is not None and one.low * one.high > 0 for one in found)
    means = [one.mean for one in found]
    return Extent(min(means), max(means), apart, len(found), max(one.tasks for one in found))


def _rows(trials: Sequence[_Trial], picked: Mapping[str, Sequence[Cell]], steps: Means) -> tuple[Row, ...]:
    values = {name: by_task(cells, lambda one: one.value) for name, cells in picked.items()}
    rows = []
    for trial in trials:
        plain = _plain(trial, trials)
        against = plain.label if plain else None
        rows.append(_row(trial, picked[trial.label], values, against, steps))
    return tuple(rows)


def _row(
    trial: _Trial, cells: Sequence[Cell], values: Mapping[str, Means], against: str | None, steps: Means
) -> Row:
    mine, losses = values[trial.label], spread(by_task(cells, lambda one: one.loss))
    done = [one for one in cells if one.status == "done"]
    rates: dict[float, int] = defaultdict(int)
    for one in done:
        rates[float(one.settings[RATE])] += 1
    tried = sorted({float(one.settings[RATE]) for one in trial.cells})
    ends = {tried[0], tried[-1]} if len(tried) > 1 else set()
    other = None if against in (None, trial.label) else against
    return Row(
        label=trial.label,
        variant=trial.variant,
        rank=trial.rank,
        value=spread(mine),
        loss=losses.mean if losses else None,
        against=other,
        difference=compare(mine, values[other], steps) if other else None,
        rates=dict(sorted(rates.items())),
        edges=sum(count for rate, count in rates.items() if rate in ends),
        failed=sum(one.status == "failed" for one in trial.cells),
    )


def _trials(results: Results, methods: Mapping[str, Any]) -> list[_Trial]:
    """Variant and rank are those of the settings, else of the method in the study, else of the detail."""
    found: dict[str, list[Cell]] = defaultdict(list)
    for one in results.cells:
        if finite(one.settings.get(RATE)):
            found[rest(one, RATE)].append(one)
    trials = []
    for name, cells in found.items():
        first = cells[0]
        told = {**(methods.get(first.method) or {}), **first.settings}
        rank = finite(told.get("rank"))
        if rank is None:
            rank = next((number for one in cells if (number := one.known("rank")) is not None), None)
        others = tuple(sorted((key, str(value)) for key, value in first.settings.items() if key not in _TOLD))
        trials.append(_Trial(name, first.method, str(told.get("variant", PLAIN)), rank, others, cells))
    return trials


def _plain(trial: _Trial, trials: Sequence[_Trial]) -> _Trial | None:
    """Plain LoRA of the same rank and other settings, of the same method where there is one."""
    key = PLAIN, trial.rank, trial.others
    same = [one for one in trials if (one.variant, one.rank, one.others) == key]
    return next((one for one in same if one.method == trial.method), same[0] if same else None)


def _chosen(trial: _Trial) -> list[Cell]:
    """For each task and seed the cell with the lowest validation loss, the lower rate of equals.

    Where one is missing or none is done it is that one, so that the task does not count.
    """
    runs: dict[tuple[str, int], list[Cell]] = defaultdict(list)
    for one in trial.cells:
        runs[one.task, one.seed].append(one)
    chosen = []
    for cells in runs.values():
        missing = [one for one in cells if one.status == "missing"]
        done = [one for one in cells if one.status == "done" and one.known("valid_loss") is not None]
        best = min(done, key=lambda one: (one.known("valid_loss"), one.settings[RATE]), default=cells[0])
        chosen.append(missing[0] if missing else best)
    return chosen


def _best(trial: _Trial) -> float | None:
    """The rate with the lowest validation loss on average over tasks, the lower rate of equals."""
    losses = {}
    for rate in sorted({float(one.settings[RATE]) for one in trial.cells}):
        cells = [one for one in trial.cells if one.settings[RATE] == rate]
        means = by_task(cells, lambda one: one.known("valid_loss"))
        over = spread(means)
        if over is not None and len(means) == len({one.task for one in cells}):
            losses[rate] = over.mean
    return min(losses, key=lambda rate: losses[rate]) if losses else None
