"""The interface by which a crawl reports its progress."""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol


class Progress(Protocol):
    """The methods that a crawl calls, always from its main thread."""

    def watch_bytes(self, received: Callable[[], int]) -> None:
        """From now on `received` returns the number of bytes received; any thread may call it."""
        ...

    def report_listing(self, repositories: int) -> None:
        """The number of repositories listed so far."""
        ...

    def working(self, done: int, total: int) -> None:
        """The number of listed repositories that are settled."""
        ...

    def note(self, text: str) -> None:
        """A note for the user: a resumed crawl, a broken listing."""
        ...
