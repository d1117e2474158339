"""The program: its options, its exit codes, and what it says when something goes wrong."""

from __future__ import annotations

import logging
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import click
import pytest
from click.shell_completion import ShellComplete
from click.testing import CliRunner, Result

from catalog import errors
from catalog.settings import Settings
from cli import main
from cli.app import App, Exit, pass_app
from cli.main import COMMANDS, ERRORS, error_line, exit_of, loradex
from cli.output import Format, Output

ROOT = Path(__file__).parents[2]


def tree(root: type[errors.LoradexError]) -> Iterator[type[errors.LoradexError]]:
    yield root
    for child in root.__subclasses__():
        yield from tree(child)


def made(kind: type[errors.LoradexError], message: str) -> errors.LoradexError:
    if issubclass(kind, (errors.ConfigError, errors.WeightsError)):
        return kind("truncated", message)
    if issubclass(kind, errors.HubAccessError):
        return kind(message, status="gated")
    return kind(message)


CLASSES = [pytest.param(kind, id=kind.__name__) for kind in tree(errors.LoradexError)]


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch) -> Callable[..., Result]:
    """Runs the program with one more command, `try`, that does what it is given."""

    def run(action: Callable[[App], Any], *options: str) -> Result:
        command = click.Command("try", callback=pass_app(action))
        monkeypatch.setattr(main.Program, "get_command", lambda self, context, name: command)
        return CliRunner().invoke(loradex, [*options, "try"])

    return run


def fail(error: BaseException) -> Callable[[App], None]:
    def action(app: App) -> None:
        raise error

    return action


@pytest.mark.parametrize("name", COMMANDS)
def test_every_row_of_the_table_is_a_command_with_that_help(name: str) -> None:
    context = click.Context(loradex)
    command = loradex.get_command(context, name)
    assert command is not None
    assert command.name == name
    assert command.help
    assert COMMANDS[name].help
    assert COMMANDS[name].help in CliRunner().invoke(loradex, ["--help"], terminal_width=200).output


@pytest.mark.parametrize("kind", CLASSES)
def test_every_error_is_one_line_and_a_code(
    kind: type[errors.LoradexError], run: Callable[..., Result]
) -> None:
    result = run(fail(made(kind, "first\nsecond  \x1b[31mred\u202e")))
    assert result.exit_code == (2 if kind is errors.UsageError else 1)
    assert result.stdout == ""
    assert result.stderr.startswith("Error: first second \\x1b[31mred\\u202e")
    assert result.stderr.count("\n") == 1
    assert result.stderr.isprintable() or result.stderr.rstrip("\n").isprintable()


def test_the_table_has_no_row_for_a_class_that_is_gone() -> None:
    assert set(ERRORS) <= set(tree(errors.LoradexError))
    assert all(row.code in (Exit.ERROR, Exit.USAGE) for row in ERRORS.values())


def test_the_nearest_row_counts() -> None:
    class Near(errors.HubBusyError):
        """Another one."""

    assert exit_of(Near) is ERRORS[errors.HubBusyError]
    assert exit_of(errors.SchemaVersionError) is ERRORS[errors.LoradexError]


def test_an_error_without_words_shows_its_name() -> None:
    assert error_line(errors.StorageError("")) == "Error: StorageError"


def test_an_interrupted_command_says_how_to_go_on(run: Callable[..., Result]) -> None:
    result = run(fail(KeyboardInterrupt()))
    assert result.exit_code == 130
    assert result.stderr == "interrupted; run the same command again to continue\n"


def test_a_bug_is_a_traceback(run: Callable[..., Result]) -> None:
    result = run(fail(ZeroDivisionError("bug")))
    assert isinstance(result.exception, ZeroDivisionError)


