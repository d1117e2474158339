"""Progress bars on standard error. Imported only where there is a terminal or a notebook to draw on."""

from __future__ import annotations

from collections.abc import Callable
from types import TracebackType

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    ProgressColumn,
    SpinnerColumn,
    Task,
    TaskID,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)
from rich.text import Text

from loradex.events import ByteRate, ProgressEvent
from loradex.text import plain


class RateColumn(ProgressColumn):
    """How many a second, over the last half minute."""

    def render(self, task: Task) -> Text:
        """The rate, or nothing as long as there is none."""
        return Text(f"{task.speed:.1f}/s" if task.speed else "", style="progress.data.speed")


class TimeLeftColumn(TimeRemainingColumn):
    """The remaining time, followed by the word left; empty while it is unknown and when all is done."""

    def render(self, task: Task) -> Text:
        """The remaining time in words."""
        is_running = task.total is not None and task.time_remaining is not None and not task.finished
        text = super().render(task).append(" left") if is_running else Text("")
        text.no_wrap = True
        return text


class BytesColumn(ProgressColumn):
    """The bytes that have arrived and their rate, where they are counted."""

    rate: ByteRate | None = None

    def render(self, task: Task) -> Text:
        """The amount and the rate, or nothing."""
        return Text(self.rate.text() if self.rate else "", style="progress.download", no_wrap=True)


class CountColumn(MofNCompleteColumn):
    """How many of how many; how many by now where the total is unknown."""

    def render(self, task: Task) -> Text:
        """The counts."""
        return Text(f"{int(task.completed):,}") if task.total is None else super().render(task)


class ProgressBars:
    """Events as bars, one a step, and notes as lines above them; a context manager, used from one thread.

    Bars appear with the first count; notes before it go to `write`.
    """

    def __init__(self, write: Callable[[str], None], console: Console | None = None) -> None:
        self._write = write
        self._bytes = BytesColumn()
        self._bars = Progress(
            SpinnerColumn(),
            TextColumn("{task.description}", markup=False),
            BarColumn(bar_width=None),
            CountColumn(),
            RateColumn(),
            self._bytes,
            TimeElapsedColumn(),
            TimeLeftColumn(),
            expand=True,
            console=console or Console(stderr=True, markup=False, highlight=False, emoji=False),
        )
        self._tasks: dict[str, TaskID] = {}

    def __enter__(self) -> ProgressBars:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._tasks:
            self._bars.stop()

    def __call__(self, event: ProgressEvent) -> None:
        if event.received is not None:
            self._bytes.rate = ByteRate(event.received)
        if event.note and self._tasks:
            self._bars.console.print(Text(plain(event.note)))
        elif event.note:
            self._write(event.note)
        if event.done is not None:
            self._count(event.step, event.done, event.total)

    def _count(self, step: str, done: int, total: int | None) -> None:
        if not self._tasks:
            self._bars.start()
        if step not in self._tasks:
            self._tasks[step] = self._bars.add_task(plain(step), total=None)
        task = self._tasks[step]
        for other in self._bars.tasks:
            if total is not None and other.total is None and other.id != task:
                self._bars.update(other.id, visible=False)
        self._bars.update(task, completed=done, total=total)
