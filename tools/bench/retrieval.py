"""Choosing adapters by measured scores: nDCG@30 of the gain over the base, against samples spent.

Run as `python -m tools.bench.retrieval --data DIR [-o DIR]`. Every strategy sees the 100-sample scores of
960 adapters on the other tasks and the tasks' instructions; what it wants to know of the task itself it
buys, sample by sample. Test scores judge. `--proxy` judges tasks without test scores by their own 100
samples: everything that was ever tuned was tuned there.
"""

from __future__ import annotations

import argparse
import csv
import sys
from collections.abc import Sequence
from pathlib import Path

from catalog.errors import LoradexError
from catalog.pictures.canvas import save
from tools.published.claims import RAW
from tools.published.leaderboard import (
    BLIND,
    METRICS,
    RANDOM,
    STRATEGIES,
    Results,
    judge_all,
    spending_picture,
    strategies_picture,
    table,
)
from tools.published.tables import load


def write(results: Results, folder: Path, title: str) -> None:
    """The table, every task's numbers and two pictures into a folder."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "retrieval.md").write_text(table(results), encoding="utf-8")
    with (folder / "retrieval.csv").open("w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(["strategy", "task", "spent", *METRICS])
        for name, tasks in results.items():
            for task, row in tasks.items():
                writer.writerow([name, task, row["spent"], *(f"{row[metric]:.6f}" for metric in METRICS)])
    for suffix in ("svg", "png"):
        save(strategies_picture(results, title), folder / f"strategies.{suffix}", title)
        save(spending_picture(results, title), folder / f"samples.{suffix}", title)


def main(argv: Sequence[str] | None = None) -> int:
    """Runs every strategy on every task and prints the table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--data", type=Path, required=True, help="the folder of the published tables")
    parser.add_argument("-o", type=Path, dest="to", help="a folder for the table, a CSV and pictures")
    parser.add_argument("--repeats", type=int, default=3, help="draws of samples for a race (default 3)")
    parser.add_argument("--proxy", action="store_true", help="judge without test scores")
    parser.add_argument("--only", action="append", help="a strategy; may be given several times")
    options = parser.parse_args(argv)
    names = (RANDOM, BLIND, RAW, *(options.only or [strategy.name for strategy in STRATEGIES]))
    try:
        tasks = load(options.data, proxy=options.proxy)
    except LoradexError as error:
        sys.stderr.write(f"{error}\n")
        return 1
    strategies = [strategy for strategy in STRATEGIES if strategy.name in names]
    results = judge_all(
        tasks, strategies, repeats=options.repeats, done=lambda name: sys.stderr.write(f"{name}\n")
    )
    judged = "their own 100 samples" if options.proxy else "test scores"
    title = f"{len(tasks[0].values)} adapters, {len(tasks)} tasks judged by {judged}"
    sys.stdout.write(f"{title}\n\n{table(results)}")
    if options.to:
        write(results, options.to, title)
    return 0


if __name__ == "__main__":
    sys.exit(main())
