"""Documents of the page that follow from the adapters alone, kept compressed in the folder of indexes."""

from __future__ import annotations

import gzip
import zlib
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

from catalog.files import replace_file

# The largest document that is read, unpacked.
_MOST_BYTES = 2_000_000_000
_FOLDER = "page"


class KeptDocuments:
    """The documents of one state of the adapters; those of another state are removed when one is written.

    Args:
        index: The folder of indexes.
        key: What differs where the documents do.
    """

    def __init__(self, index: Path, key: str) -> None:
        self._folder, self._key = index / _FOLDER, key

    def read(self, name: str, make: Callable[[], bytes]) -> bytes:
        """A document as it was kept, else as it is made now, which is kept where the disk allows that."""
        content = self._read(name)
        if content is None:
            content = make()
            with suppress(OSError):
                self._write(name, content)
        return content

    def _path(self, name: str) -> Path:
        return self._folder / f"{self._key}-{name}.gz"

    def _read(self, name: str) -> bytes | None:
        """None where it is not there, damaged or too large."""
        try:
            with gzip.open(self._path(name)) as file:
                content = file.read(_MOST_BYTES + 1)
        except (OSError, EOFError, zlib.error):
            return None
        return content if len(content) <= _MOST_BYTES else None

    def _write(self, name: str, content: bytes) -> None:
        self._folder.mkdir(parents=True, exist_ok=True)
        with replace_file(self._path(name)) as new:
            new.write_bytes(gzip.compress(content, 6, mtime=0))
        for file in self._folder.glob("*.gz"):
            if not file.name.startswith(f"{self._key}-"):
                file.unlink(missing_ok=True)
