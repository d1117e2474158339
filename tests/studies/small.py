"""A study that fits into a test: a tiny base, two tasks, four adapters, and a file that uses everything."""

from __future__ import annotations

import os
import signal
import sys
import traceback
from pathlib import Path
from typing import NoReturn

from studies.run import run
from tests.merging.test_evaluate import tiny_adapter
from tests.merging.tiny import save_base, tiny_base, write_task
from tests.studies.grids import keys, make_study

ROWS = [(f"item {number}", "yes" if number % 3 else "no") for number in range(24)]
TEXT = """\
study: tiny
title: A tiny study
base: {base}
tasks: {{from: tasks, names: [halves, thirds], train: 4, valid: 2, test: 6}}
adapters: {{from: adapters}}
seeds: [0, 1]
pools:
  best: {{by: gradient, k: 2, samples: 3}}
  chance: {{by: random, k: 2}}
  noise: {{by: random, k: 2, control: random-each}}
methods:
  base: {{use: base}}
  new LoRA: {{use: train, rank: 2, steps: 2, batch: 2, learning_rates: [1e-3, 1e-2]}}
  one rate: {{use: train, rank: 2, steps: 2, batch: 2, learning_rate: 1e-2}}
  LEGO: {{use: merge, method: lora-lego, pools: [best], over: {{rank: [1, 2]}}}}
  average: {{use: merge, method: average}}
  both: {{use: ensemble, pools: [best]}}
  recycling: {{use: adapt, method: recycling, with: new LoRA, steps: 2, pools: [best, noise]}}
report:
  against: new LoRA
  claims:
    - {{claim: it helps, compare: recycling | best, with: new LoRA}}
"""


def make_world(folder: Path) -> Path:
    """The base, the tasks and the adapters in a folder, and the study's file, which is returned."""
    save_base(tiny_base(), folder / "base")
    write_task(folder / "tasks" / "thirds", ROWS)
    write_task(folder / "tasks" / "halves", [(word[::-1], target) for word, target in ROWS])
    for number in range(4):
        place = folder / "adapters" / f"a{number}"
        tiny_adapter(place, number, rank=1 + number % 2)
    (folder / "adapters" / "a0" / "training.json").write_text('{"task": "thirds"}')
    path = folder / "study.yaml"
    path.write_text(TEXT.format(base=folder / "base"))
    return path


def main() -> None:
    """`python -m tests.studies.small FILE OUT N…`: writes the keys of a study's cells; then carries it out in
    a process that is killed after N steps, and goes on in another; writes how each ended, and how many steps
    there are.
    """
    path, out = Path(sys.argv[1]), Path(sys.argv[2])
    sys.stdout.write(f"{sorted(keys(path, out).values())}\n")
    sys.stdout.flush()
    for most in map(int, sys.argv[3:]):
        child = os.fork()
        if not child:
            _run_and_die(path, out, most)
        code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
        sys.stdout.write(f"{code} {len(list((out / 'steps').glob('[0-9a-f]*')))}\n")


def _run_and_die(path: Path, out: Path, most: int) -> NoReturn:
    def progress(done: int, _total: int) -> None:
        if done >= most:
            os.kill(os.getpid(), signal.SIGKILL)

    try:
        run(*make_study(path, out), progress=progress)
    except Exception:
        traceback.print_exc()
    os._exit(1)


if __name__ == "__main__":
    main()
