"""`loradex adapt` and `adaptive`: how much of each adapter a task wants."""

from __future__ import annotations

import datetime
from collections.abc import Sequence
from contextlib import AbstractContextManager
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from catalog.adapters import misreadings
from catalog.errors import MergeError, UsageError
from cli.app import App, Exit, pass_app
from cli.options import (
    base_option,
    date_option,
    device_option,
    samples_option,
    task_option,
    tasks_option,
    too_long_option,
)
from cli.output import Column, labelled, output_options
from loradex.members import open_members
from loradex.models import open_base, prompt_notes

if TYPE_CHECKING:
    from merging.evaluation import Measured, TooLong
    from merging.learning import Adaptation
    from merging.members import MergeMember
    from merging.model import LoadedBase, Task

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
    from merging.learning import ADAPTIVE

    rows = [
        {"method": row.name, **{k: v for k, v in asdict(row).items() if k != "name"}}
        for row in ADAPTIVE.values()
    ]
    app.output.rows(rows, METHODS)


@click.command()
@click.argument("pool", nargs=-1, metavar="POOL|DIR…")
@base_option
@task_option
@tasks_option
@click.option("--method", metavar="M", default="recycling", show_default=True, help="See `loradex adaptive`.")
@click.option(
    "--with", "target", metavar="DIR", help="An adapter trained on the task, put first in the pool."
)
@click.option(
    "--control",
    metavar="KIND",
    help="Stand-ins instead of the members: random-pooled, random-each, random-directions, shuffled-layers "
    "or permuted-ranks.",
)
@samples_option
@click.option("--steps", metavar="N", type=click.IntRange(min=1), help="[default: the method's]")
@click.option("--lr", "rate", metavar="R", type=float, help="The learning rate.  [default: the method's]")
@click.option("--batch", metavar="N", type=click.IntRange(min=1), default=8, show_default=True)
@click.option("--rank", metavar="R", type=click.IntRange(min=1), help="The largest rank of what is written.")
@click.option("--seed", type=int, default=0, show_default=True)
@click.option("--split", type=click.Choice(["valid", "test"]), help="Also score it on these examples.")
@click.option("--limit", metavar="N", type=click.IntRange(min=1), help="At most so many of them.")
@too_long_option
@date_option
@device_option
@click.option("-o", "--out", metavar="DIR", type=click.Path(file_okay=False, path_type=Path))
@click.option("--overwrite", is_flag=True, help="Replace what is there.")
@output_options(lists=False)
@pass_app
def adapt(
    app: App,
    /,
    pool: tuple[str, ...],
    base: str,
    task: str,
    tasks: Path | None,
    target: str | None,
    control: str | None,
    samples: int,
    rank: int | None,
    split: str | None,
    limit: int | None,
    device: str,
    date: datetime.date | None,
    out: Path | None,
    overwrite: bool,
    **given: Any,
) -> None:
    """Learn on a task's examples how much of each member of a POOL, or adapter in a folder, to take.

    The result is one adapter that plain PEFT loads, with adapt.json beside it (members, coefficients,
    course). A method that routes each token makes no adapter: give --split to see what it is worth.
    """
    from merging.learning import ADAPT_RECORD, find_adaptive
    from merging.learning import adapt as learn
    from merging.members import load_member, refuse_existing
    from merging.model import budget, find_task

    if out is None and split is None:
        raise UsageError("Say where the adapter goes (-o), or what to score it on (--split).")
    row = find_adaptive(given["method"])
    if out is not None:
        if not row.folds:
            raise UsageError(f"{row.name} makes no adapter; leave out -o and give --split.")
        refuse_existing(out, overwrite, ADAPT_RECORD)
    found = find_task(task, tasks)
    some = budget(found, samples, seed=given["seed"])
    members = _open_members(app, pool, "adapted") if pool else []
    if control:
        members = _stand_ins(app, members, control, given["seed"], base)
    model = open_base(
        base,
        bases=app.settings.bases,
        device=device,
        day=date,
        report=lambda event: app.output.say(event.note),
    )
    first = load_member(Path(target), purpose="adapted") if target else None
    with app.output.progress("adapting") as bar:
        done = learn(model, members, found, some, target=first, progress=bar.working, **given)
    told: dict[str, Any] = {"valid_before": done.valid_before, "valid_loss": done.valid_loss, **done.record}
    nothing = None
    if out is not None:
        try:
            report = done.write(out, rank=rank, base=model.name, overwrite=overwrite)
            told["folder"] = str(report.folder)
            told["misread"] = misreadings({module.rank for module in report.modules.values()})
        except MergeError as error:
            nothing = error
    if split is not None:
        with _answering(done, model, out if nothing is None else None):
            score = _measured(model, found, split, limit, given["too_long"])
            told["score"] = {"split": split, **score.document()}
    app.output.document(told, _render)
    for note in prompt_notes(done.record):
        app.output.say(note)
    if nothing is not None:
        app.output.say(f"nothing was written: {nothing}")
        raise click.exceptions.Exit(Exit.PARTIAL)


