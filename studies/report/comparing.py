"""The cells of a grid summed up: means over tasks, lines and paired differences of these, gains related to
the relevance of pools, and learning rates tuned by validation loss.

Seeds are averaged within a task first, so that a task counts once. A task counts for a label where every cell
that the grid has there is done; a difference is over the tasks where both labels count, and there over the
seeds that both have.
"""

from __future__ import annotations

import math
import statistics
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from catalog.scores import mean_test, sign_flip_p
from studies.design import label

# Below so many tasks nothing is called better, worse or the same.
FEW = 8
# Below so many tasks a bootstrap over them is too narrow.
FEW_TO_DRAW = 20
# Differences of shares such as 0.81 - 0.79 are not exact in binary.
_EXACT = 1e-9
_LARGEST = 1e100
NO_NUMBER = "The value is not a finite number."

RATE = "learning_rate"
PLAIN = "lora"
_DRAWS = 2000
_TUNED = frozenset({RATE, "variant", "rank"})

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
    """A mean paired difference over tasks, its 95 % t interval (None for a single task), and who wins where.

    `inner_low` and `inner_high` are the ends of the 90 % interval; `p` is that of the t test, None if all
    differences are zero, and `sign_flip_p` that of the sign-flip test.
    """

    mean: float
    low: float | None
    high: float | None
    tasks: int
    wins: int
    ties: int
    losses: int
    by_task: Means
    inner_low: float | None = None
    inner_high: float | None = None
    p: float | None = None
    sign_flip_p: float | None = None


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
    """All cells of a grid, in its order.

    `parts` says of a set of adapters, which stands in the place of a task, over how many tasks its value is
    the mean.
    """

    def __init__(self, cells: Sequence[Mapping[str, Any]], parts: Mapping[str, int] | None = None) -> None:
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
        self.steps: Means = {
            task: 1 / (min(counts) * (parts or {}).get(task, 1)) for task, counts in examples.items()
        }
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
        return compare_cells(self.of(label), self.of(against), self.steps)

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


def compare_cells(
    cells: Sequence[ResultCell], others: Sequence[ResultCell], steps: Means
) -> Difference | None:
    """The paired difference of values over tasks that count for both, and there over the seeds of both."""
    return compare(_paired_values(cells, others), _paired_values(others, cells), steps)


def _paired_values(cells: Sequence[ResultCell], others: Sequence[ResultCell]) -> Means:
    places = {(cell.task, cell.seed) for cell in others}
    counting = by_task(cells, lambda cell: cell.value)
    shared = [cell for cell in cells if cell.task in counting and (cell.task, cell.seed) in places]
    return by_task(shared, lambda cell: cell.value)


def compare(mine: Means, other: Means, steps: Means) -> Difference | None:
    """The paired difference mine - other over the tasks of both; None where there is none.

    A difference on a task is a tie where it is smaller than `steps` has it for the task, or zero.
    """
    tasks = [task for task in mine if task in other]
    if not tasks:
        return None
    return summarise({task: mine[task] - other[task] for task in tasks}, steps)


def summarise(gaps: Means, steps: Means, *, sign_flips: bool = True) -> Difference:
    """The differences on at least one task summed up; ties are those smaller than `steps` has it, or zero.

    Without `sign_flips` that test, which takes longest, is left out.
    """
    ties = [task for task, gap in gaps.items() if abs(gap) < max(steps.get(task, 0.0) - _EXACT, _EXACT)]
    wins = sum(gap > 0 for task, gap in gaps.items() if task not in ties)
    # Equal shares of other denominators differ in binary.
    exact = [0.0 if abs(gap) < _EXACT else gap for gap in gaps.values()]
    test = mean_test(exact) if len(gaps) > 1 else None
    return Difference(
        mean=statistics.fmean(exact),
        low=test.low if test else None,
        high=test.high if test else None,
        tasks=len(gaps),
        wins=wins,
        ties=len(ties),
        losses=len(gaps) - len(ties) - wins,
        by_task=gaps,
        inner_low=test.inner_low if test else None,
        inner_high=test.inner_high if test else None,
        p=test.p if test else None,
        sign_flip_p=sign_flip_p(exact) if test and sign_flips else None,
    )


