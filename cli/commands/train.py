"""`loradex train`: a new LoRA on a task, its learning rate swept."""

from __future__ import annotations

import datetime
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import click

from cli.app import App, pass_app
from cli.options import date_option, too_long_option
from cli.output import Column, labelled, output_options, table
from loradex.models import prompt_notes

RATES = (
    Column("learning_rate", "learning rate", right=True, show=lambda rate: f"{rate:.5g}"),
    Column("best_step", "best step", right=True),
    Column("valid_loss", "valid loss", right=True, show=lambda loss: "" if loss is None else f"{loss:.4f}"),
    Column("verdict", ""),
)


def _rates(_context: click.Context, _option: click.Parameter, given: str | None) -> list[float] | None:
    try:
        return [float(part) for part in given.split(",")] if given else None
    except ValueError as error:
        raise click.BadParameter("write rates with commas between them, such as 1e-4,2e-4.") from error


def _modules(_context: click.Context, _option: click.Parameter, given: str) -> str | Sequence[str]:
    names = [part.strip() for part in given.split(",") if part.strip()]
    return names[0] if len(names) == 1 else names


@click.command()
@click.option("--base", metavar="B", required=True, help="A base model: its folder, or its id on the Hub.")
@click.option("--task", metavar="T", required=True, help="A task: its folder, or its name below --tasks.")
@click.option("--tasks", metavar="DIR", type=click.Path(file_okay=False, path_type=Path))
@click.option("--rank", metavar="R", type=int, default=16, show_default=True)
@click.option("--alpha", metavar="A", type=float, help="Updates are scaled by alpha / rank.  [default: rank]")
@click.option(
    "--lr",
    "learning_rates",
    metavar="A,B,…",
    callback=_rates,
    help="Rates to try; one is no sweep.  [default: four a decade around what the rank wants]",
)
@click.option("--steps", metavar="N", type=int, default=100, show_default=True, help="Of each rate.")
@click.option("--batch", metavar="N", type=int, default=8, show_default=True, help="Examples of a step.")
@click.option(
    "--samples",
    metavar="N",
    type=int,
    default=100,
    show_default=True,
    help="Training examples of the task to draw, a fifth of them to choose by.",
)
@click.option(
    "--targets",
    metavar="NAME,…",
    callback=_modules,
    default="all-linear",
    show_default=True,
    help="Modules to train, such as q_proj,v_proj.",
)
@click.option("--dropout", metavar="P", type=float, default=0.0, show_default=True)
@click.option(
    "--variant",
    metavar="V",
    default="lora",
    show_default=True,
    help="lora, rslora, dora, pissa, olora, lora-ga, gaussian, orthogonal, mica, loraplus or lora-fa.",
)
@click.option(
    "--evaluate-every",
    metavar="N",
    type=int,
    default=10,
    show_default=True,
    help="Steps between two validations.",
)
@click.option(
    "--patience",
    metavar="N",
    type=int,
    default=20,
    show_default=True,
    help="Validations without a new best that end a rate.",
)
@click.option(
    "--dtype",
    type=click.Choice(["bfloat16", "float16", "float32"]),
    default="bfloat16",
    show_default=True,
    help="In which the adapter is stored.",
)
@click.option(
    "--seed", type=int, default=0, show_default=True, help="Of the examples drawn, the start and the order."
)
@too_long_option
@date_option
@click.option("--device", default="cpu", show_default=True, help="cpu, cuda or cuda:N.")
@click.option("-o", "--out", metavar="DIR", required=True, type=click.Path(file_okay=False, path_type=Path))
@click.option("--overwrite", is_flag=True, help="Replace the training that is there.")
@output_options(lists=False)
@pass_app
def train(
    app: App,
    /,
    base: str,
    task: str,
    tasks: Path | None,
    samples: int,
    seed: int,
    device: str,
    date: datetime.date | None,
    out: Path,
    **given: Any,
) -> None:
    """Train a new LoRA on a task: the baseline that every merge is measured against.

    Each learning rate is trained from the same start, and the one with the lowest loss on the validation
    examples is kept. The folder holds what plain PEFT loads, train.json with every rate and loss, and a model
    card. The same command after an interruption goes on with the rates that are missing.
    """
    from merging.learning import train as carry_out
    from merging.model import DATE, budget, find_task, load_base

    found = find_task(task, tasks)
    drawn = budget(found, samples, seed=seed)
    model = load_base(base, bases=app.settings.bases, device=device, date=date or DATE)
    with app.output.progress("training") as bar:
        report = carry_out(model, found, drawn, out, seed=seed, progress=bar.working, **given)
    app.output.document({"folder": str(out), **report.record}, _render)
    for note in prompt_notes(report.record):
        app.output.say(note)
    if missed := report.record.get("untrained"):
        app.output.say(f"not trained: {', '.join(missed)}, which all-linear leaves out in this model")
    if edge := report.record["edge"]:
        app.output.say(f"the best rate is the {edge} tried; --lr with {_side(edge)} ones may do better")


def _side(edge: str) -> str:
    return {"lowest": "lower", "highest": "higher"}[edge]


def _render(found: dict[str, Any]) -> str:
    rows = [{**one, "verdict": _verdict(one)} for one in found["rates"]]
    facts = labelled(
        [
            ("loss before", f"{found['valid_loss_before']:.4f}"),
            ("loss after", f"{found['valid_loss']:.4f}, as stored"),
            ("seconds", f"{found['seconds']:.0f}"),
            ("folder", found["folder"]),
        ]
    )
    return "\n".join([*table(rows, RATES), "", facts])


def _verdict(rate: dict[str, Any]) -> str:
    if rate["diverged"] is not None:
        return f"diverged at step {rate['diverged']}"
    return "chosen" if rate["chosen"] else ""
