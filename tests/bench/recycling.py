"""The published scores of 960 adapters of Llama-3.1-8B-Instruct (r-three/realistic-adaptive-merging, MIT),
and the game that the benchmark plays with them: a column is hidden, and samples of it are bought.
"""

from __future__ import annotations

import csv
import zlib
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import yaml
from numpy.typing import NDArray

from catalog.score_files import read_scores
from catalog.scores import ScoreMatrix, score_matrix

Floats = NDArray[np.float64]

MEASURED, TESTED, BASE = "scores_100_samples.csv", "scores_test*.csv", "zero_shot_performance.csv"
# Left out, as in the leaderboard that the results are compared with.
LEFT_OUT = {"twitter_complaints"}
_MOST_SAMPLES = 100


@dataclass(frozen=True)
class Task:
    """A task to rank for: what a ranker may see of it, what samples of it say, and how it is judged.

    `visible` holds nothing of the task's own column. `column` (adapters,) is what measuring gives in the end,
    of `samples` samples. `values` (adapters,) are the scores that judge, NaN where there are none.
    """

    name: str
    visible: ScoreMatrix
    texts: dict[str, str]
    column: Floats
    samples: int
    values: Floats
    base: float
    binomial: bool = False

    @property
    def gains(self) -> Floats:
        """max(score - base, 0) of each adapter."""
        return np.maximum(self.values - self.base, 0)


@dataclass
class Meter:
    """Sells samples of a task's column, none twice, and counts them.

    A sample is right with the chance of the hypergeometric distribution: after `samples` of them an adapter
    has its published score. A binomial task is measured with independent errors instead, whatever was sold.
    """

    task: Task
    seed: int
    sold: int = 0
    _rng: np.random.Generator = field(init=False)
    _right: NDArray[np.int64] = field(init=False)
    _left: NDArray[np.int64] = field(init=False)

    def __post_init__(self) -> None:
        self._rng = np.random.default_rng([zlib.crc32(self.task.name.encode()), self.seed])
        self._right = np.rint(np.nan_to_num(self.task.column) * self.task.samples).astype(np.int64)
        self._left = np.where(np.isnan(self.task.column), 0, self.task.samples)

    def __call__(self, adapters: Sequence[str], n: int) -> list[float | None]:
        """Scores on n further samples; None for an adapter that has not so many left."""
        place = {name: i for i, name in enumerate(self.task.visible.adapters)}
        return [self._draw(place[name], n) for name in adapters]

    def _draw(self, at: int, n: int) -> float | None:
        if self._left[at] < n:
            return None
        self.sold += n
        if self.task.binomial:
            return float(self._rng.binomial(n, self.task.column[at])) / n
        right = int(self._rng.hypergeometric(self._right[at], self._left[at] - self._right[at], n))
        self._right[at] -= right
        self._left[at] -= n
        return right / n


def load(folder: Path, *, proxy: bool = False) -> list[Task]:
    """The judged tasks in the folder of published tables.

    Tasks that a file of test scores names are judged by them; a `proxy` takes the tasks that no such file
    names, and judges them by their own 100 samples, measured once more with binomial errors.
    """
    pool = set((folder / "pool_ids.txt").read_text(encoding="utf-8").split())
    table = _table(folder / MEASURED)
    samples = {task: _samples(row.get(task) for row in table.values()) for task in _tasks(table)}
    matrix = score_matrix(
        (name, task, value, samples[task])
        for name, row in table.items()
        if name in pool
        for task, value in row.items()
    )
    texts = _texts(folder / "tasks.yaml")
    test: dict[str, dict[str, float]] = {}
    for file in sorted(folder.glob(TESTED)):
        for name, row in _table(file).items():
            test.setdefault(name, {}).update(row)
    tested = _tasks(test)
    idle = _idle({name: row for name, row in table.items() if name not in pool})
    base = _bases(folder, idle, table if proxy else test, published=not proxy)
    judged = [task for task in matrix.tasks if (task in tested) is not proxy and task not in LEFT_OUT]
    judging = table if proxy else test
    return [
        Task(
            name=task,
            visible=matrix.blank(task),
            texts=texts,
            column=matrix.values[:, matrix.column(task)],
            samples=samples[task],
            values=np.array([judging.get(name, {}).get(task, np.nan) for name in matrix.adapters]),
            base=base[task],
            binomial=proxy,
        )
        for task in judged
        if task in base
    ]


def _table(path: Path) -> dict[str, dict[str, float]]:
    """Scores by adapter and task."""
    rows: dict[str, dict[str, float]] = {}
    for score in read_scores(path, source=path.name, split="any", metric="accuracy", n=None):
        rows.setdefault(score.subject, {})[score.task] = score.value
    return rows


def _tasks(table: dict[str, dict[str, float]]) -> list[str]:
    return sorted({task for row in table.values() for task in row})


def _samples(values: Iterable[float | None]) -> int:
    """The smallest number of samples of which all these scores are whole shares; 100 where there is none."""
    known = np.array([value for value in values if value is not None])
    for n in range(1, _MOST_SAMPLES):
        if np.abs(known * n - np.rint(known * n)).max() < 1e-6:
            return n
    return _MOST_SAMPLES


def _texts(path: Path) -> dict[str, str]:
    tasks = yaml.safe_load(path.read_text(encoding="utf-8"))
    return {name: str(task.get("instruction", "")) for name, task in tasks.items()}


def _idle(outside: dict[str, dict[str, float]]) -> list[str]:
    """The largest group of adapters outside the pool with the same score on every task: they do nothing."""
    rows = {name: tuple(sorted(row.items())) for name, row in outside.items()}
    ((most, _),) = Counter(rows.values()).most_common(1)
    return [name for name, row in rows.items() if row == most]


def _bases(
    folder: Path, idle: list[str], judging: dict[str, dict[str, float]], *, published: bool
) -> dict[str, float]:
    """The base model's score by task: as published, else the one that all idle adapters have."""
    found: dict[str, float] = {}
    for task in _tasks(judging):
        scores = {judging[name][task] for name in idle if task in judging.get(name, {})}
        if len(scores) == 1:
            found[task] = scores.pop()
    if published:
        with (folder / BASE).open(encoding="utf-8", newline="") as file:
            found |= {task: float(score) for task, score in csv.reader(file) if _is_number(score)}
    return found


def _is_number(text: str) -> bool:
    try:
        return 0 <= float(text) <= 1
    except ValueError:
        return False
