"""Files of scores are read as they are or refused by line; nothing is guessed."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from catalog.errors import NotFoundError, UsageError
from catalog.scores import (
    BASE,
    Outcomes,
    Score,
    item_hash,
    list_sha,
    pack_bitmap,
    pack_margins,
    read_scores,
    to_text,
)
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


RIGHT = [True, False, True, True, False, False, False, True, True, False]
HASHES = b"".join(item_hash(f"question {n}", "yes", ("yes", "no")) for n in range(10))
SHA = list_sha(HASHES)
BITMAP, MARGINS = pack_bitmap(RIGHT), pack_margins([-1.0 if right else 0.5 for right in RIGHT])


def item_score(**over: Any) -> dict[str, Any]:
    """A score of ten items with their outcomes."""
    texts = {"items_sha": SHA, "outcomes": to_text(BITMAP), "margins": to_text(MARGINS)}
    return score(metric="accuracy", value=0.5, n=10) | texts | over


def read_document(tmp_path: Path, items: Any, *rows: Any) -> list[Score]:
    """The scores of a document with these lists of items."""
    return read(tmp_path, json.dumps({"scores": rows, "items": items}), "scores.json")


def test_outcomes_of_items_are_read_with_their_hashes(tmp_path: Path) -> None:
    plain = item_score(adapter="bob/two", protocol="recycling-paper")
    del plain["margins"]
    rows = read_document(tmp_path, {SHA: to_text(HASHES)}, item_score(), plain)
    assert [(row.subject, row.protocol, row.outcomes) for row in rows] == [
        ("ann/one", "", Outcomes(SHA, BITMAP, MARGINS, HASHES)),
        ("bob/two", "recycling-paper", Outcomes(SHA, BITMAP, b"", HASHES)),
    ]
    [row] = read_document(tmp_path, {}, item_score())
    assert row.outcomes == Outcomes(SHA, BITMAP, MARGINS)


def test_scores_of_two_protocols_are_two(tmp_path: Path) -> None:
    rows = read_document(tmp_path, {}, item_score(), item_score(protocol="paper"))
    assert len(rows) == 2
    with pytest.raises(UsageError, match="Score 2: ann/one has two scores on anli"):
        read_document(tmp_path, {}, item_score(), item_score())


@pytest.mark.parametrize(
    ("over", "message"),
    [
        ({"value": 0.6}, "its value is 0.6, but 5 of its 10 outcomes are right"),
        ({"n": 9}, "outcomes are not a bitmap|margins is not base64"),
        ({"n": None}, "require a number of samples"),
        ({"n": 10**18}, "require a number of samples from 1 to 100,000"),
        ({"metric": "perplexity", "value": 9.0}, "its value is 9.0"),
        ({"items_sha": None}, "items_sha is not a sha256"),
        ({"items_sha": SHA.upper()}, "items_sha is not a sha256"),
        ({"outcomes": None}, "outcomes is not base64 of at most 2 bytes"),
        ({"outcomes": to_text(BITMAP) + "AAAA"}, "outcomes is not base64 of at most 2 bytes"),
        ({"outcomes": to_text(BITMAP)[:-1]}, "outcomes is not base64"),
        ({"outcomes": "_-8="}, "outcomes is not base64"),
        ({"margins": "A" * 400}, "margins is not base64 of at most 20 bytes"),
        ({"margins": to_text(MARGINS[:-2])}, "margins are not 10 numbers of 16 bits"),
        ({"margins": [1]}, "margins is not base64"),
        ({"protocol": 3}, "protocol must be strings"),
        ({"protocol": "x" * 101}, "protocol"),
    ],
)
def test_outcomes_that_do_not_fit_are_named_by_number(
    tmp_path: Path, over: dict[str, Any], message: str
) -> None:
    with pytest.raises(UsageError, match=rf"Score 2: .*({message})"):
        read_document(tmp_path, {}, item_score(adapter="bob/two"), item_score(**over))


@pytest.mark.parametrize(
    ("items", "message"),
    [
        ([], "its items are not an object"),
        (None, "its items are not an object"),
        ({SHA: to_text(HASHES[:-32])}, "not the sha256 of their hashes"),
        ({SHA: 5}, "list of hashes is not base64"),
        ({SHA: "A" * 5_000_000}, "list of hashes is not base64 of at most 3,200,000 bytes"),
        ({SHA: to_text(HASHES), list_sha(b""): ""}, "No score has the items e3b0c44"),
    ],
)
def test_lists_of_items_that_do_not_fit_are_refused(tmp_path: Path, items: Any, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        read_document(tmp_path, items, item_score())


def test_a_list_of_another_length_is_refused(tmp_path: Path) -> None:
    short = list_sha(HASHES[:-32])
    with pytest.raises(UsageError, match=r"Score 1: .*the hashes of its items are not 10"):
        read_document(tmp_path, {short: to_text(HASHES[:-32])}, item_score(items_sha=short))
