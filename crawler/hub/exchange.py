"""One request to the Hub and its answer: budget, deadline, redirects and retries.

With `crawler.hub` the only module that knows huggingface_hub; `crawler.hub` is the only one that
uses it. Every foreign exception becomes one of `catalog.errors` in `translate`, nowhere else. The token
goes to the endpoint's own origin, and over plain http only when that is this machine; no exception, URL or
log line holds it.
"""

from __future__ import annotations

import http.cookiejar
import logging
import os
import platform
import re
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from importlib.metadata import PackageNotFoundError, version
from typing import TypeVar
from urllib.parse import urljoin

import huggingface_hub
from huggingface_hub import constants, get_token
from huggingface_hub.utils import httpx  # type: ignore[attr-defined]  # exported lazily: httpx or httpx2
from tenacity import RetryCallState, Retrying, retry_if_exception_type

from catalog.errors import (
    HubBusyError,
    HubPayloadError,
    HubUnreachableError,
    UsageError,
)
from crawler.hub import wire
from crawler.hub.budget import (
    ANONYMOUS,
    FREE_ACCOUNT,
    Clock,
    Kind,
    RequestBudget,
    WaitCancelledError,
)
from crawler.hub.connection import DeadlineTransport
from crawler.hub.refusal import rate_limit, refuse, translate_errors

T = TypeVar("T")

_log = logging.getLogger(__name__)

_CONTACT = "https://github.com/loradex/loradex"
_REDIRECTS = frozenset({301, 302, 303, 307, 308})
_MOST_REDIRECTS = 5
_FIRST_PAUSE = 1.0
_LONGEST_PAUSE = 60.0
# Pauses of at least this many seconds are reported.
LONG_PAUSE = 8.0
_CLASSES: Mapping[str, Kind | None] = {
    "api": "api",
    "resolver": "resolver",
    "resolvers": "resolver",
    "pages": None,
}


@dataclass(frozen=True)
class HubSettings:
    """The Hub's address and the limits of requests; times in seconds, sizes in bytes.

    `timeout` is for one connect or read, `deadline` for one answer with its body, a download getting
    `seconds_per_megabyte` on top. `longest_wait` is the longest wait that a server may request.
    """

    endpoint: str
    token: str | None = field(default=None, repr=False)
    timeout: float = 30.0
    deadline: float = 120.0
    seconds_per_megabyte: float = 10.0
    attempts: int = 6
    longest_wait: float = 900.0
    connections: int = 8
    page_limit: int = 1000
    list_body: int = 64 << 20
    tree_body: int = 16 << 20
    tree_pages: int = 100
    small_file: int = 10 << 20
    header: int = 25_000_000

    def __post_init__(self) -> None:
        """Raises UsageError for an endpoint or a token that cannot be sent."""
        object.__setattr__(self, "endpoint", self.endpoint.rstrip("/"))
        wire.check_endpoint(self.endpoint)
        if self.token is not None and not re.fullmatch(r"[!-~]+", self.token):
            raise UsageError("The Hub's token contains invalid characters; check HF_TOKEN.")

    @classmethod
    def from_environment(cls) -> HubSettings:
        """The endpoint and token that huggingface_hub would use; reads HF_ENDPOINT, HF_TOKEN and HF_HOME."""
        endpoint = os.environ.get("HF_ENDPOINT", constants.ENDPOINT)
        try:
            return cls(endpoint, None if constants.HF_HUB_DISABLE_IMPLICIT_TOKEN else get_token())
        except OSError as error:
            raise UsageError(
                f"The Hub's token cannot be read ({error.strerror}); check HF_TOKEN and HF_HOME."
            ) from error


@dataclass(frozen=True)
class Usage:
    """Requests that were sent, by class; redirects followed count as `redirects` or, elsewhere, `cdn`.

    `bytes` are those of all bodies as they came; `waited_seconds` the waits for the budget and between
    retries.
    """

    api: int = 0
    resolver: int = 0
    redirects: int = 0
    cdn: int = 0
    bytes: int = 0
    waited_seconds: float = 0.0


@dataclass(frozen=True)
class Ask:
    """A request to send, perhaps several times, each with its own `headers`; `seconds` are for one answer."""

    url: str
    kind: Kind
    seconds: float
    headers: Callable[[], Mapping[str, str]] = dict


