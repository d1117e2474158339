"""Files that are not what they should be: no bad byte is kept or trusted, and the neighbours are accepted."""

from __future__ import annotations

import hashlib
import signal
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from sqlalchemy import Engine

from catalog.files import BlobStore
from tests.crawl_process import crawl_and_die_before_a_rename
from tests.crawling import crawl, dump
from tests.hubs import lora_tensors, safetensors_bytes
from tests.localhub import FaultHub
from tests.localhub.faults import (
    Corrupt,
    DropHeader,
    Extend,
    Fault,
    Gzip,
    Html,
    IgnoreRange,
    RedirectLoop,
    RedirectTo,
    SetHeader,
    Status,
    Truncate,
    WrongContentRange,
)
from tests.neighbours import (
    GOOD,
    all_counted,
    below,
    blobs,
    neighbours,
    outcomes,
    repo,
    row,
    sqlite_catalog,
    verdicts,
)
from tests.processes import start_process, wait_for

WEIGHTS = "adapter_model.safetensors"
CONFIG = "adapter_config.json"


@pytest.fixture
def backend() -> str:
    """One database is enough here: what is written is the same as in the tests of both."""
    return "sqlite"


@dataclass(frozen=True)
class Spoilt:
    """A file whose answers are spoilt after the first `skip` of them, and what becomes of its adapter: a
    reason for which it is refused, the kind of an error that fails it, or neither where it is accepted.
    """

    file: str
    action: Any
    reason: str | None = None
    error: str | None = None
    skip: int = 0


# The header of the weights is the first answer, the whole file the second.
FAULTS = {
    "case-35-config-cut-short": Spoilt(CONFIG, Truncate(20), error="unreachable"),
    "case-35-header-cut-short": Spoilt(WEIGHTS, Truncate(20), error="unreachable"),
    "case-35-weights-cut-short": Spoilt(WEIGHTS, Truncate(20), error="unreachable", skip=1),
    "case-36-config-too-long": Spoilt(CONFIG, Extend(b"  "), "integrity"),
    "case-36-config-too-long-and-says-so": Spoilt(CONFIG, Extend(b"  ", declared=True), "integrity"),
    "case-36-weights-too-long": Spoilt(WEIGHTS, Extend(b"more"), "integrity", skip=1),
    "case-36-weights-too-long-and-says-so": Spoilt(
        WEIGHTS, Extend(b"more", declared=True), "integrity", skip=1
    ),
    "case-37-one-bit-of-the-weights": Spoilt(WEIGHTS, Corrupt(600), "integrity", skip=1),
    "case-37-one-bit-of-the-header": Spoilt(WEIGHTS, Corrupt(9), "header_invalid"),
    "case-38-one-bit-of-the-config": Spoilt(CONFIG, Corrupt(3), "integrity"),
    "case-38-one-bit-of-the-card": Spoilt("README.md", Corrupt(3), "integrity"),
    "case-38-another-file": Spoilt(CONFIG, Status(200, body=b"{}"), "integrity"),
    "case-39-etag-traversal": Spoilt(".*", SetHeader("ETag", '"../../../../evil"')),
    "case-39-linked-etag-traversal": Spoilt(".*", SetHeader("X-Linked-Etag", '"../../../../evil"')),
    "case-39-etag-empty": Spoilt(".*", SetHeader("ETag", "")),
    "case-39-etag-weak": Spoilt(".*", SetHeader("ETag", 'W/"evil"')),
    "case-39-etag-unquoted": Spoilt(".*", SetHeader("ETag", "../evil")),
    "case-39-no-etag": Spoilt(".*", DropHeader("ETag")),
    "case-40-no-commit-of-the-config": Spoilt(CONFIG, DropHeader("X-Repo-Commit")),
    "case-40-no-commit-of-the-weights": Spoilt(WEIGHTS, DropHeader("X-Repo-Commit"), skip=1),
    "case-40-no-commit-of-the-header": Spoilt(WEIGHTS, DropHeader("X-Repo-Commit"), "integrity"),
    "case-40-another-commit": Spoilt(CONFIG, SetHeader("X-Repo-Commit", "b" * 40), "integrity"),
    "case-40-traversal-for-a-commit": Spoilt(CONFIG, SetHeader("X-Repo-Commit", "../.."), "integrity"),
    "case-41-config-is-a-bomb": Spoilt(CONFIG, Gzip(8), "not_read"),
    "case-41-header-is-a-bomb": Spoilt(WEIGHTS, Gzip(8), "integrity"),
    "case-41-weights-are-a-bomb": Spoilt(WEIGHTS, Gzip(8), "not_read", skip=1),
    "case-42-no-ranges": Spoilt(WEIGHTS, IgnoreRange()),
    "case-43-another-range": Spoilt(WEIGHTS, WrongContentRange("bytes 5-90/100"), "not_read"),
    "case-43-range-of-another-size": Spoilt(WEIGHTS, WrongContentRange("bytes 0-700/9999999"), "integrity"),
    "case-43-no-range": Spoilt(WEIGHTS, DropHeader("Content-Range"), "not_read"),
    "case-43-nonsense-for-a-range": Spoilt(WEIGHTS, WrongContentRange("bytes */*"), "not_read"),
    "case-43-no-such-range": Spoilt(WEIGHTS, Status(416), "not_read"),
    "case-44-redirect-to-another-scheme": Spoilt(CONFIG, RedirectTo("file:///etc/passwd"), "not_read"),
    "case-45-redirect-loop-of-the-config": Spoilt(CONFIG, RedirectLoop(), "not_read"),
    "case-45-redirect-loop-of-the-weights": Spoilt(WEIGHTS, RedirectLoop(), "not_read", skip=1),
    "case-06-html-for-a-config": Spoilt(CONFIG, Html(), "integrity"),
    "case-22-404-for-weights": Spoilt(WEIGHTS, Status(404, error_code="EntryNotFound"), "vanished"),
    "case-10-503-for-weights": Spoilt(WEIGHTS, Status(503), error="busy", skip=1),
}


