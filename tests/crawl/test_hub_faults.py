"""A Hub that is slow, silent or out of its mind: every answer ends in time, in size, and in an error."""

from __future__ import annotations

import gzip
import threading
import tracemalloc
import zlib
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime
from pathlib import Path

import pytest

from catalog.errors import HubError, HubPayloadError, HubUnreachableError
from crawler.hub import Hub, HubSettings, Page, wire
from crawler.hub.budget import WaitCancelledError
from tests.fakes import RawServer, VirtualClock
from tests.hubs import make_repo
from tests.localhub import FaultHub
from tests.localhub.faults import Callback, Drip, Extend, Fault, Gzip, Hang, HangBody, Json, Status

NAME = "someone/adapter"
MEBIBYTE = 1 << 20


@pytest.fixture
def server(tmp_path: Path) -> Iterator[FaultHub]:
    make_repo(tmp_path, NAME)
    with FaultHub(tmp_path) as running:
        yield running


def first_page(url: str, *, timeout: float = 10.0, deadline: float = 10.0, attempts: int = 1) -> Page:
    """The first page of a listing."""
    settings = HubSettings(url, timeout=timeout, deadline=deadline, attempts=attempts)
    with Hub(settings, clock=VirtualClock()) as hub:
        return hub.page(hub.listing_url([], sort="createdAt"))


# Time. Each limit is tried alone, the other one being far away.


@pytest.mark.parametrize(
    ("fault", "timeout", "deadline"),
    [
        pytest.param(Hang(), 0.2, 10.0, id="case-19-silent-hang-timeout"),
        pytest.param(Hang(), 10.0, 0.2, id="case-19-silent-hang-deadline"),
        pytest.param(HangBody(5), 0.2, 10.0, id="case-19-hang-in-the-body-timeout"),
        pytest.param(HangBody(5), 10.0, 0.2, id="case-19-hang-in-the-body-deadline"),
        pytest.param(Drip(1, 0.02), 10.0, 0.3, id="case-20-slow-drip"),
    ],
)
def test_a_slow_hub_is_left_in_time(server: FaultHub, fault: Hang, timeout: float, deadline: float) -> None:
    server.faults.append(Fault("", fault))
    with pytest.raises(HubUnreachableError, match="in time"):
        first_page(server.url, timeout=timeout, deadline=deadline)


def test_case_19_a_slow_hub_is_asked_again(server: FaultHub) -> None:
    server.faults.append(Fault("", Hang(), times=2))
    assert len(first_page(server.url, deadline=1.5, attempts=3).rows) == 1


