"""What a long call reports of its progress, and the events as lines."""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass

from loradex.text import format_bytes, format_duration

# The interval in seconds at which a long call reports progress without a terminal.
LINE_SECONDS = 60.0
# The time in seconds over which the rate of downloads is computed.
RATE_SECONDS = 30.0


@dataclass(frozen=True)
class ProgressEvent:
    """How far a step of a call is, or a note about it.

    `step` names the step ("merging"); `done` of `total` parts of it are finished, and `total` is None while
    the parts are still being listed. An event with `note` carries one line of text, and `done` is then None.
    `received` returns the number of bytes that have arrived from the Hub by now; any thread may call it.
    """

    step: str
    done: int | None = None
    total: int | None = None
    note: str = ""
    received: Callable[[], int] | None = None


ProgressCallback = Callable[[ProgressEvent], None]
ProgressOption = bool | ProgressCallback


@dataclass(frozen=True)
class ProgressStep:
    """One step of a call as the crawler and the merges report on it; each report is an event."""

    report: ProgressCallback
    name: str

    def working(self, done: int, total: int) -> None:
        """Reports that `done` of `total` parts are finished."""
        self.report(ProgressEvent(self.name, done, total))

    def report_listing(self, count: int) -> None:
        """Reports that `count` parts are listed by now."""
        self.report(ProgressEvent("listing", count))

    def note(self, text: str) -> None:
        """Reports one line of text."""
        self.report(ProgressEvent(self.name, note=text))

    def watch_bytes(self, received: Callable[[], int]) -> None:
        """Reports how the number of bytes that have arrived can be read from now on."""
        self.report(ProgressEvent(self.name, received=received))


class ByteRate:
    """Bytes that arrive: how many there are, and how many a second over the last half minute."""

    def __init__(self, received: Callable[[], int], clock: Callable[[], float] = time.monotonic) -> None:
        self._received, self._clock = received, clock
        self._samples: deque[tuple[float, int]] = deque()
        self._lock = threading.Lock()

    def text(self) -> str:
        """The amount and the rate: 1.2 GB, 8.5 MB/s."""
        now, received = self._clock(), self._received()
        with self._lock:
            self._samples.append((now, received))
            while len(self._samples) > 2 and now - self._samples[1][0] >= RATE_SECONDS:
                self._samples.popleft()
            since, before = self._samples[0]
        rate = f", {format_bytes((received - before) / (now - since))}/s" if now - since > 0.5 else ""
        return f"{format_bytes(received)}{rate}"


class ProgressLines:
    """Events as lines: each note, and once a minute how far the step is."""

    def __init__(self, write: Callable[[str], None], clock: Callable[[], float] = time.monotonic) -> None:
        self._write, self._clock = write, clock
        self._bytes: ByteRate | None = None
        self._written = clock()
        self._start: tuple[str, float, int] | None = None

    def __call__(self, event: ProgressEvent) -> None:
        if event.note:
            self._write(event.note)
        if event.received is not None:
            self._bytes = ByteRate(event.received, self._clock)
        if event.done is None:
            return
        if event.total is None:
            self._write_at_times(f"{event.step}: {event.done:,} so far")
        else:
            time_left = self._estimate(event.step, event.done, event.total)
            self._write_at_times(f"{event.step}: {event.done:,} of {event.total:,}{time_left}")

    def _estimate(self, step: str, done: int, total: int) -> str:
        now = self._clock()
        if self._start is None or self._start[0] != step:
            self._start = (step, now, done)
        _, since, before = self._start
        if done <= before:
            return ""
        return f", about {format_duration((now - since) * (total - done) / (done - before))} left"

    def _write_at_times(self, text: str) -> None:
        if self._clock() - self._written >= LINE_SECONDS:
            self._written = self._clock()
            self._write(f"{text} ({self._bytes.text()})" if self._bytes else text)
