"""What a Hub notices of a whole crawl: how often it is asked, by whom, and for what."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest
from sqlalchemy import Engine

from tests.fakes import VirtualClock
from tests.localhub import FaultHub, Limits
from tests.neighbours import crawl_by, neighbours, repo


@pytest.fixture
def backend() -> str:
    """One database is enough: nothing here depends on it."""
    return "sqlite"


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """The folder of a Hub of twelve adapters."""
    folder = tmp_path / "hub"
    folder.mkdir()
    neighbours(folder)
    for number in range(9):
        repo(folder, f"o/r{number}")
    return folder


@pytest.fixture
def hub(root: Path) -> Iterator[FaultHub]:
    """A Hub without limits."""
    with FaultHub(root) as running:
        yield running


@pytest.mark.parametrize("policy", ["headers", "keep"])
@pytest.mark.parametrize("quota", [10, 20], ids=["case-87-ten-a-window", "case-87-twenty-a-window"])
def test_a_hub_with_limits_never_has_to_refuse(
    quota: int, policy: str, root: Path, engine: Engine, tmp_path: Path
) -> None:
    clock = VirtualClock()
    with FaultHub(root, limits=Limits(api=quota, resolver=quota, clock=clock.now)) as hub:
        report = crawl_by(clock, hub.url, engine, tmp_path, weights=policy, workers=1)
        answers = Counter(request.status for request in hub.log)
        resolved = hub.count("resolver")
    assert (report["status"], report["accepted"]) == ("complete", 12)
    assert set(answers) == {200, 206} - ({206} if not answers[206] else set())
    assert resolved == (48 if policy == "keep" else 36)
    windows = (clock.now() - 1_000) / 300
    assert windows >= resolved / quota - 1, "the crawl was too quick for the limit"
    assert windows <= resolved / (quota * 0.8) + 2, "the crawl waited for nothing"


def test_case_87_several_workers_share_what_the_hub_allows(
    root: Path, engine: Engine, tmp_path: Path
) -> None:
    clock = VirtualClock()
    with FaultHub(root, limits=Limits(api=40, resolver=40, clock=clock.now)) as hub:
        report = crawl_by(clock, hub.url, engine, tmp_path, weights="keep", workers=3)
        refused = sum(request.status == 429 for request in hub.log)
    assert (report["status"], report["accepted"], refused) == ("complete", 12, 0)


def test_case_89_every_request_says_who_asks(hub: FaultHub, engine: Engine, tmp_path: Path) -> None:
    crawl_by(VirtualClock(), hub.url, engine, tmp_path, weights="keep")
    assert {request.kind for request in hub.log} == {"api", "resolver"}
    for request in hub.log:
        agent = request.headers["user-agent"]
        assert agent.startswith("loradex/")
        assert "contact/https://" in agent


def test_case_91_a_crawl_asks_its_hub_for_listings_trees_and_files_only(
    hub: FaultHub, engine: Engine, tmp_path: Path
) -> None:
    crawl_by(VirtualClock(), hub.url, engine, tmp_path, weights="keep")
    assert {request.method for request in hub.log} == {"GET"}
    kinds = Counter(
        "list" if request.path == "/api/models" else "tree" if "/tree/" in request.path else "file"
        for request in hub.log
    )
    assert (kinds["tree"], kinds["file"]) == (12, 48)
    assert {request.headers["host"] for request in hub.log} == {hub.url.removeprefix("http://")}
