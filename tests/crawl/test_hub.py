"""Listings and file lists of a local Hub: in order, each page once, and again when the Hub is busy."""

from __future__ import annotations

import threading
from pathlib import Path

import pytest

from catalog.errors import (
    CursorExpiredError,
    HubAccessError,
    HubBusyError,
    HubPayloadError,
    HubUnreachableError,
)
from crawler.hub import Hub, HubSettings
from crawler.hub.budget import WaitCancelledError
from tests.client import NAME, commit_of
from tests.fakes import VirtualClock
from tests.hubs import make_repo
from tests.localhub import FaultHub
from tests.localhub.faults import (
    Callback,
    EditJson,
    Fault,
    Html,
    Json,
    NextLink,
    Status,
    Truncate,
)


def everything(hub: Hub) -> list[object]:
    url: str | None = hub.listing_url(["peft"], sort="createdAt")
    rows: list[object] = []
    while url is not None:
        page = hub.page(url)
        rows += page.rows
        assert len(rows) < 100, "the listing does not end"
        url = page.next_url
    return rows


# Listings


def test_case_01_three_pages_in_order(root: Path) -> None:
    for number in range(6):
        make_repo(root, f"someone/more-{number}", hub={"createdAt": f"2024-01-0{number + 1}T00:00:00.000Z"})
    with FaultHub(root) as server, Hub(HubSettings(server.url, page_limit=3)) as hub:
        rows = everything(hub)
        names = [row["id"] for row in rows if isinstance(row, dict)]
        assert len(names) == len(set(names)) == 7
        assert [name for name in names if "more" in name] == [f"someone/more-{n}" for n in (5, 4, 3, 2, 1, 0)]
        assert hub.usage.api == server.count("api") == 3


def test_a_listing_asks_for_what_rows_need(hub: Hub) -> None:
    (row,) = everything(hub)
    assert isinstance(row, dict)
    assert {"_id", "id", "sha", "siblings", "config", "gated", "tags", "createdAt"} <= set(row)


@pytest.mark.parametrize(
    ("link", "words"),
    [
        pytest.param("{self}", "itself", id="case-02-self-loop"),
        pytest.param("{self}&", "itself", id="case-02-self-loop-written-otherwise"),
        pytest.param("/api/models?cursor=abc", "absolute", id="case-04-relative"),
        pytest.param("ftp://127.0.0.1/api/models", "absolute", id="case-04-other-scheme"),
        pytest.param("http://[::1/api/models", "absolute", id="case-04-broken"),
        pytest.param("https://hub.example/api/models?cursor=abc", "another host", id="case-03-off-host"),
        pytest.param("http://127.0.0.1:1/api/models?cursor=abc", "another host", id="case-03-other-port"),
    ],
)
def test_a_bad_next_page_is_refused(server: FaultHub, hub: Hub, link: str, words: str) -> None:
    server.faults.append(Fault("/api/models", NextLink(link)))
    with pytest.raises(HubPayloadError, match=words):
        everything(hub)
    assert len(server.log) == 1


def test_case_03_a_next_page_elsewhere_never_gets_the_token(server: FaultHub, hub: Hub, root: Path) -> None:
    with FaultHub(root) as other:
        server.faults.append(Fault("/api/models", NextLink(f"{other.url}/api/models?cursor=abc")))
        with pytest.raises(HubPayloadError, match="another host"):
            everything(hub)
        with pytest.raises(HubPayloadError, match="own host"):
            hub.page(f"{other.url}/api/models?cursor=abc")
        assert other.log == []


def test_a_next_page_of_another_kind_is_refused(server: FaultHub, hub: Hub) -> None:
    server.faults.append(Fault("/api/models", NextLink(f"{server.url}/api/whoami-v2?cursor=abc")))
    with pytest.raises(HubPayloadError, match="another listing"):
        everything(hub)


def nested(depth: int) -> bytes:
    return b"[" * depth + b"]" * depth


