"""What the recycling paper's own tables say of its claims, each number with an interval over tasks: of means
that of the t test, of medians and correlations that of the percentiles of a bootstrap.

No model is asked: the tables hold what adapters scored alone, and what three merges of them scored. A part is
a function of the folder; parts do not depend on one another.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path

import numpy as np

from catalog.scores import mean_test
from tools.published.claims import RAW
from tools.published.composition import composition
from tools.published.leaderboard import BLIND, MAIN, METRICS, RANDOM, column, judge_all
from tools.published.quoted import HEADLINE, Row, make_row
from tools.published.ranking import mean_at
from tools.published.tables import (
    MEASURED,
    MERGED,
    NEW,
    Floats,
    RankTask,
    Scores,
    base_on_samples,
    base_scores,
    load,
    pool_names,
    scores,
    zero_shot,
)

MERGES = {
    "simple average, own LoRA among them": "performance_agg",
    "simple average": "performance_agg_wo_target",
    "TSV, own LoRA among them": "performance_tsv",
    "TSV": "performance_tsv_wo_target",
    "TIES, own LoRA among them": "performance_ties",
    "TIES": "performance_ties_wo_target",
}
_TOP, _DRAWS = 30, 2000


def judge_alone(folder: Path) -> list[Row]:
    """What the pool's adapters score alone on the tasks with test scores, chosen by their 100 samples."""
    tasks = load(folder)
    new = scores(folder, NEW)
    base = np.array([task.base for task in tasks])
    lora = np.array([new.get(task.name, {}).get("test_accuracy", np.nan) for task in tasks])
    choices = {
        "base model": base,
        "new LoRA of 10 samples": lora,
        "adapter at random": _each(tasks, lambda task: float(np.nanmean(task.values))),
        "30 best of the 100 samples, mean": _each(tasks, lambda t: mean_at(t.column, t.values, _TOP)),
        "best of the 100 samples": _each(tasks, lambda t: mean_at(t.column, t.values, 1)),
        "best of the test itself": _each(tasks, lambda t: float(np.nanmax(t.values))),
    }
    names = [task.name for task in tasks]
    rows: list[Row] = []
    for name, values in choices.items():
        rows.append(_mean("alone", name, "score", values, names))
        against = {"less base": base, "less random": choices["adapter at random"], "less new LoRA": lora}
        rows += [
            _mean("alone", name, what, values, names, other)
            for what, other in against.items()
            if other is not values
        ]
    return rows + _shares(tasks, base)


def judge_merges(folder: Path) -> list[Row]:
    """What simple average, TSV and TIES of 30 adapters score against the base and a LoRA of 10 samples."""
    table, new = scores(folder, MERGED), scores(folder, NEW)
    zero_shot_scores, base = zero_shot(folder), base_scores(folder)
    tasks = sorted(table)
    columns: dict[str, Floats] = {name: _column(table, tasks, cell) for name, cell in MERGES.items()}
    lora = columns["new LoRA of 10 samples"] = _column(new, tasks, "test_accuracy")
    zero = columns["zero-shot"] = np.array([base.get(task, np.nan) for task in tasks])
    by_name = np.array([task in zero_shot_scores for task in tasks])
    rows: list[Row] = []
    for name, values in columns.items():
        rows.append(_mean("merged", name, "score", values, tasks))
        if by_name.any():
            named = np.where(by_name, values, np.nan)
            rows.append(_mean("merged", name, "score, zero-shot by name", named, tasks))
        for what, other in (("less zero-shot", zero), ("less new LoRA", lora)):
            if values is not other:
                rows.append(_mean("merged", name, what, values, tasks, other))
        without = columns.get(name.removesuffix(", own LoRA among them"), values)
        if without is not values:
            rows.append(_mean("merged", name, "less the same without it", values, tasks, without))
    everything = np.array(list(zero_shot_scores.values()))
    return [*rows, make_row("merged", "zero-shot, every row of its file", "score", _average(everything))]


