"""Whether a method gains more on a task with a more relevant pool: points, and Spearman's rank correlation.

Tasks differ in what can be gained at all, and methods in what they gain. Both are taken out: compared are the
pools on which one method was asked on one task.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, replace
from statistics import fmean

import numpy as np
from numpy.typing import NDArray

from studies.design import label as labelled
from studies.report.comparing import Results, by_task

_DRAWS = 2000


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
                method = labelled(cells[0].method, None, cells[0].settings)
                points_by_label[method, task].append(Related(task, name, pool, own, relevance[task], gain))
    return tuple(point for points in points_by_label.values() if len(points) > 1 for point in _center(points))


def _center(points: Sequence[Related]) -> list[Related]:
    relevance = fmean(point.relevance for point in points)
    gain = fmean(point.gain for point in points)
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
