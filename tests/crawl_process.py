"""Work for processes of their own: crawls that are killed from outside or kill themselves, and upgrades."""

from __future__ import annotations

import os
import signal
import sys
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import loradex
from catalog.adapters import parse_config
from catalog.database import frontier, leases, make_engine, opening
from catalog.files.blobs import BlobStore
from catalog.fingerprints import processes
from cli.main import main
from cli.signals import set_up_signals
from tests.crawling import crawl

# The rank of the adapters at which a process dies.
DEADLY_RANK = 3


def crawl_pages(url: str, data: Path, page_limit: int = 1) -> None:
    """Crawls everything into the catalog of the folder."""
    engine = make_engine(f"sqlite:///{data / 'catalog.db'}")
    crawl(url, engine, data, hub={"page_limit": page_limit})
    engine.dispose()


def crawl_catalog(hub_url: str, url: str, data: Path, weights: str) -> None:
    """Crawls everything into the catalog at a URL; waits a minute for the Hub."""
    engine = make_engine(url)
    crawl(hub_url, engine, data, hub={"timeout": 60.0, "deadline": 60.0}, weights=weights)
    engine.dispose()


def crawl_and_die_in_a_page(url: str, data: Path, pages: int) -> None:
    """Is killed in the transaction of that listing page, after its rows were written."""
    write, left = frontier.add_page, [pages]

    def write_and_die(*arguments: Any) -> Any:
        written = write(*arguments)
        left[0] -= 1
        if not left[0]:
            os.kill(os.getpid(), signal.SIGKILL)
        return written

    frontier.add_page = write_and_die  # type: ignore[assignment]
    crawl_pages(url, data)


def crawl_and_die_before_a_rename(url: str, data: Path) -> None:
    """Is killed when the first file has been written and is about to get its name."""
    BlobStore._publish = lambda *_: os.kill(os.getpid(), signal.SIGKILL)  # type: ignore[method-assign]
    crawl(url, make_engine(f"sqlite:///{data / 'catalog.db'}"), data, weights="keep", any_base=True)


def crawl_and_wait_for_weights(words: tuple[str, ...], place: Connection) -> None:
    """Runs the program; sends where weights lie before they are read, until the other end is closed."""
    measure = processes.fingerprint

    def wait(path: Path, config: Any) -> Any:
        place.send(path)
        place.poll(None)
        return measure(path, config)

    processes.fingerprint = wait  # type: ignore[assignment]
    sys.argv = ["loradex", *words]
    main()


def measure_or_die(path: Path, config: Any) -> Any:
    """Measures a file, and is killed at one of DEADLY_RANK."""
    if config.rank == DEADLY_RANK:
        os.kill(os.getpid(), signal.SIGKILL)
    return processes.measure_file(path, config)


def measure_and_wait(folder: Path, start: str) -> None:
    """Lets processes measure; one says what it has imported in the pipe `said`, and waits for `answer`."""
    set_up_signals()
    processes._START = start
    processes.measure_in_process = _say_and_wait  # type: ignore[assignment]
    config = parse_config(b'{"peft_type": "LORA", "r": 2, "lora_alpha": 2}')
    with processes.FingerprintPool(2) as pool:
        pool.measure(folder, config)


def _say_and_wait(folder: Path, _: object) -> None:
    with (folder / "said").open("w") as said:
        said.write(" ".join(name for name in ("torch", "faiss") if name in sys.modules) + "\n")
        said.flush()
        (folder / "answer").read_text()


def upgrade_catalog(url: str) -> None:
    """Upgrades a catalog as `loradex db upgrade` does."""
    opening.upgrade(make_engine(url))


def work_for_crawl(url: str, data: Path, deadly_result: int = 0) -> None:
    """Reads weights for the crawl at work, one after the other; killed before that result is committed."""
    write, left = leases.finish, [deadly_result]

    def write_and_die(*arguments: Any) -> bool:
        written = write(*arguments)
        left[0] -= 1
        if not left[0]:
            os.kill(os.getpid(), signal.SIGKILL)
        return written

    leases.finish = write_and_die
    with loradex.open(data, url=url) as catalog:
        catalog.work_for_crawl(workers=1)
