"""A folder of files named by the sha256 of their bytes: a file has exactly the bytes of its name.

Layout below the root: `ab/cdef…` the blobs, `partial/<sha256>` partial downloads,
`partial/<sha256>.etag` the server's own name for those bytes, `partial/locks/` the locks, `verified/` the
record of blobs that were read again (`catalog.files.verified`). A blob appears by one rename, after its size
and hash were checked and its bytes are on the disk; a process killed before that leaves only a partial file.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import re
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from filelock import FileLock

from catalog.errors import DamagedFileError, IntegrityError, StorageError
from catalog.files.disk import copy_file, replace_file, sync, temporary_folder
from catalog.files.verified import Verified, digest_of

_SHA256 = re.compile(r"[0-9a-f]{64}")
_CHUNK = 1 << 20


@dataclass(frozen=True)
class Blob:
    """A file of the store: its name and its size in bytes."""

    sha256: str
    size: int


@dataclass(frozen=True)
class Damage(Blob):
    """A blob that cannot be used, and why."""

    why: str


class BlobWriter:
    """One blob on its way into the store; made by `BlobStore.writer`.

    `present` means that the blob already exists and nothing needs to be written. `resumed` is the number
    of bytes that an earlier writer left, `offset` the number written so far.
    """

    def __init__(self, partial: Path, sha256: str, size: int, *, present: bool, fresh: bool) -> None:
        self.sha256 = sha256
        self.size = size
        self.present = present
        self.offset = 0
        self._partial = partial
        self._etag = partial.with_name(f"{partial.name}.etag")
        self._hash = hashlib.sha256()
        self._file: BinaryIO | None = None
        if not present:
            with _refusals_named(partial):
                self._open(fresh)
        self.resumed = self.offset

    @property
    def validator(self) -> str | None:
        """The server's name for the bytes that `remember` stored, by this writer or an earlier one."""
        return self._etag.read_text("ascii", "replace") if self._etag.is_file() else None

    def remember(self, validator: str | None) -> None:
        """Store the server's name for the bytes next to them; writes one small file, or removes it for
        None."""
        with _refusals_named(self._partial):
            if validator is None:
                self._etag.unlink(missing_ok=True)
            else:
                self._etag.write_text(validator, "ascii")

    def write(self, data: bytes) -> None:
        """Append bytes; raises IntegrityError for more than the promised size."""
        if self._file is None or self.offset + len(data) > self.size:
            raise IntegrityError(f"The file {self.sha256[:12]} is longer than its {self.size:,} bytes.")
        with _refusals_named(self._partial):
            self._file.write(data)
        self._hash.update(data)
        self.offset += len(data)

    def restart(self) -> None:
        """Discard all bytes; the next one written is the first."""
        if self._file is not None:
            with _refusals_named(self._partial):
                self._file.seek(0)
                self._file.truncate()
        self._hash = hashlib.sha256()
        self.offset = 0
        self.remember(None)

    def check(self) -> None:
        """Raises IntegrityError unless the bytes are exactly the promised ones."""
        if self.offset != self.size or self._hash.hexdigest() != self.sha256:
            raise IntegrityError(
                f"The {self.offset:,} bytes received are not the {self.size:,} bytes "
                f"whose sha256 begins with {self.sha256[:12]}."
            )

    def flush(self) -> None:
        """Flush the bytes to the disk."""
        if self._file is not None:
            with _refusals_named(self._partial):
                self._file.flush()
                os.fsync(self._file.fileno())

    def close(self) -> None:
        """Close the partial file; its bytes are kept for the next writer."""
        if self._file is not None:
            with _refusals_named(self._partial):
                self._file.close()

    def discard(self) -> None:
        """Remove the partial file."""
        with contextlib.suppress(StorageError):
            self.close()
        with _refusals_named(self._partial):
            self._partial.unlink(missing_ok=True)
            self._etag.unlink(missing_ok=True)

    def _open(self, fresh: bool) -> None:
        left = self._partial.stat().st_size if self._partial.exists() and not fresh else 0
        if not 0 < left <= self.size:
            self._file = self._partial.open("wb")
            self._etag.unlink(missing_ok=True)
            return
        self._file = self._partial.open("r+b")
        while chunk := self._file.read(_CHUNK):
            self._hash.update(chunk)
            self.offset += len(chunk)


