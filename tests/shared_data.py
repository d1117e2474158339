"""The folder `shared` beside the project, for tests marked `shared`; they skip where it is absent."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import pytest

Test = TypeVar("Test", bound=Callable[..., Any])


_FOLDER = Path(__file__).resolve().parents[2] / "shared"
SHARED: Path | None = _FOLDER if (_FOLDER / "data").is_dir() else None


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
