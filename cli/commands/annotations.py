"""`loradex tag`, `note`, `hide` and `annotations`: what a user writes about adapters."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import click

from cli.app import App, pass_app
from cli.options import FILE
from cli.output import Column, Output, output_options
from loradex.rows import AdapterNotes as AdapterNotes
from loradex.rows import Rows

COLUMNS = ("adapter", "tags", "note", Column("hidden"))


@click.command()
@click.argument("adapter")
@click.argument("tags", metavar="[TAG]...", nargs=-1)
@click.option("--remove", is_flag=True, help="Remove these tags; without any TAG, all of them.")
@output_options(lists=False)
@pass_app
def tag(app: App, adapter: str, tags: Sequence[str], remove: bool) -> None:
    """Give an ADAPTER tags of your own, or show those that it has.

    A tag belongs to the adapter at all its commits; no crawl touches it. The filter mytag:TAG finds it, tag:
    is for the tags of the Hub.
    """
    app.output.document(app.catalog.tag(adapter, *tags, remove=remove), _render)


@click.command()
@click.argument("adapter")
@click.argument("text", required=False)
@click.option("--remove", is_flag=True, help="Remove the note.")
@output_options(lists=False)
@pass_app
def note(app: App, adapter: str, text: str | None, remove: bool) -> None:
    """Write TEXT as your note on an ADAPTER, in place of the one before, or show it."""
    app.output.document(app.catalog.note(adapter, text, remove=remove), _render)


@click.command()
@click.argument("adapters", metavar="ADAPTER...", nargs=-1, required=True)
@click.option("--undo", is_flag=True, help="Show them again.")
@output_options(lists=True)
@pass_app
def hide(app: App, adapters: Sequence[str], undo: bool) -> None:
    """Leave adapters out of lists, searches and selections, which say how many they leave out.

    The filter hidden:yes lists them.
    """
    _print(app.output, app.catalog.hide(*adapters, undo=undo))


@click.group("annotations")
def annotation_group() -> None:
    """Your tags, notes and hidden marks: list, export, import."""


@annotation_group.command("list")
@output_options(lists=True)
@pass_app
def list_(app: App) -> None:
    """List the adapters that have a tag or a note of yours, or are hidden."""
    _print(app.output, app.catalog.annotations())


@annotation_group.command()
@click.argument("file", type=FILE)
@pass_app
def export(app: App, file: Path) -> None:
    """Write all of them into FILE (JSON), for `annotations import`."""
    count = app.catalog.export_annotations(file)
    app.output.say(f"annotations of {count:,} adapters written into {file}")


@annotation_group.command("import")
@click.argument("file", type=FILE)
@click.option("--replace", is_flag=True, help="Replace a note that is there by another one of FILE.")
@output_options(lists=False)
@pass_app
def import_(app: App, file: Path, replace: bool) -> None:
    """Add those of FILE to yours: tags are united, a note that is there stays."""
    report = app.catalog.import_annotations(file, replace=replace)
    app.output.document(report, lambda row: f"{row.changed:,} adapters changed, {row.same:,} as before")
    if report.kept_notes:
        names = ", ".join(report.kept_notes[:5])
        app.output.say(
            f"{len(report.kept_notes):,} notes of your own stay ({names}); `replace` replaces them"
        )


def _print(output: Output, rows: Rows[AdapterNotes]) -> None:
    output.say_all(rows.notes)
    output.rows(rows, COLUMNS)


def _render(row: AdapterNotes) -> str:
    tags = f"  [{', '.join(row.tags)}]" if row.tags else ""
    hidden = "  hidden" if row.hidden else ""
    return f"{row.adapter}{tags}{hidden}" + (f"\n{row.note}" if row.note is not None else "")
