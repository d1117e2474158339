"""Adaptive measurement: few samples for many adapters, more for those that may be the best.

In each of ten rounds the posterior of `catalog.scores.prediction` names the adapters whose score is expected
to improve most on the tenth best, and these are given a few more samples: the rule of expected improvement
(Jones, Schonlau and Welch, J. Global Optimization 13 (1998), equation 15) in batches. The end is the
posterior mean of all, including those that were never measured.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from catalog.errors import UsageError
from catalog.scores.matrix import Ranking, ScoreMatrix
from catalog.scores.prediction import Expectation, Posterior, expectation, posterior, reasons

Floats = NDArray[np.float64]
# Scores the adapters with these names on this number of new samples, in their order; None if one cannot be
# measured.
Measure = Callable[[Sequence[str], int], Sequence[float | None]]

ROUNDS = 10
STEP = 10
CAP = 100
# The place whose score is to be improved on.
_INCUMBENT = 10


@dataclass(frozen=True, slots=True, eq=False)
class Race:
    """The outcome of a race: the ranking, the samples spent, and the matrix with what was measured added."""

    ranking: Ranking
    spent: int
    matrix: ScoreMatrix


def race(
    matrix: ScoreMatrix,
    task: str,
    measure: Measure,
    budget: int,
    *,
    texts: Mapping[str, str] | None = None,
    step: int = STEP,
    rounds: int = ROUNDS,
    cap: int = CAP,
) -> Race:
    """Spends at most `budget` samples on a task through `measure`; ranks adapters by the results.

    `step` samples are measured at a time, and no adapter has more than `cap`, those of the matrix included:
    its scores on the task count as measured, and `measure` is not called for them. The same answers give the
    same race. Raises NotFoundError for an unknown task, and UsageError for a budget below one step, an answer
    of the wrong length or outside 0 to 1, and if no adapter could be measured.
    """
    if not (1 <= step <= budget and rounds >= 1):
        raise UsageError(f"A race requires a budget of at least one step of {step} samples, and a round.")
    at = matrix.column(task)
    expected = expectation(matrix, task, texts)
    right, n = np.nan_to_num(matrix.values[:, at]) * matrix.n[:, at], matrix.n[:, at].copy()
    able = np.ones(len(n), dtype=bool)
    spent = 0
    batch = math.ceil(budget / (rounds * step))
    while spent + step <= budget:
        room = able & (n + step <= cap)
        order = [i for i in _promising(expected, right, n) if room[i]]
        batch_rows = order[: min(batch, (budget - spent) // step)]
        if not batch_rows:
            break
        answers = measure([matrix.adapters[i] for i in batch_rows], step)
        for i, score in zip(batch_rows, _check_answers(answers, len(batch_rows)), strict=True):
            if math.isnan(score):
                able[i] = False
            else:
                right[i], n[i], spent = right[i] + score * step, n[i] + step, spent + step
    if not n.any():
        raise UsageError(f"No adapter could be measured on {task}; see why, or rank by other tasks.")
    values = np.where(n > 0, right / np.maximum(n, 1), np.nan)
    result = posterior(expected, values, n)
    ranking = Ranking(matrix.adapters, result.mean, reasons(result, values, n, task), result.deviation)
    return Race(ranking, spent, matrix.with_column(task, values, n))


def _promising(expected: Expectation, right: Floats, n: Floats) -> list[int]:
    """The adapters by expected improvement; by the prior before anything is measured."""
    if not n.any():
        promise = expected.shape
    else:
        result = posterior(expected, np.where(n > 0, right / np.maximum(n, 1), np.nan), n)
        promise = _improvement(result)
    return [int(i) for i in np.argsort(-promise, kind="stable")]


def _improvement(estimate: Posterior) -> Floats:
    """E[max(f - best, 0)] of every adapter for a normal posterior, with best the tenth largest mean."""
    best = np.sort(estimate.mean)[::-1][min(_INCUMBENT, len(estimate.mean)) - 1]
    deviation = np.maximum(estimate.deviation, 1e-12)
    z = (estimate.mean - best) / deviation
    density = np.exp(-(z**2) / 2) / math.sqrt(2 * math.pi)
    below = np.array([(1 + math.erf(value / math.sqrt(2))) / 2 for value in z])
    result: Floats = deviation * (z * below + density)
    return result


def _check_answers(answers: Sequence[float | None], expected: int) -> list[float]:
    """The answers with NaN for None; raises UsageError for an invalid score."""
    scores = [math.nan if answer is None else float(answer) for answer in answers]
    if len(scores) != expected or not all(math.isnan(score) or 0 <= score <= 1 for score in scores):
        raise UsageError("`measure` must return a score from 0 to 1 for each adapter.")
    return scores
