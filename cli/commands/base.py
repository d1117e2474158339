"""`loradex base`: the names under which base models are met."""

from __future__ import annotations

import click

from catalog import store
from catalog.bases import BaseSpelling
from catalog.database import writing
from catalog.schema import Spelling
from cli.app import App, pass_app
from cli.output import output_options


@click.group()
def base() -> None:
    """The names under which base models are met; a crawl asks for all names of its base."""


@base.command("list")
@click.option("--base", metavar="ID", help="Only this base model, under its canonical name.")
@output_options(lists=True)
@pass_app
def list_(app: App, base: str | None) -> None:
    """List every spelling the catalog knows."""
    with writing(app.settings) as session:
        store.sync_bases(session)
        session.commit()
        found = [row for row in store.spellings(session) if base in (None, row.canonical)]
    app.output.rows(found, ("canonical", "spelling", "kind", "note"))


@base.command()
@click.argument("canonical")
@click.argument("spelling")
@click.option(
    "--kind",
    type=click.Choice([kind.value for kind in Spelling if kind is not Spelling.CANONICAL]),
    default="mirror",
    show_default=True,
)
@click.option("--note", default="", help="Where you have it from.")
@pass_app
def add(app: App, canonical: str, spelling: str, kind: str, note: str) -> None:
    """Say that SPELLING is another name of the base model CANONICAL; the next crawl asks for it too."""
    record = BaseSpelling(canonical, spelling, Spelling(kind).value, note)
    with writing(app.settings) as session:
        store.sync_bases(session)
        store.add_spelling(session, record)
        session.commit()
    app.output.say(f"{spelling} is {canonical} ({kind})")
