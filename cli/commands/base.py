"""`loradex base`: the names under which base models are met, and models kept here."""

from __future__ import annotations

from collections.abc import Collection, Iterable
from functools import partial
from pathlib import Path

import click

from catalog.adapters import BaseSpelling, BaseTable, initial_spellings
from catalog.database import SpellingKind, reading_if_any, store, writing
from catalog.errors import UsageError
from cli.app import App, pass_app
from cli.output import NO_BREAK, Column, output_options
from crawler.crawl import check_base_name


@click.group()
def base() -> None:
    """The names under which base models are met, and models that are kept here."""


@base.command("list")
@click.option("--base", metavar="ID", help="Only this base model, under any of its names.")
@output_options(lists=True)
@pass_app
def list_(app: App, base: str | None) -> None:
    """List every name that is known; writes nothing and needs no catalog."""
    with reading_if_any(app.settings) as session:
        known = known_spellings(store.spellings(session) if session is not None else ())
        others = store.base_names(session) if session is not None else ()
    if base is not None:
        table = BaseTable(known)
        canonical = table.known(base)
        known = [row for row in known if row.canonical == canonical]
        if canonical is None and base not in others:
            app.output.say(f"No base model is known as {base}; {table.nearest(base, others)}.")
    below = partial(_below, {row.canonical for row in known})
    app.output.rows(known, (Column("spelling", "base model", show=below), "kind", "note"))


@base.command()
@click.argument("canonical")
@click.argument("spelling")
@click.option(
    "--kind",
    type=click.Choice([kind.value for kind in SpellingKind if kind is not SpellingKind.CANONICAL]),
    default="mirror",
    show_default=True,
    help="How it relates to the base model.",
)
@click.option("--note", default="", help="Where you have it from.")
@pass_app
def add(app: App, canonical: str, spelling: str, kind: str, note: str) -> None:
    """Say that SPELLING is another name of the base model CANONICAL; the next crawl asks for it too."""
    check_base_name(canonical)
    if kind != SpellingKind.LOCAL_PATH.value or not spelling.strip() or not spelling.isprintable():
        check_base_name(spelling)
    with writing(app.settings) as session:
        store.sync_bases(session)
        table, others = BaseTable(store.spellings(session)), store.base_names(session)
        strange = "" if canonical in others else table.nearest(canonical, others)
        canonical = table.known(canonical) or canonical
        if spelling == canonical:
            raise UsageError(f"{spelling} is the base model itself; give another name of it.")
        store.add_spelling(session, BaseSpelling(canonical, spelling, SpellingKind(kind).value, note))
        session.commit()
    app.output.say(f"{spelling} is {canonical} ({kind})")
    if strange and canonical not in others:
        app.output.say(f"{canonical} was not known before; {strange}.")


@base.command()
@click.argument("name", metavar="ID")
@click.argument("file", metavar="FILE", type=click.Path(path_type=Path))
@pass_app
def keep(app: App, name: str, file: Path) -> None:
    """Keep a base model here, from a GGUF FILE of a Llama model; commands that ask for ID then find it.

    It is converted once, to float32, below the data folder; a model that was quantised stays as coarse.
    """
    from merging.model import check_source, keep_base

    check_source(file)
    app.output.say(f"converting {file.name}")
    app.output.say(f"{name} is kept in {keep_base(name, file, app.settings.bases)}")


def _below(canonical: Collection[str], name: str) -> str:
    """The name as the table shows it: below that of its base model."""
    return name if name in canonical else f"{2 * NO_BREAK}{name}"


def known_spellings(of_catalog: Iterable[BaseSpelling]) -> list[BaseSpelling]:
    """What the program knows from the start and what the catalog adds or says otherwise, by base model."""
    rows = {row.spelling: row for row in (*initial_spellings(), *of_catalog)}
    return sorted(rows.values(), key=lambda row: (row.canonical, row.kind != "canonical", row.spelling))
