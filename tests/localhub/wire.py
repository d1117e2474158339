"""A request as the local Hub saw it, and the ways in which an answer can be changed on its way."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

from starlette.datastructures import MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send


@dataclass
class SeenRequest:
    """One request as the local Hub saw it; `status` is 0 until an answer begins.

    `kind` is api, resolver, cdn or other; `headers` have lower-case names.
    """

    method: str
    path: str
    query: str
    headers: Mapping[str, str]
    kind: str
    status: int = 0

    @property
    def line(self) -> str:
        return f"{self.method} {self.path}" + (f"?{self.query}" if self.query else "")


def request_kind(path: str) -> str:
    if path.startswith("/cdn/"):
        return "cdn"
    if path.startswith("/api/resolve-cache/") or "resolve" in path.split("/")[3:5]:
        return "resolver"
    return "api" if path.startswith("/api/") else "other"


def with_headers(app: ASGIApp, change: Callable[[Scope, MutableHeaders, int], None]) -> ASGIApp:
    """`app` with the headers of its answers changed in place: `change` gets scope, headers and status."""

    async def changed(scope: Scope, receive: Receive, send: Send) -> None:
        async def start(message: Message) -> None:
            if message["type"] == "http.response.start":
                headers = MutableHeaders(raw=list(message["headers"]))
                change(scope, headers, message["status"])
                message = {**message, "headers": headers.raw}
            await send(message)

        await app(scope, receive, start)

    return changed


async def until_client_leaves(receive: Receive) -> None:
    """Returns when the client has closed the connection."""
    while (await receive())["type"] != "http.disconnect":
        pass
