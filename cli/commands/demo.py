"""`loradex demo`: the main job from end to end on the sample Hub, in commands that a user can repeat."""

from __future__ import annotations

import os
import shlex
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import click

from catalog.errors import NotFoundError
from cli.app import App, pass_app
from crawler.localhub import LocalHub

SAMPLE = Path(__file__).parents[2] / "data" / "sample_hub"
STEPS = (
    ("crawl", "--any-base", "--weights", "keep"),
    ("adapters", "--verdict", "accepted"),
    ("adapters", "--verdict", "skipped"),
    ("show", "zoo/overruling"),
    ("crawl", "--any-base", "--weights", "keep"),
)


@click.command()
@pass_app
def demo(app: App) -> None:
    """Crawl the sample Hub into a fresh catalog and look at it.

    Writes the folder `demo` in the data folder, which is emptied first.
    """
    if not SAMPLE.is_dir():
        raise NotFoundError(f"The sample Hub is not at {SAMPLE}; run the demo from a clone of the project.")
    place = app.settings.data / "demo"
    shutil.rmtree(place, ignore_errors=True)
    with LocalHub(SAMPLE) as hub, _environment(HF_ENDPOINT=hub.url, LORADEX_DATA=str(place)):
        app.output.say(f"A Hub in a folder: {hub.url} serves {SAMPLE.name}")
        for step in STEPS:
            _run(step)
    app.output.say(f"The catalog is {place / 'catalog.db'}.")
    app.output.say("Next: `loradex crawl` does the same against the real Hub; `loradex --help`.")


def _run(arguments: tuple[str, ...]) -> None:
    from cli.main import loradex

    click.echo(f"\n$ loradex {shlex.join(arguments)}")
    if code := loradex.main(list(arguments), prog_name="loradex", standalone_mode=False):
        raise SystemExit(code)


@contextmanager
def _environment(**values: str) -> Iterator[None]:
    """The commands of the demo read the environment as every command does; afterwards it is as before."""
    before = {name: os.environ.get(name) for name in (*values, "LORADEX_CATALOG")}
    os.environ.update(values)
    os.environ.pop("LORADEX_CATALOG", None)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value
