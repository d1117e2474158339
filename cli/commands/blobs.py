"""`loradex blobs`: the weights that are kept in the data folder, each under the sha256 of its bytes."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

import click

from catalog.database import kept, parse_url, reading_if_any, writing
from catalog.files import BlobStore, Damage
from cli.app import App, Exit, pass_app
from cli.output import output_options
from crawler.fetch import repair as fetch_again
from crawler.hub import Hub, HubSettings

_MEGABYTE = 10**6


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
    store = BlobStore(app.settings.blobs)
    damaged = _damaged(app, store)
    found = {
        "ok": not damaged,
        "damaged": [asdict(damage) for damage in damaged],
        "partial": [asdict(blob) for blob in store.partial_files()],
        **_totals(store),
    }
    app.output.document(found, _render_verified)
    if damaged:
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
    store = BlobStore(app.settings.blobs)
    damaged = _damaged(app, store)
    separated = store.separate()
    with reading_if_any(app.settings) as session:
        places = {one.sha256: kept.origins(session, app.settings.pools, one.sha256) for one in damaged}
    with Hub(HubSettings.from_environment()) as hub, app.output.progress("fetching") as bar:
        left = fetch_again(store, places, hub, bar.working)
    found = {
        "ok": not left,
        "repaired": [asdict(damage) for damage in damaged if damage.sha256 not in left],
        "left": [
            asdict(damage) | {"why": left[damage.sha256]} for damage in damaged if damage.sha256 in left
        ],
        "separated": separated,
        **_totals(store),
    }
    app.output.document(found, _render_repaired)
    if left:
        click.get_current_context().exit(Exit.ERROR)


@blobs.command()
@click.option("--yes", is_flag=True, help="Delete them.")
@click.option(
    "--only-catalog",
    is_flag=True,
    help="Say that no other catalog uses the data folder, where it is too old to tell.",
)
@output_options(lists=False)
@pass_app
def gc(app: App, yes: bool, only_catalog: bool) -> None:
    """List the kept files that no adapter of the catalog, of an older commit either, and no pool names.

    With --yes they are deleted, and so is what has arrived of unfinished downloads of such files. Refused
    while another process writes to the catalog or works in the data folder, and where another catalog uses
    the files too. What `base keep` keeps is never among them.
    """
    store = BlobStore(app.settings.blobs)
    with writing(app.settings, create=False) as session:
        url = parse_url(app.settings.catalog_url)
        kept.refuse_other_catalogs(url, store, only=only_catalog, deleting=yes)
        found = kept.find_unneeded(session, app.settings, store)
        if yes:
            store.remove_all(blob.sha256 for blob in (*found.files, *found.partial))
    app.output.document({**asdict(found), "bytes": found.size, "deleted": yes}, _render_collected)
    if (found.files or found.partial) and not yes:
        app.output.say("Add --yes to delete them.")


def _damaged(app: App, store: BlobStore) -> list[Damage]:
    with app.output.progress("reading MB") as bar:
        return store.find_damage(lambda done, total: bar.working(done // _MEGABYTE, total // _MEGABYTE))


def _totals(store: BlobStore) -> dict[str, int]:
    sizes = [blob.size for blob in store.blobs()]
    return {"files": len(sizes), "bytes": sum(sizes)}


def _render_verified(found: dict[str, Any]) -> str:
    lines = [f"damaged   {one['sha256']}  {one['why']}" for one in found["damaged"]]
    lines += [f"partial   {one['sha256']}  {one['size']:,} bytes have arrived" for one in found["partial"]]
    read = f"{found['files']:,} files with {found['bytes']:,} bytes were read"
    return "\n".join(
        [*lines, f"{read}, {len(found['damaged'])} are damaged" if lines else f"{read}, all are right"]
    )


def _render_repaired(found: dict[str, Any]) -> str:
    lines = [f"repaired  {one['sha256']}" for one in found["repaired"]]
    lines += [f"separated {sha256}" for sha256 in found["separated"]]
    lines += [f"left      {one['sha256']}  {one['why']}" for one in found["left"]]
    read = f"{found['files']:,} files with {found['bytes']:,} bytes were read"
    return "\n".join([*lines, read if lines else f"{read}, all are right"])


def _render_collected(found: dict[str, Any]) -> str:
    verb = "deleted" if found["deleted"] else "unneeded"
    lines = [f"{verb:<10}{one['sha256']}  {one['size']:>15,} bytes" for one in found["files"]]
    lines += [
        f"{verb:<10}{one['sha256']}  {one['size']:>15,} bytes of a download" for one in found["partial"]
    ]
    return "\n".join([*lines, f"{len(lines):,} files with {found['bytes']:,} bytes"])
