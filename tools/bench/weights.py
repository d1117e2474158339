"""Crawls that read weights: processes against one, and the processor time of server, writer, fingerprints.

The adapters are generated: rank 16, all linear modules of Llama-3.1-8B, 84 MB with all 32 layers. The Hub is
the project's own, in a process of its own on this machine; a crawl of the real Hub does not have its share.
Wall times include the start of the processes, and on a busy machine its other work: the pace that kept files
would have on free cores is told by processor seconds, of one process over those of the start, then of the
longest of writer and processes.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

from tests.hubs import adapter_config, card, make_repo
from tools.bench.crawl import BASE, HUB, Run, measure_process, say, serve_hub
from tools.bench.fingerprints import LAYERS, generate_modules, write

# One crawl, or a measurement of the files that are kept; times of threads are added up.
WORK = """
import json, os, resource, sys, threading, time
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
import loradex
from catalog.adapters import parse_config
from catalog.errors import WeightsError
from catalog.files import blobs
from catalog.fingerprints import FingerprintPool, processes
work, data, count, weights = sys.argv[1:]
spent, lock = {"fingerprints": 0.0, "files": 0.0}, threading.Lock()
def timed(name, function):
    def call(*arguments, **keywords):
        began = time.thread_time()
        try:
            return function(*arguments, **keywords)
        finally:
            with lock:
                spent[name] += time.thread_time() - began
    return call
processes.measure_file = timed("fingerprints", processes.measure_file)
for name in ("write", "check", "flush"):
    setattr(blobs.BlobWriter, name, timed("files", getattr(blobs.BlobWriter, name)))
import torch
def cpu(who):
    usage = resource.getrusage(who)
    return usage.ru_utime + usage.ru_stime
# Seconds of living children and of those that they waited for: the server that processes are forked from.
def forked():
    seconds = 0.0
    for status in Path("/proc").glob("[0-9]*/stat"):
        try:
            fields = status.read_text().rpartition(")")[2].split()
        except OSError:
            continue
        if int(fields[1]) == os.getpid():
            seconds += sum(map(int, fields[11:15])) / os.sysconf("SC_CLK_TCK")
    return seconds
def start(pool):
    with suppress(WeightsError):
        pool.measure(Path("no such file"), parse_config(b'{"peft_type": "LORA", "r": 2, "lora_alpha": 2}'))
began, before = time.monotonic(), cpu(resource.RUSAGE_SELF)
if work == "start":
    with FingerprintPool(int(count)) as pool, ThreadPoolExecutor(int(count)) as threads:
        list(threads.map(start, [pool] * int(count)))
else:
    with loradex.open(data) as catalog:
        if work == "crawl":
            report = catalog.crawl(any_base=True, weights=weights, processes=int(count))
            assert report.status == "complete" and report.unmeasured == 0, report
        else:
            assert catalog.remeasure(processes=int(count)).unreadable == 0
