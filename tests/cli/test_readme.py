"""The documents say what the program does, because they are compared with it."""

from __future__ import annotations

import ast
import inspect
import json
import re
import shlex
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import click
import pytest
from markdown.extensions.toc import slugify

import loradex as library
from catalog.rules import Reason
from catalog.selection import STRATEGIES
from catalog.settings import Settings
from cli.app import Exit
from cli.commands.demo import STEPS
from cli.main import COMMANDS, loradex
from tests.cli.conftest import ROOT, Program
from tests.localhub import FaultHub
from tools import documents

README = documents.README.read_text(encoding="utf-8")
HELP = documents.HELP.read_text(encoding="utf-8")
PAGES = [documents.README, ROOT / "CONTRIBUTING.md", *sorted(documents.DOCS.rglob("*.md"))]
REFERENCE = documents.DOCS / "reference"
RENEW = "run `python -m tools.documents` to write it"
MOST_BYTES = 10 * 1024


def table(page: str, head: str) -> list[list[str]]:
    """The rows of the table of a reference page that begins with these cells, cell by cell."""
    text = (REFERENCE / page).read_text(encoding="utf-8")
    rows = text.split(f"\n{head}", 1)[1].split("\n\n")[0].splitlines()
    return [[cell.strip() for cell in row.strip("|").split("|")] for row in rows[2:]]


def quoted(cell: str) -> list[str]:
    return re.findall(r"`([^`]+)`", cell)


def test_the_readme_is_short() -> None:
    assert len(documents.README.read_bytes()) <= MOST_BYTES


@pytest.mark.parametrize("page", documents.PAGES, ids=lambda page: page.name)
def test_a_page_shows_what_the_program_says(page: Path) -> None:
    text = page.read_text(encoding="utf-8")
    assert documents.fill(text, documents.PAGES[page]) == text, RENEW


def test_the_help_of_every_command_is_in_the_documents() -> None:
    for name in documents.paths():
        assert f"## {' '.join(('loradex', *name))}\n" in HELP


def test_every_reason_stands_on_the_page_of_reasons() -> None:
    rows = {quoted(row[0])[0]: row for row in table("reasons.md", "| reason |")}
    assert list(rows) == [reason.value for reason in Reason]
    for reason in Reason:
        marks = [bool(mark) for mark in rows[reason.value][2:]]
        assert (rows[reason.value][1], marks) == (
            reason.sentence,
            [reason.ours, reason.paper, reason.licensed],
        )


def test_every_command_stands_in_the_table_of_commands() -> None:
    rows = table("commands.md", "| command | what it does |")
    assert {quoted(row[0])[0].split()[1] for row in rows} == set(COMMANDS)


def test_every_strategy_stands_on_the_page_that_compares_them() -> None:
    text = (documents.DOCS / "choose.md").read_text(encoding="utf-8")
    assert set(STRATEGIES) <= set(quoted(text))


def test_every_name_of_the_library_is_on_its_page() -> None:
    text = (REFERENCE / "api.md").read_text(encoding="utf-8")
    names = re.findall(r"^::: loradex\.(\w+)$", text, re.MULTILINE)
    assert sorted(names) == sorted(
        set(library.__all__) - {"errors", *(name for name in vars(library.errors) if name.endswith("Error"))}
    )
    assert "\n::: catalog.errors\n" in text


def test_a_page_without_a_place_for_a_table_is_refused() -> None:
    with pytest.raises(ValueError, match="0 places for the table reasons"):
        documents.fill("nothing", {"reasons": documents.reason_table})


def test_the_exit_codes() -> None:
    assert {int(row[0]) for row in table("json.md", "| exit code |")} == set(Exit)


def _examples() -> list[str]:
    """Every `loradex …` line in a code block of a document, without its comment, and those of the demo."""
    blocks = [
        block
        for page in PAGES
        if page != documents.HELP
        for block in page.read_text(encoding="utf-8").split("```")[1::2]
    ]
    lines = [line.removeprefix("$ ") for block in blocks for line in block.splitlines()]
    commands = [re.split(r"\s{2,}#|\s>\s", line)[0] for line in lines if line.startswith("loradex ")]
    return sorted({*commands, *(shlex.join(("loradex", *step.arguments)) for step in STEPS)})


