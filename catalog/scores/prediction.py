"""Prediction of missing scores from the measured ones: a Gaussian process over adapters.

The shape of a column of scores can be predicted before it is measured: adapters with similar scores on other
tasks have similar scores on this one, and tasks that require similar answers favour the same adapters. With
x_i the scores of adapter i on the T other tasks, each standardised over the adapters, adapters are compared
by

    k(i, j) = 0.2 x_i x_j / T + 0.8 exp(-||x_i - x_j||^2 / (T / 2)),

a trend and a neighbourhood (Rasmussen and Williams 2006, chapter 4), and tasks by the cosine of their
instructions, one half by all words and one half by the last sentence alone, which describes the form of the
answer. The first gives the covariance of a new column, the second its expected shape: a kernel ridge
regression (ibid., section 2.2) from the other tasks' columns of `catalog.scores.matrix.excess`. A measured
column is then a noisy observation of the process, with a variance of p (1 - p) / n for n samples, and the
posterior mean pulls each score towards the scores of similar adapters, more so if it has few samples.

Holes among the other tasks are filled with the adapter's shrunk mean, and widen the distance to all others,
so that an unmeasured adapter has no neighbours. Memory grows with the square of the number of
adapters and time with its cube: 960 take a second, 5,000 a minute, and more are refused. Adapters without any
score are all alike and count as one.
"""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

from catalog.errors import UsageError
from catalog.scores.matrix import Ranking, ScoreMatrix, effect, excess, other_tasks, standardise

Floats = NDArray[np.float64]

MOST_ADAPTERS = 5000
# Chosen without test scores, docs/results/retrieval.md; results change little within a factor of two.
_TREND = 0.2
_LENGTH = 0.5
_COMMON = 0.3
_RIDGE = 3.0
_SMOOTHING = 1.0
# Variances of accuracy between adapters, and of the part of it that is an adapter's own, on the grid.
_AMPLITUDES = (0.0003, 0.001, 0.003, 0.01, 0.03, 0.1)
_OWN = (0.02, 0.1, 0.3)
# Variance of the mean score of a task, which lies anywhere between 0 and 1.
_LEVEL = 1.0
_LEAST_NOISE = 1e-4


@dataclass(frozen=True, slots=True, eq=False)
class Expectation:
    """The prior of one task's column from the other tasks.

    `covariance` of (adapters, adapters) has a diagonal near 1; `shape` of (adapters,) has mean 0 and variance
    1, or is all 0 if the other tasks have no information; `weights` gives each other task's weight in it.
    """

    covariance: Floats
    shape: Floats
    weights: dict[str, float]


@dataclass(frozen=True, slots=True, eq=False)
class Posterior:
    """Expected scores (adapters,) and their standard deviations, from 0 to 1 as the scores are."""

    mean: Floats
    deviation: Floats


def completion(matrix: ScoreMatrix, task: str, texts: Mapping[str, str] | None = None) -> Ranking:
    """Adapters by their expected score on a task, from its measured cells, the other tasks, or both.

    Without a measured cell of the task the score is the expected excess in standard deviations over the
    adapters, and of the task only its text in `texts` (task to instruction) is used; with some it is a share
    of right answers. Raises NotFoundError for an unknown task, and UsageError if there are no scores or more
    than 5,000 adapters with scores.
    """
    unmeasured = np.flatnonzero(~matrix.n.any(axis=1))
    if len(unmeasured) > 1:
        return _with_copies(matrix, task, texts, unmeasured)
    at = matrix.column(task)
    values, n = matrix.values[:, at], matrix.n[:, at]
    if not n.any():
        other_tasks(matrix, task)
    expected = expectation(matrix, task, texts)
    nearest = sorted(expected.weights, key=lambda name: (-expected.weights[name], name))[:3]
    if not n.any():
        why = tuple(f"expected to stand out by {value:+.2f} sd on {task}" for value in expected.shape)
        leaning = f", mostly by {', '.join(nearest)}" if texts else ""
        return Ranking(matrix.adapters, expected.shape, tuple(text + leaning for text in why))
    result = posterior(expected, values, n)
    return Ranking(matrix.adapters, result.mean, reasons(result, values, n, task), result.deviation)


def _with_copies(
    matrix: ScoreMatrix, task: str, texts: Mapping[str, str] | None, unmeasured: NDArray[np.int64]
) -> Ranking:
    """The completion of the measured adapters and one unmeasured one, which represents all of these."""
    places = np.setdiff1d(np.arange(len(matrix.adapters)), unmeasured[1:])
    names = tuple(matrix.adapters[i] for i in places)
    result = completion(
        replace(matrix, adapters=names, values=matrix.values[places], n=matrix.n[places]), task, texts
    )
    place = np.searchsorted(places, np.arange(len(matrix.adapters)))
    place[unmeasured] = np.searchsorted(places, unmeasured[0])
    deviation = None if result.deviation is None else result.deviation[place]
    return Ranking(matrix.adapters, result.scores[place], tuple(result.why[i] for i in place), deviation)


