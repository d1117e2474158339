"""The Hub's methods against a local Hub: what they return, what they refuse, and what they say to whom."""

from __future__ import annotations

import logging
import threading
import traceback
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from huggingface_hub import constants
from huggingface_hub import errors as foreign
from huggingface_hub.utils import httpx  # type: ignore[attr-defined]  # exported lazily: httpx or httpx2

from catalog.blobs import BlobStore
from catalog.errors import (
    CursorExpiredError,
    HubAccessError,
    HubBusyError,
    HubError,
    HubPayloadError,
    HubUnreachableError,
    IntegrityError,
    UsageError,
)
from crawler.budget import WaitCancelledError
from crawler.hub import Hub, HubSettings, RemoteFile
from crawler.hubfaults import (
    Callback,
    EditJson,
    Fault,
    Hang,
    Html,
    Json,
    NextLink,
    RedirectLoop,
    RedirectTo,
    SetHeader,
    Status,
    Truncate,
)
from crawler.localhub import LocalHub
from crawler.refusal import FOREIGN, translate
from tests.fakes import RawServer, VirtualClock
from tests.hubs import make_repo

NAME = "someone/adapter"
TOKEN = "hf_TheSecretOfThisTest"
STATUSES = {"gated", "disabled", "private_or_missing", "revision_gone", "entry_gone", "refused"}


@pytest.fixture
def root(tmp_path: Path) -> Path:
    folder = tmp_path / "hub"
    make_repo(folder, NAME, hub={"_id": "0123456789abcdef01234567", "previous_names": ["someone/old"]})
    return folder


@pytest.fixture
def server(root: Path) -> Iterator[LocalHub]:
    with LocalHub(root) as running:
        yield running


@pytest.fixture
def clock() -> VirtualClock:
    return VirtualClock()


@pytest.fixture
def hub(server: LocalHub, clock: VirtualClock) -> Iterator[Hub]:
    with Hub(HubSettings(server.url, token=TOKEN, timeout=5), clock=clock) as opened:
        yield opened


def commit_of(hub: Hub) -> str:
    return str(hub.repository(NAME)["sha"])


def file_of(hub: Hub, path: str = "README.md") -> tuple[str, RemoteFile]:
    commit = commit_of(hub)
    return commit, next(file for file in hub.tree(NAME, commit).files if file.path == path)


def everything(hub: Hub) -> list[object]:
    url: str | None = hub.listing_url(["peft"], sort="createdAt")
    rows: list[object] = []
    while url is not None:
        page = hub.page(url)
        rows += page.rows
        url = page.next_url
    return rows


# Listings


def test_case_01_three_pages_in_order(root: Path) -> None:
    for number in range(6):
        make_repo(root, f"someone/more-{number}", hub={"createdAt": f"2024-01-0{number + 1}T00:00:00.000Z"})
    with LocalHub(root) as server, Hub(HubSettings(server.url, page_limit=3)) as hub:
        rows = everything(hub)
        names = [row["id"] for row in rows if isinstance(row, dict)]
        assert len(names) == len(set(names)) == 7
        assert [name for name in names if "more" in name] == [f"someone/more-{n}" for n in (5, 4, 3, 2, 1, 0)]
        assert hub.usage.api == server.count("api") == 3


def test_a_listing_asks_for_what_rows_need(hub: Hub) -> None:
    (row,) = everything(hub)
    assert isinstance(row, dict)
    assert {"_id", "id", "sha", "siblings", "cardData", "config", "gated", "tags", "createdAt"} <= set(row)


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
def test_a_bad_next_page_is_refused(server: LocalHub, hub: Hub, link: str, words: str) -> None:
    server.faults.append(Fault("/api/models", NextLink(link)))
    with pytest.raises(HubPayloadError, match=words):
        everything(hub)
    assert len(server.log) == 1


