"""Files of the Hub: small ones, headers and weights, each equal to what the tree promises or refused."""

from __future__ import annotations

import hashlib
import json
import threading
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from catalog.errors import (
    HubAccessError,
    HubPayloadError,
    HubUnreachableError,
    IntegrityError,
    StorageError,
    WeightsError,
)
from catalog.files import BlobStore
from crawler.hub import Hub, HubSettings, RemoteFile
from tests.fakes import VirtualClock
from tests.hubs import lora_files, make_repo, safetensors_header_bytes
from tests.localhub import FaultHub
from tests.localhub.faults import (
    Action,
    Corrupt,
    DropHeader,
    Extend,
    Fault,
    Gzip,
    IgnoreRange,
    RedirectTo,
    SetHeader,
    Status,
    Truncate,
    WrongContentRange,
)

NAME = "someone/adapter"
TOKEN = "hf_TheSecretOfThisTest"
CONFIG, WEIGHTS = "adapter_config.json", "adapter_model.safetensors"
RESOLVE = "/resolve/"
FILES = {
    path: content if isinstance(content, bytes) else content.encode()
    for path, content in lora_files().items()
}


class Setup:
    """A local Hub with one adapter, the Hub that asks it, and a store."""

    def __init__(self, server: FaultHub, folder: Path) -> None:
        self.server = server
        self.blobs = BlobStore(folder)
        self.hub = self.another()
        self.commit = str(self.hub.repository(NAME)["sha"])
        self.files = {file.path: file for file in self.hub.tree(NAME, self.commit).files}
        server.clear()

    def another(self, attempts: int = 3) -> Hub:
        settings = HubSettings(self.server.url, token=TOKEN, timeout=10, attempts=attempts)
        return Hub(settings, clock=VirtualClock())

    def fault(self, action: Action, times: int | None = None) -> None:
        self.server.faults.append(Fault(RESOLVE, action, times))

    def small(self, path: str = CONFIG) -> bytes:
        return self.hub.small_file(NAME, self.commit, self.files[path])

    def header(self) -> bytes:
        return self.hub.header(NAME, self.commit, self.files[WEIGHTS])

    def download(self) -> Path:
        return self.hub.download(NAME, self.commit, self.files[WEIGHTS], self.blobs)

    def ranges(self) -> list[str | None]:
        return [requests.headers.get("range") for requests in self.server.log]

    def stored(self) -> list[Path]:
        """Every file of the store that is no lock."""
        return [path for path in self.blobs.root.rglob("*") if path.is_file() and path.suffix != ".lock"]


@pytest.fixture
def case(tmp_path: Path) -> Iterator[Setup]:
    make_repo(tmp_path / "hub", NAME, FILES)
    with FaultHub(tmp_path / "hub") as server:
        result = Setup(server, tmp_path / "blobs")
        with result.hub:
            yield result


def test_what_is_read_is_what_is_there(case: Setup) -> None:
    size = int.from_bytes(FILES[WEIGHTS][:8], "little")
    assert {path: case.small(path) for path in FILES} == FILES
    assert case.header() == FILES[WEIGHTS][: 8 + size]
    path = case.download()
    assert path.read_bytes() == FILES[WEIGHTS]
    assert case.stored() == [path]
    assert (case.hub.usage.resolver, case.hub.usage.cdn, case.hub.usage.redirects) == (5, 0, 0)


def test_a_file_that_is_there_is_not_asked_for(case: Setup) -> None:
    case.download()
    case.server.clear()
    case.download()
    assert case.server.log == []


def test_an_empty_file(case: Setup) -> None:
    empty = RemoteFile(WEIGHTS, 0, None, hashlib.sha256(b"").hexdigest())
    case.fault(Status(200))
    assert case.hub.download(NAME, case.commit, empty, case.blobs).read_bytes() == b""
    assert case.hub.small_file(NAME, case.commit, empty) == b""


