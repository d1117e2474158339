"""Weights read by several processes: the rows of one, nothing read twice, nothing lost with a process."""

from __future__ import annotations

import json
import pickle
import re
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor, wait
from contextlib import nullcontext
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import psutil
import pytest
from huggingface_hub.utils import RateLimitInfo
from sqlalchemy import Engine, select, text, update
from sqlalchemy.orm import Session

import loradex
from catalog.database import Crawl, WeightsItem, leases, make_engine
from catalog.database.opening import upgrade
from catalog.errors import NotFoundError, ProcessLostError, StorageError, UsageError, WeightsError
from catalog.files import temporary_store
from catalog.fingerprints import FingerprintPool
from catalog.settings import Settings
from crawler.crawl import sharing, workers
from crawler.crawl.ledger import CatalogLedger
from crawler.hub import Hub, HubSettings, RemoteFile
from crawler.hub.budget import DRAW, WINDOW, SharedBudget, WaitCancelledError
from tests.crawl.test_fingerprints import put
from tests.crawl_process import work_for_crawl
from tests.crawling import crawl, dump
from tests.hubs import lora_tensors
from tests.localhub import FaultHub
from tests.localhub.faults import Callback, Corrupt, Fault
from tests.processes import send_signal, start_process, wait_for

COUNT = 6
# Where a worker is killed: when it asks for that file, or before its result is committed.
KILLS = [(2, 0), (0, 2)]
TREE = "GET /api/models/.*/tree"
# The whole of a weights file; its header is asked for by a range.
WEIGHTS = "GET /o/.*safetensors"


