"""The small failing inputs beside the project, and the norm of the update that PEFT itself applies."""

from __future__ import annotations

import functools
import importlib.util
import shutil
from pathlib import Path
from types import ModuleType

from tests.shared_data import SHARED


def row(name: str) -> Path:
    """The folder of one row, such as 03-dead-prefix, to read from; only for tests marked `shared`."""
    assert SHARED is not None
    return SHARED / "cases" / name


def copy_row(name: str, to: Path) -> Path:
    """A copy of a row's folder that a test may change; `to` must not be there yet."""
    return Path(shutil.copytree(row(name), to))


def peft_norm(folder: Path) -> float:
    """The norm of what plain PEFT changes in the base that the folder's configuration names."""
    peft = _reference()
    return float(peft.norm(peft.delta(folder)[0]))


def relative_error(merged: Path, *members: Path, share: float | None = None) -> float:
    """How far a merge is from `share` times the sum of its members as PEFT applies them; the mean without."""
    peft = _reference()
    weight = 1 / len(members) if share is None else share
    expected: dict[str, object] = {}
    for member in members:
        for key, value in peft.delta(member)[0].items():
            expected[key] = expected.get(key, 0.0) + weight * value
    return float(peft.apart(peft.delta(merged)[0], expected))


@functools.cache
def _reference() -> ModuleType:
    spec = importlib.util.spec_from_file_location("peft_norm", row("peft_norm.py"))
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module
