"""`loradex base`: the names under which base models are met, and models kept here."""

from __future__ import annotations

from collections.abc import Collection
from functools import partial
from pathlib import Path

import click

from cli.app import App, pass_app
from cli.output import NO_BREAK, Column, output_options
from loradex.catalog import SPELLING_KINDS


@click.group()
def base() -> None:
    """The names under which base models are met, and models that are kept here."""


@base.command("list")
@click.option("--base", metavar="ID", help="Only this base model, under any of its names.")
@output_options(lists=True)
@pass_app
def list_(app: App, base: str | None) -> None:
    """List every name that is known; writes nothing and needs no catalog."""
    rows = app.catalog.base_names(base)
    app.output.say_all(rows.notes)
    below = partial(_below, {row.canonical for row in rows})
    app.output.rows(rows, (Column("spelling", "base model", show=below), "kind", "note"))


@base.command()
@click.argument("canonical")
@click.argument("spelling")
@click.option(
    "--kind", type=click.Choice(SPELLING_KINDS), default="mirror", help="How it relates to the base model."
)
@click.option("--note", default="", show_default=False, help="Where you have it from.")
@pass_app
def add(app: App, canonical: str, spelling: str, kind: str, note: str) -> None:
    """Say that SPELLING is another name of the base model CANONICAL; the next crawl asks for it too."""
    row = app.catalog.add_base_name(canonical, spelling, kind=kind, note=note)
    app.output.say(f"{row.spelling} is {row.canonical} ({row.kind})")
    app.output.say_all(filter(None, [row.advice]))


@base.command()
@click.argument("name", metavar="ID")
@click.argument("file", metavar="FILE", type=click.Path(path_type=Path))
@pass_app
def keep(app: App, name: str, file: Path) -> None:
    """Keep a base model here, from a GGUF FILE of Llama or Qwen2; commands that ask for ID then find it.

    It is converted once, to float32, below the data folder; a model that was quantised stays as coarse.
    """
    with app.output.show_progress() as progress:
        folder = app.catalog.keep_base(name, file, progress=progress)
    app.output.say(f"{name} is kept in {folder}")


def _below(canonical: Collection[str], name: str) -> str:
    """The name as the table shows it: below that of its base model."""
    return name if name in canonical else f"{2 * NO_BREAK}{name}"