def test_case_03_a_next_page_elsewhere_never_gets_the_token(server: LocalHub, hub: Hub, root: Path) -> None:
    with LocalHub(root) as other:
        server.faults.append(Fault("/api/models", NextLink(f"{other.url}/api/models?cursor=abc")))
        with pytest.raises(HubPayloadError, match="another host"):
            everything(hub)
        with pytest.raises(HubPayloadError, match="own host"):
            hub.page(f"{other.url}/api/models?cursor=abc")
        assert other.log == []


def test_a_next_page_of_another_kind_is_refused(server: LocalHub, hub: Hub) -> None:
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
        pytest.param(Status(200, body=b"[" + b"9" * 5000 + b"]"), id="case-06-endless-number"),
        pytest.param(Status(200, body=nested(200_000)), id="case-06-endless-nesting"),
        pytest.param(Status(200, body="[]".encode("utf-16")), id="case-06-utf-16"),
        pytest.param(Status(200, body=b'["\xff"]'), id="case-06-not-utf-8"),
        pytest.param(Status(204), id="case-06-no-content"),
        pytest.param(Status(304), id="case-06-not-modified"),
    ],
)
def test_garbage_is_named_and_not_asked_for_again(server: LocalHub, hub: Hub, fault: Status) -> None:
    server.faults.append(Fault("/api/models", fault))
    with pytest.raises(HubPayloadError):
        everything(hub)
    assert len(server.log) == 1


def test_case_05_rows_are_handed_on_as_they_are(server: LocalHub, hub: Hub) -> None:
    rows = [None, 7, {"id": None}, {"id": NAME}]
    server.faults.append(Fault("/api/models", Json(rows)))
    assert hub.page(hub.listing_url([], sort="createdAt")).rows == tuple(rows)


@pytest.mark.parametrize("status", [400, 410], ids=lambda status: f"case-13-cursor-expired-{status}")
def test_an_expired_cursor_is_its_own_error(server: LocalHub, hub: Hub, status: int) -> None:
    server.faults.append(Fault("cursor=", Status(status, body=b'{"error":"Invalid cursor"}')))
    with pytest.raises(CursorExpiredError):
        hub.page(f"{server.url}/api/models?cursor=abc")
    assert len(server.log) == 1


def test_case_13_a_400_without_cursor_is_a_refusal(server: LocalHub, hub: Hub) -> None:
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
    server: LocalHub, hub: Hub, clock: VirtualClock, fault: Fault, sleeps: list[float]
) -> None:
    server.faults.append(fault)
    assert len(everything(hub)) == 1
    # Where the wait is over, the budget has nothing left to wait for.
    assert clock.sleeps == pytest.approx(sleeps)
    assert hub.usage.waited_seconds == pytest.approx(sum(sleeps))
    assert hub.usage.api == len(server.log) == len(sleeps) + 1


def test_case_11_503_forever_is_given_up(server: LocalHub, hub: Hub, clock: VirtualClock) -> None:
    server.faults.append(Fault("", Status(503)))
    with pytest.raises(HubBusyError) as caught:
        everything(hub)
    assert caught.value.status == 503
    assert len(server.log) == hub.settings.attempts == 6
    assert clock.sleeps == [1, 2, 4, 8, 16]