@dataclass(frozen=True)
class Shelf:
    """What a crawl that keeps weights made of the files, and what a full one made of them without faults."""

    place: Path
    sha256: dict[str, str]
    report: dict[str, Any]
    outcomes: dict[str, str]
    verdicts: dict[str, str]
    kept: set[str]
    rows: dict[str, dict[str, Any]]
    mended: dict[str, str]


@pytest.fixture(scope="module")
def shelf(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Shelf]:
    """Two crawls of all repositories of this module, the first of them with spoilt files."""
    place = tmp_path_factory.mktemp("shelf") / "inner"
    place.mkdir()
    root = place / "hub"
    root.mkdir()
    neighbours(root)
    faults, sha256 = [], {}
    for case, spoilt in FAULTS.items():
        weights = repo(root, f"o/{case}")[WEIGHTS]
        assert isinstance(weights, bytes)
        sha256[case] = hashlib.sha256(weights).hexdigest()
        faults.append(Fault(f"GET /o/{case}/resolve/.*/{spoilt.file}", spoilt.action, skip=spoilt.skip))
    with FaultHub(root, faults=faults) as hub, sqlite_catalog(request, place / "data") as engine:
        report = crawl(hub.url, engine, place / "data", weights="keep")
        became, judged, remaining = outcomes(engine), verdicts(engine), blobs(place / "data")
        rows = {name: row(engine, name) for name in judged}
        hub.faults.clear()
        crawl(hub.url, engine, place / "data", weights="keep", full=True)
        yield Shelf(place, sha256, report, became, judged, remaining, rows, verdicts(engine))


def test_every_repository_is_counted_once_and_the_good_ones_are_accepted(shelf: Shelf) -> None:
    assert all_counted(shelf.report), shelf.report
    assert (shelf.report["listed"], shelf.report["pending"]) == (len(FAULTS) + len(GOOD), 0)
    assert {shelf.verdicts[name] for name in GOOD} == {"accepted"}


