"""Scores are facts: stored once, replaced by their own source alone, found by task and adapter."""

from __future__ import annotations

import hashlib
from dataclasses import replace

import pytest
from sqlalchemy import Engine, func, select
from sqlalchemy.orm import Session

from catalog.database.schema import Evaluation
from catalog.database.score_store import Saved, save_scores, score_table, scores_of, summary
from catalog.errors import NotFoundError, UsageError
from catalog.scores import BASE, Score

ONE = Score("ann/one", "anli", "test", "accuracy", 0.5, 100, "me")


def test_scores_are_stored_once_and_replaced_by_their_source(engine: Engine) -> None:
    with Session(engine) as session, session.begin():
        assert save_scores(session, [ONE, replace(ONE, task="rte", value=0.75)]) == Saved(2, 0, 0, 1)
        assert save_scores(session, [ONE]) == Saved(0, 0, 1, 1)
        assert save_scores(session, [replace(ONE, value=0.25)]) == Saved(0, 1, 0, 1)
        assert save_scores(session, [replace(ONE, source="you", value=0.9)]) == Saved(1, 0, 0, 1)
        assert session.scalar(select(func.count()).select_from(Evaluation)) == 3
        assert [(row["value"], row["source"]) for row in scores_of(session, "ann/one", "anli")] == [
            (0.9, "you"),
            (0.25, "me"),
        ]
        assert [row["scores"] for row in summary(session)] == [2, 1]


def test_a_table_of_scores_joins_sources_by_their_samples(engine: Engine) -> None:
    with Session(engine) as session, session.begin():
        save_scores(
            session,
            [
                replace(ONE, value=0.2, n=30),
                replace(ONE, value=0.6, n=10, source="you"),
                replace(ONE, value=0.9, split="train", n=10),
                replace(ONE, subject="bob/two:checkpoint-1", task="rte", value=1.0, n=None),
                replace(ONE, subject="bob/two@" + "c" * 40, task="rte", value=0.0, n=None),
                replace(ONE, subject=BASE, value=0.4),
            ],
        )
        result = score_table(session, splits=["test"])
    assert result.adapters == ("ann/one", "bob/two", "bob/two:checkpoint-1")
    assert result.tasks == ("anli", "rte")
    assert result.base == {"anli": 0.4}
    value, n = result.cells["ann/one", "anli"]
    assert (value, n) == (pytest.approx(0.3), 40)
    assert result.cells["bob/two", "rte"] == (0.0, None)
    assert (BASE, "anli") not in result.cells


def test_the_largest_counts_and_longest_texts_are_stored_by_both_databases(engine: Engine) -> None:
    texts = dict.fromkeys(("subject", "task", "split", "metric", "source"), "")
    longest = {name: hashlib.sha512(name.encode()).hexdigest() * 3 + "x" * 116 for name in texts}
    with Session(engine) as session, session.begin():
        save_scores(session, [replace(ONE, n=2**63 - 1), replace(ONE, **longest)])  # type: ignore[arg-type]
    with Session(engine) as session:
        assert {row["n"] for row in scores_of(session, "ann/one")} == {2**63 - 1}
        assert [row["task"] for row in scores_of(session, longest["subject"])] == [longest["task"]]


def test_scores_by_two_rules_of_comparing_answers_stand_in_no_column_together(engine: Engine) -> None:
    old = [
        replace(ONE, metric="exact_match", value=value, subject=name)
        for name, value in (("a/a", 1.0), (BASE, 0.9))
    ]
    with Session(engine) as session, session.begin():
        save_scores(session, [*old, replace(old[0], task="rte")])
        assert score_table(session).cells["a/a", "anli"] == (1.0, 100)
        assert score_table(session).base == {"anli": 0.9}
        # A race is about to measure by the present rule.
        assert list(score_table(session, renewed=("anli",)).cells) == [("a/a", "rte")]
        save_scores(session, [replace(ONE, metric="exact_match_stripped", value=0.5, subject="b/b")])
        table = score_table(session)
        assert table.cells == {("b/b", "anli"): (0.5, 100), ("a/a", "rte"): (1.0, 100)}
        assert table.base == {}
        assert [row["metric"] for row in scores_of(session, task="anli")] == [
            "exact_match_stripped",
            "exact_match",
            "exact_match",
        ]
        assert {row["metric"]: row["scores"] for row in summary(session)} == {
            "exact_match": 3,
            "exact_match_stripped": 1,
        }


def test_metrics_that_are_no_shares_are_facts_and_not_ranked_by(engine: Engine) -> None:
    with Session(engine) as session, session.begin():
        save_scores(session, [ONE, replace(ONE, metric="perplexity", value=9.5)])
        assert score_table(session).cells == {("ann/one", "anli"): (0.5, 100)}
        assert [row["value"] for row in scores_of(session, "ann/one")] == [9.5, 0.5]


def test_without_scores_there_is_a_sentence(engine: Engine) -> None:
    with Session(engine) as session, pytest.raises(NotFoundError, match="scores import"):
        score_table(session)


@pytest.mark.parametrize(
    "wrong",
    [
        {"value": float("nan")},
        {"value": float("inf")},
        {"value": 1.5},
        {"value": True},
        {"n": 0},
        {"n": 2**63},
        {"n": 5.0},
        {"subject": ""},
        {"source": " "},
        {"task": "a\x00b"},
        {"task": "\ud800"},
    ],
)
def test_what_is_no_score_is_refused(wrong: dict[str, object]) -> None:
    with pytest.raises(UsageError):
        replace(ONE, **wrong)  # type: ignore[arg-type]