def relevance(folder: Path) -> list[Row]:
    """Whether a merge gains more where the 30 best adapters gain more alone, on the 100 samples.

    The rank correlation is also given with the base's score held (of ranks, less what a line on the base's
    ranks explains): where the base is weak, there is more to gain for both.
    """
    table, base, start = scores(folder, MERGED), base_scores(folder), base_on_samples(folder)
    inside = set(pool_names(folder))
    columns: dict[str, list[float]] = {}
    for name, row in scores(folder, MEASURED).items():
        for task, value in row.items() if name in inside else ():
            columns.setdefault(task, []).append(value)
    tasks = sorted(set(table) & set(columns) & set(base) & set(start))
    alone = np.array([np.mean(sorted(columns[task])[-_TOP:]) - start[task] for task in tasks])
    zero = np.array([base[task] for task in tasks])
    gains = {name: _column(table, tasks, cell) - zero for name, cell in MERGES.items()}
    by_column = {
        "gain alone": alone,
        "gain merged": gains["simple average"],
        "base on test less on 100 samples": zero - np.array([start[task] for task in tasks]),
    }
    rows = [
        make_row("relevance", task, what, float(values[at]))
        for what, values in by_column.items()
        for at, task in enumerate(tasks)
    ]
    for name, gain in gains.items() if tasks else ():
        by_task = np.stack([alone, gain, zero], axis=1)
        rows.append(_resample("relevance", name, "rank correlation", by_task, _spearman, at_once=True))
        rows.append(
            _resample("relevance", name, "rank correlation, base held", by_task, _partial, at_once=True)
        )
    upper = alone > _median(alone)
    for name, gain in gains.items():
        for what, half in (("more", upper), ("less", ~upper)):
            names = [task for task, inside_half in zip(tasks, half, strict=True) if inside_half]
            rows.append(_mean("relevance", name, f"gain, {what} relevant half", gain[half], names))
    return rows


def leaderboard(folder: Path) -> list[Row]:
    """Ways of choosing adapters, judged by test scores: what tools.bench.retrieval prints, as rows."""
    tasks, published = load(folder), zero_shot(folder)
    results, names = judge_all(tasks), [task.name for task in tasks]
    by_name = np.array([name in published for name in names])
    rows: list[Row] = []
    for name in results:
        spent = column(results, name, "spent")
        rows.append(make_row("leaderboard", name, "samples", _average(spent), tasks=len(spent)))
        for metric in METRICS:
            values = column(results, name, metric)
            rows.append(_mean("leaderboard", name, metric, values, names))
            if metric == MAIN:
                named = np.where(by_name, values, np.nan)
                rows.append(_mean("leaderboard", name, f"{metric}, base by name", named, names))
            references = (RANDOM, BLIND, RAW) if metric == MAIN else (RANDOM,)
            for other in references:
                if other != name:
                    second = column(results, other, metric)
                    rows.append(_mean("leaderboard", name, f"{metric} less {other}", values, names, second))
    return rows


def headline(folder: Path) -> list[Row]:
    """The paper's own means over its 62 tasks, and those of them that the folder's files give again."""
    base, table = base_scores(folder), scores(folder, MERGED)
    by_name = {
        "zero-shot": np.array([base.get(task, np.nan) for task in sorted(table)]),
        "new LoRA of 10 samples": _column(scores(folder, NEW), sorted(table), "test_accuracy"),
    }
    return [
        _mean("headline", name, "score", by_name[name], sorted(table))
        if name in by_name
        else make_row("headline", name, "score")
        for name in HEADLINE
    ]


PARTS: Mapping[str, Callable[[Path], list[Row]]] = {
    "pool": composition,
    "alone": judge_alone,
    "merged": judge_merges,
    "relevance": relevance,
    "leaderboard": leaderboard,
    "headline": headline,
}


def _mean(
    part: str, row: str, what: str, values: Floats, tasks: Sequence[str], other: Floats | float = 0.0
) -> Row:
    """The mean over tasks, less the other's on the same tasks, with its t interval where there are two."""
    named = zip(tasks, (values - other).tolist(), strict=True)
    by_task = {task: value for task, value in named if not math.isnan(value)}
    numbers = list(by_task.values())
    if not numbers:
        return make_row(part, row, what, tasks=0)
    test = mean_test(numbers) if len(numbers) > 1 else None
    return make_row(
        part,
        row,
        what,
        float(np.mean(numbers)),
        ends=(test.low, test.high) if test else None,
        tasks=len(numbers),
        by_task=by_task,
    )


def _average(values: Floats) -> float | None:
    return float(np.mean(values)) if len(values) else None


def _each(tasks: Sequence[RankTask], measure: Callable[[RankTask], float]) -> Floats:
    return np.array([measure(task) for task in tasks])


def _column(table: Scores, tasks: Iterable[str], name: str) -> Floats:
    return np.array([table.get(task, {}).get(name, np.nan) for task in tasks])


