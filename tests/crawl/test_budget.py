"""The request budget: no window of a server is ever exceeded, and no time is wasted; on a virtual clock."""

from __future__ import annotations

import json
import threading
from bisect import bisect_left
from collections import Counter
from math import floor
from pathlib import Path

import pytest
from huggingface_hub.utils import RateLimitInfo
from hypothesis import example, given, settings
from hypothesis import strategies as st

from crawler.hub import Hub, HubSettings
from crawler.hub.budget import (
    ANONYMOUS,
    DRAW,
    FREE_ACCOUNT,
    LONGEST_HELD,
    WINDOW,
    Clock,
    Draw,
    Kind,
    Lane,
    RateLimit,
    RequestBudget,
    SharedBudget,
    WaitCancelledError,
)
from tests.fakes import VirtualClock
from tests.hubs import make_repo
from tests.localhub import FaultHub, Limits


def server_limit(
    remaining: int, reset: int, limit: int | None = None, window: int | None = None
) -> RateLimitInfo:
    """What a server's headers say of its limit."""
    return RateLimitInfo("api", remaining, reset, limit, window)


def send(budget: RequestBudget, clock: VirtualClock, count: int, latency: float = 0.0) -> list[float]:
    """The times at which `count` API requests were let through."""
    times = []
    for _ in range(count):
        budget.acquire("api")
        times.append(clock.now())
        clock.advance(latency)
    return times


def fullest_window(times: list[float], phase: float, window: float = 300.0) -> int:
    """How many requests the fullest window of a server saw whose windows begin at `phase`."""
    return max(Counter(floor((time - phase) / window) for time in times).values())


@pytest.mark.parametrize("phase", [0.0, 0.5, 137.25, 299.999], ids=lambda phase: f"case-87-phase-{phase}")
def test_three_thousand_requests_never_break_a_fixed_window(phase: float) -> None:
    clock = VirtualClock()
    begun = clock.now()
    times = send(RequestBudget({"api": 1000}, clock=clock), clock, 3000, latency=0.05)
    assert fullest_window(times, phase) <= 1000
    # 900 a window: the rest waits for three windows to pass, and for nothing else.
    assert clock.now() - begun <= 3 * 300 + 3000 * 0.05


# The end of the first window, less the window, is rounded to before its beginning.
@example(limit=1, phase=0.0, gaps=[1.887231271474457, 0.0, 0.0])
@given(
    limit=st.integers(1, 40),
    phase=st.floats(0, 300),
    gaps=st.lists(st.floats(0, 90), min_size=1, max_size=120),
)
@settings(max_examples=60, deadline=None)
def test_any_pattern_stays_within_any_window(limit: int, phase: float, gaps: list[float]) -> None:
    clock = VirtualClock()
    budget = RequestBudget({"api": limit}, clock=clock, margin=0)
    times = []
    for gap in gaps:
        clock.advance(gap)
        budget.acquire("api")
        times.append(clock.now())
    assert fullest_window(times, phase) <= limit
    assert all(position - bisect_left(times, time - 299.99) < limit for position, time in enumerate(times))


