"""What every command is given, and what it may answer."""

from __future__ import annotations

import enum
from dataclasses import dataclass
from typing import TYPE_CHECKING

import click

from catalog.settings import Settings
from cli.output import Output

if TYPE_CHECKING:
    from loradex import Catalog


class Exit(enum.IntEnum):
    """The exit codes of the program."""

    DONE = 0
    ERROR = 1
    USAGE = 2
    PARTIAL = 3
    HUNG_UP = 129
    INTERRUPTED = 130
    PIPE_CLOSED = 141
    TERMINATED = 143


@dataclass(frozen=True)
class App:
    """The global options, made once from the command line and the environment."""

    settings: Settings
    quiet: bool
    verbose: int
    output: Output

    @property
    def catalog(self) -> Catalog:
        """The catalog of the global options."""
        from loradex import Catalog

        return Catalog(self.settings)


pass_app = click.make_pass_decorator(App)
