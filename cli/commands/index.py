"""`loradex index`: the vector indexes, which are caches of what the catalog holds."""

from __future__ import annotations

from typing import Any

import click

from catalog.database import reading
from catalog.search import indexes
from cli.app import App, Exit, pass_app
from cli.output import Column, output_options

COLUMNS = (Column("space"), Column("state"), Column("vectors", right=True), Column("file"))


@click.group()
def index() -> None:
    """The vector indexes: caches that commands make and mend by themselves."""


@index.command()
@output_options(lists=True)
@pass_app
def check(app: App) -> None:
    """Say whether each index is current, stale, corrupt or missing; exit code 1 unless all are current."""
    with reading(app.settings) as session:
        found = [_row(name, one.check(app.settings.index)) for name, one in indexes(session).items()]
    app.output.rows(found, COLUMNS)
    if any(row["state"] != "current" for row in found):
        app.output.say("The next command that needs an index makes it; so does `loradex index rebuild`.")
        click.get_current_context().exit(Exit.ERROR)


@index.command()
@output_options(lists=True)
@pass_app
def rebuild(app: App) -> None:
    """Make every index again from the catalog."""
    with reading(app.settings) as session:
        found = [_row(name, one.rebuild(app.settings.index)) for name, one in indexes(session).items()]
    app.output.rows(found, COLUMNS)


def _row(name: str, state: Any) -> dict[str, Any]:
    return {"space": name, "state": state.state, "vectors": state.vectors, "file": str(state.path)}
