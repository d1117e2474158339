"""Faults of a Hub as switches: each wraps the answer of the local Hub to the requests it matches.

`Fault(match, action, times, skip)` lets the first `skip` matching requests pass, spoils the next
`times` (None: all that follow), and then lets the rest pass. `match` is a regular expression searched
in `METHOD path?query`. When several faults match, all apply; the first one is the outermost.
"""

from __future__ import annotations

import json
import re
import threading
import zlib
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol
from urllib.parse import urlsplit

import anyio
import anyio.to_thread
from starlette.datastructures import MutableHeaders
from starlette.requests import Request
from starlette.responses import Response, StreamingResponse
from starlette.types import ASGIApp, Receive, Scope, Send

from tests.localhub.bodies import Corrupt, Drip, EditJson, Extend, HangBody, Truncate
from tests.localhub.wire import SeenRequest, until_client_leaves, with_headers

__all__ = [
    "Action",
    "Callback",
    "Corrupt",
    "Drip",
    "DropHeader",
    "EditJson",
    "Extend",
    "Fault",
    "Gzip",
    "Hang",
    "HangBody",
    "Html",
    "IgnoreRange",
    "Json",
    "NextLink",
    "RedirectLoop",
    "RedirectTo",
    "SeenRequest",
    "SetHeader",
    "Status",
    "Truncate",
    "WrongContentRange",
    "spoil",
]

MEBIBYTE = 1024 * 1024


class Action(Protocol):
    """What a fault does: the answering application in, a spoiled one out."""

    def wrap(self, app: ASGIApp, request: SeenRequest) -> ASGIApp: ...


@dataclass
class Fault:
    """An action and the requests it applies to; counts them, safely from any thread."""

    match: str
    action: Action
    times: int | None = None
    skip: int = 0
    _matched: int = field(default=0, init=False)
    _lock: threading.Lock = field(default_factory=threading.Lock, init=False, repr=False)

    def fires(self, line: str) -> bool:
        """Whether the fault applies to this request, `METHOD path?query`; counts it if it matches."""
        if re.search(self.match, line) is None:
            return False
        with self._lock:
            self._matched += 1
            turn = self._matched - self.skip
        return turn > 0 and (self.times is None or turn <= self.times)


def spoil(app: ASGIApp, faults: Sequence[Fault], request: SeenRequest) -> ASGIApp:
    """`app` as the faults that apply to this request leave it."""
    firing = [fault for fault in list(faults) if fault.fires(request.line)]
    for fault in reversed(firing):
        app = fault.action.wrap(app, request)
    return app


# Actions that answer in place of the Hub


@dataclass(frozen=True)
class Status:
    """Answer with this status, body and headers; `error_code` and `error_message` as the Hub sends them."""

    code: int
    headers: Mapping[str, str] = field(default_factory=dict)
    body: bytes = b""
    error_code: str | None = None
    error_message: str | None = None

    def wrap(self, app: ASGIApp, request: SeenRequest) -> ASGIApp:
        headers = dict(self.headers)
        if self.error_code is not None:
            headers["X-Error-Code"] = self.error_code
        if self.error_message is not None:
            headers["X-Error-Message"] = self.error_message
        return Response(self.body, self.code, headers)


@dataclass(frozen=True)
class Html:
    """Answer 200 with a page for people where a program asked."""

    body: str = "<!doctype html><title>Sign in</title><p>Please sign in to this network."

    def wrap(self, app: ASGIApp, request: SeenRequest) -> ASGIApp:
        return Response(self.body, media_type="text/html")


@dataclass(frozen=True)
class Json:
    """Answer 200 with this JSON value."""

    value: Any

    def wrap(self, app: ASGIApp, request: SeenRequest) -> ASGIApp:
        return Response(json.dumps(self.value), media_type="application/json")


