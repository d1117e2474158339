"""Requests per window: the number that may be sent now, and the wait for the next one.

The Hub counts requests in fixed windows of five minutes, API and resolver requests apart
(https://huggingface.co/docs/hub/rate-limits). Where its windows begin is not known, so the budget holds in
every sliding window: then no fixed window, at any phase, sees more than the budget either.
"""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    from huggingface_hub.utils import RateLimitInfo  # type: ignore[attr-defined]  # exported lazily

Kind = Literal["api", "resolver"]

WINDOW = 300.0
ANONYMOUS: Mapping[Kind, int] = {"api": 500, "resolver": 3000}
FREE_ACCOUNT: Mapping[Kind, int] = {"api": 1000, "resolver": 5000}

# A wait that rounds to zero would never advance the clock.
_SHORTEST_WAIT = 0.001
# The reset that a server names is in whole seconds, rounded either way.
_RESET_SLACK = 1.0
# Two answers from one fixed window name ends that differ by rounding and travel time only, in seconds.
_SAME_END = 5.0
_LARGEST_LIMIT = 1_000_000_000


class WaitCancelledError(Exception):
    """A wait ended because the caller's stop event was set; the work can be resumed."""


class Clock:
    """The machine's monotonic clock, by which the crawler waits."""

    def now(self) -> float:
        """Seconds since some fixed point."""
        return time.monotonic()

    def sleep(self, seconds: float, wake: threading.Event | None = None) -> None:
        """Return after `seconds`, or as soon as `wake` is set."""
        (wake or threading.Event()).wait(max(0.0, seconds))


@dataclass
class _Lane:
    """One class of requests: its quota, when requests were sent, and the server's allowance until `until`."""

    quota: int | None
    window: float
    sent: deque[float] = field(default_factory=deque)
    allowance: int | None = None
    until: float = 0.0

    def wait(self, now: float) -> float:
        """Seconds until one more request may be sent; 0 for now."""
        while self.sent and self.sent[0] <= now - self.window:
            self.sent.popleft()
        wait = 0.0
        if self.quota is not None and len(self.sent) >= self.quota:
            wait = self.sent[len(self.sent) - self.quota] + self.window - now
        if self.allowance is not None and now >= self.until:
            self.allowance = None
        if self.allowance is not None and self.allowance <= 0:
            wait = max(wait, self.until - now)
        return wait

    def take(self, now: float) -> None:
        """Count one request as sent now."""
        if self.quota is not None:
            self.sent.append(now)
        if self.allowance is not None:
            self.allowance -= 1


class RequestBudget:
    """Lets requests through so that no sliding window holds more than the limit of their class; thread-safe.

    A class without a limit is allowed until a server names one. `margin` is the share of every limit
    that stays unused, for other programs under the same account and for requests that arrive later than
    they were sent.
    """

    def __init__(
        self,
        limits: Mapping[Kind, int],
        *,
        window: float = WINDOW,
        clock: Clock | None = None,
        margin: float = 0.1,
    ) -> None:
        self._clock = clock or Clock()
        self._margin = margin
        self._lock = threading.Lock()
        kinds: tuple[Kind, ...] = ("api", "resolver")
        self._lanes = {
            kind: _Lane(self._quota(limits[kind]) if kind in limits else None, window) for kind in kinds
        }

    def acquire(self, kind: Kind, wake: threading.Event | None = None) -> float:
        """Seconds waited until one request of this class was allowed, and counted as sent.

        Raises WaitCancelledError, without counting, once `wake` is set.
        """
        lane = self._lanes[kind]
        waited = 0.0
        while True:
            if wake is not None and wake.is_set():
                raise WaitCancelledError(f"stopped while waiting to send a {kind} request")
            with self._lock:
                now = self._clock.now()
                wait = lane.wait(now)
                if wait <= 0:
                    lane.take(now)
                    return waited
            self._clock.sleep(max(wait, _SHORTEST_WAIT), wake)
            waited += self._clock.now() - now

    def observe(self, kind: Kind, limit: RateLimitInfo) -> None:
        """Adopt the server's limit: its policy replaces the limit, its count can only lower it."""
        lane = self._lanes[kind]
        with self._lock:
            now = self._clock.now()
            if limit.window_seconds is not None and 1 <= limit.window_seconds <= 86_400:
                lane.window = float(limit.window_seconds)
            reserve = 0
            if limit.limit is not None and 1 <= limit.limit <= _LARGEST_LIMIT:
                lane.quota = self._quota(limit.limit)
                reserve = limit.limit - lane.quota
            allowance = max(0, limit.remaining - reserve)
            until = now + min(max(0.0, limit.reset_in_seconds), 2 * lane.window) + _RESET_SLACK
            next_window = now >= lane.until or until > lane.until + _SAME_END
            if lane.allowance is None or next_window:
                lane.allowance, lane.until = allowance, until
            else:
                # An answer that was overtaken by others still names the higher count of its own moment.
                lane.allowance, lane.until = min(lane.allowance, allowance), max(lane.until, until)

    def _quota(self, limit: int) -> int:
        return max(1, int(limit * (1 - self._margin)))
