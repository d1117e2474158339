"""The posterior against its formulas, the task kernel against scikit-learn, and planted truths."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from catalog.errors import NotFoundError, UsageError
from catalog.scores import prediction as module
from catalog.scores.matrix import Floats, ScoreMatrix, by_score, prior
from catalog.scores.prediction import (
    Expectation,
    completion,
    expectation,
    from_like_tasks,
    likeness,
    posterior,
)
from tests.shared_data import data, shared
from tests.unit.test_scores import draw_matrix, matrix, same

pytestmark = pytest.mark.slow

DIGIT = "Classify the sentence. Return only the digit (0 or 1), without explanations."
LETTER = "Answer the multiple-choice question. Return only the letter (A, B, C or D)."


def plant_matrix(seed: int, rows: int = 150, tasks: int = 20, factors: int = 3) -> tuple[ScoreMatrix, Floats]:
    """A matrix of 100-sample scores of adapters whose true scores, given too, have few factors."""
    rng = np.random.default_rng(seed)
    raw = rng.normal(size=(rows, factors)) @ rng.normal(size=(factors, tasks)) / math.sqrt(factors)
    truth = 1 / (1 + np.exp(-raw / 2))
    return matrix((rng.binomial(100, truth) / 100).tolist()), truth


def error(result: Floats, truth: Floats) -> float:
    return float(np.mean((result - truth) ** 2))


def test_likeness_is_the_mean_of_two_cosines_by_scikit_learn() -> None:
    from sklearn.feature_extraction.text import TfidfVectorizer

    texts = [DIGIT, LETTER, "You are given a list.\nReturn only the number, e.g. 7.", "Solve: 2 + 2 = ?"]
    last = [
        "Return only the digit (0 or 1), without explanations.",
        "Return only the letter (A, B, C or D).",
        "7.",
        "Solve: 2 + 2 = ?",
    ]
    both = []
    for part in (texts, last):
        table = TfidfVectorizer(sublinear_tf=True, ngram_range=(1, 2), token_pattern=r"\w+")
        vectors = table.fit_transform(part).toarray()
        both.append(vectors @ vectors.T)
    assert likeness(texts) == pytest.approx((both[0] + both[1]) / 2, abs=1e-12)


def test_an_empty_text_is_like_nothing() -> None:
    result = likeness(["", DIGIT, "?!"])
    assert result == pytest.approx(np.diag([0.0, 1.0, 0.0]))


def test_a_posterior_worked_by_hand() -> None:
    # One adapter, 8 of 10 right: p (1 - p) = .16 * 10 / 9, noise .016 * 10 / 9 = .01778; the mean is the
    # score itself, as it is the only one, and so is the posterior's.
    alone = Expectation(np.eye(1), np.zeros(1), {})
    result = posterior(alone, np.array([0.8]), np.array([10.0]))
    assert result.mean[0] == pytest.approx(0.8)
    # The prior variance of the level is 1, of all else little: what remains is the noise.
    assert result.deviation[0] == pytest.approx(math.sqrt(0.16 / 9), rel=0.05)


def brute(expected: Expectation, values: Floats, n: Floats) -> tuple[Floats, Floats]:
    """The posterior by inverting the joint covariance, for every pair on the grid, best likelihood first."""
    from scipy.stats import multivariate_normal

    requests = n > 0
    y, count = values[requests], n[requests]
    middle = (count @ y) / count.sum()
    noise = np.diag(max(np.mean(y * (1 - y) * count / (count - 1)), 1e-4) / count)
    fits = []
    for amplitude in module._AMPLITUDES:
        for own in module._OWN:
            shape = expected.shape[:, None]
            signal = amplitude * (expected.covariance + shape @ shape.T + own * np.eye(len(n))) + 1.0
            total = signal[np.ix_(requests, requests)] + noise
            likelihood = multivariate_normal(np.full(len(y), middle), total).logpdf(y)
            gain = signal[:, requests] @ np.linalg.inv(total)
            mean = middle + gain @ (y - middle)
            fits.append((likelihood, mean, np.sqrt(np.diag(signal - gain @ signal[requests]))))
    return max(fits, key=lambda fit: fit[0])[1:]


@pytest.mark.parametrize("seed", range(6))
def test_the_posterior_is_the_conditional_normal_distribution(seed: int) -> None:
    names, _ = plant_matrix(seed, rows=40, tasks=8)
    expected = expectation(names, "t0", {})
    rng = np.random.default_rng(seed)
    n = np.where(rng.uniform(size=40) < 0.5, rng.integers(2, 30, size=40), 0).astype(np.float64)
    values = np.where(n > 0, np.rint(names.values[:, 0] * n) / np.maximum(n, 1), np.nan)
    result = posterior(expected, values, n)
    mean, deviation = brute(expected, values, n)
    assert result.mean == pytest.approx(mean, abs=1e-8)
    assert result.deviation == pytest.approx(deviation, abs=1e-8)


def test_the_more_samples_the_less_is_shrunk() -> None:
    names, _ = plant_matrix(0, rows=60)
    at = names.values[:, 0]
    distances = []
    for samples in (5.0, 50.0, 5000.0):
        measured = names.with_column("t0", at, np.full(60, samples))
        distances.append(error(completion(measured, "t0").scores, at))
    assert distances[0] > distances[1] > distances[2]
    assert distances[2] < 1e-5


@pytest.mark.parametrize("seed", range(3))
def test_shrunk_scores_are_nearer_to_the_truth_than_raw_ones(seed: int) -> None:
    names, truth = plant_matrix(seed)
    result = completion(names, "t3")
    assert error(result.scores, truth[:, 3]) < 0.5 * error(by_score(names, "t3").scores, truth[:, 3])
    assert result.deviation is not None
    inside = np.abs(result.scores - truth[:, 3]) < 2 * result.deviation
    assert inside.mean() > 0.85, "two standard deviations hold most of what is true"


@pytest.mark.parametrize("seed", range(3))
def test_a_third_of_the_adapters_tells_of_the_others(seed: int) -> None:
    names, truth = plant_matrix(seed)
    n = np.where(np.arange(150) % 3 == 0, 100.0, 0.0)
    few = names.with_column("t3", np.where(n > 0, names.values[:, 3], np.nan), n)
    result = completion(few, "t3")
    remaining = n == 0
    assert error(result.scores[remaining], truth[remaining, 3]) < 0.3 * float(np.var(truth[remaining, 3]))
    assert result.deviation is not None
    assert result.deviation[remaining].mean() > result.deviation[~remaining].mean()
    assert "not measured itself" in result.why[1]
    assert "samples of t3" in result.why[0]


@given(st.integers(0, 30))
@settings(max_examples=10)
def test_what_is_expected_sees_nothing_of_the_task_itself(seed: int) -> None:
    complete = draw_matrix(seed)
    texts = {f"t{j}": text for j, text in enumerate((DIGIT, LETTER, DIGIT, LETTER, ""))}
    other = draw_matrix(seed + 1000)
    changed = complete.with_column("t0", other.values[:, 0], other.n[:, 0])
    for first, second in ((complete, changed), (complete, complete.blank("t0"))):
        item, two = expectation(first, "t0", texts), expectation(second, "t0", texts)
        assert same(item.shape, two.shape)
        assert same(item.covariance, two.covariance)
        assert item.weights == two.weights
        likes = [from_like_tasks(names, "t0", texts).scores for names in (first, second)]
        assert same(likes[0], likes[1])


def specialists() -> tuple[ScoreMatrix, dict[str, str]]:
    """Of 40 adapters the first ten are good at tasks for a digit, the next ten at those for a letter."""
    rng = np.random.default_rng(0)
    good = np.full((40, 8), 0.4)
    good[:10, ::2] = good[10:20, 1::2] = 0.8
    names = matrix((rng.binomial(100, good) / 100).tolist())
    texts = {f"t{j}": DIGIT if j % 2 == 0 else LETTER for j in range(8)}
    return names, texts


@pytest.mark.parametrize("task", ["t0", "t1"])
def test_tasks_that_read_alike_name_their_specialists(task: str) -> None:
    names, texts = specialists()
    expected = set(range(10)) if task == "t0" else set(range(10, 20))
    requests = names.blank(task)
    assert set(completion(requests, task, texts).order()[:10]) == expected
    assert set(from_like_tasks(requests, task, texts).order()[:10]) == expected
    remaining = sum(i in expected for i in prior(requests, task).order()[:10])
    assert remaining < 10, "without texts, the task is like all others"
    nearest = expectation(requests, task, texts).weights
    assert {int(name[1:]) % 2 for name in sorted(nearest, key=lambda name: -nearest[name])[:3]} == {
        int(task[1:])
    }


def test_without_texts_all_tasks_count_alike() -> None:
    weights = expectation(draw_matrix(0), "t0").weights
    assert len(set(np.round(list(weights.values()), 12))) == 1


def test_like_adapters_are_evened_out() -> None:
    """Two adapters that answer alike everywhere else lend each other what was measured on one of them."""
    values = np.random.default_rng(0).uniform(0.2, 0.8, size=(30, 12))
    values[1] = values[0]
    values[2:, 0], values[:2, 0] = 0.4, (0.9, np.nan)
    result = completion(matrix(values.tolist()), "t0")
    assert result.order()[:2] == [0, 1]
    assert result.scores[1] > 0.6


def test_an_adapter_that_nobody_measured_has_no_neighbours() -> None:
    complete = draw_matrix(3, rows=20, columns=6, holes=0)
    values = complete.values.copy()
    values[4, 1:] = np.nan
    covariance = expectation(matrix(values.tolist()), "t0").covariance
    other_items = np.delete(covariance[4], 4)
    assert np.abs(other_items).max() < 0.25
    assert np.linalg.eigvalsh(covariance).min() > -1e-9
    result = completion(matrix(values.tolist()).with_column("t0", *half_of(values)), "t0")
    assert result.deviation is not None
    assert result.deviation[4] > np.median(result.deviation[1::2])


def test_those_that_nobody_measured_count_as_one() -> None:
    """However many they are and wherever they stand, nobody's score changes, and theirs is one."""
    rows: list[list[float]] = draw_matrix(3, rows=30, columns=6, holes=0).values.tolist()
    empty = [math.nan] * 6
    for blank in (False, True):
        few, many = matrix([*rows, empty]), matrix([empty, *rows[:10], *[empty] * 9000, *rows[10:], empty])
        if blank:
            few, many = few.blank("t0"), many.blank("t0")
        item, all_ = completion(few, "t0").scores, completion(many, "t0")
        names = [*range(1, 11), *range(9011, 9031)]
        assert all_.scores[names] == pytest.approx(item[:30], abs=1e-9)
        unmeasured = np.delete(all_.scores, names)
        assert len(set(unmeasured)) == 1
        assert unmeasured[0] == pytest.approx(item[30], abs=1e-9)
        assert len(set(np.delete(np.array(all_.why), names))) == 1
        assert (all_.deviation is None) is blank


