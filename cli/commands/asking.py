"""What the commands that ask a base model share: their options, and the model and tasks from them."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from datetime import date, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click

from cli.app import App

if TYPE_CHECKING:
    from merging.model import BaseModel, Task

Command = TypeVar("Command", bound=Callable[..., Any])


def layers_in(_context: click.Context, _option: click.Parameter, given: str | None) -> tuple[str, ...]:
    """The names of layers with commas between them."""
    return tuple(filter(None, (part.strip() for part in (given or "").split(","))))


base_option = click.option(
    "--base", metavar="ID|DIR", required=True, help="The base model: kept here, in a folder, or on the Hub."
)
tasks_option = click.option(
    "--tasks", metavar="DIR", type=click.Path(file_okay=False, path_type=Path), help="Where tasks are."
)
task_option = click.option(
    "--task", metavar="T", required=True, help="A task's folder, or its name in --tasks."
)
samples_option = click.option(
    "--samples",
    metavar="N",
    type=click.IntRange(min=3),
    default=100,
    show_default=True,
    help="Training examples to use, a fifth of them for validation.",
)
device_option = click.option("--device", default="cpu", show_default=True, help="cpu, cuda or cuda:N.")


too_long_option = click.option(
    "--too-long",
    type=click.Choice(["error", "skip"]),
    default="error",
    show_default=True,
    help="What becomes of examples that are longer than the model reads: an error, or left out and counted.",
)
date_option = click.option(
    "--date",
    metavar="YYYY-MM-DD",
    type=click.DateTime(["%Y-%m-%d"]),
    help="The day on which questions are asked, for chat templates that say one.  [default: 2024-07-26]",
)


def asked_base(app: App, base: str, device: str, given: datetime | None = None) -> BaseModel:
    """The base model on the device, to be asked on the given day."""
    from merging.model import load_base

    app.output.say(f"loading {base}")
    return load_base(base, bases=app.settings.bases, device=device, date=day(given))


def day(given: datetime | None) -> date:
    """The day of --date, or the usual one."""
    from merging.model import DATE

    return DATE if given is None else given.date()


def unusual_notes(record: Mapping[str, Any]) -> list[str]:
    """Sentences on what a record says of questions that are not read as usual."""
    notes = []
    if record.get("date"):
        notes.append(f"the prompts say the date {record['date']}, whatever the day is; --date sets another")
    if record.get("plain"):
        notes.append(
            "prompts are read one by one where a tree of them would be wrong for this model (a short window "
            "of attention, or recurrent layers); this takes longer"
        )
    if record.get("left_out"):
        notes.append(f"examples longer than the model reads, left out: {record['left_out']}")
    return notes


def asked_tasks(names: Sequence[str], tasks: Path | None) -> list[Task]:
    """The tasks of these names; "all" is every task in the folder."""
    from merging.model import TASK_NAME, find_task

    if tasks is not None and list(names) == ["all"]:
        names = sorted(path.parent.name for path in tasks.glob(f"*/{TASK_NAME}"))
    return [find_task(name, tasks) for name in names]