@pytest.mark.parametrize("headers", [{"Retry-After": "86400"}, {"RateLimit": '"api";r=0;t=86400'}])
def test_a_wait_that_is_too_long_is_given_up_at_once(
    server: LocalHub, hub: Hub, clock: VirtualClock, headers: dict[str, str]
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


def test_case_93_a_stopped_hub_sends_nothing(server: LocalHub) -> None:
    stop = threading.Event()
    with Hub(HubSettings(server.url), stop=stop) as hub:
        stop.set()
        with pytest.raises(WaitCancelledError):
            hub.repository(NAME)
    assert server.log == []


def test_case_93_a_wait_for_a_busy_hub_is_cut_short(server: LocalHub) -> None:
    stop = threading.Event()
    server.faults += [
        Fault("", Callback(lambda _: stop.set())),
        Fault("", Status(429, {"Retry-After": "600"})),
    ]
    with Hub(HubSettings(server.url), stop=stop) as hub, pytest.raises(WaitCancelledError):
        hub.repository(NAME)
    assert len(server.log) == 1


# Repositories


@pytest.mark.parametrize(
    ("answer", "status"),
    [
        pytest.param(Status(403, error_code="GatedRepo"), "gated", id="case-22-gated"),
        pytest.param(Status(401, error_code="GatedRepo"), "gated", id="case-22-gated-for-nobody"),
        pytest.param(
            Status(403, error_message="Access to this resource is disabled."),
            "disabled",
            id="case-22-disabled",
        ),
        pytest.param(Status(451), "disabled", id="case-22-451"),
        pytest.param(Status(401), "private_or_missing", id="case-22-bare-401"),
        pytest.param(
            Status(401, error_code="RepoNotFound"), "private_or_missing", id="case-22-401-not-found"
        ),
        pytest.param(
            Status(404, error_code="RepoNotFound"), "private_or_missing", id="case-22-404-not-found"
        ),
        pytest.param(Status(404), "private_or_missing", id="case-22-bare-404"),
        pytest.param(Status(403), "refused", id="case-22-403"),
        pytest.param(
            Status(401, error_message="Invalid credentials in Authorization header"),
            "refused",
            id="case-22-bad-token",
        ),
        pytest.param(Status(404, error_code="RevisionNotFound"), "revision_gone", id="case-25-revision"),
        pytest.param(Status(404, error_code="EntryNotFound"), "entry_gone", id="case-25-entry"),
        pytest.param(Status(418), "refused", id="case-22-unheard-of"),
        pytest.param(Status(404, body=nested(200_000)), "private_or_missing", id="case-22-deep-body"),
        pytest.param(Status(404, body=b'["a", "list"]'), "private_or_missing", id="case-22-list-as-body"),
        pytest.param(Status(404, error_code="x" * 5000), "private_or_missing", id="case-22-long-code"),
    ],
)
def test_a_refusal_has_a_status_and_is_final(server: LocalHub, hub: Hub, answer: Status, status: str) -> None:
    commit, file = file_of(hub)
    server.faults.append(Fault("", answer))
    for ask in (lambda: hub.repository(NAME), lambda: hub.small_file(NAME, commit, file)):
        server.clear()
        with pytest.raises(HubAccessError) as caught:
            ask()
        assert caught.value.status == status
        assert caught.value.url.startswith(server.url)
        assert len(server.log) == 1


@pytest.mark.parametrize(
    ("facts", "status"),
    [
        pytest.param({"gated": "auto"}, "gated", id="case-22-gated-auto"),
        pytest.param({"gated": "manual"}, "gated", id="case-22-gated-manual"),
        pytest.param({"disabled": True}, "disabled", id="case-22-disabled"),
        pytest.param({"private": True}, "private_or_missing", id="case-22-private"),
    ],
)
def test_files_of_a_closed_repository(tmp_path: Path, facts: dict[str, object], status: str) -> None:
    make_repo(tmp_path, "a/open")
    make_repo(tmp_path, "a/closed", hub=facts)
    with LocalHub(tmp_path) as server, Hub(HubSettings(server.url)) as hub:
        file = hub.tree("a/open", "main").files[0]
        with pytest.raises(HubAccessError) as caught:
            hub.small_file("a/closed", "main", file)
        assert caught.value.status == status


def test_case_22_a_missing_repository(hub: Hub) -> None:
    with pytest.raises(HubAccessError) as caught:
        hub.repository("someone/nothing")
    assert caught.value.status == "private_or_missing"


def test_case_23_a_renamed_repository_keeps_its_identity(hub: Hub, server: LocalHub) -> None:
    row = hub.repository("someone/old")
    assert (row["id"], row["_id"]) == (NAME, "0123456789abcdef01234567")
    assert (hub.usage.api, hub.usage.redirects) == (1, 1)
    assert [seen.headers["authorization"] for seen in server.log] == [f"Bearer {TOKEN}"] * 2


def test_case_25_a_commit_that_is_gone(hub: Hub) -> None:
    with pytest.raises(HubAccessError) as caught:
        hub.tree(NAME, "f" * 40)
    assert caught.value.status == "revision_gone"


def test_case_26_a_commit_is_read_to_the_end_though_main_moves_on(
    hub: Hub, server: LocalHub, root: Path
) -> None:
    commit, file = file_of(hub)
    server.faults.append(Fault("/resolve/", SetHeader("X-Repo-Commit", "e" * 40)))
    for ask in (
        lambda: hub.small_file(NAME, commit, file),
        lambda: hub.header(NAME, commit, replace(file, size=900)),
        lambda: hub.download(NAME, commit, replace(file, sha256="a" * 64), BlobStore(root.parent / "blobs")),
    ):
        with pytest.raises(IntegrityError, match="another commit"):
            ask()
    assert hub.small_file(NAME, "main", file)


def test_case_28_a_repository_that_is_a_list(server: LocalHub, hub: Hub) -> None:
    server.faults.append(Fault("/api/models/", Json([])))
    with pytest.raises(HubPayloadError):
        hub.repository(NAME)


@pytest.mark.parametrize("name", ["../api/whoami-v2", "a/b/c", "a/..", "", "a?b", "a/b#c"])
def test_a_name_is_never_more_than_a_name(hub: Hub, server: LocalHub, name: str) -> None:
    file = RemoteFile("README.md", 5, "1" * 40, None)
    asks: list[Callable[[], object]] = [
        lambda: hub.repository(name),
        lambda: hub.tree(name, "main"),
        lambda: hub.small_file(name, "main", file),
        lambda: hub.small_file(NAME, name if name != "a?b" else "..", file),
    ]
    for ask in asks[:3] if name in ("a/b/c", "a/b#c") else asks:
        with pytest.raises(UsageError):
            ask()
    assert server.log == []


def test_case_29_a_path_is_never_more_than_a_path(hub: Hub, server: LocalHub) -> None:
    for path in ("../../x", "/x", "a//b", ""):
        with pytest.raises(UsageError):
            hub.small_file(NAME, "main", RemoteFile(path, 5, "1" * 40, None))
    assert server.log == []


# Trees


def test_case_31_a_tree_of_several_pages(root: Path) -> None:
    make_repo(root, "someone/large", {f"part-{number:04}.txt": str(number) for number in range(1205)})
    with LocalHub(root) as server, Hub(HubSettings(server.url)) as hub:
        tree = hub.tree("someone/large", str(hub.repository("someone/large")["sha"]))
        assert len(tree.files) == 1205
        assert tree.problems == ()
        assert hub.usage.api == 3


def test_case_31_a_tree_is_read_up_to_a_limit(root: Path) -> None:
    make_repo(root, "someone/large", {f"part-{number:04}.txt": str(number) for number in range(2100)})
    with LocalHub(root) as server, Hub(HubSettings(server.url, tree_pages=2)) as hub:
        tree = hub.tree("someone/large", str(hub.repository("someone/large")["sha"]))
        assert len(tree.files) == 2000
        assert tree.problems == ("the file list goes on after 2 pages; the rest is left out",)


def test_case_02_tree_pages_in_a_circle_end(hub: Hub, server: LocalHub) -> None:
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
def test_one_bad_entry_does_not_cost_the_tree(hub: Hub, server: LocalHub, change: dict[str, object]) -> None:
    commit = commit_of(hub)
    server.faults.append(Fault("/tree/", EditJson(lambda rows: rows[0].update(change))))
    tree = hub.tree(NAME, commit)
    assert len(tree.problems) == 1
    assert {file.path for file in tree.files} >= {"adapter_config.json", "adapter_model.safetensors"}


# Who is told what


@pytest.mark.parametrize("kind", [301, 302, 303, 307, 308])
def test_case_44_an_api_answer_never_comes_from_elsewhere(
    root: Path, hub: Hub, server: LocalHub, kind: int
) -> None:
    with LocalHub(root) as other:
        server.faults.append(Fault("/api/models/", RedirectTo(f"{other.url}/api/models/{NAME}", kind)))
        with pytest.raises(HubPayloadError, match="own host"):
            hub.repository(NAME)
        assert other.log == []


@pytest.mark.parametrize(
    ("target", "words"),
    [
        pytest.param("http://user:password@127.0.0.1:1/x", "no address", id="case-44-credentials"),
        pytest.param("file:///etc/passwd", "no address", id="case-44-file"),
        pytest.param("http://[::1/", "no address", id="case-44-broken"),
        pytest.param("", "circle", id="case-45-nowhere"),
    ],
)
def test_a_redirect_to_no_place_is_refused(hub: Hub, server: LocalHub, target: str, words: str) -> None:
    commit, file = file_of(hub)
    server.faults.append(Fault("/resolve/", RedirectTo(target)))
    with pytest.raises(HubPayloadError, match=words):
        hub.small_file(NAME, commit, file)


@pytest.mark.parametrize("where", ["/api/models/", "/resolve/"])
def test_case_45_a_redirect_loop_ends(hub: Hub, server: LocalHub, where: str) -> None:
    commit, file = file_of(hub)
    server.clear()
    server.faults.append(Fault(where, RedirectLoop()))
    with pytest.raises(HubPayloadError, match="circle"):
        hub.repository(NAME) if "api" in where else hub.small_file(NAME, commit, file)
    assert len(server.log) == 1


def test_case_45_a_long_chain_ends(hub: Hub, server: LocalHub) -> None:
    server.faults += [
        Fault(f"/hop{number}$", RedirectTo(f"{server.url}/api/models/a/hop{number + 1}"))
        for number in range(20)
    ]
    server.faults.append(Fault("/old", RedirectTo(f"{server.url}/api/models/a/hop0")))
    with pytest.raises(HubPayloadError, match="circle"):
        hub.repository("someone/old")
    assert len(server.log) == 6


def test_case_89_the_hub_knows_who_asks(hub: Hub, server: LocalHub) -> None:
    hub.repository(NAME)
    agent = server.log[0].headers["user-agent"]
    assert agent.startswith("loradex/")
    assert "https://github.com/loradex/loradex" in agent


def test_case_91_nothing_but_the_hub_is_asked(hub: Hub, server: LocalHub, tmp_path: Path) -> None:
    commit, file = file_of(hub, "adapter_model.safetensors")
    hub.download(NAME, commit, file, BlobStore(tmp_path / "blobs"))
    assert [seen.path for seen in server.log] == [
        f"/api/models/{NAME}",
        f"/api/models/{NAME}/tree/{commit}",
        f"/{NAME}/resolve/{commit}/adapter_model.safetensors",
    ]


def test_cookies_are_not_kept(hub: Hub, server: LocalHub) -> None:
    server.faults.append(Fault("", SetHeader("Set-Cookie", "session=1; Path=/")))
    hub.repository(NAME)
    hub.repository(NAME)
    assert "cookie" not in server.log[1].headers


def test_case_94_the_token_is_nowhere_but_in_requests(
    hub: Hub, server: LocalHub, root: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)
    shown = [repr(hub.settings), str(hub.settings), repr(vars(hub))]
    commit, file = file_of(hub)
    hub.small_file(NAME, commit, file)
    shown += [seen.line for seen in server.log]
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
        shown += traceback.format_exception(caught.value)
        error: BaseException | None = caught.value
        while error is not None:
            shown += [str(error), repr(error), repr(vars(error))]
            request = getattr(error, "_request", None) or getattr(
                getattr(error, "response", None), "request", None
            )
            assert request is None or "authorization" not in request.headers
            error = error.__cause__ or error.__context__
    shown += [record.getMessage() for record in caplog.records]
    assert all(echo in seen.headers["authorization"] for seen in server.log)
    assert not any(TOKEN in text for text in shown)


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
    server: LocalHub, root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with LocalHub(root) as proxy:
        monkeypatch.setenv("HTTP_PROXY", proxy.url)
        with Hub(HubSettings(server.url, token=TOKEN)) as hub:
            hub.repository(NAME)
        assert proxy.log == []


def test_case_88_no_more_than_so_many_requests_at_once(server: LocalHub) -> None:
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


# Settings and foreign errors


def test_settings_are_those_of_the_client_library(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_ENDPOINT", "https://mirror.example/hf/")
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    settings = HubSettings.from_environment()
    assert (settings.endpoint, settings.token) == ("https://mirror.example/hf", TOKEN)
    monkeypatch.setattr(constants, "HF_HUB_DISABLE_IMPLICIT_TOKEN", True)
    assert HubSettings.from_environment().token is None
    monkeypatch.delenv("HF_ENDPOINT")
    assert HubSettings.from_environment().endpoint == constants.ENDPOINT


@pytest.mark.parametrize(
    "endpoint",
    ["", "hub.example", "ftp://hub.example", "https://", "https://u:p@hub", "https://h/?a", "https://h:x"],
)
def test_an_endpoint_that_is_none(endpoint: str) -> None:
    with pytest.raises(UsageError, match="HF_ENDPOINT"):
        HubSettings(endpoint)


def test_a_token_that_is_none() -> None:
    with pytest.raises(UsageError, match="HF_TOKEN") as caught:
        HubSettings("https://hub.example", token=f"{TOKEN}\r\nX-Other: 1")
    assert TOKEN not in str(caught.value)


def test_offline_is_one_clear_sentence(hub: Hub, server: LocalHub, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(HubUnreachableError, match="HF_HUB_OFFLINE is set"):
        hub.repository(NAME)
    assert server.log == []


def kinds_of(*roots: type[BaseException]) -> list[type[BaseException]]:
    return [kind for root in roots for kind in (root, *kinds_of(*root.__subclasses__()))]


OF_CLIENT = kinds_of(foreign.HfHubHTTPError)
OF_LIBRARY = kinds_of(
    httpx.HTTPError, httpx.InvalidURL, httpx.StreamError, httpx.CookieConflict, TimeoutError
)


@pytest.mark.parametrize("kind", OF_CLIENT, ids=lambda kind: kind.__name__)
def test_every_error_of_the_client_library_is_translated(kind: type[foreign.HfHubHTTPError]) -> None:
    response = httpx.Response(404, request=httpx.Request("GET", "https://hub.example/x"))
    error = translate(kind("no", response=response), "https://hub.example/x?secret")
    assert isinstance(error, HubAccessError)
    assert error.status in STATUSES
    assert "secret" not in f"{error}{error.url}"


@pytest.mark.parametrize(
    "kind", [kind for kind in OF_LIBRARY if kind not in OF_CLIENT], ids=lambda kind: kind.__name__
)
def test_every_error_of_the_http_library_is_translated(kind: type[Exception]) -> None:
    assert issubclass(kind, FOREIGN)
    error = translate(kind.__new__(kind), "https://hub.example/x")
    expected = (
        httpx.TimeoutException,
        httpx.NetworkError,
        httpx.RemoteProtocolError,
        httpx.ProxyError,
        TimeoutError,
    )
    assert isinstance(error, HubUnreachableError if issubclass(kind, expected) else HubPayloadError)


def test_no_error_of_the_http_library_is_forgotten() -> None:
    public = [getattr(httpx, name) for name in dir(httpx)]
    errors = [item for item in public if isinstance(item, type) and issubclass(item, Exception)]
    assert len(errors) > 20
    assert [kind for kind in errors if not issubclass(kind, (*FOREIGN, Warning))] == []
