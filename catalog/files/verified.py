"""Files whose bytes were compared with a sha256, remembered until they change.

A change of a file is detected by its size, dates and inode. Results are recorded for all processes,
as a line `SHA256 SIZE MODIFIED CHANGED INODE` in a file by the first two digits; if the folder is not
writable, in memory.
"""

from __future__ import annotations

import contextlib
import hashlib
import time
from pathlib import Path
from typing import NamedTuple

# Nanoseconds within which two changes of a file may have the same date.
TICK = 100_000_000


class _FileState(NamedTuple):
    """The state by which a change of a file is detected: its size in bytes, its dates in nanoseconds and its
    inode."""

    size: int
    modified: int
    changed: int
    inode: int


class Verified:
    """The record in a folder, which is created on the first write; its parent is not created."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._known: set[tuple[str, _FileState]] = set()

    def holds(self, path: Path, sha256: str) -> bool:
        """Whether the file has the bytes of this sha256; they are read once after each change of the file.

        Raises OSError, including FileNotFoundError.
        """
        stat = path.stat()
        look = _FileState(stat.st_size, stat.st_mtime_ns, stat.st_ctime_ns, stat.st_ino)
        if (sha256, look) in self._known or look in self._read_looks(sha256):
            return True
        began = time.time_ns()
        if digest_of(path) != sha256:
            return False
        self._known.add((sha256, look))
        # A change within the clock's tick of the last one would leave the same dates.
        if began - max(look.modified, look.changed) > TICK:
            self._write(sha256, look)
        return True

    def _write(self, sha256: str, look: _FileState) -> None:
        with contextlib.suppress(OSError):
            self._folder.mkdir(exist_ok=True)
            with (self._folder / sha256[:2]).open("ab", buffering=0) as file:
                file.write(" ".join([sha256, *map(str, look)]).encode() + b"\n")

    def _read_looks(self, sha256: str) -> set[_FileState]:
        try:
            lines = (self._folder / sha256[:2]).read_text("ascii", "replace").split("\n")[:-1]
        except OSError:
            return set()
        entries = [line.split(" ")[1:] for line in lines if line.startswith(f"{sha256} ")]
        return {_FileState(*map(int, numbers)) for numbers in entries if _is_look(numbers)}


def digest_of(path: Path) -> str:
    """The sha256 of a file's bytes; raises OSError."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _is_look(numbers: list[str]) -> bool:
    return len(numbers) == len(_FileState._fields) and all(
        number.isascii() and number.isdigit() for number in numbers
    )
