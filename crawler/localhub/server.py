"""A folder of repositories, served over the Hub's protocol on this machine.

The real client works against it: `HF_ENDPOINT=http://127.0.0.1:PORT`. `serve` blocks, for the command
line; `LocalHub` runs in a thread, keeps a log of requests and takes faults, for tests.
"""

from __future__ import annotations

import math
import os
import socket
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType

import uvicorn
from starlette.applications import Starlette
from starlette.datastructures import MutableHeaders
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.responses import Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from catalog.errors import LoradexError, UsageError
from crawler.localhub.api import HubApi, RefusedError, refused
from crawler.localhub.faults import Fault, SeenRequest, spoil
from crawler.localhub.folder import HubFolder
from crawler.localhub.listing import BadQueryError

BACKLOG = 128
LOOPBACK = "127.0.0.1"
START_SECONDS = 30.0


@dataclass(frozen=True)
class Limits:
    """Requests allowed in each fixed window of so many seconds; None is no limit."""

    api: int | None = None
    resolver: int | None = None
    window: float = 300.0
    clock: Callable[[], float] = time.monotonic


def create_app(
    root: Path,
    *,
    faults: Sequence[Fault] = (),
    limits: Limits | None = None,
    cdn: str | None = None,
    redirect_small: bool = False,
) -> Starlette:
    """The application that serves the repositories below `root`. Raises UsageError where there is no folder.

    `cdn` is the URL of this same application under another origin, to which LFS bodies are redirected.
    """
    return _build(root, faults, limits, cdn, redirect_small, None)


def serve(root: Path, host: str, port: int, announce: Callable[[str], None] | None = None) -> None:
    """Serves the folder until it is interrupted; `announce` gets the URL once connections are accepted.

    Raises UsageError where the folder or the address cannot be used.
    """
    app = create_app(root)
    with _listen(host, port) as listener:
        server = _Server(app, (lambda: announce(_url(listener))) if announce is not None else _nothing)
        try:
            server.run(sockets=[listener])
        except KeyboardInterrupt:  # the usual way to stop it
            return


class LocalHub:
    """A folder served on loopback for as long as the `with` block lasts; ready when it begins.

    `faults` is a list that may be changed while the Hub runs. With `cdn` the bodies of LFS files come
    from a second port, through a redirect. `redirect_small` sends readers of the other files through
    /api/resolve-cache, which counts as one more resolver request.
    """

    def __init__(
        self,
        root: Path,
        *,
        port: int = 0,
        faults: Sequence[Fault] = (),
        limits: Limits | None = None,
        cdn: bool = False,
        redirect_small: bool = False,
    ) -> None:
        self.root = root
        self.faults = list(faults)
        self.url = ""
        self.cdn_url: str | None = None
        self._port = port
        self._limits = limits
        self._cdn = cdn
        self._redirect_small = redirect_small
        self._requests = _RequestLog()
        self._stop: Callable[[], None] = _nothing

    def __enter__(self) -> LocalHub:
        listeners = [_listen(LOOPBACK, self._port)]
        if self._cdn:
            listeners.append(_listen(LOOPBACK, 0))
            self.cdn_url = _url(listeners[1])
        self.url = _url(listeners[0])
        ready = threading.Event()
        try:
            app = _build(
                self.root, self.faults, self._limits, self.cdn_url, self._redirect_small, self._requests
            )
            server = _Server(app, ready.set)
            thread = threading.Thread(target=server.run, args=(listeners,), name="local-hub", daemon=True)
            thread.start()
            self._stop = _stopper(server, thread)
            if not ready.wait(START_SECONDS):
                raise LoradexError("The local Hub did not start; its thread died or hangs.")
        except LoradexError:
            for listener in listeners:
                listener.close()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stop()

    @property
    def log(self) -> list[SeenRequest]:
        """Every request so far, in order of arrival; a copy."""
        return self._requests.seen()

    def count(self, kind: str) -> int:
        """How many requests of this kind (api, resolver, cdn, other) have arrived."""
        return sum(request.kind == kind for request in self.log)

    def clear(self) -> None:
        """Forgets the requests so far."""
        self._requests.clear()


class _RequestLog:
    def __init__(self) -> None:
        self._seen: list[SeenRequest] = []
        self._lock = threading.Lock()

    def add(self, request: SeenRequest) -> None:
        with self._lock:
            self._seen.append(request)

    def seen(self) -> list[SeenRequest]:
        with self._lock:
            return list(self._seen)

    def clear(self) -> None:
        with self._lock:
            self._seen.clear()


class _Wire:
    """What lies between the network and the endpoints: the log, the faults, the limits, in this order."""

    def __init__(
        self, app: ASGIApp, faults: Sequence[Fault], limits: Limits | None, log: _RequestLog | None
    ) -> None:
        self._app = app if limits is None else _RateLimit(app, limits)
        self._faults = faults
        self._log = log

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        seen = _seen(scope)
        if self._log is not None:
            self._log.add(seen)

        async def note(message: Message) -> None:
            if message["type"] == "http.response.start":
                seen.status = message["status"]
            await send(message)

        await spoil(self._app, self._faults, seen)(scope, receive, note)


