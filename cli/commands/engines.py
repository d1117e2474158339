"""`loradex engines`: what serves an adapter as PEFT does."""

from __future__ import annotations

from pathlib import Path

import click

import loradex
from cli.app import App, pass_app
from cli.options import FOLDER
from cli.output import Column, output_options
from cli.tables import runs_column

ENGINES = (
    Column("engine"),
    Column("version"),
    Column("default_rank", "rank without option", True),
    Column("rank_limit", "limit", True),
    Column("option"),
    Column("source", in_table=False),
)
VERDICTS = (
    Column("engine"),
    runs_column(),
    Column("option", "needs"),
    Column("reasons", "because it", show="; ".join),
    Column("remedies", "remedy", show=", ".join),
)


@click.command()
@click.argument("folder", required=False, type=FOLDER)
@output_options(lists=True)
@pass_app
def engines(app: App, folder: Path | None) -> None:
    """The engines that read adapters of PEFT, or which of them run the adapter in FOLDER as PEFT does.

    An engine that would refuse an adapter, leave out a part of it or compute something else does not run it;
    the reasons are given, and what makes it run: `normalise`, folding DoRA with the base model, leaving out
    layers, or a GGUF file. For an adapter of the catalog: `loradex show`.
    """
    if folder is None:
        app.output.rows(loradex.engines(app.settings), ENGINES)
    else:
        app.output.rows(loradex.runs_in(folder, app.settings), VERDICTS)
