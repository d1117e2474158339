"""Who is told what: where the token goes, where redirects may lead, and what nobody gets to see."""

from __future__ import annotations

import logging
import threading
import traceback
from dataclasses import replace
from pathlib import Path

import pytest
from huggingface_hub.utils import httpx  # type: ignore[attr-defined]  # exported lazily: httpx or httpx2

from catalog.errors import (
    HubError,
    HubPayloadError,
    HubUnreachableError,
)
from catalog.files import BlobStore
from crawler.hub import Hub, HubSettings
from crawler.hub.connection import _ERRORS, DeadlineTransport, httpcore
from crawler.hub.exchange import Ask, Exchange
from crawler.hub.wire import SocketDeadlines
from tests.client import NAME, TOKEN, file_of
from tests.fakes import RawServer, VirtualClock
from tests.localhub import FaultHub
from tests.localhub.faults import (
    Callback,
    Fault,
    Hang,
    Html,
    RedirectLoop,
    RedirectTo,
    SetHeader,
    Status,
    Truncate,
)

# Who is told what


@pytest.mark.parametrize("kind", [301, 302, 303, 307, 308])
def test_case_44_an_api_answer_never_comes_from_elsewhere(
    root: Path, hub: Hub, server: FaultHub, kind: int
) -> None:
    with FaultHub(root) as other:
        server.faults.append(Fault("/api/models/", RedirectTo(f"{other.url}/api/models/{NAME}", kind)))
        with pytest.raises(HubPayloadError, match="own host"):
            hub.repository(NAME)
        assert other.log == []


@pytest.mark.parametrize(
    ("target", "words"),
    [
        pytest.param("http://user:password@127.0.0.1:1/x", "no address", id="case-44-credentials"),
        pytest.param("file:///etc/passwd", "no address", id="case-44-file"),
        pytest.param("", "circle", id="case-45-nowhere"),
    ],
)
def test_a_redirect_to_no_place_is_refused(hub: Hub, server: FaultHub, target: str, words: str) -> None:
    commit, file = file_of(hub)
    server.faults.append(Fault("/resolve/", RedirectTo(target)))
    with pytest.raises(HubPayloadError, match=words):
        hub.small_file(NAME, commit, file)


def test_case_44_a_redirect_that_is_no_url_is_refused(hub: Hub, server: FaultHub) -> None:
    # The older of the two HTTP libraries takes it for a broken connection.
    commit, file = file_of(hub)
    server.faults.append(Fault("/resolve/", RedirectTo("http://[::1/")))
    with pytest.raises((HubPayloadError, HubUnreachableError)):
        hub.small_file(NAME, commit, file)


@pytest.mark.parametrize(
    ("endpoint", "target", "refused"),
    [
        ("https://hub.example", "http://cdn.example/x", True),
        ("https://hub.example", "http://hub.example/x", True),
        ("https://hub.example", "HTTPS://cdn.example/x", False),
        ("http://127.0.0.1:1", "http://127.0.0.1:2/x", False),
    ],
)
def test_case_44_a_redirect_never_leaves_encryption(endpoint: str, target: str, refused: bool) -> None:
    ask = Ask(f"{endpoint}/a/b/resolve/main/c", "resolver", 1.0)
    exchange = Exchange(HubSettings(endpoint), None, None, threading.Event())
    if refused:
        with pytest.raises(HubPayloadError, match="unencrypted"):
            exchange.redirect_target(ask, [ask.url], target)
    else:
        assert exchange.redirect_target(ask, [ask.url], target).startswith(target[:4].lower())
    exchange.close()


@pytest.mark.parametrize("where", ["/api/models/", "/resolve/"])
def test_case_45_a_redirect_loop_ends(hub: Hub, server: FaultHub, where: str) -> None:
    commit, file = file_of(hub)
    server.clear()
    server.faults.append(Fault(where, RedirectLoop()))
    with pytest.raises(HubPayloadError, match="circle"):
        hub.repository(NAME) if "api" in where else hub.small_file(NAME, commit, file)
    assert len(server.log) == 1


def test_case_45_a_long_chain_ends(hub: Hub, server: FaultHub) -> None:
    server.faults += [
        Fault(f"/hop{number}$", RedirectTo(f"{server.url}/api/models/a/hop{number + 1}"))
        for number in range(20)
    ]
    server.faults.append(Fault("/old", RedirectTo(f"{server.url}/api/models/a/hop0")))
    with pytest.raises(HubPayloadError, match="circle"):
        hub.repository("someone/old")
    assert len(server.log) == 6


def test_case_89_the_hub_knows_who_asks(hub: Hub, server: FaultHub) -> None:
    hub.repository(NAME)
    agent = server.log[0].headers["user-agent"]
    assert agent.startswith("loradex/")
    assert "https://github.com/loradex/loradex" in agent


def test_case_91_nothing_but_the_hub_is_asked(hub: Hub, server: FaultHub, tmp_path: Path) -> None:
    commit, file = file_of(hub, "adapter_model.safetensors")
    hub.download(NAME, commit, file, BlobStore(tmp_path / "blobs"))
    assert [requests.path for requests in server.log] == [
        f"/api/models/{NAME}",
        f"/api/models/{NAME}/tree/{commit}",
        f"/{NAME}/resolve/{commit}/adapter_model.safetensors",
    ]


