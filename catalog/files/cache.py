"""Files that can be made again at any time, each next to the facts that show whether it is current.

The facts lie in a JSON file of the same name, written last, with the sha256 of the cache. A cache is never
changed in place, so that readers keep the file that they opened.
"""

from __future__ import annotations

import hashlib
import json
import logging
import sqlite3
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any, BinaryIO

from filelock import FileLock, Timeout

from catalog.errors import ConfigError
from catalog.files.disk import is_refused, replace_file
from catalog.files.strictjson import load_json
from catalog.files.verified import TICK, digest_of

log = logging.getLogger(__name__)

_MOST_FACTS = 64 << 20
# Errors of a cache that cannot be read; the reader makes it again.
DAMAGES = (OSError, ConfigError, KeyError, TypeError, ValueError)


def read_facts(path: Path) -> dict[str, Any]:
    """The facts next to a cache; raises one of DAMAGES if they cannot be read."""
    with path.with_suffix(".json").open("rb") as file:
        facts: Any = load_json(file.read(_MOST_FACTS + 1), max_bytes=_MOST_FACTS)
    return dict(facts)


@contextmanager
def open_cache(path: Path, facts: Mapping[str, Any]) -> Iterator[BinaryIO]:
    """The cache, open at its beginning; raises ValueError where its bytes are not those of the facts."""
    with path.open("rb") as file:  # compared and read through one open file: a rename changes nothing
        if hashlib.file_digest(file, "sha256").hexdigest() != facts["sha256"]:
            raise ValueError(f"{path} is damaged")
        file.seek(0)
        yield file


def write_cache(path: Path, write: Callable[[Path], Mapping[str, object]]) -> bool:
    """Writes a cache by `write`, which returns its facts, and then these; returns whether this process wrote
    it, as for `lock_cache`.
    """
    with lock_cache(path) as locked:
        if not locked:
            return False
        with replace_file(path) as new:
            facts = write(new)
            digest = digest_of(new)
        write_facts(path, {**facts, "sha256": digest})
        return True
    return False


@contextmanager
def lock_cache(path: Path) -> Iterator[bool]:
    """Whether this process may write the cache inside the block.

    An error of the disk ends the block and is a warning in the log. The lock is not waited for: its holder
    writes the same, or a cache that the next reader finds stale.
    """
    with ExitStack() as stack:
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            stack.enter_context(FileLock(path.with_suffix(".lock"), timeout=0))
        except Timeout:
            log.info("%s is being written by another process", path)
        except OSError as error:
            _warn(path, error)
        else:
            try:
                yield True
            except (OSError, RuntimeError, sqlite3.OperationalError) as error:
                _warn(path, error)
            return
    yield False


def _warn(path: Path, error: Exception) -> None:
    level = logging.INFO if is_refused(error) else logging.WARNING
    log.log(level, "%s cannot be written, so that it is built each time: %s", path, error)


def write_facts(path: Path, facts: Mapping[str, object]) -> None:
    """Writes the facts next to a cache. Raises OSError."""
    with replace_file(path.with_suffix(".json")) as new:
        new.write_text(json.dumps(facts, indent=1, sort_keys=True), encoding="utf-8")


def file_facts(path: Path) -> dict[str, Any]:
    """The sha256 of a file, with its size, dates and inode, by which a later change is noticed.

    These are left out for a file that changed just now: another change within the clock's tick would leave
    its dates. Raises OSError.
    """
    look = look_of(path)
    return {"sha256": digest_of(path), "look": look}


def compare_file(path: Path, facts: Mapping[str, Any], *, trusting: bool) -> dict[str, Any] | None:
    """The facts of a file whose bytes are those of the facts, else None.

    With `trusting`, it is read only where its size, dates or inode are others. Raises OSError.
    """
    look = look_of(path)
    if trusting and look is not None and look == facts["look"]:
        return dict(facts)
    return {**facts, "look": look} if digest_of(path) == facts["sha256"] else None


def look_of(path: Path) -> list[int] | None:
    """The size, dates and inode of a file; None where it changed within the clock's tick. Raises OSError."""
    stat = path.stat()
    if time.time_ns() - max(stat.st_mtime_ns, stat.st_ctime_ns) <= TICK:
        return None
    return [stat.st_size, stat.st_mtime_ns, stat.st_ctime_ns, stat.st_ino]
