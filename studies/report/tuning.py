"""Learning rates tuned by validation loss: each variant at its own best rate, and all at one rate."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from studies.report.comparing import (
    RATE,
    Difference,
    Means,
    ResultCell,
    Results,
    Spread,
    by_task,
    compare,
    finite,
    mean_and_error,
    rest,
)

PLAIN = "lora"
_TOLD = frozenset({RATE, "variant", "rank"})


@dataclass(frozen=True, slots=True)
class TuningRow:
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
    cells: Sequence[ResultCell]


def tune_by_loss(results: Results, methods: Mapping[str, Any]) -> tuple[TuningRow, ...]:
    """Each variant and rank at the rate with the lowest validation loss, chosen anew for every task and seed.

    A task counts where every seed has a training that is done and none that is missing.
    """
    trials = _trials(results, methods)
    return _rows(trials, {trial.label: _choose_cells(trial) for trial in trials}, results.steps)


def at_one_rate(results: Results, methods: Mapping[str, Any]) -> tuple[TuningRow, ...]:
    """Each variant and rank at one rate: that with the lowest mean validation loss of plain LoRA at the rank.

    Only rates at which plain LoRA is done on every task and seed count; without one a rank has no rows.
    """
    trials = _trials(results, methods)
    best = {(trial.rank, trial.others): _best(trial) for trial in reversed(trials) if trial.variant == PLAIN}
    fixed = []
    for trial in trials:
        cells = [cell for cell in trial.cells if cell.settings[RATE] == best.get((trial.rank, trial.others))]
        if cells:
            fixed.append(replace(trial, cells=cells))
    return _rows(fixed, {trial.label: trial.cells for trial in fixed}, results.steps)


def extent(rows: Sequence[TuningRow]) -> Extent | None:
    """How far the rows differ from plain LoRA; None where none is compared."""
    differences = [row.difference for row in rows if row.difference]
    if not differences:
        return None
    apart = sum(
        difference.low is not None and difference.high is not None and difference.low * difference.high > 0
        for difference in differences
    )
    means = [difference.mean for difference in differences]
    return Extent(
        min(means), max(means), apart, len(differences), max(difference.tasks for difference in differences)
    )


def _rows(
    trials: Sequence[_Trial], picked: Mapping[str, Sequence[ResultCell]], steps: Means
) -> tuple[TuningRow, ...]:
    values = {name: by_task(cells, lambda cell: cell.value) for name, cells in picked.items()}
    rows = []
    for trial in trials:
        plain = _plain(trial, trials)
        against = plain.label if plain else None
        rows.append(_row(trial, picked[trial.label], values, against, steps))
    return tuple(rows)


def _row(
    trial: _Trial, cells: Sequence[ResultCell], values: Mapping[str, Means], against: str | None, steps: Means
) -> TuningRow:
    mine, losses = values[trial.label], mean_and_error(by_task(cells, lambda cell: cell.loss))
    done = [cell for cell in cells if cell.status == "done"]
    rates: dict[float, int] = defaultdict(int)
    for cell in done:
        rates[float(cell.settings[RATE])] += 1
    tried = sorted({float(cell.settings[RATE]) for cell in trial.cells})
    ends = {tried[0], tried[-1]} if len(tried) > 1 else set()
    other = None if against in (None, trial.label) else against
    return TuningRow(
        label=trial.label,
        variant=trial.variant,
        rank=trial.rank,
        value=mean_and_error(mine),
        loss=losses.mean if losses else None,
        against=other,
        difference=compare(mine, values[other], steps) if other else None,
        rates=dict(sorted(rates.items())),
        edges=sum(count for rate, count in rates.items() if rate in ends),
        failed=sum(cell.status == "failed" for cell in trial.cells),
    )


def _trials(results: Results, methods: Mapping[str, Any]) -> list[_Trial]:
    """Variant and rank are those of the settings, else of the method in the study, else of the detail."""
    cells_by_label: dict[str, list[ResultCell]] = defaultdict(list)
    for cell in results.cells:
        if finite(cell.settings.get(RATE)):
            cells_by_label[rest(cell, RATE)].append(cell)
    trials = []
    for name, cells in cells_by_label.items():
        first = cells[0]
        settings = {**(methods.get(first.method) or {}), **first.settings}
        rank = finite(settings.get("rank"))
        if rank is None:
            rank = next((number for cell in cells if (number := cell.known("rank")) is not None), None)
        other_settings = tuple(
            sorted((key, str(value)) for key, value in first.settings.items() if key not in _TOLD)
        )
        trials.append(
            _Trial(name, first.method, str(settings.get("variant", PLAIN)), rank, other_settings, cells)
        )
    return trials


def _plain(trial: _Trial, trials: Sequence[_Trial]) -> _Trial | None:
    """Plain LoRA of the same rank and other settings, of the same method where there is one."""
    key = PLAIN, trial.rank, trial.others
    same = [
        plain_trial
        for plain_trial in trials
        if (plain_trial.variant, plain_trial.rank, plain_trial.others) == key
    ]
    return next(
        (plain_trial for plain_trial in same if plain_trial.method == trial.method), same[0] if same else None
    )


def _choose_cells(trial: _Trial) -> list[ResultCell]:
    """For each task and seed the cell with the lowest validation loss, the lower rate of equals.

    Where one is missing or none is done it is that one, so that the task does not count.
    """
    runs: dict[tuple[str, int], list[ResultCell]] = defaultdict(list)
    for cell in trial.cells:
        runs[cell.task, cell.seed].append(cell)
    picked = []
    for cells in runs.values():
        missing = [cell for cell in cells if cell.status == "missing"]
        done = [cell for cell in cells if cell.status == "done" and cell.known("valid_loss") is not None]
        best = min(done, key=lambda cell: (cell.known("valid_loss"), cell.settings[RATE]), default=cells[0])
        picked.append(missing[0] if missing else best)
    return picked


def _best(trial: _Trial) -> float | None:
    """The rate with the lowest validation loss on average over tasks, the lower rate of equals."""
    losses = {}
    for rate in sorted({float(cell.settings[RATE]) for cell in trial.cells}):
        cells = [cell for cell in trial.cells if cell.settings[RATE] == rate]
        means = by_task(cells, lambda cell: cell.known("valid_loss"))
        over = mean_and_error(means)
        if over is not None and len(means) == len({cell.task for cell in cells}):
            losses[rate] = over.mean
    return min(losses, key=lambda rate: losses[rate]) if losses else None
