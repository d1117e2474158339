"""Limits for answers of an untrusted server: time, size, encoding, and the form of its headers.

This module does not depend on an HTTP library; `crawler.hub.client` puts it between the sockets and its own
methods.
"""

from __future__ import annotations

import ipaddress
import json
import re
import threading
import time
import zlib
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from email.utils import parsedate_to_datetime
from typing import Any
from urllib.parse import urlsplit

from catalog.errors import HubPayloadError, UsageError

_CONTENT_RANGE = re.compile(r"bytes (\d{1,19})-(\d{1,19})/(\d{1,19}|\*)")
# A text of JSON as a whole, or one of the marks between values.
_JSON_MARK = re.compile(rb'"(?:[^"\\]|\\.)*"|[][{},]', re.DOTALL)
_MOST_DIGITS = 300
_EXCERPT = 500
_DELAY_SECONDS = re.compile(r"[0-9]{1,9}")


class DeadlineError(TimeoutError):
    """The total time for one exchange is over."""


class Deadline:
    """The end of one exchange, in seconds from now on the machine's own clock: sockets use no other."""

    def __init__(self, seconds: float) -> None:
        self._end = time.monotonic() + seconds

    def left(self) -> float:
        """Seconds that are left; raises DeadlineError when there are none."""
        left = self._end - time.monotonic()
        if left <= 0:
            raise DeadlineError("the deadline passed")
        return left

    def extend(self, seconds: float) -> None:
        """Exclude time that was spent waiting for the request budget."""
        self._end += seconds


class SocketDeadlines(threading.local):
    """The deadline of the current thread's exchange."""

    current: Deadline | None = None

    @contextmanager
    def within(self, deadline: Deadline) -> Iterator[None]:
        """Every socket call of this thread, inside the block, ends by the deadline."""
        self.current = deadline
        try:
            yield
        finally:
            self.current = None

    def bound(self, timeout: float | None) -> float | None:
        """The socket timeout to use: the requested one, or less if the deadline is nearer."""
        if self.current is None:
            return timeout
        left = self.current.left()
        return left if timeout is None else min(timeout, left)


class DeadlineSockets:
    """A network backend of httpcore around another one.

    A timeout in httpcore is for one read of a socket, so a server that sends its header a byte at a time is
    never timed out; here each read gets the rest of the deadline. Name resolution is done by the system and
    not bounded.
    """

    def __init__(self, inner: Any, deadlines: SocketDeadlines) -> None:
        self._inner = inner
        self._deadlines = deadlines

    def connect_tcp(
        self, host: str, port: int, timeout: float | None = None, **options: Any
    ) -> _DeadlineStream:
        stream = self._inner.connect_tcp(host, port, timeout=self._deadlines.bound(timeout), **options)
        return _DeadlineStream(stream, self._deadlines)

    def sleep(self, seconds: float) -> None:
        self._inner.sleep(seconds)


class _DeadlineStream:
    """A network stream of httpcore whose calls end by the deadline of the thread that makes them."""

    def __init__(self, inner: Any, deadlines: SocketDeadlines) -> None:
        self._inner = inner
        self._deadlines = deadlines

    def read(self, max_bytes: int, timeout: float | None = None) -> bytes:
        data: bytes = self._inner.read(max_bytes, timeout=self._deadlines.bound(timeout))
        return data

    def write(self, buffer: bytes, timeout: float | None = None) -> None:
        self._inner.write(buffer, timeout=self._deadlines.bound(timeout))

    def start_tls(
        self, ssl_context: Any, server_hostname: str | None = None, timeout: float | None = None
    ) -> _DeadlineStream:
        inner = self._inner.start_tls(ssl_context, server_hostname, self._deadlines.bound(timeout))
        return _DeadlineStream(inner, self._deadlines)

    def close(self) -> None:
        self._inner.close()

    def get_extra_info(self, info: str) -> Any:
        return self._inner.get_extra_info(info)


def read_body(chunks: Iterable[bytes], *, encoding: str, limit: int, url: str) -> bytes:
    """The body, decoded if it is gzip; neither the raw nor the decoded bytes ever exceed `limit`.

    Raises HubPayloadError for more than `limit`, for another encoding, and for gzip that is broken or cut
    short.
    """
    if encoding not in ("", "identity", "gzip"):
        raise HubPayloadError(
            f"The Hub answered in the encoding {encoding[:40]!r}, which was not requested.", url=url
        )
    unzip = zlib.decompressobj(16 + zlib.MAX_WBITS) if encoding == "gzip" else None
    body = bytearray()
    raw = 0
    for chunk in chunks:
        raw += len(chunk)
        try:
            body += chunk if unzip is None else unzip.decompress(chunk, limit - len(body) + 1)
        except zlib.error as error:
            raise HubPayloadError("The Hub answered with broken gzip.", url=url) from error
        if max(raw, len(body)) > limit:
            raise HubPayloadError(f"The Hub answered with more than {limit:,} bytes.", url=url)
    if unzip is not None and not unzip.eof:
        raise HubPayloadError("The Hub answered with gzip that is cut short.", url=url)
    return bytes(body)


