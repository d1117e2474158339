"""Each fault of the local Hub does to an answer what its name says."""

from __future__ import annotations

import gzip
import http.client
import json
import socket
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest
from huggingface_hub import HfApi, hf_hub_download
from huggingface_hub.errors import HfHubHTTPError
from huggingface_hub.utils import httpx

from tests.hubs import make_repo
from tests.localhub import FaultHub
from tests.localhub.faults import (
    Action,
    Callback,
    Corrupt,
    Drip,
    DropHeader,
    EditJson,
    Extend,
    Fault,
    Gzip,
    Hang,
    HangBody,
    Html,
    IgnoreRange,
    Json,
    NextLink,
    RedirectLoop,
    RedirectTo,
    SeenRequest,
    SetHeader,
    Status,
    Truncate,
    WrongContentRange,
)

TEXT = "/ann/lora/resolve/main/text.txt"
CONTENT = b"0123456789"


@pytest.fixture
def hub(tmp_path: Path) -> Iterator[FaultHub]:
    make_repo(tmp_path, "ann/lora", {"text.txt": CONTENT})
    make_repo(tmp_path, "bob/lora", {"text.txt": CONTENT})
    with FaultHub(tmp_path) as running:
        yield running


@pytest.fixture
def client(hub: FaultHub) -> Iterator[httpx.Client]:
    with httpx.Client(base_url=hub.url, timeout=20, trust_env=False) as client:
        yield client


def test_faults_fire_after_some_and_for_some(hub: FaultHub, client: httpx.Client) -> None:
    hub.faults.append(Fault(r"^GET /api/models\?limit=1$", Status(503), times=2, skip=1))
    requests = [client.get("/api/models?limit=1").status_code for _ in range(5)]
    assert requests == [200, 503, 503, 200, 200]
    assert client.get("/api/models?limit=2").status_code == 200
    assert [request.status for request in hub.log] == [200, 503, 503, 200, 200, 200]


def test_faults_can_be_taken_away(hub: FaultHub, client: httpx.Client) -> None:
    hub.faults.append(Fault("", Status(500)))
    assert client.get("/api/models").status_code == 500
    hub.faults.clear()
    assert client.get("/api/models").status_code == 200


