"""`make bench`: requests an adapter, adapters a second, and memory as the Hub grows.

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
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from crawler.localhub import LocalHub
from tests.hubs import adapter_config, card, lora_tensors, make_repo, safetensors_bytes

PROGRAM = (sys.executable, "-m", "cli")
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

    found: dict[str, Any]
    seconds: float
    peak: float


def build(root: Path, count: int) -> None:
    """A Hub of `count` small repositories with one adapter each, no two alike."""
    for number in range(count):
        tensors = lora_tensors(layers=2, hidden=16, rank=2, targets=("q_proj", "v_proj"), seed=number)
        files = {
            "adapter_config.json": json.dumps(adapter_config(r=2, lora_alpha=4, lora_dropout=number / 1e6)),
            "adapter_model.safetensors": safetensors_bytes(tensors),
            "README.md": card(f"Adapter number {number}."),
        }
        make_repo(root, f"owner{number % 97}/adapter{number}", files)


def measured(arguments: tuple[str, ...], **environment: str) -> Run:
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
    return measured(arguments, HF_ENDPOINT=url, HF_HUB_DISABLE_TELEMETRY="1")


def main() -> None:
    """Measures a small and a large Hub and prints a table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--small", type=int, default=1000)
    parser.add_argument("--large", type=int, default=20_000)
    sizes = parser.parse_args()
    runs: dict[str, Run] = {}
    with tempfile.TemporaryDirectory() as place:
        for name, count in (("small", sizes.small), ("large", sizes.large)):
            root = Path(place, name)
            build(root, count)
            with LocalHub(root) as hub:
                runs[name] = crawl(hub.url, Path(place, f"data-{name}"))
                runs[f"{name}, again"] = crawl(hub.url, Path(place, f"data-{name}"))
                if name == "small":
                    script = (sys.executable, "-c", PLAIN, hub.url, str(Path(place, "cache")))
                    runs["plain client"] = measured(
                        script, HF_HUB_DISABLE_XET="1", HF_HUB_DISABLE_TELEMETRY="1"
                    )
    report(runs)


def report(runs: dict[str, Run]) -> None:
    """Prints the table and the ratios."""
    print(
        f"{'run':<16}{'adapters':>10}{'seconds':>10}{'a second':>10}{'API':>8}{'resolver':>10}{'peak MiB':>10}"
    )  # noqa: T201
    for name, run in runs.items():
        requests = run.found.get("requests", {"api": "", "resolver": ""})
        adapters, seconds = run.found.get("listed", run.found.get("adapters")), run.found["seconds"]
        print(  # noqa: T201
            f"{name:<16}{adapters:>10}{seconds:>10.1f}{adapters / seconds:>10.1f}"
            f"{requests['api']:>8}{requests['resolver']:>10}{run.peak:>10.0f}"
        )
    small, large, plain = runs["small"], runs["large"], runs["plain client"]
    rate = small.found["listed"] / small.found["seconds"]
    print(f"rate over the plain client's   {rate / (plain.found['adapters'] / plain.found['seconds']):.2f}")  # noqa: T201
    print(f"peak memory, large over small  {large.peak / small.peak:.2f}")  # noqa: T201
    print(f"resolver requests an adapter   {small.found['requests']['resolver'] / small.found['listed']:.3f}")  # noqa: T201


if __name__ == "__main__":
    main()
