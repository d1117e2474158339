"""`loradex study`: a grid of tasks, pools, methods and seeds, run and reported."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Any, TypedDict, Unpack

import click

import loradex
from catalog.errors import UsageError
from cli.app import App, Exit, pass_app
from cli.options import COUNT, FILE, FOLDER, Command, device_option, option, tasks_option
from cli.output import Column, Format, output_options

_RAY = "Ray"


class StudyOptions(TypedDict):
    """The options that are fields of `loradex.StudyRequest`."""

    tasks: Path | None
    adapters: Path | None
    cards: Path | None
    device: str
    threads: int
    ray: bool
    address: str | None
    workers: int | None
    gpu_share: float | None


@click.group()
def study() -> None:
    """Run a study, and report what it found."""


@study.command(cls=Command)
@click.argument("file")
@option("-o", "--out", metavar="DIR", type=FOLDER, required=True, help="Where the study's work is kept.")
@tasks_option
@option("--adapters", metavar="DIR", type=FOLDER, help="Where the adapters are.")
@option("--cards", metavar="DIR", type=FOLDER, help="Where model cards of the wild are.")
@option("--tables", metavar="DIR", hidden=True)
@device_option
@option(
    "--threads",
    metavar="N",
    type=COUNT,
    default=1,
    help="Threads of a step; other numbers round differently.",
)
@option("--ray", group=_RAY, is_flag=True, help="Spread the steps by Ray, on this machine or --address.")
@option("--address", group=_RAY, metavar="URL", help="A Ray cluster to use.")
@option("--workers", group=_RAY, metavar="N", type=COUNT, help="Ray workers on this machine.")
@option(
    "--gpu-share",
    group=_RAY,
    metavar="X",
    type=click.FloatRange(min=0),
    help="GPUs that a step takes with Ray; 1 with cuda.",
)
@option("--dry-run", is_flag=True, help="Check the file and count what there is to do.")
@option(
    "--doctor",
    metavar="FILE",
    type=FILE,
    help="With --dry-run: hours on the machine of this JSON of `loradex doctor`.",
)
@output_options(lists=False)
@pass_app
def run(
    app: App,
    /,
    file: str,
    out: Path,
    tables: str | None,
    dry_run: bool,
    doctor: Path | None,
    **options: Unpack[StudyOptions],
) -> None:
    """Carry out the study in FILE, or one that comes with the program, as far as it is not done.

    A stopped run continues where it was; a changed line repeats only what depends on it. Cells
    that fail are kept as failed, and the exit code is 3.
    """
    if tables is not None:
        from studies.record import PUBLISHED

        raise UsageError(PUBLISHED)
    study = loradex.StudyRequest(file, out, **options, catalog=app.settings)
    if doctor is not None and not dry_run:
        raise UsageError("A doctor report prices a study that is not run; add --dry-run.")
    if dry_run:
        app.output.document(study.plan(doctor=doctor), _render_plan)
        return
    with app.output.show_progress() as progress:
        outcome = study.run(progress=progress)
    counts = {name: value for name, value in asdict(outcome).items() if name != "errors"}
    app.output.document(counts, _render_outcome)
    if outcome.failed or outcome.missing:
        raise click.exceptions.Exit(Exit.PARTIAL)


@study.command()
@click.argument("folder", metavar="DIR", type=FOLDER)
@output_options(lists=False)
@pass_app
def report(app: App, /, folder: Path) -> None:
    """Write report.html, report.md, summary.json and pictures/ from what a study in DIR has found."""
    app.output.document(loradex.report_study(folder), _render_report)


@study.command("list")
@output_options(lists=True)
@pass_app
def list_(app: App, /) -> None:
    """The studies that come with the program."""
    rows = loradex.built_in_studies()
    if app.output.format is Format.JSON:
        app.output.document({"studies": list(rows)}, str)
    else:
        app.output.rows(rows, (Column("study"), Column("title")))


def _render_plan(plan: loradex.StudyPlan) -> str:
    from catalog.pictures import count_noun

    kinds = ", ".join(f"{kind} {count}" for kind, count in plan.kinds.items())
    cells, steps = count_noun(plan.cells, "cell"), count_noun(plan.steps, "step")
    head = f"{cells} of {steps}, {plan.done:,} of them done: {kinds}"
    return "\n".join([head, *plan.sentences()])


def _render_outcome(counts: dict[str, Any]) -> str:
    from catalog.pictures import count_noun

    done = count_noun(counts["done"], "cell")
    return (
        f"{done} done, {counts['failed']:,} failed, {counts['missing']:,} missing\n"
        f"next: loradex study report {counts['folder']}"
    )


def _render_report(report: loradex.StudyReport) -> str:
    return "\n".join([*report.says, "", f"page      {report.page}", f"markdown  {report.markdown}"])
