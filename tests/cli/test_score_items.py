"""Outcomes of items in the catalog: shown, compared, ranked, exported and imported again."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from catalog.scores import item_hash, list_sha, pack_bitmap, pack_margins, to_text
from cli.app import Exit
from tests.cli.conftest import Program

HASHES = b"".join(item_hash(f"question {n}", "yes", ("yes", "no")) for n in range(12))
ANSWERS = {
    "base": "000000000011",
    "ann/best": "111111111110",
    "bob/like": "111111111100",
    "bob/worse": "100000000000",
}


def scores(task: str = "anli", **over: Any) -> list[dict[str, Any]]:
    """Scores of four adapters on twelve items."""
    rows = []
    for adapter, text in ANSWERS.items():
        right = [letter == "1" for letter in text]
        row = {"adapter": adapter, "task": task, "split": "test", "metric": "accuracy", "n": 12}
        margins = pack_margins([-1.5 if answer else 0.5 for answer in right])
        row |= {"value": sum(right) / 12, "items_sha": list_sha(HASHES)}
        row |= {"outcomes": to_text(pack_bitmap(right)), "margins": to_text(margins)}
        rows.append({**row, **over})
    return rows


@pytest.fixture
def measured(run: Program, tmp_path: Path) -> Program:
    """The program with a catalog of these scores."""
    file = tmp_path / "scores.json"
    file.write_text(json.dumps({"scores": scores(), "items": {list_sha(HASHES): to_text(HASHES)}}))
    assert run("scores", "import", str(file), "--source", "mine").exit_code == 0
    return run


def rows(run: Program, *words: str) -> list[dict[str, Any]]:
    result = run("scores", *words, "--json")
    assert result.exit_code == 0, result.output
    listed: list[dict[str, Any]] = json.loads(result.stdout)
    return listed


def test_items_of_a_task_name_the_adapters_that_were_right(measured: Program) -> None:
    items = rows(measured, "show", "--task", "anli", "--items")
    assert [row["position"] for row in items] == list(range(1, 13))
    assert [row["item"] for row in items] == [HASHES[at : at + 32].hex() for at in range(0, 384, 32)]
    assert items[0]["right_adapters"] == ["ann/best", "bob/like", "bob/worse"]
    assert items[0]["wrong_adapters"] == ["base"]
    assert [row["right"] for row in items] == [3] + [2] * 9 + [2, 1]
    assert {row["n"] for row in items} == {4}
    table = measured("scores", "show", "--task", "anli", "--items").stdout
    assert "ann/best, bob/like, bob/worse" in table


def test_items_of_an_adapter_are_a_text_of_ones_and_zeros(measured: Program) -> None:
    [row] = rows(measured, "show", "bob/like", "--items")
    assert row["outcomes"] == ANSWERS["bob/like"]
    assert row["margins"] == [-1.5] * 10 + [0.5] * 2
    assert "1111111111 00" in measured("scores", "show", "bob/like", "--items").stdout
    assert rows(measured, "show", "bob/like", "--task", "rte", "--items") == []
    assert measured("scores", "show", "--items").exit_code == Exit.USAGE


def test_two_adapters_are_compared_on_the_same_items(measured: Program) -> None:
    [row] = rows(measured, "compare", "ann/best", "bob/worse", "--task", "anli")
    counts = (row["both"], row["only_first"], row["only_second"], row["neither"])
    assert counts == (1, 10, 0, 1)
    assert row["p"] == pytest.approx(2 / 2**10)
    assert row["difference"] == pytest.approx(10 / 12)
    assert row["low"] < row["difference"] - 0.1 < row["high"] <= 1
    table = measured("scores", "compare", "ann/best", "bob/worse", "--task", "anli").stdout
    assert "+0.833" in table
    assert "0.00195" in table


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("ann/best", "nobody/here", "--task", "anli"), "No score of nobody/here on anli found"),
        (("ann/best", "base", "--task", "rte"), "No score of ann/best on rte found"),
        (("ann/best", "base", "--task", "anli", "--source", "you"), "No score of ann/best"),
        (("ann/best", "old/one", "--task", "anli"), "old/one on anli do not say which items"),
        (("ann/best", "other/items", "--task", "anli"), "no scores on the same items of anli"),
    ],
)
def test_why_two_adapters_cannot_be_compared(
    measured: Program, tmp_path: Path, words: tuple[str, ...], message: str
) -> None:
    file = tmp_path / "more.json"
    old = {name: scores()[0][name] for name in ("task", "split", "metric", "value", "n")}
    more = [{**old, "adapter": "old/one"}, {**scores()[0], "adapter": "other/items", "items_sha": "0" * 64}]
    file.write_text(json.dumps({"scores": more}))
    assert measured("scores", "import", str(file)).exit_code == 0
    result = measured("scores", "compare", *words)
    assert result.exit_code == Exit.ERROR
    assert message in result.stderr


def test_a_leaderboard_has_intervals_and_tests_against_the_leader(measured: Program) -> None:
    board = rows(measured, "leaderboard", "--task", "anli")
    assert [(row["place"], row["adapter"]) for row in board] == [
        (1, "ann/best"),
        (2, "bob/like"),
        (3, "base"),
        (4, "bob/worse"),
    ]
    leader, like, base, worse = board
    assert (leader["p"], leader["differs"]) == (None, None)
    assert (leader["low"], leader["high"]) == pytest.approx((0.646, 0.985), abs=1e-3)
    assert (like["p"], like["differs"]) == (1.0, False)
    # base: 10 only the leader, 1 only the base: 2 (1 + 11) / 2^11; worse: 2 / 2^10. Holm: times 2, 3.
    assert (base["p"], worse["p"]) == pytest.approx((24 / 2048, 2 / 1024))
    assert (base["p_holm"], worse["p_holm"]) == pytest.approx((48 / 2048, 6 / 1024))
    assert (base["differs"], worse["differs"]) == (True, True)
    table = measured("scores", "leaderboard", "--task", "anli").stdout
    assert "cannot be told" in table


def test_scores_of_several_kinds_are_no_leaderboard(measured: Program, tmp_path: Path) -> None:
    file = tmp_path / "paper.json"
    file.write_text(json.dumps({"scores": scores(protocol="paper")}))
    measured("scores", "import", str(file), "--source", "mine")
    result = measured("scores", "leaderboard", "--task", "anli")
    assert result.exit_code == Exit.USAGE
    assert "test, accuracy; test, accuracy, paper" in result.stderr
    assert "--protocol" in result.stderr
    assert len(rows(measured, "leaderboard", "--task", "anli", "--protocol", "")) == 4
    assert len(rows(measured, "leaderboard", "--task", "anli", "--protocol", "paper")) == 4
    assert measured("scores", "leaderboard", "--task", "rte").exit_code == Exit.ERROR
    assert "protocol" in measured("scores", "show", "base").stdout


def test_what_is_exported_is_imported_again(measured: Program, tmp_path: Path) -> None:
    file = tmp_path / "out" / "all.json"
    assert measured("scores", "export", str(file)).exit_code == 0
    document = json.loads(file.read_text())
    assert document == {
        "scores": sorted(scores(), key=lambda row: (-row["value"], row["adapter"])),
        "items": {list_sha(HASHES): to_text(HASHES)},
    }
    again = measured("scores", "import", str(file), "--source", "mine", "--json")
    assert json.loads(again.stdout) == {"rows": 4, "new": 0, "changed": 0, "known": 4, "unknown_adapters": 3}
    measured("scores", "import", str(file), "--source", "you")
    refused = measured("scores", "export", str(file))
    assert refused.exit_code == Exit.USAGE
    assert "several sources (mine, you); choose one by --source" in refused.stderr
    assert measured("scores", "export", str(file), "--task", "rte").exit_code == Exit.ERROR
    assert json.loads(file.read_text()) == document


def test_a_value_that_its_outcomes_contradict_is_refused_with_its_number(
    run: Program, tmp_path: Path
) -> None:
    file = tmp_path / "scores.json"
    wrong = scores()
    wrong[2]["value"] = 0.75
    file.write_text(json.dumps({"scores": wrong}))
    result = run("scores", "import", str(file))
    assert result.exit_code == Exit.USAGE
    assert "Score 3: " in result.stderr
    assert "its value is 0.75, but 10 of its 12 outcomes are right" in result.stderr
