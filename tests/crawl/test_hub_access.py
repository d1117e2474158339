"""Repositories that cannot be read, and why: every refusal has a status, every foreign error a name."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
from huggingface_hub import constants
from huggingface_hub import errors as foreign
from huggingface_hub.utils import httpx  # type: ignore[attr-defined]  # exported lazily: httpx or httpx2

from catalog.errors import (
    HubAccessError,
    HubPayloadError,
    HubUnreachableError,
    IntegrityError,
    UsageError,
)
from catalog.files import BlobStore
from crawler.hub import Hub, HubSettings, RemoteFile
from crawler.hub.refusal import FOREIGN, translate
from tests.client import NAME, TOKEN, file_of
from tests.hubs import make_repo
from tests.localhub import FaultHub
from tests.localhub.faults import (
    Fault,
    Json,
    SetHeader,
    Status,
)

STATUSES = {
    "gated",
    "disabled",
    "private_or_missing",
    "revision_gone",
    "entry_gone",
    "refused",
    "unauthorized",
}


def nested(depth: int) -> bytes:
    return b"[" * depth + b"]" * depth


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
            "unauthorized",
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
def test_a_refusal_has_a_status_and_is_final(server: FaultHub, hub: Hub, answer: Status, status: str) -> None:
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
    with FaultHub(tmp_path) as server, Hub(HubSettings(server.url)) as hub:
        file = hub.tree("a/open", "main").files[0]
        with pytest.raises(HubAccessError) as caught:
            hub.small_file("a/closed", "main", file)
        assert caught.value.status == status


def test_case_22_a_missing_repository(hub: Hub) -> None:
    with pytest.raises(HubAccessError) as caught:
        hub.repository("someone/nothing")
    assert caught.value.status == "private_or_missing"


def test_case_23_a_renamed_repository_keeps_its_identity(hub: Hub, server: FaultHub) -> None:
    row = hub.repository("someone/old")
    assert (row["id"], row["_id"]) == (NAME, "0123456789abcdef01234567")
    assert (hub.usage.api, hub.usage.redirects) == (1, 1)
    assert [requests.headers["authorization"] for requests in server.log] == [f"Bearer {TOKEN}"] * 2


def test_case_25_a_commit_that_is_gone(hub: Hub) -> None:
    with pytest.raises(HubAccessError) as caught:
        hub.tree(NAME, "f" * 40)
    assert caught.value.status == "revision_gone"


def test_case_26_a_commit_is_read_to_the_end_though_main_moves_on(
    hub: Hub, server: FaultHub, root: Path
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


def test_case_28_a_repository_that_is_a_list(server: FaultHub, hub: Hub) -> None:
    server.faults.append(Fault("/api/models/", Json([])))
    with pytest.raises(HubPayloadError):
        hub.repository(NAME)


@pytest.mark.parametrize("name", ["../api/whoami-v2", "a/b/c", "a/..", "", "a?b", "a/b#c"])
def test_a_name_is_never_more_than_a_name(hub: Hub, server: FaultHub, name: str) -> None:
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


def test_case_29_a_path_is_never_more_than_a_path(hub: Hub, server: FaultHub) -> None:
    for path in ("../../x", "/x", "a//b", ""):
        with pytest.raises(UsageError):
            hub.small_file(NAME, "main", RemoteFile(path, 5, "1" * 40, None))
    assert server.log == []


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


def test_offline_is_one_clear_sentence(hub: Hub, server: FaultHub, monkeypatch: pytest.MonkeyPatch) -> None:
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
