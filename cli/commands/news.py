"""`loradex changes` and `identify`: what is new in the catalog, and which adapter a file is."""

from __future__ import annotations

from pathlib import Path

import click

from cli.app import App, pass_app
from cli.options import COUNT, FILE, rules_option, where_option
from cli.output import Column, output_options


@click.command()
@click.option(
    "--since", metavar="T", default="7d", help="A time before now (7d, 12h, 2w), a day, or an instant in UTC."
)
@where_option
@rules_option
@click.option("--atom", metavar="FILE", type=FILE, help="Write the changes as an Atom feed, too.")
@output_options(lists=True)
@pass_app
def changes(app: App, since: str, where: str, rules: str, atom: Path | None) -> None:
    """What is new, changed, gone, licensed otherwise or gated since a time, the newest first.

    Commits, licenses or gates before and after are shown beside each other.
    """
    rows = app.catalog.changes(since, where=where, rules=rules, atom=atom)
    app.output.rows(rows, CHANGE_COLUMNS)
    if atom is not None:
        app.output.say(f"written to {atom}")


@click.command()
@click.argument("file", metavar="FILE|DIR", type=click.Path(exists=True, path_type=Path))
@click.option("-k", metavar="N", type=COUNT, default=5, help="The maximum number of neighbours.")
@output_options(lists=True)
@pass_app
def identify(app: App, file: Path, k: int) -> None:
    """Which adapter of the catalog a weights FILE, or the adapter in a folder DIR, is.

    By the sha256 of the file, then by the digest of its tensors, then by sketches of the update, with
    cosines; these require the adapter_config.json beside it.
    """
    rows = app.catalog.identify(file, k)
    app.output.rows(rows, IDENTIFIED_COLUMNS)
    app.output.say_all(rows.notes)


def _short(text: str | None) -> str:
    """A commit in twelve digits; licenses and gates as they are."""
    return "" if text is None else text[:12] if len(text) == 40 else text


CHANGE_COLUMNS = (
    Column("at"),
    Column("adapter"),
    Column("change"),
    Column("before", show=_short),
    Column("after", show=_short),
)
IDENTIFIED_COLUMNS = (
    Column("adapter"),
    Column("by"),
    Column("cosine", right=True),
    Column("commit", show=_short),
    Column("current"),
)
