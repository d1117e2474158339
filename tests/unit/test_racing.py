"""Races spend what they may and no more, ask for each sample once, and find what was planted."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from catalog.errors import NotFoundError, UsageError
from catalog.scores.matrix import Floats, ScoreMatrix, by_score
from catalog.scores.prediction import Posterior
from catalog.scores.racing import Race, _improvement, race
from tests.unit.test_completion import plant_matrix
from tests.unit.test_scores import draw_matrix, same

pytestmark = pytest.mark.slow


class NoisyBench:
    """Measures adapters of known true scores with binomial errors, and remembers what it was asked for."""

    def __init__(self, names: ScoreMatrix, truth: Floats, refused: Sequence[str] = ()) -> None:
        self.truth = dict(zip(names.adapters, truth, strict=True))
        self.refused = set(refused)
        self.rng = np.random.default_rng(0)
        self.asked: list[tuple[list[str], int]] = []

    def __call__(self, adapters: Sequence[str], n: int) -> list[float | None]:
        self.asked.append((list(adapters), n))
        return [
            None if name in self.refused else self.rng.binomial(n, self.truth[name]) / n for name in adapters
        ]

    def samples(self) -> Counter[str]:
        """Samples asked for by adapter."""
        result: Counter[str] = Counter()
        for adapters, n in self.asked:
            result.update(dict.fromkeys(adapters, n))
        return result


def run(seed: int, budget: int, **options: int) -> tuple[Race, NoisyBench, Floats]:
    names, truth = plant_matrix(seed, rows=60)
    bench = NoisyBench(names, truth[:, 0])
    return race(names.blank("t0"), "t0", bench, budget, **options), bench, truth[:, 0]


@given(
    seed=st.integers(0, 5),
    budget=st.integers(5, 400),
    step=st.integers(1, 5),
    rounds=st.integers(1, 6),
    cap=st.integers(5, 30),
)
@settings(max_examples=25, deadline=None)
def test_no_more_is_spent_than_allowed(seed: int, budget: int, step: int, rounds: int, cap: int) -> None:
    result, bench, _ = run(seed, budget, step=step, rounds=rounds, cap=cap)
    samples = bench.samples()
    assert result.spent == sum(samples.values()) <= budget
    assert max(samples.values()) <= cap
    # What is not spent would not have paid for another step.
    assert budget - result.spent < step or all(samples[name] + step > cap for name in bench.truth)
    for adapters, n in bench.asked:
        assert n == step
        assert len(set(adapters)) == len(adapters) > 0
    at = result.matrix.column("t0")
    assert same(
        result.matrix.n[:, at], np.array([samples[name] for name in result.matrix.adapters], dtype=np.float64)
    )


def test_the_same_answers_give_the_same_race() -> None:
    first, item, _ = run(1, 300)
    second, two, _ = run(1, 300)
    assert item.asked == two.asked
    assert first.ranking.scores.tobytes() == second.ranking.scores.tobytes()
    assert first.ranking.why == second.ranking.why


def test_samples_of_a_cell_are_pooled() -> None:
    result, bench, _ = run(2, 300)
    answers = NoisyBench(result.matrix, np.array([bench.truth[name] for name in result.matrix.adapters]))
    right: Counter[str] = Counter()
    for adapters, n in bench.asked:
        for name, score in zip(adapters, answers(adapters, n), strict=True):
            right[name] += round((score or 0) * n)
    raw = by_score(result.matrix, "t0").scores
    samples = bench.samples()
    for name, score in zip(result.matrix.adapters, raw, strict=True):
        if samples[name]:
            assert score == pytest.approx(right[name] / samples[name])
        else:
            assert math.isnan(score)


def test_a_race_finds_better_adapters_than_the_same_samples_for_everyone() -> None:
    """600 samples for 60 adapters, of which measuring all 100 times would take 6,000, on eight tasks."""
    raced, evenly, spent_well = [], [], []
    for task in range(8):
        names, truth = plant_matrix(task, rows=60)
        name, scores = f"t{task}", truth[:, task]
        bench = NoisyBench(names, scores)
        result = race(names.blank(name), name, bench, 600)
        raced.append(scores[result.ranking.order()[:5]].mean() - scores.mean())
        values = np.random.default_rng(task).binomial(10, scores) / 10
        even = by_score(names.with_column(name, values, np.full(60, 10.0)), name)
        evenly.append(scores[even.order()[:5]].mean() - scores.mean())
        best = {names.adapters[i] for i in np.argsort(-scores)[:15]}
        samples = bench.samples()
        spent_well.append(sum(n for adapter, n in samples.items() if adapter in best) / result.spent)
    assert np.mean(raced) > 1.1 * np.mean(evenly)
    assert np.mean(spent_well) > 0.4, "the best quarter gets more than a quarter"


def test_an_adapter_that_stands_out_is_found_whatever_the_other_tasks_say() -> None:
    names, truth = plant_matrix(0, rows=40)
    truth = truth[:, 0].clip(0, 0.6)
    worst = int(np.argmin(truth))
    truth[worst] = 1.0
    result = race(names.blank("t0"), "t0", NoisyBench(names, truth), 800)
    assert result.ranking.order()[0] == worst


def test_what_was_measured_before_is_not_bought_again() -> None:
    names, truth = plant_matrix(3, rows=30)
    n = np.where(np.arange(30) < 10, 100.0, 0.0)
    part = names.with_column("t0", np.where(n > 0, names.values[:, 0], np.nan), n)
    bench = NoisyBench(names, truth[:, 0])
    result = race(part, "t0", bench, 200)
    assert not set(bench.samples()) & set(names.adapters[:10]), "their 100 samples are the cap"
    assert same(result.matrix.values[:10, 0], names.values[:10, 0])
    assert result.spent == 200


def test_an_adapter_that_cannot_be_measured_is_asked_for_once() -> None:
    names, truth = plant_matrix(4, rows=20)
    refused = names.adapters[::3]
    bench = NoisyBench(names, truth[:, 0], refused)
    result = race(names.blank("t0"), "t0", bench, 2000, cap=30)
    counts = Counter(name for adapters, _ in bench.asked for name in adapters)
    assert {name: counts[name] for name in refused} == dict.fromkeys(refused, 1)
    assert result.spent == 30 * (20 - len(refused))
    assert np.isfinite(result.ranking.scores).all(), "they are ranked by those like them"


def test_where_nobody_can_be_measured_there_is_no_race() -> None:
    names, truth = plant_matrix(4, rows=6)
    with pytest.raises(UsageError, match="No adapter could be measured on t0"):
        race(names.blank("t0"), "t0", NoisyBench(names, truth[:, 0], names.adapters), 100)


@pytest.mark.parametrize("answers", [[0.5], [0.5, 1.2], [0.5, -0.1], [0.5, math.inf]])
def test_an_answer_that_is_no_score_is_refused(answers: list[float]) -> None:
    names = draw_matrix(0, rows=2)
    with pytest.raises(UsageError, match="must return a score from 0 to 1 for each adapter"):
        race(names.blank("t0"), "t0", lambda adapters, n: answers, 20, rounds=1)


def test_a_budget_below_one_step_and_an_unknown_task_are_refused() -> None:
    names = draw_matrix(0)
    with pytest.raises(UsageError, match="at least one step of 10 samples"):
        race(names, "t0", lambda adapters, n: [], 9)
    with pytest.raises(NotFoundError, match="t99"):
        race(names, "t99", lambda adapters, n: [], 100)


def test_the_expected_improvement_is_the_integral() -> None:
    from scipy.integrate import quad
    from scipy.stats import norm

    mean = np.array([0.5, 0.6, 0.2, 0.61])
    deviation = np.array([0.1, 0.02, 0.2, 0.0])
    result = _improvement(Posterior(mean, deviation))
    # Of four adapters, the tenth best is the last: 0.2.
    for m, s, value in zip(mean, deviation, result, strict=True):
        if s:
            expected, _ = quad(lambda f, m=m, s=s: (f - 0.2) * norm.pdf(f, m, s), 0.2, 3, epsabs=1e-12)
            assert value == pytest.approx(expected, abs=1e-9)
        else:
            assert value == pytest.approx(0.41)
