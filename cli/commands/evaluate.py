"""`loradex evaluate`: how good adapters are at tasks."""

from __future__ import annotations

import datetime
import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from catalog.adapters import is_adapter_folder
from catalog.errors import UsageError
from catalog.files import replace_file
from cli.app import App, Exit, pass_app
from cli.options import (
    base_option,
    date_option,
    device_option,
    too_long_option,
)
from cli.output import Column, output_options
from loradex.members import open_members
from loradex.models import find_tasks, open_base, prompt_notes

if TYPE_CHECKING:
    from merging.evaluation import TaskScore
    from merging.members import MergeMember

SCORES = (
    Column("adapter"),
    Column("task"),
    Column("metric"),
    Column("value", right=True, show=lambda value: f"{value:.3f}"),
    Column("loss", right=True, show=lambda loss: f"{loss:.3f}"),
    Column("n", right=True),
)

LEFT_OUT = Column("left_out", "too long", right=True, show=lambda count: "" if count is None else str(count))


@click.command()
@base_option
@click.option("--task", "tasks", metavar="T", multiple=True, required=True, help="A task; 'all' of --tasks.")
@click.option("--tasks", "folder", metavar="DIR", type=click.Path(file_okay=False, path_type=Path))
@click.option("--adapter", "adapters", metavar="DIR", multiple=True, help="An adapter in a folder.")
@click.option("--pool", metavar="POOL", help="Every member of a pool.")
@click.option("--split", type=click.Choice(["train", "valid", "test"]), default="test", show_default=True)
@click.option(
    "--limit", metavar="N", type=click.IntRange(min=1), help="At most so many examples of each task."
)
@click.option("--seed", type=int, default=0, show_default=True, help="Of the draw that --limit makes.")
@click.option("--without-base", is_flag=True, help="Leave out the base model alone.")
@click.option(
    "--log",
    metavar="FILE",
    type=click.Path(dir_okay=False, path_type=Path),
    help="One line a score, as it is measured; a run that was stopped goes on from it.",
)
@click.option(
    "-o",
    "--out",
    metavar="FILE",
    type=click.Path(dir_okay=False, path_type=Path),
    help="Write scores.json, which `scores import` reads.",
)
@too_long_option
@date_option
@device_option
@output_options(lists=False)
@pass_app
def evaluate(
    app: App,
    /,
    base: str,
    tasks: tuple[str, ...],
    folder: Path | None,
    adapters: tuple[str, ...],
    pool: str | None,
    without_base: bool,
    out: Path | None,
    device: str,
    date: datetime.date | None,
    **given: Any,
) -> None:
    """Score the base model, adapters in folders and the members of a pool on tasks, each alone.

    Accuracy takes the choice of the highest likelihood, exact match the greedy answer. Adapters that cannot
    be put on the base are named, the others go on, and the exit code is 3.
    """
    from merging.evaluation import scores as evaluating

    members = _members(app, adapters, pool)
    found_tasks = find_tasks(tasks, folder)
    model = open_base(
        base,
        bases=app.settings.bases,
        device=device,
        day=date,
        report=lambda event: app.output.say(event.note),
    )
    scores, failed = [], []
    with app.output.progress("scoring") as bar:
        for found in evaluating.evaluate(
            model, members, found_tasks, with_base=not without_base, progress=bar.working, **given
        ):
            if isinstance(found, evaluating.TaskScore):
                scores.append(found)
            else:
                failed.append(str(found))
    for sentence in failed:
        app.output.say(f"left out: {sentence}")
    for sentence in _notes(scores):
        app.output.say(sentence)
    document = evaluating.scores_document(scores)
    if out is not None:
        _write(out, document)
    app.output.document(document, lambda told: "\n".join(_table(told)))
    if failed:
        raise click.exceptions.Exit(Exit.PARTIAL)


def _notes(scores: list[TaskScore]) -> list[str]:
    """What is not as usual, each said once; counts of examples stand in the table."""
    told = [{name: value for name, value in one.document().items() if name != "left_out"} for one in scores]
    return list(dict.fromkeys(note for one in told for note in prompt_notes(one)))


def _table(told: dict[str, Any]) -> list[str]:
    from cli.output import table

    skipped = any("left_out" in score for score in told["scores"])
    return table(told["scores"], (*SCORES, *([LEFT_OUT] if skipped else [])))


def _members(app: App, adapters: tuple[str, ...], pool: str | None) -> list[MergeMember]:
    from merging.evaluation import BASE
    from merging.members import load_member

    if wrong := next((name for name in adapters if not is_adapter_folder(Path(name))), None):
        raise UsageError(f"{wrong} is no folder of an adapter; name a folder that PEFT has written.")
    places = [Path(name).resolve() for name in adapters]
    names = [place.name for place in places]
    called = [
        name if names.count(name) == 1 else str(place) for name, place in zip(names, places, strict=True)
    ]
    if BASE in called:
        raise UsageError(f"An adapter called {BASE} would be taken for the base model; rename its folder.")
    members = _open_members(app, [pool], "evaluated") if pool else []
    return members + [
        load_member(place, name=name, purpose="evaluated") for place, name in zip(places, called, strict=True)
    ]


def _write(out: Path, document: dict[str, Any]) -> None:
    from merging.members import storage

    text = json.dumps(document, indent=2, sort_keys=True, ensure_ascii=False, allow_nan=False)
    with storage(out):
        out.parent.mkdir(parents=True, exist_ok=True)
        with replace_file(out) as new:
            new.write_text(f"{text}\n", encoding="utf-8")


def _open_members(app: App, source: Sequence[str], purpose: str) -> list[MergeMember]:
    progress = click.get_current_context().with_resource(app.output.show_progress())
    opened = open_members(source, settings=app.settings, report=progress, purpose=purpose)
    return list(click.get_current_context().with_resource(opened).members)
