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
from typing import Any, Literal, Protocol


class RateLimit(Protocol):
    """What a server says of its limit, as huggingface_hub reads it."""

    @property
    def remaining(self) -> int:
        """Requests left in the window."""
        ...

    @property
    def reset_in_seconds(self) -> int:
        """Seconds until the window ends."""
        ...

    @property
    def limit(self) -> int | None:
        """Requests allowed in a window."""
        ...

    @property
    def window_seconds(self) -> int | None:
        """The length of a window."""
        ...


Kind = Literal["api", "resolver"]
KINDS: tuple[Kind, ...] = ("api", "resolver")
# The requests that a process draws at once of a budget that it shares.
DRAW = 20
# Seconds for which they may be sent: they count from when they were drawn.
LONGEST_HELD = 10.0
# The share of every limit that stays unused.
MARGIN = 0.1

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


@dataclass(frozen=True)
class Draw:
    """Requests that were counted as sent: how many and when, and the end of the server's allowance then;
    where there are none, the seconds to wait.
    """

    count: int
    time: float
    until: float
    wait: float = 0.0


@dataclass
class Lane:
    """One class of requests: its quota, when how many were sent, and the server's allowance until `until`."""

    quota: int | None
    window: float = WINDOW
    sent: deque[tuple[float, int]] = field(default_factory=deque)
    allowance: int | None = None
    until: float = 0.0
    used: int = 0

    def wait(self, now: float) -> float:
        """Seconds until one more request may be sent; 0 for now."""
        # By the same sum as the wait below, so that what has ended is no longer waited for.
        while self.sent and self.sent[0][0] + self.window <= now:
            self.used -= self.sent.popleft()[1]
        wait = 0.0
        if self.quota is not None and self.used >= self.quota:
            wait = self._time_of_release(self.used - self.quota + 1) + self.window - now
        if self.allowance is not None and now >= self.until:
            self.allowance = None
        if self.allowance is not None and self.allowance <= 0:
            wait = max(wait, self.until - now)
        return wait

    def take(self, now: float, most: int = 1) -> int:
        """Counts at most so many requests as sent now; how many are allowed. The caller has not to wait."""
        count = most
        if self.quota is not None:
            count = min(count, self.quota - self.used)
        if self.allowance is not None:
            count = min(count, self.allowance)
            self.allowance -= count
        if self.quota is not None and count:
            self.sent.append((now, count))
            self.used += count
        return count

    def draw(self, now: float, most: int) -> Draw:
        """As `take`, or the wait for the next request."""
        wait = self.wait(now)
        count = 0 if wait > 0 else self.take(now, most)
        return Draw(count, now, self.until, max(0.0, wait))

    def give_back(self, draw: Draw, count: int) -> None:
        """Takes back `count` requests of a draw that were not sent.

        What others drew stays, and so does what the server allows in a later window.
        """
        if self.allowance is not None and abs(self.until - draw.until) <= _SAME_END:
            self.allowance += count
        for place, (time_sent, number) in enumerate(self.sent):
            if time_sent == draw.time:
                returned = min(count, number)
                self.sent[place] = (time_sent, number - returned)
                self.used -= returned
                count -= returned

    def observe(self, now: float, limit: RateLimit, margin: float) -> None:
        """Adopts the server's limit: its policy replaces the limit, its count can only lower it."""
        if limit.window_seconds is not None and 1 <= limit.window_seconds <= 86_400:
            self.window = float(limit.window_seconds)
        reserve = 0
        if limit.limit is not None and 1 <= limit.limit <= _LARGEST_LIMIT:
            self.quota = usable(limit.limit, margin)
            reserve = limit.limit - self.quota
        allowance = max(0, limit.remaining - reserve)
        until = now + min(max(0.0, limit.reset_in_seconds), 2 * self.window) + _RESET_SLACK
        next_window = now >= self.until or until > self.until + _SAME_END
        if self.allowance is None or next_window:
            self.allowance, self.until = allowance, until
        else:
            # An answer that was overtaken by others still names the higher count of its own moment.
            self.allowance, self.until = min(self.allowance, allowance), max(self.until, until)

    def _time_of_release(self, count: int) -> float:
        """When the request was sent with whose end so many of the window have ended."""
        for time_sent, number in self.sent:
            count -= number
            if count <= 0:
                return time_sent
        return self.sent[-1][0] if self.sent else 0.0

    def as_json(self) -> dict[str, Any]:
        """The state as plain values."""
        return {**vars(self), "sent": [list(entry) for entry in self.sent]}

    @classmethod
    def from_json(cls, state: dict[str, Any]) -> Lane:
        """The lane of a state."""
        return cls(**{**state, "sent": deque((at, number) for at, number in state["sent"])})


