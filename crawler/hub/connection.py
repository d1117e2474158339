"""Connections to the Hub: pools of httpcore whose sockets obey the deadlines, as a transport of httpx.

httpcore accepts a network backend, which httpx's transport does not expose.
"""

from __future__ import annotations

import functools
import importlib
import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any
from urllib.request import getproxies, proxy_bypass

from huggingface_hub.utils import httpx  # type: ignore[attr-defined]  # exported lazily: httpx or httpx2

from crawler.hub import wire

# The package below the one that huggingface_hub uses.
httpcore: Any = importlib.import_module(httpx.__name__.replace("httpx", "httpcore"))
_ERRORS = (
    httpcore.TimeoutException,
    httpcore.NetworkError,
    httpcore.ProtocolError,
    httpcore.ProxyError,
    httpcore.UnsupportedProtocol,
)


def _ssl_context(*, local: bool) -> Any:
    """TLS as httpx has it, with the certificates that the environment names unless the Hub is `local`."""
    names = () if local else tuple(map(os.environ.get, ("SSL_CERT_FILE", "SSL_CERT_DIR")))
    return _read_certificates(names)


@functools.cache
def _read_certificates(names: tuple[str | None, ...]) -> Any:
    """Reading them takes longer than a request to a Hub on this machine."""
    return httpx.create_ssl_context(trust_env=bool(names))


class DeadlineTransport(httpx.BaseTransport):
    """HTTP/1.1 over connections, of which `connections` are kept; raises the errors of httpx.

    They lead through the proxies of the environment, unless the Hub is on this machine (`local`).
    """

    def __init__(self, sockets: wire.SocketDeadlines, connections: int, *, local: bool) -> None:
        self._options = {
            "ssl_context": _ssl_context(local=local),
            "max_connections": None,
            "max_keepalive_connections": connections,
            "keepalive_expiry": 5.0,
            "network_backend": wire.DeadlineSockets(httpcore.SyncBackend(), sockets),
        }
        self._direct = httpcore.ConnectionPool(**self._options)
        proxies = {} if local else getproxies()
        self._proxied = {
            scheme: self._proxy(proxies[scheme]) for scheme in ("http", "https", "all") if proxies.get(scheme)
        }

    def handle_request(self, request: httpx.Request) -> httpx.Response:
        """The head of the answer; its body is read from the connection as it is asked for."""
        url = request.url
        target = httpcore.URL(scheme=url.raw_scheme, host=url.raw_host, port=url.port, target=url.raw_path)
        sent = httpcore.Request(
            request.method,
            target,
            headers=request.headers.raw,
            content=request.stream,
            extensions=request.extensions,
        )
        with _as_errors_of_httpx():
            answer = self._pool(url).handle_request(sent)
        body = _ResponseStream(answer.stream)
        return httpx.Response(
            answer.status, headers=answer.headers, stream=body, extensions=answer.extensions
        )

    def close(self) -> None:
        """Closes every connection."""
        for pool in (self._direct, *self._proxied.values()):
            pool.close()

    def _pool(self, url: httpx.URL) -> Any:
        pool = self._proxied.get(url.scheme) or self._proxied.get("all")
        return self._direct if pool is None or proxy_bypass(url.host) else pool

    def _proxy(self, address: str) -> Any:
        proxy = httpx.Proxy(address if "://" in address else f"http://{address}")
        kind = httpcore.SOCKSProxy if proxy.url.scheme.startswith("socks") else httpcore.HTTPProxy
        return kind(proxy_url=str(proxy.url), proxy_auth=proxy.raw_auth, **self._options)


class _ResponseStream(httpx.SyncByteStream):
    def __init__(self, stream: Any) -> None:
        self._stream = stream

    def __iter__(self) -> Iterator[bytes]:
        with _as_errors_of_httpx():
            yield from self._stream

    def close(self) -> None:
        self._stream.close()


@contextmanager
def _as_errors_of_httpx() -> Iterator[None]:
    """Every error of httpcore has one of the same name in httpx."""
    try:
        yield
    except _ERRORS as error:
        raise getattr(httpx, type(error).__name__)(str(error)) from error
