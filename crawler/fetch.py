"""The files of a pool, kept or from the Hub at the pinned commits; checks of the Hub's state."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from catalog.database import Origin
from catalog.errors import HubAccessError, HubPayloadError, IntegrityError, PoolError
from catalog.files import BlobStore, temporary_store
from catalog.pools import Content, Manifest, Member, PinnedFile, PoolProblem
from crawler.hub import BadRow, Hub, RemoteFile, parse_row

WEIGHTS = ".safetensors"


@dataclass(frozen=True)
class Fetcher:
    """Returns the content of a pinned file, verified by its sha256; fetched weights stay in the blob store.

    `documents` are small files known already, by sha256. Without a Hub only kept files are available.
    """

    blobs: BlobStore
    documents: Mapping[str, bytes]
    hub: Hub | None

    def __call__(self, member: Member, file: PinnedFile) -> Content:
        """Raises PoolError if the file is not available or has changed, and HubError for errors of the
        Hub."""
        if file.sha256 in self.documents:
            return Content(data=self.documents[file.sha256])
        if path := self.blobs.path_of(file.sha256):
            return Content(path=path)
        if self.hub is None:
            raise PoolError(f"{member.adapter}: {file.name} is not kept here; fetch it from the Hub.")
        try:
            return self._fetch(self.hub, member, file)
        except HubAccessError as error:
            raise PoolError(
                f"{member.reference}: {file.name} is no longer available ({error.status})."
            ) from error
        except IntegrityError as error:
            raise PoolError(f"{member.reference}: {file.name} has different bytes on the Hub.") from error

    def _fetch(self, hub: Hub, member: Member, file: PinnedFile) -> Content:
        path = f"{member.subfolder}/{file.name}" if member.subfolder else file.name
        remote = RemoteFile(path, file.size, None, file.sha256)
        if file.name.endswith(WEIGHTS):
            return Content(path=hub.download(member.repository, member.commit, remote, self.blobs))
        return Content(data=hub.small_file(member.repository, member.commit, remote))


def repair(
    blobs: BlobStore,
    places: Mapping[str, Sequence[Origin]],
    hub: Hub,
    progress: Callable[[int, int], None],
) -> dict[str, str]:
    """Fetches damaged blobs again, each from the first place that has its bytes; returns the reasons for
    those that failed.

    A blob is replaced once the new bytes are verified, and stays as it is otherwise. Raises HubError and
    StorageError.
    """
    left: dict[str, str] = {}
    for done, (sha256, origins) in enumerate(places.items()):
        progress(done, len(places))
        if why := _fetch_again(blobs, sha256, origins, hub):
            left[sha256] = why
    progress(len(places), len(places))
    return left


def _fetch_again(blobs: BlobStore, sha256: str, origins: Sequence[Origin], hub: Hub) -> str | None:
    """None if the blob was replaced, else the reason why it was not."""
    why = "no adapter and no pool of the catalog names it"
    for origin in origins:
        remote = RemoteFile(origin.path, origin.size, None, sha256)
        try:
            with temporary_store(blobs.root) as fresh:
                hub.download(origin.repository, origin.commit, remote, fresh)
                blobs.take_over(sha256, fresh)
            return None
        except HubAccessError as error:
            why = f"{origin.repository}@{origin.commit} is no longer available ({error.status})"
        except (IntegrityError, HubPayloadError):
            why = f"{origin.repository}@{origin.commit} has different bytes on the Hub now"
    return why


def hub_problems(manifest: Manifest, hub: Hub, progress: Callable[[int, int], None]) -> list[PoolProblem]:
    """The members whose repository or commit the Hub no longer has, or has under another identity or license.

    Two API requests per member.
    """
    problems: list[PoolProblem] = []
    for done, member in enumerate(manifest.members):
        progress(done, len(manifest.members))
        problems += _problems(member, hub)
    progress(len(manifest.members), len(manifest.members))
    return problems


def _problems(member: Member, hub: Hub) -> list[PoolProblem]:
    name = member.adapter
    try:
        row = parse_row(hub.repository(member.repository))
        if isinstance(row, BadRow) or row.hub_id != member.hub_id:
            return [PoolProblem(name, "moved", f"{member.repository} is now another repository on the Hub.")]
        hub.tree(member.repository, member.commit)
    except HubAccessError as error:
        return [
            PoolProblem(name, "vanished", f"{member.reference} is no longer on the Hub ({error.status}).")
        ]
    return []
