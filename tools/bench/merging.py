"""Merges against PEFT and mergekit: time and peak memory as ratios, each run in a process of its own.

`python -m tools.bench.merging` generates adapters of a small Llama (hidden 1024, 8 layers) and of
Llama-3.1-8B's shapes. Seconds are processor time of one thread unless said, of PEFT without loading the base
or the adapters, of ours with reading and writing the files; memory is the rise of the resident set above its
size before the call (Linux). `--mergekit` and `--whole` are runs of their own: full models by mergekit, and
all 32 layers of the large shape with the curve of memory by members and layers, which takes 2 GB of disk.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from statistics import median
from typing import Any

from tools.bench.merge_cases import RANK, SMALL, LlamaWidths, build, large

SUMS = ("average", "concatenation")
# Cases that pass bytes on, measured in turn: what a page of a file costs changes from minute to minute.
ROUNDS = 3
PASSED_ON = (
    *("read", "copy", "hashed-copy"),
    *("ours:average", "folders:average", "ours:concatenation", "folders:concatenation"),
)
WIDE_ONCE = ("peft:linear", "peft:cat", "ours:svd")


def measure(
    place: Path,
    case: str,
    count: int,
    size: str = "small",
    layers: int = 8,
    threads: int = 1,
    cold: bool = False,
) -> dict[str, Any]:
    """One case in a process of its own; prints a row."""
    command = [sys.executable, "-m", "tools.bench.merge_cases", "--place", str(place), "--case", case]
    command += ["--count", str(count), "--size", size, "--layers", str(layers), *(["--cold"] if cold else [])]
    limits = {"OMP_NUM_THREADS": str(threads), "MKL_NUM_THREADS": str(threads)}
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True, env=os.environ | limits)
    facts: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    times = f"{facts['seconds']:>9.2f} s{facts['wall']:>9.2f} s wall"
    say(f"{case + (' (cold)' if cold else ''):<28}{count:>4}{times}{facts['mib']:>9.0f} MiB")
    return facts


def pool(place: Path, size: LlamaWidths, count: int, dtype: str) -> None:
    """Writes the adapters of a pool."""
    for n in range(count):
        build(place / "pool" / f"m{n:03}", size, n, dtype)


def small(count: int) -> None:
    """The small Llama against PEFT's own merges."""
    say(f"\nhidden 1024, 8 layers, {count} adapters of rank {RANK}, float32")
    with tempfile.TemporaryDirectory() as name:
        place = Path(name)
        pool(place, SMALL, count, "float32")
        peft = measure(place, "peft:svd", count)
        ratio("svd, PEFT over ours with the files", peft, measure(place, "ours:svd", count))
        ratio("svd, PEFT over ours in memory", peft, measure(place, "memory:svd", count))
        ratio(
            "cat, PEFT over ours",
            measure(place, "peft:cat", count),
            measure(place, "ours:concatenation", count),
        )
        for method in ("core-ties", "lora-lego", "tsv-m", "iso-c"):
            measure(place, f"ours:{method}", count)


def sums(count: int, layers: int) -> None:
    """Average and concatenation, whose results are as large as their inputs, against passing the bytes on."""
    for size, shape, members, dtype in (
        ("small", SMALL, count, "float32"),
        ("large", large(layers), max(count, 20), "bfloat16"),
    ):
        say(f"\nsums and what reading takes, {size} shape, {members} adapters of rank {RANK}, {dtype}")
        with tempfile.TemporaryDirectory() as name:
            pool(Path(name), shape, members, dtype)
            pass_on(Path(name), members, size, layers)


def pass_on(place: Path, count: int, size: str, layers: int) -> None:
    """Ratios of sums to reading, loading and copying the same files, from memory and from the disk."""
    for cold in (False, True):
        bare = {
            case: measure(place, case, count, size, layers, cold=cold) for case in ("read", "load", "copy")
        }
        for method in SUMS:
            facts = measure(place, f"ours:{method}", count, size, layers, cold=cold)
            clock = "wall" if cold else "seconds"
            times = ", ".join(f"{facts[clock] / bare[case][clock]:.1f}x {case}" for case in bare)
            say(f"  {method}{' from the disk, wall' if cold else ''}: {times}")


