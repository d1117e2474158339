"""The program `loradex`: global options, the table of commands, and the table that turns errors into words.

Commands are loaded when they are called, so that `loradex --help` imports none of them.
"""

from __future__ import annotations

import importlib
import logging
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import click
from click.shell_completion import CompletionItem

from catalog.errors import (
    HubBusyError,
    HubUnreachableError,
    LoradexError,
    UsageError,
)
from catalog.settings import Settings
from cli.app import App, Exit
from cli.output import RUNNING, Output, name_options
from cli.signals import StopSignal, set_up_signals
from cli.streams import discard_stdout, set_up_streams
from loradex.text import plain


@dataclass(frozen=True)
class CommandRow:
    """A command: where it is, and its help in `loradex --help`, on a line with that of its `companion`."""

    target: str
    help: str
    companion: str = ""


COMMANDS = {
    "crawl": CommandRow("cli.commands.crawl:crawl", "List the Hub for adapters; update the catalog."),
    "status": CommandRow("cli.commands.browse:status", "What the catalog holds."),
    "adapters": CommandRow("cli.commands.browse:adapters", "List the adapters."),
    "fields": CommandRow("cli.commands.browse:fields", "What a filter (--where) can ask for.", "adapters"),
    "show": CommandRow("cli.commands.browse:show", "Everything known of one adapter."),
    "tag": CommandRow("cli.commands.annotations:tag", "Your own tags on an adapter."),
    "note": CommandRow("cli.commands.annotations:note", "A note.", "tag"),
    "hide": CommandRow("cli.commands.annotations:hide", "Hide it in lists.", "tag"),
    "search": CommandRow("cli.commands.search:search", "The adapters that fit a text, by words and meaning."),
    "similar": CommandRow("cli.commands.alike:similar", "The adapters most like one, by their weights."),
    "duplicates": CommandRow("cli.commands.alike:duplicates", "Groups of adapters with the same weights."),
    "map": CommandRow("cli.commands.pictures:map_", "All adapters in two dimensions, as a picture."),
    "page": CommandRow("cli.commands.page:page", "Browse the catalog in the browser."),
    "changes": CommandRow("cli.commands.news:changes", "What changed in it.", "status"),
    "identify": CommandRow("cli.commands.news:identify", "Which one a file is.", "show"),
    "scores": CommandRow("cli.commands.scores:scores", "Measured task scores."),
    "annotations": CommandRow("cli.commands.annotations:annotation_group", "Your words, exported.", "scores"),
    "snapshot": CommandRow("cli.commands.snapshot:snapshot", "Share it as files.", "page"),
    "select": CommandRow("cli.commands.select:select", "Choose adapters and save them as a pool."),
    "pools": CommandRow("cli.commands.pools:pools", "List the pools."),
    "pool": CommandRow("cli.commands.pools:pool", "Show, export, verify, import one.", "pools"),
    "methods": CommandRow("cli.commands.merge:methods", "The merge methods."),
    "merge": CommandRow("cli.commands.merge:merge", "Merge a pool into one adapter."),
    "inspect-merge": CommandRow("cli.commands.merge:inspect_merge", "How members fit together."),
    "train": CommandRow("cli.commands.train:train", "Train a new LoRA on a task, its learning rate swept."),
    "adaptive": CommandRow("cli.commands.adapt:adaptive", "The adaptive merge methods.", "methods"),
    "adapt": CommandRow("cli.commands.adapt:adapt", "Learn on a task how much of each adapter to take."),
    "evaluate": CommandRow("cli.commands.evaluate:evaluate", "Score adapters on tasks."),
    "task": CommandRow("cli.commands.task:task", "Make and list tasks.", "evaluate"),
    "study": CommandRow("cli.commands.study:study", "Run a study: tasks x pools x methods x seeds."),
    "engines": CommandRow("cli.commands.engines:engines", "Which engines run an adapter."),
    "normalise": CommandRow("cli.commands.engines:normalise", "Write it as all read it.", "engines"),
    "fingerprint": CommandRow(
        "cli.commands.alike:fingerprint", "Measurements of the weights in a local folder."
    ),
    "base": CommandRow("cli.commands.base:base", "Names of base models."),
    "blobs": CommandRow("cli.commands.blobs:blobs", "The weights that are kept: verify, repair, collect."),
    "hub": CommandRow("cli.commands.hub:hub", "Serve a folder as a Hub."),
    "index": CommandRow("cli.commands.index:index", "The vector indexes."),
    "doctor": CommandRow("cli.commands.doctor:doctor", "Measure this machine.", "base"),
    "db": CommandRow("cli.commands.db:db", "The schema of the catalog.", "index"),
    "demo": CommandRow("cli.commands.demo:demo", "The main job on a sample.", "hub"),
}


