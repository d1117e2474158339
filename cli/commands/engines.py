"""`loradex engines` and `normalise`: who runs an adapter as PEFT does, and the form that all read."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

import loradex
from cli.app import App, pass_app
from cli.options import FOLDER, Command, option, where_option
from cli.output import Column, label_lines, output_options
from cli.tables import reasons_with_counts, runs_column

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


COUNTS = (
    Column("engine"),
    Column("runs", right=True),
    Column("runs_not", "not", True),
    Column("unknown", right=True),
    Column("reasons", "because it", show=reasons_with_counts),
)


@click.command()
@click.argument("folder", required=False, type=FOLDER)
@option("--counts", is_flag=True, help="Count the adapters of the catalog, or those below FOLDER.")
@where_option
@output_options(lists=True)
@pass_app
def engines(app: App, folder: Path | None, counts: bool, where: str) -> None:
    """The engines that read adapters of PEFT, or which of them run the adapter in FOLDER as PEFT does.

    An engine that would refuse an adapter, leave out a part of it or compute something else does not run it;
    the reasons are given, and what makes it run: `normalise`, folding DoRA with the base model, leaving out
    layers, or a GGUF file. For an adapter of the catalog: `loradex show`, for the members of a pool:
    `loradex pool show`.
    """
    if where and (folder is not None or not counts):
        raise click.UsageError("--where filters the catalog's adapters; use it with --counts and no FOLDER.")
    if counts:
        catalog = app.catalog
        rows = catalog.count_engines(where) if folder is None else loradex.count_engines(folder, catalog)
        app.output.rows(rows, COUNTS)
    elif folder is None:
        app.output.rows(loradex.engines(app.settings), ENGINES)
    else:
        app.output.rows(loradex.runs_in(folder, app.settings), VERDICTS)


@click.command(cls=Command)
@click.argument("adapter", type=FOLDER)
@option("-o", "--out", metavar="DIR", type=FOLDER, required=True, help="The folder to write.")
@option(
    "--base", metavar="B", help="The base model, where the configuration does not name it: an id or a folder."
)
@option("--rank", metavar="R", type=int, help="Of DoRA, folded with the weights in the folder --base.")
@option("--without", metavar="NAMES", default="", help="Leave out layers, such as lm_head,embed_tokens.")
@option("--heads", metavar="H", help="Saved head and embeddings: first or average keep them, drop does not.")
@option(
    "--dtype", type=click.Choice(["float32", "bfloat16", "float16"]), help="[default: that of the adapter]"
)
@option("--overwrite", is_flag=True, help="Replace what an earlier run has written to -o.")
@output_options(lists=False)
@pass_app
def normalise(
    app: App,
    /,
    adapter: Path,
    out: Path,
    base: str | None,
    rank: int | None,
    without: str,
    heads: str | None,
    dtype: str | None,
    overwrite: bool,
) -> None:
    """Write the ADAPTER in a folder in the form that every engine reads; its update stays the same.

    One rank and lora_alpha equal to it, scalings folded into B, PEFT's names of tensors, and zero factors
    where a group of modules (q, k and v; gate and up; the same in every layer) is not whole.
    """
    with app.output.show_progress() as progress:
        report = loradex.normalise(
            adapter,
            out=out,
            dtype=dtype,
            without=without,
            heads=heads,
            base=base,
            rank=rank,
            overwrite=overwrite,
            catalog=app.settings,
            progress=progress,
        )
    app.output.document(report.document(), _render_normalised)


def _render_normalised(result: dict[str, Any]) -> str:
    return label_lines(
        [
            ("folder", result["folder"]),
            ("rank", f"{result['rank']} in {result['form']['rank']}"),
            ("changed", "; ".join(result["changes"]) or "nothing but the files"),
            ("energy kept", "" if result.get("kept") is None else f"{result['kept']:.4f}"),
            ("misread", " ".join(result["misread"])),
        ]
    )