@pytest.fixture(params=[pytest.param("postgres", marks=pytest.mark.postgres)])
def backend(request: pytest.FixtureRequest) -> str:
    """The database that several programs crawl into."""
    return str(request.param)


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a Hub; two of its adapters have the same weights under other scalings."""
    root = tmp_path_factory.mktemp("shared") / "hub"
    for number in range(COUNT):
        put(root, f"o/a{number}", lora_tensors(seed=number))
    put(root, "o/b0", lora_tensors(seed=0), alpha_pattern={"q_proj": 32})
    return root


@pytest.fixture
def hub(root: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[FaultHub]:
    """That Hub, which programs and catalogs of this process ask."""
    with FaultHub(root) as running:
        monkeypatch.setenv("HF_ENDPOINT", running.url)
        yield running


@pytest.fixture(scope="module")
def expected(root: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, list[str]]:
    """The rows of a crawl by one process into SQLite."""
    data = tmp_path_factory.mktemp("one")
    engine = make_engine(f"sqlite:///{data / 'catalog.db'}")
    upgrade(engine)
    with FaultHub(root) as hub:
        crawl(hub.url, engine, data, weights="stream")
    rows = dump(engine)
    engine.dispose()
    assert len(rows["fingerprint"]) == COUNT + 1
    return rows


@pytest.fixture
def idle(monkeypatch: pytest.MonkeyPatch) -> None:
    """The process that crawls reads no weights itself."""
    work = sharing.Worker.work

    def wait(self: sharing.Worker, crawl_id: int, is_over: Callable[[], bool]) -> int:
        if threading.current_thread().name.startswith("share"):
            while not (is_over() or self.stop.is_set()):
                self.changed.wait(sharing.PAUSE)
            return 0
        return work(self, crawl_id, is_over)

    monkeypatch.setattr(sharing.Worker, "work", wait)


@pytest.fixture
def crawling(hub: FaultHub, engine: Engine, tmp_path: Path) -> Iterator[Future[dict[str, Any]]]:
    """A crawl that has listed the Hub, and goes on when there are workers: `hub.faults` is empty then."""
    arrived, gate = threading.Event(), threading.Event()
    hub.faults.append(Fault(TREE, Callback(lambda _: (arrived.set(), gate.wait(60)))))
    with ThreadPoolExecutor(1) as thread:
        patience = {"timeout": 60.0, "deadline": 60.0}
        future = thread.submit(crawl, hub.url, engine, tmp_path / "crawl", hub=patience, weights="stream")
        future.open = gate.set  # type: ignore[attr-defined]
        assert arrived.wait(60)
        yield future
        gate.set()
        while not future.done():
            # A failed test left files that no worker reads.
            with engine.begin() as connection:
                connection.execute(update(WeightsItem).values(state="failed", result=None))
            wait([future], timeout=0.1)


def downloads(hub: FaultHub) -> list[str]:
    """The weights files that were fetched whole."""
    return [r.path for r in hub.log if r.path.endswith(".safetensors") and "range" not in r.headers]


def test_a_crawl_alone_writes_the_rows_of_one_process(
    hub: FaultHub, engine: Engine, expected: dict[str, list[str]], tmp_path: Path
) -> None:
    report = crawl(hub.url, engine, tmp_path, weights="stream")
    assert (report["status"], report["new"], report["unmeasured"]) == ("complete", COUNT + 1, 0)
    assert dump(engine) == expected
    with Session(engine) as session:
        assert session.query(WeightsItem).count() == 0


@pytest.mark.usefixtures("idle")
def test_two_workers_read_all_weights(
    crawling: Any,
    hub: FaultHub,
    engine: Engine,
    catalog_url: str,
    expected: dict[str, list[str]],
    tmp_path: Path,
) -> None:
    with ThreadPoolExecutor(2) as threads:
        catalogs = [loradex.open(tmp_path / f"worker{number}", url=catalog_url) for number in range(2)]
        reports = [threads.submit(catalog.work_for_crawl, workers=1) for catalog in catalogs]
        crawling.open()
        assert crawling.result(60)["status"] == "complete"
        read = sum(report.result(60).read for report in reports)
    assert dump(engine) == expected
    # The one with two patterns of scalings is read for each.
    assert read == len(downloads(hub)) == COUNT + 1
    with loradex.open(tmp_path, url=catalog_url) as catalog, pytest.raises(NotFoundError, match="No crawl"):
        catalog.work_for_crawl()


def kill_worker_of_ray() -> None:
    """Kills one of the workers that Ray has started below this process."""
    processes = psutil.Process().children(recursive=True)
    worker = next(process for process in processes if process.cmdline()[:1] == ["ray::_work_if_any"])
    worker.kill()
    # What it has begun to lease is leased by now.
    worker.wait(60)


def end_leases(engine: Engine) -> None:
    """Lets a minute pass for all files that are leased."""
    with engine.begin() as connection:
        past = text("now() - interval '1 second'")
        connection.execute(update(WeightsItem).where(WeightsItem.lease.is_not(None)).values(until=past))


@pytest.mark.usefixtures("idle")
@pytest.mark.parametrize("killed", [False, True])
def test_two_workers_of_ray_read_all_weights(
    killed: bool,
    crawling: Any,
    hub: FaultHub,
    engine: Engine,
    catalog_url: str,
    expected: dict[str, list[str]],
    tmp_path: Path,
) -> None:
    pytest.importorskip("ray")
    # A worker has one download at a time, so two at once are of two workers.
    both, met = threading.Barrier(2), []

    def meet(request: Any) -> None:
        if "range" not in request.headers and len(met) < 2:
            met.append(request.path)
            if both.wait(60) == 0 and killed:
                kill_worker_of_ray()
                end_leases(engine)

    hub.faults.append(Fault(WEIGHTS, Callback(meet)))
    words = ("--data", str(tmp_path / "data"), "--catalog", catalog_url, "crawl", "worker", "--json")
    program = (sys.executable, "-W", "ignore", "-m", "cli", *words, "--workers", "1", "--ray", "2")
    crawling.open()
    result = subprocess.run(program, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    # Ray starts a worker again in place of the killed one, which had read nothing.
    assert json.loads(result.stdout) == {"read": COUNT + 1}
    assert crawling.result(60)["status"] == "complete"
    assert dump(engine) == expected
    assert not list((tmp_path / "data").glob(".loradex-*"))


class RayOfThreads(SimpleNamespace):
    """The calls of Ray that send out work, carried out by threads of this process; arguments are copied."""

    exceptions = SimpleNamespace(RayError=RuntimeError)

    def __init__(self, threads: ThreadPoolExecutor) -> None:
        super().__init__(threads=threads)

    def nodes(self) -> list[dict[str, Any]]:
        """A machine of two cores, and one that has left."""
        return [{"Alive": True, "Resources": {"CPU": 2.0}}, {"Alive": False, "Resources": {"CPU": 64.0}}]

    def remote(self, **_options: Any) -> Callable[[Callable[..., Any]], Any]:
        """A task that is sent out by its method `remote`."""
        return lambda function: SimpleNamespace(
            remote=lambda argument: self.threads.submit(function, pickle.loads(pickle.dumps(argument)))
        )

    def get(self, reference: Future[Any]) -> Any:
        """The result; an error as Ray wraps it, with its cause."""
        try:
            return reference.result(60)
        except Exception as error:
            wrapped = RuntimeError("a traceback")
            wrapped.cause = error  # type: ignore[attr-defined]
            raise wrapped from error


@pytest.fixture
def ray(monkeypatch: pytest.MonkeyPatch) -> Iterator[RayOfThreads]:
    """A cluster whose workers are threads."""
    with ThreadPoolExecutor(2) as threads:
        cluster = RayOfThreads(threads)
        monkeypatch.setattr(workers, "connect_ray", lambda *_: nullcontext(cluster))
        monkeypatch.setattr(workers, "require_extra", lambda *_: None)
        yield cluster


def _failing(outcomes: Iterator[Exception | None]) -> Callable[..., int]:
    """`shared_crawl`, which raises each of these in turn that is an error."""

    def find(*arguments: Any) -> int:
        if (error := next(outcomes)) is not None:
            raise error
        return sharing.shared_crawl(*arguments)

    return find


@pytest.mark.usefixtures("idle", "ray")
def test_of_workers_that_ray_starts_one_fails_and_one_is_late(
    crawling: Any,
    hub: FaultHub,
    engine: Engine,
    catalog_url: str,
    expected: dict[str, list[str]],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    outcomes = iter(
        (None, StorageError("The disk is full."), NotFoundError("No crawl is at work."), None, None)
    )
    monkeypatch.setattr(workers, "shared_crawl", _failing(outcomes))
    crawling.open()
    with loradex.open(tmp_path / "data", url=catalog_url) as catalog:
        assert catalog.work_for_crawl(workers=1, ray=3).read == COUNT + 1
        assert crawling.result(60)["status"] == "complete"
        assert dump(engine) == expected
    # One that is started in place of a killed worker removes what that left, also where it comes late.
    left = tmp_path / "data" / ".loradex-killed"
    left.mkdir(parents=True, exist_ok=True)
    (left / "lock").touch()
    settings = Settings.make(data=tmp_path / "data", catalog_url=catalog_url)
    late = workers.WorkerSettings(settings, HubSettings(hub.url), threads=1, processes=1)
    assert workers._work_if_any(late).read == 0
    assert not left.exists()


@pytest.mark.usefixtures("idle", "ray")
def test_what_ray_cannot_start_is_said(
    crawling: Any, catalog_url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with loradex.open(tmp_path / "data", url=catalog_url) as catalog:
        with pytest.raises(UsageError, match="has 3 cores; use fewer `processes`"):
            catalog.work_for_crawl(ray=2, processes=3)
        full = StorageError("The disk is full.")
        monkeypatch.setattr(workers, "shared_crawl", _failing(iter((None, full, full))))
        with pytest.raises(StorageError, match="The disk is full"):
            catalog.work_for_crawl(ray=2)
        monkeypatch.setattr(workers, "shared_crawl", _failing(iter((None, OSError("gone")))))
        with pytest.raises(ProcessLostError, match="ended before the crawl: a traceback"):
            catalog.work_for_crawl(ray=1)
    assert not crawling.done()


@pytest.mark.usefixtures("idle")
@pytest.mark.parametrize(("turn", "result"), KILLS)
def test_what_a_killed_worker_leased_is_read_by_another(
    turn: int,
    result: int,
    crawling: Any,
    hub: FaultHub,
    engine: Engine,
    catalog_url: str,
    expected: dict[str, list[str]],
    tmp_path: Path,
) -> None:
    asked = 0

    def kill(request: Any) -> None:
        nonlocal asked
        complete = "range" not in request.headers
        asked += complete
        if complete and asked == turn:
            send_signal(process, signal.SIGKILL)

    hub.faults.append(Fault(WEIGHTS, Callback(kill)))
    words = (catalog_url, tmp_path / "killed", result)
    process = start_process(work_for_crawl, *words, output=tmp_path / "said")
    crawling.open()
    assert wait_for(process) == -signal.SIGKILL
    hub.faults.clear()
    end_leases(engine)
    with loradex.open(tmp_path / "second", url=catalog_url) as catalog:
        assert catalog.work_for_crawl().read >= COUNT + 1 - max(turn, result)
    assert crawling.result(60)["status"] == "complete"
    assert dump(engine) == expected
    assert not list((tmp_path / "second").glob(".loradex-*"))


@pytest.mark.usefixtures("idle")
def test_a_file_at_which_three_workers_died_is_failed_and_tried_again(
    crawling: Any, hub: FaultHub, engine: Engine, expected: dict[str, list[str]], tmp_path: Path
) -> None:
    crawling.open()
    died = 0
    while not crawling.done():
        with Session(engine) as session, session.begin():
            crawl_at_work = leases.crawl_at_work(session)
            if crawl_at_work is not None:
                died += len(leases.claim(session, crawl_at_work.id, "dead", 8))
            past = text("now() - interval '1 second'")
            session.execute(update(WeightsItem).where(WeightsItem.state == "leased").values(until=past))
    report = crawling.result()
    assert (report["status"], report["errors"]) == ("partial", {"process": COUNT + 1})
    assert died >= 3 * COUNT


def leased(engine: Engine) -> list[tuple[str, int]]:
    """The state and the tries of each file that is not read."""
    with Session(engine) as session:
        query = select(WeightsItem.state, WeightsItem.tries).where(WeightsItem.state != "done")
        return [tuple(row) for row in session.execute(query)]


@pytest.mark.usefixtures("idle")
def test_a_worker_that_is_stopped_returns_its_files_untried(
    crawling: Any,
    hub: FaultHub,
    engine: Engine,
    catalog_url: str,
    expected: dict[str, list[str]],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    with Session(engine) as session:
        crawl_id = session.scalars(select(Crawl.id)).one()
    crawling.open()
    for _ in range(leases.MOST_TRIES + 1):
        stop = threading.Event()

        def stop_reading(*_: Any, stop: threading.Event = stop) -> None:
            stop.set()
            raise WaitCancelledError("stopped while waiting")

        with (
            monkeypatch.context() as patched,
            Hub(HubSettings(hub.url), stop=stop) as client,
            temporary_store(tmp_path) as store,
            FingerprintPool(1) as fingerprints,
        ):
            patched.setattr(sharing, "read_weights", stop_reading)
            worker = sharing.Worker(engine, client, store, fingerprints, 2, stop)
            assert worker.work(crawl_id, lambda: False) == 0
        assert set(leased(engine)) == {("pending", 0)}
    with loradex.open(tmp_path / "second", url=catalog_url) as catalog:
        assert catalog.work_for_crawl().read == COUNT + 1
    assert crawling.result(60)["status"] == "complete"
    assert dump(engine) == expected


def test_a_crawl_that_is_stopped_leaves_no_lease_to_wait_for(
    hub: FaultHub, engine: Engine, expected: dict[str, list[str]], tmp_path: Path
) -> None:
    main, interrupted = threading.main_thread().ident, threading.Event()
    assert main is not None

    def interrupt(request: Any) -> None:
        if "range" not in request.headers and not interrupted.is_set():
            interrupted.set()
            signal.pthread_kill(main, signal.SIGINT)

    hub.faults.append(Fault(WEIGHTS, Callback(interrupt)))
    with pytest.raises(KeyboardInterrupt):
        crawl(hub.url, engine, tmp_path, weights="stream")
    hub.faults.clear()
    assert {("pending", 0)} >= set(leased(engine))
    assert crawl(hub.url, engine, tmp_path, weights="stream")["status"] == "complete"
    assert dump(engine) == expected


def test_the_result_of_a_lost_lease_is_not_written(engine: Engine, hub: FaultHub, tmp_path: Path) -> None:
    crawl(hub.url, engine, tmp_path, weights="headers")
    with Session(engine) as session, session.begin():
        session.execute(text("UPDATE crawl SET state = 'running'"))
        crawl_id = session.scalar(text("SELECT id FROM crawl"))
        leases.publish(session, crawl_id, "a" * 64, {"name": "x"})
        assert [row.digest for row in leases.claim(session, crawl_id, "mine", 5)] == ["a" * 64]
        assert leases.claim(session, crawl_id, "yours", 5) == []
        assert not leases.finish(session, crawl_id, "a" * 64, "yours", b"")
        assert leases.give_back(session, crawl_id, "a" * 64, "mine", b"busy")
        assert leases.settled(session, crawl_id, ["a" * 64]) == {}
        leases.claim(session, crawl_id, "yours", 5)
        assert leases.finish(session, crawl_id, "a" * 64, "yours", b"read")
        leases.publish(session, crawl_id, "a" * 64, {"name": "x"})
        assert leases.settled(session, crawl_id, ["a" * 64]) == {"a" * 64: b"read"}
        leases.publish(session, crawl_id, "a" * 64, {"name": "x", "config": "another"})
        assert leases.settled(session, crawl_id, ["a" * 64]) == {}


def test_a_file_that_is_leased_while_it_is_offered_again_is_read_again(
    engine: Engine, hub: FaultHub, tmp_path: Path
) -> None:
    """What an interrupted crawl offered for one config is leased just as the next crawl offers another."""
    crawl(hub.url, engine, tmp_path, weights="headers")
    digest = "a" * 64
    with Session(engine) as session, session.begin():
        crawl_id = session.scalar(text("SELECT id FROM crawl")) or 0
        leases.publish(session, crawl_id, digest, {"config": "old"})

    def publish() -> None:
        with Session(engine) as session, session.begin():
            leases.publish(session, crawl_id, digest, {"config": "new"})

    waiting = text(
        "SELECT 1 FROM pg_stat_activity WHERE datname = current_database() AND wait_event_type = 'Lock'"
    )
    with ThreadPoolExecutor(1) as thread, Session(engine) as worker:
        assert [row.task for row in leases.claim(worker, crawl_id, "mine", 1)] == [{"config": "old"}]
        published = thread.submit(publish)
        with engine.connect().execution_options(isolation_level="AUTOCOMMIT") as observer:
            while not (published.done() or observer.scalar(waiting)):
                pass
        worker.commit()
        published.result(60)
        assert not leases.finish(worker, crawl_id, digest, "mine", b"of the old config")
        assert leases.settled(worker, crawl_id, [digest]) == {}
        assert [row.task for row in leases.claim(worker, crawl_id, "mine", 1)] == [{"config": "new"}]


def test_a_worker_that_claims_a_file_again_writes_what_the_newest_task_gave(
    engine: Engine, hub: FaultHub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two threads of one worker have one file, which lies in the store until the first has read it."""
    crawl(hub.url, engine, tmp_path, weights="headers")
    digest, claim, finish = "a" * 64, leases.claim, leases.finish
    old, new = (
        sharing.WeightsTask("o/a0", "c" * 40, RemoteFile("x.safetensors", 1, None, digest), config)
        for config in (b"old", b"new")
    )
    claimed, written = threading.Event(), {old.config: threading.Event(), new.config: threading.Event()}
    read_in_full: list[bytes] = []

    def publish(task: sharing.WeightsTask) -> int:
        with Session(engine) as session, session.begin():
            crawl_id = session.scalar(text("SELECT id FROM crawl")) or 0
            leases.publish(session, crawl_id, digest, task.as_json())
            return crawl_id

    def read(task: sharing.WeightsTask, *_: Any) -> bytes:
        if task == old:
            publish(new)
            assert claimed.wait(60)
        else:
            assert read_in_full == [old.config]
            assert written[old.config].wait(60)
        read_in_full.append(task.config)
        return task.config

    def lease(session: Session, *arguments: Any) -> Any:
        rows = claim(session, *arguments)
        if any(row.task == new.as_json() for row in rows):
            claimed.set()
        return rows

    def write(session: Session, *arguments: Any) -> bool:
        is_written = finish(session, *arguments)
        written[arguments[-1]].set()
        return is_written

    monkeypatch.setattr(sharing, "read_weights", read)
    monkeypatch.setattr(sharing, "_pack", lambda content: content)
    monkeypatch.setattr(leases, "claim", lease)
    monkeypatch.setattr(leases, "finish", write)
    crawl_id = publish(old)
    with (
        Hub(HubSettings(hub.url)) as client,
        temporary_store(tmp_path) as store,
        FingerprintPool(1) as fingerprints,
    ):
        worker = sharing.Worker(engine, client, store, fingerprints, 2, threading.Event())
        assert worker.work(crawl_id, written[new.config].is_set) == 1
    with Session(engine) as session:
        assert leases.settled(session, crawl_id, [digest]) == {digest: b"new"}


