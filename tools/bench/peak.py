"""The peak of a process's memory during a call, without what came before it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

T = TypeVar("T")
_STATUS, _RESET = Path("/proc/self/status"), Path("/proc/self/clear_refs")


def peak_during(work: Callable[[], T]) -> tuple[T, int]:
    """What a call gives, and by how many bytes the resident memory rose above its start; Linux only.

    The kernel's high-water mark is set back first: that of getrusage would hide a peak below the imports'.
    """
    _RESET.write_text("5")
    before = _kibibytes("VmRSS")
    result = work()
    return result, 1024 * max(0, _kibibytes("VmHWM") - before)


def high_water() -> int:
    """The largest resident memory of the process, in bytes, since `peak_during` was last called."""
    return 1024 * _kibibytes("VmHWM")


def _kibibytes(field: str) -> int:
    lines = _STATUS.read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(f"{field}:"))
