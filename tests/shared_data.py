"""Where the facts beside the project lie, for tests marked `shared`; they skip where the folder is absent."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import pytest

Test = TypeVar("Test", bound=Callable[..., Any])


def _found() -> Path | None:
    by_name = os.environ.get("LORADEX_SHARED")
    folder = Path(by_name) if by_name else Path(__file__).resolve().parents[1].parent / "shared"
    return folder if (folder / "data").is_dir() else None


SHARED: Path | None = _found()


def shared(test: Test) -> Test:
    """Marks a test as reading the shared folder, and skips it with a reason where there is none."""
    pytest.mark.skipif(SHARED is None, reason="the shared folder is not there")(test)
    pytest.mark.shared(test)
    return test


def data(name: str) -> Path:
    """A folder of the shared data; only for tests marked `shared`."""
    assert SHARED is not None
    return SHARED / "data" / name


def index(name: str) -> list[dict[str, Any]]:
    """The rows of a data folder's index.jsonl."""
    lines = (data(name) / "index.jsonl").read_text(encoding="utf-8").splitlines()
    return [json.loads(line) for line in lines]