def test_cookies_are_not_kept(hub: Hub, server: FaultHub) -> None:
    server.faults.append(Fault("", SetHeader("Set-Cookie", "session=1; Path=/")))
    hub.repository(NAME)
    hub.repository(NAME)
    assert "cookie" not in server.log[1].headers


def test_case_94_the_token_is_nowhere_but_in_requests(
    hub: Hub, server: FaultHub, root: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)
    output = [repr(hub.settings), str(hub.settings), repr(vars(hub))]
    commit, file = file_of(hub)
    hub.small_file(NAME, commit, file)
    output += [requests.line for requests in server.log]
    echo = f"Bearer {TOKEN}"
    for answer in (
        Status(401, error_message="Invalid credentials in Authorization header"),
        Status(403, error_code="GatedRepo"),
        Status(404),
        Status(503),
        Html(),
        Truncate(1),
        Hang(),
        RedirectTo(f"http://127.0.0.1:9/?{NAME}"),
    ):
        server.faults[:] = [Fault("", answer)]
        patient = replace(hub.settings, timeout=0.1, attempts=2)
        with Hub(patient, clock=VirtualClock()) as second, pytest.raises(HubError) as caught:
            second.small_file(NAME, commit, file)
        output += traceback.format_exception(caught.value)
        error: BaseException | None = caught.value
        while error is not None:
            output += [str(error), repr(error), repr(vars(error))]
            request = getattr(error, "_request", None) or getattr(
                getattr(error, "response", None), "request", None
            )
            assert request is None or "authorization" not in request.headers
            error = error.__cause__ or error.__context__
    output += [record.getMessage() for record in caplog.records]
    assert all(echo in requests.headers["authorization"] for requests in server.log)
    assert not any(TOKEN in text for text in output)


def test_case_94_a_token_goes_over_plain_http_to_this_machine_only(caplog: pytest.LogCaptureFixture) -> None:
    Hub(HubSettings("http://hub.example", token=TOKEN)).close()
    assert "not encrypted" in caplog.text
    caplog.clear()
    for endpoint in ("https://hub.example", "http://127.0.0.1:1", "http://localhost", "http://[::1]:1"):
        Hub(HubSettings(endpoint, token=TOKEN)).close()
    assert caplog.text == ""


def test_case_94_a_plain_http_hub_elsewhere_gets_no_token(monkeypatch: pytest.MonkeyPatch) -> None:
    answer = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\nConnection: close\r\n\r\n{}"
    with RawServer(lambda _: [answer]) as proxy:
        monkeypatch.setenv("HTTP_PROXY", proxy.url)
        with Hub(HubSettings("http://hub.example", token=TOKEN)) as hub:
            assert hub.repository(NAME) == {}
        (head,) = proxy.heads
    assert b"authorization" not in head.lower()


def test_case_94_a_hub_on_this_machine_is_reached_without_a_proxy(
    server: FaultHub, root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with FaultHub(root) as proxy:
        monkeypatch.setenv("HTTP_PROXY", proxy.url)
        with Hub(HubSettings(server.url, token=TOKEN)) as hub:
            hub.repository(NAME)
        assert proxy.log == []


def test_a_host_in_no_proxy_is_reached_without_the_proxy(monkeypatch: pytest.MonkeyPatch) -> None:
    answer = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\nConnection: close\r\n\r\n{}"
    with RawServer(lambda _: [answer]) as proxy, RawServer(lambda _: [answer]) as direct:
        monkeypatch.setenv("ALL_PROXY", proxy.url)
        monkeypatch.setenv("NO_PROXY", "127.0.0.1")
        with DeadlineTransport(SocketDeadlines(), 1, local=False) as transport:
            for url in ("http://hub.invalid/api", f"{direct.url}/api"):
                assert transport.handle_request(httpx.Request("GET", url)).read() == b"{}"
        assert (len(proxy.heads), len(direct.heads)) == (1, 1)


def test_every_error_of_httpcore_is_one_of_httpx() -> None:
    errors = [error for error in vars(httpcore).values() if isinstance(error, type)]
    known = [error for error in errors if issubclass(error, Exception) and issubclass(error, _ERRORS)]
    assert len(known) > len(_ERRORS)
    assert all(issubclass(getattr(httpx, error.__name__), httpx.TransportError) for error in known)


def test_case_88_no_more_than_so_many_requests_at_once(server: FaultHub) -> None:
    together = threading.Barrier(2)
    lock = threading.Lock()
    inside, most = 0, 0

    def meet(_: object) -> None:
        nonlocal inside, most
        with lock:
            inside += 1
            most = max(most, inside)
        together.wait(10)
        with lock:
            inside -= 1

    server.faults.append(Fault("", Callback(meet)))
    with Hub(HubSettings(server.url, connections=2)) as hub:
        workers = [threading.Thread(target=hub.repository, args=(NAME,)) for _ in range(24)]
        for worker in workers:
            worker.start()
        for worker in workers:
            worker.join()
    assert hub.usage.api == 24
    assert most == 2
