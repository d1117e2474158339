"""How far a long call is: nothing by default, bars on a terminal or in a notebook, or a caller's function.

Every long call of `loradex` takes `progress`: False says nothing, True shows bars on standard error (where
that is neither a terminal nor a notebook, a line a minute), and a function is called with a `ProgressEvent`
at each step. The function is called from the thread that made the call; what it raises ends the call.

    loradex.merge(folders, method="ties", out="merged", progress=lambda event: print(event.done, event.total))
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from loradex.events import ProgressCallback, ProgressEvent, ProgressLines, ProgressOption, ProgressStep
from loradex.text import plain

__all__ = [
    "ProgressCallback",
    "ProgressEvent",
    "ProgressOption",
    "ProgressStep",
    "reporting",
    "show_progress",
]


@contextmanager
def reporting(progress: ProgressOption) -> Iterator[ProgressCallback]:
    """The function to report events to, for as long as the block runs; `progress` is that of the call."""
    if progress is True:
        with show_progress(_write_line) as callback:
            yield callback
    else:
        yield progress or _ignore


@contextmanager
def show_progress(write: Callable[[str], None]) -> Iterator[ProgressCallback]:
    """Bars on standard error while the block runs; without a terminal, lines to `write`."""
    if not (sys.stderr.isatty() or _in_notebook()):
        yield ProgressLines(write)
        return
    from loradex.bars import ProgressBars

    with ProgressBars(write) as bars:
        yield bars


def _in_notebook() -> bool:
    """Whether a kernel of Jupyter runs this code; libraries import its modules elsewhere, too."""
    module = sys.modules.get("IPython")
    return module is not None and hasattr(module.get_ipython(), "kernel")


def _ignore(_event: ProgressEvent) -> None:
    """Reports nothing."""


def _write_line(text: str) -> None:
    sys.stderr.write(f"{plain(text)}\n")
