"""The model card of an adapter: from the catalog, or from the Hub where a snapshot left it out."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from catalog.adapters import AdapterReference, DocumentRecord
from catalog.database import reading, store, writing
from catalog.errors import HubAccessError, IntegrityError
from catalog.search import browse, listing
from crawler.hub import Hub, HubSettings, RemoteFile, adapter_folders
from crawler.reading import parse_card

if TYPE_CHECKING:
    from catalog.settings import Settings

_CARD = "README.md"


def read_card(settings: Settings, adapter: str) -> str | None:
    """The card as its README.md has it, None without one; one that is fetched is written into the catalog."""
    with reading(settings) as session:
        row = browse.find_adapter(session, AdapterReference.parse(adapter))
        left_out, digest, source = row.card_left_out, row.left_out_card, listing.card_source(session, row)
        repository, hub_id = row.repository.name, row.repository.hub_id
        commit, subfolder, files = row.commit, row.subfolder, row.files
    if not left_out:
        return source
    with Hub(HubSettings.from_environment()) as hub:
        file = _own_card(files, subfolder, digest) or _card_above(hub, repository, commit, subfolder, digest)
        content = hub.small_file(repository, commit, file)
    digest = digest or file.oid or file.sha256 or ""
    card = parse_card(content)
    with writing(settings, create=False) as session:
        document = DocumentRecord(digest, content)
        store.save_card(session, hub_id, commit, subfolder, document, card.text, card.front)
        session.commit()
    return content.decode("utf-8", "replace")


def _own_card(files: list[Mapping[str, Any]] | None, subfolder: str, digest: str | None) -> RemoteFile | None:
    """The card in the adapter's own folder."""
    if digest is None:
        return None
    path = f"{subfolder}/{_CARD}" if subfolder else _CARD
    sizes = [file["size"] for file in files or () if file["name"] == _CARD and file["digest"] == digest]
    is_git = len(digest) == 40
    return (
        RemoteFile(path, sizes[0], digest if is_git else None, None if is_git else digest) if sizes else None
    )


def _card_above(hub: Hub, repository: str, commit: str, subfolder: str, digest: str | None) -> RemoteFile:
    """The card of a folder above, which the list of the repository's files names; of any digest if None."""
    folders = adapter_folders(hub.tree(repository, commit).files)
    file = next((folder.card for folder in folders if folder.subfolder == subfolder), None)
    if file is None:
        raise HubAccessError(f"{repository}@{commit} no longer has a card.", status="entry_gone")
    if digest is not None and digest not in (file.oid, file.sha256):
        raise IntegrityError(f"{repository}@{commit} has another card than the snapshot says.")
    return file
