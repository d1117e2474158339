"""`loradex select`: adapters chosen and pinned as a pool."""

from __future__ import annotations

import datetime
from functools import partial
from pathlib import Path
from typing import TypedDict, Unpack

import click

from catalog.adapters import USES
from catalog.selection import STRATEGIES
from cli.app import App, pass_app
from cli.options import (
    COUNT,
    MODEL,
    Command,
    base_device_option,
    date_option,
    dtype_option,
    model_option,
    option,
    rules_option,
    split_names,
    tasks_option,
    too_long_option,
    where_option,
)
from cli.output import output_options
from cli.tables import pool_paths, pool_text

_QUESTION = "Strategies"


class SelectOptions(TypedDict):
    """The options, each a keyword of `Catalog.select`."""

    by: str
    k: int | None
    query: str | None
    task: str | None
    tasks: Path | None
    samples: int | None
    exact: bool
    budget: int | None
    too_long: str
    date: datetime.date | None
    device: str
    dtype: str | None
    like: str | None
    adapters: tuple[str, ...]
    to: str | None
    kind: str
    splits: tuple[str, ...]
    texts: Path | None
    where: str
    base: str | None
    seed: int
    per_owner: int | None
    per_family: int | None
    distinct: str | None
    parameters: int | None
    exclude: tuple[str, ...]
    without: tuple[str, ...]
    use: str
    controls: bool
    replace: bool
    dry_run: bool
    model: str
    rules: str


def _count(_context: click.Context, _option: click.Parameter, text: str) -> int | None:
    """The number of members; None for all."""
    if text == "all":
        return None
    try:
        return int(text)
    except ValueError:
        raise click.BadParameter(f"{text!r} is neither a number nor all") from None


@click.command(cls=Command, titles={MODEL: _QUESTION})
@click.argument("name")
@option(
    "--by", metavar="HOW", type=click.Choice(list(STRATEGIES)), required=True, help="text, score, random, …"
)
@option("-k", metavar="N|all", default="10", callback=_count, help="Members; all: all that can be ranked.")
@where_option
@option("--base", metavar="ID", help="The base model.  [default: the most frequent one]")
@rules_option
@option("--seed", metavar="N", default=0, help="Of draws.")
@option("--controls", is_flag=True, help="Also save NAME-random, -matched, -shuffled.")
@option("--replace", is_flag=True, help="Take the place of another pool of this name.")
@option("--dry-run", is_flag=True, help="Show the members and save nothing.")
@option("--query", group=_QUESTION, metavar="TEXT", help="What the adapters should be good for (text).")
@option("--like", group=_QUESTION, metavar="ADAPTER|DIR", help="What they should resemble (adapter).")
@option("--adapter", "adapters", group=_QUESTION, metavar="NAME", multiple=True, help="A member (named).")
@option(
    "--task",
    group=_QUESTION,
    metavar="T",
    help="Whose scores decide; its folder (gradient, racing).",
)
@tasks_option
@option(
    "--texts",
    group=_QUESTION,
    metavar="FILE",
    type=click.Path(path_type=Path),
    help="Instructions by task, a file (tasks, completion).",
)
@option(
    "--splits",
    group=_QUESTION,
    metavar="SPLIT",
    multiple=True,
    help="Only these splits' scores.  [default: all but test]",
)
@option("--to", group=_QUESTION, metavar="POOL", help="The pool to be matched (matched).")
@option(
    "--kind",
    group=_QUESTION,
    metavar="output|delta",
    type=click.Choice(["output", "delta"]),
    default="output",
    show_default=False,
    help="Of fingerprint (adapter, gradient).",
)
@option(
    "--samples", group=_QUESTION, metavar="N", type=COUNT, help="Examples to read (gradient).  [default: 100]"
)
@option("--exact", group=_QUESTION, is_flag=True, help="Read the weights of the best (gradient).")
@option("--budget", group=_QUESTION, metavar="N", type=COUNT, help="Examples in all (racing).")
@option("--per-owner", metavar="N", type=int, help="The maximum number per owner.")
@option("--per-family", metavar="N", type=int, help="The maximum number per family.")
@option(
    "--distinct",
    metavar="LEVEL",
    type=click.Choice(["file", "tensor", "delta"]),
    help="One of each group of duplicates: file, tensor or delta.",
)
@option(
    "--parameters",
    metavar="N",
    type=int,
    help="The maximum number of LoRA parameters in total.",
)
@option("--exclude", metavar="NAME", multiple=True, help="An adapter, repository or owner.")
@option(
    "--without",
    metavar="L,…",
    callback=split_names,
    help="Also plain LoRA but for these layers, as merge.",
)
@option(
    "--use",
    metavar="USE",
    type=click.Choice(list(USES)),
    default="research",
    help="research, publish or commercial.",
)
@too_long_option
@date_option
@base_device_option
@dtype_option
@model_option
@output_options(lists=False)
@pass_app
def select(
    app: App,
    /,
    name: str,
    **options: Unpack[SelectOptions],
) -> None:
    """Choose members by a strategy (docs/choose.md), saved as the pool NAME."""
    with app.output.show_progress() as progress:
        pool = app.catalog.select(name, **options, progress=progress)
    app.output.say_all(pool.notes)
    app.output.document(pool.document(), partial(pool_text, places=pool_paths(pool)))