def shapes(count: int, layers: int) -> None:
    """Llama-3.1-8B's shapes: some layers, and memory that does not grow with them."""
    say(f"\nLlama-3.1-8B shapes, {count} adapters of rank {RANK}, bfloat16, {layers} layers")
    runs = []
    for depth in (max(1, layers // 4), layers):
        with tempfile.TemporaryDirectory() as name:
            place = Path(name)
            pool(place, large(depth), count, "bfloat16")
            runs.append(measure(place, "ours:svd", count, "large", depth))
    say(f"peak memory, {layers} layers over {max(1, layers // 4)}: {runs[1]['mib'] / runs[0]['mib']:.2f}")
    say(f"32 layers would take {runs[1]['seconds'] * 32 / layers:.1f} s")
    facts = measure(Path(), "weights", count, "large")
    say(f"a new weight vector on cached grams, 224 modules: {facts['seconds'] * 32:.1f} s")


def entrywise(count: int) -> None:
    """TIES of one module of 4096 x 4096."""
    say(f"\nTIES, one module of 4096 x 4096, {count} adapters of rank {RANK}")
    dense = measure(Path(), "module:peft", count)
    exact = measure(Path(), "module:exact", count)
    ratio("ties, PEFT over ours", dense, exact)
    sampled = measure(Path(), "module:sampled", count)
    say(f"norms: PEFT {dense['norm']:.4f}, exact {exact['norm']:.4f}, sampled {sampled['norm']:.4f}")
    measure(Path(), "module:truncated", count)


def against_mergekit(count: int) -> None:
    """Full models of the small Llama: ours, and those of mergekit, which folds every adapter first."""
    if importlib.util.find_spec("mergekit") is None:
        say("mergekit is not installed here; put it into a folder named by PYTHONPATH and run this again.")
        return
    say(f"\nmergekit, hidden 1024, 8 layers, {count} adapters of rank {RANK}, float32")
    with tempfile.TemporaryDirectory() as name:
        place = Path(name)
        pool(place, SMALL, count, "float32")
        both = measure(place, "mergekit:linear", count)
        linear = measure(place, "mergekit:linear", count)
        written = sum(path.stat().st_size for path in (place / "folded").rglob("*.safetensors"))
        say(f"  of it {both['seconds'] - linear['seconds']:.2f} s and {written / 1e9:.2f} GB are folding")
        ours = measure(place, "folded", count)
        ratio("average to a full model, mergekit over ours", both, ours)
        ratio("average, folded before, mergekit over ours", linear, ours)
        ratio("average, adapter to adapter", both, measure(place, "ours:average", count))
        say(f"  largest difference of a weight: {difference(place):.1e}")
        ties = measure(place, "mergekit:ties", count)
        ratio("ties, folded before, mergekit over ours", ties, measure(place, "ours:ties", count))


def beside(count: int, layers: int) -> None:
    """One table in one run: copying, PEFT, mergekit and ours on the same adapters.

    First at Llama-3.1-8B's widths, where mergekit needs the base model, too, then on the small Llama.
    mergekit's time is that of folding the adapters into copies of the base and adding those.
    """
    say(f"\nLlama-3.1-8B shapes, {layers} layers, 20 adapters of rank {RANK}, bfloat16")
    with tempfile.TemporaryDirectory() as name:
        place = Path(name)
        build(place / "pool" / "m000", large(layers), 0, "bfloat16")
        for n in range(1, 20):
            shutil.copytree(place / "pool" / "m000", place / "pool" / f"m{n:03}")
        rounds = [
            (case, measure(place, case, 20, "large", layers)) for _ in range(ROUNDS) for case in PASSED_ON
        ]
        once = [(case, measure(place, case, 20, "large", layers)) for case in WIDE_ONCE]
        print_table([*rounds, *once])
    say(f"\nhidden 1024, 8 layers, {count} adapters of rank {RANK}, float32")
    with tempfile.TemporaryDirectory() as name:
        place = Path(name)
        pool(place, SMALL, count, "float32")
        names = ["copy", "ours:average", "ours:concatenation", "ours:svd", "peft:cat", "peft:linear"]
        if importlib.util.find_spec("mergekit") is None:
            say("mergekit is left out: it is not installed here (a folder named by PYTHONPATH will do)")
        else:
            names += ["mergekit:linear", "folded"]
        print_table([(case, measure(place, case, count)) for case in (*names, "peft:svd")])


def print_table(facts: Sequence[tuple[str, dict[str, Any]]]) -> None:
    """Rows of a table in Markdown: medians, the range of several rounds, and the time in those of copying.

    Of the seconds the part in the kernel is told apart, most of which is pages of files.
    """
    cases: dict[str, list[dict[str, Any]]] = {}
    for case, row in facts:
        cases.setdefault(case, []).append(row)
    copy = median(row["seconds"] for row in cases["copy"])
    say("| case | seconds of CPU | of it system | times copying | MiB |\n|---|---:|---:|---:|---:|")
    for case, rows in cases.items():
        seconds, system, mib = (median(row[key] for row in rows) for key in ("seconds", "system", "mib"))
        times = sorted(row["seconds"] for row in rows)
        span = f" ({times[0]:.2f} to {times[-1]:.2f})" if len(rows) > 1 else ""
        say(f"| {case} | {seconds:.2f}{span} | {system:.2f} | {seconds / copy:.1f} | {mib:.0f} |")


def difference(place: Path) -> float:
    """The largest absolute difference between the averages of mergekit and ours, over all weights."""
    from safetensors import safe_open

    largest = 0.0
    for path in (place / "mergekit-linear").glob("*.safetensors"):
        with (
            safe_open(path, framework="pt") as theirs,
            safe_open(place / "ours-full" / "model.safetensors", framework="pt") as ours,
        ):
            for name in theirs.keys():  # noqa: SIM118  # a handle is no mapping
                largest = max(largest, float((theirs.get_tensor(name) - ours.get_tensor(name)).abs().max()))
    return largest


def whole() -> None:
    """A whole Llama-3.1-8B merge on two threads, and memory by members and by layers."""
    say(f"\nLlama-3.1-8B shapes, adapters of rank {RANK}, bfloat16, two threads")
    for layers, counts in ((32, (20,)), (16, (20,)), (8, (20,)), (2, (5, 20, 100))):
        with tempfile.TemporaryDirectory() as name:
            place = Path(name)
            pool(place, large(layers), max(counts), "bfloat16")
            for count in counts:
                say(f"{layers} layers")
                measure(place, "ours:svd", count, "large", layers, threads=2)
                measure(place, "ours:average", count, "large", layers, threads=2)


def ratio(name: str, left: dict[str, Any], right: dict[str, Any]) -> None:
    """Prints how many times longer the left one took, and how many times more memory."""
    memory = f"{left['mib'] / right['mib']:.1f}x" if min(left["mib"], right["mib"]) > 1 else "not compared"
    say(f"  {name}: time {left['seconds'] / right['seconds']:.1f}x, memory {memory}")


def say(line: str) -> None:
    """Writes a line at once."""
    sys.stdout.write(line + "\n")
    sys.stdout.flush()


def main(argv: Sequence[str] | None = None) -> None:
    """Measures the cases asked for and prints a table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument(
        "--what", choices=("all", "beside", "small", "sums", "shapes", "entries"), default="all"
    )
    parser.add_argument("--count", type=int, default=8)
    parser.add_argument("--layers", type=int, default=4, help="layers of the large shape; the model has 32")
    parser.add_argument("--mergekit", action="store_true", help="compare with mergekit alone")
    parser.add_argument("--whole", action="store_true", help="all layers of the large shape alone; minutes")
    arguments = parser.parse_args(argv)
    if arguments.mergekit or arguments.whole:
        if arguments.mergekit:
            against_mergekit(arguments.count)
        if arguments.whole:
            whole()
        return
    if arguments.what in ("all", "beside"):
        beside(arguments.count, arguments.layers)
    if arguments.what in ("all", "small"):
        small(arguments.count)
    if arguments.what in ("all", "sums"):
        sums(arguments.count, arguments.layers)
    if arguments.what in ("all", "shapes"):
        shapes(max(arguments.count, 20), arguments.layers)
    if arguments.what in ("all", "entries"):
        entrywise(max(arguments.count, 20))


if __name__ == "__main__":
    main()