def test_errors_of_a_file_are_the_same_reasons(root: Path, engine: Engine, tmp_path: Path) -> None:
    """Wrong bytes, found by a worker, are a reason against the adapter and no failure of the crawl."""
    rows = {}
    lite = make_engine(f"sqlite:///{tmp_path / 'catalog.db'}")
    upgrade(lite)
    for name, target in (("one", lite), ("shared", engine)):
        with FaultHub(root, faults=[Fault("GET /o/a1/.*safetensors", Corrupt(950))]) as hub:
            report = crawl(hub.url, target, tmp_path / name, weights="stream")
            assert (report["status"], report["reasons"].get("integrity")) == ("complete", 1)
        rows[name] = dump(target)
    lite.dispose()
    assert rows["one"] == rows["shared"]


def test_an_error_is_restored_with_its_attributes() -> None:
    future: Future[Any] = Future()
    sharing._resolve(future, sharing._pack_error(WeightsError("unreadable", "it cannot be read")))
    error = future.exception()
    assert isinstance(error, WeightsError)
    assert (str(error), error.kind) == ("it cannot be read", "unreadable")
    fault: Future[Any] = Future()
    sharing._resolve(fault, sharing._pack_error(ZeroDivisionError("x")))
    assert re.match("ZeroDivisionError: x", str(fault.exception()))