# Wrong bytes

SMALL: Callable[[Setup], object] = Setup.small
DOWNLOAD: Callable[[Setup], object] = Setup.download
HEADER: Callable[[Setup], object] = Setup.header
WHOLE = [pytest.param(SMALL, id="small"), pytest.param(DOWNLOAD, id="download")]
EVERY = [*WHOLE, pytest.param(HEADER, id="header")]


@pytest.mark.parametrize("ask", WHOLE)
@pytest.mark.parametrize(
    ("action", "error"),
    [
        pytest.param(Truncate(20), HubUnreachableError, id="case-35-truncated"),
        pytest.param(Status(200, body=b"short"), IntegrityError, id="case-35-shorter-and-says-so"),
        pytest.param(Extend(b"more"), IntegrityError, id="case-36-too-long"),
        pytest.param(Extend(b"more", declared=True), IntegrityError, id="case-36-too-long-and-says-so"),
        pytest.param(Corrupt(0), IntegrityError, id="case-37-38-one-bit-at-the-start"),
        pytest.param(Corrupt(80), IntegrityError, id="case-37-38-one-bit-inside"),
        pytest.param(Gzip(200), HubPayloadError, id="case-41-gzip-bomb"),
        pytest.param(SetHeader("Content-Encoding", "br"), HubPayloadError, id="case-41-encoded"),
        pytest.param(
            Status(206, {"Content-Range": "bytes 0-4/5"}, b"short"), HubPayloadError, id="case-43-part"
        ),
        pytest.param(Status(416), HubPayloadError, id="case-43-no-such-part"),
        pytest.param(SetHeader("X-Repo-Commit", "0" * 40), IntegrityError, id="case-26-another-commit"),
    ],
)
def test_wrong_bytes_are_refused(
    case: Setup, ask: Callable[[Setup], object], action: Action, error: type[Exception]
) -> None:
    case.fault(action)
    with pytest.raises(error):
        ask(case)
    assert [path for path in case.stored() if "partial" not in path.parts] == []
    if error is not HubUnreachableError:
        assert case.stored() == []
        assert len(case.server.log) == 1
    assert case.hub.usage.bytes < 100_000


def test_case_38_a_git_hash_is_checked_for_plain_files(case: Setup) -> None:
    wrong = replace(case.files[CONFIG], oid="0" * 40)
    with pytest.raises(IntegrityError, match="hash"):
        case.hub.small_file(NAME, case.commit, wrong)


def test_case_32_a_file_without_hash_is_never_asked_for(case: Setup) -> None:
    bare = RemoteFile(CONFIG, 5, None, None)
    with pytest.raises(IntegrityError):
        case.hub.small_file(NAME, case.commit, bare)
    with pytest.raises(IntegrityError):
        case.hub.download(NAME, case.commit, bare, case.blobs)
    assert case.server.log == []


def test_a_small_file_that_is_not_small_is_never_asked_for(case: Setup) -> None:
    with pytest.raises(HubPayloadError, match="too many"):
        case.hub.small_file(NAME, case.commit, replace(case.files[CONFIG], size=(10 << 20) + 1))
    assert case.server.log == []


@pytest.mark.parametrize(
    "etag",
    [
        pytest.param('"../../../../evil"', id="case-39-traversal"),
        pytest.param("", id="case-39-empty"),
        pytest.param('W/"abc"', id="case-39-weak"),
        pytest.param("unquoted", id="case-39-unquoted"),
        pytest.param('"' + "x" * 5000 + '"', id="case-39-long"),
    ],
)
def test_a_hostile_etag_is_only_a_word(case: Setup, tmp_path: Path, etag: str) -> None:
    before = {path for path in tmp_path.rglob("*") if "blobs" not in path.parts}
    case.fault(SetHeader("ETag", etag))
    assert case.download().read_bytes() == FILES[WEIGHTS]
    assert len(case.stored()) == 1
    assert {path for path in tmp_path.rglob("*") if "blobs" not in path.parts} == before


