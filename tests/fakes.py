"""Hand-written stand-ins for outside things: a clock, and a server that says what no HTTP server would."""

from __future__ import annotations

import socket
import threading
from collections.abc import Callable, Iterable
from types import TracebackType


class VirtualClock:
    """A clock that moves only when somebody sleeps on it; safe to share between threads.

    `sleeps` holds every wait asked for, in seconds and in order.
    """

    def __init__(self, start: float = 1_000.0) -> None:
        self._now = start
        self._lock = threading.Lock()
        self.sleeps: list[float] = []

    def now(self) -> float:
        with self._lock:
            return self._now

    def sleep(self, seconds: float, wake: threading.Event | None = None) -> None:
        if wake is not None and wake.is_set():
            return
        with self._lock:
            self.sleeps.append(seconds)
            self._now += max(0.0, seconds)

    def advance(self, seconds: float) -> None:
        with self._lock:
            self._now += seconds


class RawServer:
    """A socket on loopback that answers one request of each connection with the pieces `say` makes of it.

    `pause` seconds lie between two pieces. A connection ends after the last one, or when the client leaves.
    """

    def __init__(self, say: Callable[[bytes], Iterable[bytes]], pause: float = 0.0) -> None:
        self._say = say
        self._pause = pause
        self._stop = threading.Event()
        self._threads: list[threading.Thread] = []
        self.heads: list[bytes] = []
        self.url = ""

    def __enter__(self) -> RawServer:
        self._listener = socket.create_server(("127.0.0.1", 0))
        self._listener.settimeout(0.05)
        self.url = f"http://127.0.0.1:{self._listener.getsockname()[1]}"
        self._start(self._accept)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stop.set()
        for thread in self._threads:
            thread.join()
        self._listener.close()

    def _start(self, work: Callable[[], None]) -> None:
        thread = threading.Thread(target=work, daemon=True)
        self._threads.append(thread)
        thread.start()

    def _accept(self) -> None:
        while not self._stop.is_set():
            try:
                connection, _ = self._listener.accept()
            except TimeoutError:
                continue
            self._start(lambda connection=connection: self._answer(connection))  # type: ignore[misc]  # bound now

    def _answer(self, connection: socket.socket) -> None:
        with connection:
            connection.settimeout(5)
            head = b""
            try:
                while b"\r\n\r\n" not in head:
                    piece = connection.recv(65_536)
                    if not piece:
                        return
                    head += piece
                self.heads.append(head)
                for piece in self._say(head):
                    connection.sendall(piece)
                    if self._stop.wait(self._pause):
                        return
            except OSError:
                return
