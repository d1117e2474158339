"""Connecting to Ray: one that does not start is tried again, and a failure is one sentence."""

from __future__ import annotations

import ctypes
import signal
import sys
from types import SimpleNamespace
from typing import Any

import pytest

from catalog.cluster import connect_ray
from catalog.errors import UsageError


class FakeRay(SimpleNamespace):
    """The calls of Ray that connect, of which the first so many fail."""

    def __init__(self, failures: int, *, connected: bool = False) -> None:
        printing = SimpleNamespace(worker=SimpleNamespace(_worker_logs_enabled=True))
        super().__init__(failures=failures, connected=connected, calls=[], _private=printing)

    def is_initialized(self) -> bool:
        """Whether the process is connected."""
        return self.connected

    def init(self, **arguments: Any) -> None:
        """Fails as Ray does whose processes take too long to start."""
        self.calls.append(arguments["address"])
        if self.failures:
            self.failures -= 1
            raise Exception("The current node timed out during startup.")
        if self.connected:
            raise RuntimeError("Maybe you called ray.init twice by accident?")
        self.connected = True
        # Ray's own handlers, of which Python knows one; these do nothing.
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        c_signal = ctypes.CDLL(None).signal
        c_signal.argtypes = (ctypes.c_int, ctypes.c_void_p)
        c_signal(signal.SIGTERM, int(signal.SIG_IGN))

    def shutdown(self) -> None:
        """Ends what was started."""
        self.calls.append("shutdown")
        self.connected = False


@pytest.mark.parametrize(("failures", "starts"), [(0, 1), (2, 3)])
def test_a_cluster_of_this_machine_is_started_again(
    failures: int, starts: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("catalog.cluster.require_extra", lambda *_: None)
    monkeypatch.setitem(sys.modules, "ray", FakeRay(failures))
    with connect_ray(None, 2) as ray:
        assert ray.calls == ["local", "shutdown"] * (starts - 1) + ["local"]
        assert not ray._private.worker._worker_logs_enabled
    assert ray.calls[-1] == "shutdown"
    assert ray._private.worker._worker_logs_enabled


@pytest.mark.parametrize("address", [None, "a:1"])
def test_the_handler_of_sigterm_stays_that_of_the_program(
    address: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("catalog.cluster.require_extra", lambda *_: None)
    monkeypatch.setitem(sys.modules, "ray", FakeRay(0))
    received: list[int] = []
    before = signal.signal(signal.SIGTERM, lambda number, _: received.append(number))
    try:
        with connect_ray(address, None):
            signal.raise_signal(signal.SIGTERM)
    finally:
        signal.signal(signal.SIGTERM, before)
    assert received == [signal.SIGTERM]


@pytest.mark.parametrize(
    ("address", "told", "starts"),
    [(None, "Ray did not start on this machine", 3), ("a:1", "No Ray cluster found at a:1", 1)],
)
def test_a_cluster_that_is_not_there(
    address: str | None, told: str, starts: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    ray = FakeRay(9)
    monkeypatch.setattr("catalog.cluster.require_extra", lambda *_: None)
    monkeypatch.setitem(sys.modules, "ray", ray)
    with pytest.raises(UsageError, match=told), connect_ray(address, 2):
        pytest.fail("connected")
    assert ray.calls.count(address or "local") == starts


@pytest.mark.parametrize("address", [None, "a:1"])
def test_a_session_of_the_process_itself_stays(address: str | None, monkeypatch: pytest.MonkeyPatch) -> None:
    ray = FakeRay(0, connected=True)
    monkeypatch.setattr("catalog.cluster.require_extra", lambda *_: None)
    monkeypatch.setitem(sys.modules, "ray", ray)
    told = "connected to Ray already; call `ray.shutdown\\(\\)` first"
    with pytest.raises(UsageError, match=told), connect_ray(address, 2):
        pytest.fail("connected twice")
    assert (ray.connected, ray.calls) == (True, [])
