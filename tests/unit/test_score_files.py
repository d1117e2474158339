"""Files of scores are read as they are or refused by line; nothing is guessed."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from catalog.errors import NotFoundError, UsageError
from catalog.scores import BASE, Score, read_scores
from tests.shared_data import data, shared

GIVEN: dict[str, Any] = {"source": "me", "split": "test", "metric": "accuracy", "n": 100}


def read(tmp_path: Path, text: str | bytes, name: str = "scores.csv") -> list[Score]:
    """The scores in a file with this content."""
    file = tmp_path / name
    file.write_bytes(text if isinstance(text, bytes) else text.encode())
    return read_scores(file, **GIVEN)


def test_a_wide_table_has_a_score_a_cell_and_holes(tmp_path: Path) -> None:
    result = read(tmp_path, "adapter,anli,rte\nann/one,0.5,\nbob/two,1,0.25\n\n")
    assert [(score.subject, score.task, score.value) for score in result] == [
        ("ann/one", "anli", 0.5),
        ("bob/two", "anli", 1.0),
        ("bob/two", "rte", 0.25),
    ]
    assert {(score.split, score.metric, score.n, score.source) for score in result} == {
        ("test", "accuracy", 100, "me")
    }


def test_a_table_of_the_base_model(tmp_path: Path) -> None:
    [result] = read(tmp_path, "\ufefftask,zero_shot\nanli,0.4\n")
    assert (result.subject, result.task, result.value) == (BASE, "anli", 0.4)


WRONG = [
    (
        "adapter,anli\nann/one,1.01\n",
        "line 2: The score of ann/one on anli cannot be stored: its accuracy is 1.01",
    ),
    ("adapter,anli\nann/one,nan\n", "line 2: 'nan' is not a number"),
    ("adapter,anli\nann/one,-0.1\n", "its accuracy is -0.1, not a number from 0 to 1"),
    ("adapter,anli\nann/one,much\n", "line 2: 'much' is not a number"),
    ("adapter,anli\nann/one,0_1\n", "line 2: '0_1' is not a number"),
    ("adapter,anli\nann/one,55%\n", "line 2: '55%' is not a number"),
    ("adapter,anli\nann/one,1e999\n", "line 2: The score of ann/one on anli cannot be stored"),
    ("adapter,anli\nann/one,0.1,0.2\n", "line 2: requires 2 cells"),
    ("adapter,anli\nann/one\n", "line 2: requires 2 cells"),
    ("adapter,anli,anli\nann/one,0.1,0.2\n", "line 1: a column has no name, or two have the same"),
    ("adapter,anli,\nann/one,0.1,0.2\n", "line 1: a column has no name"),
    ("adapter,anli\nann/one,0.1\nann/one,0.1\n", "line 3: ann/one has two scores on anli"),
    ("adapter,anli\n ,0.1\n", "requires subject"),
    ("", "contains no table"),
    ("adapter\nann/one\n", "contains no table"),
    (b"\xff\xfe\x00", "not a CSV in UTF-8"),
    ('adapter,anli\n"ann/one,0.1\n', "not a CSV"),
]


@pytest.mark.parametrize(("text", "told"), WRONG)
def test_what_is_no_score_is_named_by_line(tmp_path: Path, text: str | bytes, told: str) -> None:
    with pytest.raises(UsageError) as caught:
        read(tmp_path, text)
    assert told in str(caught.value)


def score(**over: Any) -> dict[str, Any]:
    row = {"adapter": "ann/one", "task": "anli", "split": "valid", "metric": "f1", "value": 0.25, "n": None}
    return row | over


def test_a_document_of_scores_says_everything_itself(tmp_path: Path) -> None:
    [result] = read(tmp_path, json.dumps({"scores": [score(extra=1)]}), "scores.json")
    assert result == Score("ann/one", "anli", "valid", "f1", 0.25, None, "me")


@pytest.mark.parametrize("document", [[], {}, {"scores": {}}])
def test_a_document_that_is_none_is_refused(tmp_path: Path, document: Any) -> None:
    with pytest.raises(UsageError, match="This is not a file of scores"):
        read(tmp_path, json.dumps(document), "scores.json")


@pytest.mark.parametrize(
    ("row", "told"),
    [
        (1, "it must have adapter"),
        ({"adapter": "a/b"}, "it must have adapter"),
        (score(value="1"), "its f1 is '1', not a number from 0 to 1"),
        (score(value=True), "its f1 is True, not a number"),
        (score(value=None), "its f1 is None, not a number"),
        (score(value=55), "its f1 is 55, not a number from 0 to 1"),
        (score(value=-0.001), "its f1 is -0.001, not a number"),
        (score(value=10**299), "0000…, not a number from 0 to 1"),
        (score(metric="mcc", value=-1.5), "its mcc is -1.5, not a number from -1 to 1"),
        (score(metric="perplexity", value=-1), "its perplexity is -1, not a number from 0 up"),
        (score(metric="nll", value=10**299 * 10**12), "its nll is inf, not a number from 0 up"),
        (score(n=0), "its number of samples is 0, not a whole number from 1 to 9,223,372,036,854,775,807"),
        (score(n=-5), "its number of samples is -5"),
        (score(n=1.5), "its number of samples is 1.5"),
        (score(n=60.0), "its number of samples is 60.0"),
        (score(n=True), "its number of samples is True"),
        (score(n="60"), "its number of samples is '60'"),
        (score(n=2**63), "its number of samples is 9223372036854775808"),
        (score(task=" "), "requires task"),
        (score(task="t" * 501), "A score whose task is"),
        (score(adapter=None), "must be strings"),
        (score(split="test"), "ann/one has two scores on anli"),
        (score(split=" test "), "ann/one has two scores on anli"),
    ],
)
def test_what_is_no_score_is_named_by_number(tmp_path: Path, row: Any, told: str) -> None:
    with pytest.raises(UsageError) as caught:
        read(tmp_path, json.dumps({"scores": [score(split="test"), row]}), "scores.json")
    assert str(caught.value).startswith("Score 2: ")
    assert told in str(caught.value)


@pytest.mark.parametrize(
    "value", ["NaN", "Infinity", "-Infinity", "1e999", "-1e999", "1" * 400, "-" + "9" * 400]
)
@pytest.mark.parametrize("name", ["value", "n"])
def test_numbers_that_json_does_not_have_are_named_too(tmp_path: Path, value: str, name: str) -> None:
    document = json.dumps({"scores": [score(value=0, n=1)]}).replace(
        f'"{name}": {score(value=0, n=1)[name]}', f'"{name}": {value}'
    )
    with pytest.raises(UsageError, match=r"^Score 1: its (f1|number of samples) is -?(nan|inf), not"):
        read(tmp_path, document, "scores.json")


@pytest.mark.parametrize(
    "over", [{"metric": "mcc", "value": -1}, {"metric": "perplexity", "value": 9.5}, {"n": 2**63 - 1}]
)
def test_the_ends_of_what_a_score_can_be_are_scores(tmp_path: Path, over: dict[str, Any]) -> None:
    [result] = read(tmp_path, json.dumps({"scores": [score(**over)]}), "scores.json")
    assert (result.value, result.n) == (score(**over)["value"], score(**over)["n"])


def test_a_table_is_held_to_the_same_ranges(tmp_path: Path) -> None:
    file = tmp_path / "scores.csv"
    file.write_text("adapter,anli\nann/one,0.5\n", encoding="utf-8")
    assert read_scores(file, **GIVEN | {"n": 2**63 - 1})[0].n == 2**63 - 1
    with pytest.raises(UsageError, match=r"line 2: .* its number of samples is 9223372036854775808"):
        read_scores(file, **GIVEN | {"n": 2**63})
    file.write_text("adapter,anli\nann/one,1.5\n", encoding="utf-8")
    with pytest.raises(UsageError, match=r"its mcc is 1\.5"):
        read_scores(file, **GIVEN | {"metric": "mcc"})


def test_a_file_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(NotFoundError, match="does not exist"):
        read_scores(tmp_path / "x.csv", **GIVEN)


@shared
def test_the_published_tables_are_read_whole() -> None:
    place = data("recycling_paper")
    content = read_scores(place / "scores_100_samples.csv", **GIVEN)
    ids = set((place / "pool_ids.txt").read_text().split())
    assert len(ids) == 960
    assert ids <= {score.subject for score in content}
    tests = read_scores(place / "scores_test_dev_tasks.csv", **GIVEN)
    assert len({score.task for score in tests}) == 23
