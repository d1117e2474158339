"""The score matrix is what was measured and nothing else; the prior is worked by hand and shrinks."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from catalog.errors import NotFoundError, UsageError
from catalog.scores.matrix import (
    Floats,
    Ranking,
    ScoreMatrix,
    by_score,
    effect,
    excess,
    other_tasks,
    prior,
    score_matrix,
    standardise,
)

NAN = math.nan


def matrix(values: list[list[float]], n: float = 100, base: list[float] | None = None) -> ScoreMatrix:
    """Adapters o/a0, o/a1, … on tasks t0, t1, … with n samples a cell."""
    table = np.array(values, dtype=np.float64)
    samples = np.where(np.isnan(table), 0.0, n)
    rows, columns = table.shape
    return ScoreMatrix(
        tuple(f"o/a{i}" for i in range(rows)),
        tuple(f"t{j}" for j in range(columns)),
        table,
        samples,
        np.full(columns, NAN) if base is None else np.array(base),
    )


def draw_matrix(seed: int, rows: int = 12, columns: int = 5, holes: float = 0.2) -> ScoreMatrix:
    """A matrix of random scores in hundredths, with holes in every column but the first."""
    rng = np.random.default_rng(seed)
    values = rng.integers(0, 101, size=(rows, columns)) / 100
    values[:, 1:][rng.uniform(size=(rows, columns - 1)) < holes] = NAN
    return matrix(values.tolist())


def same(first: Floats, second: Floats) -> bool:
    return np.array_equal(first, second, equal_nan=True)


def test_cells_become_a_matrix_with_holes() -> None:
    cells = [("o/b", "rte", 0.5, 20), ("o/a", "anli", 0.25, None), ("o/a", "rte", 1.0, 10)]
    result = score_matrix(cells, base=[("rte", 0.4), ("cola", 0.9)], adapters=["o/c", "o/a"])
    assert (result.adapters, result.tasks) == (("o/a", "o/b", "o/c"), ("anli", "rte"))
    assert same(result.values, np.array([[0.25, 1.0], [NAN, 0.5], [NAN, NAN]]))
    assert same(result.n, np.array([[100.0, 10], [0, 20], [0, 0]]))
    assert same(result.base, np.array([NAN, 0.4]))


@pytest.mark.parametrize(
    ("cells", "message"),
    [
        ([("o/a", "rte", 0.5, 1), ("o/a", "rte", 0.5, 1)], "o/a has two scores on rte"),
        ([("o/a", "rte", 1.5, 1)], "o/a on rte: 1.5 of 1 samples is not a score"),
        ([("o/a", "rte", NAN, 1)], "is not a score"),
        ([("o/a", "rte", 0.5, 0)], "0.5 of 0 samples"),
    ],
)
def test_what_is_no_score_is_refused(cells: list[tuple[str, str, float, int]], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        score_matrix(cells)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"adapters": ("o/a0",)}, "differ in number"),
        ({"adapters": ("o/a0", "o/a0")}, "contains the adapter o/a0 twice"),
        ({"tasks": ("t0", "t0")}, "contains the task t0 twice"),
        ({"values": np.array([[0.1, 1.1], [0.2, 0.3]])}, "outside 0 to 1"),
        ({"n": np.array([[1.0, 0.0], [1.0, 1.0]])}, "A score without samples"),
    ],
)
def test_a_matrix_that_does_not_fit_is_refused(change: dict[str, object], message: str) -> None:
    good = matrix([[0.1, 0.2], [0.3, 0.4]])
    fields = {name: getattr(good, name) for name in ("adapters", "tasks", "values", "n", "base")}
    with pytest.raises(UsageError, match=message):
        ScoreMatrix(**(fields | change))


@given(st.integers(0, 50))
def test_columns_are_put_in_taken_out_and_blanked(seed: int) -> None:
    complete = draw_matrix(seed)
    at = complete.column("t2")
    empty = complete.blank("t2")
    assert empty.tasks == complete.tasks
    assert not empty.n[:, at].any()
    assert same(np.delete(empty.values, at, axis=1), np.delete(complete.values, at, axis=1))
    back = empty.with_column("t2", complete.values[:, at], complete.n[:, at])
    assert same(back.values, complete.values)
    assert same(back.n, complete.n)
    assert complete.without("t2").tasks == ("t0", "t1", "t3", "t4")
    assert same(complete.without("t2").values, np.delete(complete.values, at, axis=1))
    longer = complete.blank("new")
    assert (longer.tasks[-1], longer.n[:, -1].any(), same(longer.values[:, :-1], complete.values)) == (
        "new",
        False,
        True,
    )


def test_an_unknown_task_is_named_with_those_near() -> None:
    names = score_matrix([("o/a", "glue_mnli", 0.5, 1), ("o/a", "glue_qnli", 0.5, 1), ("o/a", "x", 0.5, 1)])
    with pytest.raises(NotFoundError, match="task gluemnli; did you mean glue_mnli or glue_qnli"):
        by_score(names, "gluemnli")
    with pytest.raises(NotFoundError, match="give a task that has scores"):
        prior(names, "zzzz")


def test_by_score_ranks_what_was_measured() -> None:
    result = by_score(matrix([[0.5, 0.1], [NAN, 0.9], [0.8, NAN], [0.5, 0.3]]), "t0")
    assert same(result.scores, np.array([0.5, NAN, 0.8, 0.5]))
    assert result.order() == [2, 0, 3, 1], "equal scores by name, those not measured last"
    assert result.why[2] == "0.800 on 100 samples of t0"
    assert result.why[1] == "not measured on t0"
    with pytest.raises(UsageError, match="No adapter was measured on new"):
        by_score(matrix([[0.5]]).blank("new"), "new")


def test_the_order_does_not_depend_on_the_order_of_rows() -> None:
    names = ("o/c", "o/a", "o/b")
    ranking = Ranking(names, np.array([1.0, 1.0, 2.0]), ("", "", ""))
    assert [names[i] for i in ranking.order()] == ["o/b", "o/a", "o/c"]


def test_the_excess_worked_by_hand() -> None:
    # The upper quartile of 0, .1, .2, .3, .8 is .3: the excess is 0, 0, 0, 0, .5, mean .1, deviation .2.
    result = excess(np.array([[0.0], [0.1], [0.2], [0.3], [0.8], [NAN]]))
    assert result[:5, 0] == pytest.approx([-0.1 / 0.21] * 4 + [0.4 / 0.21], rel=1e-12)
    assert math.isnan(result[5, 0])
    assert same(excess(np.full((3, 1), 0.4)), np.zeros((3, 1))), "no differences, no excess"


def test_standardised_columns() -> None:
    result = standardise(np.array([[0.2, 0.5], [0.4, 0.5], [0.6, NAN]]))
    assert result[:, 0] == pytest.approx([-math.sqrt(1.5), 0, math.sqrt(1.5)])
    assert same(result[:, 1], np.array([0, 0, NAN]))


def test_the_shrinkage_worked_by_hand() -> None:
    # Rows (3, 1), (-2, 0) and (1, -): means 2, -1, 1; sigma^2 = (1 + 1 + 1 + 1) / (5 - 3) = 2;
    # tau^2 = ((4 - 1) + (1 - 1) + (1 - 2)) / 3 = 2 / 3, sigma^2 / tau^2 = 3: factors 2/5, 2/5, 1/4.
    result = effect(np.array([[3.0, 1.0], [-2.0, 0.0], [1.0, NAN], [NAN, NAN]]))
    assert result == pytest.approx([0.8, -0.4, 0.25, 0.0], rel=1e-12)


def test_nothing_is_left_where_adapters_differ_no_more_than_by_chance() -> None:
    result = effect(np.array([[1.0, -1.0], [-1.0, 1.0], [1.0, -1.0]]))
    assert np.abs(result).max() < 1e-6


def test_shrunk_means_are_nearer_to_the_truth() -> None:
    rng = np.random.default_rng(0)
    truth = rng.normal(0, 0.5, size=400)
    columns = truth[:, None] + rng.normal(0, 1, size=(400, 10))
    columns[:200, 2:] = NAN
    shrunk, plain = effect(columns), np.nanmean(columns, axis=1)
    error = [float(np.mean((result[:200] - truth[:200]) ** 2)) for result in (shrunk, plain)]
    assert error[0] < 0.6 * error[1]
    # With two measurements of variance 1 each, the best factor is 2 / (2 + 1 / 0.25) = 1 / 3.
    assert np.median(shrunk[:200] / plain[:200]) == pytest.approx(1 / 3, abs=0.05)


def test_the_prior_favours_those_who_stand_out_elsewhere() -> None:
    values = [[0.9, 0.8, 0.9, 0.0], [0.5, 0.5, 0.4, 1.0], [0.4, 0.6, 0.5, 1.0], [0.5, 0.4, 0.5, 1.0]]
    result = prior(matrix([*values, [NAN, NAN, NAN, 1.0]], base=[0.5, 0.5, 0.5, NAN]), "t3")
    assert result.order()[0] == 0
    assert result.scores[4] == 0
    assert result.why[4] == "measured on no other task"
    assert "over 3 other task(s)" in result.why[0]
    assert result.why[0].endswith("mean gain over the base +0.367")


@given(st.integers(0, 50))
def test_the_prior_sees_nothing_of_the_task_itself(seed: int) -> None:
    complete = draw_matrix(seed)
    result = prior(complete, "t0")
    other = draw_matrix(seed + 1000)
    changed = complete.with_column("t0", other.values[:, 0], other.n[:, 0])
    assert same(prior(changed, "t0").scores, result.scores)
    assert same(prior(complete.blank("t0"), "t0").scores, result.scores)
    assert prior(changed, "t0").why == result.why


@given(st.integers(0, 50), st.randoms())
def test_the_prior_of_an_adapter_does_not_depend_on_its_place(seed: int, random: object) -> None:
    complete = draw_matrix(seed)
    order = np.random.default_rng(seed).permutation(len(complete.adapters))
    moved = ScoreMatrix(
        tuple(complete.adapters[i] for i in order),
        complete.tasks,
        complete.values[order],
        complete.n[order],
        complete.base,
    )
    assert prior(moved, "t0").scores == pytest.approx(prior(complete, "t0").scores[order], abs=1e-12)


def test_tasks_that_nobody_was_measured_on_count_for_nothing() -> None:
    complete = draw_matrix(0)
    assert same(prior(complete.blank("empty"), "t0").scores, prior(complete, "t0").scores)
    assert other_tasks(complete.blank("empty"), "t0").tasks == ("t1", "t2", "t3", "t4")


def test_without_any_other_task_there_is_no_prior() -> None:
    with pytest.raises(UsageError, match="No adapter was measured on a task other than t0"):
        prior(matrix([[0.5], [0.6]]), "t0")