@dataclass(frozen=True)
class Gzip:
    """Answer 200 with `prefix`, many mebibytes of `fill` and `suffix`, gzipped as they are sent."""

    mebibytes: int
    prefix: bytes = b""
    fill: bytes = b"\0"
    suffix: bytes = b""
    media_type: str = "application/json"

    def wrap(self, app: ASGIApp, request: SeenRequest) -> ASGIApp:
        return StreamingResponse(self._stream(), 200, {"Content-Encoding": "gzip"}, self.media_type)

    async def _stream(self) -> AsyncIterator[bytes]:
        gzip = zlib.compressobj(wbits=zlib.MAX_WBITS | 16)
        yield gzip.compress(self.prefix)
        block = self.fill * (MEBIBYTE // len(self.fill))
        for _ in range(self.mebibytes):
            yield gzip.compress(block)
        yield gzip.compress(self.suffix) + gzip.flush()


@dataclass(frozen=True)
class Hang:
    """Say nothing until the client leaves."""

    def wrap(self, app: ASGIApp, request: SeenRequest) -> ASGIApp:
        async def hang(scope: Scope, receive: Receive, send: Send) -> None:
            await until_client_leaves(receive)

        return hang


@dataclass(frozen=True)
class RedirectTo:
    """Send the client to this URL."""

    url: str
    code: int = 302

    def wrap(self, app: ASGIApp, request: SeenRequest) -> ASGIApp:
        return Response(status_code=self.code, headers={"Location": self.url})


@dataclass(frozen=True)
class RedirectLoop:
    """Send the client back to the URL it asked for."""

    code: int = 302

    def wrap(self, app: ASGIApp, request: SeenRequest) -> ASGIApp:
        async def loop(scope: Scope, receive: Receive, send: Send) -> None:
            again = Response(status_code=self.code, headers={"Location": str(Request(scope).url)})
            await again(scope, receive, send)

        return loop


@dataclass(frozen=True)
class Callback:
    """Call a function with the request, in another thread, before the Hub answers as usual."""

    function: Callable[[SeenRequest], object]

    def wrap(self, app: ASGIApp, request: SeenRequest) -> ASGIApp:
        async def call(scope: Scope, receive: Receive, send: Send) -> None:
            await anyio.to_thread.run_sync(self.function, request)
            await app(scope, receive, send)

        return call


# Actions on headers


@dataclass(frozen=True)
class SetHeader:
    """Set a header of the answer."""

    name: str
    value: str

    def wrap(self, app: ASGIApp, request: SeenRequest) -> ASGIApp:
        def put(_scope: Scope, headers: MutableHeaders, _status: int) -> None:
            headers[self.name] = self.value

        return with_headers(app, put)


@dataclass(frozen=True)
class DropHeader:
    """Leave a header out of the answer."""

    name: str

    def wrap(self, app: ASGIApp, request: SeenRequest) -> ASGIApp:
        def drop(_scope: Scope, headers: MutableHeaders, _status: int) -> None:
            del headers[self.name]

        return with_headers(app, drop)


@dataclass(frozen=True)
class NextLink:
    """Point `Link: rel="next"` elsewhere.

    In `url`, {self} is the URL that was asked for, {next} the true next page, {next_path} its path and
    query (to be put behind another host). An answer without a next page gets one all the same.
    """

    url: str

    def wrap(self, app: ASGIApp, request: SeenRequest) -> ASGIApp:
        def relink(scope: Scope, headers: MutableHeaders, _status: int) -> None:
            true = re.search(r"<([^>]*)>", headers.get("link", ""))
            following = true.group(1) if true else ""
            parts = urlsplit(following)
            path = f"{parts.path}?{parts.query}"
            url = self.url.replace("{self}", str(Request(scope).url))
            url = url.replace("{next_path}", path).replace("{next}", following)
            headers["Link"] = f'<{url}>; rel="next"'

        return with_headers(app, relink)


@dataclass(frozen=True)
class WrongContentRange:
    """Claim another range than the one that is sent; answers that are no ranges stay as they are."""

    value: str = "bytes 1-2/3"

    def wrap(self, app: ASGIApp, request: SeenRequest) -> ASGIApp:
        def claim(_scope: Scope, headers: MutableHeaders, status: int) -> None:
            if status == 206:
                headers["Content-Range"] = self.value

        return with_headers(app, claim)


@dataclass(frozen=True)
class IgnoreRange:
    """Answer a request for a range with 200 and the whole file."""

    def wrap(self, app: ASGIApp, request: SeenRequest) -> ASGIApp:
        async def whole(scope: Scope, receive: Receive, send: Send) -> None:
            headers = [(name, value) for name, value in scope["headers"] if name.lower() != b"range"]
            await app({**scope, "headers": headers}, receive, send)

        return whole
