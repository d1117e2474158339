"""`loradex db`: the schema of the catalog."""

from __future__ import annotations

import click

from cli.app import App, pass_app
from cli.output import output_options
from loradex.catalog import CatalogInfo


@click.group()
def db() -> None:
    """The schema of the catalog."""


@db.command()
@pass_app
def upgrade(app: App) -> None:
    """Bring the schema up to date; creates the catalog if it does not exist."""
    schema = app.catalog.upgrade()
    same = schema.before == schema.after
    app.output.say(
        f"schema {schema.after}, as before" if same else f"schema {schema.before or 'none'} -> {schema.after}"
    )


@db.command()
@pass_app
def check(app: App) -> None:
    """Fail unless the catalog is there and its schema is the newest."""
    app.output.say(f"schema {app.catalog.check()}, the newest")


@db.command()
@output_options(lists=False)
@pass_app
def info(app: App) -> None:
    """Where the catalog is, its schema, its size and the rows of each table."""
    app.output.document(app.catalog.info(), _render)


def _render(info: CatalogInfo) -> str:
    lines = [
        ("catalog", info.place),
        ("database", info.dialect),
        ("schema", f"{info.revision or 'none'} (newest {info.head})"),
        ("size", f"{info.bytes:,} bytes"),
        *((f"  {name}", f"{count:,}") for name, count in info.rows.items()),
    ]
    return "\n".join(f"{name:<20}{value}" for name, value in lines)
