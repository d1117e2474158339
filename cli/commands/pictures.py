"""`loradex map`: all adapters in two dimensions."""

from __future__ import annotations

from pathlib import Path

import click

from cli.app import App, pass_app
from cli.options import FILE, rules_option, verdict_option
from loradex.comparison import COLOURS


@click.command("map")
@click.argument("file", type=FILE)
@click.option("--by", type=click.Choice(["output", "delta"]), default="output")
@click.option(
    "--colour",
    type=click.Choice(list(COLOURS)),
    default="owner",
    help="task: the first dataset that the card names. tool: the library the Hub says it is for. partial: "
    "what the products B A leave out of the update.",
)
@click.option("--base", metavar="ID", help="Only of this base model.  [default: the most frequent one]")
@click.option("--seed", default=0, help="Of the layout.")
@verdict_option
@rules_option
@pass_app
def map_(
    app: App, file: Path, by: str, colour: str, base: str | None, seed: int, verdict: str, rules: str
) -> None:
    """Draw the adapters of a base model into FILE (.svg or .png), near each other where their weights are.

    Distances between groups mean nothing; who is near whom does.
    """
    with app.output.show_progress() as progress:
        report = app.catalog.map(
            file,
            by=by,
            colour=colour,
            base=base,
            seed=seed,
            verdict=verdict,
            rules=rules,
            progress=progress,
        )
    marks = {"skipped by the rules": report.skipped, "by a part of their update": report.partial}
    marked = "".join(f", {count:,} of them {what}" for what, count in marks.items() if count)
    app.output.say(f"{report.adapters:,} adapters drawn into {file}{marked}")