def _shares(tasks: Sequence[RankTask], base: Floats) -> list[Row]:
    """Correlations of both scores, and how much of the pool beats the base, with intervals over tasks."""
    share = _each(tasks, lambda task: float(np.nanmean(task.beats)))
    values = np.array([task.values for task in tasks])
    pairs = [np.stack([task.column, task.values], axis=1) for task in tasks]
    complete = [pair[~np.isnan(pair).any(axis=1)] for pair in pairs]
    measures: dict[str, tuple[Floats, Callable[[Floats], float]]] = {
        "correlation of 100 samples and test, median task": (
            np.array([_pearson(task_pair) for task_pair in complete]),
            _median,
        ),
        "rank correlation of 100 samples and test, median task": (
            np.array([_spearman(task_pair) for task_pair in complete]),
            _median,
        ),
        "share of the pool above the base, median task": (share, _median),
        "pool adapter's mean over tasks, mean": (values, lambda matrix: float(np.mean(_by_adapter(matrix)))),
        "pool adapter's mean over tasks, median": (values, lambda matrix: _median(_by_adapter(matrix))),
        "adapters above the base on average": (
            values - base[:, None],
            lambda matrix: float((_by_adapter(matrix) > 0).sum()),
        ),
    }
    rows = [_resample("alone", name, "value", data, measure) for name, (data, measure) in measures.items()]
    name = "share of the pool above the base"
    return [
        *rows,
        make_row("alone", f"{name}, smallest", "value", float(share.min()), tasks=len(tasks)),
        make_row("alone", f"{name}, largest", "value", float(share.max()), tasks=len(tasks)),
    ]


def _by_adapter(values: Floats) -> Floats:
    """The mean over tasks of each adapter that was judged on one."""
    present = ~np.isnan(values)
    count = present.sum(axis=0)
    total = np.where(present, values, 0.0).sum(axis=0)
    means: Floats = total[count > 0] / count[count > 0]
    return means


def _resample(
    part: str,
    row: str,
    what: str,
    data: Floats,
    measure: Callable[[Floats], float | Floats],
    *,
    at_once: bool = False,
) -> Row:
    """A measure of data by task (tasks, ...), and its 95 % percentile interval over tasks drawn again.

    With `at_once` the measure takes the data of all draws, (draws, tasks, ...), and gives one number each.
    """
    draws = np.random.default_rng(0).integers(len(data), size=(_DRAWS, len(data)))
    measures = np.asarray(measure(data[draws]) if at_once else [measure(data[rows]) for rows in draws])
    measures = measures[~np.isnan(measures)]
    low, high = np.quantile(measures, [0.025, 0.975]) if len(measures) else (np.nan, np.nan)
    return make_row(part, row, what, float(measure(data)), ends=(float(low), float(high)), tasks=len(data))


def _median(values: Floats) -> float:
    """The median of those that are numbers, NaN where none is."""
    numbers = values[~np.isnan(values)]
    return float(np.median(numbers)) if len(numbers) else float("nan")


def _correlations(columns: Floats) -> Floats:
    """The correlations (..., k, k) of columns (..., n, k), NaN where one of the columns does not vary."""
    if columns.shape[-2] < 2:
        return np.full((*columns.shape[:-2], columns.shape[-1], columns.shape[-1]), np.nan)
    centred = columns - columns.mean(axis=-2, keepdims=True)
    products = np.swapaxes(centred, -1, -2) @ centred
    lengths = np.sqrt(np.diagonal(products, axis1=-2, axis2=-1))
    varies = (np.ptp(columns, axis=-2) > 0).all(axis=-1)[..., None, None]
    with np.errstate(invalid="ignore", divide="ignore"):
        matrix = products / lengths[..., :, None] / lengths[..., None, :]
    return np.where(varies, np.clip(matrix, -1, 1), np.nan)


def _pearson(pairs: Floats) -> Floats:
    """The correlation of the two columns of (..., n, 2), NaN where one does not vary."""
    return _correlations(pairs)[..., 0, 1]


def _spearman(columns: Floats) -> Floats:
    """The rank correlation of the first two columns of (..., n, k)."""
    from scipy.stats import rankdata

    return _pearson(rankdata(columns[..., :2], axis=-2))


def _partial(columns: Floats) -> Floats:
    """The rank correlation of the first two columns of (..., n, 3) with the third held; NaN if undefined."""
    from scipy.stats import rankdata

    matrix = _correlations(rankdata(columns, axis=-2))
    first, second = matrix[..., 0, 2], matrix[..., 1, 2]
    unexplained = (1 - first**2) * (1 - second**2)
    defined = unexplained > 1e-12
    return np.where(
        defined, (matrix[..., 0, 1] - first * second) / np.sqrt(np.where(defined, unexplained, 1)), np.nan
    )