def usable(limit: int, margin: float = MARGIN) -> int:
    """The requests of a limit that are sent."""
    return max(1, int(limit * (1 - margin)))


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
        margin: float = MARGIN,
    ) -> None:
        self._clock = clock or Clock()
        self._margin = margin
        self._lock = threading.Lock()
        self._lanes = {
            kind: Lane(usable(limits[kind], margin) if kind in limits else None, window) for kind in KINDS
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
                if wait <= 0 and lane.take(now):
                    return waited
            self._clock.sleep(max(wait, _SHORTEST_WAIT), wake)
            waited += self._clock.now() - now

    def observe(self, kind: Kind, limit: RateLimit) -> None:
        """Adopt the server's limit: its policy replaces the limit, its count can only lower it."""
        with self._lock:
            self._lanes[kind].observe(self._clock.now(), limit, self._margin)


class Ledger(Protocol):
    """The requests of one account, of which all its processes draw."""

    def draw(self, kind: Kind, most: int, limit: RateLimit | None) -> Draw:
        """The requests that may be sent now, at most `most`.

        `limit` is what the server said last, as far as no earlier draw told.
        """
        ...

    def give_back(self, kind: Kind, draw: Draw, count: int) -> None:
        """Returns `count` requests of a draw that were not sent."""
        ...


class SharedBudget(RequestBudget):
    """The share of one process in the budget of an account: it draws DRAW requests at a time, and returns
    those that it has not sent after LONGEST_HELD seconds.
    """

    def __init__(self, ledger: Ledger, *, clock: Clock | None = None) -> None:
        super().__init__({}, clock=clock)
        self._ledger = ledger
        self._left: dict[Kind, int] = dict.fromkeys(KINDS, 0)
        # Of one draw each: the next one follows when nothing is left.
        self._draws: dict[Kind, Draw] = {}
        self._drawn_at: dict[Kind, float] = {}
        self._limits: dict[Kind, RateLimit] = {}

    def acquire(self, kind: Kind, wake: threading.Event | None = None) -> float:
        """As `RequestBudget.acquire`."""
        waited = 0.0
        while True:
            if wake is not None and wake.is_set():
                raise WaitCancelledError(f"stopped while waiting to send a {kind} request")
            with self._lock:
                if self._left[kind] and self._clock.now() - self._drawn_at[kind] > LONGEST_HELD:
                    self._return(kind)
                if not self._left[kind]:
                    limit = self._limits.pop(kind, None)
                    self._draws[kind] = self._ledger.draw(kind, DRAW, limit)
                    self._left[kind] = self._draws[kind].count
                    self._drawn_at[kind] = self._clock.now()
                if self._left[kind]:
                    self._left[kind] -= 1
                    return waited
                wait = self._draws[kind].wait
            began = self._clock.now()
            self._clock.sleep(max(wait, _SHORTEST_WAIT), wake)
            waited += self._clock.now() - began

    def observe(self, kind: Kind, limit: RateLimit) -> None:
        """Keeps the server's limit for the next draw; drawn requests that it no longer allows are dropped."""
        with self._lock:
            self._limits[kind] = limit
            self._left[kind] = min(self._left[kind], max(0, limit.remaining))

    def close(self) -> None:
        """Returns what was drawn and not sent."""
        with self._lock:
            for kind in KINDS:
                self._return(kind)

    def _return(self, kind: Kind) -> None:
        if self._left[kind]:
            self._ledger.give_back(kind, self._draws[kind], self._left[kind])
            self._left[kind] = 0
