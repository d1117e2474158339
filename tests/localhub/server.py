"""The local Hub with what tests put before it: a log, faults, limits and the redirects of the real Hub."""

from __future__ import annotations

import math
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Self
from urllib.parse import quote

from starlette.datastructures import Headers
from starlette.responses import RedirectResponse, Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from crawler.localhub import LocalHub
from tests.localhub.faults import Fault, spoil
from tests.localhub.wire import SeenRequest, request_kind, with_headers


@dataclass(frozen=True)
class Limits:
    """Requests allowed in each fixed window of so many seconds; None is no limit."""

    api: int | None = None
    resolver: int | None = None
    window: float = 300.0
    clock: Callable[[], float] = time.monotonic


class FaultHub(LocalHub):
    """A folder served on loopback for as long as the `with` block lasts; ready when it begins.

    `faults` is a list that may be changed while the Hub runs. With `cdn` the bodies of LFS files come
    from a second port, through a redirect. `redirect_small` sends readers of the other files through
    /api/resolve-cache, as the real Hub does, which counts as one more resolver request.
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
        super().__init__(root, port=port, wrap=self._wire)
        self.faults = list(faults)
        self._limits = limits
        self._cdn = LocalHub(root, wrap=self._wire) if cdn else None
        self._redirect_small = redirect_small
        self._log: list[SeenRequest] = []
        self._lock = threading.Lock()

    def __enter__(self) -> Self:
        if self._cdn is not None:
            self._cdn.__enter__()
        return super().__enter__()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        super().__exit__(kind, error, trace)
        if self._cdn is not None:
            self._cdn.__exit__(kind, error, trace)

    @property
    def cdn_url(self) -> str | None:
        return None if self._cdn is None else self._cdn.url

    @property
    def log(self) -> list[SeenRequest]:
        """Every request so far, in order of arrival; a copy."""
        with self._lock:
            return list(self._log)

    def count(self, kind: str) -> int:
        """How many requests of this kind (api, resolver, cdn, other) have arrived."""
        return sum(request.kind == kind for request in self.log)

    def clear(self) -> None:
        """Forgets the requests so far."""
        with self._lock:
            self._log.clear()

    def _wire(self, app: ASGIApp) -> ASGIApp:
        """What lies between the network and the endpoints: the log, the faults, the limits, the redirects."""
        app = _Redirects(app, lambda: self.cdn_url, self._redirect_small)
        if self._limits is not None:
            app = _RateLimit(app, self._limits)

        async def answer(scope: Scope, receive: Receive, send: Send) -> None:
            request = _seen_request(scope)
            with self._lock:
                self._log.append(request)

            async def note(message: Message) -> None:
                if message["type"] == "http.response.start":
                    request.status = message["status"]
                await send(message)

            await spoil(app, self.faults, request)(scope, receive, note)

        return answer


class _Redirects:
    """The detours of the real Hub to the bodies of its files.

    /OWNER/NAME/resolve/REV/PATH leads to /cdn/OWNER/NAME/SHA256/PATH at another origin for an LFS file,
    and to /api/resolve-cache/models/OWNER/NAME/SHA/PATH for another one.
    """

    CACHE = "/api/resolve-cache/models/"

    def __init__(self, app: ASGIApp, cdn_url: Callable[[], str | None], redirect_small: bool) -> None:
        self._app = app
        self._cdn_url = cdn_url
        self._redirect_small = redirect_small

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        path, kind = scope["path"], request_kind(scope["path"])
        if kind == "cdn":
            owner, name, sha256, file = path.removeprefix("/cdn/").split("/", 3)
            await self._replace(_resolving(scope, owner, name, "main", file), receive, send, _body_of(sha256))
        elif path.startswith(self.CACHE):
            owner, name, revision, file = path.removeprefix(self.CACHE).split("/", 3)
            await self._app(_resolving(scope, owner, name, revision, file), receive, send)
        elif kind == "resolver":
            await self._replace(
                scope, receive, send, lambda status, headers: self._detour(scope, status, headers)
            )
        else:
            await self._app(scope, receive, send)

    def _detour(self, scope: Scope, status: int, headers: Headers) -> Response | None:
        if status >= 400:
            return None
        _, owner, name, _, _, file = scope["path"].split("/", 5)
        promised = {key: value for key, value in headers.items() if key.startswith("x-") or key == "etag"}
        sha256 = headers.get("x-linked-etag", "").strip('"')
        if sha256:
            cdn_url = self._cdn_url()
            place = quote(f"/cdn/{owner}/{name}/{sha256}/{file}")
            return None if cdn_url is None else RedirectResponse(f"{cdn_url}{place}", 302, promised)
        if not self._redirect_small:
            return None
        place = quote(f"{self.CACHE}{owner}/{name}/{headers['x-repo-commit']}/{file}")
        query = [scope["query_string"].decode(), f"etag={quote(headers['etag'])}"]
        return RedirectResponse(f"{place}?{'&'.join(filter(None, query))}", 307, promised)

    async def _replace(
        self,
        scope: Scope,
        receive: Receive,
        send: Send,
        replacement: Callable[[int, Headers], Response | None],
    ) -> None:
        """Answers with the replacement for what the application begins to answer, where there is one."""
        instead: Response | None = None

        async def begin(message: Message) -> None:
            nonlocal instead
            if message["type"] == "http.response.start":
                instead = replacement(message["status"], Headers(raw=message["headers"]))
            if instead is None:
                await send(message)

        await self._app(scope, receive, begin)
        if instead is not None:
            await instead(scope, receive, send)


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
        kind = request_kind(scope["path"])
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
        limited = with_headers(self._app, lambda _scope, headers, _status: headers.update(rates))
        await limited(scope, receive, send)

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


def _resolving(scope: Scope, owner: str, name: str, revision: str, file: str) -> Scope:
    path = f"/{owner}/{name}/resolve/{revision}/{file}"
    return {**scope, "path": path, "raw_path": quote(path).encode()}


def _body_of(sha256: str) -> Callable[[int, Headers], Response | None]:
    """404 in place of any content but this one."""
    return lambda _status, headers: (
        None if headers.get("etag") == f'"{sha256}"' else Response(status_code=404)
    )


def _seen_request(scope: Scope) -> SeenRequest:
    headers = {name.decode("latin-1").lower(): value.decode("latin-1") for name, value in scope["headers"]}
    query = scope["query_string"].decode("latin-1")
    return SeenRequest(scope["method"], scope["path"], query, headers, request_kind(scope["path"]))
