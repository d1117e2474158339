"""`python -m tools.generated_hub N`: a Hub of N generated repositories, made when they are asked for.

Each follows from its number alone: an adapter of rank 2 with a card, a config and weights of `--layers`
layers. They are served over the Hub's protocol until interrupted; `RateLimit` allows a million requests in
five minutes. With `--measure`, the Hub is crawled by `loradex crawl --weights headers`, and twice again;
printed are memory and rows as the crawl goes on, adapters a second, bytes of the database an adapter, and the
later crawls.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import sqlite3
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime, timedelta
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from crawler.localhub import serve_app
from tests.hubs import adapter_config, card, lora_tensors, safetensors_bytes

BASE = "acme/generated"
LIMIT = 1_000_000
# Rows of the table that a measurement prints.
MARKS = 10
RATES = {
    "RateLimit": f'"api";r={LIMIT};t=300',
    "RateLimit-Policy": f'"fixed window";"api";q={LIMIT};w=300',
}
NEWEST = datetime(2026, 1, 1, tzinfo=UTC)
WORDS = np.array(
    [f"{a}{b}{c}" for a in ("ka", "lo", "mi", "ru") for b in ("na", "te", "vo") for c in "slnrt"]
)
FILES = ("README.md", "adapter_config.json", "adapter_model.safetensors")


class GeneratedHub:
    """The endpoints that a crawl uses, over repositories that are made when they are asked for."""

    def __init__(self, count: int, layers: int) -> None:
        self._count, self._layers = count, layers
        self._files = lru_cache(maxsize=256)(self._generate)

    def app(self) -> Starlette:
        """The application."""
        repository = "/api/models/{owner}/{name}"
        return Starlette(
            routes=[
                Route("/api/models", self.listing),
                Route(repository, self.detail),
                Route(f"{repository}/tree/{{revision}}", self.tree),
                Route("/{owner}/{name}/resolve/{revision}/{path}", self.resolve),
            ]
        )

    def listing(self, request: Request) -> Response:
        """A page of the repositories, the newest first; other tags than `peft` have none."""
        query = request.query_params
        first = int(query.get("cursor", "0"))
        end = min(first + min(int(query.get("limit", "1000")), 1000), self._count)
        if query.get("filter") != "peft":
            return _json([])
        more = request.url.include_query_params(cursor=end)
        link = {"Link": f'<{more}>; rel="next"'} if end < self._count else {}
        return _json([self._row(number) for number in range(first, end)], link)

    def detail(self, request: Request) -> Response:
        """One repository."""
        return _json(self._row(_number(request)))

    def tree(self, request: Request) -> Response:
        """Its files with their hashes."""
        return _json([_entry(path, content) for path, content in self._files(_number(request)).items()])

    def resolve(self, request: Request) -> Response:
        """The bytes of a file, or a part of them."""
        number = _number(request)
        content = self._files(number)[request.path_params["path"]]
        headers = {"X-Repo-Commit": _commit(number), "ETag": f'"{hashlib.sha1(content).hexdigest()}"'}  # noqa: S324
        first, dash, last = request.headers.get("range", "").removeprefix("bytes=").partition("-")
        if not dash:
            return Response(content, headers=headers | RATES)
        end = min(int(last) if last else len(content) - 1, len(content) - 1)
        headers["Content-Range"] = f"bytes {first}-{end}/{len(content)}"
        return Response(content[int(first) : end + 1], 206, headers | RATES)

    def _row(self, number: int) -> dict[str, Any]:
        changed = (NEWEST - timedelta(minutes=number)).isoformat(timespec="milliseconds")
        return {
            "_id": f"{number:024x}",
            "id": _name(number),
            "sha": _commit(number),
            "createdAt": changed.replace("+00:00", "Z"),
            "lastModified": changed.replace("+00:00", "Z"),
            "disabled": False,
            "gated": False,
            "private": False,
            "downloads": number % 1000,
            "likes": number % 7,
            "library_name": "peft",
            "tags": ["peft", "safetensors", f"base_model:adapter:{BASE}", "license:mit"],
            "siblings": [{"rfilename": path} for path in FILES],
        }

    def _generate(self, number: int) -> Mapping[str, bytes]:
        draw = np.random.default_rng(number)
        text = " ".join(draw.choice(WORDS, 120))
        config = adapter_config(base_model_name_or_path=BASE, r=2, lora_dropout=number / 1e9)
        tensors = lora_tensors(layers=self._layers, hidden=16, r=2, seed=number)
        contents = (
            card(f"# Adapter {number}\n\n{text}\n", base_model=BASE, license="mit").encode(),
            json.dumps(config, indent=2).encode(),
            safetensors_bytes(tensors, {"number": str(number)}),
        )
        return dict(zip(FILES, contents, strict=True))


def _name(number: int) -> str:
    return f"owner{number % 9973}/adapter{number}"


def _number(request: Request) -> int:
    return int(request.path_params["name"].removeprefix("adapter"))


def _commit(number: int) -> str:
    return f"{number:040x}"


def _entry(path: str, content: bytes) -> dict[str, Any]:
    blob = hashlib.sha1(b"blob %d\0" % len(content) + content)  # noqa: S324 - the name that git gives
    entry: dict[str, Any] = {"type": "file", "oid": blob.hexdigest(), "size": len(content), "path": path}
    if path.endswith(".safetensors"):
        sha256 = hashlib.sha256(content).hexdigest()
        entry["lfs"] = {"oid": sha256, "size": len(content), "pointerSize": 134}
    return entry


def _json(value: Any, headers: Mapping[str, str] | None = None) -> Response:
    return Response(json.dumps(value), headers=RATES | dict(headers or {}), media_type="application/json")


def measure(count: int, layers: int, workers: int) -> None:
    """Crawls the Hub twice, the Hub in a process of its own, and prints what that took."""
    server = subprocess.Popen(
        (sys.executable, "-m", "tools.generated_hub", str(count), "--layers", str(layers), "--port", "0"),
        stdout=subprocess.PIPE,
        text=True,
    )
    assert server.stdout is not None
    try:
        url = server.stdout.readline().strip()
        with tempfile.TemporaryDirectory() as place:
            data = Path(place)
            say(
                f"{'part':>6}{'adapters':>10}{'seconds':>9}{'a second':>10}{'MiB':>7}{'bytes an adapter':>18}"
            )
            first = crawl(url, data, workers, [count * part // MARKS for part in range(1, MARKS + 1)])
            size = sum(file.stat().st_size for file in data.glob("catalog.db*"))
            say(f"database                 {size / 1e6:.0f} MB, {size / count:,.0f} bytes an adapter")
            second = crawl(url, data, workers, [])
            say(f"second crawl             {second['seconds']:.1f} s, {second['requests']} requests")
            full = crawl(url, data, workers, [], "--full")
            say(f"second crawl, --full     {full['seconds']:.1f} s, {full['requests']} requests")
            assert (first["new"], full["unchanged"]) == (count, count)
    finally:
        server.terminate()
        server.wait()


def crawl(url: str, data: Path, workers: int, marks: list[int], *more: str) -> dict[str, Any]:
    """One crawl; prints a row when so many adapters are in the catalog. Its report."""
    words = ("-q", "crawl", "--any-base", "--weights", "headers", "--json", "--workers", str(workers), *more)
    environment = os.environ | {"HF_ENDPOINT": url, "HF_HUB_DISABLE_TELEMETRY": "1"}
    began, last = time.monotonic(), (0, time.monotonic())
    child = subprocess.Popen(
        (sys.executable, "-m", "cli", "--data", str(data), *words),
        stdout=subprocess.PIPE,
        text=True,
        env=environment,
    )
    while marks and child.poll() is None:
        time.sleep(0.5)
        rows, now = adapters(data / "catalog.db"), time.monotonic()
        if rows >= marks[0]:
            mark = marks.pop(0)
            size = sum(file.stat().st_size for file in data.glob("catalog.db*"))
            cells = (f"{mark:>16}", f"{now - began:>9.0f}", f"{(rows - last[0]) / (now - last[1]):>10.1f}")
            say("".join((*cells, f"{memory(child.pid):>7.0f}", f"{size / rows:>18,.0f}")))
            last = rows, now
    assert child.stdout is not None
    printed = child.stdout.read()
    assert child.wait() == 0, printed
    report: dict[str, Any] = json.loads(printed)
    return report


def adapters(file: Path) -> int:
    """The number of adapters that a crawl has written."""
    try:
        with sqlite3.connect(f"file:{file}?mode=ro", uri=True) as database:
            return int(database.execute("SELECT coalesce(max(id), 0) FROM adapter").fetchone()[0])
    except sqlite3.OperationalError:
        return 0


def memory(process: int) -> float:
    """The resident memory of a process in MiB; on Linux."""
    lines = Path(f"/proc/{process}/status").read_text().splitlines()
    return next((int(line.split()[1]) / 1024 for line in lines if line.startswith("VmRSS:")), 0.0)


def say(line: str) -> None:
    """Writes a line at once, so that a long run shows where it is."""
    sys.stdout.write(line + "\n")
    sys.stdout.flush()


def main(argv: Sequence[str]) -> None:
    """Serves, or measures."""
    parser = argparse.ArgumentParser(prog="python -m tools.generated_hub", description=__doc__)
    parser.add_argument("count", metavar="N", type=int)
    parser.add_argument("--layers", type=int, default=32)
    parser.add_argument("--port", type=int, default=8000, help="0 takes any free port")
    parser.add_argument("--measure", action="store_true")
    parser.add_argument("--workers", type=int, default=4)
    options = parser.parse_args(argv)
    if options.measure:
        measure(options.count, options.layers, options.workers)
    else:
        serve_app(GeneratedHub(options.count, options.layers).app(), "127.0.0.1", options.port, say)


if __name__ == "__main__":
    main(sys.argv[1:])
