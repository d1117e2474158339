"""`loradex adapt` and `adaptive`: how much of each adapter a task wants."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal, Unpack

import click

import loradex
from cli.app import App, Exit, pass_app
from cli.options import (
    COUNT,
    FOLDER,
    LEARNING,
    RESULT,
    AskingOptions,
    Command,
    asking_options,
    base_option,
    checkpointing_option,
    control_option,
    dtype_option,
    explicit_options,
    mixed_ranks_option,
    option,
    overwrite_option,
    rank_option,
    samples_option,
    task_option,
    tasks_option,
)
from cli.output import Column, label_lines, output_options
from loradex.models import BaseDtype

METHODS = (
    Column("method"),
    Column("summary", "what it does"),
    Column("steps", right=True),
    Column("rate", right=True),
    Column("folds", show=lambda folds: "" if folds else "routes"),
)


@click.command()
@output_options(lists=True)
@pass_app
def adaptive(app: App) -> None:
    """List the adaptive methods, with the settings they are published with (--json has all of it)."""
    app.output.rows(loradex.adaptive_methods(), METHODS)


class AdaptOptions(AskingOptions):
    """The options that are keywords of `loradex.adapt`."""

    method: str
    target: str | None
    control: str | None
    samples: int
    steps: int | None
    learning_rate: float | None
    batch: int
    seed: int
    out: Path | None
    overwrite: bool
    rank: int | None
    mixed_ranks: bool
    split: Literal["valid", "test"] | None
    limit: int | None
    dtype: BaseDtype | None
    gradient_checkpointing: bool


@click.command(cls=Command)
@click.argument("members", nargs=-1, metavar="POOL|DIR…")
@base_option
@task_option
@tasks_option
@option("--method", metavar="M", default="recycling", help="See `loradex adaptive`.")
@option("--with", "target", metavar="DIR", help="An adapter trained on the task, put first.")
@control_option
@samples_option
@option("--steps", group=LEARNING, metavar="N", type=COUNT, help="[default: the method's]")
@option(
    "--lr",
    "learning_rate",
    group=LEARNING,
    metavar="R",
    type=float,
    help="The learning rate.  [default: the method's]",
)
@option("--batch", group=LEARNING, metavar="N", type=COUNT, default=8)
@option("--seed", group=LEARNING, metavar="N", default=0)
@option("-o", "--out", group=RESULT, metavar="DIR", type=FOLDER, help="The folder to write.")
@overwrite_option
@rank_option
@mixed_ranks_option
@option(
    "--split",
    group=RESULT,
    metavar="valid|test",
    type=click.Choice(["valid", "test"]),
    help="Also score it on these examples.",
)
@option("--limit", group=RESULT, metavar="N", type=COUNT, help="The maximum number of them.")
@asking_options
@dtype_option
@checkpointing_option
@output_options(lists=False)
@pass_app
def adapt(
    app: App,
    /,
    members: tuple[str, ...],
    base: str,
    task: str,
    tasks: Path | None,
    **options: Unpack[AdaptOptions],
) -> None:
    """Learn on a task how much of each member of a POOL, or adapter in a folder, to take.

    The result is one adapter that plain PEFT loads, with adapt.json next to it. A method that routes each
    token makes no adapter: give --split to see what it is worth.
    """
    with app.output.show_progress() as progress:
        report = loradex.adapt(
            members,
            base,
            loradex.load_task(task, tasks),
            **explicit_options(options),
            catalog=app.settings,
            progress=progress,
        )
    app.output.document(report.document(), _render)
    if report.problem:
        app.output.say(f"nothing was written: {report.problem}")
        raise click.exceptions.Exit(Exit.PARTIAL)


def _render(result: dict[str, Any]) -> str:
    members = [member["name"] for member in result["members"]]
    rows = [
        ("adapter", result.get("folder", "")),
        ("method", result["method"]["name"]),
        ("members", f"{len(members)}" + (f", first {result['target']}" if result["target"] else "")),
        ("valid", f"{result['valid_before']:.4f} at the start, {result['valid_loss']:.4f} kept"),
        ("most", _most(result, members)),
        ("score", _score(result.get("score"))),
        ("misread", " ".join(result.get("misread", ()))),
    ]
    return label_lines([(name, value) for name, value in rows if value])


def _most(result: dict[str, Any], members: list[str]) -> str:
    """The members with the largest mean absolute coefficients."""
    if result["coefficients"] is None:
        return ""
    sums = [0.0] * len(members)
    for numbers in result["coefficients"].values():
        for at, number in enumerate(numbers):
            sums[at] += abs(number) / len(result["coefficients"])
    best = sorted(range(len(members)), key=lambda at: -sums[at])[:3]
    return ", ".join(f"{members[at]} {sums[at]:.3f}" for at in best)


def _score(score: dict[str, Any] | None) -> str:
    return (
        f"{score['value']:.3f} on {score['n']} of {score['split']}, loss {score['loss']:.3f}" if score else ""
    )
