"""`loradex index`: the indexes, which are caches of what the catalog holds."""

from __future__ import annotations

import click

from cli.app import App, Exit, pass_app
from cli.output import Column, output_options

COLUMNS = (
    Column("space"),
    Column("base"),
    Column("state"),
    Column("vectors", right=True),
    Column("type"),
    Column("recall", right=True),
    Column("file"),
)


@click.group()
def index() -> None:
    """The indexes of vectors and words: caches that commands make and mend by themselves."""


@index.command()
@output_options(lists=True)
@pass_app
def check(app: App) -> None:
    """Say whether each index is current, stale, corrupt or missing; exit code 1 unless all are current.

    Files are read and compared with the catalog in full. `recall` is the part of the ten nearest vectors, by
    comparing with all, that an index finds.
    """
    rows = app.catalog.check_indexes()
    app.output.rows(rows, COLUMNS)
    if any(row.state != "current" for row in rows):
        app.output.say("The next command that needs an index makes it; so does `loradex index rebuild`.")
        click.get_current_context().exit(Exit.ERROR)


@index.command()
@click.option(
    "--type",
    type=click.Choice(["flat", "ivf"]),
    help="flat compares with every vector, ivf searches lists of them; flat up to 300,000 by default.",
)
@output_options(lists=True)
@pass_app
def rebuild(app: App, type: str | None) -> None:  # noqa: A002
    """Make every index again from the catalog."""
    app.output.rows(app.catalog.rebuild_indexes(type=type), COLUMNS)