def test_an_exit_code_of_a_command_is_kept(run: Callable[..., Result]) -> None:
    assert run(lambda app: click.get_current_context().exit(Exit.PARTIAL)).exit_code == 3


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        pytest.param(["nope"], "No such command 'nope'", id="unknown-command"),
        pytest.param(["--nope"], "No such option", id="unknown-option"),
        pytest.param(["db", "nope"], "No such command 'nope'", id="unknown-subcommand"),
        pytest.param(["--data", "pyproject.toml", "db", "check"], "is a file", id="data-is-a-file"),
        pytest.param(
            ["--catalog", "mysql://x/y", "db", "check"], "cannot live in mysql", id="other-database"
        ),
    ],
)
def test_wrong_usage_is_2(arguments: list[str], words: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    result = CliRunner().invoke(loradex, arguments)
    assert result.exit_code == 2
    assert words in result.stderr
    assert result.stdout == ""


@pytest.mark.parametrize(
    ("options", "environment", "settings"),
    [
        pytest.param([], {}, Settings("sqlite:///data/catalog.db", Path("data")), id="default"),
        pytest.param(["--data", "d"], {}, Settings("sqlite:///d/catalog.db", Path("d")), id="data"),
        pytest.param(
            [], {"LORADEX_DATA": "e"}, Settings("sqlite:///e/catalog.db", Path("e")), id="data-of-environment"
        ),
        pytest.param(
            ["--catalog", "u", "--data", "d"], {"LORADEX_CATALOG": "v"}, Settings("u", Path("d")), id="both"
        ),
        pytest.param([], {"LORADEX_CATALOG": "v"}, Settings("v", Path("data")), id="catalog-of-environment"),
        pytest.param(
            [],
            {"LORADEX_CATALOG": ""},
            Settings("sqlite:///data/catalog.db", Path("data")),
            id="empty-is-none",
        ),
        pytest.param(
            ["--engines", "r.toml"],
            {"LORADEX_ENGINES": "v"},
            Settings("sqlite:///data/catalog.db", Path("data"), Path("r.toml")),
            id="rules",
        ),
    ],
)
def test_the_places_come_from_options_then_environment(
    options: list[str],
    environment: dict[str, str],
    settings: Settings,
    run: Callable[..., Result],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    requests: list[App] = []
    assert run(requests.append, *options).exit_code == 0
    assert requests[0].settings == settings


def commands(command: click.Command = loradex) -> Iterator[click.Command]:
    """Every command below this one."""
    if isinstance(command, click.Group):
        context = click.Context(command)
        for name in command.list_commands(context):
            below = command.get_command(context, name)
            assert below is not None
            yield below
            yield from commands(below)


def test_every_command_takes_the_global_options_and_its_help_does_not_repeat_them() -> None:
    for command in commands():
        names = [name for option in command.params for name in option.opts]
        assert {"--catalog", "--data", "--engines", "-q", "--quiet", "-v", "--verbose"} <= set(names), (
            command.name
        )
        assert len(names) == len(set(names)), command.name
        # A command keeps the help option that it first makes, so that the names must be the program's.
        context = click.Context(command, help_option_names=["-h", "--help"])
        assert "--catalog" not in command.get_help(context)


@pytest.mark.parametrize(
    ("words", "settings"),
    [
        (["db", "info", "--data", "d"], Settings("sqlite:///d/catalog.db", Path("d"))),
        (["db", "--data", "d", "info"], Settings("sqlite:///d/catalog.db", Path("d"))),
        (
            ["--data", "a", "db", "--data", "b", "info", "--data=c"],
            Settings("sqlite:///c/catalog.db", Path("c")),
        ),
        (["--catalog", "u", "db", "info", "--data", "d"], Settings("u", Path("d"))),
        (["db", "info", "--engines", "r", "--catalog", "u"], Settings("u", Path("data"), Path("r"))),
        (["--data", "d", "db", "info", "--catalog", "u"], Settings("u", Path("d"))),
        (["db", "info"], Settings("sqlite:///data/catalog.db", Path("data"))),
    ],
)
def test_the_places_may_stand_behind_the_command(
    words: list[str], settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    requests: list[Settings] = []

    def open_existing(arguments: Settings) -> None:
        requests.append(arguments)
        raise errors.NoCatalogError("none")

    monkeypatch.setattr("catalog.database.open_existing", open_existing)
    assert CliRunner().invoke(loradex, words).exit_code == 1
    assert requests == [settings]


@pytest.mark.parametrize(
    ("words", "quiet", "verbose"),
    [
        (["db", "info", "-q"], True, 0),
        (["-q", "db", "info", "-v"], True, 1),
        (["-v", "db", "-v", "info", "-vv"], False, 4),
    ],
)
def test_talk_may_be_set_behind_the_command(
    words: list[str], quiet: bool, verbose: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    requests: list[App] = []

    def action(app: App) -> None:
        requests.append(app)

    command = loradex.get_command(click.Context(loradex), "db")
    assert isinstance(command, click.Group)
    monkeypatch.setattr(command.commands["info"], "callback", pass_app(action))
    assert CliRunner().invoke(loradex, [*words, "--json"]).exit_code == 0
    assert [(app.quiet, app.verbose, app.output) for app in requests] == [
        (quiet, verbose, Output(Format.JSON, quiet))
    ]


def test_an_option_of_a_command_goes_before_the_global_one_of_its_name() -> None:
    @click.command()
    @click.option("--data")
    @click.option("-v", is_flag=True)
    def own(data: str, v: bool) -> None:
        click.echo(f"{data} {v}")

    main._accept_global_options(own)
    main._accept_global_options(own)
    assert CliRunner().invoke(own, ["--data", "mine", "-v"]).output == "mine True\n"


@pytest.mark.parametrize("words", [[], ["db"], ["pool"], ["hub"], ["base"], ["study"], ["scores"], ["index"]])
def test_a_group_alone_prints_its_help(words: list[str]) -> None:
    alone, requests = (CliRunner().invoke(loradex, [*words, *more]) for more in ([], ["--help"]))
    assert (alone.exit_code, alone.stdout, alone.stderr) == (0, requests.stdout, "")


@pytest.mark.parametrize(
    ("options", "shown"),
    [
        ([], {"warning", "error"}),
        (["-q"], {"error"}),
        (["-v"], {"info", "warning", "error"}),
        (["-vvv"], {"debug", "info", "warning", "error"}),
        (["-q", "-v"], {"error"}),
    ],
)
def test_how_much_is_said(options: list[str], shown: set[str], run: Callable[..., Result]) -> None:
    def talk(app: App) -> None:
        for level in ("debug", "info", "warning", "error"):
            getattr(logging.getLogger("crawler.crawl.crawler"), level)("%s", f"{level}\x1b")
        app.output.say("said")

    result = run(talk, *options)
    lines = result.stderr.splitlines()
    assert {line.removesuffix("\\x1b") for line in lines} - {"said"} == shown
    assert ("said" in lines) == ("-q" not in options)
    assert result.stdout == ""


def test_verbosity_does_not_outlive_the_command(run: Callable[..., Result]) -> None:
    logger = logging.getLogger("crawler")
    run(lambda app: None, "-vv")
    run(lambda app: None)
    assert (logger.level, len(logger.handlers)) == (logging.WARNING, 1)


@pytest.mark.slow
def test_a_closed_pipe_is_quiet(tmp_path: Path) -> None:
    subprocess.run(
        [sys.executable, "-m", "cli", "--data", str(tmp_path), "-q", "db", "upgrade"], cwd=ROOT, check=True
    )
    with subprocess.Popen(
        [sys.executable, "-m", "cli", "--data", str(tmp_path), "db", "info"],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    ) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        process.stdout.close()
        assert process.stderr.read() == b""
    assert process.returncode == Exit.PIPE_CLOSED


@pytest.mark.slow
def test_a_name_that_the_terminal_cannot_show_is_escaped(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "cli", "--data", str(tmp_path / "é日本"), "db", "check"],
        cwd=ROOT,
        env={"PYTHONIOENCODING": "latin-1", "PATH": "/usr/bin:/bin"},
        capture_output=True,
        check=False,
    )
    assert done.returncode == 1
    assert b"/\xe9\\u65e5\\u672c/" in done.stderr


def test_the_shell_completes_commands_without_importing_them(monkeypatch: pytest.MonkeyPatch) -> None:
    def import_module(name: str) -> None:
        raise AssertionError(name)

    monkeypatch.setattr("importlib.import_module", import_module)
    completion = ShellComplete(loradex, {}, "loradex", "_LORADEX_COMPLETE")
    assert [item.value for item in completion.get_completions([], "")] == list(COMMANDS)
    assert [item.value for item in completion.get_completions([], "me")] == ["methods", "merge"]
    assert "--data" in [item.value for item in completion.get_completions([], "--")]


def test_the_shell_completes_the_options_of_a_command() -> None:
    completion = ShellComplete(loradex, {}, "loradex", "_LORADEX_COMPLETE")
    assert [item.value for item in completion.get_completions(["merge"], "--meth")] == ["--method"]