wall, own = time.monotonic() - began, cpu(resource.RUSAGE_SELF) - before
children = cpu(resource.RUSAGE_CHILDREN) + forked()
print(json.dumps({"seconds": wall, "own": own, "children": children, **spent}))
"""
TICKS = os.sysconf("SC_CLK_TCK")


def build(root: Path, count: int, layers: int) -> None:
    """A Hub of so many repositories, each with an adapter of its own."""
    for number in range(count):
        config = adapter_config(
            base_model_name_or_path=BASE, r=16, lora_alpha=32, target_modules="all-linear"
        )
        files = {
            "adapter_config.json": json.dumps(config),
            "README.md": card(f"Adapter number {number}.", base_model=BASE),
        }
        folder = make_repo(root, f"owner/adapter{number}", files)
        write(folder / "adapter_model.safetensors", generate_modules(number, layers))


def run(work: str, url: str, data: Path, processes: int, weights: str = "stream") -> Run:
    """One crawl or measurement with so many processes."""
    words = (sys.executable, "-c", WORK, work, str(data), str(processes), weights)
    return measure_process(words, HF_ENDPOINT=url, OMP_NUM_THREADS="1", HF_HUB_DISABLE_TELEMETRY="1")


def fingerprints(data: Path) -> list[tuple[object, ...]]:
    """The fingerprints of a catalog, by the sha256 of their files."""
    import sqlite3

    with sqlite3.connect(data / "catalog.db") as database:
        return database.execute("SELECT * FROM fingerprint ORDER BY weights_digest").fetchall()


def forget_fingerprints(data: Path) -> None:
    """Removes all fingerprints from a catalog."""
    import sqlite3

    with sqlite3.connect(data / "catalog.db") as database:
        database.execute("DELETE FROM fingerprint")


def server_seconds() -> float:
    """Processor seconds of the children of this process that serve, as Linux counts them; they still run."""
    seconds = 0.0
    for status in Path("/proc").glob("[0-9]*/stat"):
        try:
            command = (status.parent / "cmdline").read_bytes()
            fields = status.read_text().rpartition(")")[2].split()
        except OSError:
            continue
        if int(fields[1]) == os.getpid() and HUB.encode() in command:
            seconds += (int(fields[11]) + int(fields[12])) / TICKS
    return seconds


def main(argv: Sequence[str]) -> None:
    """Measures kept files and whole crawls, and prints a table."""
    parser = argparse.ArgumentParser(prog="python -m tools.bench weights", description=__doc__)
    parser.add_argument("--adapters", type=int, default=24)
    parser.add_argument("--layers", type=int, default=LAYERS)
    parser.add_argument("--processes", type=int, nargs="+", default=[2])
    sizes = parser.parse_args(argv)
    with tempfile.TemporaryDirectory() as place:
        root, kept = Path(place, "hub"), Path(place, "kept")
        build(root, sizes.adapters, sizes.layers)
        with serve_hub(root) as url:
            run("crawl", url, kept, 1, "keep")
            say(f"{sizes.adapters} adapters; processor seconds each, wall seconds each")
            names = ("server", "writer", "files", "start", "fingerprints", "sum", "wall")
            say(f"{'':<28}" + "".join(f"{name:>13}" for name in names))
            costs: dict[tuple[str, int], dict[str, float]] = {}
            right = fingerprints(kept)
            for work in ("kept files", "whole crawl"):
                for processes in (1, *sizes.processes):
                    forget_fingerprints(kept)
                    before = server_seconds()
                    data = kept if work == "kept files" else Path(place, f"stream{processes}")
                    measured = run("crawl" if work == "whole crawl" else "reread", url, data, processes)
                    server = server_seconds() - before
                    begun = run("start", url, kept, processes) if processes > 1 else None
                    costs[work, processes] = cost_of(measured, begun, server)
                    cells = [costs[work, processes][name] / sizes.adapters for name in names]
                    say(f"{f'{work}, {processes}':<28}" + "".join(f"{cell:>13.3f}" for cell in cells))
                    assert fingerprints(data) == right
    for (work, processes), cost in costs.items():
        if processes > 1:
            one = costs[work, 1]
            ratio = f"{work}, {processes} processes against 1: {one['wall'] / cost['wall']:.2f}"
            if work == "kept files":
                longest = max(cost["writer"] + cost["files"], cost["fingerprints"] / processes)
                ratio += f"; on free cores {one['sum'] / (cost['start'] + longest):.2f}"
            say(ratio)


def cost_of(measured: Run, begun: Run | None, server: float) -> dict[str, float]:
    """Processor seconds of each part of a run, of all of them, and its wall seconds."""
    facts = measured.facts
    start = begun.facts["children"] if begun is not None else 0.0
    parts = {
        "server": server,
        "writer": facts["own"] - facts["fingerprints"] - facts["files"],
        "files": facts["files"],
        "start": start,
        "fingerprints": facts["children"] - start if begun is not None else facts["fingerprints"],
    }
    return parts | {"sum": sum(parts.values()), "wall": facts["seconds"]}


if __name__ == "__main__":
    main(sys.argv[1:])
