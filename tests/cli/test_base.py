"""`loradex base list` and `base add`: the names of base models, and how a crawl uses them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from catalog.database import disposing, open_catalog, writer_lock
from catalog.settings import Settings
from tests.cli.conftest import TINY, Program
from tests.localhub import FaultHub

LLAMA = "meta-llama/Llama-3.1-8B-Instruct"


def rows(run: Program, *words: str) -> list[dict[str, Any]]:
    """What `base list` prints as JSON."""
    result = run("base", "list", *words, "--json")
    assert result.exit_code == 0
    document = json.loads(result.stdout)
    assert isinstance(document, list)
    return document


def test_the_names_are_listed_without_a_catalog(run: Program, data: Path) -> None:
    result = rows(run)
    assert {"canonical": LLAMA, "spelling": LLAMA, "kind": "canonical", "note": ""} in result
    assert len({row["spelling"] for row in result}) == len(result) > 100
    assert not data.exists()


@pytest.mark.parametrize("name", [LLAMA, "unsloth/Llama-3.1-8B-Instruct", LLAMA.upper()])
def test_a_base_model_is_found_under_any_of_its_names(name: str, run: Program) -> None:
    result = rows(run, "--base", name)
    assert result[0]["spelling"] == LLAMA
    assert {row["canonical"] for row in result} == {LLAMA}


def test_an_unknown_base_model(run: Program) -> None:
    assert rows(run, "--base", "nobody/knows") == []
    result = run("base", "list", "--base", "nobody/knows")
    assert (result.exit_code, result.stdout) == (0, "")
    assert result.stderr.startswith("No base model is known as nobody/knows; the nearest known names are ")
    assert result.stderr.endswith(".\nnothing to list\n")


@pytest.mark.usefixtures("eighty_columns")
def test_the_table_shows_names_below_their_base_model(run: Program) -> None:
    lines = run("base", "list", "--base", LLAMA).stdout.splitlines()
    assert lines[0].split() == ["base", "model", "kind", "note"]
    assert lines[1].split() == [LLAMA, "canonical"]
    assert all(line.startswith("  ") for line in lines[2:])
    assert max(map(len, lines)) <= 80
    assert sum("unsloth/Meta-Llama-3.1-8B-Instruct-bnb-4bit " in line for line in lines) == 1


def test_jsonl_is_a_row_a_line(run: Program) -> None:
    lines = run("base", "list", "--base", LLAMA, "--jsonl").stdout.splitlines()
    assert [json.loads(line) for line in lines] == rows(run, "--base", LLAMA)


def test_an_added_name_is_listed_and_asked_for(hub: FaultHub, run: Program) -> None:
    added = run("base", "add", TINY, "me/copy-of-tiny", "--kind", "renamed", "--note", "I made it")
    assert (added.exit_code, added.stdout) == (0, "")
    assert added.stderr.startswith(f"me/copy-of-tiny is {TINY} (renamed)\n{TINY} was not known before; ")
    expected = {"canonical": TINY, "spelling": "me/copy-of-tiny", "kind": "renamed", "note": "I made it"}
    assert expected in rows(run, "--base", TINY)
    run("crawl", "--base", "me/copy-of-tiny", "--dry-run")
    assert any("me%2Fcopy-of-tiny" in request.query for request in hub.log)
    assert any("acme%2Ftiny" in request.query for request in hub.log)


def test_a_name_may_be_added_to_any_name_of_the_base_model(run: Program) -> None:
    result = run("base", "add", "unsloth/Llama-3.1-8B-Instruct", "me/copy")
    assert result.stderr == f"me/copy is {LLAMA} (mirror)\n"


def test_what_a_user_says_outweighs_what_the_program_knows(run: Program) -> None:
    run("base", "add", TINY, "unsloth/Llama-3.1-8B-Instruct")
    assert "unsloth/Llama-3.1-8B-Instruct" not in {row["spelling"] for row in rows(run, "--base", LLAMA)}
    assert rows(run, "--base", "unsloth/Llama-3.1-8B-Instruct")[0]["canonical"] == TINY


def test_a_path_can_be_a_name(run: Program) -> None:
    assert run("base", "add", TINY, "/data/models/tiny v2", "--kind", "local_path").exit_code == 0
    assert "/data/models/tiny v2" in {row["spelling"] for row in rows(run, "--base", TINY)}


@pytest.mark.parametrize(
    ("words", "told"),
    [
        pytest.param(["", "a/b"], "'' is not a base model", id="empty-base"),
        pytest.param(["a/b", ""], "'' is not a base model", id="empty-name"),
        pytest.param(["a b", "c/d"], "'a b' is not a base model", id="space"),
        pytest.param(["a/b", "c/d\x1b[31m"], "is not a base model", id="control-character"),
        pytest.param(["a/b", " ", "--kind", "local_path"], "is not a base model", id="empty-path"),
        pytest.param(
            ["a/b", "/x\x1b[31m", "--kind", "local_path"], "is not a base model", id="path-that-steers"
        ),
        pytest.param(["a/b", "a/b"], "a/b is the canonical name", id="itself"),
        pytest.param(["a/b", "c/d", "--kind", "canonical"], "is not one of", id="kind"),
        pytest.param(["a/b"], "Missing argument", id="one-name"),
    ],
)
def test_names_that_cannot_be(words: list[str], told: str, data: Path, run: Program) -> None:
    before = rows(run)
    result = run("base", "add", *words)
    assert (result.exit_code, result.stdout) == (2, "")
    assert told in result.stderr
    assert result.stderr.replace("\n", "").isprintable()
    assert rows(run) == before
    assert not data.exists()


def test_case_76_a_note_cannot_steer_the_terminal(run: Program) -> None:
    run("base", "add", TINY, "me/copy", "--note", "\x1b[31mred\u202e\n[bold]")
    result = run("base", "list", "--base", TINY).stdout
    assert "\\x1b[31mred\\u202e\\x0a[bold]" in "".join(result.split())
    assert all(character.isprintable() for character in result.replace("\n", ""))


def test_names_can_be_listed_and_added_while_a_crawl_runs(run: Program, data: Path) -> None:
    run("base", "add", TINY, "me/copy")
    with disposing(open_catalog(Settings.make(data=data), create=False)) as engine, writer_lock(engine):
        assert "me/copy" in {row["spelling"] for row in rows(run, "--base", TINY)}
        assert run("base", "add", TINY, "me/other").exit_code == 0
