"""A score on many items predicted from the answers to a few: which ones to ask, and how to weigh them.

The items of a task differ in how much they tell about the others. From the outcomes of adapters that answered
all N items, k are chosen one after the other: each time that after which the least variance of the score on
all items is left, for normal answers with the items' covariance (greedy, as in Krause, Singh and Guestrin, J.
Machine Learning Research 9 (2008)). Few adapters say little of that covariance, so that it is drawn towards
one that is the same for all pairs; a choice by the errors of the regression itself follows their noise, and
does worse than chance (docs/results/items.md).

The score is then predicted by a ridge regression of the mean of the other items on the k answers and their
sum, so that a strong penalty leaves the plain mean with a slope: the mean of the k answers seen and the N - k
predicted. Its penalty has the smallest leave-one-out error (Hastie, Tibshirani and Friedman, The Elements of
Statistical Learning (2009), sections 3.4.1 and 7.10, equation 7.64).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from catalog.errors import UsageError

Bools = NDArray[np.bool_]
Floats = NDArray[np.float64]

LEAST_ADAPTERS = 10
# Results change little from 0.5 to 0.9.
_SHRINKAGE = 0.7
# The variance of an item's answers that no other adapter's tell of, and the least that is left of it.
_NOISE = 0.02
_LEAST_VARIANCE = 1e-9
_PENALTIES = (0.3, 1.0, 3.0, 10.0, 30.0, 100.0)
FOLDS = 10
# Gains and errors that differ by rounding alone are equal, so that every machine chooses the same items.
_DIGITS = 10


@dataclass(frozen=True, slots=True, eq=False)
class ItemChoice:
    """The items to ask, in the order in which they were chosen, and the regression on them.

    `error` is the root mean squared error of scores predicted for adapters that took no part in the choice
    nor in the regression.
    """

    places: tuple[int, ...]
    weights: Floats
    intercept: float
    items: int
    error: float

    def predict(self, right: Bools) -> Floats:
        """The scores on all items of adapters with these outcomes (adapters, k) of the items chosen."""
        answers = np.asarray(right, dtype=np.float64)
        remainder = np.clip(self.intercept + answers @ self.weights, 0.0, 1.0)
        count = len(self.places)
        result: Floats = (answers.sum(axis=1) + (self.items - count) * remainder) / self.items
        return result


def choose_items(right: Bools, count: int, folds: int = FOLDS) -> ItemChoice:
    """The `count` items whose answers tell most about the score on all.

    Args:
        right: The outcomes of adapters that answered all items, (adapters, items).
        count: The number of items to choose, fewer than there are.
        folds: Parts of the adapters, for the error; as many as adapters leave out one at a time.

    Returns:
        The choice; its error is that of a cross-validation of choice and regression together.

    Raises:
        UsageError: Fewer than 10 adapters, or not fewer items chosen than there are.
    """
    adapters, items = right.shape
    if adapters < LEAST_ADAPTERS:
        raise UsageError(
            f"Choosing items requires {LEAST_ADAPTERS} or more adapters that answered all of them, and there "
            f"are {adapters}; score more adapters on all items."
        )
    if not 1 <= count < items:
        raise UsageError(f"Choose from 1 to {items - 1} of the {items} items, not {count}.")
    answers = right.astype(np.float64)
    fold = np.arange(adapters) % min(folds, adapters)
    squares = []
    for number in range(fold.max() + 1):
        choice = _choose(answers[fold != number], count)
        held = right[fold == number]
        squares += [*(choice.predict(held[:, choice.places]) - held.mean(axis=1)) ** 2]
    choice = _choose(answers, count)
    return ItemChoice(
        choice.places, choice.weights, choice.intercept, items, float(np.sqrt(np.mean(squares)))
    )


def regress_items(right: Bools, places: tuple[int, ...]) -> ItemChoice:
    """The regression on given items, with the leave-one-out error of the predicted scores."""
    return _regress(right.astype(np.float64), places)


def _choose(answers: Floats, count: int) -> ItemChoice:
    """Greedy forward selection on (adapters, items)."""
    covariance = _ShrunkCovariance(answers)
    sums, left = covariance.sums, covariance.variances
    # The covariance that is left is that of the items less the products of these with themselves.
    removed = np.empty((count, len(left)))
    places: list[int] = []
    for step in range(count):
        # The variance of the sum of all items that knowing one of them removes.
        gain = sums**2 / left
        gain[places] = -1.0
        at = int(gain.round(_DIGITS).argmax())
        places.append(at)
        column = covariance.column(at) - removed[:step, at] @ removed[:step]
        removed[step] = column / np.sqrt(left[at])
        sums = sums - removed[step] * removed[step].sum()
        left = np.maximum(left - removed[step] ** 2, _LEAST_VARIANCE)
    return _regress(answers, tuple(places))


class _ShrunkCovariance:
    """The covariance of items (items, items), drawn towards one that is the same for all pairs of items.

    A part of the rank of the adapters, one of rank 1, and a diagonal: it is never built, so that any number
    of items fits into memory. `variances` is its diagonal, `sums` are those of its rows. An item that varies
    less than pairs covary covaries less with all: one that all adapters answer alike tells nothing.
    """

    def __init__(self, answers: Floats) -> None:
        self._centred = (answers - answers.mean(axis=0)) / np.sqrt(len(answers) - 1)
        variances = (self._centred**2).sum(axis=0)
        of_adapters, items = self._centred.sum(axis=1), len(variances)
        mean = (float(of_adapters @ of_adapters) - variances.sum()) / (items * (items - 1))
        self._loadings = np.sqrt(_SHRINKAGE * np.clip(variances, 0.0, max(mean, 0.0)))
        self._diagonal = _SHRINKAGE * variances - self._loadings**2 + _NOISE
        self.variances: Floats = variances + _NOISE
        self.sums: Floats = (
            (1 - _SHRINKAGE) * (of_adapters @ self._centred)
            + self._loadings.sum() * self._loadings
            + self._diagonal
        )

    def column(self, at: int) -> Floats:
        """The covariances of all items with the one at a place, (items,)."""
        column: Floats = (1 - _SHRINKAGE) * (self._centred[:, at] @ self._centred)
        column += self._loadings[at] * self._loadings
        column[at] += self._diagonal[at]
        return column


def _regress(answers: Floats, places: tuple[int, ...]) -> ItemChoice:
    penalty = min(_PENALTIES, key=lambda value: round(_error(answers, places, value), _DIGITS))
    regressors, remainder = _design(answers, places)
    gram = regressors.T @ regressors + penalty * np.eye(regressors.shape[1])
    slopes = np.linalg.solve(gram, regressors.T @ (remainder - remainder.mean()))
    # The slope of the sum belongs to every item.
    weights = slopes[:-1] + slopes[-1]
    intercept = float(remainder.mean() - answers[:, places].mean(axis=0) @ weights)
    return ItemChoice(places, weights, intercept, answers.shape[1], _error(answers, places, penalty))


def _error(answers: Floats, places: tuple[int, ...] | list[int], penalty: float) -> float:
    """The root mean squared leave-one-out error of the score on all items."""
    regressors, remainder = _design(answers, places)
    gram = regressors.T @ regressors + penalty * np.eye(regressors.shape[1])
    hat = regressors @ np.linalg.solve(gram, regressors.T)
    residuals = remainder - remainder.mean() - hat @ (remainder - remainder.mean())
    left_out = residuals / (1 - np.diag(hat) - 1 / len(remainder))
    share = 1 - len(places) / answers.shape[1]
    return float(share * np.sqrt(np.mean(left_out**2)))


def _design(answers: Floats, places: tuple[int, ...] | list[int]) -> tuple[Floats, Floats]:
    """The centred outcomes of some items with their sum, (adapters, k + 1), and the mean of the others."""
    few = answers[:, places]
    centred = few - few.mean(axis=0)
    remainder = (answers.sum(axis=1) - few.sum(axis=1)) / (answers.shape[1] - len(places))
    return np.column_stack([centred, centred.sum(axis=1)]), remainder