@pytest.mark.parametrize(
    "before",
    [
        pytest.param(b"", id="case-20-drip-of-the-status-line"),
        pytest.param(b"HTTP/1.1 200 OK\r\nX-Long: ", id="case-20-drip-of-a-header"),
        pytest.param(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n", id="case-20-drip-of-chunks"),
    ],
)
def test_dripping_head_bytes_are_left_in_time(before: bytes) -> None:
    """Each byte comes well before the timeout, so only the deadline ends it; without, the answer is good."""
    remaining = {
        b"": b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\n[]",
        b"HTTP/1.1 200 OK\r\nX-Long: ": b"x" * 40 + b"\r\nContent-Length: 2\r\n\r\n[]",
    }.get(before, b"1\r\n[\r\n1\r\n \r\n1\r\n \r\n1\r\n]\r\n0\r\n\r\n")
    pieces = [before, *(bytes([byte]) for byte in remaining)]
    with RawServer(lambda _: (piece for piece in pieces if piece), pause=0.02) as raw:
        with pytest.raises(HubUnreachableError, match="in time"):
            first_page(raw.url, deadline=0.2)
        assert first_page(raw.url, deadline=30).rows == ()


def test_an_endless_row_of_early_answers_is_left_in_time() -> None:
    early = b"HTTP/1.1 103 Early Hints\r\n\r\n"
    with (
        RawServer(lambda _: (early for _ in range(2_000)), pause=0.005) as raw,
        pytest.raises(HubUnreachableError),
    ):
        first_page(raw.url, deadline=0.3)


@pytest.mark.parametrize(
    "garbage",
    [
        pytest.param(b"", id="nothing"),
        pytest.param(b"\x00\xff" * 500, id="noise"),
        pytest.param(b"SSH-2.0-OpenSSH_9.6\r\n", id="another-protocol"),
        pytest.param(
            b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\nContent-Length: 6\r\n\r\n[]", id="two-lengths"
        ),
        pytest.param(b"HTTP/1.1 200 OK\r\nContent-Length: -1\r\n\r\n[]", id="negative-length"),
        pytest.param(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n[]", id="bad-chunks"),
        pytest.param(b"HTTP/1.1 200 OK\r\nX: " + b"x" * 200_000, id="endless-header"),
        pytest.param(b"HTTP/1.1 200 OK\r\nContent-Length: 10\r\n\r\n[]", id="case-35-cut-short"),
    ],
)
def test_raw_garbage_is_a_broken_way(garbage: bytes) -> None:
    with RawServer(lambda _: [garbage]) as raw:
        with pytest.raises(HubUnreachableError, match="broke"):
            first_page(raw.url, attempts=2)
        assert len(raw.heads) == 2


def test_case_93_a_long_answer_is_cut_off_when_the_crawl_stops(server: FaultHub) -> None:
    stop = threading.Event()
    server.faults += [Fault("", Callback(lambda _: stop.set())), Fault("", Drip(1, 0.01))]
    with Hub(HubSettings(server.url), stop=stop) as hub, pytest.raises(WaitCancelledError):
        hub.repository(NAME)


# Size


@pytest.mark.parametrize(
    "fault",
    [
        pytest.param(Gzip(300, prefix=b"[", fill=b" ", suffix=b"]"), id="case-18-gzip-bomb"),
        pytest.param(Extend(b" " * (2 * MEBIBYTE)), id="case-18-more-without-a-length"),
        pytest.param(Extend(b" " * (2 * MEBIBYTE), declared=True), id="case-18-more-with-a-length"),
    ],
)
def test_a_body_that_is_too_large_is_dropped(server: FaultHub, fault: Gzip) -> None:
    server.faults.append(Fault("/api/models", fault))
    with Hub(HubSettings(server.url, list_body=MEBIBYTE)) as hub:
        with pytest.raises(HubPayloadError, match="more than"):
            hub.page(hub.listing_url([], sort="createdAt"))
        assert hub.usage.bytes < 2 * MEBIBYTE


def test_gzip_is_understood(server: FaultHub) -> None:
    server.faults.append(Fault("/api/models", Gzip(0, prefix=b"[1, ", suffix=b"2]")))
    assert first_page(server.url).rows == (1, 2)


@pytest.mark.parametrize(
    ("encoding", "body"),
    [
        pytest.param("gzip", b"[]", id="not-gzip"),
        pytest.param("gzip", gzip.compress(b"[]" * 50)[:-9], id="gzip-cut-short"),
        pytest.param("br", b"[]", id="brotli"),
        pytest.param("gzip, gzip", gzip.compress(gzip.compress(b"[]")), id="gzip-twice"),
        pytest.param("deflate", zlib.compress(b"[]"), id="deflate"),
    ],
)
def test_an_encoding_nobody_asked_for_is_refused(server: FaultHub, encoding: str, body: bytes) -> None:
    server.faults.append(Fault("", Status(200, {"Content-Encoding": encoding}, body)))
    with pytest.raises(HubPayloadError):
        first_page(server.url)


def test_case_18_a_bomb_in_one_piece_takes_no_memory() -> None:
    bomb = gzip.compress(b"\0" * (200 * MEBIBYTE))
    tracemalloc.start()
    try:
        with pytest.raises(HubPayloadError):
            wire.read_body([bomb], encoding="gzip", limit=MEBIBYTE, url="")
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak < 8 * MEBIBYTE


@pytest.mark.parametrize("encoding", ["identity", "gzip"])
@pytest.mark.parametrize("pieces", [1, 7, 5000])
def test_the_limit_is_exact(encoding: str, pieces: int) -> None:
    body = b"x" * 5000
    sent = gzip.compress(body) if encoding == "gzip" else body
    size = -(-len(sent) // pieces)
    chunks = [sent[start : start + size] for start in range(0, len(sent), size)]
    assert wire.read_body(chunks, encoding=encoding, limit=5000, url="") == body
    with pytest.raises(HubPayloadError, match="more than"):
        wire.read_body(chunks, encoding=encoding, limit=4999, url="")


class Wires:
    """A network backend and its streams in one, that only writes down the timeouts it is given."""

    def __init__(self) -> None:
        self.timeouts: list[float | None] = []

    def connect_tcp(self, host: str, port: int, timeout: float | None, local_address: str | None) -> Wires:
        self.timeouts.append(timeout)
        return self

    def start_tls(self, ssl_context: object, server_hostname: str | None, timeout: float | None) -> Wires:
        self.timeouts.append(timeout)
        return self

    def read(self, max_bytes: int, timeout: float | None) -> bytes:
        self.timeouts.append(timeout)
        return b""

    def write(self, buffer: bytes, timeout: float | None) -> None:
        self.timeouts.append(timeout)


def use(backend: wire.DeadlineSockets, timeout: float | None) -> None:
    stream = backend.connect_tcp("hub.example", 443, timeout=timeout, local_address=None)
    tls = stream.start_tls(None, server_hostname="hub.example", timeout=timeout)
    tls.write(b"GET", timeout=timeout)
    tls.read(10, timeout=timeout)


@pytest.mark.parametrize("timeout", [None, 1e6], ids=["without-a-timeout", "with-a-longer-timeout"])
def test_every_call_on_a_socket_ends_by_the_deadline(timeout: float | None) -> None:
    wires, deadlines = Wires(), wire.SocketDeadlines()
    with deadlines.within(wire.Deadline(60)):
        use(wire.DeadlineSockets(wires, deadlines), timeout)
    assert len(wires.timeouts) == 4
    assert all(arguments is not None and 0 < arguments <= 60 for arguments in wires.timeouts)


def test_outside_an_exchange_a_socket_has_its_own_timeout() -> None:
    wires = Wires()
    use(wire.DeadlineSockets(wires, wire.SocketDeadlines()), 5.0)
    assert wires.timeouts == [5.0] * 4


def test_after_the_deadline_no_socket_is_touched() -> None:
    wires, deadlines = Wires(), wire.SocketDeadlines()
    with deadlines.within(wire.Deadline(0)), pytest.raises(wire.DeadlineError):
        use(wire.DeadlineSockets(wires, deadlines), 5.0)
    assert wires.timeouts == []


# Headers


DATE = datetime(2026, 1, 1, tzinfo=UTC)


@pytest.mark.parametrize(
    ("headers", "seconds"),
    [
        ({"retry-after": "17"}, 17),
        ({"retry-after": "0"}, 0),
        ({"retry-after": format_datetime(DATE + timedelta(minutes=2)), "date": format_datetime(DATE)}, 120),
        ({"retry-after": format_datetime(DATE), "date": format_datetime(DATE + timedelta(minutes=2))}, 0),
        ({"retry-after": format_datetime(DATE - timedelta(days=9000))}, 0),
        ({"retry-after": "-5"}, None),
        ({"retry-after": "9" * 400}, None),
        ({"retry-after": "Wed, 99 Foo 2015 07:28:00 GMT"}, None),
        ({"retry-after": "Wed, 21 Oct 99999 07:28:00 GMT"}, None),
        ({"retry-after": ""}, None),
        ({}, None),
    ],
)
def test_what_retry_after_asks_for(headers: dict[str, str], seconds: float | None) -> None:
    assert wire.retry_after(headers) == seconds


@pytest.mark.parametrize(
    ("value", "read"),
    [
        ("bytes 0-9/10", (0, 9, 10)),
        ("bytes 5-9/*", (5, 9, None)),
        ("bytes 9-5/10", None),
        ("bytes */10", None),
        ("items 0-9/10", None),
        ("bytes 0-9", None),
        (f"bytes 0-{'9' * 50}/10", None),
        ("", None),
    ],
)
def test_what_content_range_says(value: str, read: tuple[int, int, int | None] | None) -> None:
    if read is None:
        with pytest.raises(HubError):
            wire.content_range(value, url="")
    else:
        assert wire.content_range(value, url="") == read


@pytest.mark.parametrize(
    ("url", "origin"),
    [
        ("https://hub.example/a?b", "https://hub.example:443"),
        ("http://HUB.example:80/", "http://hub.example:80"),
        ("http://[::1]:8080/", "http://::1:8080"),
        ("https://user@hub.example/", None),
        ("https://hub.example:99999/", None),
        ("//hub.example/", None),
        ("/path", None),
        ("javascript:alert(1)", None),
        ("https://", None),
    ],
)
def test_where_a_url_leads(url: str, origin: str | None) -> None:
    assert wire.origin(url) == origin


@pytest.mark.parametrize(
    ("url", "local"),
    [
        ("http://127.0.0.1:1", True),
        ("http://127.8.8.8", True),
        ("http://localhost:80/x", True),
        ("http://[::1]", True),
        ("http://localhost.example", False),
        ("http://10.0.0.1", False),
        ("http://0.0.0.0", False),
        ("http://[::1", False),
        ("nonsense", False),
    ],
)
def test_what_is_this_machine(url: str, local: bool) -> None:
    assert wire.is_loopback(url) is local


def test_a_url_is_shown_without_its_secrets() -> None:
    assert wire.without_query("https://u:p@hub.example/a/b?token=x#y") == "https://hub.example/a/b"


def test_a_row_of_any_json_is_handed_on(server: FaultHub) -> None:
    server.faults.append(Fault("", Json([{"a": "\ud800\x00"}])))
    assert first_page(server.url).rows == ({"a": "\ud800\x00"},)
