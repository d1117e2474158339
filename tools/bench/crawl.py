"""Crawls: requests an adapter, adapters a second, and memory as the Hub grows.

The Hub is the project's own, in a process of its own and without limits; beside each crawl the same facts are
gathered with the plain client library, adapter by adapter, as a script would.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tests.hubs import adapter_config, card, lora_tensors, make_repo, safetensors_bytes

BASE = "acme/tiny"
PROGRAM = (sys.executable, "-m", "cli")
HUB = """
import sys
from pathlib import Path
from crawler.localhub import LocalHub
with LocalHub(Path(sys.argv[1])) as hub:
    print(hub.url, flush=True)
    sys.stdin.read()
"""
PLAIN = """
import json, sys, time
from huggingface_hub import HfApi, hf_hub_download
url, cache = sys.argv[1:]
api, began, seen = HfApi(endpoint=url, token=False), time.monotonic(), 0
for model in api.list_models(filter="peft"):
    commit = api.model_info(model.id, files_metadata=True).sha
    for name in ("adapter_config.json", "README.md"):
        hf_hub_download(model.id, name, revision=commit, endpoint=url, cache_dir=cache, token=False)
    api.parse_safetensors_file_metadata(model.id, "adapter_model.safetensors", revision=commit)
    seen += 1
print(json.dumps({"adapters": seen, "seconds": time.monotonic() - began}))
"""


@dataclass(frozen=True)
class Run:
    """One measured process: what it printed as JSON, its wall time in seconds, and its peak memory in MiB."""

    facts: dict[str, Any]
    seconds: float
    peak: float


def build(root: Path, count: int) -> None:
    """A Hub of `count` small repositories with one adapter each, no two alike."""
    for number in range(count):
        config = adapter_config(base_model_name_or_path=BASE, r=2, lora_alpha=4, lora_dropout=number / 1e6)
        files: dict[str, bytes | str] = {
            "adapter_config.json": json.dumps(config),
            "adapter_model.safetensors": safetensors_bytes(lora_tensors(r=2, seed=number)),
            "README.md": card(f"Adapter number {number}.", base_model=BASE),
        }
        make_repo(root, f"owner{number % 97}/adapter{number}", files)


@contextmanager
def serve_hub(root: Path) -> Iterator[str]:
    """The URL of a Hub in a process of its own: a child's peak memory is at least its parent's size."""
    server = subprocess.Popen(
        (sys.executable, "-c", HUB, str(root)), stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    assert server.stdin is not None
    assert server.stdout is not None
    try:
        yield server.stdout.readline().strip()
    finally:
        server.stdin.close()
        server.wait()


def measure_process(arguments: tuple[str, ...], **environment: str) -> Run:
    """Runs a process to its end; raises CalledProcessError where it fails."""
    began = time.monotonic()
    child = subprocess.Popen(arguments, stdout=subprocess.PIPE, text=True, env=os.environ | environment)
    assert child.stdout is not None
    printed = child.stdout.read()
    _, status, usage = os.wait4(child.pid, 0)
    child.returncode = os.waitstatus_to_exitcode(status)
    if child.returncode:
        raise subprocess.CalledProcessError(child.returncode, arguments)
    return Run(json.loads(printed), time.monotonic() - began, usage.ru_maxrss / 1024)


def crawl(url: str, data: Path) -> Run:
    """One crawl of everything, without weights, into the catalog of this folder."""
    arguments = (*PROGRAM, "--data", str(data), "crawl", "--any-base", "--weights", "headers", "--json")
    return measure_process(arguments, HF_ENDPOINT=url, HF_HUB_DISABLE_TELEMETRY="1")


def main(argv: Sequence[str]) -> None:
    """Measures a small and a large Hub and prints a table."""
    parser = argparse.ArgumentParser(prog="python -m tools.bench crawl", description=__doc__)
    parser.add_argument("--small", type=int, default=1000)
    parser.add_argument("--large", type=int, default=20_000)
    sizes = parser.parse_args(argv)
    runs: dict[str, Run] = {}
    with tempfile.TemporaryDirectory() as place:
        for name, count in (("small", sizes.small), ("large", sizes.large)):
            root = Path(place, name)
            build(root, count)
            with serve_hub(root) as url:
                runs[name] = crawl(url, Path(place, f"data-{name}"))
                runs[f"{name}, again"] = crawl(url, Path(place, f"data-{name}"))
                if name == "small":
                    script = (sys.executable, "-c", PLAIN, url, str(Path(place, "cache")))
                    runs["plain client"] = measure_process(
                        script, HF_HUB_DISABLE_XET="1", HF_HUB_DISABLE_TELEMETRY="1"
                    )
    report(runs)


def report(runs: dict[str, Run]) -> None:
    """Prints the table and the ratios."""
    columns = ("adapters", "seconds", "a second", "API", "resolver", "peak MiB")
    say(f"{'run':<16}" + "".join(f"{column:>10}" for column in columns))
    for name, run in runs.items():
        requests = run.facts.get("requests", {"api": "", "resolver": ""})
        cells = (
            str(adapters(run)),
            f"{run.facts['seconds']:.1f}",
            f"{rate(run):.1f}",
            str(requests["api"]),
            str(requests["resolver"]),
            f"{run.peak:.0f}",
        )
        say(f"{name:<16}" + "".join(f"{cell:>10}" for cell in cells))
    small, large = runs["small"], runs["large"]
    say(f"rate, small over the plain client  {rate(small) / rate(runs['plain client']):.2f}")
    say(f"rate, large over small             {rate(large) / rate(small):.2f}")
    say(f"peak memory, large over small      {large.peak / small.peak:.2f}")
    say(f"resolver requests an adapter       {small.facts['requests']['resolver'] / adapters(small):.3f}")


def adapters(run: Run) -> int:
    """How many adapters a run went through."""
    return int(run.facts["listed"] if "listed" in run.facts else run.facts["adapters"])


def rate(run: Run) -> float:
    """Adapters a second."""
    return adapters(run) / float(run.facts["seconds"])


def say(line: str) -> None:
    """Writes a line at once, so that a long run shows where it is."""
    sys.stdout.write(line + "\n")
    sys.stdout.flush()


if __name__ == "__main__":
    main(sys.argv[1:])
