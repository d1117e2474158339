"""A Hub in a folder, for tests, for trying things out, and for clusters without internet."""

from __future__ import annotations

from pathlib import Path

import click

from cli.app import App, pass_app
from cli.options import EXISTING_FOLDER
from loradex.hub import serve_hub


@click.group()
def hub() -> None:
    """Serve a folder of repositories as a Hub."""


@hub.command()
@click.argument("folder", metavar="DIR", type=EXISTING_FOLDER)
@click.option("--host", default="127.0.0.1", help="The address to listen on.")
@click.option("--port", default=8000, type=click.IntRange(0, 65535), help="0 takes any free port.")
@pass_app
def serve(app: App, folder: Path, host: str, port: int) -> None:
    """Serve DIR/OWNER/NAME/… over the Hub's protocol until interrupted.

    huggingface_hub, transformers and peft use it when HF_ENDPOINT names it. Data sets lie at
    DIR/datasets/OWNER/NAME/…. Folders that are not served, or
    that no crawl would list, are named once, with the reason.
    """
    with app.output.show_progress() as progress:
        serve_hub(folder, host=host, port=port, progress=progress)
