"""`loradex pools` and `pool`: pinned selections, as manifests and as files."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import asdict
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import Any

import click

from catalog.adapters import USES
from catalog.database import pool_store, reading, reading_if_any, writing
from catalog.files import BlobStore
from catalog.pools import (
    EXPORT_RECORD,
    FORMS,
    Manifest,
    Member,
    PinnedFile,
    PoolProblem,
    export,
    in_export,
    license_problems,
    load_problems_of,
    misread_members,
    read_manifest,
    read_record,
    rewritten_members,
    verify_files,
)
from cli.app import App, Exit, pass_app
from cli.commands.select import render_pool, save_manifest
from cli.output import Column, output_options
from crawler.fetch import hub_problems
from crawler.hub import Hub, HubSettings
from loradex.fetching import fetching
from loradex.members import find_manifest

LIST = (
    Column("pool"),
    Column("members", right=True),
    Column("by"),
    Column("base"),
    Column("use"),
    Column("digest", show=lambda digest: digest[:12]),
)
PROBLEMS = (Column("kind"), Column("detail"))


@click.command("pools")
@output_options(lists=True)
@pass_app
def pools_(app: App) -> None:
    """List the pools of the catalog."""
    with reading(app.settings) as session:
        app.output.rows(pool_store.pools(session), LIST)


@click.group()
def pool() -> None:
    """One pool: POOL is its name, a pool.json, or the folder of one."""


@pool.command()
@click.argument("pool")
@output_options(lists=False)
@pass_app
def show(app: App, pool: str) -> None:
    """The manifest: members, how they were chosen, what to compare them with."""
    manifest = find_manifest(app.settings, pool)
    app.output.document({**asdict(manifest), "digest": manifest.digest}, partial(render_pool, places={}))


@pool.command("export")
@click.argument("pool")
@click.option(
    "--to",
    type=click.Path(file_okay=False, path_type=Path),
    help="Write below this folder.  [default: pools in the data folder]",
)
@click.option(
    "--format",
    "form",
    type=click.Choice(list(FORMS)),
    default="peft",
    show_default=True,
    help="peft: folders that PEFT loads. hub: a Hub for `hub serve`. mergekit, vllm: recipes. ids: a list.",
)
@click.option("--weights", is_flag=True, help="With the files; what is not kept is fetched at its commit.")
@click.option("--copy", is_flag=True, hidden=True, help="Files are always copied; kept for older scripts.")
@click.option("--as-is", is_flag=True, help="Change no byte, also where PEFT does not load it (as hub does).")
@output_options(lists=False)
@pass_app
def export_(
    app: App, /, pool: str, to: Path | None, form: str, weights: bool, as_is: bool, **_copy: bool
) -> None:
    """Write a pool as files, every byte checked against its sha256; its folder is NAME-DIGEST.

    Where PEFT would not find the tensors under their names, or not load the config, it is written as PEFT
    loads it; export.json has the sha256 of both, pool.json that of the source. Files are copies: an edit in
    an export does not reach the data folder. The controls that belong to it are exported beside it.
    """
    manifest = find_manifest(app.settings, pool)
    chosen = next(one for one in FORMS if one == form)
    below, made = to or app.settings.pools, []
    problems: list[PoolProblem] = []
    misread: dict[str, list[str]] = {}
    for one in (manifest, *_controls(app, manifest)):
        with fetching(app.settings, one) as fetch, app.output.progress("exporting") as bar:
            chosen_fetch = fetch if weights else None
            made.append(export(one, below, chosen, chosen_fetch, bar.working, as_is=as_is))
        if weights:
            problems += _export_notes(app, one, made[-1])
            misread |= misread_members(one, made[-1]) if one is manifest else {}
    found: dict[str, Any] = {"folders": [str(place) for place in made], "digest": manifest.digest}
    if problems:
        found["problems"] = [asdict(problem) for problem in problems]
    if misread:
        found["misread"] = [{"detail": detail, "members": names} for detail, names in misread.items()]
    for detail, names in misread.items():
        app.output.say(f"misread by other engines: {_some(names)}. {detail}")
    app.output.document(found, lambda found: "\n".join(found["folders"]))


def _some(names: Sequence[str]) -> str:
    """The first few of these names, and how many more there are."""
    more = f" and {len(names) - 3} more" if len(names) > 3 else ""
    return f"{', '.join(names[:3])}{more}"


def _export_notes(app: App, manifest: Manifest, folder: Path) -> list[PoolProblem]:
    """Says which members were written in other bytes, and gives those that PEFT does not load even so."""
    record = read_record(folder)
    changed = rewritten_members(manifest, record) if record is not None else []
    if changed:
        app.output.say(f"written as PEFT loads it, see {EXPORT_RECORD}: {', '.join(changed)}")
    problems = load_problems_of(manifest, folder)
    for problem in problems:
        app.output.say(f"not loaded by PEFT: {problem.detail}")
    return problems


@pool.command()
@click.argument("pool")
@click.option("--use", type=click.Choice(list(USES)), help="Judge licences by another use.")
@click.option("--hub", "online", is_flag=True, help="Ask the Hub whether it still has every commit.")
@output_options(lists=False)
@pass_app
def verify(app: App, pool: str, use: str | None, online: bool) -> None:
    """Find what is wrong with a pool: changed bytes, missing files, vanished commits, licences.

    In an export its files are read, and compared with export.json, which says what was written for each
    pinned file; members that PEFT does not load are named. Of a pool by name those that are kept are read.
    Exit code 1 where something is wrong; what PEFT does not load is not, after an export --as-is.
    """
    manifest = find_manifest(app.settings, pool)
    judged = next((one for one in USES if one == use), None)
    with app.output.progress("reading") as bar:
        problems, lenient = _file_problems(app, manifest, Path(pool), bar.working)
        problems += license_problems(manifest, judged)
        if online:
            with Hub(HubSettings.from_environment()) as hub:
                problems += hub_problems(manifest, hub, bar.working)
    told = [asdict(problem) for problem in problems]
    wrong = [problem for problem in problems if not (lenient and problem.kind == "peft")]
    found = {"ok": not wrong, "problems": told, "digest": manifest.digest}
    app.output.document(found, partial(_render_problems, problems=problems))
    if wrong:
        click.get_current_context().exit(Exit.ERROR)


@pool.command("import")
@click.argument("file", type=click.Path(path_type=Path))
@click.option("--weights", is_flag=True, help="Fetch every file at its pinned commit now, and check it.")
@click.option("--replace", "instead", is_flag=True, help="Take the place of another pool of this name.")
@output_options(lists=False)
@pass_app
def import_(app: App, file: Path, weights: bool, instead: bool) -> None:
    """Take over a pool that somebody exported: FILE is its pool.json or folder."""
    manifest = read_manifest(file)
    with ExitStack() as stack:
        if weights:
            # Nobody may collect what is fetched before the pool names it.
            fetch = stack.enter_context(fetching(app.settings, manifest))
            with app.output.progress("fetching") as bar:
                for done, member in enumerate(manifest.members):
                    bar.working(done, len(manifest.members))
                    for pinned in member.files:
                        fetch(member, pinned)
        session = stack.enter_context(writing(app.settings))
        pool_store.save_pool(session, manifest, datetime.now(UTC), replace=instead)
        session.commit()
    places = {manifest.name: save_manifest(app, manifest)}
    found = {**asdict(manifest), "digest": manifest.digest}
    app.output.document(found, partial(render_pool, places=places))


def _places(app: App, manifest: Manifest, pool: Path) -> Callable[[Member, PinnedFile], Path | None]:
    """Where the files of a pool are: in its export where that has them, else among those that are kept."""
    exported = in_export(manifest, pool if pool.is_dir() else pool.parent) if pool.exists() else None
    if exported is not None:
        return exported
    blobs = BlobStore(app.settings.blobs)
    return lambda _, file: blobs.path(file.sha256) if blobs.has(file.sha256) else None


def _file_problems(
    app: App, manifest: Manifest, pool: Path, progress: Callable[[int, int], None]
) -> tuple[list[PoolProblem], bool]:
    """What is wrong with the files of a pool, and whether it was exported as it is, for PEFT or not."""
    folder = pool if pool.is_dir() else pool.parent
    record = read_record(folder) if pool.exists() else None
    problems = verify_files(manifest, _places(app, manifest, pool), progress, record)
    if record is None:
        return problems, True
    harmed = {problem.member for problem in problems}
    problems += [problem for problem in load_problems_of(manifest, folder) if problem.member not in harmed]
    return problems, record.as_is


def _controls(app: App, manifest: Manifest) -> list[Manifest]:
    """The pools that a manifest names as controls, as far as the catalog holds them."""
    names = [str(control["pool"]) for control in manifest.controls if "pool" in control]
    with reading_if_any(app.settings) as session:
        held = {row["pool"] for row in pool_store.pools(session)} if session and names else set()
        found = [pool_store.find_pool(session, name) for name in names if session and name in held]
    for name in names:
        if name not in held:
            app.output.say(f"its control {name} is not in this catalog")
    return found


def _render_problems(found: dict[str, Any], problems: list[PoolProblem]) -> str:
    if not problems:
        return f"nothing is wrong with it ({found['digest'][:12]})"
    return "\n".join(f"{problem.kind:<9}{problem.detail}" for problem in problems)
