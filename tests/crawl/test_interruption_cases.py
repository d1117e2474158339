"""A crawl that is killed or interrupted at any point: the next one goes on and ends with the same rows."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from sqlalchemy import Engine, func, select
from sqlalchemy.orm import Session

from catalog.database.schema import CrawlItem, CrawlPage
from tests.crawling import crawl, dump, items
from tests.localhub import LocalHub
from tests.localhub.faults import Callback, Fault, SeenRequest
from tests.neighbours import GOOD, LISTING, neighbours, sqlite_catalog, verdicts

pytestmark = pytest.mark.slow

ROOT = Path(__file__).parents[2]
TREE = "GET /api/models/.*/tree"
FILE = "GET /.*/resolve/"
# Kills itself in the transaction of listing page number `sys.argv[3]`, after its rows were written.
KILLED_IN_A_PAGE = """
import os, signal, sys
from pathlib import Path
from catalog.database import frontier
from catalog.database.engine import make_engine
from tests.crawling import crawl
write, left = frontier.add_page, [int(sys.argv[3])]
def killed(*given):
    written = write(*given)
    left[0] -= 1
    if not left[0]:
        os.kill(os.getpid(), signal.SIGKILL)
    return written
frontier.add_page = killed
data = Path(sys.argv[2])
crawl(sys.argv[1], make_engine(f"sqlite:///{data / 'catalog.db'}"), data, hub={"page_limit": 1})
"""


@pytest.fixture
def backend() -> str:
    """A file is what a killed process leaves behind; the server of the other database lives on."""
    return "sqlite"


@pytest.fixture
def hub(tmp_path: Path) -> Iterator[LocalHub]:
    """A Hub of the good repositories, one to a page."""
    (tmp_path / "hub").mkdir()
    neighbours(tmp_path / "hub")
    with LocalHub(tmp_path / "hub") as running:
        yield running


def run(hub: LocalHub, data: Path, *program: str) -> subprocess.Popen[bytes]:
    """A crawl in a process of its own."""
    command = (sys.executable, *(program[:2] or ("-m", "tests.crawl_process")), hub.url, str(data))
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    return subprocess.Popen((*command, *(program[2:] or ("1",))), env=environment, stderr=subprocess.DEVNULL)


def stop_crawl(hub: LocalHub, data: Path, match: str, turn: int, how: signal.Signals) -> int:
    """Sends a signal to a crawl when it asks for this for the `turn`th time; gives how it ended."""
    requests = 0
    child: list[subprocess.Popen[bytes]] = []

    def count(request: SeenRequest) -> None:
        nonlocal requests
        requests += re.search(match, request.line) is not None
        if requests == turn:
            child[0].send_signal(how)

    hub.faults[:] = [Fault(match, Callback(count))]
    child.append(run(hub, data))
    code = child[0].wait()
    hub.faults.clear()
    return code


def test_case_12_killed_at_page_boundaries_inside_pages_and_between_files(
    hub: LocalHub, engine: Engine, request: pytest.FixtureRequest, tmp_path: Path
) -> None:
    def pages() -> int:
        with Session(engine) as session:
            return session.scalar(select(func.count()).select_from(CrawlPage)) or 0

    killed = -signal.SIGKILL
    assert run(hub, tmp_path, "-c", KILLED_IN_A_PAGE, "1").wait() == killed
    assert pages() == 0, "a page without its rows"
    assert stop_crawl(hub, tmp_path, LISTING, 2, signal.SIGKILL) == killed
    assert pages() == 1, "a page that was read is lost"
    assert run(hub, tmp_path, "-c", KILLED_IN_A_PAGE, "2").wait() == killed
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
    hub: LocalHub, engine: Engine, tmp_path: Path
) -> None:
    assert stop_crawl(hub, tmp_path, FILE, 4, signal.SIGINT) != 0
    requests = {request.path for request in hub.log if request.path.endswith("config.json")}
    report = crawl(hub.url, engine, tmp_path, hub={"page_limit": 1})
    assert (report["status"], report["listed"], report["unchanged"]) == ("complete", 3, 0)
    assert set(verdicts(engine)) == set(GOOD)
    assert len(requests) < 3, "it was not interrupted in the middle"