def test_processes_draw_of_one_budget_and_return_what_they_did_not_send(engine: Engine) -> None:
    settings = HubSettings("https://hub.example", token="hf_x")
    one, two = (SharedBudget(CatalogLedger(engine, settings)) for _ in range(2))
    ledger = CatalogLedger(engine, settings)
    for budget in (one, two, one):
        assert budget.acquire("api") == 0
    usable = 900  # nine tenths of the 1,000 of a free account
    granted = ledger.draw("api", usable, None)
    assert (granted.count, granted.wait) == (usable - 2 * DRAW, 0.0)
    refused = ledger.draw("api", 1, None)
    assert refused.count == 0
    assert 0 < refused.wait <= WINDOW
    one.close()
    again = ledger.draw("api", usable, None)
    assert (again.count, again.wait) == (DRAW - 2, 0.0)
    # What one process hears of the server counts for all.
    two.observe("resolver", RateLimitInfo("resolver", 12, 100, 100, 300))
    two.acquire("resolver")
    assert CatalogLedger(engine, settings).draw("resolver", 50, None).count == 0
    other = CatalogLedger(engine, HubSettings("https://hub.example", token="hf_y"))
    assert other.draw("api", DRAW, None).count == DRAW
    with engine.connect() as connection:
        assert "hf_x" not in str(connection.execute(text("SELECT * FROM request_budget")).all())


def test_what_is_not_shared_is_refused(engine: Engine, catalog_url: str, tmp_path: Path) -> None:
    lite = make_engine(f"sqlite:///{tmp_path / 'catalog.db'}")
    upgrade(lite)
    lite.dispose()
    said: list[loradex.ProgressEvent] = []
    with loradex.open(tmp_path) as catalog, pytest.raises(UsageError, match="PostgreSQL"):
        catalog.work_for_crawl(progress=said.append)
    assert said == []
