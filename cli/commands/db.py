"""The schema of the catalog: bring it up to date, check it, look at it."""

from __future__ import annotations

from typing import Any

import click

from catalog import database
from catalog.database import make_engine
from cli.app import App, pass_app
from cli.output import output_options


@click.group()
def db() -> None:
    """The schema of the catalog."""


@db.command()
@pass_app
def upgrade(app: App) -> None:
    """Bring the schema up to date; makes the catalog if there is none."""
    engine = make_engine(app.settings.catalog_url)
    with database.disposing(engine), database.writer_lock(engine):
        before = database.current(engine)
        database.upgrade(engine)
    after = database.head()
    app.output.say(
        f"schema {after}, as before" if before == after else f"schema {before or 'none'} -> {after}"
    )


@db.command()
@pass_app
def check(app: App) -> None:
    """Fail unless the catalog is there and its schema is the newest."""
    with database.disposing(database.open_catalog(app.settings, create=False)):
        app.output.say(f"schema {database.head()}, the newest")


@db.command()
@output_options(lists=False)
@pass_app
def info(app: App) -> None:
    """Where the catalog is, its schema, its size and the rows of each table."""
    with database.disposing(database.open_existing(app.settings)) as engine:
        app.output.document(database.info(engine), _render)


def _render(found: database.CatalogInfo) -> str:
    lines: list[tuple[str, Any]] = [
        ("catalog", found.place),
        ("database", found.dialect),
        ("schema", f"{found.revision or 'none'} (newest {found.head})"),
        ("size", f"{found.bytes:,} bytes"),
        *((f"  {name}", f"{count:,}") for name, count in found.rows.items()),
    ]
    return "\n".join(f"{name:<20}{value}" for name, value in lines)