@pytest.mark.parametrize(
    "fault",
    [
        pytest.param(Html(), id="case-06-html"),
        pytest.param(Json({"error": "no list"}), id="case-07-dict"),
        pytest.param(Json(None), id="case-07-null"),
        pytest.param(Status(200, body=b""), id="case-06-nothing"),
        pytest.param(Status(200, body=b'[{"id": '), id="case-06-half"),
        pytest.param(Status(200, body=b"[NaN]"), id="case-06-nan"),
        pytest.param(Status(200, body=b"[-Infinity]"), id="case-06-infinity"),
        pytest.param(Status(200, body=nested(200_000)), id="case-06-endless-nesting"),
        pytest.param(Status(200, body="[]".encode("utf-16")), id="case-06-utf-16"),
        pytest.param(Status(200, body=b'["\xff"]'), id="case-06-not-utf-8"),
        pytest.param(Status(204), id="case-06-no-content"),
        pytest.param(Status(304), id="case-06-not-modified"),
    ],
)
def test_garbage_is_named_and_not_asked_for_again(server: FaultHub, hub: Hub, fault: Status) -> None:
    server.faults.append(Fault("/api/models", fault))
    with pytest.raises(HubPayloadError):
        everything(hub)
    assert len(server.log) == 1


def test_case_05_rows_are_handed_on_as_they_are(server: FaultHub, hub: Hub) -> None:
    rows = [None, 7, {"id": None}, {"id": NAME}]
    server.faults.append(Fault("/api/models", Json(rows)))
    assert hub.page(hub.listing_url([], sort="createdAt")).rows == tuple(rows)


@pytest.mark.parametrize("status", [400, 410], ids=lambda status: f"case-13-cursor-expired-{status}")
def test_an_expired_cursor_is_its_own_error(server: FaultHub, hub: Hub, status: int) -> None:
    server.faults.append(Fault("cursor=", Status(status, body=b'{"error":"Invalid cursor"}')))
    with pytest.raises(CursorExpiredError):
        hub.page(f"{server.url}/api/models?cursor=abc")
    assert len(server.log) == 1


def test_case_13_a_400_without_cursor_is_a_refusal(server: FaultHub, hub: Hub) -> None:
    server.faults.append(Fault("/api/models", Status(400)))
    with pytest.raises(HubAccessError) as caught:
        everything(hub)
    assert caught.value.status == "refused"


# Waiting and trying again


@pytest.mark.parametrize(
    ("fault", "sleeps"),
    [
        pytest.param(
            Fault("", Status(429, {"RateLimit": '"api";r=0;t=7'}), times=1),
            [8.0],
            id="case-08-429-rate-limit",
        ),
        pytest.param(Fault("", Status(429), times=1), [1.0], id="case-09-429-without-headers"),
        pytest.param(Fault("", Status(503), times=3), [1.0, 2.0, 4.0], id="case-10-503-three-times"),
        pytest.param(
            Fault("", Status(429, {"Retry-After": "120"}), times=1), [120.0], id="case-08-retry-after"
        ),
        pytest.param(
            Fault("", Status(429, {"Retry-After": "soon"}), times=1), [1.0], id="case-09-unreadable"
        ),
        pytest.param(
            Fault("", Status(429, {"RateLimit": '"api";r=9;t=200'}), times=1),
            [1.0],
            id="case-09-not-the-reason",
        ),
        pytest.param(
            Fault("", Status(429, {"RateLimit": f'"api";r=0;t={"9" * 5000}'}), times=1),
            [1.0],
            id="case-09-absurd-number",
        ),
        pytest.param(Fault("", Status(408), times=1), [1.0], id="case-10-408"),
        pytest.param(Fault("", Truncate(5), times=2), [1.0, 2.0], id="case-10-broken-connection"),
    ],
)
def test_a_busy_hub_is_asked_again(
    server: FaultHub, hub: Hub, clock: VirtualClock, fault: Fault, sleeps: list[float]
) -> None:
    server.faults.append(fault)
    assert len(everything(hub)) == 1
    # Where the wait is over, the budget has nothing left to wait for.
    assert clock.sleeps == pytest.approx(sleeps)
    assert hub.usage.waited_seconds == pytest.approx(sum(sleeps))
    assert hub.usage.api == len(server.log) == len(sleeps) + 1


