"""`loradex blobs`: the weights that are kept in the data folder, each under the sha256 of its bytes."""

from __future__ import annotations

import click

from cli.app import App, Exit, pass_app
from cli.output import output_options
from loradex.results import GarbageReport, WeightsCheck, WeightsRepair


@click.group()
def blobs() -> None:
    """The weights that are kept in the data folder, each under the sha256 of its bytes."""


@blobs.command()
@output_options(lists=False)
@pass_app
def verify(app: App) -> None:
    """Read every kept file and name those that have other bytes; exit code 1 where there is one.

    What has arrived of unfinished downloads is listed too: the next crawl with --weights keep goes on there.
    """
    with app.output.show_progress() as progress:
        report = app.catalog.verify_weights(progress=progress)
    app.output.document(report, _render_verified)
    if not report.ok:
        app.output.say("`loradex blobs repair` fetches what the Hub still has.")
        click.get_current_context().exit(Exit.ERROR)


@blobs.command()
@output_options(lists=False)
@pass_app
def repair(app: App) -> None:
    """Read every kept file, and fetch those that have other bytes again; exit code 1 where one is left.

    Each comes from a repository and commit that the catalog or a pool names. A damaged file is replaced once
    the new one is verified, and stays where none can be had. Kept files that an export of an earlier version
    shares, as a hard link, become files of their own.
    """
    with app.output.show_progress() as progress:
        report = app.catalog.repair_weights(progress=progress)
    app.output.document(report, _render_repaired)
    if not report.ok:
        click.get_current_context().exit(Exit.ERROR)


@blobs.command()
@click.option("--yes", "delete", is_flag=True, help="Delete them.")
@click.option(
    "--only-catalog",
    is_flag=True,
    help="Say that no other catalog uses the data folder, where it is too old to tell.",
)
@output_options(lists=False)
@pass_app
def gc(app: App, delete: bool, only_catalog: bool) -> None:
    """List the kept files that no adapter of the catalog, of an older commit either, and no pool names.

    With --yes they are deleted, and so is what has arrived of unfinished downloads of such files. Refused
    while another process writes to the catalog or works in the data folder, and where another catalog uses
    the files too. What `base keep` keeps is never among them.
    """
    report = app.catalog.collect_garbage(delete=delete, only_catalog=only_catalog)
    app.output.document(report, _render_collected)
    if (report.files or report.partial) and not delete:
        app.output.say("Add --yes to delete them.")


def _render_verified(report: WeightsCheck) -> str:
    lines = [f"damaged   {blob.sha256}  {blob.why}" for blob in report.damaged]
    lines += [f"partial   {blob.sha256}  {blob.size:,} bytes have arrived" for blob in report.partial]
    count = f"{report.files:,} files with {report.bytes:,} bytes were read"
    return "\n".join(
        [*lines, f"{count}, {len(report.damaged)} are damaged" if lines else f"{count}, all are right"]
    )


def _render_repaired(report: WeightsRepair) -> str:
    lines = [f"repaired  {blob.sha256}" for blob in report.repaired]
    lines += [f"separated {sha256}" for sha256 in report.separated]
    lines += [f"left      {blob.sha256}  {blob.why}" for blob in report.left]
    count = f"{report.files:,} files with {report.bytes:,} bytes were read"
    return "\n".join([*lines, count if lines else f"{count}, all are right"])


def _render_collected(report: GarbageReport) -> str:
    verb = "deleted" if report.deleted else "unneeded"
    lines = [f"{verb:<10}{blob.sha256}  {blob.size:>15,} bytes" for blob in report.files]
    lines += [f"{verb:<10}{blob.sha256}  {blob.size:>15,} bytes of a download" for blob in report.partial]
    return "\n".join([*lines, f"{len(lines):,} files with {report.bytes:,} bytes"])