def test_case_87_threads_share_one_budget() -> None:
    clock = VirtualClock()
    budget = RequestBudget({"api": 50}, clock=clock, margin=0)
    begun = clock.now()

    def work() -> None:
        for _ in range(40):
            budget.acquire("api")

    workers = [threading.Thread(target=work) for _ in range(8)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    # 320 requests, 50 a window: six windows have to pass before the last twenty.
    assert clock.now() - begun >= 6 * 300


def test_classes_are_counted_apart() -> None:
    clock = VirtualClock()
    budget = RequestBudget({"api": 2, "resolver": 2}, clock=clock, margin=0)
    assert [budget.acquire(kind) for kind in ("api", "api", "resolver", "resolver")] == [0, 0, 0, 0]
    assert budget.acquire("api") == pytest.approx(300)


def test_a_class_without_a_limit_never_waits() -> None:
    clock = VirtualClock()
    send(RequestBudget({}, clock=clock), clock, 10_000)
    assert clock.sleeps == []


@pytest.mark.parametrize(("limit", "at_once"), [(5, 4), (2000, 1800)], ids=["lower", "higher"])
def test_a_policy_of_the_server_replaces_the_limit(limit: int, at_once: int) -> None:
    clock = VirtualClock()
    budget = RequestBudget({"api": 1000}, clock=clock)
    budget.observe("api", server_limit(remaining=limit, reset=300, limit=limit, window=300))
    send(budget, clock, at_once)
    assert clock.sleeps == []
    assert budget.acquire("api") > 0


def test_the_servers_window_is_taken_over() -> None:
    clock = VirtualClock()
    budget = RequestBudget({"api": 10}, clock=clock, margin=0)
    budget.observe("api", server_limit(remaining=10, reset=60, limit=10, window=60))
    send(budget, clock, 10)
    assert budget.acquire("api") == pytest.approx(61)


def test_what_others_use_up_is_left_to_them() -> None:
    clock = VirtualClock()
    budget = RequestBudget({"api": 1000}, clock=clock, margin=0)
    budget.observe("api", server_limit(remaining=3, reset=120, limit=1000, window=300))
    send(budget, clock, 3)
    assert clock.sleeps == []
    assert budget.acquire("api") == pytest.approx(121)


def test_an_overtaken_answer_gives_nothing_back() -> None:
    clock = VirtualClock()
    budget = RequestBudget({}, clock=clock, margin=0)
    budget.observe("api", server_limit(remaining=1, reset=50))
    budget.observe("api", server_limit(remaining=400, reset=51))
    send(budget, clock, 1)
    assert budget.acquire("api") > 0


def test_a_new_window_of_the_server_counts_afresh() -> None:
    clock = VirtualClock()
    budget = RequestBudget({}, clock=clock, margin=0)
    budget.observe("api", server_limit(remaining=1, reset=2))
    clock.advance(2.5)
    budget.observe("api", server_limit(remaining=400, reset=300))
    send(budget, clock, 400)
    assert clock.sleeps == []


@pytest.mark.parametrize(
    "said",
    [
        server_limit(remaining=10**400, reset=10**400, limit=10**400, window=10**400),
        server_limit(remaining=0, reset=10**400),
        server_limit(remaining=0, reset=0, limit=0, window=0),
    ],
    ids=["huge", "never", "nothing"],
)
def test_a_server_that_lies_holds_nobody_for_long(said: RateLimitInfo) -> None:
    clock = VirtualClock()
    budget = RequestBudget({"api": 10}, clock=clock)
    budget.observe("api", said)
    assert budget.acquire("api") <= 601


def test_a_waiting_request_is_cancelled_and_not_counted() -> None:
    class Interrupted(VirtualClock):
        def sleep(self, seconds: float, wake: threading.Event | None = None) -> None:
            assert wake is not None
            wake.set()

    stop = threading.Event()
    budget = RequestBudget({"api": 1}, clock=Interrupted(), margin=0)
    budget.acquire("api", stop)
    with pytest.raises(WaitCancelledError):
        budget.acquire("api", stop)


def test_the_system_clock_wakes_up_when_told() -> None:
    wake = threading.Event()
    wake.set()
    clock = Clock()
    before = clock.now()
    clock.sleep(3600, wake)
    clock.sleep(-1)
    assert clock.now() >= before


@pytest.mark.parametrize("limits", [ANONYMOUS, FREE_ACCOUNT])
def test_every_class_has_a_default(limits: dict[str, int]) -> None:
    assert set(limits) == {"api", "resolver"}


@pytest.mark.parametrize("phase", [0.0, 100.0, 299.0], ids=lambda phase: f"case-87-phase-{phase}")
def test_a_hub_with_limits_never_has_to_refuse(tmp_path: Path, phase: float) -> None:
    make_repo(tmp_path, "someone/adapter")
    clock = VirtualClock()
    limits = Limits(api=20, window=300, clock=clock.now)
    with FaultHub(tmp_path, limits=limits) as server, Hub(HubSettings(server.url), clock=clock) as hub:
        clock.advance(phase)
        for _ in range(70):
            hub.repository("someone/adapter")
        assert {requests.status for requests in server.log} == {200}
        assert len(server.log) == 70
        assert hub.usage.waited_seconds > 0


class LaneLedger:
    """A ledger of API requests on a virtual clock."""

    def __init__(self, quota: int, clock: VirtualClock) -> None:
        self.lane, self._clock = Lane(quota), clock

    def draw(self, kind: Kind, most: int, limit: RateLimit | None) -> Draw:
        """Draws of the one lane, through JSON as the catalog keeps it."""
        self.lane = Lane.from_json(json.loads(json.dumps(self.lane.as_json())))
        now = self._clock.now()
        if limit is not None:
            self.lane.observe(now, limit, 0.0)
        return self.lane.draw(now, most)

    def give_back(self, kind: Kind, draw: Draw, count: int) -> None:
        """Gives back to the one lane."""
        self.lane.give_back(draw, count)


@given(
    st.lists(
        st.tuples(st.integers(0, 2), st.integers(0, 2 * DRAW), st.booleans(), st.floats(0, WINDOW)),
        max_size=12,
    )
)
def test_processes_of_one_account_never_break_a_window(steps: list[tuple[int, int, bool, float]]) -> None:
    """They send, return what is left, and rest, in any order."""
    clock = VirtualClock()
    ledger = LaneLedger(2 * DRAW, clock)
    budgets = [SharedBudget(ledger, clock=clock) for _ in range(3)]
    times: list[float] = []
    for who, count, close, pause in steps:
        times += send(budgets[who], clock, count)
        if close:
            budgets[who].close()
        clock.advance(pause)
    for budget in budgets:
        budget.close()
    ends = [bisect_left(times, time + WINDOW - LONGEST_HELD) for time in times]
    assert max((end - place for place, end in enumerate(ends)), default=0) <= 2 * DRAW
    assert sum(number for _, number in ledger.lane.sent) == ledger.lane.used


def test_a_process_that_returns_its_draw_leaves_a_later_one_of_another() -> None:
    clock = VirtualClock()
    ledger = LaneLedger(2 * DRAW, clock)
    one, two = (SharedBudget(ledger, clock=clock) for _ in range(2))
    one.acquire("api")
    clock.advance(100)
    times = send(two, clock, DRAW)
    one.close()
    clock.advance(WINDOW - 100)
    times += send(two, clock, 3 * DRAW)
    assert max(bisect_left(times, time + WINDOW) - place for place, time in enumerate(times)) <= 2 * DRAW


def test_what_is_returned_raises_no_allowance_of_a_later_window() -> None:
    clock = VirtualClock()
    ledger = LaneLedger(1000, clock)
    one, two = (SharedBudget(ledger, clock=clock) for _ in range(2))
    for budget in (one, two):
        budget.observe("api", server_limit(500, 100))
        budget.acquire("api")
    one.close()
    assert ledger.lane.allowance == 500 - DRAW - 1
    clock.advance(150)
    ledger.lane.observe(clock.now(), server_limit(7, 300), 0.0)
    two.close()
    assert (ledger.lane.allowance, ledger.lane.used) == (7, 2)