def finite(value: Any) -> float | None:
    """The value as a number; None for what is none, not finite, or too large for a sum."""
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not abs(value) <= _LARGEST:
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


@dataclass(frozen=True, slots=True)
class Related:
    """A method with a pool on a task, seeds averaged: relevance of the pool and gain.

    Both are less their means over the pools that the method has there.
    """

    task: str
    label: str
    pool: str
    own: bool
    relevance: float
    gain: float


@dataclass(frozen=True, slots=True)
class Correlation:
    """Spearman's rank correlation with its 95 % bootstrap interval over tasks, where there is one."""

    rho: float
    low: float | None
    high: float | None
    points: int
    tasks: int


def relate(results: Results, against: str) -> tuple[Related, ...]:
    """A point for each label with a pool and each task where relevance and both values are known.

    A method without a second pool on the task has none there.
    """
    points_by_label: dict[tuple[str, str], list[Related]] = defaultdict(list)
    for name in results.labels:
        cells = results.of(name)
        pool = cells[0].pool
        if name == against or not pool:
            continue
        relevance = by_task(cells, lambda cell: cell.known("relevance"))
        compared = results.compare(name, against)
        for task, gain in (compared.by_task if compared else {}).items():
            if task in relevance:
                own = any(bool(cell.detail.get("own")) for cell in results.at(name, task))
                method = label(cells[0].method, None, cells[0].settings)
                points_by_label[method, task].append(Related(task, name, pool, own, relevance[task], gain))
    return tuple(point for points in points_by_label.values() if len(points) > 1 for point in _center(points))


def _center(points: Sequence[Related]) -> list[Related]:
    relevance = statistics.fmean(point.relevance for point in points)
    gain = statistics.fmean(point.gain for point in points)
    return [replace(point, relevance=point.relevance - relevance, gain=point.gain - gain) for point in points]


def correlation(points: Sequence[Related], *, draws: int = _DRAWS, seed: int = 0) -> Correlation | None:
    """The rank correlation of relevance and gain; None below three points or where either is constant.

    For the interval whole tasks are drawn with replacement, since the points of a task belong together; draws
    without a correlation are left out.
    """
    if len(points) < 3:
        return None
    x, y = (np.array([getattr(point, name) for point in points]) for name in ("relevance", "gain"))
    rho = _spearman(x, y)
    if rho is None:
        return None
    names = list(dict.fromkeys(point.task for point in points))
    rows = [np.flatnonzero([point.task == name for point in points]) for name in names]
    generator = np.random.default_rng(seed)
    samples = []
    for _ in range(draws if len(names) > 1 else 0):
        resample = np.concatenate([rows[i] for i in generator.integers(len(names), size=len(names))])
        value = _spearman(x[resample], y[resample])
        if value is not None:
            samples.append(value)
    low, high = (float(end) for end in np.quantile(samples, [0.025, 0.975])) if samples else (None, None)
    return Correlation(rho, low, high, len(points), len(names))


def _spearman(x: NDArray[np.float64], y: NDArray[np.float64]) -> float | None:
    from scipy.stats import spearmanr

    return None if np.ptp(x) == 0 or np.ptp(y) == 0 else float(spearmanr(x, y).statistic)


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


@dataclass(frozen=True, slots=True)
class CurvatureSlopes:
    """The slope of the logarithm of the best rate on that of the curvature within each task, over the
    configurations of a study, with the mean over tasks as a difference to zero; None where no task has three
    configurations.

    `points` has for each task the curvature and the best rate of each configuration by its label. A best rate
    that is the lowest or highest one tried only bounds the optimum: `edges` counts these, which are left out;
    `slope_with_edges` is the slope with them at that rate.
    """

    slope: Difference | None
    points: dict[str, dict[str, tuple[float, float]]]
    edges: int
    slope_with_edges: Difference | None


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
    return _tuning_rows(trials, {trial.label: _choose_cells(trial) for trial in trials}, results.steps)


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
    return _tuning_rows(fixed, {trial.label: trial.cells for trial in fixed}, results.steps)


