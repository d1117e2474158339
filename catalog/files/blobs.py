"""A folder of files named by the sha256 of their bytes: a name that is there has exactly those bytes.

Layout below the root: `ab/cdef…` the blobs, `partial/<sha256>` what has arrived so far,
`partial/<sha256>.etag` the server's own name for those bytes, `partial/locks/` the locks, `verified/` what
is known of blobs that were read again (`catalog.files`). A blob appears by one rename, after its size and
hash were checked and its bytes are on the disk; whoever is killed before that leaves a partial file and
nothing else.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import re
from collections.abc import Callable, Iterable, Iterator
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
class Damage:
    """A blob that cannot be used as it is, and why."""

    sha256: str
    size: int
    why: str


class BlobWriter:
    """One blob on its way into the store; made by `BlobStore.writer`.

    `present` says that the blob was there before, and nothing needs to be written. `resumed` is the number
    of bytes that an earlier writer left, `offset` the number that have arrived by now.
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
        """What `remember` was told when these bytes began to arrive, by this writer or an earlier one."""
        return self._etag.read_text("ascii", "replace") if self._etag.is_file() else None

    def remember(self, validator: str | None) -> None:
        """Keep the server's name for the bytes beside them; writes one small file, or removes it for None."""
        with _refusals_named(self._partial):
            if validator is None:
                self._etag.unlink(missing_ok=True)
            else:
                self._etag.write_text(validator, "ascii")

    def write(self, data: bytes) -> None:
        """Append bytes; raises IntegrityError for more than the promised size."""
        if self._file is None or self.offset + len(data) > self.size:
            raise IntegrityError(
                f"The file {self.sha256[:12]} is longer than the {self.size:,} bytes promised."
            )
        with _refusals_named(self._partial):
            self._file.write(data)
        self._hash.update(data)
        self.offset += len(data)

    def restart(self) -> None:
        """Forget every byte that has arrived; the next one written is the first."""
        if self._file is not None:
            with _refusals_named(self._partial):
                self._file.seek(0)
                self._file.truncate()
        self._hash = hashlib.sha256()
        self.offset = 0
        self.remember(None)

    def check(self) -> None:
        """Raises IntegrityError when what has arrived is not exactly the promised bytes."""
        if self.offset != self.size or self._hash.hexdigest() != self.sha256:
            raise IntegrityError(
                f"The {self.offset:,} bytes that arrived are not the {self.size:,} bytes "
                f"whose sha256 begins with {self.sha256[:12]}."
            )

    def flush(self) -> None:
        """Bring the bytes to the disk."""
        if self._file is not None:
            with _refusals_named(self._partial):
                self._file.flush()
                os.fsync(self._file.fileno())

    def close(self) -> None:
        """Let go of the partial file; what has arrived stays for the next writer."""
        if self._file is not None:
            with _refusals_named(self._partial):
                self._file.close()

    def discard(self) -> None:
        """Remove what has arrived."""
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
    """The store below one folder; several threads and processes may use it at once."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self._partials = root / "partial"
        self._verified = Verified(root / "verified")

    def path(self, sha256: str) -> Path:
        """Where the blob of this hash is or would be; raises ValueError for what is no sha256."""
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
        """Where the blob is, None where it is not; its bytes are read once after each change of the file.

        Raises DamagedFileError for other bytes than its name says, and StorageError where the disk refuses.
        """
        same = self._compare(sha256, lambda path: self._verified.holds(path, sha256))
        if same is False:
            raise DamagedFileError(
                f"The kept file {sha256} has other bytes than its name says: run `loradex blobs repair`."
            )
        return self.path(sha256) if same else None

    def separate(self) -> list[str]:
        """Gives each blob that is one file with another, by a hard link, bytes of its own; their names.

        Exports of earlier versions were such links: an edit of one in place changes the blob.
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
        """The blobs that have other bytes than their name says or cannot be read; every byte is read.

        `progress` is told how many bytes of how many are read.
        """
        every, damages, done = list(self.blobs()), list[Damage](), 0
        total = sum(blob.size for blob in every)
        for blob in every:
            progress(done, total)
            done += blob.size
            try:
                if not self.verify(blob.sha256):
                    damages.append(Damage(blob.sha256, blob.size, "has other bytes than its name says"))
            except StorageError as error:
                damages.append(Damage(blob.sha256, blob.size, str(error)))
        progress(total, total)
        return damages

    def partial_files(self) -> list[Blob]:
        """What has arrived so far of blobs that are not whole, sorted by name."""
        paths = sorted(self._partials.glob("*"))
        return [Blob(path.name, path.stat().st_size) for path in paths if _SHA256.fullmatch(path.name)]

    def take_over(self, sha256: str, other: BlobStore) -> None:
        """Moves a blob of another store on this file system here, in the place of one that is there."""
        target = self.path(sha256)
        with self._lock(sha256), _refusals_named(self.root):
            target.parent.mkdir(exist_ok=True)
            other.path(sha256).replace(target)
            sync(target.parent)

    def remove(self, sha256: str) -> None:
        """Remove the blob, and what has arrived of it; nothing happens when neither is there."""
        partial = self._partials / sha256
        with _refusals_named(self.root):
            for path in (self.path(sha256), partial, partial.with_name(f"{sha256}.etag")):
                path.unlink(missing_ok=True)

    def remove_all(self, names: Iterable[str]) -> None:
        """Removes blobs, and what has arrived of them."""
        for sha256 in sorted(set(names)):
            self.remove(sha256)

    def put(self, content: bytes) -> Path:
        """Where a small file's bytes are in the store from now on; raises StorageError."""
        sha256 = hashlib.sha256(content).hexdigest()
        with self.writer(sha256, len(content), fresh=True) as blob:
            if not blob.present:
                blob.write(content)
        return self.path(sha256)

    @contextmanager
    def writer(self, sha256: str, size: int, *, fresh: bool = False) -> Iterator[BlobWriter]:
        """A writer that goes on where one stopped before, unless `fresh`; after the block the blob is there.

        The block runs under a lock of this blob, across threads and processes, so a thread holds one writer
        at a time. Raises IntegrityError, and removes what arrived, unless exactly the promised bytes were
        written; StorageError, likewise, when the disk refuses. Any other exception out of the block leaves
        the bytes for the next writer.
        """
        target = self.path(sha256)
        with self._lock(sha256):
            present = target.is_file()
            blob = BlobWriter(self._partials / sha256, sha256, size, present=present, fresh=fresh)
            try:
                yield blob
                if not present:
                    blob.check()
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
        """What a comparison of the blob's bytes finds, None where it is not there."""
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
            sync(target.parent)


@contextmanager
def temporary_store(parent: Path) -> Iterator[BlobStore]:
    """A store of its own in a temporary folder in `parent`; it goes with its blobs when the block ends."""
    with ExitStack() as stack:
        with _refusals_named(parent):
            parent.mkdir(parents=True, exist_ok=True)
            folder = stack.enter_context(temporary_folder(parent))
        yield BlobStore(folder)


@contextmanager
def _refusals_named(place: Path) -> Iterator[None]:
    """Turn what the disk refuses into a StorageError with a sentence."""
    try:
        yield
    except OSError as error:
        why = error.strerror or type(error).__name__
        raise StorageError(f"Cannot store a file at {place}: {why}.") from error
