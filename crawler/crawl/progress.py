"""How a crawl tells whoever watches how far it is."""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol


class Progress(Protocol):
    """What a crawl calls, always from its own thread."""

    def watch_bytes(self, received: Callable[[], int]) -> None:
        """From now on `received` gives the number of bytes that have arrived; any thread may ask."""
        ...

    def report_listing(self, repositories: int) -> None:
        """So many repositories are listed by now."""
        ...

    def working(self, done: int, total: int) -> None:
        """So many of the listed are settled."""
        ...

    def note(self, text: str) -> None:
        """Something worth a line: a resumed crawl, a broken listing."""
        ...
