"""The documents say what the program does, because they are compared with it."""

from __future__ import annotations

import json
import re
import shlex
from collections.abc import Callable
from pathlib import Path
from typing import Any

import click
import pytest

from catalog.rules import RULES
from catalog.settings import Settings
from cli.app import Exit
from cli.commands.demo import STEPS
from cli.main import COMMANDS, loradex
from tests import documents
from tests.cli.conftest import ROOT, Program
from tests.localhub import LocalHub

README = documents.README.read_text(encoding="utf-8")
HELP = documents.HELP.read_text(encoding="utf-8")
ANEW = "run `python -m tests.documents` to write it anew"


def table(head: str) -> list[list[str]]:
    """The rows of the table that begins with these cells, cell by cell."""
    rows = README.split(f"\n{head}", 1)[1].split("\n\n")[0].splitlines()
    return [[cell.strip() for cell in row.strip("|").split("|")] for row in rows[2:]]


def quoted(cell: str) -> list[str]:
    return re.findall(r"`([^`]+)`", cell)


def test_the_help_of_every_command_is_in_the_documents() -> None:
    assert documents.help_page() == HELP, ANEW
    for name in documents.paths():
        assert f"## {' '.join(('loradex', *name))}\n" in HELP


def test_the_tables_of_the_readme_are_those_of_the_program() -> None:
    assert documents.with_tables(README) == README, ANEW


def test_every_reason_stands_in_the_readme() -> None:
    rows = {quoted(row[0])[0]: row for row in table("| reason |")}
    assert list(rows) == [reason.value for reason in RULES]
    for reason, rule in RULES.items():
        marks = [bool(mark) for mark in rows[reason.value][2:]]
        assert (rows[reason.value][1], marks) == (rule.sentence, [rule.ours, rule.paper, rule.licensed])


def test_every_command_stands_in_the_readme() -> None:
    assert {quoted(row[0])[0].split()[1] for row in table("| command | what it does |")} == set(COMMANDS)


def test_a_readme_without_a_place_for_a_table_is_refused() -> None:
    with pytest.raises(ValueError, match="0 places for the table of commands"):
        documents.with_tables("nothing")


def test_the_exit_codes() -> None:
    assert {int(row[0]) for row in table("| exit code |")} == set(Exit)


def _words() -> list[str]:
    """Every `loradex …` line of the README's code blocks, without its comment."""
    blocks = README.split("```")[1::2]
    lines = [line.removeprefix("$ ") for block in blocks for line in block.splitlines()]
    found = [re.split(r"\s{2,}#", line)[0] for line in lines if line.startswith("loradex ")]
    return found + [shlex.join(("loradex", *step.arguments)) for step in STEPS]


@pytest.mark.parametrize("line", _words())
def test_every_example_is_a_command_that_parses(line: str) -> None:
    command: click.Command = loradex
    words = shlex.split(line)[1:]
    while True:
        context = click.Context(command)
        _, words, _ = command.make_parser(context).parse_args(words)
        if not isinstance(command, click.Group):
            break
        found = command.get_command(context, words[0])
        assert found is not None, words[0]
        command, words = found, words[1:]
    assert words == []


def test_every_link_leads_somewhere() -> None:
    links = [link for link in re.findall(r"\]\(([^)]+)\)", README) if not link.startswith("https://")]
    assert len(links) > 3
    for link in links:
        if link.startswith("#"):
            assert re.search(rf"^## {link[1:]}$", README, re.IGNORECASE | re.MULTILINE), link
        else:
            assert (ROOT / link).exists(), link


def test_every_setting_of_the_program_stands_in_the_readme() -> None:
    options = [option for option in loradex.params if isinstance(option, click.Option) and option.envvar]
    rows = table("| | |")
    for option in options:
        assert any(str(option.envvar) in row[0] and option.opts[0] in row[0] for row in rows), option.name


def test_lines_are_short() -> None:
    long = [line for line in (*README.splitlines(), *HELP.splitlines()) if len(line) > 110]
    assert [line for line in long if not line.startswith(("|", "loradex crawl  "))] == []


# -- the JSON fields ---------------------------------------------------------------------------------------


@pytest.fixture
def crawled(hub: LocalHub, run: Program) -> Program:
    """The program on a catalog of three adapters."""
    assert run("crawl", "--any-base", "--weights", "headers").exit_code == 0
    return run


ONE: Callable[[Any], Any] = dict
FIRST: Callable[[Any], Any] = lambda rows: rows[0]  # noqa: E731


@pytest.mark.parametrize(
    ("name", "words", "pick"),
    [
        ("crawl", ("crawl", "--any-base", "--weights", "headers"), ONE),
        ("crawl --dry-run", ("crawl", "--any-base", "--dry-run"), ONE),
        ("status", ("status",), ONE),
        ("adapters", ("adapters",), FIRST),
        ("show", ("show", "ann/one"), ONE),
        ("base list", ("base", "list"), FIRST),
        ("db info", ("db", "info"), ONE),
    ],
)
def test_the_json_fields_of_a_command(
    name: str, words: tuple[str, ...], pick: Callable[[Any], Any], crawled: Program
) -> None:
    rows = {quoted(row[0])[0]: quoted(row[1]) for row in table("| command | JSON |")}
    fields = rows[name]
    if name == "show":
        fields = [*rows["adapters"], *fields[1:]]
    assert fields[0] != "adapters"
    assert set(pick(json.loads(crawled(*words, "--json").stdout))) == set(fields)


def test_every_command_with_json_has_its_fields_in_the_readme() -> None:
    rows = [quoted(row[0])[0] for row in table("| command | JSON |")]
    sections = re.split(r"^## loradex", HELP, flags=re.MULTILINE)[1:]
    with_json = {section.splitlines()[0].strip() for section in sections if "\n  --json " in section}
    assert with_json == {row for row in rows if "--" not in row}


def test_the_places_in_the_readme_are_the_defaults() -> None:
    settings = Settings.make(data=Path("data"))
    assert settings.catalog_url == "sqlite:///data/catalog.db"
    assert "the SQLite file `catalog.db` in the data folder" in " ".join(README.split())
