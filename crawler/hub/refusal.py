"""Refusals of the Hub: the client library's errors and HTTP statuses → errors of the catalog.

Every foreign exception is translated in `translate`, and nowhere else.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager

from huggingface_hub.errors import (
    DisabledRepoError,
    EntryNotFoundError,
    GatedRepoError,
    HfHubHTTPError,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)
from huggingface_hub.utils import (  # type: ignore[attr-defined]  # exported lazily; httpx or httpx2
    RateLimitInfo,
    hf_raise_for_status,
    httpx,
    parse_ratelimit_headers,
)

from catalog.errors import (
    CursorExpiredError,
    HubAccessError,
    HubBusyError,
    HubError,
    HubPayloadError,
    HubUnreachableError,
)
from crawler.hub import wire

_BAD_CREDENTIALS = "Invalid credentials in Authorization header"
_MISSING = ("private_or_missing", "The repository is private, or does not exist")
# In this order: the client library's gated error is a not-found error as well.
_REFUSALS: tuple[tuple[type[Exception], tuple[str, str]], ...] = (
    (GatedRepoError, ("gated", "The repository is gated; request access on its page")),
    (DisabledRepoError, ("disabled", "The Hub has disabled the repository")),
    (RevisionNotFoundError, ("revision_gone", "The repository no longer has this commit")),
    (EntryNotFoundError, ("entry_gone", "The commit has no such file")),
    (RepositoryNotFoundError, _MISSING),
)
_REFUSED_STATUS: Mapping[int, tuple[str, str]] = {
    401: _MISSING,
    404: _MISSING,
    451: ("disabled", "The Hub may not show the repository"),
}
FOREIGN: tuple[type[Exception], ...] = (
    HfHubHTTPError,
    TimeoutError,
    httpx.HTTPError,
    httpx.InvalidURL,
    httpx.StreamError,
    httpx.CookieConflict,
    UnicodeError,  # of a redirect to a host whose name no resolver takes
)


def translate(error: Exception, url: str) -> HubError:
    """The catalog's error for one of the client library's or the HTTP library's (`FOREIGN`)."""
    address = wire.without_query(url)
    if isinstance(error, HfHubHTTPError):
        return _refusal(error, url)
    if isinstance(error, (httpx.TimeoutException, TimeoutError)):
        return HubUnreachableError(f"The Hub did not respond in time ({address}).", url=address)
    if isinstance(error, (httpx.NetworkError, httpx.RemoteProtocolError, httpx.ProxyError)):
        return HubUnreachableError(f"The connection to the Hub broke ({address}).", url=address)
    return HubPayloadError(f"The Hub's answer cannot be followed ({address}).", url=address)


def _refusal(error: HfHubHTTPError, url: str) -> HubError:
    address = wire.without_query(url)
    status = error.response.status_code
    if status in (400, 410) and "cursor=" in url:
        return CursorExpiredError("The Hub no longer continues the list from here.", url=address)
    if error.response.headers.get("x-error-message") == _BAD_CREDENTIALS:
        return HubAccessError(
            "The Hub does not accept the token; log in again.", status="unauthorized", url=address
        )
    refused = ("refused", f"The Hub refuses with HTTP {status}")
    of_status = _REFUSED_STATUS.get(status, refused)
    name, words = next((row for kind, row in _REFUSALS if isinstance(error, kind)), of_status)
    return HubAccessError(f"{words} ({address}).", status=name, url=address)


@contextmanager
def translate_errors(url: str) -> Iterator[None]:
    """Inside the block, every foreign exception becomes one of `catalog.errors`."""
    try:
        yield
    except FOREIGN as error:
        raise translate(error, url) from error


def refuse(response: httpx.Response, url: str, *, own: bool) -> None:
    """Raise for any answer but 200 and 206; of a refusal only two short headers are read, never the body."""
    status = response.status_code
    address = wire.without_query(url)
    if status in (200, 206):
        return
    if status in (408, 429) or status >= 500:
        wait = _wait_of_server(response)
        raise HubBusyError(
            f"The Hub is busy: HTTP {status} ({address}).", url=address, status=status, retry_after=wait
        )
    if status == 416:
        raise HubPayloadError(f"The Hub does not have the requested part ({address}).", url=address)
    if status >= 400 and not own:
        message = f"The Hub's storage refuses the file with HTTP {status} ({address})."
        raise HubAccessError(message, status="refused", url=address)
    # Meaningful texts are ASCII; other bytes must not prevent reading the refusal.
    headers = {name: _ascii(response.headers.get(name, "")) for name in ("x-error-code", "x-error-message")}
    hf_raise_for_status(
        httpx.Response(status, headers=headers, json={}, request=httpx.Request("GET", address))
    )
    raise HubPayloadError(
        f"The Hub answered with HTTP {status}, which is not expected ({address}).", url=address
    )


def _ascii(text: str) -> str:
    return text[:200].encode("ascii", "replace").decode("ascii")


def _wait_of_server(response: httpx.Response) -> float | None:
    """Seconds the server asks to wait; its rate limit counts only if that is the cause."""
    wait = wire.retry_after(response.headers)
    limit = rate_limit(response.headers)
    if wait is None and response.status_code == 429 and limit is not None and limit.remaining == 0:
        return min(limit.reset_in_seconds, 1_000_000) + 1.0
    return wait


def rate_limit(headers: Mapping[str, str]) -> RateLimitInfo | None:
    """The server's rate limit in its headers; None if they cannot be read."""
    try:
        return parse_ratelimit_headers(headers)
    except ValueError:  # a number with thousands of digits
        return None
