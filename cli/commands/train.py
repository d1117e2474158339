"""`loradex train`: a new LoRA on a task, its learning rate swept."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal, Unpack

import click

import loradex
from cli.app import App, pass_app
from cli.options import (
    FOLDER,
    LEARNING,
    AskingOptions,
    Command,
    asking_options,
    base_dtype_option,
    base_option,
    checkpointing_option,
    explicit_options,
    option,
    split_numbers,
    task_option,
    tasks_option,
)
from cli.output import Column, label_lines, output_options, table
from loradex.models import BaseDtype

RATES = (
    Column("learning_rate", "learning rate", right=True, show=lambda rate: f"{rate:.5g}"),
    Column("best_step", "best step", right=True),
    Column("valid_loss", "valid loss", right=True, show=lambda loss: "" if loss is None else f"{loss:.4f}"),
    Column("verdict", ""),
)


class TrainOptions(AskingOptions):
    """The options that are keywords of `loradex.train`."""

    samples: int
    base_dtype: BaseDtype | None
    gradient_checkpointing: bool
    rank: int
    alpha: float | None
    targets: str | Sequence[str]
    dropout: float
    variant: str
    learning_rates: list[float] | None
    steps: int
    batch: int
    evaluate_every: int
    patience: int
    seed: int
    out: Path
    overwrite: bool
    dtype: Literal["bfloat16", "float16", "float32"]


def _modules(_context: click.Context, _option: click.Parameter, value: str) -> str | Sequence[str]:
    names = [part.strip() for part in value.split(",") if part.strip()]
    return names[0] if len(names) == 1 else names


@click.command(cls=Command)
@base_option
@task_option
@tasks_option
@option("--samples", metavar="N", default=100, help="Training examples, a fifth to choose by.")
@asking_options
@base_dtype_option
@checkpointing_option
@option("--rank", group="Adapter", metavar="R", default=16, help="Of A and B.")
@option(
    "--alpha",
    group="Adapter",
    metavar="A",
    type=float,
    help="Updates are scaled by alpha / rank.  [default: rank]",
)
@option(
    "--targets",
    group="Adapter",
    metavar="NAME,…",
    callback=_modules,
    default="all-linear",
    help="Modules, such as q_proj,v_proj.",
)
@option("--dropout", group="Adapter", metavar="P", default=0.0, help="Of what A reads.")
@option(
    "--variant",
    group="Adapter",
    metavar="V",
    default="lora",
    help="lora, rslora, dora, pissa, olora, lora-ga, gaussian, orthogonal, mica, loraplus or lora-fa.",
)
@option(
    "--lr",
    "learning_rates",
    group=LEARNING,
    metavar="A,B,…",
    callback=split_numbers("rates", "1e-4,2e-4"),
    help="Rates to try.  [default: four that suit the rank]",
)
@option("--steps", group=LEARNING, metavar="N", default=100, help="Of each rate.")
@option("--batch", group=LEARNING, metavar="N", default=8, help="Examples of a step.")
@option("--evaluate-every", group=LEARNING, metavar="N", default=10, help="Steps between two validations.")
@option("--patience", group=LEARNING, metavar="N", default=20, help="Validations without a best.")
@option("--seed", group=LEARNING, metavar="N", default=0, help="Of examples, start and order.")
@option(
    "-o", "--out", group="Adapter", metavar="DIR", required=True, type=FOLDER, help="The folder to write."
)
@option("--overwrite", group="Adapter", is_flag=True, help="Replace what is there.")
@option(
    "--dtype",
    group="Adapter",
    metavar="TYPE",
    type=click.Choice(["bfloat16", "float16", "float32"]),
    default="bfloat16",
    help="bfloat16, float16 or float32.",
)
@output_options(lists=False)
@pass_app
def train(
    app: App,
    /,
    base: str,
    task: str,
    tasks: Path | None,
    **options: Unpack[TrainOptions],
) -> None:
    """Train a new LoRA on a task: the baseline of every merge.

    The folder holds what plain PEFT loads, train.json and a model card. After an interruption the same
    command goes on.
    """
    with app.output.show_progress() as progress:
        report = loradex.train(
            base,
            loradex.load_task(task, tasks),
            **explicit_options(options),
            catalog=app.settings,
            progress=progress,
        )
    app.output.document({"folder": str(report.folder), **report.record}, _render)


def _render(result: dict[str, Any]) -> str:
    rows = [{**rate, "verdict": _verdict(rate)} for rate in result["rates"]]
    facts = label_lines(
        [
            ("loss before", f"{result['valid_loss_before']:.4f}"),
            ("loss after", f"{result['valid_loss']:.4f}, as stored"),
            ("seconds", f"{result['seconds']:.0f}"),
            ("folder", result["folder"]),
        ]
    )
    return "\n".join([*table(rows, RATES), "", facts])


def _verdict(rate: dict[str, Any]) -> str:
    if rate["diverged"] is not None:
        return f"diverged at step {rate['diverged']}"
    return "chosen" if rate["chosen"] else ""