def test_counting_is_exact_with_many_clients() -> None:
    fault = Fault("x", Hang(), times=500, skip=100)
    fired: list[bool] = []
    threads = [
        threading.Thread(target=lambda: fired.extend(fault.fires("GET /x") for _ in range(200)))
        for _ in range(5)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert (sum(fired), len(fired)) == (500, 1000)


def test_all_matching_faults_apply(hub: FaultHub, client: httpx.Client) -> None:
    hub.faults += [
        Fault("text", SetHeader("X-One", "1")),
        Fault("text", Corrupt(0)),
        Fault("text", DropHeader("x-repo-commit")),
    ]
    answer = client.get(TEXT)
    assert (answer.headers["x-one"], answer.content) == ("1", b"1123456789")
    assert "x-repo-commit" not in answer.headers


def see_status(answer: httpx.Response) -> None:
    assert (answer.status_code, answer.content) == (418, b"tea")
    assert answer.headers["x-error-code"] == "Pot"
    assert answer.headers["x-error-message"] == "I am a teapot"
    assert answer.headers["retry-after"] == "1"


def see_html(answer: httpx.Response) -> None:
    assert (answer.status_code, answer.headers["content-type"]) == (200, "text/html; charset=utf-8")


def see_json(answer: httpx.Response) -> None:
    assert answer.json() == {"models": []}


def see_gzip(answer: httpx.Response) -> None:
    assert answer.headers["content-encoding"] == "gzip"
    assert answer.content == b"[" + b" " * 3 * 1024 * 1024 + b"]"
    assert answer.num_bytes_downloaded < 10_000


def see_redirect(answer: httpx.Response) -> None:
    assert (answer.status_code, answer.headers["location"]) == (307, "http://other.example/x")


def see_loop(answer: httpx.Response) -> None:
    assert (answer.status_code, answer.headers["location"]) == (302, str(answer.url))


def see_edited(answer: httpx.Response) -> None:
    assert [row.get("id") for row in answer.json()] == [None]


def see_replaced(answer: httpx.Response) -> None:
    assert answer.json() == 1


def see_self_link(answer: httpx.Response) -> None:
    assert answer.links["next"]["url"] == str(answer.url)


def see_foreign_link(answer: httpx.Response) -> None:
    assert answer.links["next"]["url"].startswith("http://other.example/api/models?limit=1&cursor=")


def see_relative_link(answer: httpx.Response) -> None:
    assert answer.links["next"]["url"].startswith("/api/models?limit=1&cursor=")


def see_next_link(answer: httpx.Response) -> None:
    assert answer.links["next"]["url"].startswith(
        f"http://{answer.url.netloc.decode()}/api/models?limit=1&cursor="
    )
    assert answer.links["next"]["url"].endswith("&x=1")


def forget_ids(rows: Any) -> None:
    for row in rows:
        del row["id"]


@pytest.mark.parametrize(
    ("action", "see"),
    [
        (Status(418, {"Retry-After": "1"}, b"tea", "Pot", "I am a teapot"), see_status),
        (Html(), see_html),
        (Json({"models": []}), see_json),
        (Gzip(3, b"[", b" ", b"]"), see_gzip),
        (RedirectTo("http://other.example/x", 307), see_redirect),
        (RedirectLoop(), see_loop),
        (EditJson(forget_ids), see_edited),
        (EditJson(len), see_replaced),
        (NextLink("{self}"), see_self_link),
        (NextLink("http://other.example{next_path}"), see_foreign_link),
        (NextLink("{next_path}"), see_relative_link),
        (NextLink("{next}&x=1"), see_next_link),
    ],
    ids=lambda value: type(value).__name__ if not callable(value) else value.__name__,
)
def test_answers(
    hub: FaultHub, client: httpx.Client, action: Action, see: Callable[[httpx.Response], None]
) -> None:
    hub.faults.append(Fault("^GET /api/models", action))
    see(client.get("/api/models?limit=1"))


def test_edits_leave_refusals_alone(hub: FaultHub, client: httpx.Client) -> None:
    hub.faults.append(Fault("", EditJson(lambda _: "edited")))
    assert client.get("/api/models/ann/nothing").headers["x-error-code"] == "RepoNotFound"


def test_a_fault_can_call_back_before_the_answer(hub: FaultHub, client: httpx.Client, tmp_path: Path) -> None:
    requests: list[SeenRequest] = []

    def change(request: SeenRequest) -> None:
        requests.append(request)
        (tmp_path / "ann/lora/later.txt").write_text("new")

    hub.faults.append(Fault("later", Callback(change), times=1))
    assert client.get("/ann/lora/resolve/main/later.txt").text == "new"
    assert [(request.path, request.kind) for request in requests] == [
        ("/ann/lora/resolve/main/later.txt", "resolver")
    ]


class Received:
    """The raw end of one exchange: status, headers, and the body up to the end of the connection."""

    def __init__(self, hub: FaultHub, timeout: float = 20, **headers: str) -> None:
        parts = urlsplit(hub.url)
        self.complete, self.timed_out, self.body = False, False, b""
        connection = http.client.HTTPConnection(parts.hostname or "", parts.port, timeout=timeout)
        try:
            connection.request("GET", TEXT, headers=headers)
            response = connection.getresponse()
            self.status, self.headers = response.status, response.headers
            while block := response.read(1):
                self.body += block
            self.complete = response.length in (0, None)
        except TimeoutError:
            self.timed_out = True
        finally:
            connection.close()


def test_case_35_truncated(hub: FaultHub) -> None:
    hub.faults.append(Fault("text", Truncate(4)))
    received = Received(hub)
    assert (received.body, received.headers["Content-Length"], received.complete) == (b"0123", "10", False)


@pytest.mark.parametrize("after", [10, 11])
def test_nothing_to_truncate(hub: FaultHub, after: int) -> None:
    hub.faults.append(Fault("text", Truncate(after)))
    received = Received(hub)
    assert (received.body, received.complete) == (CONTENT, True)


@pytest.mark.parametrize(("declared", "length"), [(True, "12"), (False, None)])
def test_case_36_too_long(hub: FaultHub, declared: bool, length: str | None) -> None:
    hub.faults.append(Fault("text", Extend(b"ab", declared)))
    received = Received(hub)
    assert (received.body, received.headers["Content-Length"]) == (CONTENT + b"ab", length)


def test_case_36_heads_stay_true(hub: FaultHub, client: httpx.Client) -> None:
    hub.faults.append(Fault("text", Extend(b"ab", declared=True)))
    assert client.head(TEXT).headers["content-length"] == "10"


@pytest.mark.parametrize(
    ("asked", "part"),
    [
        ({}, slice(0, 10)),
        ({"Range": "bytes=4-6"}, slice(4, 7)),
        ({"Range": "bytes=5-6"}, slice(5, 7)),
        ({"Range": "bytes=6-6"}, slice(6, 7)),
    ],
)
def test_case_37_corrupt_at_the_offset_of_the_file(hub: FaultHub, asked: dict[str, str], part: slice) -> None:
    hub.faults.append(Fault("text", Corrupt(5)))
    assert Received(hub, **asked).body == b"0123446789"[part]


def test_case_42_range_ignored(hub: FaultHub) -> None:
    hub.faults.append(Fault("text", IgnoreRange()))
    received = Received(hub, Range="bytes=0-1")
    assert (received.status, received.body) == (200, CONTENT)


def test_case_43_wrong_content_range(hub: FaultHub) -> None:
    hub.faults.append(Fault("text", WrongContentRange("bytes 5-6/7")))
    received = Received(hub, Range="bytes=0-1")
    assert (received.status, received.headers["Content-Range"]) == (206, "bytes 5-6/7")
    assert Received(hub).headers["Content-Range"] is None


@pytest.mark.parametrize("action", [Hang(), Drip(1, 3600)], ids=["case-19-hang", "case-20-drip-of-hours"])
def test_silence(hub: FaultHub, action: Action) -> None:
    hub.faults.append(Fault("text", action))
    received = Received(hub, timeout=0.3)
    assert (received.timed_out, received.body) == (True, b"")


def test_case_19_silence_in_the_body(hub: FaultHub) -> None:
    hub.faults.append(Fault("text", HangBody(4)))
    with socket.create_connection(("127.0.0.1", urlsplit(hub.url).port or 0), timeout=20) as connection:
        connection.sendall(f"GET {TEXT} HTTP/1.1\r\nHost: x\r\n\r\n".encode())
        got = b""
        while not got.endswith(b"\r\n\r\n0123"):
            got += connection.recv(1)
        connection.settimeout(0.3)
        with pytest.raises(socket.timeout):
            connection.recv(1)


def test_case_20_a_drip_ends(hub: FaultHub) -> None:
    hub.faults.append(Fault("text", Drip(3, 0.001)))
    received = Received(hub)
    assert (received.body, received.complete) == (CONTENT, True)


def test_a_hub_stops_while_a_client_still_waits(tmp_path: Path) -> None:
    make_repo(tmp_path, "ann/lora", {"text.txt": CONTENT})
    arrived = threading.Event()
    faults = [Fault("text", Callback(lambda _: arrived.set())), Fault("text", Hang())]
    with FaultHub(tmp_path, faults=faults) as running:
        waiting = socket.create_connection(("127.0.0.1", urlsplit(running.url).port or 0))
        waiting.sendall(f"GET {TEXT} HTTP/1.1\r\nHost: x\r\n\r\n".encode())
        assert arrived.wait(20)
    with waiting:
        waiting.settimeout(20)
        while waiting.recv(1024):
            pass


def test_the_gzip_bomb_of_a_file_is_small_on_the_wire(hub: FaultHub) -> None:
    hub.faults.append(Fault("text", Gzip(4)))
    received = Received(hub)
    assert len(received.body) < 10_000
    assert gzip.decompress(received.body) == bytes(4 * 1024 * 1024)


def test_the_real_client_meets_them(hub: FaultHub, tmp_path: Path) -> None:
    api = HfApi(endpoint=hub.url, token=False)
    hub.faults.append(Fault("^GET /api/models/ann", Status(503), times=1))
    with pytest.raises(HfHubHTTPError, match="503"):
        api.model_info("ann/lora")
    assert api.model_info("ann/lora").id == "ann/lora"
    hub.faults.append(Fault("^GET /api/models[?]?", Html(), times=1))
    with pytest.raises(json.JSONDecodeError):
        list(api.list_models())
    hub.faults.append(Fault("^GET .*text", Corrupt(0)))
    path = hf_hub_download(
        "ann/lora", "text.txt", endpoint=hub.url, token=False, cache_dir=tmp_path / "cache"
    )
    assert Path(path).read_bytes() == b"1123456789"  # the client checks sizes only
