"""Scores are facts: stored once, replaced by their own source alone, found by task and adapter."""

from __future__ import annotations

import hashlib
from dataclasses import replace

import pytest
from sqlalchemy import Engine, func, select, update
from sqlalchemy.exc import IntegrityError
from sqlalchemy.orm import Session

from catalog.database.schema import Evaluation, ItemList
from catalog.database.score_store import (
    Saved,
    ScoreFilter,
    save_scores,
    score_table,
    scores_of,
    stored_scores,
    summary,
)
from catalog.errors import NotFoundError, UsageError
from catalog.scores import BASE, Outcomes, Score, item_hash, list_sha, pack_bitmap, pack_margins

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
    longest["protocol"] = hashlib.sha512(b"protocol").hexdigest()[:100]
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
        current = score_table(session, metrics={"anli": "exact_match_stripped"})
        assert list(current.cells) == [("a/a", "rte")]
        assert current.note == (
            "Scores of a task are compared by one metric: anli by exact_match_stripped, without exact_match."
        )
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


def test_a_column_has_scores_by_one_metric(engine: Engine) -> None:
    """The one of most adapters, of equals the first listed; a metric of one adapter more wins over it."""
    f1 = [replace(ONE, metric="f1", value=0.9, subject=name) for name in ("a/a", BASE)]
    with Session(engine) as session, session.begin():
        save_scores(session, [*f1, replace(ONE, subject="a/a"), replace(ONE, metric="perplexity", value=3.0)])
        table = score_table(session)
        assert table.cells == {("a/a", "anli"): (0.5, 100)}
        assert (table.base, table.metrics) == ({}, {"anli": "accuracy"})
        assert table.note == "Scores of a task are compared by one metric: anli by accuracy, without f1."
        save_scores(session, [replace(f1[0], subject=name) for name in ("b/b", "c/c")])
        save_scores(
            session,
            [
                replace(ONE, task=f"t{number}", metric=metric)
                for number in range(4)
                for metric in ("accuracy", "acc_norm")
            ],
        )
        table = score_table(session)
        assert {name for name, task in table.cells if task == "anli"} == {"a/a", "b/b", "c/c"}
        assert table.base == {"anli": 0.9}
        assert table.note.endswith(
            "anli by f1, without accuracy; t0 by accuracy, without acc_norm; t1 by "
            "accuracy, without acc_norm; and 2 more."
        )
        assert score_table(session, metrics={"anli": "accuracy"}).base == {}


def test_metrics_that_are_no_shares_are_facts_and_not_ranked_by(engine: Engine) -> None:
    with Session(engine) as session, session.begin():
        save_scores(session, [ONE, replace(ONE, metric="perplexity", value=9.5)])
        assert score_table(session).cells == {("ann/one", "anli"): (0.5, 100)}
        assert [row["value"] for row in scores_of(session, "ann/one")] == [9.5, 0.5]


def test_without_scores_there_is_a_sentence(engine: Engine) -> None:
    with Session(engine) as session, pytest.raises(NotFoundError, match="import_scores"):
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


HASHES = b"".join(item_hash(f"question {n}", "yes", ("yes", "no")) for n in range(10))


def outcomes(right: str, margins: bool = True, hashes: bytes = HASHES) -> Outcomes:
    """The outcomes of ten items, "1" for a right answer."""
    answers = [letter == "1" for letter in right]
    numbers = pack_margins([-1.0 if answer else 2.0 for answer in answers]) if margins else b""
    return Outcomes(list_sha(HASHES), pack_bitmap(answers), numbers, hashes)


ITEMS = replace(ONE, n=10, outcomes=outcomes("1111100000"))


def item_lists(session: Session) -> list[tuple[str, int, bytes | None]]:
    """The lists of items on record."""
    return [(row.items_sha, row.n, row.hashes) for row in session.scalars(select(ItemList))]


def test_outcomes_are_stored_with_their_items_once(engine: Engine) -> None:
    other = replace(ITEMS, subject="bob/two", outcomes=outcomes("0101010101", margins=False, hashes=b""))
    with Session(engine) as session, session.begin():
        assert save_scores(session, [other]) == Saved(1, 0, 0, 1)
        assert item_lists(session) == [(list_sha(HASHES), 10, None)]
        assert save_scores(session, [ITEMS]) == Saved(1, 0, 0, 1)
        assert item_lists(session) == [(list_sha(HASHES), 10, HASHES)]
        complete = replace(other, outcomes=outcomes("0101010101", margins=False))
        assert stored_scores(session, ScoreFilter("anli")) == [ITEMS, complete]
        assert stored_scores(session, ScoreFilter("anli"), ["bob/two"]) == [complete]
        assert stored_scores(session, ScoreFilter(split="train")) == []
        assert stored_scores(session, ScoreFilter("anli", "test", "accuracy", "", "you")) == []
        assert [row["with_outcomes"] for row in summary(session)] == [2]
        assert {row["items_sha"] for row in scores_of(session, task="anli")} == {list_sha(HASHES)}


