"""While a crawl is at work others write to the catalog, and a second crawl says what the first is doing."""

from __future__ import annotations

import re
import signal
import threading
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import Engine

import loradex
from catalog.database import opening
from catalog.errors import CatalogBusyError, CatalogError, NotFoundError, UsageError
from tests.crawl.test_run import TINY, unlike
from tests.crawl_process import crawl_catalog
from tests.crawling import crawl, dump, end_lock_holders, silent, wait_for_lock
from tests.hubs import make_repo
from tests.localhub import FaultHub
from tests.localhub.faults import Callback, Fault
from tests.processes import send_signal, start_process, wait_for


@pytest.fixture
def gate() -> Iterator[threading.Event]:
    """Opened at the end of a test, so that no crawl waits for ever."""
    event = threading.Event()
    yield event
    event.set()


@pytest.fixture
def crawling(gate: threading.Event, engine: Engine, tmp_path: Path) -> Iterator[Future[dict[str, Any]]]:
    """A crawl of two repositories, held at the second; the first is in the catalog."""
    make_repo(tmp_path / "hub", "ann/one", unlike("ann/one"))
    with FaultHub(tmp_path / "hub") as hub, ThreadPoolExecutor(1) as thread:
        crawl(hub.url, engine, tmp_path)
        make_repo(tmp_path / "hub", "bob/two", unlike("bob/two"))
        arrived = threading.Event()
        held = Callback(lambda _: (arrived.set(), gate.wait(60)))
        hub.faults.append(Fault("GET /api/models/bob/two/tree", held))
        future = thread.submit(crawl, hub.url, engine, tmp_path)
        assert arrived.wait(60)
        yield future
        gate.set()


def test_pools_scores_and_names_are_written_during_a_crawl(
    crawling: Future[dict[str, Any]], gate: threading.Event, catalog_url: str, tmp_path: Path
) -> None:
    (tmp_path / "scores.csv").write_text("adapter,halves\nann/one,0.5\n")
    with loradex.open(tmp_path, url=catalog_url) as catalog:
        catalog.select("mine", by="random", k=1, rules="paper")
        assert catalog.import_scores(tmp_path / "scores.csv").rows == 1
        catalog.add_base_name(TINY, "me/copy")
        assert not crawling.done()
        gate.set()
        assert crawling.result(60)["status"] == "complete"
        assert [row.pool for row in catalog.pools()] == ["mine"]
        assert catalog.remove_pools("mine") == 1
        assert catalog.status().adapters == 2


def test_a_second_crawl_says_what_the_first_is_doing(
    crawling: Future[dict[str, Any]], gate: threading.Event, engine: Engine, catalog_url: str, tmp_path: Path
) -> None:
    says = re.compile(r"is crawled by \S+@\S+, process \d+, since \S+ \S+ UTC, reading, 1 of 2 repositories")
    with pytest.raises(CatalogBusyError, match=says):
        crawl("http://127.0.0.1:9", engine, tmp_path)
    with loradex.open(tmp_path, url=catalog_url) as catalog, pytest.raises(CatalogBusyError, match=says):
        catalog.upgrade()
    gate.set()
    assert crawling.result(60)["status"] == "complete"
    with opening.writer_lock(engine), pytest.raises(CatalogBusyError, match="another process is writing"):
        crawl("http://127.0.0.1:9", engine, tmp_path)


def test_a_crawl_that_lost_its_lock_writes_nothing_more(
    crawling: Future[dict[str, Any]], gate: threading.Event, engine: Engine
) -> None:
    if engine.dialect.name == "sqlite":
        pytest.skip("the lock of a file cannot be lost")
    before = dump(engine)
    end_lock_holders(engine)
    gate.set()
    with pytest.raises(CatalogError, match="held the lock of the catalog was lost"):
        crawling.result(60)
    assert dump(engine) == before


