"""Files on the disk: safe paths, copies that share no bytes, temporary folders that end with their process.

A temporary folder is called `.loradex-XXXXXXXX` and holds a lock file, whose lock the system releases when
the process ends, however it ends. A folder whose lock is free was left by a process that was killed.
"""

from __future__ import annotations

import errno
import os
import re
import shutil
import sys
import tempfile
import unicodedata
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path

from filelock import FileLock, Timeout

from catalog.errors import LoradexError, NotFoundError, StorageError

# Linux: makes one file share the blocks of another until one of them is written to (ioctl_ficlone(2)).
_FICLONE = 0x40049409
_PREFIX = ".loradex-"
_LOCK, _BEFORE = "lock", "before"
_DEVICE = re.compile(r"(con|prn|aux|nul|com[0-9]|lpt[0-9])(\..*)?", re.IGNORECASE)
_LONGEST_PATH = 1024
_LONGEST_NAME = 255


def copy_file(source: Path, target: Path) -> None:
    """Writes the bytes of a file to another one that shares no bytes with it.

    Where the file system can share blocks until one side is written to (Btrfs, XFS, bcachefs), no byte is
    copied. Raises OSError.
    """
    with source.open("rb") as read, target.open("wb") as written:
        if sys.platform == "linux":
            import fcntl

            with suppress(OSError):
                fcntl.ioctl(written, _FICLONE, read.fileno())
                return
        shutil.copyfileobj(read, written, 1 << 20)


def may_write(path: Path) -> bool:
    """Whether this process may write to an existing file or folder; False on a read-only disk."""
    return os.access(path, os.W_OK, effective_ids=os.access in os.supports_effective_ids)


def is_refused(error: Exception) -> bool:
    """Whether a place is not writable: a read-only disk, or a folder of another user."""
    return isinstance(error, OSError) and error.errno in (errno.EROFS, errno.EACCES, errno.EPERM)


@contextmanager
def temporary_folder(parent: Path) -> Iterator[Path]:
    """A new folder in `parent`, removed when the block ends; folders left by killed processes are removed
    first.

    Raises OSError.
    """
    remove_abandoned(parent)
    folder, lock = _lock_folder(parent)
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)
        lock.release()


@contextmanager
def at_work(parent: Path) -> Iterator[None]:
    """Inside the block `in_use` is true for the folder, if it is writable."""
    with ExitStack() as stack:
        with suppress(OSError):
            stack.enter_context(temporary_folder(parent))
        yield


def in_use(parent: Path) -> bool:
    """Whether a process holds a temporary folder in `parent`."""
    for folder in parent.glob(f"{_PREFIX}*"):
        try:
            with FileLock(folder / _LOCK, timeout=0):
                continue
        except Timeout:
            return True
        except OSError:
            continue
    return False


def remove_abandoned(parent: Path) -> None:
    """Removes the temporary folders in `parent` that no process holds.

    Where a process was killed while it replaced a folder, the previous folder is restored.
    """
    for folder in parent.glob(f"{_PREFIX}*"):
        if folder.is_symlink() or not folder.is_dir():
            continue
        with suppress(OSError, Timeout), FileLock(folder / _LOCK, timeout=0):
            _put_back(folder)
            # Under its name another process may be about to lock it; under a new name none can.
            renamed = folder.rename(folder.with_name(f"{folder.name}-"))
            shutil.rmtree(renamed, ignore_errors=True)


@contextmanager
def replace_file(path: Path) -> Iterator[Path]:
    """A path for the new bytes of a file, which replace it atomically when the block ends.

    They are flushed to the disk. Raises OSError, and leaves nothing, if writing fails.
    """
    with temporary_folder(path.parent) as temporary:
        new = temporary / path.name
        yield new
        sync(new)
        new.replace(path)
    sync(path.parent)


@contextmanager
def output_file(path: Path) -> Iterator[Path]:
    """A path for the new bytes of a file that a user asked for, as `replace_file` gives it.

    Makes its folder if that is missing. Raises StorageError if writing fails.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with replace_file(path) as new:
            yield new
    except OSError as error:
        raise StorageError(f"{path} cannot be written: {error.strerror or error}.") from error


def sync(path: Path) -> None:
    """Flushes the bytes of a file, or the names in a folder, to the disk. Raises OSError."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def replace_folder(new: Path, target: Path, temporary: Path) -> None:
    """Renames `new` to `target`; an existing folder is moved into the temporary folder first. Raises
    OSError."""
    if not target.exists():
        new.rename(target)
        return
    before = temporary / _BEFORE / target.name
    before.parent.mkdir()
    target.rename(before)
    try:
        new.rename(target)
    except OSError:
        before.rename(target)
        raise


def _lock_folder(parent: Path) -> tuple[Path, FileLock]:
    while True:
        folder = Path(tempfile.mkdtemp(prefix=_PREFIX, dir=parent))
        lock = FileLock(folder / _LOCK, timeout=0)
        # As long as it is not locked, another process may remove it, at any moment: then a new one is made.
        with suppress(FileNotFoundError, FileExistsError, Timeout):
            lock.acquire()
            return folder, lock


def _put_back(folder: Path) -> None:
    for before in (folder / _BEFORE).glob("*"):
        place = folder.with_name(before.name)
        if not place.exists():
            before.rename(place)


def read_up_to(path: Path, most: int) -> bytes | None:
    """The bytes of a file, whatever size its folder states for it; None for more. Raises OSError."""
    data = bytearray()
    with path.open("rb") as file:
        # Block by block: a read of `most` bytes would take their memory at once.
        while len(data) <= most and (block := file.read(1 << 20)):
            data += block
    return bytes(data) if len(data) <= most else None


def read_limited(path: Path, most: int, *, kind: str, advice: str, error: type[LoradexError]) -> bytes:
    """The bytes of a file that holds at most `most`.

    Raises NotFoundError with the advice if it does not exist, and `error` if it is larger than `kind`
    ("a manifest") allows, or cannot be read.
    """
    try:
        data = read_up_to(path, most)
    except FileNotFoundError as cause:
        raise NotFoundError(f"{path} does not exist; {advice}.") from cause
    except OSError as cause:
        raise error(f"{path} cannot be read: {cause.strerror}.") from cause
    if data is None:
        raise error(f"{path} is too large for {kind}; give another file.")
    return data


def path_fault(path: str | Path) -> str | None:
    """Why the system can have no file at this path, None where it can."""
    try:
        os.lstat(path)
    except ValueError:
        return "it contains a character that no path has"
    except OSError as error:
        return "it is too long" if error.errno == errno.ENAMETOOLONG else None
    return None


def unsafe_path(path: str) -> str | None:
    """Why this path may not name a file below a folder, on any system; None for a safe one."""
    try:
        encoded = path.encode("utf-8")
    except UnicodeEncodeError:
        return "is not Unicode"
    if len(encoded) > _LONGEST_PATH:
        return "is too long"
    if any(unicodedata.category(character) == "Cc" for character in path):
        return "contains a control character"
    if "\\" in path or re.match(r"[A-Za-z]:", path):
        return "is a Windows path"
    return next((reason for name in path.split("/") if (reason := _unsafe_name(name))), None)


def _unsafe_name(name: str) -> str | None:
    if not name:
        return "has an empty part"
    if name in (".", ".."):
        return "leaves its folder"
    if name[-1] in ". ":
        return "has a part that ends in a dot or a space"
    if len(name.encode("utf-8")) > _LONGEST_NAME:
        return "is too long"
    return "names a device" if _DEVICE.fullmatch(name) else None
