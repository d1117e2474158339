"""A folder of repositories, served over the Hub's protocol on this machine.

The real client works against it: `HF_ENDPOINT=http://127.0.0.1:PORT`. `serve` blocks, for the command
line; `LocalHub` runs in a thread.
"""

from __future__ import annotations

import asyncio
import os
import socket
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Self

import uvicorn
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.types import ASGIApp

from catalog.errors import LoradexError, UsageError
from crawler.localhub.api import HubApi, RefusedError, error_response
from crawler.localhub.folder import HubFolder
from crawler.localhub.listing import BadQueryError

BACKLOG = 128
LOOPBACK = "127.0.0.1"
START_SECONDS = 30.0
# For answers that are being sent when the server is told to stop.
GRACE_SECONDS = 1.0


def create_app(root: Path) -> Starlette:
    """The application that serves the repositories below `root`. Raises UsageError without such a folder."""
    errors = (RefusedError, BadQueryError, HTTPException, UsageError, OSError)
    app = Starlette(
        routes=HubApi(HubFolder(root)).routes(), exception_handlers=dict.fromkeys(errors, error_response)
    )
    app.router.redirect_slashes = False
    return app


def serve(root: Path, host: str, port: int, announce: Callable[[str], None] = print) -> None:
    """Serves the folder until it is interrupted; `announce` gets the URL once connections are accepted.

    Raises UsageError if the folder or the address cannot be used.
    """
    serve_app(create_app(root), host, port, announce)


def serve_app(app: ASGIApp, host: str, port: int, announce: Callable[[str], None]) -> None:
    """Serves an application until it is interrupted; raises UsageError if the address cannot be used."""
    with _listen(host, port) as listener:
        server = _Server(app, lambda: announce(_url(listener)))
        try:
            server.run(sockets=[listener])
        except KeyboardInterrupt:  # the usual way to stop it
            return


class LocalServer:
    """An application served on loopback for as long as the `with` block lasts; ready when it begins.

    `app` makes the application when the block begins.
    """

    def __init__(self, app: Callable[[], ASGIApp], *, port: int = 0) -> None:
        self.url = ""
        self._app = app
        self._port = port

    def __enter__(self) -> Self:
        app = self._app()
        listener = _listen(LOOPBACK, self._port)
        started = threading.Event()
        self._server = _Server(app, started.set)
        self._thread = threading.Thread(
            target=self._server.run, args=([listener],), name="local-server", daemon=True
        )
        self._thread.start()
        if not started.wait(START_SECONDS):
            listener.close()
            raise LoradexError("The local server did not start; its thread died or hangs.")
        self.url = _url(listener)
        return self

    def __exit__(self, *_: object) -> None:
        self._server.stop()
        self._thread.join()


class LocalHub(LocalServer):
    """A folder served on loopback for as long as the `with` block lasts; ready when it begins.

    `wrap` takes the application and returns the one that replaces it.
    """

    def __init__(
        self, root: Path, *, port: int = 0, wrap: Callable[[ASGIApp], ASGIApp] = lambda app: app
    ) -> None:
        super().__init__(lambda: wrap(create_app(root)), port=port)
        self.root = root


class _Server(uvicorn.Server):
    """A uvicorn server that calls `started` when connections are accepted, and stops at once when told to.

    uvicorn itself looks ten times a second whether it is to stop, and sleeps as long before it looks whether
    its connections are closed.
    """

    def __init__(self, app: ASGIApp, started: Callable[[], None]) -> None:
        # One HTTP implementation everywhere, the one that uvicorn always brings.
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
        )
        super().__init__(config)
        self._started = started

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        self._loop, self._stopped = asyncio.get_running_loop(), asyncio.Event()
        self._started()

    async def main_loop(self) -> None:
        looking = asyncio.ensure_future(super().main_loop())
        stopped = asyncio.ensure_future(self._stopped.wait())
        await asyncio.wait((looking, stopped), return_when=asyncio.FIRST_COMPLETED)
        for task in (looking, stopped):
            task.cancel()

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        for server in self.servers:
            server.close()
        for listener in sockets or ():
            listener.close()
        state, deadline = self.server_state, time.monotonic() + GRACE_SECONDS
        for connection in list(state.connections):
            connection.shutdown()
        while (state.connections or state.tasks) and not self.force_exit and time.monotonic() < deadline:
            await asyncio.sleep(0.001)
        for task in state.tasks:
            task.cancel()

    def stop(self) -> None:
        """Lets the server end; called in another thread, once it has started."""
        self.should_exit = True
        with suppress(RuntimeError):  # it has ended by itself
            self._loop.call_soon_threadsafe(self._stopped.set)


def _listen(host: str, port: int) -> socket.socket:
    """A listening socket. Raises UsageError if the address is not available."""
    if not 0 <= port <= 65535:
        raise UsageError(f"{port} is not a port; choose one from 1 to 65535, or 0 for any that is free.")
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
