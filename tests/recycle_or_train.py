"""Recycle or train, in small: SmolLM2-135M-Instruct and the 39 adapters of ../shared/data/zoo.

`python -m tests.recycle_or_train --log FILE`. For each task and seed, 100 training examples (80 to learn
from, 20 to choose by) and 100 test examples: the base, a new LoRA at one rate and with a sweep, merges of the
pool, the recycling paper's method with and without the new LoRA, and its controls. The pool is the first K by
gradient; adapters trained on the task itself are in no pool. Every score is a line of the log, so that a run
that was stopped goes on; --report prints the table of what is there.
"""

from __future__ import annotations

import argparse
import json
import math
import random
import statistics
import sys
import tempfile
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from functools import cached_property
from pathlib import Path

from merging.adapt import adapt
from merging.controls import stand_ins
from merging.course import Recipe
from merging.evaluate import Measured, measure
from merging.gradient import exact_scores
from merging.live import LiveStack
from merging.members import Member, load_member
from merging.merge import merge
from merging.model import BaseModel, load_base
from merging.tasks import Task, budget, draw, find_task
from merging.train import Settings, default_rates, train
from tests.shared_data import SHARED

BASE = "HuggingFaceTB/SmolLM2-135M-Instruct"
TASKS = ("amazon_reviews", "cola", "snips", "sst2", "tweet_irony", "comve", "sick_nli", "tweet_sentiment")
K = 8
STEPS = 30
RANK = 8
TEST = 100


class Cell:
    """One task and seed; what several methods need is made once."""

    def __init__(
        self, base: BaseModel, task: Task, seed: int, zoo: Mapping[str, Member], scratch: Path
    ) -> None:
        self.base, self.task, self.seed, self.scratch = base, task, seed, scratch
        self.budget = budget(task, 100, seed=seed)
        self.test = draw(task, "test", TEST)
        self.others = {name: one for name, one in zoo.items() if name.split("--")[0] != task.name}

    @cached_property
    def pool(self) -> list[Member]:
        """The first K by gradient, per norm."""
        scores = exact_scores(self.base, self.task, self.budget.train[:40], list(self.others.values()))
        order = sorted(zip(self.others, scores, strict=True), key=lambda pair: (-pair[1], pair[0]))
        return [self.others[name] for name, _ in order[:K]]

    @cached_property
    def chance(self) -> list[Member]:
        """K drawn by the seed."""
        names = random.Random(f"{self.task.name}:{self.seed}").sample(sorted(self.others), K)
        return [self.others[name] for name in names]

    def trained(self, swept: bool) -> Member:
        """A new LoRA at the middle of the default rates, or with all four."""
        out = self.scratch / f"{self.task.name}-{self.seed}-{'swept' if swept else 'one'}"
        if not (out / "train.json").is_file():
            recipe = Recipe(STEPS)
            rates = default_rates(Settings(RANK, RANK, "all-linear", "lora", 0.0, "bfloat16", recipe))
            chosen = rates if swept else rates[1:2]
            train(
                self.base,
                self.task,
                self.budget,
                out,
                rank=RANK,
                learning_rates=chosen,
                steps=STEPS,
                seed=self.seed,
            )
        return load_member(out, name="new LoRA")

    def alone(self, member: Member) -> Measured:
        """The score of one adapter."""
        live = LiveStack(self.base.model, [member])
        with live.dense(live.scales_of([1.0])):
            return measure(self.base, self.task, self.test)

    def merged(self, method: str, **given: object) -> Measured:
        """The score of a merge of the pool."""
        with tempfile.TemporaryDirectory() as place:
            out = Path(place) / "merged"
            merge(self.pool, method, out, base=BASE, **given)  # type: ignore[arg-type]
            return self.alone(load_member(out))

    def adapted(self, members: Sequence[Member], method: str = "recycling", target: bool = False) -> Measured:
        """The score of an adaptive merge, with the swept LoRA first where `target` says so."""
        done = adapt(
            self.base,
            members,
            self.task,
            self.budget,
            method,
            target=self.trained(True) if target else None,
            steps=STEPS,
            seed=self.seed,
        )
        with done.applied():
            return measure(self.base, self.task, self.test)

    def random_parameters(self) -> list[Member]:
        """Stand-ins of the pool with random parameters of its spread."""
        place = self.scratch / f"{self.task.name}-{self.seed}-random"
        return list(stand_ins(self.pool, "random-pooled", place, self.seed))


