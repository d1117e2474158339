"""SIGTERM and SIGHUP end the program as Ctrl-C does: what it holds is released, and it says how to go on."""

from __future__ import annotations

import signal
import sys
import threading
from types import FrameType
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from sys import UnraisableHookArgs

# If Python loses an interrupt, it is sent again after this many seconds.
_PAUSE = 0.01
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
    report = sys.unraisablehook

    def send_again(lost: UnraisableHookArgs) -> None:
        """An interrupt that falls into a finaliser or a callback of a weak reference ends there otherwise."""
        if not issubclass(lost.exc_type, KeyboardInterrupt):
            report(lost)
            return
        number = lost.exc_value.number if isinstance(lost.exc_value, StopSignal) else signal.SIGINT
        if number in _ENDING:
            signal.signal(number, _stop)
        again = threading.Timer(_PAUSE, signal.pthread_kill, (threading.main_thread().ident, number))
        again.daemon = True
        again.start()

    sys.unraisablehook = send_again


def _stop(number: int, _frame: FrameType | None) -> None:
    # A terminal that closes sends SIGHUP more than once, which must not interrupt the tidying up.
    for ending in _ENDING:
        signal.signal(ending, signal.SIG_IGN)
    raise StopSignal(number)
