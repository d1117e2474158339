"""Where calls that need the files of a pool get them, and where they put them."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

from catalog.database import parse_url, reading_if_any, register_catalog
from catalog.errors import StorageError
from catalog.files import BlobStore, at_work, is_refused, may_write
from catalog.pools import Fetch, Manifest
from catalog.selection import documents_of
from catalog.settings import Settings
from crawler.fetch import Fetcher
from crawler.hub import Hub, HubSettings


@contextmanager
def writable_folder(folder: Path) -> Iterator[Path]:
    """The folder, made if need be; where it cannot be written, a temporary one that the block's end removes.

    Raises StorageError where the folder cannot be made for another reason than missing permission.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        if not is_refused(error):
            raise StorageError(f"The folder {folder} cannot be made: {error.strerror}.") from error
    if folder.is_dir() and may_write(folder):
        yield folder
    else:
        with tempfile.TemporaryDirectory() as temporary:
            yield Path(temporary)


@contextmanager
def fetching(settings: Settings, manifest: Manifest) -> Iterator[Fetch]:
    """What gives the content of pinned files: from the catalog and the kept blobs, else from the Hub."""
    blobs = BlobStore(settings.blobs)
    register_catalog(parse_url(settings.catalog_url), blobs)
    with ExitStack() as stack:
        stack.enter_context(at_work(settings.data))
        session = stack.enter_context(reading_if_any(settings))
        documents = documents_of(session, manifest) if session else {}
        hub = stack.enter_context(Hub(HubSettings.from_environment()))
        yield Fetcher(blobs, documents, hub)