@pytest.mark.parametrize("case", FAULTS)
def test_a_spoilt_file_is_refused_or_does_no_harm(case: str, shelf: Shelf) -> None:
    spoilt, name = FAULTS[case], f"o/{case}"
    if spoilt.error is not None:
        assert shelf.outcomes[name] == "failed"
        assert shelf.report["errors"][spoilt.error] > 0
        assert name not in shelf.verdicts
    else:
        assert shelf.outcomes[name] == "new"
        assert shelf.verdicts[name] == ("skipped" if spoilt.reason else "accepted")
        assert spoilt.reason is None or spoilt.reason in shelf.rows[name]["reasons"]
    accepted = shelf.verdicts.get(name) == "accepted"
    assert (shelf.sha256[case] in shelf.kept) is accepted, "a blob that nobody verified, or none"


@pytest.mark.parametrize("case", FAULTS)
def test_a_full_crawl_mends_what_a_passing_fault_spoilt(case: str, shelf: Shelf) -> None:
    assert shelf.mended[f"o/{case}"] == "accepted"


def test_case_39_no_answer_names_a_file(shelf: Shelf) -> None:
    assert not any("evil" in path for path in below(shelf.place.parent))
    assert all(path.split("/")[0] in ("hub", "data") for path in below(shelf.place))


@pytest.mark.parametrize("policy", ["headers", "keep"])
def test_case_42_a_hub_without_ranges_is_not_read_to_the_end_for_a_header(
    policy: str, engine: Engine, tmp_path: Path
) -> None:
    root = tmp_path / "hub"
    root.mkdir()
    tensors = lora_tensors(hidden=60_000).items()
    large = safetensors_bytes({name: values * np.float32(1e-3) for name, values in tensors})
    repo(root, "o/large", {WEIGHTS: large})
    with FaultHub(root) as hub:
        hub.faults.append(Fault(f"GET .*{WEIGHTS}", IgnoreRange()))
        report = crawl(hub.url, engine, tmp_path, weights=policy)
    assert row(engine, "o/large")["verdict"] == "accepted"
    assert len(large) > 3_000_000
    complete = len(large) if policy == "keep" else 0
    assert report["bytes"] - complete < 1_000_000


def test_case_44_another_host_gets_the_request_and_no_token(engine: Engine, tmp_path: Path) -> None:
    root = tmp_path / "hub"
    root.mkdir()
    neighbours(root)
    with FaultHub(root, cdn=True) as hub:
        report = crawl(hub.url, engine, tmp_path, weights="keep", hub={"token": "hf_secret"})
        target = [request for request in hub.log if request.kind == "cdn"]
        here = [request for request in hub.log if request.kind != "cdn"]
    assert (report["accepted"], len(blobs(tmp_path))) == (3, 3)
    assert len(target) >= 3
    assert all("authorization" not in request.headers for request in target)
    assert all(request.headers["authorization"] == "Bearer hf_secret" for request in here)


# -- the disk ----------------------------------------------------------------------------------------------


@pytest.fixture
def hub(tmp_path: Path) -> Iterator[FaultHub]:
    """A Hub of the good repositories."""
    (tmp_path / "hub").mkdir()
    neighbours(tmp_path / "hub")
    with FaultHub(tmp_path / "hub") as running:
        yield running


def fill(store: Path) -> None:
    """Lets every partial file lie on a device that is always full."""
    partial = store / "partial"
    partial.mkdir(parents=True)
    for file in (store.parent / "hub").glob(f"*/*/{WEIGHTS}"):
        (partial / hashlib.sha256(file.read_bytes()).hexdigest()).symlink_to("/dev/full")


def block(store: Path) -> None:
    """Puts a file where the folder of blobs should be."""
    store.write_text("in the way")