def test_more_than_can_be_compared_is_one_sentence() -> None:
    crowd = draw_matrix(0, rows=5001, columns=2, holes=0)
    with pytest.raises(UsageError, match=r"At most 5,000 adapters .* not 5,001; narrow them"):
        completion(crowd, "t0")


def half_of(values: Floats) -> tuple[Floats, Floats]:
    """The first column for the even rows alone, but for row 4."""
    n = np.where((np.arange(len(values)) % 2 == 0) & (np.arange(len(values)) != 4), 50.0, 0.0)
    return np.where(n > 0, values[:, 0], np.nan), n


def test_scores_on_the_task_alone_are_enough() -> None:
    result = completion(matrix([[0.9], [0.5], [0.1], [0.5]]), "t0")
    assert result.order() == [0, 1, 3, 2]
    assert 0.1 < result.scores[2] < 0.5 < result.scores[0] < 0.9


@pytest.mark.parametrize("values", [[[0.0], [0.0]], [[1.0], [1.0]], [[0.0], [1.0]]])
@pytest.mark.parametrize("samples", [1.0, 100.0])
def test_extreme_scores_give_finite_answers(values: list[list[float]], samples: float) -> None:
    result = completion(matrix(values, samples), "t0")
    assert np.isfinite(result.scores).all()
    assert result.deviation is not None
    assert np.isfinite(result.deviation).all()