@dataclass(frozen=True)
class Answer:
    """A 200 or 206 whose raw body is still to come; `commit` is the endpoint's commit of the file."""

    url: str
    status: int
    headers: Mapping[str, str]
    chunks: Iterator[bytes]
    commit: str | None
    next_url: str | None


def limits_of(settings: HubSettings) -> Mapping[Kind, int]:
    """The limits of an account that hold until the Hub names others; a Hub on this machine has none."""
    if wire.is_loopback(settings.endpoint):
        return {}
    return FREE_ACCOUNT if settings.token else ANONYMOUS


class Exchange:
    """The way to one Hub; `ask` may be called from several threads."""

    def __init__(
        self, settings: HubSettings, budget: RequestBudget | None, clock: Clock | None, stop: threading.Event
    ) -> None:
        local = wire.is_loopback(settings.endpoint)
        self.origin = wire.origin(settings.endpoint)
        self._settings = settings
        self._clock = clock or Clock()
        self._stop = stop
        self.budget = budget or RequestBudget(limits_of(settings), clock=self._clock)
        self._headers = {"User-Agent": _user_agent(), "Accept": "*/*", "Accept-Encoding": "identity"}
        self._bearer = _bearer(settings, local=local)
        self._sockets = wire.SocketDeadlines()
        self._client = _client(settings, self._sockets, local=local)
        self._slots = threading.BoundedSemaphore(settings.connections)
        self._usage = Usage()
        self._usage_lock = threading.Lock()

    @property
    def usage(self) -> Usage:
        """What has been asked of the Hub so far."""
        with self._usage_lock:
            return self._usage

    def close(self) -> None:
        """Close every connection."""
        self._client.close()

    def ask(self, ask: Ask, read: Callable[[Answer], T]) -> T:
        """The result of `read` for the answer; retries while the Hub is busy or the connection fails.

        Raises HubError for an error, and WaitCancelledError once the stop event is set.
        """
        if constants.is_offline_mode():
            raise HubUnreachableError("HF_HUB_OFFLINE is set, so the Hub is not used; unset it to crawl.")
        retrying = Retrying(
            retry=retry_if_exception_type((HubBusyError, HubUnreachableError)),
            stop=self._gives_up,
            wait=_pause,
            sleep=self._sleep,
            reraise=True,
        )
        answer: T = retrying(self._once, ask, read)
        return answer

    def _gives_up(self, state: RetryCallState) -> bool:
        return state.attempt_number >= self._settings.attempts or _pause(state) > self._settings.longest_wait

    def _sleep(self, seconds: float) -> None:
        _log.log(
            logging.WARNING if seconds >= LONG_PAUSE else logging.INFO,
            "The Hub cannot answer now; retrying in %.0f s",
            seconds,
        )
        self._count(waited_seconds=seconds)
        self._clock.sleep(seconds, self._stop)

    def _once(self, ask: Ask, read: Callable[[Answer], T]) -> T:
        with self._slots:
            deadline = wire.Deadline(ask.seconds)
            with (
                translate_errors(ask.url),
                self._sockets.within(deadline),
                self._answer(ask, deadline) as answer,
            ):
                return read(answer)

    @contextmanager
    def _answer(self, ask: Ask, deadline: wire.Deadline) -> Iterator[Answer]:
        """The last answer of a chain of redirects; it leaves the own origin for files only, and for good."""
        hops = [ask.url]
        own = True
        commit = None
        while True:
            response = self._hop(ask, hops, deadline, own=own)
            try:
                if own:
                    commit = commit or response.headers.get("x-repo-commit")
                if response.status_code not in _REDIRECTS:
                    refuse(response, hops[-1], own=own)
                    yield Answer(
                        url=wire.without_query(ask.url),
                        status=response.status_code,
                        headers=response.headers,
                        chunks=self._chunks(response),
                        commit=commit,
                        next_url=response.links.get("next", {}).get("url"),
                    )
                    return
                hops.append(self.redirect_target(ask, hops, response.headers.get("location", "")))
                own = own and wire.origin(hops[-1]) == self.origin
            finally:
                response.close()

    def _hop(self, ask: Ask, hops: Sequence[str], deadline: wire.Deadline, *, own: bool) -> httpx.Response:
        """Send one request and wait for the head of its answer; the token goes to the Hub's origin only."""
        if self._stop.is_set():
            raise WaitCancelledError("stopped before a request to the Hub")
        if own:
            waited = self.budget.acquire(ask.kind, self._stop)
            deadline.extend(waited)
            self._count(waited_seconds=waited)
        timeouts = dict.fromkeys(("connect", "read", "write", "pool"), self._settings.timeout)
        headers = {**self._headers, **ask.headers()}
        request = httpx.Request("GET", hops[-1], headers=headers, extensions={"timeout": timeouts})
        if own and self._bearer:
            request.headers["Authorization"] = self._bearer
        try:
            response = self._client.send(request, stream=True, follow_redirects=False)
        finally:
            # It has been sent; an exception that holds the request must not hold the token.
            request.headers.pop("Authorization", None)
            self._count(**{ask.kind if len(hops) == 1 else "redirects" if own else "cdn": 1})
        if own:
            self._observe(ask.kind, response.headers)
        return response

    def redirect_target(self, ask: Ask, hops: Sequence[str], location: str) -> str:
        """Where a redirect leads; raises HubPayloadError for a place where this request must not go."""
        try:
            target = urljoin(hops[-1], location)
        except ValueError:
            target = ""
        target_origin = wire.origin(target)
        wrong = None
        if target_origin is None:
            wrong = "to no address"
        elif target in hops or len(hops) > _MOST_REDIRECTS:
            wrong = "in a circle"
        elif target_origin != self.origin and ask.kind == "api":
            wrong = "away from its own host"
        elif target_origin.startswith("http:") and not (wire.origin(hops[-1]) or "").startswith("http:"):
            wrong = "to an unencrypted address"
        if wrong:
            raise HubPayloadError(f"The Hub redirects {wrong}.", url=wire.without_query(ask.url))
        return target

    def _observe(self, kind: Kind, headers: Mapping[str, str]) -> None:
        limit = rate_limit(headers)
        of = _CLASSES.get(limit.resource_type, kind) if limit else None
        if limit and of:
            self.budget.observe(of, limit)

    def _chunks(self, response: httpx.Response) -> Iterator[bytes]:
        for chunk in response.iter_raw():
            if self._stop.is_set():
                raise WaitCancelledError("stopped in the middle of an answer")
            self._count(bytes=len(chunk))
            yield chunk

    def _count(self, **more: float) -> None:
        with self._usage_lock:
            usage = self._usage
            self._usage = replace(usage, **{name: getattr(usage, name) + n for name, n in more.items()})


