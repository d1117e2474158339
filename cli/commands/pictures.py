"""`loradex map`: all adapters in two dimensions."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import click

from catalog.database import reading, store
from catalog.errors import NotFoundError
from catalog.pictures import layout, map_picture
from catalog.search import Fingerprinted, Fingerprints, likeness, matrix
from cli.app import App, pass_app
from cli.options import rules_option, verdict_option
from crawler.crawl import refusing

# With more points their names would cover each other.
MOST_NAMES = 60

COLOURS: dict[str, Callable[[Fingerprinted], str | float | None]] = {
    "owner": lambda row: row.owner,
    "rank": lambda row: row.rank,
    "norm": lambda row: row.norm,
    "tool": lambda row: row.library,
    "task": lambda row: row.datasets[0] if row.datasets else None,
    "health": lambda row: row.health,
    "verdict": lambda row: "skipped" if row.skipped else "accepted",
    "partial": lambda row: ", ".join(row.partial or ()) or "whole",
}


@click.command("map")
@click.argument("file", type=click.Path(dir_okay=False, path_type=Path))
@click.option("--by", type=click.Choice(["output", "delta"]), default="output", show_default=True)
@click.option(
    "--colour",
    type=click.Choice(list(COLOURS)),
    default="owner",
    show_default=True,
    help="task: the first dataset that the card names. tool: the library the Hub says it is for. partial: "
    "what the products B A leave out of the update.",
)
@click.option("--base", metavar="ID", help="Only of this base model.  [default: the most frequent one]")
@click.option("--seed", type=int, default=0, show_default=True, help="Of the layout.")
@verdict_option
@rules_option
@pass_app
def map_(
    app: App, file: Path, by: str, colour: str, base: str | None, seed: int, verdict: str, rules: str
) -> None:
    """Draw the adapters of a base model into FILE (.svg or .png), near each other where their weights are.

    Distances between groups mean nothing; who is near whom does.
    """
    kind, every = likeness.kind(by), verdict == "any"
    with reading(app.settings) as session:
        if base is not None:
            base = store.find_base(session, base)
        else:
            base = likeness.usual_base(session, refusing(rules), every=every)
        rows = list(likeness.fingerprinted(session, refusing(rules), base, every=every))
        if len(rows) < 2:
            raise NotFoundError(f"A map takes two fingerprints of {base or 'one base model'}; crawl some.")
        vectors = matrix(Fingerprints(session, kind), [row.key for row in rows])
    with app.output.progress("drawing"):
        map_picture(
            layout(vectors, seed=seed),
            [row.adapter for row in rows],
            [COLOURS[colour](row) for row in rows],
            title=f"Adapters of {base or 'unknown base models'}, by {kind} sketch",
            legend_title=colour,
            path=file,
            labels=len(rows) <= MOST_NAMES,
        )
    counts = {
        "skipped by the rules": sum(row.skipped for row in rows),
        "by a part of their update": sum(bool(row.partial) for row in rows),
    }
    marked = "".join(f", {count:,} of them {what}" for what, count in counts.items() if count)
    app.output.say(f"{len(rows):,} adapters drawn into {file}{marked}")
