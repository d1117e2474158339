"""Standard output and error of the program: a write that the system refuses is an error with words."""

from __future__ import annotations

import contextlib
import io
import os
import sys
from typing import TYPE_CHECKING, TextIO

from catalog.errors import StorageError

if TYPE_CHECKING:
    from typing_extensions import Buffer

_STDOUT, _STDERR = 1, 2


class _Results(io.FileIO):
    """Standard output without a buffer; what the system refuses once is not tried again at exit."""

    refused = False

    def write(self, data: Buffer, /) -> int:
        """Writes bytes; raises StorageError, but BrokenPipeError where the reader went away."""
        if self.refused:
            return len(memoryview(data))
        try:
            return super().write(data) or 0
        except BrokenPipeError:
            raise
        except OSError as error:
            self.refused = True
            why = error.strerror or type(error).__name__
            raise StorageError(f"The results cannot be written to standard output: {why}.") from error


class _ClosedResults(_Results):
    """A standard output that was closed before the program began."""

    def write(self, data: Buffer, /) -> int:
        """Raises StorageError, the first time."""
        if not self.refused and len(memoryview(data)):
            self.refused = True
            raise StorageError("The results cannot be written: standard output is closed.")
        return len(memoryview(data))


class _Talk(io.FileIO):
    """Standard error without a buffer; talk that the system refuses is lost, as nothing could tell of it."""

    def write(self, data: Buffer, /) -> int:
        """Writes bytes as far as that is possible; raises BrokenPipeError where the reader went away."""
        try:
            return super().write(data) or 0
        except BrokenPipeError:
            raise
        except OSError:
            return len(memoryview(data))


def set_up_streams() -> None:
    """Makes sys.stdout and sys.stderr streams of this module; what they cannot encode becomes escapes.

    A standard descriptor that is closed is opened on the null device first: the next file to be opened would
    take its number, and whatever writes to the descriptor itself would write into that file.
    """
    out, err = sys.stdout, sys.stderr
    closed = _fill_standard_descriptors()
    kind = _ClosedResults if _STDOUT in closed else _Results
    sys.stdout = _stream(kind(_STDOUT, "wb", closefd=False), out)
    sys.stderr = _stream(_Talk(_STDERR, "wb", closefd=False), err)


def discard_stdout() -> None:
    """Points stdout at nothing, so that Python has nothing to complain of when it flushes at exit."""
    with contextlib.suppress(OSError, ValueError):
        nothing = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nothing, sys.stdout.fileno())
        os.close(nothing)


def _fill_standard_descriptors() -> set[int]:
    """The standard descriptors that were closed; they lead to the null device now."""
    closed = set()
    for descriptor in range(_STDERR + 1):
        try:
            os.fstat(descriptor)
        except OSError:
            closed.add(descriptor)
            # The lowest free number is given out, which is this one.
            os.open(os.devnull, os.O_RDWR)
    return closed


def _stream(raw: io.FileIO, before: TextIO | None) -> io.TextIOWrapper:
    encoding = "utf-8" if before is None else before.encoding
    return io.TextIOWrapper(
        io.BufferedWriter(raw), encoding=encoding, errors="backslashreplace", line_buffering=raw.isatty()
    )
