"""Where the commands that need a pool's files get them."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager

from catalog.blobs import BlobStore
from catalog.candidates import documents_of
from catalog.database import reading_if_any
from catalog.engine import parse_url
from catalog.export import Fetch
from catalog.files import at_work
from catalog.kept import register_catalog
from catalog.pools import Manifest
from cli.app import App
from crawler.fetch import Fetcher
from crawler.hub import Hub, HubSettings


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