def test_case_40_without_a_commit_the_hash_decides(case: Setup) -> None:
    case.fault(DropHeader("X-Repo-Commit"))
    assert case.small() == FILES[CONFIG]
    assert case.download().read_bytes() == FILES[WEIGHTS]
    with pytest.raises(IntegrityError, match="does not name the commit"):
        case.header()


# Headers


@pytest.fixture
def weights(case: Setup, tmp_path: Path) -> Callable[[bytes], RemoteFile]:
    """Serves these bytes as weights, and says what the tree promises of them."""

    def serve(data: bytes) -> RemoteFile:
        make_repo(tmp_path / "hub", "someone/other", {WEIGHTS: data})
        case.commit = str(case.hub.repository("someone/other")["sha"])
        (file,) = case.hub.tree("someone/other", case.commit).files
        case.server.clear()
        return file

    return serve


def header_of(case: Setup, file: RemoteFile) -> bytes:
    return case.hub.header("someone/other", case.commit, file)


def test_case_42_a_server_without_ranges_is_not_read_to_the_end(
    case: Setup, weights: Callable[[bytes], RemoteFile]
) -> None:
    data = safetensors_header_bytes({"a": 1}, body=b"\1" * (16 << 20))
    file = weights(data)
    case.fault(IgnoreRange())
    before = case.hub.usage.bytes
    assert header_of(case, file) == data[: 8 + data[0]]
    assert case.hub.usage.bytes - before < 1 << 20


@pytest.mark.parametrize("ranges", [True, False], ids=["case-42-ranges", "case-42-no-ranges"])
def test_a_long_header_takes_a_second_part(
    case: Setup, weights: Callable[[bytes], RemoteFile], ranges: bool
) -> None:
    data = safetensors_header_bytes({str(number): number for number in range(30_000)}, body=b"\1" * 5000)
    length = int.from_bytes(data[:8], "little")
    file = weights(data)
    if not ranges:
        case.fault(IgnoreRange())
    assert header_of(case, file) == data[: 8 + length]
    assert case.ranges() == ["bytes=0-131071", f"bytes=131072-{8 + length - 1}"]


@pytest.mark.parametrize(
    ("data", "kind"),
    [
        pytest.param(b"1234567", "truncated", id="seven-bytes"),
        pytest.param(b"\x40" + b"\0" * 47, "truncated", id="case-53-48-bytes"),
        pytest.param(safetensors_header_bytes(b"{}", length=2**63), "truncated", id="case-52-2-to-the-63"),
        pytest.param(safetensors_header_bytes(b"{}", length=3), "truncated", id="one-byte-missing"),
    ],
)
def test_a_header_that_cannot_be(
    case: Setup, weights: Callable[[bytes], RemoteFile], data: bytes, kind: str
) -> None:
    file = weights(data)
    with pytest.raises(WeightsError) as caught:
        header_of(case, file)
    assert caught.value.kind == kind
    assert len(case.server.log) <= 1


def test_case_52_a_header_beyond_the_limit_is_not_fetched(
    case: Setup, weights: Callable[[bytes], RemoteFile]
) -> None:
    file = weights(safetensors_header_bytes(b" " * 200_000))
    with Hub(replace(case.hub.settings, header=150_000)) as hub, pytest.raises(WeightsError) as caught:
        hub.header("someone/other", case.commit, file)
    assert caught.value.kind == "too_large"
    assert case.ranges() == ["bytes=0-131071"]


def test_case_52_a_header_without_content(case: Setup, weights: Callable[[bytes], RemoteFile]) -> None:
    assert header_of(case, weights(b"\0" * 8)) == b"\0" * 8


