"""The files of one commit: rows of the Hub's tree route → paths that are safe and hashes to verify by."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from catalog.errors import UnreadableError
from catalog.files import unsafe_path
from crawler.hub.rows import read_count
from crawler.reading import reading

_SHA1 = re.compile(r"[0-9a-f]{40}")
_SHA256 = re.compile(r"[0-9a-f]{64}")


@dataclass(frozen=True)
class RemoteFile:
    """One file of a commit: `size` in bytes, `oid` the git sha1 of a plain file, `sha256` of an LFS file.

    A file with neither cannot be verified; it is listed and never fetched.
    """

    path: str
    size: int
    oid: str | None
    sha256: str | None


@dataclass(frozen=True)
class RepositoryTree:
    """The files of one commit; `problems` describes each dropped or unusual entry, one sentence each."""

    files: tuple[RemoteFile, ...]
    problems: tuple[str, ...]


def read_tree(rows: Iterable[object], problems: Iterable[str] = ()) -> RepositoryTree:
    """The tree of these rows, each validated separately: one invalid entry loses only that entry.

    Paths that differ only in case or in Unicode form are all kept and named, because the catalog stores
    files by content and requests them by exact path.
    """
    problem_list = list(problems)
    files: dict[str, RemoteFile] = {}
    for row in rows:
        entry = _read_entry(row)
        if isinstance(entry, str):
            problem_list.append(entry)
        elif entry is not None and entry.path in files:
            problem_list.append(f"{_short_path(entry.path)} is listed twice")
        elif entry is not None:
            files[entry.path] = entry
            if entry.oid is None and entry.sha256 is None:
                problem_list.append(f"{_short_path(entry.path)} has no hash to verify it with")
    for path in [path for path in files if any(above in files for above in _folders(path))]:
        del files[path]
        problem_list.append(f"{_short_path(path)} lies below a file")
    problem_list.extend(_collisions(files))
    return RepositoryTree(tuple(files.values()), tuple(problem_list))


def _read_entry(row: object) -> RemoteFile | str | None:
    try:
        with reading("an entry"):
            return _entry(row)
    except UnreadableError as error:
        return str(error)


def _entry(row: object) -> RemoteFile | str | None:
    """The file of one row, the reason why it is dropped, or None for a directory."""
    if not isinstance(row, Mapping):
        return "an entry is not an object"
    path = row.get("path")
    if not isinstance(path, str):
        return "an entry has no path"
    if reason := unsafe_path(path):
        return f"{_short_path(path)} {reason}"
    if row.get("type") == "directory":
        return None
    if row.get("type") != "file":
        return f"{_short_path(path)} is of an unknown type"
    lfs = row.get("lfs")
    if lfs is not None and not isinstance(lfs, Mapping):
        return f"{_short_path(path)} has an lfs field that is not an object"
    size = read_count((lfs if lfs is not None and "size" in lfs else row).get("size"))
    if size is None:
        return f"{_short_path(path)} has no size"
    # With LFS the row's own oid is that of the pointer that git keeps, not of the file.
    if lfs is None:
        return RemoteFile(path, size, _hash(_SHA1, row.get("oid")), None)
    return RemoteFile(path, size, None, _hash(_SHA256, lfs.get("oid")))


def _hash(form: re.Pattern[str], value: object) -> str | None:
    return value if isinstance(value, str) and form.fullmatch(value) else None


def _folders(path: str) -> list[str]:
    parts = path.split("/")
    return ["/".join(parts[:n]) for n in range(1, len(parts))]


def _collisions(files: Iterable[str]) -> list[str]:
    first: dict[str, str] = {}
    collisions = []
    for path in files:
        folded = unicodedata.normalize("NFC", unicodedata.normalize("NFC", path).casefold())
        if folded in first:
            collisions.append(
                f"{_short_path(path)} and {_short_path(first[folded])} differ only in case or Unicode form"
            )
        first.setdefault(folded, path)
    return collisions


def _short_path(path: str) -> str:
    """The path for a message: ASCII, and not longer than a line."""
    return ascii(path if len(path) <= 80 else f"{path[:77]}...")