def relate_curvature(results: Results, methods: Mapping[str, Any]) -> CurvatureSlopes | None:
    """How the best rate falls with the curvature within tasks; None where curvatures or losses are missing.

    The best rate is the vertex of the parabola through the lowest validation loss and its neighbours over the
    logarithm of the rate; seeds are averaged first. A task counts for a configuration where no training is
    missing, and a rate where none failed.
    """
    points: dict[str, dict[str, tuple[float, float]]] = defaultdict(dict)
    edges: dict[str, dict[str, tuple[float, float]]] = defaultdict(dict)
    for trial in _trials(results, methods):
        for task in dict.fromkeys(cell.task for cell in trial.cells):
            cells = [cell for cell in trial.cells if cell.task == task]
            numbers = [number for cell in cells if (number := cell.known("curvature")) is not None]
            if any(cell.status == "missing" for cell in cells):
                continue
            best = best_rate(_mean_losses(cells))
            if best is None or not numbers or min(numbers) <= 0:
                continue
            kept = edges if best[1] else points
            kept[task][trial.label] = statistics.fmean(numbers), best[0]
    if not points and not edges:
        return None
    both = {task: {**points.get(task, {}), **edges.get(task, {})} for task in {**points, **edges}}
    return CurvatureSlopes(_slope(points), dict(points), sum(map(len, edges.values())), _slope(both))


def _slope(points: Mapping[str, Mapping[str, tuple[float, float]]]) -> Difference | None:
    """The slope of the logarithms within each task of three points or more, and its mean."""
    slopes = {}
    for task, pairs in points.items():
        x, y = np.log10(np.array(list(pairs.values()))).T
        if len(pairs) > 2 and np.ptp(x) > 0:
            slopes[task] = float(np.polyfit(x, y, 1)[0])
    return summarise(slopes, {}) if slopes else None


def best_rate(losses: Mapping[float, float]) -> tuple[float, bool] | None:
    """The rate where a parabola over log rate has the lowest loss, and whether it is an end of the rates."""
    if len(losses) < 3:
        return None
    rates = sorted(losses)
    at = min(range(len(rates)), key=lambda n: losses[rates[n]])
    if at in (0, len(rates) - 1):
        return rates[at], True
    three = rates[at - 1 : at + 2]
    a, b, _ = np.polyfit(np.log10(three), [losses[rate] for rate in three], 2)
    return (float(10 ** (-b / (2 * a))) if a > 0 else rates[at]), False


def _mean_losses(cells: Sequence[ResultCell]) -> dict[float, float]:
    """The mean validation loss over seeds at each rate where every seed has one, since seeds differ."""
    losses: dict[float, list[float | None]] = defaultdict(list)
    for cell in cells:
        losses[float(cell.settings[RATE])].append(cell.known("valid_loss"))
    means = {}
    for rate, values in losses.items():
        known = [value for value in values if value is not None]
        if len(known) == len(values):
            means[rate] = statistics.fmean(known)
    return means


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


def _tuning_rows(
    trials: Sequence[_Trial], picked: Mapping[str, Sequence[ResultCell]], steps: Means
) -> tuple[TuningRow, ...]:
    return tuple(_tuning_row(trial, picked, _plain_trial(trial, trials), steps) for trial in trials)


def _tuning_row(
    trial: _Trial, picked: Mapping[str, Sequence[ResultCell]], plain: _Trial | None, steps: Means
) -> TuningRow:
    cells = picked[trial.label]
    losses = mean_and_error(by_task(cells, lambda cell: cell.loss))
    done = [cell for cell in cells if cell.status == "done"]
    rates: dict[float, int] = defaultdict(int)
    for cell in done:
        rates[float(cell.settings[RATE])] += 1
    tried = sorted({float(cell.settings[RATE]) for cell in trial.cells})
    ends = {tried[0], tried[-1]} if len(tried) > 1 else set()
    other = None if plain is None or plain.label == trial.label else plain.label
    return TuningRow(
        label=trial.label,
        variant=trial.variant,
        rank=trial.rank,
        value=mean_and_error(by_task(cells, lambda cell: cell.value)),
        loss=losses.mean if losses else None,
        against=other,
        difference=compare_cells(cells, picked[other], steps) if other else None,
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
            sorted((key, str(value)) for key, value in first.settings.items() if key not in _TUNED)
        )
        trials.append(
            _Trial(name, first.method, str(settings.get("variant", PLAIN)), rank, other_settings, cells)
        )
    return trials


def _plain_trial(trial: _Trial, trials: Sequence[_Trial]) -> _Trial | None:
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