def _pause(state: RetryCallState) -> float:
    """Seconds before the next try: what the server asked for, else 1, 2, 4 … up to a minute."""
    error = state.outcome.exception() if state.outcome else None
    wait = error.retry_after if isinstance(error, HubBusyError) else None
    if wait is not None:
        return wait
    return float(min(_FIRST_PAUSE * 2 ** (state.attempt_number - 1), _LONGEST_PAUSE))


def _user_agent() -> str:
    """The user agent, with a contact.

    Not the client library's own: to name the tool it runs in, that asks the Hub first, outside of any budget.
    """
    try:
        own = version("loradex")
    except PackageNotFoundError:  # run from a source folder
        own = "unknown"
    library = f"hf_hub/{huggingface_hub.__version__}; python/{platform.python_version()}"
    return f"loradex/{own}; {library}; contact/{_CONTACT}"


def _bearer(settings: HubSettings, *, local: bool) -> str | None:
    if settings.token is None:
        return None
    if not local and not settings.endpoint.startswith("https:"):
        _log.warning("The token is not sent to %s, which is not encrypted.", settings.endpoint)
        return None
    return f"Bearer {settings.token}"


def _client(settings: HubSettings, sockets: wire.SocketDeadlines, *, local: bool) -> httpx.Client:
    """A client without cookies whose sockets obey the deadlines; a Hub on this machine needs no proxy."""
    return httpx.Client(
        cookies=http.cookiejar.CookieJar(http.cookiejar.DefaultCookiePolicy(allowed_domains=[])),
        follow_redirects=False,
        transport=DeadlineTransport(sockets, settings.connections, local=local),
    )