@pytest.mark.parametrize(
    "spoil",
    [
        pytest.param(
            fill,
            id="case-46-disk-full",
            marks=pytest.mark.skipif(not Path("/dev/full").exists(), reason="no /dev/full on this system"),
        ),
        pytest.param(block, id="case-46-no-folder"),
    ],
)
def test_a_disk_that_refuses_fails_the_repositories_and_shows_no_part(
    spoil: Any, hub: FaultHub, engine: Engine, tmp_path: Path
) -> None:
    spoil(tmp_path / "blobs")
    report = crawl(hub.url, engine, tmp_path, weights="keep")
    assert (report["status"], report["errors"]) == ("partial", {"storage": 3})
    assert blobs(tmp_path) == set()
    for leftover in (tmp_path / "blobs", *(tmp_path / "blobs").glob("partial/*")):
        if leftover.is_symlink() or leftover.is_file():
            leftover.unlink()
    report = crawl(hub.url, engine, tmp_path, weights="keep")
    assert (report["status"], report["accepted"], len(blobs(tmp_path))) == ("complete", 3, 3)


@pytest.mark.slow
def test_case_47_a_kill_between_write_and_rename_shows_no_blob(
    hub: FaultHub, engine: Engine, tmp_path: Path
) -> None:
    code = wait_for(start_process(crawl_and_die_before_a_rename, hub.url, tmp_path))
    assert code == -signal.SIGKILL
    assert blobs(tmp_path) == set()
    assert list((tmp_path / "blobs/partial").glob("?" * 64)), "it was killed before it had written anything"
    report = crawl(hub.url, engine, tmp_path, weights="keep")
    assert (report["status"], report["accepted"], len(blobs(tmp_path))) == ("complete", 3, 3)
    assert not list((tmp_path / "blobs/partial").glob("?" * 64))


def test_case_48_the_same_weights_of_many_repositories_are_one_file(engine: Engine, tmp_path: Path) -> None:
    root = tmp_path / "hub"
    root.mkdir()
    shared = safetensors_bytes(lora_tensors(seed=5))
    for number in range(6):
        repo(root, f"o/copy{number}", {WEIGHTS: shared})
    with FaultHub(root) as hub:
        report = crawl(hub.url, engine, tmp_path, weights="keep", workers=4)
        complete = [r for r in hub.log if r.path.endswith(WEIGHTS) and "range" not in r.headers]
    assert (report["accepted"], len(complete)) == (6, 1)
    assert blobs(tmp_path) == {hashlib.sha256(shared).hexdigest()}


@pytest.mark.parametrize("changed", [False, True], ids=["case-49-continued", "case-49-if-range-mismatch"])
def test_a_broken_download_is_continued_by_the_next_crawl_or_starts_again(
    changed: bool, hub: FaultHub, engine: Engine, tmp_path: Path
) -> None:
    match = f"GET /bob/two/resolve/.*/{WEIGHTS}"
    hub.faults.append(Fault(match, Truncate(500), skip=1))
    report = crawl(hub.url, engine, tmp_path, weights="keep", hub={"attempts": 1})
    assert (report["status"], report["errors"], report["accepted"]) == ("partial", {"unreachable": 1}, 2)
    assert len(blobs(tmp_path)) == 2
    hub.faults.clear()
    hub.clear()
    if changed:
        (partial,) = (tmp_path / "blobs/partial").glob("*.etag")
        partial.write_text('"another"')
    report = crawl(hub.url, engine, tmp_path, weights="keep")
    (requests,) = [request for request in hub.log if request.headers.get("range", "").endswith("-")]
    assert requests.headers["range"] == "bytes=500-"
    assert requests.status == (200 if changed else 206)
    assert (report["status"], report["accepted"], len(blobs(tmp_path))) == ("complete", 3, 3)


def test_case_50_nothing_is_fetched_again_after_a_crawl_full_of_faults(
    hub: FaultHub, engine: Engine, tmp_path: Path
) -> None:
    hub.faults.append(Fault("GET /bob/two/resolve/.*/adapter_config.json", Status(503)))
    crawl(hub.url, engine, tmp_path, weights="keep")
    hub.faults.clear()
    crawl(hub.url, engine, tmp_path, weights="keep")
    before = dump(engine)
    hub.clear()
    report = crawl(hub.url, engine, tmp_path, weights="keep", full=True)
    assert (report["unchanged"], hub.count("resolver")) == (3, 0)
    assert dump(engine) == before
    assert BlobStore(tmp_path / "blobs").verify(row(engine, "bob/two")["weights"]["digest"])
