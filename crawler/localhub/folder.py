"""A folder of repositories as the Hub's API would describe it: `ROOT/owner/name/…files`, and data sets as
`ROOT/datasets/owner/name/…files`.

This module does not depend on HTTP and writes nothing. An optional `.hub.json` next to a repository's files
overrides the API's values; without one everything is derived from the files and reproducible. Folders whose
names no Hub repository can have are not repositories.

The files of a repository are checked (names, sizes, times) at every request, and read again only if one of
these changed.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import stat
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from functools import cached_property
from operator import attrgetter
from pathlib import Path
from typing import Any

from catalog.adapters import valid_name
from catalog.errors import UsageError
from catalog.files import read_up_to
from crawler.localhub.tags import Derived, derive

logger = logging.getLogger(__name__)

OVERRIDES = ".hub.json"
HIDDEN = frozenset({OVERRIDES, ".git", ".cache"})
# The folder of the data sets, which no owner of models can be called on the Hub.
DATASETS = "datasets"
LFS_SUFFIXES = (".safetensors", ".bin", ".gguf", ".pt", ".pth", ".onnx", ".parquet")
LFS_SIZE = 10 * 1024 * 1024
MAX_PARSED = 1024 * 1024  # bytes of a card or a configuration that are parsed
# A file written this shortly before it was read may be written again within the same tick of the
# file system's clock, so it is not cached.
SETTLED_NS = 50_000_000


@dataclass(frozen=True)
class HubFile:
    """One file of a repository: `path` inside it, `disk` where its bytes are, size in bytes."""

    path: str
    disk: str
    size: int
    mtime_ns: int

    @property
    def is_lfs(self) -> bool:
        name = self.path.rpartition("/")[2]
        return name.endswith(LFS_SUFFIXES) or name == "tokenizer.json" or self.size >= LFS_SIZE


@dataclass(frozen=True)
class Digest:
    """The Hub's description of a file's content: `oid` is the git blob's sha1, of the pointer for an LFS
    file."""

    oid: str
    size: int
    sha256: str | None = None
    pointer_size: int = 0

    @property
    def etag(self) -> str:
        return self.sha256 or self.oid


@dataclass(frozen=True, eq=False)
class HubRepository:
    """One repository as it was found; derived facts are computed on first use."""

    repo_id: str
    files: Mapping[str, HubFile]
    overrides: Mapping[str, Any]
    modified_ns: int
    digest_file: Callable[[HubFile], Digest]

    @property
    def owner(self) -> str:
        return self.repo_id.partition("/")[0]

    @cached_property
    def identity(self) -> str:
        identity = self.overrides.get("_id")
        return identity if isinstance(identity, str) else derive_identity(self.repo_id)

    @cached_property
    def derive(self) -> Derived:
        return derive(self._text("README.md"), self.adapter_config, self.files.keys())

    @cached_property
    def adapter_config(self) -> dict[str, Any] | None:
        """The root adapter_config.json if it exists and is a JSON object."""
        try:
            parsed = json.loads(self._text("adapter_config.json"))
        except (ValueError, RecursionError):
            return None
        return parsed if isinstance(parsed, dict) else None

    @cached_property
    def digests(self) -> dict[str, Digest]:
        """Path → digest, in path order; reads every file that is not yet known. Raises OSError."""
        return {path: self._digest(file) for path, file in sorted(self.files.items())}

    @cached_property
    def sha(self) -> str:
        sha = self.overrides.get("sha")
        if isinstance(sha, str):
            return sha
        lines = "".join(f"{path}\0{digest.etag}\n" for path, digest in self.digests.items())
        return hashlib.sha1(f"{self.repo_id}\n{lines}".encode(), usedforsecurity=False).hexdigest()

    @cached_property
    def last_modified(self) -> Any:
        # As the Hub writes it: ISO 8601 in UTC with milliseconds and a Z.
        moment = datetime.fromtimestamp(self.modified_ns // 1_000_000 / 1_000, UTC)
        date = moment.isoformat(timespec="milliseconds").replace("+00:00", "Z")
        return self.overrides.get("lastModified", date)

    @property
    def created_at(self) -> Any:
        return self.overrides.get("createdAt", self.last_modified)

    @property
    def tags(self) -> Any:
        return self.overrides.get("tags", list(self.derive.tags))

    def flag(self, name: str) -> Any:
        """`gated`, `disabled` or `private`: false by default."""
        return self.overrides.get(name, False)

    def previous_names(self) -> list[str]:
        names = self.overrides.get("previous_names", [])
        return [name for name in names if isinstance(name, str)] if isinstance(names, list) else []

    def _digest(self, file: HubFile) -> Digest:
        files = self.overrides.get("files", {})
        digests = files.get(file.path, {}) if isinstance(files, dict) else {}
        if not isinstance(digests, dict) or not digests:
            return self.digest_file(file)
        size, sha256 = digests.get("size"), digests.get("sha256")
        size = size if isinstance(size, int) else file.size
        return _lfs_digest(str(sha256), size) if sha256 else replace(self.digest_file(file), size=size)

    def _text(self, path: str) -> str:
        """The beginning of a small file as UTF-8, or empty if it cannot be read."""
        file = self.files.get(path)
        if file is None:
            return ""
        try:
            with Path(file.disk).open("rb") as stream:
                return stream.read(MAX_PARSED).decode("utf-8", errors="replace")
        except OSError:
            return ""


# The files of a repository's folder, and size and time of its .hub.json: equal states mean unchanged facts.
_FolderState = tuple[tuple[HubFile, ...], tuple[int, int] | None]


@dataclass
class HubFolder:
    """The repositories of one folder, by name; safe to use from several threads."""

    root: Path
    _known: dict[str, tuple[_FolderState, HubRepository]] = field(default_factory=dict)
    _digests: dict[tuple[str, int, int], Digest] = field(default_factory=dict)
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def __post_init__(self) -> None:
        if not self.root.is_dir():
            raise UsageError(f"{self.root} is not a folder; give one that contains owner/name/…files.")
        self.root = self.root.resolve()

    def find(self, repo_id: str) -> HubRepository | None:
        """The repository of this name as it is on disk now, or None. Raises UsageError on a bad .hub.json."""
        owner, _, name = repo_id.partition("/")
        if not (is_name(owner) and is_name(name)) or owner == DATASETS:
            return None
        directory = os.path.realpath(self.root / owner / name)
        if not self.holds(directory) or not os.path.isdir(directory):  # noqa: PTH112
            with self._lock:
                self._known.pop(repo_id, None)
            return None
        return self._read(repo_id, directory)

    def datasets(self) -> HubFolder | None:
        """The data sets, `datasets/owner/name/…files` in the folder, None without any."""
        place = self.root / DATASETS
        return HubFolder(place) if place.is_dir() and self.holds(os.path.realpath(place)) else None

    def scan(self) -> list[HubRepository]:
        """Every repository as it is on disk now, by name; one with an invalid .hub.json causes a warning."""
        repositories = (self._find_or_warn(repo_id) for repo_id in sorted(self._repo_ids()))
        return [repository for repository in repositories if repository is not None]

    def new_name(self, repo_id: str) -> str | None:
        """The current name of the repository formerly called `repo_id`, or None."""
        return next((new.repo_id for new in self.scan() if repo_id in new.previous_names()), None)

    def digest(self, file: HubFile) -> Digest:
        """The digest of a file, read at most once while its size and time stay. Raises OSError."""
        key = (file.disk, file.size, file.mtime_ns)
        digest = self._digests.get(key)
        if digest is None:
            started = time.time_ns()
            digest = _read_digest(file)
            if started - file.mtime_ns > SETTLED_NS:
                self._digests[key] = digest
        return digest

    def _find_or_warn(self, repo_id: str) -> HubRepository | None:
        try:
            return self.find(repo_id)
        except UsageError as error:
            logger.warning("%s", error)
            return None

    def _repo_ids(self) -> Iterator[str]:
        for owner in os.scandir(self.root):
            if (
                is_name(owner.name)
                and owner.name != DATASETS
                and owner.is_dir()
                and self.holds(os.path.realpath(owner.path))
            ):
                try:
                    names = [entry.name for entry in os.scandir(owner.path)]
                except OSError as error:  # missing or not readable: the others are served
                    logger.warning("%s is left out: %s", owner.path, error.strerror)
                    continue
                yield from (f"{owner.name}/{name}" for name in names if is_name(name))

    def _read(self, repo_id: str, directory: str) -> HubRepository:
        looked = time.time_ns()
        files = tuple(sorted(self._walk(directory, ""), key=attrgetter("path")))
        status = _status(f"{directory}/{OVERRIDES}")
        stamp = (status.st_size, status.st_mtime_ns) if status is not None else None
        with self._lock:
            before = self._known.get(repo_id)
        if before is not None and before[0] == (files, stamp):
            return before[1]
        newest = max((file.mtime_ns for file in files), default=None)
        repository = HubRepository(
            repo_id=repo_id,
            files={file.path: file for file in files},
            overrides=_overrides(directory, repo_id) if stamp else {},
            modified_ns=os.stat(directory).st_mtime_ns if newest is None else newest,  # noqa: PTH116
            digest_file=self.digest,
        )
        with self._lock:
            if looked - max(newest or 0, stamp[1] if stamp else 0) > SETTLED_NS:
                self._known[repo_id] = ((files, stamp), repository)
            else:
                self._known.pop(repo_id, None)
        return repository

    def _walk(self, directory: str, prefix: str) -> Iterator[HubFile]:
        try:
            entries = list(os.scandir(directory))
        except OSError:  # missing or not readable: then it has no files
            return
        for entry in entries:
            if entry.name in HIDDEN or not _is_text(entry.name):
                continue
            if entry.is_dir(follow_symlinks=False):
                yield from self._walk(entry.path, f"{prefix}{entry.name}/")
                continue
            disk = os.path.realpath(entry.path) if entry.is_symlink() else entry.path
            if entry.is_symlink() and not self.holds(disk):
                continue
            status = _status(disk)
            if status is not None and stat.S_ISREG(status.st_mode):
                yield HubFile(f"{prefix}{entry.name}", disk, status.st_size, status.st_mtime_ns)

    def holds(self, target: str) -> bool:
        """Whether a resolved path is below the root and not hidden there."""
        root = f"{self.root}{os.sep}".replace(os.sep * 2, os.sep)
        return target.startswith(root) and HIDDEN.isdisjoint(Path(target[len(root) :]).parts)


def is_name(name: str) -> bool:
    """Whether the Hub could have an owner or a repository of this name."""
    return "/" not in name and valid_name(name)


def derive_identity(repo_id: str) -> str:
    """The `_id` of a repository whose .hub.json names none: 24 hex digits that follow from its name."""
    return hashlib.sha256(repo_id.encode()).hexdigest()[:24]


def _status(path: str) -> os.stat_result | None:
    try:
        return os.stat(path)  # noqa: PTH116 (a Path for each of 60,000 files costs more than the call)
    except OSError:
        return None


def _is_text(name: str) -> bool:
    try:
        name.encode()
    except UnicodeEncodeError:  # bytes that are not UTF-8: JSON cannot encode this name
        return False
    return True


def _overrides(directory: str, repo_id: str) -> dict[str, Any]:
    try:
        data = read_up_to(Path(directory) / OVERRIDES, 16 * MAX_PARSED)
        parsed = json.loads(data) if data is not None else None
    except (OSError, ValueError, RecursionError) as error:
        raise UsageError(f"{repo_id}/{OVERRIDES} cannot be read as JSON: {error}") from error
    if not isinstance(parsed, dict):
        raise UsageError(f"{repo_id}/{OVERRIDES} must contain one JSON object.")
    return parsed


def _read_digest(file: HubFile) -> Digest:
    content = hashlib.sha256() if file.is_lfs else hashlib.sha1(usedforsecurity=False)
    if not file.is_lfs:
        content.update(f"blob {file.size}\0".encode())
    with Path(file.disk).open("rb") as stream:
        while block := stream.read(1024 * 1024):
            content.update(block)
    if file.is_lfs:
        return _lfs_digest(content.hexdigest(), file.size)
    return Digest(oid=content.hexdigest(), size=file.size)


def _lfs_digest(sha256: str, size: int) -> Digest:
    pointer = f"version https://git-lfs.github.com/spec/v1\noid sha256:{sha256}\nsize {size}\n".encode()
    blob = hashlib.sha1(f"blob {len(pointer)}\0".encode() + pointer, usedforsecurity=False)
    return Digest(oid=blob.hexdigest(), size=size, sha256=sha256, pointer_size=len(pointer))
