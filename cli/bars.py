"""Progress bars on stderr. Imported when there is a terminal to draw on."""

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
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)
from rich.text import Text

from cli.output import Flow, plain


class RateColumn(ProgressColumn):
    """How many a second, over the last half minute."""

    def render(self, task: Task) -> Text:
        """The rate, or nothing as long as there is none."""
        return Text(f"{task.speed:.1f}/s" if task.speed else "", style="progress.data.speed")


class LeftColumn(TimeRemainingColumn):
    """The time that is left, said to be that; nothing before it can be told and when all is done."""

    def render(self, task: Task) -> Text:
        """The remaining time in words."""
        known = task.total is not None and task.time_remaining is not None and not task.finished
        left = super().render(task).append(" left") if known else Text("")
        left.no_wrap = True
        return left


class FlowColumn(ProgressColumn):
    """The bytes that have arrived and their rate, where somebody counts them."""

    flow: Flow | None = None

    def render(self, task: Task) -> Text:
        """The amount and the rate, or nothing."""
        return Text(self.flow.words() if self.flow else "", style="progress.download", no_wrap=True)


class CountColumn(MofNCompleteColumn):
    """How many of how many; of those that nobody can count yet, how many by now."""

    def render(self, task: Task) -> Text:
        """The counts."""
        return Text(f"{int(task.completed):,}") if task.total is None else super().render(task)


class Bars:
    """One bar for what is found and one for what is done of it; a context manager, used from one thread."""

    def __init__(self, label: str, console: Console | None = None) -> None:
        self._flow = FlowColumn()
        self._bars = Progress(
            SpinnerColumn(),
            TextColumn("{task.description}", markup=False),
            BarColumn(bar_width=None),
            CountColumn(),
            RateColumn(),
            self._flow,
            TimeElapsedColumn(),
            LeftColumn(),
            expand=True,
            console=console or Console(stderr=True, markup=False, highlight=False, emoji=False),
        )
        self._found = self._bars.add_task("listing", total=None, visible=False)
        self._done = self._bars.add_task(plain(label), total=None, visible=False)

    def __enter__(self) -> Bars:
        self._bars.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._bars.stop()

    def watch_bytes(self, received: Callable[[], int]) -> None:
        """From now on the bars show how many bytes have arrived."""
        self._flow.flow = Flow(received)

    def listed(self, repositories: int) -> None:
        """So many things are found by now."""
        self._bars.update(self._found, completed=repositories, visible=True)

    def working(self, done: int, total: int) -> None:
        """So many of them are done."""
        self._bars.update(self._found, visible=False)
        self._bars.update(self._done, completed=done, total=total, visible=True)

    def note(self, text: str) -> None:
        """A line above the bars."""
        self._bars.console.print(Text(plain(text)))
