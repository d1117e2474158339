"""What intervals and verdicts over few tasks are worth, simulated: the table in docs/reference/studies.md.

`python -m tools.documents` fills it in.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

TASKS = (6, 8, 20, 36)
# Effects of tasks with mean zero and, in the last, 15 % of tasks that carry the effect.
EFFECTS = ("normal", "exponential", "few big")
# Points: the spread of differences over tasks in the recorded studies, and the margin of equality.
_SPREAD, _MARGIN = 3.7, 2.0
_CLAIMS, _LEVEL, _LEAST = 6, 0.05, 8
_RESAMPLES = 200
Floats = NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class SimulatedWords:
    """Percent of studies with any "better" or "worse" among six claims, wrong where there is no effect, and
    of single claims called better or about the same."""

    false_words: float
    better: float
    same: float


def simulate_coverage(tasks: int, effect: str, *, draws: int = 2000, seed: int = 0) -> tuple[float, float]:
    """Percent of 95 % percentile-bootstrap and t intervals that hold the true mean over tasks."""
    from scipy.stats import t

    rng = np.random.default_rng([seed, tasks, EFFECTS.index(effect)])
    values, truth = _effects(rng, (draws, tasks), effect)
    mean, error = values.mean(1), values.std(1, ddof=1) / np.sqrt(tasks)
    student = np.abs(mean - truth) <= t.ppf(0.975, tasks - 1) * error
    # Tasks drawn again, the same places for every study.
    counts = rng.multinomial(tasks, np.full(tasks, 1 / tasks), size=_RESAMPLES)
    ends = np.quantile(values @ counts.T / tasks, [0.025, 0.975], axis=1)
    percentile = (ends[0] <= truth) & (truth <= ends[1])
    return 100 * float(percentile.mean()), 100 * float(student.mean())


def simulate_words(tasks: int, effect: float, *, draws: int = 2000, seed: int = 0) -> SimulatedWords:
    """What the rule of verdicts says of six claims whose true difference is `effect` points.

    Effects of tasks are normal with the spread of the recorded studies; claims share half of their variance.
    """
    from scipy.stats import t

    rng = np.random.default_rng([seed, tasks])
    shared = rng.normal(size=(draws, 1, tasks))
    values = effect + _SPREAD * np.sqrt(0.5) * (shared + rng.normal(size=(draws, _CLAIMS, tasks)))
    mean, error = values.mean(2), values.std(2, ddof=1) / np.sqrt(tasks)
    ps = np.sort(2 * t.sf(np.abs(mean) / error, tasks - 1), axis=1)
    enough = tasks >= _LEAST
    any_word = (ps[:, 0] * _CLAIMS <= _LEVEL) & enough
    single = 2 * t.sf(np.abs(mean) / error, tasks - 1)
    adjusted = _adjust(single)
    better = (adjusted <= _LEVEL) & (mean > 0) & enough
    same = (np.abs(mean) + t.ppf(0.95, tasks - 1) * error <= _MARGIN) & (adjusted > _LEVEL) & enough
    return SimulatedWords(*(100 * float(part.mean()) for part in (any_word, better, same)))


def table() -> str:
    """The table as Markdown."""
    rows = [
        (
            "| tasks | percentile: normal / exponential / few big | t: normal / exponential / few big | "
            "any false word of 6 claims | a true 2 points found | no difference called the same |"
        ),
        "|---:|---|---|---:|---:|---:|",
    ]
    for n in TASKS:
        covered = [simulate_coverage(n, effect) for effect in EFFECTS]
        columns = [" / ".join(f"{pair[at]:.0f}" for pair in covered) for at in (0, 1)]
        none, two = simulate_words(n, 0.0), simulate_words(n, 2.0)
        numbers = (none.false_words, two.better, none.same)
        rows.append(" | ".join([f"| {n}", *columns, *(f"{number:.0f}" for number in numbers)]) + " |")
    return "\n".join(rows)


def _effects(rng: np.random.Generator, shape: tuple[int, int], effect: str) -> tuple[Floats, float]:
    """Effects of tasks and their true mean."""
    if effect == "normal":
        return rng.normal(size=shape), 0.0
    if effect == "exponential":
        return rng.exponential(size=shape), 1.0
    carried = rng.random(shape) < 0.15
    return rng.normal(size=shape) + 6.0 * carried, 0.9


def _adjust(ps: Floats) -> Floats:
    """Holm's p-values along the last axis."""
    order = np.argsort(ps, axis=1)
    ranked = np.take_along_axis(ps, order, axis=1) * np.arange(ps.shape[1], 0, -1)
    adjusted = np.empty_like(ps)
    np.put_along_axis(adjusted, order, np.minimum(np.maximum.accumulate(ranked, axis=1), 1), axis=1)
    return adjusted