class BlobStore:
    """The store below one folder; several threads and processes may use it at once.

    Files of one that is not `durable` are not flushed to the disk: they are removed before a power cut
    matters.
    """

    def __init__(self, root: Path, *, durable: bool = True) -> None:
        self.root = root
        self._durable = durable
        self._partials = root / "partial"
        self._verified = Verified(root / "verified")

    def path(self, sha256: str) -> Path:
        """The path of the blob of this hash, whether or not it exists; raises ValueError if this is not a
        sha256."""
        if not _SHA256.fullmatch(sha256):
            raise ValueError(f"not a sha256: {sha256[:80]!r}")
        return self.root / sha256[:2] / sha256[2:]

    def has(self, sha256: str) -> bool:
        """Whether the blob is in the store; its bytes are not read."""
        return self.path(sha256).is_file()

    def verify(self, sha256: str) -> bool:
        """Whether the blob is in the store and its bytes still have this hash; reads all of it."""
        return self._compare(sha256, lambda path: digest_of(path) == sha256) is True

    def path_of(self, sha256: str) -> Path | None:
        """The path of the blob, or None; its bytes are read once after each change of the file.

        Raises DamagedFileError if its bytes do not match its name, and StorageError if it cannot be read.
        """
        same = self._compare(sha256, lambda path: self._verified.holds(path, sha256))
        if same is False:
            raise DamagedFileError(
                f"The bytes of the kept file {sha256} do not match its name: run `repair_weights()`."
            )
        return self.path(sha256) if same else None

    def separate(self) -> list[str]:
        """Copies each blob that is a hard link to another file; returns their names.

        Exports of earlier versions were such links: editing one in place changes the blob.
        """
        separated = []
        for blob in self.blobs():
            path = self.path(blob.sha256)
            with _refusals_named(path):
                if path.stat().st_nlink > 1:
                    with replace_file(path) as new:
                        copy_file(path, new)
                    separated.append(blob.sha256)
        return separated

    def blobs(self) -> Iterator[Blob]:
        """All blobs, sorted by name; none is read."""
        for folder in sorted(self.root.glob("[0-9a-f]" * 2)):
            for path in sorted(folder.iterdir()):
                sha256 = f"{folder.name}{path.name}"
                if _SHA256.fullmatch(sha256) and path.is_file():
                    yield Blob(sha256, path.stat().st_size)

    def find_damage(self, progress: Callable[[int, int], None]) -> list[Damage]:
        """The blobs whose bytes do not match their name or cannot be read; reads every byte.

        `progress` is called with the number of bytes read and the total.
        """
        every, damages, done = list(self.blobs()), list[Damage](), 0
        total = sum(blob.size for blob in every)
        for blob in every:
            progress(done, total)
            done += blob.size
            try:
                if not self.verify(blob.sha256):
                    damages.append(Damage(blob.sha256, blob.size, "has bytes that do not match its name"))
            except StorageError as error:
                damages.append(Damage(blob.sha256, blob.size, str(error)))
        progress(total, total)
        return damages

    def partial_files(self) -> list[Blob]:
        """The partial downloads, sorted by name."""
        paths = sorted(self._partials.glob("*"))
        return [Blob(path.name, path.stat().st_size) for path in paths if _SHA256.fullmatch(path.name)]

    def take_over(self, sha256: str, other: BlobStore) -> None:
        """Moves a blob of another store on this file system here, replacing an existing one."""
        target = self.path(sha256)
        with self._lock(sha256), _refusals_named(self.root):
            target.parent.mkdir(exist_ok=True)
            sync(other.path(sha256))
            other.path(sha256).replace(target)
            sync(target.parent)

    def remove(self, sha256: str) -> None:
        """Remove the blob and its partial download, if they exist."""
        partial = self._partials / sha256
        with _refusals_named(self.root):
            for path in (self.path(sha256), partial, partial.with_name(f"{sha256}.etag")):
                path.unlink(missing_ok=True)

    def put(self, content: bytes) -> Path:
        """The path of a small file's bytes, which are stored; raises StorageError."""
        sha256 = hashlib.sha256(content).hexdigest()
        with self.writer(sha256, len(content), fresh=True) as blob:
            if not blob.present:
                blob.write(content)
        return self.path(sha256)

    @contextmanager
    def writer(self, sha256: str, size: int, *, fresh: bool = False) -> Iterator[BlobWriter]:
        """A writer that continues a partial download, unless `fresh`; after the block the blob exists.

        The block runs under a lock of this blob, across threads and processes, so a thread holds one writer
        at a time. Raises IntegrityError, and removes the partial file, unless exactly the promised bytes were
        written; StorageError, likewise, if they cannot be stored. Any other exception in the block leaves the
        bytes for the next writer.
        """
        target = self.path(sha256)
        with self._lock(sha256):
            present = target.is_file()
            blob = BlobWriter(self._partials / sha256, sha256, size, present=present, fresh=fresh)
            try:
                yield blob
                if not present:
                    blob.check()
                    if self._durable:
                        blob.flush()
            except BaseException as error:
                if not blob.offset or isinstance(error, (IntegrityError, StorageError)):
                    blob.discard()
                raise
            finally:
                blob.close()
            if not present:
                self._publish(blob, target)

    def _compare(self, sha256: str, compare: Callable[[Path], bool]) -> bool | None:
        """The outcome of a comparison of the blob's bytes, None if it does not exist."""
        try:
            return compare(self.path(sha256))
        except FileNotFoundError:
            return None
        except OSError as error:
            raise StorageError(f"The kept file {sha256} cannot be read: {error.strerror}.") from error

    @contextmanager
    def _lock(self, sha256: str) -> Iterator[None]:
        # A fixed number of lock files: one for each blob could never be removed without a race.
        path = self._partials / "locks" / f"{sha256[:3]}.lock"
        lock = FileLock(path)
        with _refusals_named(self.root):
            path.parent.mkdir(parents=True, exist_ok=True)
            lock.acquire()
        try:
            yield
        finally:
            lock.release()

    def _publish(self, blob: BlobWriter, target: Path) -> None:
        with _refusals_named(self.root):
            target.parent.mkdir(exist_ok=True)
            (self._partials / blob.sha256).replace(target)
            blob.remember(None)
            if self._durable:
                sync(target.parent)


@contextmanager
def temporary_store(parent: Path) -> Iterator[BlobStore]:
    """A separate store in a temporary folder in `parent`, which is removed when the block ends.

    Its files are not flushed to the disk.
    """
    with ExitStack() as stack:
        with _refusals_named(parent):
            parent.mkdir(parents=True, exist_ok=True)
            folder = stack.enter_context(temporary_folder(parent))
        yield BlobStore(folder, durable=False)


@contextmanager
def _refusals_named(place: Path) -> Iterator[None]:
    """Translate errors of the disk into a StorageError."""
    try:
        yield
    except OSError as error:
        why = error.strerror or type(error).__name__
        raise StorageError(f"Cannot store a file at {place}: {why}.") from error