def _answering(done: Adaptation, base: LoadedBase, folder: Path | None) -> AbstractContextManager[object]:
    """A block in which the base answers as what was written, or as what was learned where nothing was."""
    if folder is None:
        return done.apply()
    from merging.live import LiveStack
    from merging.members import load_member

    return LiveStack(base.model, [load_member(folder)]).attach()


def _measured(base: LoadedBase, task: Task, split: Any, limit: int | None, too_long: TooLong) -> Measured:
    from merging.evaluation import measure
    from merging.model import draw

    return measure(base, task, draw(task, split, limit), too_long)


def _stand_ins(app: App, members: list[MergeMember], control: str, seed: int, base: str) -> list[MergeMember]:
    """Stand-ins below the data folder, made once for the same members, kind and seed."""
    import hashlib

    from merging.members import digest_of
    from merging.static import stand_ins

    digests = " ".join(member.digest or digest_of(member.weights) for member in members)
    name = hashlib.sha256(digests.encode()).hexdigest()[:12]
    place = app.settings.data / "controls" / f"{name}-{control}-{seed}"
    return list(stand_ins(members, control, place, seed, base=base))


def _render(told: dict[str, Any]) -> str:
    members = [member["name"] for member in told["members"]]
    rows = [
        ("adapter", told.get("folder", "")),
        ("method", told["method"]["name"]),
        ("members", f"{len(members)}" + (f", first {told['target']}" if told["target"] else "")),
        ("valid", f"{told['valid_before']:.4f} at the start, {told['valid_loss']:.4f} kept"),
        ("most", _most(told, members)),
        ("score", _score(told.get("score"))),
        ("misread", " ".join(told.get("misread", ()))),
    ]
    return labelled([(name, value) for name, value in rows if value])


def _most(told: dict[str, Any], members: list[str]) -> str:
    """The members with the largest mean absolute coefficients."""
    if told["coefficients"] is None:
        return ""
    sums = [0.0] * len(members)
    for numbers in told["coefficients"].values():
        for at, number in enumerate(numbers):
            sums[at] += abs(number) / len(told["coefficients"])
    best = sorted(range(len(members)), key=lambda at: -sums[at])[:3]
    return ", ".join(f"{members[at]} {sums[at]:.3f}" for at in best)


def _score(found: dict[str, Any] | None) -> str:
    return (
        f"{found['value']:.3f} on {found['n']} of {found['split']}, loss {found['loss']:.3f}" if found else ""
    )


def _open_members(app: App, source: Sequence[str], purpose: str) -> list[MergeMember]:
    progress = click.get_current_context().with_resource(app.output.show_progress())
    opened = open_members(source, settings=app.settings, report=progress, purpose=purpose)
    return list(click.get_current_context().with_resource(opened).members)
