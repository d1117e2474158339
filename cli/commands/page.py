"""`loradex page`: the catalog in the browser, or as a folder of files."""

from __future__ import annotations

from dataclasses import asdict
from functools import partial
from pathlib import Path

import click

from cli.app import App, pass_app
from cli.options import FOLDER, where_option
from cli.output import label_lines, output_options
from loradex.page import PageExport, export_page, serve_page
from loradex.text import format_bytes


@click.group(invoke_without_command=True)
@click.option("--host", default="127.0.0.1", help="The address to listen on; another one cannot save.")
@click.option("--port", default=0, type=click.IntRange(0, 65535), help="0 takes any free port.")
@click.option("--read-only", is_flag=True, help="Nothing can be saved.")
@click.option("--browser/--no-browser", default=True, help="Open the page in the browser.")
@click.pass_context
def page(context: click.Context, host: str, port: int, read_only: bool, browser: bool) -> None:
    """Browse, filter and compare adapters in the browser; save pools.

    Served on this machine until interrupted. `loradex page export DIR` writes it as files.
    """
    if context.invoked_subcommand is not None:
        return
    app: App = context.obj
    with app.output.show_progress() as progress:
        serve_page(app.catalog, host=host, port=port, read_only=read_only, browser=browser, progress=progress)


@page.command()
@click.argument("folder", metavar="DIR", type=FOLDER)
@where_option
@click.option("--cards/--no-cards", default=True, help="Write the cards.")
@click.option("--with-private", is_flag=True, help="Write private and gated repositories, too.")
@click.option("--with-notes", is_flag=True, help="Write your own tags and notes, too.")
@click.option("--overwrite", is_flag=True, help="Replace an earlier export.")
@output_options(lists=False)
@pass_app
def export(
    app: App, /, folder: Path, where: str, cards: bool, with_private: bool, with_notes: bool, overwrite: bool
) -> None:
    """Write the page as files into DIR, for a web server or a static Space.

    Browsers refuse scripts of files: try it by `python -m http.server -d DIR`.
    """
    with app.output.show_progress() as progress:
        report = export_page(
            app.catalog,
            folder,
            where=where,
            cards=cards,
            with_private=with_private,
            with_notes=with_notes,
            overwrite=overwrite,
            progress=progress,
        )
    app.output.document(asdict(report), partial(_render, report))


def _render(report: PageExport, _document: object) -> str:
    left_out = {"private": report.private, "gated": report.gated}
    rows = [
        ("folder", str(report.folder)),
        ("adapters", f"{report.adapters:,}"),
        ("files", f"{report.files:,}, {format_bytes(report.bytes)}"),
        *((f"{name}, left out", f"{count:,}") for name, count in left_out.items() if count),
    ]
    return label_lines(rows)
