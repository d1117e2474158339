"""`loradex pools` and `pool`: pinned selections, as manifests and as files."""

from __future__ import annotations

from dataclasses import asdict
from functools import partial
from pathlib import Path

import click

from catalog.adapters import USES
from catalog.pools import FORMS
from cli.app import App, Exit, pass_app
from cli.options import FOLDER
from cli.output import Column, output_options
from cli.tables import pool_paths, pool_text
from loradex.pool import PoolCheck

COLUMNS = (
    Column("pool"),
    Column("members", right=True),
    Column("by"),
    Column("base"),
    Column("use"),
    Column("digest", show=lambda digest: digest[:12]),
)


@click.command()
@output_options(lists=True)
@pass_app
def pools(app: App) -> None:
    """List the pools of the catalog."""
    app.output.rows(app.catalog.pools(), COLUMNS)


@click.group()
def pool() -> None:
    """One pool: POOL is its name, a pool.json, or the folder of one."""


@pool.command()
@click.argument("pool")
@output_options(lists=False)
@pass_app
def show(app: App, pool: str) -> None:
    """The manifest: members, how they were chosen, what to compare them with, and which engines run them."""
    shown = app.catalog.pool(pool)
    document = shown.document() | {"runs_in": [asdict(row) for row in shown.runs_in()]}
    app.output.document(document, partial(pool_text, places={}))


@pool.command()
@click.argument("pool")
@click.option("--to", type=FOLDER, help="Write below this folder.  [default: pools in the data folder]")
@click.option(
    "--format",
    "form",
    type=click.Choice(list(FORMS)),
    default="peft",
    help="peft: folders that PEFT loads. mergekit, vllm, sglang, lm-eval: recipes. gguf, ollama: GGUF files, "
    "too. hub: a Hub for `hub serve`. ids: a list.",
)
@click.option("--weights", is_flag=True, help="With the files; what is not kept is fetched at its commit.")
@click.option(
    "--copy",
    is_flag=True,
    hidden=True,
    expose_value=False,
    help="Files are always copied; kept for older scripts.",
)
@click.option(
    "--normalised/--not-normalised",
    default=None,
    help="Write the form that every engine reads.  [default: for engines]",
)
@click.option("--as-is", is_flag=True, help="Change no byte, also where PEFT does not load it (as hub does).")
@output_options(lists=False)
@pass_app
def export(
    app: App,
    /,
    pool: str,
    to: Path | None,
    form: str,
    weights: bool,
    as_is: bool,
    normalised: bool | None,
) -> None:
    """Write a pool as files, every byte checked against its sha256; its folder is NAME-DIGEST.

    Where PEFT would not find the tensors under their names, or not load the config, it is written as PEFT
    loads it; export.json has the sha256 of both, pool.json that of the source. Files are copies: an edit in
    an export does not reach the data folder. Its controls are exported next to it.
    """
    with app.output.show_progress() as progress:
        report = app.catalog.pool(pool).export(
            to, form, weights=weights, as_is=as_is, normalised=normalised, progress=progress
        )
    app.output.say_all(report.notes)
    app.output.document(report.document(), lambda document: "\n".join(document["folders"]))


@pool.command()
@click.argument("pool")
@click.option("--use", type=click.Choice(list(USES)), help="Check licenses for another use.")
@click.option("--hub", "online", is_flag=True, help="Ask the Hub whether it still has every commit.")
@output_options(lists=False)
@pass_app
def verify(app: App, pool: str, use: str | None, online: bool) -> None:
    """Find what is wrong with a pool: changed bytes, missing files, vanished commits, licenses.

    In an export its files are read, and compared with export.json, which says what was written for each
    pinned file; members that PEFT does not load are named. Of a pool by name those that are kept are read.
    Exit code 1 where something is wrong; what PEFT does not load is not, after an export --as-is.
    """
    with app.output.show_progress() as progress:
        check = app.catalog.pool(pool).verify(use=use, online=online, progress=progress)
    app.output.document(check, _render_problems)
    if not check.ok:
        click.get_current_context().exit(Exit.ERROR)


@pool.command("import")
@click.argument("file", type=click.Path(path_type=Path))
@click.option("--weights", is_flag=True, help="Fetch every file at its pinned commit now, and check it.")
@click.option("--replace", is_flag=True, help="Take the place of another pool of this name.")
@output_options(lists=False)
@pass_app
def import_(app: App, file: Path, weights: bool, replace: bool) -> None:
    """Take over a pool that somebody exported: FILE is its pool.json or folder."""
    with app.output.show_progress() as progress:
        pool = app.catalog.import_pool(file, weights=weights, replace=replace, progress=progress)
    app.output.document(pool.document(), partial(pool_text, places=pool_paths(pool)))


def _render_problems(check: PoolCheck) -> str:
    if not check.problems:
        return f"nothing is wrong with it ({check.digest[:12]})"
    return "\n".join(f"{problem.kind:<9}{problem.detail}" for problem in check.problems)
