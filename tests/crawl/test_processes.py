"""Fingerprints in processes: the rows of one process, and nothing is left of processes that die."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from multiprocessing import forkserver
from pathlib import Path

import pytest
from sqlalchemy import Engine

from catalog.database import make_engine
from catalog.database.opening import upgrade
from catalog.database.remeasurement import Reread, reread
from catalog.errors import UnreadableError, WeightsError
from catalog.files import BlobStore
from catalog.fingerprints import FingerprintPool, processes
from crawler.crawl.sharing import reading_weights
from tests import crawl_process
from tests.crawl.test_fingerprints import put
from tests.crawling import crawl, dump
from tests.hubs import lora_tensors
from tests.localhub import FaultHub
from tests.processes import send_signal, start_process, wait_for


@pytest.fixture(scope="module")
def hub(tmp_path_factory: pytest.TempPathFactory) -> Iterator[FaultHub]:
    """A Hub of five adapters, one of which has the rank at which a process dies."""
    root = tmp_path_factory.mktemp("processes") / "hub"
    for number, rank in enumerate((2, 2, crawl_process.DEADLY_RANK, 2, 4)):
        put(root, f"o/a{number}", lora_tensors(seed=number, r=rank), r=rank)
    with FaultHub(root) as running:
        yield running


@pytest.fixture(scope="module")
def expected(hub: FaultHub, tmp_path_factory: pytest.TempPathFactory) -> dict[str, list[str]]:
    """The rows of a crawl by one process."""
    data = tmp_path_factory.mktemp("one")
    engine = make_engine(f"sqlite:///{data / 'catalog.db'}")
    upgrade(engine)
    crawl(hub.url, engine, data, weights="keep")
    rows = dump(engine)
    engine.dispose()
    assert len(rows["fingerprint"]) == 5
    return rows


@pytest.fixture(autouse=True)
def _forked() -> None:
    """The server of the tests runs, so that no other is started here."""
    forkserver.ensure_running()


def test_two_processes_write_the_rows_of_one_and_a_dead_one_fails_its_file_alone(
    hub: FaultHub,
    engine: Engine,
    expected: dict[str, list[str]],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(processes, "measure_in_process", crawl_process.measure_or_die)
        report = crawl(hub.url, engine, tmp_path, weights="keep", processes=2)
    assert (report["status"], report["failed"], report["errors"]) == ("partial", 1, {"process": 1})
    assert len(dump(engine)["fingerprint"]) == 4
    again = crawl(hub.url, engine, tmp_path, weights="keep", processes=2)
    assert (again["status"], again["new"], again["unmeasured"]) == ("complete", 1, 0)
    assert dump(engine) == expected
    with engine.begin() as connection:
        connection.exec_driver_sql("DELETE FROM fingerprint")
    counts = reread(engine, BlobStore(tmp_path / "blobs"), lambda done, total: None, processes=2)
    assert counts == Reread(5, 0, 0)
    assert dump(engine) == expected


def test_four_processes_write_the_rows_of_one(
    hub: FaultHub, engine: Engine, expected: dict[str, list[str]], tmp_path: Path
) -> None:
    report = crawl(hub.url, engine, tmp_path, weights="stream", processes=4)
    assert (report["status"], report["unmeasured"]) == ("complete", 0)
    assert dump(engine) == expected


@pytest.mark.parametrize(
    ("number", "start"),
    [(signal.SIGKILL, processes._START), (signal.SIGTERM, "fork"), (signal.SIGINT, "fork")],
)
def test_no_process_outlives_the_one_that_started_it(number: int, start: str, tmp_path: Path) -> None:
    for name in ("said", "answer"):
        os.mkfifo(tmp_path / name)
    process = start_process(crawl_process.measure_and_wait, tmp_path, start)
    with (tmp_path / "said").open() as said:
        # What is forked has torch already, and not FAISS, which would not survive it.
        assert said.readline() == ("\n" if start == "spawn" else "torch\n")
        send_signal(process, number)
        if number != signal.SIGKILL:
            (tmp_path / "answer").write_text("the file is read")
        # The pipe ends with the process that writes into it.
        assert said.read() == ""
    assert wait_for(process) != 0


def test_what_a_library_raises_in_a_process_is_the_same_reason(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fall(*_: object) -> None:
        raise ZeroDivisionError

    monkeypatch.setattr(processes, "fingerprint", fall)
    with (
        pytest.raises(WeightsError, match="the values of x cannot be read: the parser ends with ZeroDiv"),
        reading_weights("the values of x"),
    ):
        processes.measure_in_process(tmp_path, None)  # type: ignore[arg-type]


def test_errors_of_the_file_come_back_from_a_process(tmp_path: Path) -> None:
    (tmp_path / "short").write_bytes(b"short")
    from catalog.adapters import parse_config

    with FingerprintPool(2) as pool, pytest.raises(WeightsError) as caught:
        pool.measure(tmp_path / "short", parse_config(b'{"peft_type": "LORA", "r": 2, "lora_alpha": 2}'))
    with FingerprintPool() as plain, pytest.raises(WeightsError) as here:
        plain.measure(tmp_path / "short", parse_config(b'{"peft_type": "LORA", "r": 2, "lora_alpha": 2}'))
    assert (str(caught.value), caught.value.kind) == (str(here.value), here.value.kind)
    assert not isinstance(caught.value, UnreadableError)