def from_like_tasks(matrix: ScoreMatrix, task: str, texts: Mapping[str, str]) -> Ranking:
    """Adapters by their excess on the other tasks, each task weighted by the similarity of its text.

    The score is in standard deviations; scores on the task itself are not used, and the columns are used
    unchanged: `completion` also smooths them between similar adapters. Raises as `prior`.
    """
    matrix.column(task)
    other_matrix = other_tasks(matrix, task)
    weights = _task_weights(task, other_matrix.tasks, texts)
    scores = _fill(excess(other_matrix.values)) @ weights
    first = [other_matrix.tasks[i] for i in np.argsort(-weights, kind="stable")[:3]]
    why = f"over {len(other_matrix.tasks)} other tasks, mostly {', '.join(first)}"
    return Ranking(matrix.adapters, scores, tuple(f"stands out by {value:+.2f} {why}" for value in scores))


def expectation(matrix: ScoreMatrix, task: str, texts: Mapping[str, str] | None = None) -> Expectation:
    """The prior of one task's column from the other tasks' columns and, where given, the tasks' texts.

    Never uses the task's own column. If no other task has a score, all adapters are alike. Raises
    UsageError for more than 5,000 adapters.
    """
    if len(matrix.adapters) > MOST_ADAPTERS:
        raise UsageError(
            f"At most {MOST_ADAPTERS:,} adapters can be compared by all their scores, not "
            f"{len(matrix.adapters):,}; narrow them with a filter."
        )
    try:
        other_matrix = other_tasks(matrix, task)
    except UsageError:
        size = len(matrix.adapters)
        return Expectation(np.full((size, size), 1 - _TREND), np.zeros(size), {})
    covariance = _covariance(other_matrix.values)
    weights = _task_weights(task, other_matrix.tasks, texts or {})
    raw = _fill(excess(other_matrix.values)) @ weights
    ridge = covariance + _SMOOTHING * np.eye(len(raw))
    smooth = covariance @ np.linalg.solve(ridge, raw - raw.mean())
    spread = float(smooth.std())
    shape = (smooth - smooth.mean()) / spread if spread > 0 else np.zeros(len(raw))
    return Expectation(covariance, shape, dict(zip(other_matrix.tasks, weights.tolist(), strict=True)))


def posterior(expected: Expectation, values: Floats, n: Floats, shared: Floats | None = None) -> Posterior:
    """The scores (adapters,) given those measured: values where n > 0, each the mean of n samples.

    Prior: f = level + shape * slope + g + own, with g of the expectation's covariance times s^2, own
    independent for each adapter with a part of s^2, and s^2 and that part those of largest marginal
    likelihood on a grid (Rasmussen and Williams 2006, equations 2.25, 2.26 and 2.30). The noise is
    p (1 - p) / n with one p (1 - p) for the task, estimated without bias, so that a score near 0 or 1 by
    chance does not count as more certain. `shared` of (adapters, adapters), 0 on its diagonal, is the
    covariance of the noise of different adapters; by default there is none (docs/results/items.md).
    """
    measured = n > 0
    if not measured.any():
        raise UsageError("A posterior requires at least one measured score; measure some adapters.")
    y, count = values[measured], n[measured]
    middle = float(count @ y / count.sum())
    noise = _noise(y, count, middle) / count
    design = np.column_stack([np.ones(len(values)), expected.shape])
    both = np.ix_(measured, measured)
    amplitude, own, total = _likeliest(
        expected.covariance[both],
        design[measured],
        noise,
        y - middle,
        None if shared is None else shared[both],
    )
    scales = np.array([_LEVEL, amplitude])
    cross = amplitude * expected.covariance[:, measured] + (design * scales) @ design[measured].T
    cross[np.flatnonzero(measured), np.arange(len(y))] += own * amplitude
    solved = np.linalg.solve(total, np.column_stack([y - middle, cross.T]))
    alone = amplitude * (np.diag(expected.covariance) + own) + (design**2) @ scales
    variance = alone - np.einsum("ij,ji->i", cross, solved[:, 1:])
    return Posterior(middle + cross @ solved[:, 0], np.sqrt(np.maximum(variance, 0)))


