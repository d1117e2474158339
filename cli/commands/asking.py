"""What the commands that ask a base model share: their options, and the model and tasks from them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click

from cli.app import App

if TYPE_CHECKING:
    from merging.model import BaseModel
    from merging.tasks import Task

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


def asked_base(app: App, base: str, device: str) -> BaseModel:
    """The base model on the device."""
    from merging.model import load_base

    app.output.say(f"loading {base}")
    return load_base(base, bases=app.settings.bases, device=device)


def asked_tasks(names: Sequence[str], tasks: Path | None) -> list[Task]:
    """The tasks of these names; "all" is every task in the folder."""
    from merging.tasks import TASK_NAME, find_task

    if tasks is not None and list(names) == ["all"]:
        names = sorted(path.parent.name for path in tasks.glob(f"*/{TASK_NAME}"))
    return [find_task(name, tasks) for name in names]
