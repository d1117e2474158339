"""What the documents say of the program, made from the program: `python -m tests.documents` writes it anew.

docs/reference/commands.md holds the help of every command, the README the tables of commands and reasons,
between two comments each. `tests/cli/test_readme.py` compares.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

import click
from click.testing import CliRunner

from catalog.rules import RULES
from cli.main import COMMANDS, loradex

ROOT = Path(__file__).parents[1]
README = ROOT / "README.md"
HELP = ROOT / "docs" / "reference" / "commands.md"
HEAD = """# The commands

The `--help` of every command, written by `.venv/bin/python -m tests.documents`.
"""


def paths(command: click.Command = loradex, name: tuple[str, ...] = ()) -> Iterator[tuple[str, ...]]:
    """Every command by the words that call it, the program itself first."""
    yield name
    if isinstance(command, click.Group):
        context = click.Context(command)
        for word in command.list_commands(context):
            found = command.get_command(context, word)
            assert found is not None
            yield from paths(found, (*name, word))


def help_page() -> str:
    """docs/reference/commands.md as it should be."""
    return "\n".join([HEAD, *(_section(name) for name in paths())])


def _section(name: tuple[str, ...]) -> str:
    shown = CliRunner().invoke(loradex, [*name, "--help"], prog_name="loradex", terminal_width=100)
    return f"## {' '.join(('loradex', *name))}\n\n```\n{shown.output.rstrip()}\n```\n"


def command_table() -> str:
    """A row a command that does something: its words, and its line of help."""
    rows = [f"| `loradex {' '.join(name)}` | {line} |" for name, line in _lines_of_help(loradex, ())]
    return "\n".join(["| command | what it does |", "|---|---|", *rows])


def _lines_of_help(group: click.Group, name: tuple[str, ...]) -> Iterator[tuple[tuple[str, ...], str]]:
    context = click.Context(group)
    for word in group.list_commands(context):
        found = group.get_command(context, word)
        if isinstance(found, click.Group):
            yield from _lines_of_help(found, (*name, word))
        elif found is not None:
            yield (*name, word), COMMANDS[word].help if not name else found.get_short_help_str(limit=200)


def reason_table() -> str:
    """A row a reason: its name, its sentence, and a mark under each set of rules that refuses for it."""
    rows = (
        " | ".join(
            [f"| `{reason.value}`", rule.sentence, *map(_mark, (rule.ours, rule.paper, rule.licensed))]
        )
        for reason, rule in RULES.items()
    )
    return "\n".join(
        [
            "| reason | in words | ours | paper | licensed |",
            "|---|---|:-:|:-:|:-:|",
            *(f"{row} |" for row in rows),
        ]
    )


def _mark(refuses: bool) -> str:
    return "✗" if refuses else ""


TABLES: Mapping[str, Callable[[], str]] = {"commands": command_table, "reasons": reason_table}


def with_tables(text: str) -> str:
    """The README with its tables made anew; raises ValueError where a table has no place in it."""
    for name, made in TABLES.items():
        place = re.compile(rf"(<!-- {name} -->\n).*?(<!-- end of {name} -->)", re.DOTALL)
        table = made()
        text, times = place.subn(lambda found, table=table: f"{found[1]}\n{table}\n\n{found[2]}", text)  # type: ignore[misc]  # bound now
        if times != 1:
            raise ValueError(f"the README has {times} places for the table of {name}")
    return text


def main() -> None:
    """Writes both files."""
    HELP.write_text(help_page(), encoding="utf-8")
    README.write_text(with_tables(README.read_text(encoding="utf-8")), encoding="utf-8")


if __name__ == "__main__":
    main()