def parse_json(body: bytes, *, url: str) -> object:
    """The value of a JSON body in UTF-8; raises HubPayloadError for anything else, NaN included.

    An integer of very many digits, which Python would not read, stays the text of its digits.
    """

    def refuse(constant: str) -> object:
        raise ValueError(f"{constant} is not JSON")

    try:
        value: object = json.loads(body.decode("utf-8"), parse_constant=refuse, parse_int=_integer)
    except (ValueError, RecursionError) as error:
        raise HubPayloadError("The Hub's answer is not JSON.", url=url) from error
    return value


def parse_rows(body: bytes, *, url: str) -> list[object]:
    """The rows of a JSON list in UTF-8; raises HubPayloadError for anything else.

    If the list cannot be read as a whole, for example because a row is nested too deep, its rows are read one
    by one: an unreadable one becomes the beginning of its text.
    """
    try:
        value = parse_json(body, url=url)
    except HubPayloadError:
        texts = _row_texts(body)
        if not texts or not all(text.lstrip().startswith(b"{") for text in texts):
            raise
        return [_row(text, url) for text in texts]
    if not isinstance(value, list):
        raise HubPayloadError("The Hub's answer is not a list.", url=url)
    return value


def _row(text: bytes, url: str) -> object:
    try:
        return parse_json(text, url=url)
    except HubPayloadError:
        return text[:_EXCERPT].decode("utf-8", "replace")


def _row_texts(body: bytes) -> list[bytes] | None:
    """The texts between the commas of a JSON list, None if the body is not in brackets."""
    texts: list[bytes] = []
    depth, begin = 0, 0
    for match in _JSON_MARK.finditer(body):
        mark, at = body[match.start() : match.start() + 1], match.start()
        if depth == 0 and (mark != b"[" or texts or body[:at].strip()):
            return None
        if mark in b"[{":
            depth += 1
            begin = at + 1 if depth == 1 else begin
        elif mark in b"]}":
            depth -= 1
        if (mark == b"," and depth == 1) or depth == 0:
            texts.append(body[begin:at])
            begin = at + 1
    return texts if depth == 0 and not body[begin:].strip() else None


def _integer(digits: str) -> int | str:
    return int(digits) if len(digits) <= _MOST_DIGITS else digits


def content_range(value: str, *, url: str) -> tuple[int, int, int | None]:
    """First byte, last byte and total (None for `*`) of a Content-Range; raises HubPayloadError."""
    match = _CONTENT_RANGE.fullmatch(value.strip())
    if match is None or int(match[1]) > int(match[2]):
        raise HubPayloadError("The Hub sent a part of a file without its range.", url=url)
    return int(match[1]), int(match[2]), None if match[3] == "*" else int(match[3])


def retry_after(headers: Mapping[str, str]) -> float | None:
    """Seconds that Retry-After asks for, be it a number or a date; None without one that can be read.

    A date is taken against the answer's own Date, so that differing clocks do not matter.
    """
    value = headers.get("retry-after", "").strip()
    if _DELAY_SECONDS.fullmatch(value):
        return float(value)
    until, now = (_timestamp(text) for text in (value, headers.get("date", "")))
    return None if until is None else max(0.0, until - (time.time() if now is None else now))


def _timestamp(date: str) -> float | None:
    try:
        return parsedate_to_datetime(date).timestamp()
    except (ValueError, TypeError, OverflowError):
        return None


def check_endpoint(endpoint: str) -> None:
    """Raises UsageError, with HF_ENDPOINT and the reason, unless this is the http(s) URL of a Hub."""
    if problem := _endpoint_problem(endpoint):
        raise UsageError(
            f"The Hub's endpoint cannot be used, as {problem}: "
            "set HF_ENDPOINT to a plain http or https URL, or unset it."
        )


def _endpoint_problem(endpoint: str) -> str | None:
    if not endpoint.strip():
        return "it is empty"
    if re.search(r"[?#\s\x00-\x20\x7f]", endpoint):
        return "it contains a space, a control character, ? or #"
    try:
        parts = urlsplit(endpoint)
        port, host = parts.port, parts.hostname or ""
    except ValueError as error:
        return f"it is not a URL ({error})"
    if parts.scheme not in ("http", "https"):
        return "it does not begin with http:// or https://"
    if "@" in parts.netloc:
        return "it contains a name or a password"
    if not _is_host(host):
        return "its host is not a name or an address"
    return "its port is 0" if port == 0 else None


def _is_host(host: str) -> bool:
    try:
        ipaddress.ip_address(host)
    except ValueError:
        try:
            return bool(host.removesuffix(".").encode("idna"))
        except UnicodeError:  # an empty label, or one too long
            return False
    return True


def origin(url: str) -> str | None:
    """Scheme, host and port of an absolute http(s) URL; None for any other, and for one with credentials."""
    try:
        parts = urlsplit(url)
        port = parts.port or {"http": 80, "https": 443}[parts.scheme]
    except (ValueError, KeyError):
        return None
    if not parts.hostname or "@" in parts.netloc:
        return None
    return f"{parts.scheme}://{parts.hostname}:{port}"


def without_query(url: str) -> str:
    """The URL as messages may show it: neither query nor fragment nor credentials."""
    head = re.split(r"[?#]", url, maxsplit=1)[0]
    return re.sub(r"//[^/@]*@", "//", head)


def is_loopback(url: str) -> bool:
    """Whether the URL's host is this machine, by name or by number."""
    try:
        host = urlsplit(url).hostname or ""
        return host == "localhost" or ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False
