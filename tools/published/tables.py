"""The recycling paper's published tables: 960 adapters of Llama-3.1-8B-Instruct, their scores, and what some
merges of them reached (r-three/realistic-adaptive-merging, MIT).

Also the game that rankings are judged by: a column of the scores is hidden, and samples of it are bought.
"""

from __future__ import annotations

import hashlib
import zlib
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from catalog.errors import ConfigError, NotFoundError, UsageError
from catalog.files import YamlError, load_json, read_yaml
from catalog.scores import ScoreMatrix, read_scores, score_matrix

Floats = NDArray[np.float64]
# Scores by adapter and task; in the other files by task and what was measured.
Scores = dict[str, dict[str, float]]

MEASURED, TESTED, BASE = "scores_100_samples.csv", "scores_test*.csv", "zero_shot_performance.csv"
MERGED, NEW = "merged_performance_eval_experts_summary.csv", "lora_baseline_10_results.csv"
POOL, INFO, TASKS = "pool_ids.txt", "adapter_info.json", "tasks.yaml"
# Left out, as in the leaderboard that the results are compared with.
LEFT_OUT = {"twitter_complaints"}
_MOST_SAMPLES = 100
_MOST_BYTES = 64 * 1024 * 1024


@dataclass(frozen=True)
class RankTask:
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

    @property
    def beats(self) -> Floats:
        """1 where an adapter is better than the base, else 0; NaN where it was not judged."""
        return np.where(np.isnan(self.values), np.nan, self.values > self.base)


@dataclass
class SampleMeter:
    """Sells samples of a task's column, none twice, and counts them.

    A sample is right with the chance of the hypergeometric distribution: after `samples` of them an adapter
    has its published score. A binomial task is measured with independent errors instead, whatever was sold.
    """

    task: RankTask
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


