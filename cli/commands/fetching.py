"""Where the commands that need a pool's files get them."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import click

from catalog.database import parse_url, reading_if_any, register_catalog
from catalog.errors import StorageError
from catalog.files import BlobStore, at_work, is_refused, may_write
from catalog.pools import Fetch, Manifest
from catalog.selection import documents_of
from cli.app import App
from crawler.fetch import Fetcher
from crawler.hub import Hub, HubSettings


def folder_for_files(folder: Path) -> Path:
    """The folder, made if need be; where it takes no writing, another one that goes when the command ends."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        if not is_refused(error):
            raise StorageError(f"The folder {folder} cannot be made: {error.strerror}.") from error
    if folder.is_dir() and may_write(folder):
        return folder
    return Path(click.get_current_context().with_resource(tempfile.TemporaryDirectory()))


@contextmanager
def fetching(app: App, manifest: Manifest) -> Iterator[Fetch]:
    """What gives the content of pinned files: from the catalog and the kept blobs, else from the Hub."""
    blobs = BlobStore(app.settings.blobs)
    register_catalog(parse_url(app.settings.catalog_url), blobs)
    with ExitStack() as stack:
        stack.enter_context(at_work(app.settings.data))
        session = stack.enter_context(reading_if_any(app.settings))
        documents = documents_of(session, manifest) if session else {}
        hub = stack.enter_context(Hub(HubSettings.from_environment()))
        yield Fetcher(blobs, documents, hub)
