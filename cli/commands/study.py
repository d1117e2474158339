"""`loradex study`: a grid of tasks, pools, methods and seeds, carried out and reported."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from catalog.errors import UsageError
from cli.app import App, Exit, pass_app
from cli.options import device_option, tasks_option
from cli.output import Column, Format, output_options

FOLDER = click.Path(file_okay=False, path_type=Path)


@click.group()
def study() -> None:
    """Run a study, and report what it found."""


@study.command()
@click.argument("file")
@click.option(
    "-o", "--out", metavar="DIR", type=FOLDER, required=True, help="Where the study's work is kept."
)
@tasks_option
@click.option("--adapters", metavar="DIR", type=FOLDER, help="Where the adapters are.")
@click.option("--cards", metavar="DIR", type=FOLDER, help="Where model cards of the wild are.")
@click.option("--tables", metavar="DIR", hidden=True)
@device_option
@click.option(
    "--threads",
    metavar="N",
    type=click.IntRange(min=1),
    default=1,
    show_default=True,
    help="Threads of a step; other numbers round differently.",
)
@click.option("--ray", is_flag=True, help="Spread the steps by Ray, on this machine or --address.")
@click.option("--address", metavar="URL", help="A Ray cluster to use.")
@click.option("--workers", metavar="N", type=click.IntRange(min=1), help="Ray workers on this machine.")
@click.option(
    "--gpu-share",
    metavar="X",
    type=click.FloatRange(min=0),
    help="GPUs that a step takes with Ray; 1 with cuda.",
)
@click.option("--dry-run", is_flag=True, help="Check the file and count what there is to do.")
@output_options(lists=False)
@pass_app
def run(
    app: App,
    /,
    file: str,
    out: Path,
    tables: str | None,
    dry_run: bool,
    **given: Any,
) -> None:
    """Carry out the study in FILE, or one that comes with the program, as far as it is not done.

    A run that was stopped goes on where it was; a changed line computes anew only what depends on it. Cells
    that fail are kept as failed, and the exit code is 3.
    """
    from studies.file import PUBLISHED, read_study
    from studies.grid import grid
    from studies.run import run as carried_out
    from studies.store import in_order

    if tables is not None:
        raise UsageError(PUBLISHED)
    told = read_study(file)
    executor = _executor(given)
    options = {name: given[name] for name in ("tasks", "adapters", "cards", "device", "threads")}
    made = grid(told.study, told.folder, out, bases=app.settings.bases, **options)
    if dry_run:
        steps = list(in_order(made.steps))
        done = sum(made.place.result(step) is not None for step in steps)
        counts = {"cells": len(made.cells), "steps": len(steps), "done": done, "kinds": _kinds(steps)}
        app.output.document(counts, _counted)
        return
    with app.output.progress("steps") as bar:
        outcome = carried_out(told, made, executor=executor, progress=bar.working)
    for error in outcome.errors:
        app.output.say(f"failed: {error}")
    counts = {"folder": str(out), "done": outcome.done, "failed": outcome.failed, "missing": outcome.missing}
    app.output.document(counts, _ended)
    if outcome.failed or outcome.missing:
        raise click.exceptions.Exit(Exit.PARTIAL)


@study.command()
@click.argument("folder", metavar="DIR", type=FOLDER)
@output_options(lists=False)
@pass_app
def report(app: App, /, folder: Path) -> None:
    """Write report.html, report.md, summary.json and pictures/ from what a study in DIR has found."""
    from studies.reporting import report as written

    found = written(folder)
    app.output.document(found, _reported)


@study.command("list")
@output_options(lists=True)
@pass_app
def list_(app: App, /) -> None:
    """The studies that come with the program."""
    from studies.file import built_in, read_study

    rows = [{"study": name, "title": read_study(name).study.title} for name in built_in()]
    if app.output.format is Format.JSON:
        app.output.document({"studies": rows}, str)
    else:
        app.output.rows(rows, (Column("study"), Column("title")))


def _executor(given: dict[str, Any]) -> Any:
    from studies.run import one_by_one

    address, workers, share = given["address"], given["workers"], given["gpu_share"]
    if not given["ray"]:
        if address or workers or share is not None:
            raise UsageError("--address, --workers and --gpu-share belong to Ray; ask for it by --ray.")
        return one_by_one
    from studies.rays import Ray

    if address and workers:
        raise UsageError("A cluster at --address has its own workers; leave out --workers.")
    if share is None:
        share = 1.0 if given["device"].startswith("cuda") else 0.0
    return Ray(address, workers, share)


def _kinds(steps: Any) -> dict[str, int]:
    found: dict[str, int] = {}
    for step in steps:
        found[step.kind] = found.get(step.kind, 0) + 1
    return dict(sorted(found.items()))


def _counted(told: dict[str, Any]) -> str:
    kinds = ", ".join(f"{kind} {count}" for kind, count in told["kinds"].items())
    return f"{told['cells']} cells of {told['steps']} steps, {told['done']} of them done: {kinds}"


def _ended(told: dict[str, Any]) -> str:
    return (
        f"{told['done']} cells done, {told['failed']} failed, {told['missing']} missing\n"
        f"next: loradex study report {told['folder']}"
    )


def _reported(told: dict[str, Any]) -> str:
    lines = [*told["says"], "", f"page      {told['page']}", f"markdown  {told['markdown']}"]
    return "\n".join(lines)
