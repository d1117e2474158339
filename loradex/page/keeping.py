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
    """Documents by name, each of one state; that of another state is removed when one is written.

    Args:
        index: The folder of indexes.
    """

    def __init__(self, index: Path) -> None:
        self._folder = index / _FOLDER

    def read(self, name: str, key: str, make: Callable[[], bytes]) -> bytes:
        """A document as it was kept, else as it is made now, which is kept where the disk allows that.

        Args:
            name: The name of the document.
            key: What differs where the document does.
            make: Makes it.
        """
        path = self._folder / f"{key}-{name}.gz"
        content = _read(path)
        if content is None:
            content = make()
            with suppress(OSError):
                _write(path, content)
                for file in self._folder.glob(f"*-{name}.gz"):
                    if file != path:
                        file.unlink(missing_ok=True)
        return content


def _read(path: Path) -> bytes | None:
    """None where it is not there, damaged or too large."""
    try:
        with gzip.open(path) as file:
            content = file.read(_MOST_BYTES + 1)
    except (OSError, EOFError, zlib.error):
        return None
    return content if len(content) <= _MOST_BYTES else None


def _write(path: Path, content: bytes) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with replace_file(path) as new:
        new.write_bytes(gzip.compress(content, 6, mtime=0))
