"""A crawl that is killed or interrupted at any point: the next one goes on and ends with the same rows."""

from __future__ import annotations

import re
import signal
from collections.abc import Iterator
from multiprocessing.process import BaseProcess
from pathlib import Path

import pytest
from sqlalchemy import Engine, func, select
from sqlalchemy.orm import Session

from catalog.database.schema import CrawlItem, CrawlPage
from tests.crawl_process import crawl_and_die_in_a_page, crawl_pages
from tests.crawling import crawl, dump, items
from tests.localhub import FaultHub
from tests.localhub.faults import Callback, Fault, SeenRequest
from tests.neighbours import GOOD, LISTING, neighbours, sqlite_catalog, verdicts
from tests.processes import send_signal, start_process, wait_for

pytestmark = pytest.mark.slow

TREE = "GET /api/models/.*/tree"
FILE = "GET /.*/resolve/"


@pytest.fixture
def backend() -> str:
    """A file is what a killed process leaves behind; the server of the other database lives on."""
    return "sqlite"


@pytest.fixture
def hub(tmp_path: Path) -> Iterator[FaultHub]:
    """A Hub of the good repositories, one to a page."""
    (tmp_path / "hub").mkdir()
    neighbours(tmp_path / "hub")
    with FaultHub(tmp_path / "hub") as running:
        yield running


def stop_crawl(hub: FaultHub, data: Path, match: str, turn: int, how: signal.Signals) -> int | None:
    """Sends a signal to a crawl when it asks for this for the `turn`th time; gives how it ended."""
    requests = 0
    child: list[BaseProcess] = []

    def count(request: SeenRequest) -> None:
        nonlocal requests
        requests += re.search(match, request.line) is not None
        if requests == turn:
            send_signal(child[0], how)

    hub.faults[:] = [Fault(match, Callback(count))]
    child.append(start_process(crawl_pages, hub.url, data))
    code = wait_for(child[0])
    hub.faults.clear()
    return code


def test_case_12_killed_at_page_boundaries_inside_pages_and_between_files(
    hub: FaultHub, engine: Engine, request: pytest.FixtureRequest, tmp_path: Path
) -> None:
    def pages() -> int:
        with Session(engine) as session:
            return session.scalar(select(func.count()).select_from(CrawlPage)) or 0

    killed = -signal.SIGKILL
    assert wait_for(start_process(crawl_and_die_in_a_page, hub.url, tmp_path, 1)) == killed
    assert pages() == 0, "a page without its rows"
    assert stop_crawl(hub, tmp_path, LISTING, 2, signal.SIGKILL) == killed
    assert pages() == 1, "a page that was read is lost"
    assert wait_for(start_process(crawl_and_die_in_a_page, hub.url, tmp_path, 2)) == killed
    assert pages() == 2
    with Session(engine) as session:
        assert session.scalar(select(func.count()).select_from(CrawlItem)) == 2
    for match, turn in ((TREE, 2), (FILE, 2)):
        assert stop_crawl(hub, tmp_path, match, turn, signal.SIGKILL) == killed
    report = crawl(hub.url, engine, tmp_path, hub={"page_limit": 1})
    assert (report["status"], report["listed"], report["accepted"]) == ("complete", 3, 3)
    with sqlite_catalog(request, tmp_path / "whole") as complete:
        crawl(hub.url, complete, tmp_path / "whole", hub={"page_limit": 1})
        assert dump(engine) == dump(complete)
        assert items(engine) == items(complete)


def test_case_93_an_interrupt_ends_the_process_and_the_next_crawl_goes_on(
    hub: FaultHub, engine: Engine, tmp_path: Path
) -> None:
    assert stop_crawl(hub, tmp_path, FILE, 4, signal.SIGINT) != 0
    requests = {request.path for request in hub.log if request.path.endswith("config.json")}
    report = crawl(hub.url, engine, tmp_path, hub={"page_limit": 1})
    assert (report["status"], report["listed"], report["unchanged"]) == ("complete", 3, 0)
    assert set(verdicts(engine)) == set(GOOD)
    assert len(requests) < 3, "it was not interrupted in the middle"
