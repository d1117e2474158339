"""`loradex evaluate`: how good adapters are at tasks."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal, Unpack

import click

import loradex
from cli.app import App, Exit, pass_app
from cli.options import (
    COUNT,
    FILE,
    FOLDER,
    RESULT,
    SCORING,
    AskingOptions,
    Command,
    asking_options,
    base_option,
    dtype_option,
    explicit_options,
    option,
)
from cli.output import Column, output_options, table
from loradex.models import BaseDtype

SCORES = (
    Column("adapter"),
    Column("task"),
    Column("metric"),
    Column("value", right=True, show=lambda value: f"{value:.3f}"),
    Column("loss", right=True, show=lambda loss: "" if loss is None else f"{loss:.3f}"),
    Column("n", right=True),
)

PROTOCOL = Column("protocol", show=lambda protocol: protocol or "")
STDERR = Column("stderr", right=True, show=lambda error: "" if error is None else f"{error:.3f}")

LEFT_OUT = Column("left_out", "too long", right=True, show=lambda count: "" if count is None else str(count))


PLACEMENTS = (
    Column("adapter"),
    Column("task"),
    Column("metric"),
    Column("predicted", right=True, show=lambda value: f"{value:.3f}"),
    Column("error", "±", right=True, show=lambda error: f"{error:.3f}"),
    Column("n", "of", right=True),
    Column("right", right=True),
    Column("asked", right=True),
    Column("adapters", "by adapters", right=True),
)


class EvaluateOptions(AskingOptions):
    """The options that are keywords of `loradex.evaluate`."""

    folder: Path | None
    pool: str | None
    without_base: bool
    ensemble: str | None
    split: Literal["train", "valid", "test"]
    limit: int | None
    seed: int
    items: int | None
    chat_template: bool
    shots: int | None
    dtype: BaseDtype | None
    log: Path | None
    out: Path | None


@click.command(cls=Command)
@base_option
@option(
    "--task",
    "tasks",
    metavar="T",
    multiple=True,
    required=True,
    help="A task, or harness:NAME; 'all' of --tasks.",
)
@option("--tasks", "folder", metavar="DIR", type=FOLDER, help="Where tasks are, those of harness:NAME too.")
@option("--adapter", "adapters", metavar="DIR", multiple=True, help="An adapter in a folder.")
@option("--pool", metavar="POOL", help="Every member of a pool.")
@option("--without-base", is_flag=True, help="Leave out the base model alone.")
@option("--ensemble", metavar="NAME", help="Score their mean probabilities too, as NAME.")
@option(
    "--split",
    group=SCORING,
    metavar="train|valid|test",
    type=click.Choice(["train", "valid", "test"]),
    default="test",
)
@option("--limit", group=SCORING, metavar="N", type=COUNT, help="Most examples of each task.")
@option("--seed", group=SCORING, default=0, help="Of the draw that --limit makes.")
@option(
    "--items",
    group=SCORING,
    metavar="N",
    type=COUNT,
    help="Ask the N items that tell most by the catalog's scores; predict the score.",
)
@option(
    "--chat-template",
    group=SCORING,
    is_flag=True,
    help="Use it for prompts of harness:NAME.",
)
@option(
    "--shots",
    group=SCORING,
    metavar="N",
    type=click.IntRange(min=0),
    help="Examples shown first to harness:NAME.",
)
@asking_options
@dtype_option
@option(
    "--log",
    group=RESULT,
    metavar="FILE",
    type=FILE,
    help="A line a score; a run that was stopped goes on from it.",
)
@option(
    "-o",
    "--out",
    group=RESULT,
    metavar="FILE",
    type=FILE,
    help="Write scores.json, which `scores import` reads.",
)
@output_options(lists=False)
@pass_app
def evaluate(
    app: App,
    /,
    base: str,
    tasks: tuple[str, ...],
    adapters: tuple[str, ...],
    **options: Unpack[EvaluateOptions],
) -> None:
    """Score the base model, adapters in folders and the members of a pool on tasks, each alone and together.

    Accuracy takes the choice of the highest likelihood, exact match the greedy answer. harness:NAME is a task
    of lm-evaluation-harness, scored by its rules on its own split. Adapters that cannot be put on the base
    are named, the others go on, and the exit code is 3.
    """
    with app.output.show_progress() as progress:
        scores = loradex.evaluate(
            base,
            tasks,
            adapters,
            **explicit_options(options),
            catalog=app.settings,
            progress=progress,
        )
    app.output.document(scores.document(), _render)
    if scores.failures:
        raise click.exceptions.Exit(Exit.PARTIAL)


def _render(result: dict[str, Any]) -> str:
    if placements := result.get("placements"):
        return "\n".join(table(placements, PLACEMENTS))
    names = {name for score in result["scores"] for name in score}
    usual = [column for column in (LEFT_OUT, STDERR, PROTOCOL) if column.field in names]
    return "\n".join(table(result["scores"], (*SCORES, *usual)))
