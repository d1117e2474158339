"""Crawls of real adapters: each in one counted state, the same on both databases and after any kill."""

from __future__ import annotations

import json
import random
import signal
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cache
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import Engine
from sqlalchemy.orm import Session

from catalog.database import make_engine
from catalog.database.opening import upgrade
from catalog.search import browse
from crawler.crawl import refusing
from tests.crawl_process import crawl_pages
from tests.crawling import crawl, dump, items
from tests.localhub import FaultHub
from tests.localhub.faults import Callback, Fault
from tests.processes import send_signal, start_process, wait_for
from tests.shared_data import SHARED, data
from tests.wild import LLAMA, paper_hub, wild_hub

pytestmark = [
    pytest.mark.shared,
    pytest.mark.slow,
    pytest.mark.skipif(SHARED is None, reason="the shared folder is not there"),
]
KILLS = 20


@pytest.fixture(scope="module")
def wild(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a Hub of all wild adapters."""
    root = tmp_path_factory.mktemp("wild")
    wild_hub(root)
    return root


@dataclass(frozen=True)
class WildCrawl:
    """A crawl of the wild Hub: its catalog, its data folder, its report, and the rows that it left."""

    engine: Engine
    data: Path
    report: dict[str, Any]
    rows: tuple[object, object]


@pytest.fixture(scope="module")
def crawl_once(
    wild: Path, tmp_path_factory: pytest.TempPathFactory, request: pytest.FixtureRequest
) -> Iterator[Callable[[str], WildCrawl]]:
    """The crawl of the wild Hub into a database of this kind."""
    databases = []

    @cache
    def crawl_wild(backend: str) -> WildCrawl:
        folder = tmp_path_factory.mktemp("crawled")
        url = f"sqlite:///{folder / 'catalog.db'}"
        if backend == "postgres":
            template = request.getfixturevalue("postgres_template")
            databases.append(request.getfixturevalue("postgres_database")(template))
            url = next(databases[0])
        engine = make_engine(url)
        upgrade(engine)
        with FaultHub(wild) as hub:
            report = crawl(hub.url, engine, folder)
        return WildCrawl(engine, folder, report, (dump(engine), items(engine)))

    yield crawl_wild
    for database in databases:
        database.close()


def test_every_wild_folder_ends_in_one_counted_state(
    wild: Path, backend: str, crawl_once: Callable[[str], WildCrawl]
) -> None:
    folders = len(list(wild.glob("*/*")))
    first = crawl_once(backend)
    report = first.report
    assert (report["status"], report["listed"], report["new"]) == ("complete", folders, folders)
    assert report["adapters"] == report["accepted"] + report["skipped"] == folders
    with FaultHub(wild) as hub:
        again = crawl(hub.url, first.engine, first.data, full=True)
        assert (again["unchanged"], hub.count("resolver")) == (folders, 0)
    first.engine.dispose()
    assert report["reasons"]["no_safetensors"] + report["reasons"].get("pickle_only", 0) == folders


def test_case_80_both_databases_hold_the_same_rows(crawl_once: Callable[[str], WildCrawl]) -> None:
    catalogs = [crawl_once(backend) for backend in ("sqlite", "postgres")]
    assert catalogs[0].rows == catalogs[1].rows
    for catalog in catalogs:
        catalog.engine.dispose()


def test_the_paper_base_is_crawled_under_all_its_names(wild: Path, tmp_path: Path) -> None:
    engine = make_engine(f"sqlite:///{tmp_path / 'catalog.db'}")
    upgrade(engine)
    with FaultHub(wild) as hub:
        report = crawl(hub.url, engine, tmp_path, bases=(LLAMA,))
    with Session(engine) as session:
        rows = list(browse.adapters(session, browse.Listing(), refusing("ours")))
    assert report["listed"] == len(rows) > 60
    assert {row.base for row in rows} == {LLAMA}
    engine.dispose()


def test_case_12_kill_9_at_twenty_points_then_the_same_rows(wild: Path, tmp_path: Path) -> None:
    complete = _engine(tmp_path / "whole")
    with FaultHub(wild) as hub:
        crawl(hub.url, complete, tmp_path / "whole", hub={"page_limit": 50})
        longest = 2 * len(hub.log) // KILLS
        points = [random.Random(seed).randint(1, longest) for seed in range(KILLS)]
        broken = _engine(tmp_path / "broken")
        killed = sum(_kill_crawl(hub, tmp_path / "broken", point) for point in points)
        wait_for(start_process(crawl_pages, hub.url, tmp_path / "broken", 50))
    assert killed >= KILLS // 2, "the crawl was over before the kills"
    assert dump(broken) == dump(complete)
    assert items(broken) == items(complete)


def _kill_crawl(hub: FaultHub, data: Path, point: int) -> bool:
    """Runs the crawl and kills it at its request number `point`; whether it was killed."""
    requests = 0
    child: list[BaseProcess] = []

    def count(_request: Any) -> None:
        nonlocal requests
        requests += 1
        if requests == point:
            send_signal(child[0], signal.SIGKILL)

    hub.faults[:] = [Fault("GET ", Callback(count))]
    child.append(start_process(crawl_pages, hub.url, data, 50))
    code = wait_for(child[0])
    hub.faults.clear()
    return code == -signal.SIGKILL


def _engine(data: Path) -> Engine:
    engine = make_engine(f"sqlite:///{data / 'catalog.db'}")
    upgrade(engine)
    return engine


@pytest.fixture(scope="module")
def paper(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[str]]:
    """The folder of a Hub of the paper's pool, and its ids."""
    root = tmp_path_factory.mktemp("paper")
    return root, paper_hub(root)


def test_the_paper_pool_is_accepted_by_the_paper_rules(paper: tuple[Path, list[str]], tmp_path: Path) -> None:
    root, ids = paper
    engine = _engine(tmp_path)
    with FaultHub(root) as hub:
        # A busy machine takes long to list them.
        slow = {"timeout": 60.0, "deadline": 120.0}
        report = crawl(hub.url, engine, tmp_path, bases=(LLAMA,), rules="paper", hub=slow)
    with Session(engine) as session:
        rows = list(browse.adapters(session, browse.Listing(), refusing("paper")))
    engine.dispose()
    assert report["listed"] == len(ids) == 960
    skipped = {row.adapter: row.reasons for row in rows if row.verdict == "skipped"}
    facts = json.loads((data("recycling_paper") / "adapter_info.json").read_text())
    unknown = {name for name in ids if not facts.get(name)}
    assert {name for name, reasons in skipped.items() if "no_adapter" in reasons} == unknown
    explained = Counter(reason for name in skipped.keys() - unknown for reason in skipped[name])
    assert len(rows) - len(skipped) >= 950, explained
