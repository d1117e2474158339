"""`loradex select`: adapters chosen and pinned as a pool."""

from __future__ import annotations

import datetime
import re
from functools import partial
from pathlib import Path

import click

from catalog.adapters import USES
from catalog.selection import STRATEGIES
from cli.app import App, pass_app
from cli.options import (
    date_option,
    device_option,
    model_option,
    rules_option,
    split_names,
    tasks_option,
    too_long_option,
    where_option,
)
from cli.output import output_options
from cli.tables import pool_paths, pool_text

_PARAMETER = re.compile("`([a-z_]+)`")
# A paragraph that click does not fill anew.
_STRATEGIES = "\b\n" + "\n".join(
    f"{name:<11}{_PARAMETER.sub(lambda match: f'--{match[1]}', row.sentence)}"
    for name, row in STRATEGIES.items()
)


def _count(_context: click.Context, _option: click.Parameter, text: str) -> int | None:
    """The number of members; None for all."""
    if text == "all":
        return None
    try:
        return int(text)
    except ValueError:
        raise click.BadParameter(f"{text!r} is neither a number nor all") from None


@click.command(epilog=_STRATEGIES)
@click.argument("name")
@click.option("--by", type=click.Choice(list(STRATEGIES)), required=True, help="How to choose; see below.")
@click.option(
    "-k",
    metavar="N|all",
    default="10",
    show_default=True,
    callback=_count,
    help="How many members; all: every adapter that can be ranked, within the limits.",
)
@click.option("--query", metavar="TEXT", help="What the adapters should be good for (text).")
@click.option(
    "--task",
    metavar="T",
    help="The task whose scores decide (score, prior, tasks, completion, worst); its folder, or its name in "
    "--tasks, where a model reads it (gradient, racing).",
)
@tasks_option
@click.option(
    "--samples",
    metavar="N",
    type=click.IntRange(min=1),
    help="Training examples to read (gradient).  [default: 100]",
)
@click.option(
    "--exact", is_flag=True, help="Read the weights of the best, and order them exactly (gradient)."
)
@click.option("--budget", metavar="N", type=click.IntRange(min=1), help="Examples to spend in all (racing).")
@too_long_option
@date_option
@device_option
@click.option("--like", metavar="ADAPTER|DIR", help="The adapter that members should resemble (adapter).")
@click.option("--to", metavar="POOL", help="The pool to be matched (matched).")
@click.option(
    "--kind", type=click.Choice(["output", "delta"]), default="output", help="By which (adapter, gradient)."
)
@click.option(
    "--splits",
    metavar="SPLIT",
    multiple=True,
    help="Scores of these splits alone.  [default: all but test, which is there to judge]",
)
@click.option(
    "--texts",
    metavar="FILE",
    type=click.Path(path_type=Path),
    help="YAML or JSON of task names and instructions (tasks, completion); --query is that of --task.",
)
@where_option
@click.option(
    "--base",
    metavar="ID",
    help="Of this base model; the one to load (gradient, racing).  [default: the most frequent one]",
)
@click.option("--seed", type=int, default=0, show_default=True)
@click.option("--per-owner", metavar="N", type=int, help="At most so many of one owner.")
@click.option("--per-family", metavar="N", type=int, help="At most so many of one family.")
@click.option(
    "--distinct", type=click.Choice(["file", "tensor", "delta"]), help="One of each group of duplicates."
)
@click.option("--parameters", metavar="N", type=int, help="At most so many LoRA parameters in all.")
@click.option("--exclude", metavar="NAME", multiple=True, help="An adapter, repository or owner.")
@click.option(
    "--without",
    metavar="LAYER,…",
    callback=split_names,
    help="Also adapters that are plain LoRA without these layers, such as lm_head,embed_tokens; merge takes "
    "the same option.",
)
@click.option(
    "--use",
    type=click.Choice(list(USES)),
    default="research",
    show_default=True,
    help="What the pool is for: adapters whose licence forbids it are left out.",
)
@click.option("--controls", is_flag=True, help="Also save NAME-random, NAME-matched, NAME-shuffled.")
@click.option("--replace", is_flag=True, help="Take the place of another pool of this name.")
@click.option("--dry-run", is_flag=True, help="Show the members and save nothing.")
@model_option
@rules_option
@output_options(lists=False)
@pass_app
def select(
    app: App,
    /,
    name: str,
    by: str,
    k: int | None,
    query: str | None,
    task: str | None,
    tasks: Path | None,
    samples: int | None,
    exact: bool,
    budget: int | None,
    too_long: str,
    date: datetime.date | None,
    device: str,
    like: str | None,
    to: str | None,
    kind: str,
    splits: tuple[str, ...],
    texts: Path | None,
    where: str,
    base: str | None,
    seed: int,
    per_owner: int | None,
    per_family: int | None,
    distinct: str | None,
    parameters: int | None,
    exclude: tuple[str, ...],
    without: tuple[str, ...],
    use: str,
    controls: bool,
    replace: bool,
    dry_run: bool,
    model: str,
    rules: str,
) -> None:
    """Choose members and save them as the pool NAME, pinned to commits and hashes.

    The same catalog, question and seed give the same pool, byte for byte.
    """
    with app.output.show_progress() as progress:
        pool = app.catalog.select(
            name,
            by=by,
            k=k,
            query=query,
            task=task,
            tasks=tasks,
            texts=texts,
            samples=samples,
            exact=exact,
            budget=budget,
            like=like,
            to=to,
            kind=kind,
            splits=splits,
            where=where,
            base=base,
            seed=seed,
            per_owner=per_owner,
            per_family=per_family,
            distinct=distinct,
            parameters=parameters,
            exclude=exclude,
            without=without,
            use=use,
            controls=controls,
            replace=replace,
            dry_run=dry_run,
            device=device,
            date=date,
            too_long=too_long,
            model=model,
            rules=rules,
            progress=progress,
        )
    app.output.say_all(pool.notes)
    app.output.document(pool.document(), partial(pool_text, places=pool_paths(pool)))
