"""Files that can be made again at any time, each next to the facts that show whether it is current.

The facts lie in a JSON file of the same name, written last, with the sha256 of the cache. A cache is never
changed in place, so that readers keep the file that they opened.
"""

from __future__ import annotations

import hashlib
import json
import logging
import sqlite3
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO

from filelock import FileLock, Timeout

from catalog.errors import ConfigError
from catalog.files.disk import is_refused, replace_file
from catalog.files.strictjson import load_json
from catalog.files.verified import digest_of

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
    it.

    An error of the disk is a warning in the log. The lock is not waited for: its holder writes the same, or a
    cache that the next reader finds stale.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with FileLock(path.with_suffix(".lock"), timeout=0):
            with replace_file(path) as new:
                facts = write(new)
                digest = digest_of(new)
            with replace_file(path.with_suffix(".json")) as new:
                text = json.dumps({**facts, "sha256": digest}, indent=1, sort_keys=True)
                new.write_text(text, encoding="utf-8")
            return True
    except Timeout:
        log.info("%s is being written by another process", path)
    except (OSError, RuntimeError, sqlite3.OperationalError) as error:
        level = logging.INFO if is_refused(error) else logging.WARNING
        log.log(level, "%s cannot be written, so that it is built each time: %s", path, error)
    return False
