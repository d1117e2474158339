"""How many adapters a pool may have, and what is said of those that are left out."""

from __future__ import annotations

import json

import pytest

from tests.cli.conftest import Program
from tests.localhub import FaultHub


@pytest.fixture
def crawled(hub: FaultHub, run: Program) -> Program:
    """Two adapters that are accepted, and one that the rules refuse."""
    assert run("-q", "crawl", "--any-base", "--weights", "stream").exit_code == 0
    return run


def test_all_are_taken_and_those_that_are_not_are_counted(crawled: Program) -> None:
    result = crawled("select", "mine", "--by", "random", "-k", "all", "--json")
    pool = json.loads(result.stdout)
    assert {member["repository"] for member in pool["members"]} == {"ann/one", "bob/two"}
    assert pool["chosen"]["count"] == "all"
    assert "2 adapters; left out: 1 refused by the rules\n" in result.stderr
    again = crawled("select", "mine", "--by", "random", "-k", "all", "--json")
    assert json.loads(again.stdout)["digest"] == pool["digest"]
    assert json.loads(crawled("pool", "show", "mine", "--json").stdout)["digest"] == pool["digest"]


@pytest.mark.parametrize(
    ("words", "left_out"),
    [
        (("--where", "-owner:bob"), "1 not let through by the filter, 1 refused by the rules"),
        (
            ("--where", "verdict:accepted", "--exclude", "bob"),
            "1 not let through by the filter, 1 excluded by name",
        ),
        (("--parameters", "200"), "1 refused by the rules, 1 beyond 200 parameters in all"),
        (("--use", "commercial"), "1 refused by the rules, 1 with a license that forbids commercial"),
        (("--rules", "licensed"), "2 refused by the rules"),
    ],
)
def test_what_leaves_adapters_out_is_said(words: tuple[str, ...], left_out: str, crawled: Program) -> None:
    result = crawled("select", "mine", "--by", "random", "-k", "all", "--dry-run", *words)
    assert (result.exit_code, result.stderr) == (0, f"1 adapter; left out: {left_out}\n")
    refused = crawled("select", "mine", "--by", "random", "-k", "2", *words)
    assert (refused.exit_code, refused.stdout) == (2, "")
    assert refused.stderr == (
        f"Error: Only 1 of 3 adapters are left, not 2: {left_out}; request fewer or relax the conditions.\n"
    )


def test_nobody_is_left(crawled: Program) -> None:
    refused = crawled("select", "mine", "--by", "random", "-k", "all", "--where", "rank:99")
    assert refused.exit_code == 1
    assert "(of 3: 3 not let through by the filter); relax them" in refused.stderr


def test_what_a_way_has_nothing_to_go_by_for_is_left_out(crawled: Program) -> None:
    result = crawled("select", "mine", "--by", "text", "--query", "bob", "-k", "all", "--dry-run")
    assert result.exit_code == 0
    assert "refused by the rules" in result.stderr


def test_controls_of_all_are_as_many(crawled: Program) -> None:
    result = crawled(
        "select", "mine", "--by", "random", "-k", "all", "--controls", "--where", "downloads:..0"
    )
    assert result.exit_code == 2
    assert "Only 0 of 0 adapters are left, not 1" in result.stderr


@pytest.mark.parametrize("count", ["0", "-1", "most", "1.5", ""])
def test_a_count_that_is_none(count: str, run: Program) -> None:
    assert run("select", "mine", "--by", "random", "-k", count).exit_code in (1, 2)


def test_members_are_named_and_what_a_license_keeps_out_is_said(crawled: Program) -> None:
    named = crawled(
        "select", "mine", "--by", "named", "--adapter", "bob/two", "--adapter", "ann/one", "--json"
    )
    assert [row["repository"] for row in json.loads(named.stdout)["members"]] == ["bob/two", "ann/one"]
    assert json.loads(named.stdout)["chosen"]["adapters"] == ["bob/two", "ann/one"]
    refused = crawled("select", "other", "--by", "named", "--adapter", "cat/three")
    assert refused.exit_code == 2
    assert "cat/three is not among the adapters to select from" in refused.stderr
    one = crawled("select", "x", "--by", "random", "-k", "1", "--use", "commercial", "--dry-run")
    assert one.stderr == "1 adapter; left out: 1 with a license that forbids commercial\n"
