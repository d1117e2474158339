"""A study that fits into a test: a tiny base, two tasks, four adapters, and a file that uses everything."""

from __future__ import annotations

import sys
from pathlib import Path

from studies.design import Study
from studies.file import StudyFile, read_study
from studies.grid import Grid, grid
from studies.run import run
from tests.merging.test_evaluate import tiny_adapter
from tests.merging.tiny import save_base, tiny_base, write_task

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


def make_study(path: Path, out: Path) -> tuple[StudyFile, Grid]:
    """A file of `make_world` read, and its grid with the work in `out`."""
    file = read_study(str(path))
    assert isinstance(file.study, Study)
    return file, grid(file.study, file.folder, out)


def main() -> None:
    """`python -m tests.studies.small FILE OUT N`: carries out a study and is killed after N steps."""
    import os
    import signal

    path, out, most = Path(sys.argv[1]), Path(sys.argv[2]), int(sys.argv[3])

    def progress(done: int, _total: int) -> None:
        if done >= most:
            os.kill(os.getpid(), signal.SIGKILL)

    run(*make_study(path, out), progress=progress)


if __name__ == "__main__":
    main()
