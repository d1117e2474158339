"""Help fits a screen, lists every option once, in groups; methods are one line each."""

from __future__ import annotations

from collections.abc import Iterator

import click
import pytest
from click.testing import CliRunner

from cli.main import COMMANDS, loradex
from cli.options import Command
from tests.cli.conftest import Program

MOST_LINES = 44


def walk(command: click.Command, words: tuple[str, ...]) -> Iterator[tuple[tuple[str, ...], click.Command]]:
    yield words, command
    if isinstance(command, click.Group):
        for name, inner in command.commands.items():
            yield from walk(inner, (*words, name))


def all_commands() -> list[tuple[tuple[str, ...], click.Command]]:
    context = click.Context(loradex)
    commands = {name: loradex.get_command(context, name) for name in COMMANDS}
    return [row for name, command in commands.items() if command for row in walk(command, (name,))]


@pytest.mark.parametrize("words", [(), *(words for words, _ in all_commands())], ids=" ".join)
def test_the_help_of_a_command_fits_a_screen(words: tuple[str, ...]) -> None:
    result = CliRunner().invoke(loradex, [*words, "--help"], terminal_width=80)
    assert result.exit_code == 0
    assert len(result.output.splitlines()) <= MOST_LINES


@pytest.mark.parametrize(
    ("words", "command"), [row for row in all_commands() if isinstance(row[1], Command)], ids=str
)
def test_every_option_is_in_one_group(words: tuple[str, ...], command: click.Command) -> None:
    help_text = CliRunner().invoke(loradex, [*words, "--help"], terminal_width=200).output
    lines = [line.split()[0].rstrip(",") for line in help_text.splitlines() if line.startswith("  -")]
    options = [one for one in command.params if isinstance(one, click.Option) and not one.hidden]
    assert sorted(lines) == sorted([*(one.opts[0] for one in options), "-h"])


def test_methods_are_a_line_each_at_100_columns(run: Program, monkeypatch: pytest.MonkeyPatch) -> None:
    from merging.methods import METHODS

    monkeypatch.setattr("cli.output.WIDTH_WITHOUT_TERMINAL", 100)
    lines = run("methods").stdout.splitlines()
    assert [line.split()[0] for line in lines] == ["method", *METHODS]
    assert max(map(len, lines)) <= 100
