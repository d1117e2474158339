"""Faults in the body of an answer: cut, hung, dripped, lengthened, corrupted, edited."""

from __future__ import annotations

import json
import re
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Any

import anyio
from starlette.datastructures import MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from tests.localhub.wire import SeenRequest, until_client_leaves, with_headers


@dataclass(frozen=True)
class Truncate:
    """Promise the whole body and close the connection after this many bytes."""

    after_bytes: int

    def wrap(self, app: ASGIApp, request: SeenRequest) -> ASGIApp:
        async def stop(_receive: Receive) -> None:
            return None

        return _cut(app, self.after_bytes, stop)


@dataclass(frozen=True)
class HangBody:
    """Send this many bytes of the body, then nothing until the client leaves."""

    after_bytes: int

    def wrap(self, app: ASGIApp, request: SeenRequest) -> ASGIApp:
        return _cut(app, self.after_bytes, until_client_leaves)


@dataclass(frozen=True)
class Drip:
    """Send the body in small pieces with a pause before each."""

    bytes_per_chunk: int = 1
    seconds: float = 1.0

    def wrap(self, app: ASGIApp, request: SeenRequest) -> ASGIApp:
        async def drip(scope: Scope, receive: Receive, send: Send) -> None:
            async def slow(message: Message) -> None:
                body = message.get("body", b"")
                for start in range(0, len(body), self.bytes_per_chunk):
                    with anyio.move_on_after(self.seconds):
                        await until_client_leaves(receive)
                        raise _Stopped
                    piece = body[start : start + self.bytes_per_chunk]
                    await send({"type": "http.response.body", "body": piece, "more_body": True})
                if message["type"] == "http.response.start":
                    await send(message)
                elif not message.get("more_body", False):
                    await send({"type": "http.response.body", "body": b"", "more_body": False})

            await _unless_stopped(app, scope, _quiet(receive), slow)

        return drip


@dataclass(frozen=True)
class Extend:
    """Add bytes to the body; the size that headers and listings promise elsewhere stays the true one.

    With `declared` the Content-Length grows too, without it there is none and the body is chunked.
    """

    extra: bytes
    declared: bool = False

    def wrap(self, app: ASGIApp, request: SeenRequest) -> ASGIApp:
        def lengthen(_scope: Scope, headers: MutableHeaders, _status: int) -> None:
            length = int(headers.get("content-length", "0"))
            del headers["content-length"]
            if self.declared:
                headers["Content-Length"] = str(length + len(self.extra))

        async def extend(scope: Scope, receive: Receive, send: Send) -> None:
            async def longer(message: Message) -> None:
                ends = message["type"] == "http.response.body" and not message.get("more_body", False)
                await send({**message, "body": message.get("body", b"") + self.extra} if ends else message)

            await app(scope, receive, longer)

        return app if request.method == "HEAD" else with_headers(extend, lengthen)


@dataclass(frozen=True)
class Corrupt:
    """Flip one bit of the byte at this offset of the file, in whole answers and in ranges that hold it."""

    offset: int

    def wrap(self, app: ASGIApp, request: SeenRequest) -> ASGIApp:
        async def corrupt(scope: Scope, receive: Receive, send: Send) -> None:
            position = 0

            async def flip(message: Message) -> None:
                nonlocal position
                if message["type"] == "http.response.start":
                    content_range = MutableHeaders(raw=list(message["headers"])).get("content-range", "")
                    start = re.match(r"bytes (\d+)-", content_range)
                    position = int(start.group(1)) if start else 0
                else:
                    body = bytearray(message.get("body", b""))
                    if 0 <= self.offset - position < len(body):
                        body[self.offset - position] ^= 1
                    position += len(body)
                    message = {**message, "body": bytes(body)}
                await send(message)

            await app(scope, receive, flip)

        return corrupt


@dataclass(frozen=True)
class EditJson:
    """Edit a JSON answer: the function returns a new body, or None after editing the parsed one."""

    function: Callable[[Any], Any]

    def wrap(self, app: ASGIApp, request: SeenRequest) -> ASGIApp:
        async def edit(scope: Scope, receive: Receive, send: Send) -> None:
            start: Message = {}
            body = b""

            async def keep(message: Message) -> None:
                nonlocal start, body
                if message["type"] == "http.response.start":
                    start = message
                else:
                    body += message.get("body", b"")

            await app(scope, receive, keep)
            content = self._edit(body) if start["status"] == 200 else body
            headers = MutableHeaders(raw=list(start["headers"]))
            headers["Content-Length"] = str(len(content))
            await send({**start, "headers": headers.raw})
            await send({"type": "http.response.body", "body": content, "more_body": False})

        return edit

    def _edit(self, body: bytes) -> bytes:
        value = json.loads(body)
        edited = self.function(value)
        return json.dumps(value if edited is None else edited).encode()


class _Stopped(Exception):  # noqa: N818 (it is no error: the fault has done its work)
    """The rest of an answer is not to be sent."""


def _cut(app: ASGIApp, after_bytes: int, then: Callable[[Receive], Awaitable[None]]) -> ASGIApp:
    """Lets `after_bytes` of a body pass, awaits `then`, and ends the connection."""

    async def cut(scope: Scope, receive: Receive, send: Send) -> None:
        left = after_bytes

        async def few(message: Message) -> None:
            nonlocal left
            body = message.get("body", b"")
            if len(body) <= left or message["type"] == "http.response.start":
                left -= len(body)
                await send(message)
                return
            await send({"type": "http.response.body", "body": body[:left], "more_body": True})
            await then(receive)
            raise _Stopped

        await _unless_stopped(app, scope, _quiet(receive), few)

    return cut


async def _unless_stopped(app: ASGIApp, scope: Scope, receive: Receive, send: Send) -> None:
    try:
        await app(scope, receive, send)
    except _Stopped:
        return


def _quiet(receive: Receive) -> Receive:
    """A `receive` that gives the request, then keeps silent: only the fault sees the client leave."""
    delivered = False

    async def once() -> Message:
        nonlocal delivered
        if delivered:
            await anyio.sleep_forever()
        delivered = True
        return await receive()

    return once