@pytest.fixture
def killed(engine: Engine, catalog_url: str, tmp_path: Path) -> Iterator[tuple[FaultHub, int]]:
    """A Hub of two repositories, and the number of the process that was killed when it had crawled one."""
    for name in ("ann/one", "bob/two"):
        make_repo(tmp_path / "hub", name, unlike(name))
    with FaultHub(tmp_path / "hub") as hub:
        hub.faults.append(
            Fault("GET /api/models/ann/one/tree", Callback(lambda _: send_signal(process, signal.SIGKILL)))
        )
        process = start_process(crawl_catalog, hub.url, catalog_url, tmp_path / "killed", "headers")
        number = process.pid
        assert number is not None
        assert wait_for(process) == -signal.SIGKILL
        hub.faults.clear()
        wait_for_lock(engine)
        yield hub, number


def test_a_crawl_after_one_that_was_killed_says_so_and_goes_on(
    killed: tuple[FaultHub, int], engine: Engine, tmp_path: Path
) -> None:
    hub, number = killed
    progress, later = silent(), silent()
    report = crawl(hub.url, engine, tmp_path, progress=progress)
    assert (report["status"], report["new"]) == ("complete", 2)
    announced = f"Crawling {hub.url} for adapters of every base model"
    first, *notes = [call.args[0] for call in progress.note.call_args_list]  # type: ignore[attr-defined]
    assert first == announced
    says = (
        rf"the crawl by \S+@\S+, process {number}, since .* UTC, reading, \d of 2 repositories, did not end"
    )
    assert [bool(re.match(says, note)) for note in notes[:1]] == [True]
    assert notes[1].startswith("continuing the crawl")
    crawl(hub.url, engine, tmp_path, progress=later)
    later.note.assert_called_once_with(announced)  # type: ignore[attr-defined]


def test_the_lock_of_another_command_is_no_killed_crawl(
    killed: tuple[FaultHub, int], engine: Engine, catalog_url: str, tmp_path: Path
) -> None:
    with opening.writer_lock(engine):
        with pytest.raises(CatalogBusyError, match="another process is writing"):
            crawl("http://127.0.0.1:9", engine, tmp_path)
        refused = UsageError if engine.dialect.name == "sqlite" else NotFoundError
        with loradex.open(tmp_path, url=catalog_url) as catalog, pytest.raises(refused):
            catalog.work_for_crawl()


@pytest.mark.parametrize(("weights", "advice"), [("stream", "loradex crawl worker"), ("headers", "ended$")])
def test_only_a_crawl_that_shares_its_weights_is_joined(
    weights: str, advice: str, gate: threading.Event, engine: Engine, tmp_path: Path
) -> None:
    make_repo(tmp_path / "hub", "ann/one", unlike("ann/one"))
    arrived = threading.Event()
    held = Fault("GET /api/models/ann/one/tree", Callback(lambda _: (arrived.set(), gate.wait(60))))
    if engine.dialect.name == "sqlite":
        advice = "ended$"
    with FaultHub(tmp_path / "hub", faults=[held]) as hub, ThreadPoolExecutor(1) as thread:
        patience = {"timeout": 60.0, "deadline": 60.0}
        first = thread.submit(crawl, hub.url, engine, tmp_path, hub=patience, weights=weights)
        assert arrived.wait(60)
        with pytest.raises(CatalogBusyError, match=advice):
            crawl(hub.url, engine, tmp_path)
        gate.set()
        assert first.result(60)["status"] == "complete"


def test_a_command_that_writes_notices_that_the_schema_changed(
    catalog_url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Between the look at the schema and the first row another program may have upgraded it."""
    monkeypatch.setattr(opening, "check", lambda engine: monkeypatch.setattr(opening, "head", lambda: "9999"))
    with (
        loradex.open(tmp_path, url=catalog_url) as catalog,
        pytest.raises(loradex.errors.SchemaVersionError, match="has just changed"),
    ):
        catalog.add_base_name(TINY, "me/copy")
