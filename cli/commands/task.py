"""`loradex task`: folders of tasks, made from tables, data sets and tasks of others."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Literal, TypedDict, Unpack

import click

import loradex
from cli.app import App, Exit, pass_app
from cli.options import COUNT, EXISTING_FOLDER, FOLDER, Command, option, overwrite_option
from cli.output import Column, output_options

COLUMNS_OF_DATA = "Columns"
SPLITS = "Splits"
SOURCE = "Source"


def _count(value: int | None) -> str:
    return "" if value is None else f"{value:,}"


TASKS = (
    Column("task"),
    Column("metric"),
    Column("choices", right=True, show=lambda count: _count(count or None)),
    *(Column(split, right=True, show=_count) for split in ("train", "valid", "test")),
    Column("license"),
    Column("source", in_table=False),
    Column("folder", in_table=False),
)


@click.group()
def task() -> None:
    """Tasks: folders with an instruction, examples in three splits, and a metric."""


class ImportOptions(TypedDict):
    """The options that are keywords of `loradex.import_task`."""

    out: Path
    instruction: str
    inputs: tuple[str, ...]
    target: str | None
    choices: str | None
    choice: tuple[str, ...]
    labels: tuple[str, ...]
    metric: str | None
    name: str | None
    splits: Mapping[str, str]
    valid: float
    test: float
    limit: int | None
    seed: int
    config: str | None
    revision: str | None
    license: str | None
    max_new_tokens: int | None
    tasks: Path | None
    overwrite: bool


def _split_names(
    _context: click.Context, _option: click.Parameter, values: tuple[str, ...]
) -> dict[str, str]:
    """The splits as pairs; raises BadParameter for a text without =."""
    pairs = [value.partition("=") for value in values]
    if wrong := next((split for split, sign, own in pairs if not (split and sign and own)), None):
        raise click.BadParameter(f"{wrong!r} is not a pair; write one such as test=validation.")
    return {split: own for split, _, own in pairs}


@task.command("import", cls=Command)
@click.argument("source")
@option("-o", "--out", metavar="DIR", type=FOLDER, required=True, help="The task's folder.")
@option("--instruction", metavar="TEXT", default="", show_default=False, help="What the model is told first.")
@option("--metric", metavar="M", help="accuracy, exact_match or another metric of tasks.")
@option("--name", metavar="NAME", help="The task's name.  [default: the folder's]")
@option("--license", metavar="L", help="Of the data.  [default: the card's]")
@option("--max-new-tokens", metavar="N", type=COUNT, help="Of a generated answer.")
@option(
    "--input",
    "inputs",
    group=COLUMNS_OF_DATA,
    metavar="COL",
    multiple=True,
    help="The input; several are joined.",
)
@option("--target", group=COLUMNS_OF_DATA, metavar="COL", help="The right answer.")
@option("--choices", group=COLUMNS_OF_DATA, metavar="COL", help="A list of choices for each example.")
@option(
    "--choice", group=COLUMNS_OF_DATA, metavar="TEXT", multiple=True, help="One of those of all examples."
)
@option(
    "--label", "labels", group=COLUMNS_OF_DATA, metavar="TEXT", multiple=True, help="Name of target 0, 1, …"
)
@option(
    "--split",
    "splits",
    group=SPLITS,
    metavar="OURS=THEIRS",
    multiple=True,
    callback=_split_names,
    help="Such as test=validation.",
)
@option(
    "--valid", group=SPLITS, metavar="SHARE", type=float, default=0.1, help="Of training rows, where missing."
)
@option(
    "--test", group=SPLITS, metavar="SHARE", type=float, default=0.1, help="Of training rows, where missing."
)
@option("--limit", group=SPLITS, metavar="N", type=COUNT, help="The maximum number of examples of a split.")
@option("--seed", group=SPLITS, default=0, help="Of all draws.")
@option("--config", group=SOURCE, metavar="NAME", help="Of a data set of the Hub.")
@option("--revision", group=SOURCE, metavar="REV", help="Of a data set of the Hub.")
@option("--tasks", group=SOURCE, metavar="DIR", type=FOLDER, help="Where harness:NAME is.")
@overwrite_option
@pass_app
def import_(app: App, /, source: str, **options: Unpack[ImportOptions]) -> None:
    """Make a task's folder from SOURCE.

    SOURCE is a .csv, .tsv, .json, .jsonl or .parquet file, a folder with one such file a split,
    hf:OWNER/NAME for a data set of the Hub, or harness:NAME for a task of lm-evaluation-harness.
    """
    imported = loradex.import_task(source, **options)
    app.output.say(f"{imported.name} is in {imported.folder}: {imported.metric}, license {imported.license}")


@task.command("import-paper")
@click.argument("checkout", type=EXISTING_FOLDER)
@click.option("-o", "--out", metavar="DIR", type=FOLDER, required=True, help="Gets one folder a task.")
@click.option("--task", "tasks", metavar="T", multiple=True, help="Of tasks.yaml.  [default: the 62]")
@click.option(
    "--metric", type=click.Choice(["accuracy", "exact_match"]), default="exact_match", help="For all tasks."
)
@output_options(lists=True)
@pass_app
def import_paper(
    app: App,
    checkout: Path,
    out: Path,
    tasks: tuple[str, ...],
    metric: Literal["accuracy", "exact_match"],
) -> None:
    """The recycling paper's tasks, from a CHECKOUT of r-three/realistic-adaptive-merging.

    Its data.tar.gz must be extracted there. Tasks whose data cannot be reached are named, the others go on,
    and the exit code is 3; run again, those that are missing are imported.
    """
    with app.output.show_progress() as progress:
        rows = loradex.import_paper_tasks(checkout, out, tasks=tasks, metric=metric, progress=progress)
    app.output.say_all(rows.notes)
    app.output.rows(rows, TASKS)
    if rows.failures:
        raise click.exceptions.Exit(Exit.PARTIAL)


@task.command("list")
@click.argument("folder", type=EXISTING_FOLDER)
@output_options(lists=True)
@pass_app
def list_(app: App, folder: Path) -> None:
    """The tasks in FOLDER: metric, number of choices, examples of each split, license."""
    rows = loradex.list_tasks(folder)
    app.output.say_all(rows.notes)
    app.output.rows(rows, TASKS)
