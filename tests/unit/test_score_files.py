"""Files of scores are read as they are or refused by line; nothing is guessed."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from catalog.errors import NotFoundError, UsageError
from catalog.score_files import read_scores
from catalog.score_store import BASE, Score
from tests.shared_data import data, shared

GIVEN: dict[str, Any] = {"source": "me", "split": "test", "metric": "accuracy", "n": 100}


def read(tmp_path: Path, text: str | bytes, name: str = "scores.csv") -> list[Score]:
    """The scores in a file with this content."""
    file = tmp_path / name
    file.write_bytes(text if isinstance(text, bytes) else text.encode())
    return read_scores(file, **GIVEN)


def test_a_wide_table_has_a_score_a_cell_and_holes(tmp_path: Path) -> None:
    found = read(tmp_path, "adapter,anli,rte\nann/one,0.5,\nbob/two,1,0.25\n\n")
    assert [(score.subject, score.task, score.value) for score in found] == [
        ("ann/one", "anli", 0.5),
        ("bob/two", "anli", 1.0),
        ("bob/two", "rte", 0.25),
    ]
    assert {(score.split, score.metric, score.n, score.source) for score in found} == {
        ("test", "accuracy", 100, "me")
    }


def test_a_table_of_the_base_model(tmp_path: Path) -> None:
    [found] = read(tmp_path, "\ufefftask,zero_shot\nanli,0.4\n")
    assert (found.subject, found.task, found.value) == (BASE, "anli", 0.4)


WRONG = [
    ("adapter,anli\nann/one,1.01\n", "line 2: '1.01' is no score from 0 to 1"),
    ("adapter,anli\nann/one,nan\n", "line 2: 'nan'"),
    ("adapter,anli\nann/one,-0.1\n", "line 2: '-0.1'"),
    ("adapter,anli\nann/one,much\n", "line 2: 'much'"),
    ("adapter,anli\nann/one,0.1,0.2\n", "line 2: not 2 cells"),
    ("adapter,anli\nann/one\n", "line 2: not 2 cells"),
    ("adapter,anli,anli\nann/one,0.1,0.2\n", "line 1: a column has no name, or two have the same"),
    ("adapter,anli,\nann/one,0.1,0.2\n", "line 1: a column has no name"),
    ("adapter,anli\nann/one,0.1\nann/one,0.1\n", "line 3: ann/one has two scores on anli"),
    ("adapter,anli\n ,0.1\n", "without subject"),
    ("", "holds no table"),
    ("adapter\nann/one\n", "holds no table"),
    (b"\xff\xfe\x00", "no CSV in UTF-8"),
    ('adapter,anli\n"ann/one,0.1\n', "no CSV"),
]


@pytest.mark.parametrize(("text", "told"), WRONG)
def test_what_is_no_score_is_named_by_line(tmp_path: Path, text: str | bytes, told: str) -> None:
    with pytest.raises(UsageError) as caught:
        read(tmp_path, text)
    assert told in str(caught.value)


def score(**over: Any) -> dict[str, Any]:
    row = {"adapter": "ann/one", "task": "anli", "split": "valid", "metric": "f1", "value": 2.5, "n": None}
    return row | over


def test_a_document_of_scores_says_everything_itself(tmp_path: Path) -> None:
    [found] = read(tmp_path, json.dumps({"scores": [score(extra=1)]}), "scores.json")
    assert found == Score("ann/one", "anli", "valid", "f1", 2.5, None, "me")


@pytest.mark.parametrize(
    "document",
    [
        [],
        {},
        {"scores": {}},
        {"scores": [1]},
        {"scores": [{"adapter": "a/b"}]},
        {"scores": [score(value="1")]},
        {"scores": [score(value=True)]},
        {"scores": [score(n=0)]},
        {"scores": [score(n=1.5)]},
        {"scores": [score(task=" ")]},
        {"scores": [score(adapter=None)]},
    ],
)
def test_a_document_that_is_none_is_refused(tmp_path: Path, document: Any) -> None:
    with pytest.raises(UsageError):
        read(tmp_path, json.dumps(document), "scores.json")


def test_a_file_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(NotFoundError, match="There is no"):
        read_scores(tmp_path / "x.csv", **GIVEN)


@shared
def test_the_published_tables_are_read_whole() -> None:
    place = data("recycling_paper")
    found = read_scores(place / "scores_100_samples.csv", **GIVEN)
    ids = set((place / "pool_ids.txt").read_text().split())
    assert len(ids) == 960
    assert ids <= {score.subject for score in found}
    tests = read_scores(place / "scores_test_dev_tasks.csv", **GIVEN)
    assert len({score.task for score in tests}) == 23
