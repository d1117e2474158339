"""Runs the commands in a folder of its own and gives what they printed and wrote, by name."""

from __future__ import annotations

import gc
import hashlib
import json
import os
import re
import shlex
import sqlite3
import subprocess
import sys
import traceback
import warnings
from collections.abc import Iterator, Mapping
from contextlib import closing, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tests.golden.commands import CATALOG, LAST, LEARNING, MERGES, POOLS, WRONG, GoldenCommand, Wrong
from tests.golden.compare import ERRORS, MACHINE, machine
from tests.golden.normalise import compact, file_line, normalise, without_wording
from tests.golden.world import ROOT, write_world

_TEXTS = (".json", ".jsonl", ".yaml", ".yml", ".txt", ".csv", ".sh")
# What a text file for people holds may change; that it is there may not.
_FOR_PEOPLE = (".md", ".html")
# Times, numbers of rows, digests of questions that hold the port of the Hub, and what triggers draw.
_PASSING = {
    *("token", "version"),
    *("id", "first_seen", "last_seen", "gone_at", "started_at", "finished_at", "seconds"),
    *("scope", "listing"),
}
_LEAST_REPEATED = 200


def records(folder: Path) -> Iterator[tuple[str, str]]:
    """Name and text of every record; `folder` is empty and holds the work afterwards.

    The process is changed (environment, folder, threads), so each call wants one of its own.
    """
    folder = folder.resolve()
    with _hub(folder / "hub") as url:
        _settle(folder, url)
        write_world(folder)
        requests: dict[str, str] = {}
        for command in (*CATALOG, *POOLS, *MERGES, *LEARNING, *LAST):
            yield command.name, _record(command, folder, requests)
        yield "tables", _tables(folder / "data" / "catalog.db")
        yield MACHINE, json.dumps(machine(), indent=1) + "\n"
        yield ERRORS, json.dumps([_failure(wrong, folder) for wrong in WRONG], indent=1) + "\n"


@contextmanager
def _hub(folder: Path) -> Iterator[str]:
    """The Hub's folder served by the program; the folder is filled later."""
    folder.mkdir()
    words = [sys.executable, "-m", "cli", "hub", "serve", str(folder), "--port", "0"]
    with subprocess.Popen(words, cwd=ROOT, stderr=subprocess.PIPE, text=True) as process:
        try:
            assert process.stderr is not None
            url = next(
                (hits for line in process.stderr if (hits := re.search(r"http://\S+:\d+", line))), None
            )
            assert url is not None, "the Hub did not start"
            yield url[0]
        finally:
            process.terminate()


def _settle(folder: Path, url: str) -> None:
    """One thread, few searches for unreachable objects, no foreign settings, the Hub at `url`, the folder."""
    gc.set_threshold(50_000, 20, 20)
    for name in list(os.environ):
        if name.startswith(("LORADEX_", "HF_", "HUGGING", "TRANSFORMERS_")):
            del os.environ[name]
    os.environ.update(HF_ENDPOINT=url, HF_HOME=str(folder / "hf"), HF_HUB_DISABLE_XET="1")
    os.environ.update(HF_HUB_DISABLE_TELEMETRY="1", HF_HUB_DISABLE_PROGRESS_BARS="1")
    os.chdir(folder)
    sys.path.insert(0, str(ROOT))
    warnings.simplefilter("ignore")
    import torch

    torch.set_num_threads(1)


@dataclass(frozen=True)
class Ended:
    """How a command ended; -1 is a bug, whose traceback stands on stderr."""

    exit_code: int
    stdout: str
    stderr: str


def _run(arguments: str) -> Ended:
    from click.testing import CliRunner

    from cli.main import loradex

    words = [path for word in shlex.split(arguments) for path in _expand_pattern(word)]
    if words[0] != "--data":
        words = ["--data", "data", *words]
    result = CliRunner().invoke(loradex, words, prog_name="loradex")
    if result.exc_info is not None and not isinstance(result.exception, SystemExit | None):
        sys.stderr.write(f"$ loradex {arguments}\n")
        traceback.print_exception(*result.exc_info)
        return Ended(-1, result.stdout, "traceback")
    return Ended(result.exit_code, result.stdout, result.stderr)