def test_the_same_rows_in_another_order_give_the_same_scores() -> None:
    names, texts = specialists()
    order = np.random.default_rng(1).permutation(40)
    moved = ScoreMatrix(
        tuple(names.adapters[i] for i in order), names.tasks, names.values[order], names.n[order], names.base
    )
    for task in ("t0", "t3"):
        for blank in (False, True):
            first, second = (table.blank(task) if blank else table for table in (names, moved))
            assert completion(second, task, texts).scores == pytest.approx(
                completion(first, task, texts).scores[order], abs=1e-9
            )


def test_twice_the_same() -> None:
    names, texts = specialists()
    first, second = completion(names, "t2", texts), completion(names, "t2", texts)
    assert first.scores.tobytes() == second.scores.tobytes()
    assert first.why == second.why


@pytest.mark.parametrize(
    ("known", "task", "kind", "message"),
    [
        (matrix([[0.5, 0.4]]), "t00", NotFoundError, "did you mean t0"),
        (matrix([[0.5]]).blank("t1").without("t0"), "t1", UsageError, "task other than t1"),
    ],
)
def test_what_cannot_be_ranked(known: ScoreMatrix, task: str, kind: Any, message: str) -> None:
    with pytest.raises(kind, match=message):
        completion(known, task)


def test_a_posterior_of_nothing_is_refused() -> None:
    with pytest.raises(UsageError, match="at least one measured score"):
        posterior(expectation(draw_matrix(0), "t0"), np.full(12, np.nan), np.zeros(12))


@shared
@pytest.mark.slow
def test_texts_and_likeness_help_on_published_scores() -> None:
    """On tasks without test scores, judged by their own 100 samples; docs/results/retrieval.md has all."""
    from tools.published.ranking import ndcg
    from tools.published.tables import load

    result: dict[str, list[float]] = {"prior": [], "texts": [], "both": []}
    for task in load(data("recycling_paper"), proxy=True)[::3]:
        ranked = {
            "prior": prior(task.visible, task.name),
            "texts": from_like_tasks(task.visible, task.name, task.texts),
            "both": completion(task.visible, task.name, task.texts),
        }
        for name, ranking in ranked.items():
            result[name].append(ndcg(ranking.scores, task.gains, 30))
    means = {name: float(np.mean(values)) for name, values in result.items()}
    assert means["both"] > means["prior"] + 0.03
    assert means["both"] > means["texts"]
