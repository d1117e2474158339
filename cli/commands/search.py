"""`loradex search`: the adapters that fit a text."""

from __future__ import annotations

import click

from cli.app import App, pass_app
from cli.options import COUNT, model_option, rules_option, where_option
from cli.output import Column, output_options
from cli.tables import RANK, score_column

COLUMNS = (score_column(4), Column("adapter"), RANK, Column("license"), Column("why"))


def _weights(_context: click.Context, _option: click.Parameter, text: str) -> tuple[float, float]:
    try:
        words, meaning = (float(part) for part in text.split(","))
    except ValueError as error:
        raise click.BadParameter("write two numbers, such as 1,0.5", param_hint="--weights") from error
    return words, meaning


@click.command()
@click.argument("text")
@where_option
@click.option("-k", metavar="N", type=COUNT, default=10)
@click.option("--words", "words_only", is_flag=True, help="By words alone: no text encoder is loaded.")
@click.option(
    "--weights",
    metavar="W,M",
    default="1,1",
    callback=_weights,
    help="How much the ranking by words and the one by meaning count.",
)
@model_option
@rules_option
@output_options(lists=True)
@pass_app
def search(
    app: App,
    /,
    text: str,
    where: str,
    k: int,
    words_only: bool,
    weights: tuple[float, float],
    model: str,
    rules: str,
) -> None:
    """The adapters whose name, card, datasets, tags or base fit TEXT, by words and by meaning.

    Cards are embedded once, the first time they are searched. A card that says nothing is not embedded: such
    an adapter is found by its name and tags. Where the text encoder cannot be loaded, words alone decide.
    """
    with app.output.show_progress() as progress:
        rows = app.catalog.search(
            text,
            k,
            where=where,
            words_only=words_only,
            weights=weights,
            model=model,
            rules=rules,
            progress=progress,
        )
    app.output.say_all(rows.notes)
    app.output.rows(rows, COLUMNS)