@pytest.mark.parametrize(
    ("action", "error"),
    [
        pytest.param(WrongContentRange(), HubPayloadError, id="case-43-another-part"),
        pytest.param(WrongContentRange("bytes 0-99/7"), IntegrityError, id="case-43-another-size"),
        pytest.param(WrongContentRange("nonsense"), HubPayloadError, id="case-43-nonsense"),
        pytest.param(DropHeader("Content-Range"), HubPayloadError, id="case-43-none"),
        pytest.param(Status(416), HubPayloadError, id="case-43-416"),
        pytest.param(Status(200, body=b"12345678"), IntegrityError, id="case-35-shorter"),
        pytest.param(SetHeader("Content-Encoding", "gzip"), HubPayloadError, id="case-41-encoded"),
    ],
)
def test_a_wrong_part_is_refused(case: Setup, action: Action, error: type[Exception]) -> None:
    case.fault(action)
    with pytest.raises(error):
        case.header()
    assert len(case.server.log) == 1


def test_a_part_that_ends_too_early_is_refused(case: Setup) -> None:
    size = len(FILES[WEIGHTS])
    head = {"Content-Range": f"bytes 0-99/{size}", "X-Repo-Commit": case.commit}
    case.fault(Status(206, head, FILES[WEIGHTS][:100]))
    with pytest.raises(IntegrityError, match="ends before"):
        case.header()


# Other hosts


@pytest.mark.parametrize("ask", EVERY)
def test_case_44_another_host_gets_no_token(tmp_path: Path, ask: Callable[[Setup], object]) -> None:
    make_repo(tmp_path / "hub", NAME, FILES)
    with FaultHub(tmp_path / "hub", cdn=True, redirect_small=True) as server:
        case = Setup(server, tmp_path / "blobs")
        with case.hub:
            ask(case)
            assert [
                requests.headers.get("authorization") for requests in server.log if requests.kind == "cdn"
            ] == ([] if ask is SMALL else [None])
            assert {
                requests.headers["authorization"] for requests in server.log if requests.kind != "cdn"
            } == {f"Bearer {TOKEN}"}
            usage = case.hub.usage
            assert (usage.resolver, usage.redirects, usage.cdn) == ((1, 1, 0) if ask is SMALL else (1, 0, 1))


def test_case_44_a_way_back_carries_no_token(case: Setup, tmp_path: Path) -> None:
    with FaultHub(tmp_path / "hub") as elsewhere:
        elsewhere.faults.append(Fault(RESOLVE, RedirectTo(f"{case.server.url}/api/whoami-v2")))
        path = f"/{NAME}/resolve/main/{CONFIG}"
        case.fault(RedirectTo(f"{elsewhere.url}{path}"))
        with pytest.raises(HubAccessError):
            case.small()
        assert "authorization" in case.server.log[0].headers
        assert case.server.log[1].path == "/api/whoami-v2"
        assert "authorization" not in case.server.log[1].headers


def test_a_refusal_elsewhere_says_nothing_of_the_repository(case: Setup, tmp_path: Path) -> None:
    with FaultHub(tmp_path / "hub") as elsewhere:
        elsewhere.faults.append(Fault("", Status(404, error_code="GatedRepo")))
        case.fault(RedirectTo(f"{elsewhere.url}/x"))
        with pytest.raises(HubAccessError) as caught:
            case.small()
    assert caught.value.status == "refused"


def test_another_host_does_not_say_the_commit(case: Setup, tmp_path: Path) -> None:
    with FaultHub(tmp_path / "hub") as elsewhere:
        elsewhere.faults.append(Fault("", SetHeader("X-Repo-Commit", "0" * 40)))
        case.fault(RedirectTo(f"{elsewhere.url}/{NAME}/resolve/main/{CONFIG}"))
        assert case.small() == FILES[CONFIG]


# Continuing