def _likeliest(
    covariance: Floats, design: Floats, noise: Floats, y: Floats, shared: Floats | None
) -> tuple[float, float, Floats]:
    """The amplitude and the part of an adapter's own with the largest marginal likelihood of y, with the
    covariance of y under them: uphill on the grid, from its middle.
    """
    losses: dict[tuple[int, int], float] = {}

    def total(place: tuple[int, int]) -> Floats:
        amplitude = _AMPLITUDES[place[0]]
        signal: Floats = amplitude * covariance + (design * np.array([_LEVEL, amplitude])) @ design.T
        signal[np.diag_indices_from(signal)] += noise + _OWN[place[1]] * amplitude
        return signal if shared is None else signal + shared

    place, best = (-1, -1), (len(_AMPLITUDES) // 2, len(_OWN) // 2)
    while place != best:
        place = best
        for i, j in ((0, 0), (-1, 0), (1, 0), (0, -1), (0, 1)):
            near = (place[0] + i, place[1] + j)
            if near not in losses and 0 <= near[0] < len(_AMPLITUDES) and 0 <= near[1] < len(_OWN):
                losses[near] = _loss(total(near), y)
        best = min(losses, key=lambda tried: (losses[tried], tried))
    return _AMPLITUDES[best[0]], _OWN[best[1]], total(best)


def reasons(result: Posterior, values: Floats, n: Floats, task: str) -> tuple[str, ...]:
    """The reason for each expected score: the adapter's own samples, or those of similar adapters."""
    return tuple(
        f"expected {mean:.3f} ± {deviation:.3f}"
        + (f" from {value:.3f} on {count:.0f} samples" if count else ", not measured itself")
        + f" of {task} and like adapters"
        for mean, deviation, value, count in zip(result.mean, result.deviation, values, n, strict=True)
    )


def likeness(texts: Sequence[str]) -> Floats:
    """The similarity of instructions, (texts, texts): the mean of two cosines, of all words and of the last
    sentence's. An empty text has similarity 0 to all, including itself.
    """
    return (_cosines(texts) + _cosines([_last_sentence(text) for text in texts])) / 2


def _task_weights(task: str, other_names: Sequence[str], texts: Mapping[str, str]) -> Floats:
    """The weight of every other task in the ridge regression to this one; equal ones without texts."""
    alike = likeness([texts.get(name, "") for name in (*other_names, task)]) + _COMMON
    ridge = alike[:-1, :-1] + _RIDGE * np.eye(len(other_names))
    return np.asarray(np.linalg.solve(ridge, alike[:-1, -1]), dtype=np.float64)


def _covariance(values: Floats) -> Floats:
    """The covariance k of the module's docstring between rows of (adapters, tasks) with holes."""
    holes = standardise(values)
    unknown = np.isnan(holes).mean(axis=1)
    columns = _fill(holes)
    trend = columns @ columns.T / columns.shape[1]
    squares = np.diag(trend)
    distance = np.maximum(squares[:, None] + squares - 2 * trend, 0) + unknown[:, None] + unknown
    np.fill_diagonal(distance, 0)
    neighbourhood = np.exp(-distance / _LENGTH)
    result: Floats = _TREND * (trend + np.diag(unknown)) + (1 - _TREND) * neighbourhood
    return result


def _fill(columns: Floats) -> Floats:
    """Standardised columns with each row's shrunk mean in its holes."""
    result: Floats = np.where(np.isnan(columns), effect(columns)[:, None], columns)
    return result


def _noise(y: Floats, count: Floats, middle: float) -> float:
    """p (1 - p) of one sample, averaged over the measured adapters without bias; the pooled one for n = 1."""
    several = count > 1
    if not several.any():
        return max(middle * (1 - middle), _LEAST_NOISE)
    m = count[several]
    return max(float(np.mean(y[several] * (1 - y[several]) * m / (m - 1))), _LEAST_NOISE)


def _loss(covariance: Floats, y: Floats) -> float:
    """The negative logarithm of the normal density of y, without its constant."""
    from scipy.linalg import solve_triangular

    root = np.linalg.cholesky(covariance)
    white = solve_triangular(root, y, lower=True, check_finite=False)
    return float(np.log(np.diag(root)).sum() + white @ white / 2)


def _last_sentence(text: str) -> str:
    return re.split(r"\n|(?<=[.!?])\s", text.strip())[-1]


def _cosines(texts: Sequence[str]) -> Floats:
    """Cosines of tf-idf vectors of words and pairs of words: (1 + ln tf) (1 + ln((1 + N) / (1 + df)))."""
    counts = [Counter(_terms(text)) for text in texts]
    documents = Counter(term for term_counts in counts for term in term_counts)
    column = {term: i for i, term in enumerate(sorted(documents))}
    table = np.zeros((len(texts), max(len(column), 1)))
    for row, term_counts in enumerate(counts):
        for term, times in term_counts.items():
            rarity = 1 + math.log((1 + len(texts)) / (1 + documents[term]))
            table[row, column[term]] = (1 + math.log(times)) * rarity
    length = np.linalg.norm(table, axis=1, keepdims=True)
    table /= np.where(length > 0, length, 1)
    result: Floats = table @ table.T
    return result


def _terms(text: str) -> list[str]:
    words = re.findall(r"\w+", text.lower())
    return words + [f"{first} {second}" for first, second in pairwise(words)]