def test_outcomes_are_replaced_with_their_score_and_kept_by_the_same_without(engine: Engine) -> None:
    with Session(engine) as session, session.begin():
        save_scores(session, [ITEMS])
        assert save_scores(session, [ITEMS, replace(ITEMS, task="rte", outcomes=None)]) == Saved(1, 0, 1, 1)
        assert save_scores(session, [replace(ITEMS, outcomes=None)]) == Saved(0, 0, 1, 1)
        assert stored_scores(session, ScoreFilter("anli")) == [ITEMS]
        assert save_scores(session, [replace(ITEMS, task="rte")]) == Saved(0, 1, 0, 1)
        assert stored_scores(session, ScoreFilter("rte")) == [replace(ITEMS, task="rte")]
        turned = replace(ITEMS, outcomes=outcomes("0000011111"))
        assert save_scores(session, [turned]) == Saved(0, 1, 0, 1)
        assert stored_scores(session, ScoreFilter("anli")) == [turned]
        without = [replace(ITEMS, task=task, value=0.6, outcomes=None) for task in ("anli", "rte")]
        assert save_scores(session, without) == Saved(0, 2, 0, 1)
        assert stored_scores(session, ScoreFilter()) == without
        assert item_lists(session) == []


def test_scores_of_two_protocols_stand_in_no_table_together(engine: Engine) -> None:
    paper = replace(ONE, protocol="recycling-paper", value=0.9)
    with Session(engine) as session, session.begin():
        assert save_scores(session, [ONE, paper]) == Saved(2, 0, 0, 1)
        assert save_scores(session, [paper]) == Saved(0, 0, 1, 1)
        assert score_table(session).cells == {("ann/one", "anli"): (0.5, 100)}
        assert score_table(session, protocol="recycling-paper").cells == {("ann/one", "anli"): (0.9, 100)}
        assert [(row["protocol"], row["scores"]) for row in summary(session)] == [
            ("", 1),
            ("recycling-paper", 1),
        ]
        assert [row["protocol"] for row in scores_of(session, "ann/one")] == ["recycling-paper", ""]


def test_a_list_of_items_has_one_length(engine: Engine) -> None:
    forged = Outcomes(list_sha(HASHES), pack_bitmap([True] * 4 + [False] * 4))
    other = replace(ITEMS, task="rte", n=8, outcomes=forged)
    with Session(engine) as session, session.begin():
        with pytest.raises(UsageError, match="are 10 in one place and 8 in another"):
            save_scores(session, [ITEMS, other])
        save_scores(session, [ITEMS])
        with pytest.raises(UsageError, match="are 10 in one place and 8 in another"):
            save_scores(session, [other])


@pytest.mark.parametrize(
    "change",
    [
        {"items_sha": None},
        {"items_sha": "0" * 64},
        {"outcomes": None},
        {"outcomes": b"\x00"},
        {"outcomes": b"\x00\x00\x00"},
        {"n": None},
        {"n": 9, "margins": None, "outcomes": b"\x00"},
        {"margins": b"\x00"},
        {"outcomes": None, "items_sha": None},
        {"protocol": None},
    ],
)
def test_the_database_refuses_outcomes_that_do_not_fit(engine: Engine, change: dict[str, object]) -> None:
    with Session(engine) as session:
        save_scores(session, [ITEMS])
        session.commit()
        with pytest.raises(IntegrityError):
            session.execute(update(Evaluation).values(**change))


@pytest.mark.parametrize(
    "wrong",
    [
        {"value": 0.6},
        {"n": None},
        {"n": 11, "value": 5 / 11},
        {"metric": "perplexity", "value": 7.0},
        {"protocol": "p" * 101},
        {"protocol": "a\x00"},
    ],
)
def test_a_score_that_its_outcomes_contradict_is_refused(wrong: dict[str, object]) -> None:
    with pytest.raises(UsageError, match="cannot be stored"):
        replace(ITEMS, **wrong)  # type: ignore[arg-type]
