"""The program `loradex`: global options, the table of commands, and the table that turns errors into words.

Commands are loaded when they are called, so that `loradex --help` imports none of them.
"""

from __future__ import annotations

import contextlib
import importlib
import io
import logging
import os
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import click

from catalog.errors import (
    HubBusyError,
    HubUnreachableError,
    LoradexError,
    UsageError,
)
from catalog.settings import Settings
from cli.app import App, Exit
from cli.output import Output, plain


@dataclass(frozen=True)
class Row:
    """A command: where it is, and its one line in `loradex --help`."""

    target: str
    help: str


COMMANDS = {
    "crawl": Row("cli.commands.crawl:crawl", "List the Hub for adapters and bring the catalog up to date."),
    "status": Row("cli.commands.browse:status", "What the catalog holds, and the last crawls."),
    "adapters": Row("cli.commands.browse:adapters", "List the adapters, one a line."),
    "fields": Row("cli.commands.browse:fields", "What a filter (--where) can ask for."),
    "show": Row("cli.commands.browse:show", "Everything known of one adapter."),
    "search": Row("cli.commands.search:search_", "The adapters that fit a text, by words and meaning."),
    "similar": Row("cli.commands.alike:similar", "The adapters most like one, by their weights."),
    "duplicates": Row("cli.commands.alike:duplicates_", "Groups of adapters with the same weights."),
    "map": Row("cli.commands.pictures:map_", "All adapters in two dimensions, as a picture."),
    "scores": Row("cli.commands.scores:scores", "Measured task scores, with their source."),
    "select": Row("cli.commands.select:select_", "Choose adapters and save them as a pool."),
    "pools": Row("cli.commands.pools:pools_", "List the pools."),
    "pool": Row("cli.commands.pools:pool", "Show, export, verify or import one pool."),
    "methods": Row("cli.commands.merge:methods", "The merge methods."),
    "merge": Row("cli.commands.merge:merge", "Merge a pool into one adapter."),
    "inspect-merge": Row("cli.commands.merge:inspect_merge", "How members fit together."),
    "train": Row("cli.commands.train:train", "Train a new LoRA on a task, its learning rate swept."),
    "adaptive": Row("cli.commands.adapt:adaptive", "The adaptive merge methods."),
    "adapt": Row("cli.commands.adapt:adapt", "Learn on a task how much of each adapter to take."),
    "evaluate": Row("cli.commands.evaluate:evaluate", "Score adapters on tasks."),
    "study": Row("cli.commands.study:study", "Run a study: tasks x pools x methods x seeds, and its report."),
    "fingerprint": Row("cli.commands.alike:fingerprint", "What the weights in a local folder say."),
    "base": Row("cli.commands.base:base", "Names of base models, and models kept here."),
    "hub": Row("cli.commands.hub:hub", "Serve a folder of repositories as a Hub."),
    "index": Row("cli.commands.index:index", "The vector indexes of the catalog."),
    "db": Row("cli.commands.db:db", "The schema of the catalog."),
    "demo": Row("cli.commands.demo:demo", "The main job from end to end on the sample Hub."),
}


@dataclass(frozen=True)
class Words:
    """What an error costs and what to try; the error's own message says what happened."""

    code: Exit
    advice: str = ""


# A class without a row has that of its nearest ancestor.
ERRORS: dict[type[LoradexError], Words] = {
    LoradexError: Words(Exit.ERROR),
    UsageError: Words(Exit.USAGE),
    HubUnreachableError: Words(Exit.ERROR, "check the network and HF_ENDPOINT, then run the command again"),
    HubBusyError: Words(Exit.ERROR, "wait a few minutes, then run the command again"),
}


def words(kind: type[LoradexError]) -> Words:
    """The row of an error class."""
    return next(ERRORS[ancestor] for ancestor in kind.__mro__ if ancestor in ERRORS)


def sentence(error: LoradexError) -> str:
    """The one line that a user sees."""
    message = plain(" ".join(str(error).split())) or type(error).__name__
    advice = words(type(error)).advice
    return f"Error: {message}" + (f" ({advice})" if advice else "")


class Program(click.Group):
    """The group of all commands, loaded when called; known errors leave it as one line and a code."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        """The names, in the order of the table."""
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """The command of that name, imported now."""
        if cmd_name not in COMMANDS:
            return None
        module, _, name = COMMANDS[cmd_name].target.partition(":")
        command = getattr(importlib.import_module(module), name)
        if not isinstance(command, click.Command):
            raise TypeError(f"{COMMANDS[cmd_name].target} is no command")
        return command

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Writes the table of commands without importing them."""
        with formatter.section("Commands"):
            formatter.write_dl([(name, row.help) for name, row in COMMANDS.items()])

    def invoke(self, ctx: click.Context) -> Any:
        """Runs the command; a bug stays a traceback."""
        try:
            result = super().invoke(ctx)
            sys.stdout.flush()
        except LoradexError as error:
            click.echo(sentence(error), err=True)
            ctx.exit(words(type(error)).code)
        except KeyboardInterrupt:
            click.echo("interrupted; run the same command again to continue", err=True)
            ctx.exit(Exit.INTERRUPTED)
        except BrokenPipeError:
            _discard_stdout()
            ctx.exit(Exit.PIPE_CLOSED)
        return result


@click.group(cls=Program, context_settings={"help_option_names": ["-h", "--help"]})
@click.option(
    "--catalog",
    metavar="URL",
    envvar="LORADEX_CATALOG",
    show_envvar=True,
    help="sqlite:///FILE or postgresql://USER@HOST/NAME.  [default: catalog.db in the data folder]",
)
@click.option(
    "--data",
    metavar="DIR",
    envvar="LORADEX_DATA",
    show_envvar=True,
    default="data",
    show_default=True,
    type=click.Path(file_okay=False, path_type=Path),
    help="The folder of the catalog's files.",
)
@click.option("-q", "--quiet", is_flag=True, help="Results and errors only.")
@click.option("-v", "--verbose", count=True, help="Say more; -vv says everything.")
@click.version_option(package_name="loradex")
@click.pass_context
def loradex(context: click.Context, catalog: str | None, data: Path, quiet: bool, verbose: int) -> None:
    """Crawl, verify, screen and index the LoRA adapters of a base model from the Hugging Face Hub.

    The Hub is reached as huggingface_hub does: HF_ENDPOINT, HF_TOKEN and HF_HOME are honoured.
    """
    _set_up_logging(quiet, verbose)
    context.obj = App(Settings.make(data=data, catalog_url=catalog), quiet, verbose, Output(quiet=quiet))


def main() -> None:
    """Runs the program on the command line's arguments and exits."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")
    loradex(prog_name="loradex")


class _Talk(logging.Handler):
    """Log records as lines on stderr, whatever stderr is at that moment."""

    def emit(self, record: logging.LogRecord) -> None:
        click.echo("\n".join(plain(line) for line in self.format(record).split("\n")), err=True)


def _set_up_logging(quiet: bool, verbose: int) -> None:
    level = logging.ERROR if quiet else (logging.WARNING, logging.INFO, logging.DEBUG)[min(verbose, 2)]
    for name in ("catalog", "crawler", "merging", "cli"):
        logger = logging.getLogger(name)
        logger.setLevel(level)
        logger.handlers = [_Talk()]
        logger.propagate = False


def _discard_stdout() -> None:
    """Points stdout at nothing, so that Python has nothing to complain of when it flushes at exit."""
    with contextlib.suppress(OSError, ValueError):
        nothing = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nothing, sys.stdout.fileno())
        os.close(nothing)
