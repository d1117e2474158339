"""The data included in the program: a small Hub, and a task."""

from __future__ import annotations

from pathlib import Path

from catalog.errors import NotFoundError


def sample_data() -> Path:
    """The folder of `sample_hub` and `tasks`: `data` in a checkout, else the part of it that is installed.

    Raises NotFoundError if neither is there.
    """
    root = Path(__file__).resolve().parents[1]
    for folder in (root / "data", root / "loradex" / "data"):
        if (folder / "sample_hub").is_dir():
            return folder
    raise NotFoundError(
        f"The sample Hub was not found at {root / 'loradex' / 'data'}; install loradex again."
    )