@pytest.mark.parametrize("line", _examples())
def test_every_example_is_a_command_that_parses(line: str) -> None:
    command: click.Command = loradex
    words = shlex.split(line)[1:]
    while True:
        context = click.Context(command)
        _, words, _ = command.make_parser(context).parse_args(words)
        if not isinstance(command, click.Group) or (command.invoke_without_command and not words):
            break
        result = command.get_command(context, words[0])
        assert result is not None, words[0]
        command, words = result, words[1:]
    assert words == []


def _calls() -> Iterator[tuple[str, ast.Call]]:
    """Every call `loradex.…(…)` or `catalog.…(…)` in a Python block of a document."""
    for page in PAGES:
        for block in re.findall(r"```python\n(.*?)```", page.read_text(encoding="utf-8"), re.DOTALL):
            for node in ast.walk(ast.parse(block)):
                if (
                    isinstance(node, ast.Call)
                    and isinstance(node.func, ast.Attribute)
                    and isinstance(node.func.value, ast.Name)
                    and node.func.value.id in ("loradex", "catalog")
                ):
                    yield f"{page.name}: {ast.unparse(node)}", node


@pytest.mark.parametrize("call", [pytest.param(call, id=name) for name, call in _calls()])
def test_every_example_in_python_is_a_call_that_the_library_takes(call: ast.Call) -> None:
    assert isinstance(call.func, ast.Attribute)
    assert isinstance(call.func.value, ast.Name)
    owner = library if call.func.value.id == "loradex" else library.Catalog
    signature = inspect.signature(getattr(owner, call.func.attr))
    instance = [] if owner is library else [None]
    signature.bind(*instance, *call.args, **{str(word.arg): word.value for word in call.keywords})


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_every_link_leads_somewhere(page: Path) -> None:
    text = re.sub(r"```.*?```|`[^`]*`", "", page.read_text(encoding="utf-8"), flags=re.DOTALL)
    links = [link for link in re.findall(r"\]\(([^)]+)\)", text) if not link.startswith("https://")]
    for link in links:
        path, _, anchor = link.partition("#")
        target = (page.parent / path).resolve() if path else page
        assert target.exists(), link
        assert not anchor or anchor in _anchors(target.read_text(encoding="utf-8")), link


def _anchors(text: str) -> set[str]:
    """The anchors of a page's headings, as MkDocs makes them."""
    return {slugify(heading, "-") for heading in re.findall(r"^#+ (.+)$", text, re.MULTILINE)}


def test_every_setting_of_the_program_stands_on_the_page_of_settings() -> None:
    options = [option for option in loradex.params if isinstance(option, click.Option) and option.envvar]
    rows = table("settings.md", "| | |")
    for option in options:
        assert any(str(option.envvar) in row[0] and option.opts[0] in row[0] for row in rows), option.name


def test_lines_are_short() -> None:
    long = [line for line in (*README.splitlines(), *HELP.splitlines()) if len(line) > 122]
    assert [line for line in long if not line.startswith("|")] == []


# -- the JSON fields ---------------------------------------------------------------------------------------


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
    name: str, words: tuple[str, ...], pick: Callable[[Any], Any], hub: FaultHub, crawled: Program
) -> None:
    rows = {quoted(row[0])[0]: quoted(row[1]) for row in table("json.md", "| command | JSON |")}
    fields = rows[name]
    if name == "show":
        fields = [*rows["adapters"], *fields[1:]]
    assert fields[0] != "adapters"
    assert set(pick(json.loads(crawled(*words, "--json").stdout))) == set(fields)


def test_every_command_with_json_has_its_fields_in_the_documents() -> None:
    rows = [quoted(row[0])[0] for row in table("json.md", "| command | JSON |")]
    sections = re.split(r"^## loradex", HELP, flags=re.MULTILINE)[1:]
    with_json = {section.splitlines()[0].strip() for section in sections if "\n  --json " in section}
    assert with_json == {row for row in rows if "--" not in row}


def test_the_places_in_the_documents_are_the_defaults() -> None:
    settings = Settings.make(data=Path("data"))
    assert settings.catalog_url == "sqlite:///data/catalog.db"
    page = (documents.DOCS / "guides" / "postgresql.md").read_text(encoding="utf-8")
    assert "the SQLite file `catalog.db` in the data folder" in " ".join(page.split())