class _RateLimit:
    """Counts requests per fixed window; every answer says what is left, and is 429 when that is nothing."""

    NAMES = (("api", "api"), ("resolver", "resolvers"))

    def __init__(self, app: ASGIApp, limits: Limits) -> None:
        self._app = app
        self._limits = limits
        self._lock = threading.Lock()
        self._begun = limits.clock()
        self._used = {"api": 0, "resolver": 0}

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        kind = _kind(scope["path"]) if scope["type"] == "http" else "other"
        quota = {"api": self._limits.api, "resolver": self._limits.resolver}.get(kind)
        if quota is None:
            await self._app(scope, receive, send)
            return
        left, seconds = self._spend(kind, quota)
        name = dict(self.NAMES)[kind]
        rates = {
            "RateLimit": f'"{name}";r={max(left, 0)};t={seconds}',
            "RateLimit-Policy": f'"fixed window";"{name}";q={quota};w={math.ceil(self._limits.window)}',
        }
        if left < 0:
            body = b'{"error":"You have reached your rate limit."}'
            await Response(body, 429, rates, "application/json")(scope, receive, send)
            return

        async def rated(message: Message) -> None:
            if message["type"] == "http.response.start":
                MutableHeaders(scope=message).update(rates)
            await send(message)

        await self._app(scope, receive, rated)

    def _spend(self, kind: str, quota: int) -> tuple[int, int]:
        """Requests left after this one (-1: it is one too many) and whole seconds until the next window."""
        with self._lock:
            elapsed = self._limits.clock() - self._begun
            if elapsed >= self._limits.window:
                self._begun += elapsed - elapsed % self._limits.window
                self._used = dict.fromkeys(self._used, 0)
            self._used[kind] = min(self._used[kind] + 1, quota + 1)
            seconds = self._begun + self._limits.window - self._limits.clock()
            return quota - self._used[kind], max(math.ceil(seconds), 0)


class _Server(uvicorn.Server):
    """A uvicorn server that calls `started` when connections are accepted."""

    def __init__(self, app: Starlette, started: Callable[[], None]) -> None:
        # One HTTP implementation everywhere, the one that uvicorn always brings: faults depend on it.
        config = uvicorn.Config(
            app,
            http="h11",
            loop="asyncio",
            ws="none",
            lifespan="off",
            log_config=None,
            access_log=False,
            server_header=False,
            proxy_headers=False,
            timeout_graceful_shutdown=1,
        )
        super().__init__(config)
        self._started = started

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        self._started()


def _build(
    root: Path,
    faults: Sequence[Fault],
    limits: Limits | None,
    cdn: str | None,
    redirect_small: bool,
    log: _RequestLog | None,
) -> Starlette:
    api = HubApi(HubFolder(root), cdn=cdn, redirect_small=redirect_small)
    answered = (RefusedError, BadQueryError, HTTPException, UsageError, OSError)
    app = Starlette(
        routes=api.routes(),
        middleware=[Middleware(_Wire, faults=faults, limits=limits, log=log)],
        exception_handlers=dict.fromkeys(answered, refused),
    )
    app.router.redirect_slashes = False
    return app


def _seen(scope: Scope) -> SeenRequest:
    headers = {name.decode("latin-1").lower(): value.decode("latin-1") for name, value in scope["headers"]}
    query = scope["query_string"].decode("latin-1")
    return SeenRequest(scope["method"], scope["path"], query, headers, _kind(scope["path"]))


def _kind(path: str) -> str:
    if path.startswith("/cdn/"):
        return "cdn"
    if path.startswith("/api/resolve-cache/") or path.split("/")[3:4] == ["resolve"]:
        return "resolver"
    return "api" if path.startswith("/api/") else "other"


def _listen(host: str, port: int) -> socket.socket:
    """A listening socket. Raises UsageError where the address cannot be had."""
    if not 0 <= port <= 65535:
        raise UsageError(f"{port} is no port; choose one from 1 to 65535, or 0 for any that is free.")
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    # asyncio turns Nagle's algorithm off only where a socket says that it is TCP: 40 ms an answer.
    listener = socket.socket(family, socket.SOCK_STREAM, socket.IPPROTO_TCP)
    try:
        if os.name == "posix":
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind((host, port))
        listener.listen(BACKLOG)
        return listener
    except OSError as error:
        listener.close()
        raise UsageError(f"Cannot serve on {host} port {port} ({error.strerror}); choose another.") from error


def _url(listener: socket.socket) -> str:
    host, port = listener.getsockname()[:2]
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"


def _stopper(server: uvicorn.Server, thread: threading.Thread) -> Callable[[], None]:
    def stop() -> None:
        server.should_exit = True
        thread.join()

    return stop


def _nothing() -> None:
    return None
