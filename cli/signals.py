"""SIGTERM and SIGHUP end the program as Ctrl-C does: what it holds is released, and it says how to go on."""

from __future__ import annotations

import signal
from types import FrameType

# SIGHUP is what a terminal sends that closes; Windows has none.
_ENDING = [getattr(signal, name) for name in ("SIGTERM", "SIGHUP") if hasattr(signal, name)]


class StopSignal(KeyboardInterrupt):
    """The program was asked to end; `number` is that of the signal."""

    def __init__(self, number: int) -> None:
        super().__init__(signal.Signals(number).name)
        self.number = number


def set_up_signals() -> None:
    """Makes SIGTERM and SIGHUP raise StopSignal once; one that was ignored, as by nohup, stays ignored."""
    for number in _ENDING:
        if signal.getsignal(number) is not signal.SIG_IGN:
            signal.signal(number, _stop)


def _stop(number: int, _frame: FrameType | None) -> None:
    # A terminal that closes sends SIGHUP more than once, which must not interrupt the tidying up.
    for one in _ENDING:
        signal.signal(one, signal.SIG_IGN)
    raise StopSignal(number)