def test_case_49_a_broken_download_continues(case: Setup) -> None:
    case.fault(Truncate(500), times=1)
    assert case.download().read_bytes() == FILES[WEIGHTS]
    etag = f'"{case.files[WEIGHTS].sha256}"'
    assert case.ranges() == [None, "bytes=500-"]
    assert case.server.log[1].headers["if-range"] == etag
    assert len(case.stored()) == 1


def interrupt_download(case: Setup) -> None:
    """Leaves the first 500 bytes in the store."""
    case.server.faults.insert(0, Fault(RESOLVE, Truncate(500), times=1))
    with case.another(attempts=1) as hub, pytest.raises(HubUnreachableError):
        hub.download(NAME, case.commit, case.files[WEIGHTS], case.blobs)
    case.server.clear()


def test_case_49_another_run_continues(case: Setup) -> None:
    interrupt_download(case)
    assert case.download().read_bytes() == FILES[WEIGHTS]
    assert case.ranges() == ["bytes=500-"]


@pytest.mark.parametrize(
    ("action", "requests"),
    [
        pytest.param(IgnoreRange(), 1, id="case-49-range-ignored"),
        pytest.param(WrongContentRange("bytes 501-999/1032"), 2, id="case-49-another-part"),
        pytest.param(Status(416), 2, id="case-49-no-such-part"),
    ],
)
def test_a_server_that_does_not_continue_starts_over(case: Setup, action: Action, requests: int) -> None:
    interrupt_download(case)
    case.fault(action, times=1)
    assert case.download().read_bytes() == FILES[WEIGHTS]
    assert len(case.server.log) == requests


def partial_of(case: Setup) -> Path:
    (path,) = [path for path in case.stored() if path.suffix == ""]
    return path


def test_case_49_if_range_does_not_match(case: Setup) -> None:
    interrupt_download(case)
    partial = partial_of(case)
    partial.with_name(f"{partial.name}.etag").write_text('"another"')
    partial.write_bytes(b"x" * 500)
    assert case.download().read_bytes() == FILES[WEIGHTS]
    assert len(case.server.log) == 1


@pytest.mark.parametrize("etag", [None, "\xff\xfe", "W/weak", '"a"\r\nX: y'])
def test_case_49_without_a_name_for_the_bytes_the_hash_decides(case: Setup, etag: str | None) -> None:
    interrupt_download(case)
    partial = partial_of(case)
    name = partial.with_name(f"{partial.name}.etag")
    name.unlink() if etag is None else name.write_text(etag, "latin-1")
    assert case.download().read_bytes() == FILES[WEIGHTS]
    assert case.ranges() == ["bytes=500-"]
    assert "if-range" not in case.server.log[0].headers


def test_case_49_spoilt_bytes_are_fetched_again(case: Setup) -> None:
    interrupt_download(case)
    partial_of(case).write_bytes(b"x" * 500)
    assert case.download().read_bytes() == FILES[WEIGHTS]
    assert case.ranges() == ["bytes=500-", None]


def test_case_37_a_continued_download_that_is_wrong_twice_is_refused(case: Setup) -> None:
    interrupt_download(case)
    case.fault(Corrupt(900))
    with pytest.raises(IntegrityError):
        case.download()
    assert case.stored() == []


def test_case_46_a_store_that_cannot_be_written(case: Setup, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("no folder")
    with pytest.raises(StorageError):
        case.hub.download(NAME, case.commit, case.files[WEIGHTS], BlobStore(tmp_path / "file"))
    assert case.server.log == []


def test_case_48_many_workers_fetch_a_blob_once(case: Setup) -> None:
    start = threading.Barrier(6)
    paths: list[Path] = []

    def fetch() -> None:
        start.wait(10)
        paths.append(case.download())

    workers = [threading.Thread(target=fetch) for _ in range(6)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    assert len(paths) == 6
    assert set(paths) == set(case.stored())
    assert len(case.server.log) == 1


def test_the_header_that_is_read_is_json(case: Setup) -> None:
    assert json.loads(case.header()[8:])["__metadata__"] == {"format": "pt"}