@dataclass(frozen=True)
class ErrorExit:
    """The exit code of an error and advice; the message gives the cause."""

    code: Exit
    advice: str = ""


# A class without a row has that of its nearest ancestor.
ERRORS: dict[type[LoradexError], ErrorExit] = {
    LoradexError: ErrorExit(Exit.ERROR),
    UsageError: ErrorExit(Exit.USAGE),
    HubUnreachableError: ErrorExit(
        Exit.ERROR, "check the network and HF_ENDPOINT, then run the command again"
    ),
    HubBusyError: ErrorExit(Exit.ERROR, "wait a few minutes, then run the command again"),
}


def exit_of(kind: type[LoradexError]) -> ErrorExit:
    """The row of an error class."""
    return next(ERRORS[ancestor] for ancestor in kind.__mro__ if ancestor in ERRORS)


def error_line(error: LoradexError) -> str:
    """The one line that a user sees."""
    message = plain(name_options(" ".join(str(error).split()))) or type(error).__name__
    advice = exit_of(type(error)).advice
    return f"Error: {message}" + (f" ({advice})" if advice else "")


@contextmanager
def errors_in_words() -> Iterator[None]:
    """Known errors inside the block become one line and the exit code; a bug stays a traceback."""
    try:
        yield
    except LoradexError as error:
        click.echo(error_line(error), err=True)
        raise click.exceptions.Exit(exit_of(type(error)).code) from error
    except KeyboardInterrupt as error:
        click.echo("interrupted; run the same command again to continue", err=True)
        code = Exit(128 + error.number) if isinstance(error, StopSignal) else Exit.INTERRUPTED
        raise click.exceptions.Exit(code) from error
    except BrokenPipeError as error:
        discard_stdout()
        raise click.exceptions.Exit(Exit.PIPE_CLOSED) from error


@contextmanager
def help_without_words() -> Iterator[None]:
    """A group that was called without arguments prints its help, which is not an error."""
    try:
        yield
    except click.exceptions.NoArgsIsHelpError as error:
        click.echo(error.ctx.get_help())
        raise click.exceptions.Exit(Exit.DONE) from error


class Program(click.Group):
    """The group of all commands, loaded when called; known errors leave it as one line and a code."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        """The names, in the order of the table."""
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """The command of that name, imported now."""
        if cmd_name not in COMMANDS:
            return None
        _check_endpoint(os.environ.get("HF_ENDPOINT", ""))
        module, _, name = COMMANDS[cmd_name].target.partition(":")
        command = getattr(importlib.import_module(module), name)
        if not isinstance(command, click.Command):
            raise TypeError(f"{COMMANDS[cmd_name].target} is not a command")
        _accept_global_options(command)
        return command

    def shell_complete(self, ctx: click.Context, incomplete: str) -> list[CompletionItem]:
        """The commands and options that begin so, without importing the commands."""
        names = [
            CompletionItem(name, help=row.help)
            for name, row in COMMANDS.items()
            if name.startswith(incomplete)
        ]
        return [*names, *click.Command.shell_complete(self, ctx, incomplete)]

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Writes the table of commands without importing them."""
        lines: dict[str, list[str]] = {}
        for name, row in COMMANDS.items():
            lines.setdefault(row.companion or name, []).append(name)
        with formatter.section("Commands"):
            rows = lines.values()
            formatter.write_dl(
                [(", ".join(row), " ".join(COMMANDS[name].help for name in row)) for row in rows]
            )

    def make_context(self, *args: Any, **kw: Any) -> click.Context:
        """Parses the global options; called alone, the program prints its help."""
        with errors_in_words(), help_without_words():
            return super().make_context(*args, **kw)

    def invoke(self, ctx: click.Context) -> Any:
        """Runs the command; a bug stays a traceback."""
        with errors_in_words(), help_without_words():
            result = super().invoke(ctx)
            sys.stdout.flush()
        return result


_CATALOG: dict[str, Any] = {"metavar": "URL"}
_DATA: dict[str, Any] = {"metavar": "DIR", "type": click.Path(file_okay=False, path_type=Path)}

