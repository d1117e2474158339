"""Where the commands that need a pool's files get them."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager

from catalog.blobs import BlobStore
from catalog.candidates import documents_of
from catalog.database import reading_if_any
from catalog.export import Fetch
from catalog.pools import Manifest
from cli.app import App
from crawler.fetch import Fetcher
from crawler.hub import Hub, HubSettings


@contextmanager
def fetching(app: App, manifest: Manifest) -> Iterator[Fetch]:
    """What gives the content of pinned files: from the catalog and the kept blobs, else from the Hub."""
    with ExitStack() as stack:
        session = stack.enter_context(reading_if_any(app.settings))
        documents = documents_of(session, manifest) if session else {}
        hub = stack.enter_context(Hub(HubSettings.from_environment()))
        yield Fetcher(BlobStore(app.settings.blobs), documents, hub)
