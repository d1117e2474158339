"""A score on many items predicted from the answers to a few: which ones to ask, and how to weigh them.

The items of a task differ in how much they tell about the others. From the outcomes of adapters that answered
all N items, k are chosen one after the other: each time that with which a ridge regression of the mean of the
other items on the chosen ones has the smallest leave-one-out error. The regressors are the k outcomes and
their sum, so that a strong penalty leaves the plain mean with a slope; the predicted score is the mean of the
k answers seen and the N - k predicted. Hastie, Tibshirani and Friedman, The Elements of Statistical Learning
(2009), sections 3.4.1 and 7.10 (equation 7.64 gives the leave-one-out errors in closed form).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from catalog.errors import UsageError

Bools = NDArray[np.bool_]
Floats = NDArray[np.float64]

LEAST_ADAPTERS = 10
_PENALTIES = (0.3, 1.0, 3.0, 10.0, 30.0, 100.0)
_FOLDS = 10
# Errors that differ by rounding alone count as equal, so that every machine chooses the same items.
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
        others = np.clip(self.intercept + answers @ self.weights, 0.0, 1.0)
        count = len(self.places)
        result: Floats = (answers.sum(axis=1) + (self.items - count) * others) / self.items
        return result


def choose_items(right: Bools, count: int) -> ItemChoice:
    """The `count` items whose answers tell most about the score on all.

    Args:
        right: The outcomes of adapters that answered all items, (adapters, items).
        count: The number of items to choose, fewer than there are.

    Returns:
        The choice; its error is that of a ten-fold cross-validation of choice and regression together.

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
    fold = np.arange(adapters) % min(_FOLDS, adapters)
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
    places: list[int] = []
    penalty = _PENALTIES[len(_PENALTIES) // 2]
    for _ in range(count):
        candidates = np.setdiff1d(np.arange(answers.shape[1]), places)
        sets = [(*places, int(place)) for place in candidates]
        errors = np.array([_error(answers, group, penalty) for group in sets]).round(_DIGITS)
        places.append(int(candidates[errors.argmin()]))
        penalty = min(_PENALTIES, key=lambda value: round(_error(answers, places, value), _DIGITS))
    return _regress(answers, tuple(places))


def _regress(answers: Floats, places: tuple[int, ...]) -> ItemChoice:
    penalty = min(_PENALTIES, key=lambda value: round(_error(answers, places, value), _DIGITS))
    regressors, others = _design(answers, places)
    gram = regressors.T @ regressors + penalty * np.eye(regressors.shape[1])
    slopes = np.linalg.solve(gram, regressors.T @ (others - others.mean()))
    # The slope of the sum belongs to every item.
    weights = slopes[:-1] + slopes[-1]
    intercept = float(others.mean() - answers[:, places].mean(axis=0) @ weights)
    return ItemChoice(places, weights, intercept, answers.shape[1], _error(answers, places, penalty))


def _error(answers: Floats, places: tuple[int, ...] | list[int], penalty: float) -> float:
    """The root mean squared leave-one-out error of the score on all items."""
    regressors, others = _design(answers, places)
    gram = regressors.T @ regressors + penalty * np.eye(regressors.shape[1])
    hat = regressors @ np.linalg.solve(gram, regressors.T)
    residuals = others - others.mean() - hat @ (others - others.mean())
    left_out = residuals / (1 - np.diag(hat) - 1 / len(others))
    share = 1 - len(places) / answers.shape[1]
    return float(share * np.sqrt(np.mean(left_out**2)))


def _design(answers: Floats, places: tuple[int, ...] | list[int]) -> tuple[Floats, Floats]:
    """The centred outcomes of some items with their sum, (adapters, k + 1), and the mean of the others."""
    few = answers[:, places]
    centred = few - few.mean(axis=0)
    others = (answers.sum(axis=1) - few.sum(axis=1)) / (answers.shape[1] - len(places))
    return np.column_stack([centred, centred.sum(axis=1)]), others
