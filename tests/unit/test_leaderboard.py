"""Rows of a leaderboard: intervals of shares of items, and none of metrics of all items together."""

from __future__ import annotations

import pytest

from catalog.errors import NotFoundError
from catalog.scores import BASE, Outcomes, Score, item_hash, list_sha, pack_bitmap
from loradex.outcomes import answer_table, leaderboard_rows


@pytest.mark.parametrize(("metric", "interval"), [("accuracy", True), ("bleu", False), ("chrf", False)])
def test_only_a_mean_of_items_has_an_interval(metric: str, interval: bool) -> None:
    scores = [
        Score(name, "task", "test", metric, value, 100, "mine")
        for name, value in (("a/a", 0.3), ("b/b", 0.2))
    ]
    assert [(row.low is not None, row.high is not None) for row in leaderboard_rows(scores, "task")] == [
        (interval, interval)
    ] * 2


def test_answers_of_two_sources_are_those_of_the_larger_one_not_the_better() -> None:
    hashes = item_hash("a", "b", ()) + item_hash("c", "d", ())

    def score(subject: str, source: str, bits: str) -> Score:
        right = [bit == "1" for bit in bits]
        outcomes = Outcomes(list_sha(hashes), pack_bitmap(right), hashes=hashes)
        return Score(subject, "t", "test", "accuracy", sum(right) / 2, 2, source, outcomes=outcomes)

    scores = [
        score("x", "one", "11"),
        score("x", "two", "10"),
        score("y", "two", "01"),
        score("z", "one", "00"),
    ]
    scores += [score("w", "two", "11"), score(BASE, "two", "11")]
    table = answer_table(scores, "t")
    assert table.adapters == ("w", "x", "y", "z")
    assert table.right.tolist() == [[True, True], [True, False], [False, True], [False, False]]
    assert answer_table(scores, "t", asked=["w", "x"]).adapters == ("y", "z")
    with pytest.raises(NotFoundError, match="no answers of adapters beside those that are asked"):
        answer_table(scores, "t", asked=["w", "x", "y", "z"])
