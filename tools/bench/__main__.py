"""`make bench`: every benchmark, or those that are named: `python -m tools.bench fingerprints index`.

Each prints one table with ratios of what one run measured; `python -m tools.bench.NAME --help` tells
the options of one.
"""

from __future__ import annotations

import importlib
import subprocess
import sys

NAMES = (
    "fingerprints",
    "index",
    "search",
    "select",
    "merging",
    "live",
    "reading",
    "generation",
    "wide",
    "crawl",
    "weights",
    "page",
)


def main(names: list[str]) -> int:
    """Runs the benchmarks one after the other, each in a process of its own; gives the worst exit code."""
    if unknown := sorted(set(names) - set(NAMES)):
        sys.stderr.write(f"There is no benchmark {unknown[0]}; there are {', '.join(NAMES)}.\n")
        return 2
    worst = 0
    for name in names or NAMES:
        title = (importlib.import_module(f"tools.bench.{name}").__doc__ or name).split("\n")[0]
        sys.stdout.write(f"\n== {name}: {title}\n")
        sys.stdout.flush()
        worst = max(
            worst, subprocess.run([sys.executable, "-m", f"tools.bench.{name}"], check=False).returncode
        )
    return worst


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
