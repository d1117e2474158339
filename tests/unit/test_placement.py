"""Choosing items: the regression against a slow one, an item that tells everything, and refusals."""

from __future__ import annotations

import numpy as np
import pytest

from catalog.errors import UsageError
from catalog.scores import choose_items, regress_items


def simulated(adapters: int = 40, items: int = 30, seed: int = 0) -> np.ndarray:
    """Outcomes of adapters of different ability on items of different difficulty and discrimination."""
    rng = np.random.default_rng(seed)
    ability, difficulty = rng.normal(size=(adapters, 1)), rng.normal(size=items)
    slope = rng.gamma(1.0, 1.5, size=items)
    return rng.random((adapters, items)) < 1 / (1 + np.exp(-slope * (ability - difficulty)))


def test_the_leave_one_out_error_is_that_of_leaving_out_one_by_one() -> None:
    right, places = simulated(14, 12), (3, 5, 7)
    result = regress_items(right, places)
    errors = {}
    for penalty in (0.3, 1.0, 3.0, 10.0, 30.0, 100.0):
        squares = []
        for at in range(14):
            train = np.delete(right, at, axis=0).astype(float)
            few = train[:, places]
            others = np.delete(train, places, axis=1).mean(axis=1)
            # w = slopes + the slope of the sum; both penalised: the covariance of w is I + 11^T.
            prior = np.linalg.inv(np.eye(3) + np.ones((3, 3)))
            centred = few - few.mean(axis=0)
            weights = np.linalg.solve(
                centred.T @ centred + penalty * prior, centred.T @ (others - others.mean())
            )
            guess = others.mean() + (right[at, places] - few.mean(axis=0)) @ weights
            truth = np.delete(right[at], places).mean()
            squares.append((9 / 12 * (guess - truth)) ** 2)
        errors[penalty] = float(np.sqrt(np.mean(squares)))
    assert result.error == pytest.approx(min(errors.values()), rel=1e-9)


def test_chosen_items_predict_better_than_others() -> None:
    right, fresh = simulated(), simulated(200, seed=1)
    rng = np.random.default_rng(0)
    choice = choose_items(right, 6)
    random_errors = [
        regress_items(right, tuple(map(int, rng.choice(30, 6, replace=False)))).error for _ in range(20)
    ]
    assert len(set(choice.places)) == 6
    assert choice.error < np.mean(random_errors)
    assert choice.predict(fresh[:, choice.places]).shape == (200,)
    again = choose_items(right.copy(), 6)
    assert again.places == choice.places
    assert again.error == choice.error


def test_an_item_that_tells_everything_is_chosen_first() -> None:
    right = np.repeat(np.arange(12)[:, None] % 2 == 0, 9, axis=1)
    right[:, [0, 2, 4]] = np.random.default_rng(0).random((12, 3)) < 0.5
    choice = choose_items(right, 1)
    assert choice.places == (1,)
    predicted = choice.predict(np.array([[True], [False]]))
    assert predicted[0] > 0.7 > 0.3 > predicted[1]


def test_the_choice_is_that_by_the_whole_matrix() -> None:
    """Greedy elimination of the dense covariance, whose constant part never exceeds an item's variance."""
    right = simulated(20, 40, seed=3)
    right[:, :9] = True
    answers = right.astype(float)
    covariance = np.cov(answers, rowvar=False)
    variances = np.diag(covariance)
    common = (covariance.sum() - variances.sum()) / (40 * 39)
    loadings = np.sqrt(np.minimum(variances, common))
    target = np.outer(loadings, loadings)
    np.fill_diagonal(target, variances)
    left = 0.3 * covariance + 0.7 * target + 0.02 * np.eye(40)
    assert np.linalg.eigvalsh(left).min() > 0.0199
    places: list[int] = []
    for _ in range(8):
        gain = left.sum(axis=1) ** 2 / np.diag(left)
        gain[places] = -1.0
        places.append(int(gain.round(10).argmax()))
        left = left - np.outer(left[:, places[-1]], left[places[-1]]) / left[places[-1], places[-1]]
        np.fill_diagonal(left, np.maximum(np.diag(left), 1e-9))
    with np.errstate(all="raise"):
        assert choose_items(right, 8).places == tuple(places)
    assert min(places) > 8, "items that all answered right tell nothing"


def test_any_number_of_items_fits_into_memory() -> None:
    """The whole matrix of 30,000 items would be 7 GB."""
    right = np.random.default_rng(0).random((12, 30_000)) < np.linspace(0.2, 0.8, 12)[:, None]
    assert len(set(choose_items(right, 3, folds=2).places)) == 3


def test_all_items_but_one_leave_little_to_predict() -> None:
    right = simulated(12, 6)
    choice = choose_items(right, 5)
    assert np.abs(choice.predict(right[:, choice.places]) - right.mean(axis=1)).max() <= 1 / 6


def test_adapters_that_agree_on_all_items() -> None:
    choice = choose_items(np.ones((10, 5), dtype=bool), 2)
    assert choice.places == (0, 1)
    assert choice.error == 0.0
    assert choice.predict(np.array([[True, True]])).tolist() == [1.0]


@pytest.mark.parametrize(
    ("adapters", "count", "message"),
    [(9, 3, "10 or more adapters .* there are 9"), (10, 0, "from 1 to 29"), (10, 30, "from 1 to 29")],
)
def test_too_few_adapters_and_too_many_items_are_refused(adapters: int, count: int, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        choose_items(simulated(adapters), count)