def _expand_pattern(word: str) -> list[str]:
    """The paths that a pattern with question marks stands for, else the word."""
    return sorted(map(str, Path().glob(word))) if "?" in word else [word]


def _record(command: GoldenCommand, folder: Path, requests: dict[str, str]) -> str:
    result = _run(command.arguments)
    text = without_wording(_normal(result.stdout, folder), command.wording)
    head = f"$ loradex {command.arguments}\nexit code {result.exit_code}\n"
    parts = [head, _once(text, f"stdout of {command.name}", requests) if command.printed else ""]
    for pattern in command.files:
        paths = sorted(path for path in folder.glob(pattern) if path.is_file())
        parts.extend(_file(path, folder, command.wording, requests) for path in paths)
    return "".join(parts)


def _once(text: str, name: str, requests: dict[str, str]) -> str:
    """The text in short, or where it was recorded before."""
    first = requests.setdefault(text, name)
    if first != name and len(text) > _LEAST_REPEATED:
        return f"as {first}\n"
    return compact(text)


def _file(path: Path, folder: Path, wording: tuple[str, ...], requests: dict[str, str]) -> str:
    name = path.relative_to(folder).as_posix()
    if path.suffix in _FOR_PEOPLE:
        return f"== {name}\n"
    if path.suffix not in _TEXTS:
        return f"== {file_line(path, name)}\n"
    text = without_wording(_normal(path.read_text(), folder), wording)
    end = "" if text.endswith("\n") else "\n== no line end\n"
    return f"== {name}\n{_once(text + end, name, requests)}"


def _failure(wrong: Wrong, folder: Path) -> dict[str, Any]:
    """What an error costs; its text is recorded for readers and not compared."""
    result = _run(wrong.arguments)
    text = _normal(result.stderr, folder)
    return {
        "name": wrong.name,
        "command": f"loradex {wrong.arguments}",
        "code": result.exit_code,
        "stdout": _normal(result.stdout, folder),
        "text": text.rstrip("\n").split("\n"),
    }


def _normal(text: str, folder: Path) -> str:
    return normalise(text, {str(folder): "FOLDER", str(ROOT): "ROOT"})


def _tables(file: Path) -> str:
    """The schema as SQLite holds it, and of each column of each table a digest of its values."""
    lines = []
    with closing(sqlite3.connect(file)) as connection:
        schema = connection.execute(
            "select name, type, sql from sqlite_master where sql is not null order by type, name"
        ).fetchall()
        for name, kind, sql in schema:
            lines.append(f"{kind} {name}: {hashlib.sha256(sql.encode()).hexdigest()[:16]}")
        for table in (name for name, kind, _sql in schema if kind == "table"):
            lines.extend(_columns(connection, table, file))
    return "\n".join(lines) + "\n"


def _columns(connection: sqlite3.Connection, table: str, file: Path) -> Iterator[str]:
    names = [row[1] for row in connection.execute(f'pragma table_info("{table}")')]
    for name in names:
        if name in _PASSING or name.endswith("_id"):
            yield f"{table}.{name}"
            continue
        values = sorted(
            _normal(repr(row[0]), file.parent)
            for row in connection.execute(f'select "{name}" from "{table}"')
        )
        digest = hashlib.sha256("\n".join(values).encode()).hexdigest()[:16]
        yield f"{table}.{name}: {len(values)} values {digest}"


def write(folder: Path, texts: Mapping[str, str]) -> None:
    """Replaces the recorded files in a folder by these."""
    folder.mkdir(parents=True, exist_ok=True)
    for old in folder.iterdir():
        old.unlink()
    for name, text in texts.items():
        (folder / (name if name in (ERRORS, MACHINE) else f"{name}.txt")).write_text(text)