METHODS: Mapping[str, Callable[[Cell], Measured]] = {
    "base": lambda cell: measure(cell.base, cell.task, cell.test),
    "new LoRA, one rate": lambda cell: cell.alone(cell.trained(False)),
    "new LoRA, swept": lambda cell: cell.alone(cell.trained(True)),
    "best by gradient alone": lambda cell: cell.alone(cell.pool[0]),
    "average": lambda cell: cell.merged("average"),
    "TIES": lambda cell: cell.merged("ties", rank=32),
    "LoRA-LEGO": lambda cell: cell.merged("lora-lego"),
    "recycling": lambda cell: cell.adapted(cell.pool),
    "recycling, random members": lambda cell: cell.adapted(cell.chance),
    "recycling, random parameters": lambda cell: cell.adapted(cell.random_parameters()),
    "recycling + new LoRA": lambda cell: cell.adapted(cell.pool, target=True),
    "recycling + new LoRA, random members": lambda cell: cell.adapted(cell.chance, target=True),
    "recycling + new LoRA, random parameters": lambda cell: cell.adapted(
        cell.random_parameters(), target=True
    ),
    "new LoRA rescaled": lambda cell: cell.adapted([], "target-rescaled", target=True),
}


def main() -> None:
    """Runs what the log lacks, or prints the table of what it holds."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--log", type=Path, required=True)
    parser.add_argument("--bases", type=Path, default=Path("data/bases"))
    parser.add_argument("--scratch", type=Path, default=Path(tempfile.gettempdir()) / "recycle-or-train")
    parser.add_argument("--tasks", nargs="*", default=TASKS)
    parser.add_argument("--seeds", nargs="*", type=int, default=(0, 1, 2))
    parser.add_argument("--report", action="store_true")
    given = parser.parse_args()
    if not given.report:
        _run(given)
    sys.stdout.write(report(_rows(given.log)))


def _run(given: argparse.Namespace) -> None:
    assert SHARED is not None, "the folder ../shared is not there"
    zoo = {
        folder.name: load_member(folder)
        for folder in sorted((SHARED / "data" / "zoo").iterdir())
        if (folder / "adapter_config.json").is_file()
    }
    base = load_base(BASE, bases=given.bases)
    done = {(row["task"], row["seed"], row["method"]) for row in _rows(given.log)}
    given.scratch.mkdir(parents=True, exist_ok=True)
    for seed in given.seeds:
        for name in given.tasks:
            cell = Cell(base, find_task(name, SHARED / "data" / "tasks"), seed, zoo, given.scratch)
            for method, score in METHODS.items():
                if (name, seed, method) not in done:
                    found = asdict(score(cell))
                    with given.log.open("a", encoding="utf-8") as file:
                        file.write(json.dumps({"task": name, "seed": seed, "method": method, **found}) + "\n")
                    sys.stderr.write(f"{name} {seed} {method} {found['value']:.3f} {found['loss']:.3f}\n")


def _rows(log: Path) -> list[dict[str, object]]:
    return [json.loads(line) for line in log.read_text().splitlines()] if log.exists() else []


def report(rows: Sequence[Mapping[str, object]]) -> str:
    """For each method the mean over tasks and seeds, its standard error, and against the swept LoRA the mean
    paired difference with its standard error; of the cells in which every method was measured.
    """
    values: dict[tuple[object, object], dict[object, float]] = defaultdict(dict)
    for row in rows:
        values[row["task"], row["seed"]][row["method"]] = float(str(row["value"]))
    whole = [cell for cell in values.values() if len(cell) == len(METHODS)]
    tasks = sorted({str(task) for (task, _), cell in values.items() if len(cell) == len(METHODS)})
    lines = [f"{len(whole)} cells of {len(tasks)} tasks: {', '.join(tasks)}", ""]
    lines += ["| method | accuracy | against the new LoRA, swept |", "|---|---|---|"]
    for method in METHODS if whole else ():
        mine = [cell[method] for cell in whole]
        gaps = [cell[method] - cell["new LoRA, swept"] for cell in whole]
        lines.append(f"| {method} | {_mean(mine)} | {_mean(gaps, '+')} |")
    return "\n".join(lines) + "\n"


def _mean(values: Sequence[float], sign: str = "") -> str:
    error = statistics.stdev(values) / math.sqrt(len(values)) if len(values) > 1 else math.nan
    return f"{statistics.fmean(values):{sign}.3f} ± {error:.3f}"


if __name__ == "__main__":
    main()
