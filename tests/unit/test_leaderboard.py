"""Rows of a leaderboard: intervals of shares of items, and none of metrics of all items together."""

from __future__ import annotations

import pytest

from catalog.scores import Score
from loradex.outcomes import leaderboard_rows


@pytest.mark.parametrize(("metric", "interval"), [("accuracy", True), ("bleu", False), ("chrf", False)])
def test_only_a_mean_of_items_has_an_interval(metric: str, interval: bool) -> None:
    scores = [
        Score(name, "task", "test", metric, value, 100, "mine")
        for name, value in (("a/a", 0.3), ("b/b", 0.2))
    ]
    assert [(row.low is not None, row.high is not None) for row in leaderboard_rows(scores, "task")] == [
        (interval, interval)
    ] * 2
