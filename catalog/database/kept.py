"""Kept files: the catalogs that use them, the rows that name them, and where they can be fetched again.

The file `catalogs.json` in the folder of blobs lists the catalogs whose commands stored files there, by path
or URL. The references of another catalog are unknown, so that files shared by several catalogs are never
collected.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from filelock import FileLock
from sqlalchemy import URL, ColumnElement, select
from sqlalchemy.orm import Session

from catalog.database.engine import place, sqlite_file
from catalog.database.schema import Adapter, Repository, SavedPool, WeightsFile
from catalog.errors import ConfigError, LoradexError, StorageError
from catalog.files import Blob, BlobStore, in_use, load_json, read_up_to, replace_file
from catalog.pools import MANIFEST_NAME, Manifest, parse_manifest, read_manifest
from catalog.settings import Settings

REGISTER = "catalogs.json"
_MOST_REGISTER = 1 << 20
_BLOCK = 500


@dataclass(frozen=True)
class Origin:
    """A file of a repository at a commit that has the bytes of a blob."""

    repository: str
    commit: str
    path: str
    size: int


@dataclass(frozen=True)
class Register:
    """The catalogs that use a folder of blobs; `complete` unless blobs were there before the list began."""

    catalogs: tuple[str, ...]
    complete: bool


def register_catalog(url: URL, blobs: BlobStore) -> None:
    """Records that the catalog at this URL uses the blobs; does nothing if the folder is not writable."""
    name = catalog_name(url, blobs)
    with suppress(OSError):
        if name in _read(blobs).catalogs:
            return
        blobs.root.mkdir(parents=True, exist_ok=True)
        with FileLock(blobs.root / f"{REGISTER}.lock"):
            register = _read(blobs)
            _write(blobs, Register(tuple(sorted({*register.catalogs, name})), register.complete))


def catalog_name(url: URL, blobs: BlobStore) -> str:
    """The name of a catalog in the register: a path relative to the data folder, an absolute one, or a
    URL."""
    if url.get_backend_name() != "sqlite":
        # The options may name a schema: the same database may hold several catalogs.
        options = url.query.get("options", "")
        return f"{place(url)} {options}".rstrip()
    file, data = sqlite_file(url).resolve(), blobs.root.parent.resolve()
    return str(file.relative_to(data) if file.is_relative_to(data) else file)


def refuse_other_catalogs(url: URL, blobs: BlobStore, *, only: bool, deleting: bool) -> None:
    """Raises StorageError if another catalog uses the blobs, or, before deleting, if that is unknown.

    `only` asserts that no other one does.
    """
    register, mine = _read(blobs), catalog_name(url, blobs)
    other_catalogs = [name for name in register.catalogs if name != mine]
    if other_catalogs:
        raise StorageError(
            f"The catalog {other_catalogs[0]} uses the files in {blobs.root} too; if it no longer exists, "
            f"remove its name from {blobs.root / REGISTER}"
        )
    if deleting and not (register.complete or only):
        raise StorageError(
            f"It is not known which catalogs use {blobs.root}, which is older than their list; if this is "
            "the only one, add `only_catalog=True`"
        )
    if deleting and not register.complete:
        _write(blobs, Register((mine,), complete=True))


@dataclass(frozen=True)
class Unneeded:
    """Blobs that neither an adapter nor a pool names, and partial downloads of such blobs."""

    files: tuple[Blob, ...]
    partial: tuple[Blob, ...]

    @property
    def size(self) -> int:
        """The bytes of all of them."""
        return sum(blob.size for blob in (*self.files, *self.partial))


def find_unneeded(session: Session, settings: Settings, blobs: BlobStore) -> Unneeded:
    """The blobs that no adapter of the catalog, including older commits, and no pool names.

    Raises StorageError if another process uses the data folder: it may be about to name some.
    """
    if in_use(settings.data):
        raise StorageError(f"another process uses {settings.data}: wait until it has ended")
    complete, partial = list(blobs.blobs()), blobs.partial_files()
    digests = {blob.sha256 for blob in (*complete, *partial)}
    needed = _digests_in_use(session, settings.pools, sorted(digests))
    return Unneeded(
        tuple(blob for blob in complete if blob.sha256 not in needed),
        tuple(blob for blob in partial if blob.sha256 not in needed),
    )


def _digests_in_use(session: Session, pools: Path, digests: Sequence[str]) -> set[str]:
    digests_in_use = set[str]()
    for start in range(0, len(digests), _BLOCK):
        block = digests[start : start + _BLOCK]
        rows = select(WeightsFile.digest).join(Adapter, _carries()).where(WeightsFile.digest.in_(block))
        digests_in_use.update(session.scalars(rows.distinct()))
    for manifest in _manifests(session, pools):
        digests_in_use.update(file.sha256 for member in manifest.members for file in member.files)
    return digests_in_use


def origins(session: Session | None, pools: Path, digest: str) -> list[Origin]:
    """Where a file can be fetched again, the places of current adapters first; each once.

    Without a session only the manifests in the folder `pools` are used.
    """
    places = _places_of_adapters(session, digest) if session else []
    for manifest in _manifests(session, pools):
        places += [
            Origin(member.repository, member.commit, _path(member.subfolder, file.name), file.size)
            for member in manifest.members
            for file in member.files
            if file.sha256 == digest
        ]
    return list(dict.fromkeys(places))


def _places_of_adapters(session: Session, digest: str) -> list[Origin]:
    rows = session.execute(
        select(Repository.name, Adapter.commit, Adapter.subfolder, Adapter.weights_name, WeightsFile.size)
        .join(Adapter.repository)
        .join(WeightsFile, _carries())
        .where(WeightsFile.digest == digest)
        .order_by(Repository.gone_at.is_not(None), Adapter.current.desc(), Repository.name, Adapter.id)
    )
    return [Origin(name, commit, _path(folder, file), size) for name, commit, folder, file, size in rows]


def _carries() -> ColumnElement[bool]:
    """Whether an adapter has a weights file: by its sha256, or by git's name for it before it was read."""
    return Adapter.weights_digest.in_((WeightsFile.digest, WeightsFile.git_oid))


def _path(subfolder: str, name: str | None) -> str:
    return "/".join(filter(None, (subfolder, name)))


def _manifests(session: Session | None, pools: Path) -> Iterator[Manifest]:
    """The pools of the catalog, and those whose manifest lies in the folder."""
    for text in session.scalars(select(SavedPool.manifest).order_by(SavedPool.name)) if session else ():
        yield parse_manifest(text.encode())
    for file in sorted(pools.glob(f"*/{MANIFEST_NAME}")):
        with suppress(LoradexError):  # a file of another program
            yield read_manifest(file)


def _read(blobs: BlobStore) -> Register:
    """The register; raises StorageError if its content is not valid."""
    file = blobs.root / REGISTER
    try:
        document: Any = load_json(read_up_to(file, _MOST_REGISTER) or b"", max_bytes=_MOST_REGISTER)
        return Register(tuple(map(str, document["catalogs"])), document["complete"] is True)
    except FileNotFoundError:
        return Register((), complete=next(blobs.blobs(), None) is None)
    except (ConfigError, KeyError, TypeError) as error:
        raise StorageError(
            f"{file} is not a list of catalogs: move it away, and run the command again"
        ) from error


def _write(blobs: BlobStore, register: Register) -> None:
    file = blobs.root / REGISTER
    document = {"catalogs": list(register.catalogs), "complete": register.complete}
    with replace_file(file) as new:
        new.write_text(json.dumps(document, indent=1) + "\n", encoding="utf-8")