def load(folder: Path, *, proxy: bool = False) -> list[RankTask]:
    """The judged tasks in the folder of published tables.

    Tasks that a file of test scores names are judged by them; a `proxy` takes the tasks that no such file
    names, and judges them by their own 100 samples, measured once more with binomial errors. Raises
    UsageError where no task is left.
    """
    pool = set(pool_names(folder))
    table = scores(folder, MEASURED)
    samples = {task: _samples(row.get(task) for row in table.values()) for task in _tasks(table)}
    matrix = score_matrix(
        (name, task, value, samples[task])
        for name, row in table.items()
        if name in pool
        for task, value in row.items()
    )
    descriptions = task_texts(folder)
    texts = {name: str(task.get("instruction", "")) for name, task in descriptions.items()}
    test = scores_on_test(folder)
    tested = _tasks(test)
    base = idle_scores(folder, table) if proxy else idle_scores(folder, test) | zero_shot(folder)
    judged = [task for task in matrix.tasks if (task in tested) is not proxy and task not in LEFT_OUT]
    judging = table if proxy else test
    judged_tasks = [
        RankTask(
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
    if not judged_tasks:
        raise UsageError(f"{folder} has no task that was both measured and judged; take the published files.")
    return judged_tasks


def digests(folder: Path) -> dict[str, str]:
    """The sha256 of every file that is read, by name; raises NotFoundError that names those not there."""
    tested = sorted(path.name for path in folder.glob(TESTED))
    names = [MEASURED, *(tested or [TESTED]), BASE, MERGED, NEW, POOL, INFO, TASKS]
    missing = [name for name in names if not (folder / name).is_file()]
    if missing:
        raise _absent(folder, missing)
    return {name: hashlib.sha256((folder / name).read_bytes()).hexdigest() for name in sorted(names)}


def pool_names(folder: Path) -> list[str]:
    """The adapters of the pool, as listed."""
    return _text(folder, POOL).split()


def adapter_info(folder: Path) -> dict[str, dict[str, Any]]:
    """The configurations of the pool's adapters; those of which nothing is known are left out."""
    try:
        document = load_json(_text(folder, INFO).encode(), max_bytes=_MOST_BYTES)
    except ConfigError as error:
        raise UsageError(f"{folder / INFO} is no JSON: {error}.") from error
    if not isinstance(document, dict) or not all(isinstance(config, dict) for config in document.values()):
        raise UsageError(f"{folder / INFO} holds no configurations by name; take the published file.")
    return {name: document[name] for name in pool_names(folder) if document.get(name)}


def task_texts(folder: Path) -> dict[str, dict[str, Any]]:
    """What tasks.yaml says of every task."""
    try:
        document = read_yaml(_text(folder, TASKS)).value
    except YamlError as error:
        raise UsageError(f"{folder / TASKS} is no YAML: {error}.") from error
    if not isinstance(document, dict) or not all(
        isinstance(description, dict) for description in document.values()
    ):
        raise UsageError(f"{folder / TASKS} describes no tasks by name; take the published file.")
    return document


def scores(folder: Path, name: str) -> Scores:
    """One of the files of scores, by the first column and the names of the others."""
    path = folder / name
    if not path.is_file():
        raise _absent(folder, [name])
    rows: Scores = {}
    for score in read_scores(path, source=name, split="any", metric="accuracy", n=None):
        rows.setdefault(score.subject, {})[score.task] = score.value
    return rows


def scores_on_test(folder: Path) -> Scores:
    """The test scores of every file that has some."""
    by_adapter: Scores = {}
    files = sorted(path.name for path in folder.glob(TESTED))
    if not files:
        raise _absent(folder, [TESTED])
    for name in files:
        for adapter, row in scores(folder, name).items():
            by_adapter.setdefault(adapter, {}).update(row)
    return by_adapter


def zero_shot(folder: Path) -> dict[str, float]:
    """The base model's test scores as published, by the names that they are published under."""
    return next(iter(scores(folder, BASE).values()), {})


def base_scores(folder: Path) -> dict[str, float]:
    """The base model's test scores, as many as can be known.

    As published under the task's own name, else under the name of its data set or of the data set's
    configuration (`main` is gsm8k), else what all adapters that do nothing have in common.
    """
    by_name = zero_shot(folder)
    by_path: dict[str, float] = {}
    for task, description in task_texts(folder).items():
        last = str((description.get("path") or [""])[-1]).rpartition("/")[2].replace("-", "_")
        if last in by_name:
            by_path[task] = by_name[last]
    return idle_scores(folder, scores_on_test(folder)) | by_path | by_name


def base_on_samples(folder: Path) -> dict[str, float]:
    """The base model's scores on the 100 samples: what all adapters that do nothing have in common."""
    return idle_scores(folder, scores(folder, MEASURED))


def _tasks(table: Scores) -> list[str]:
    return sorted({task for row in table.values() for task in row})


def _samples(values: Iterable[float | None]) -> int:
    """The smallest number of samples of which all these scores are whole shares; 100 where there is none."""
    numbers = np.array([value for value in values if value is not None])
    for n in range(1, _MOST_SAMPLES):
        if np.abs(numbers * n - np.rint(numbers * n)).max() < 1e-6:
            return n
    return _MOST_SAMPLES


def idle_scores(folder: Path, judging: Mapping[str, Mapping[str, float]]) -> dict[str, float]:
    """What the adapters that do nothing score, by task, where all score the same.

    Those are the largest group of adapters outside the pool with the same 100-sample score on every task.
    """
    pool = set(pool_names(folder))
    rows = {
        name: tuple(sorted(row.items())) for name, row in scores(folder, MEASURED).items() if name not in pool
    }
    if not rows:
        return {}
    ((most, _),) = Counter(rows.values()).most_common(1)
    idle = [judging[name] for name, row in rows.items() if row == most and name in judging]
    by_task: dict[str, float] = {}
    for task in sorted({task for row in idle for task in row}):
        values = {row[task] for row in idle if task in row}
        if len(values) == 1:
            by_task[task] = values.pop()
    return by_task


def _text(folder: Path, name: str) -> str:
    try:
        return (folder / name).read_text(encoding="utf-8")
    except FileNotFoundError as error:
        raise _absent(folder, [name]) from error
    except (OSError, UnicodeDecodeError) as error:
        raise UsageError(f"{folder / name} cannot be read: {error}.") from error


def _absent(folder: Path, names: Sequence[str]) -> NotFoundError:
    return NotFoundError(f"{folder} lacks {', '.join(names)}; name the folder of the published tables.")