def test_case_11_503_forever_is_given_up(server: FaultHub, hub: Hub, clock: VirtualClock) -> None:
    server.faults.append(Fault("", Status(503)))
    with pytest.raises(HubBusyError) as caught:
        everything(hub)
    assert caught.value.status == 503
    assert len(server.log) == hub.settings.attempts == 6
    assert clock.sleeps == [1, 2, 4, 8, 16]


@pytest.mark.parametrize("headers", [{"Retry-After": "86400"}, {"RateLimit": '"api";r=0;t=86400'}])
def test_a_wait_that_is_too_long_is_given_up_at_once(
    server: FaultHub, hub: Hub, clock: VirtualClock, headers: dict[str, str]
) -> None:
    server.faults.append(Fault("", Status(429, headers)))
    with pytest.raises(HubBusyError) as caught:
        everything(hub)
    assert caught.value.retry_after is not None
    assert caught.value.retry_after >= 86_400
    assert clock.sleeps == []


def test_nobody_there(clock: VirtualClock) -> None:
    with Hub(HubSettings("http://127.0.0.1:9"), clock=clock) as hub, pytest.raises(HubUnreachableError):
        hub.repository(NAME)
    assert len(clock.sleeps) == 5


def test_case_93_a_stopped_hub_sends_nothing(server: FaultHub) -> None:
    stop = threading.Event()
    with Hub(HubSettings(server.url), stop=stop) as hub:
        stop.set()
        with pytest.raises(WaitCancelledError):
            hub.repository(NAME)
    assert server.log == []


def test_case_93_a_wait_for_a_busy_hub_is_cut_short(server: FaultHub) -> None:
    stop = threading.Event()
    server.faults += [
        Fault("", Callback(lambda _: stop.set())),
        Fault("", Status(429, {"Retry-After": "600"})),
    ]
    with Hub(HubSettings(server.url), stop=stop) as hub, pytest.raises(WaitCancelledError):
        hub.repository(NAME)
    assert len(server.log) == 1


# Trees


def test_case_31_a_tree_of_several_pages(root: Path) -> None:
    make_repo(root, "someone/large", {f"part-{number:04}.txt": str(number) for number in range(1205)})
    with FaultHub(root) as server, Hub(HubSettings(server.url)) as hub:
        tree = hub.tree("someone/large", str(hub.repository("someone/large")["sha"]))
        assert len(tree.files) == 1205
        assert tree.problems == ()
        assert hub.usage.api == 3


def test_case_31_a_tree_is_read_up_to_a_limit(root: Path) -> None:
    make_repo(root, "someone/large", {f"part-{number:04}.txt": str(number) for number in range(2100)})
    with FaultHub(root) as server, Hub(HubSettings(server.url, tree_pages=2)) as hub:
        tree = hub.tree("someone/large", str(hub.repository("someone/large")["sha"]))
        assert len(tree.files) == 2000
        assert tree.problems == ("the file list goes on after 2 pages; the rest is left out",)


def test_case_02_tree_pages_in_a_circle_end(hub: Hub, server: FaultHub) -> None:
    commit = commit_of(hub)
    start = f"{server.url}/api/models/{NAME}/tree/{commit}?recursive=true&expand=false"
    server.faults += [
        Fault("loop=b", NextLink(start)),
        Fault("expand=false$", NextLink(f"{start}&loop=b")),
    ]
    tree = hub.tree(NAME, commit)
    assert len(tree.files) == 3
    assert any("goes on" in problem for problem in tree.problems)


@pytest.mark.parametrize(
    "change",
    [
        pytest.param({"path": "../x"}, id="case-29-unsafe-path"),
        pytest.param({"type": "submodule"}, id="case-30-unknown-type"),
        pytest.param({"oid": None}, id="case-32-no-oid"),
    ],
)
def test_one_bad_entry_does_not_cost_the_tree(hub: Hub, server: FaultHub, change: dict[str, object]) -> None:
    commit = commit_of(hub)
    server.faults.append(Fault("/tree/", EditJson(lambda rows: rows[0].update(change))))
    tree = hub.tree(NAME, commit)
    assert len(tree.problems) == 1
    assert {file.path for file in tree.files} >= {"adapter_config.json", "adapter_model.safetensors"}