_RULES_FILE: dict[str, Any] = {"metavar": "FILE", "type": click.Path(dir_okay=False, path_type=Path)}


@click.group(cls=Program, context_settings={"help_option_names": ["-h", "--help"], "show_default": True})
@click.option(
    "--catalog",
    envvar="LORADEX_CATALOG",
    show_envvar=True,
    help="sqlite:///FILE or postgresql://USER@HOST/NAME.  [default: catalog.db in --data]",
    **_CATALOG,
)
@click.option(
    "--data",
    envvar="LORADEX_DATA",
    show_envvar=True,
    default="data",
    help="Folder of its files.",
    **_DATA,
)
@click.option(
    "--engines",
    envvar="LORADEX_ENGINES",
    show_envvar=True,
    help="Rules for engines.  [default: engines.toml in --data, if there]",
    **_RULES_FILE,
)
@click.option("-q", "--quiet", is_flag=True, help="Results and errors only.")
@click.option("-v", "--verbose", count=True, show_default=False, help="Say more; -vv says everything.")
@click.version_option(package_name="loradex")
@click.pass_context
def loradex(
    context: click.Context,
    catalog: str | None,
    data: Path,
    engines: Path | None,
    quiet: bool,
    verbose: int,
) -> None:
    """Crawl, verify, screen and index LoRA adapters from the Hugging Face Hub.

    Options may also stand after the command; HF_ENDPOINT and HF_TOKEN count.
    """
    _set_up_logging(quiet, verbose)
    settings = Settings.make(data=data, catalog_url=catalog, rules_file=engines)
    context.obj = App(settings, quiet, verbose, Output(quiet=quiet))


def _check_endpoint(endpoint: str) -> None:
    """Raises UsageError for an endpoint with which huggingface_hub cannot even be imported."""
    try:
        _ = urlsplit(endpoint).port
    except ValueError:
        from crawler.hub import check_endpoint

        check_endpoint(endpoint)


def _accept_global_options(command: click.Command) -> None:
    """Lets a command and those below it take the global options too, once; its own options go first."""
    own_flags = {name for option in command.params for name in (*option.opts, *option.secondary_opts)}
    for names, settings in (
        (("--catalog",), _CATALOG),
        (("--data",), _DATA),
        (("--engines",), _RULES_FILE),
        (("--quiet", "-q"), {"is_flag": True}),
        (("--verbose", "-v"), {"count": True}),
    ):
        if free := [name for name in names if name not in own_flags]:
            option = click.Option(
                free, hidden=True, expose_value=False, callback=_set_again, default=None, **settings
            )
            command.params.append(option)
    if isinstance(command, click.Group):
        for below in command.commands.values():
            _accept_global_options(below)


def _set_again(context: click.Context, option: click.Parameter, value: Any) -> None:
    """Takes a global option that stands behind the command, and remembers the command that runs."""
    context.meta[RUNNING] = context.command
    app, values = context.obj, context.find_root().params
    if not value or not isinstance(app, App) or option.name is None:
        return
    values[option.name] = values[option.name] + value if option.name == "verbose" else value
    _set_up_logging(values["quiet"], values["verbose"])
    context.obj = replace(
        app,
        settings=Settings.make(
            data=values["data"], catalog_url=values["catalog"], rules_file=values["engines"]
        ),
        quiet=values["quiet"],
        verbose=values["verbose"],
        output=replace(app.output, quiet=values["quiet"]),
    )


def main() -> None:
    """Runs the program on the command line's arguments and exits."""
    set_up_streams()
    set_up_signals()
    loradex(prog_name="loradex")


class _LogLines(logging.Handler):
    """Log records as lines on stderr, whatever stderr is at that moment."""

    def emit(self, record: logging.LogRecord) -> None:
        text = name_options(self.format(record))
        click.echo("\n".join(plain(line) for line in text.split("\n")), err=True)


def _set_up_logging(quiet: bool, verbose: int) -> None:
    level = logging.ERROR if quiet else (logging.WARNING, logging.INFO, logging.DEBUG)[min(verbose, 2)]
    for name in ("catalog", "crawler", "merging", "cli"):
        logger = logging.getLogger(name)
        logger.setLevel(level)
        logger.handlers = [_LogLines()]
        logger.propagate = False
    # The pool logs what it cannot close, as after an interrupt, with a traceback; statements raise.
    logging.getLogger("sqlalchemy.pool").setLevel(logging.WARNING if verbose else logging.CRITICAL)
