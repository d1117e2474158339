"""Tasks: an instruction, examples in three splits, and a metric.

A task is a folder with `task.json` (name, instruction, metric, choices or null, source, license, and perhaps
max_new_tokens and instruction_role) and `train.jsonl`, `valid.jsonl`, `test.jsonl`, one example a line:
`input`, `target`, and `choices` if the task does not define them. Only the training examples may be used for
learning and selection; the test examples only for the final evaluation.
"""

from __future__ import annotations

import hashlib
import random
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, get_args

from catalog.errors import ConfigError, NotFoundError, UsageError
from catalog.files import load_json
from catalog.scores import TASK_METRICS
from merging.model.protocol import InstructionRole

TASK_NAME = "task.json"
Split = Literal["train", "valid", "test"]
# The name of a score by each metric of a task.
METRICS: Mapping[str, str] = {name: row.name for name, row in TASK_METRICS.items()}
# The tokens of a generated answer, unless task.json gives another number, and the largest number there.
NEW_TOKENS = 30
_MOST_NEW_TOKENS = 8192
SPLITS: tuple[Split, ...] = get_args(Split)
_ROLES: tuple[InstructionRole, ...] = get_args(InstructionRole)
# The budget of the recycling paper: 100 examples of the target task, a fifth of them for validation.
BUDGET = 100
VALID_SHARE = 0.2
_MOST_BYTES = 256 * 1024 * 1024


@dataclass(frozen=True, slots=True)
class Example:
    """One example: the input, the right answer, and the choices (none: free text)."""

    input: str
    target: str
    choices: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Task:
    """A task as its folder describes it; `digest` is the sha256 of its four files.

    `metric` is accuracy (the most likely of the choices), or a metric that compares generated text of at most
    `max_new_tokens` tokens. `instruction_role` is the turn that contains the instruction.
    """

    name: str
    folder: Path
    instruction: str
    metric: str
    choices: tuple[str, ...]
    group: str
    source: str
    license: str
    digest: str
    max_new_tokens: int = NEW_TOKENS
    instruction_role: InstructionRole = "user"


@dataclass(frozen=True, slots=True)
class ExampleBudget:
    """The examples that a method may use: `train` for learning, `valid` for selection; no test examples."""

    train: tuple[Example, ...]
    valid: tuple[Example, ...]
    seed: int

    @property
    def all(self) -> tuple[Example, ...]:
        """Both parts together."""
        return self.train + self.valid


def read_task(folder: Path) -> Task:
    """The task in a folder; raises NotFoundError if there is none and UsageError for an invalid one."""
    file = folder / TASK_NAME
    if not file.is_file():
        raise NotFoundError(f"{folder} does not contain {TASK_NAME}; give the folder of a task.")
    document = _document(file)
    try:
        metric = document["metric"]
        if not isinstance(metric, str) or metric not in METRICS:
            raise UsageError(f"{file}: the metric must be one of {', '.join(METRICS)}, not {metric!r}.")
        return Task(
            name=_text(document, "name"),
            folder=folder,
            instruction=_text(document, "instruction"),
            metric=metric,
            choices=_choices(document.get("choices")),
            group=str(document.get("group") or ""),
            source=str(document.get("source") or ""),
            license=str(document.get("license") or "unknown"),
            digest=_digest(folder),
            max_new_tokens=_new_tokens(document.get("max_new_tokens", NEW_TOKENS)),
            instruction_role=_role(document.get("instruction_role", "user")),
        )
    except (KeyError, TypeError, ValueError) as error:
        raise UsageError(f"{file} is not a valid task: {_reason(error)}.") from error


def find_task(name: str, tasks: Path | None = None) -> Task:
    """The task in the folder `name`, or of that name below the folder `tasks`.

    Raises NotFoundError with the available names, and the errors of `read_task`.
    """
    for folder in (Path(name), *([tasks / name] if tasks else [])):
        if (folder / TASK_NAME).is_file():
            return read_task(folder)
    names = sorted(path.parent.name for path in tasks.glob(f"*/{TASK_NAME}")) if tasks else []
    advice = (
        f"{tasks} contains {', '.join(names)}" if names else "name its folder, or where tasks are by `tasks`"
    )
    raise NotFoundError(f"Task {name} not found; {advice}.")


def examples(task: Task, split: Split) -> tuple[Example, ...]:
    """All examples of a split in the order of the file.

    Raises NotFoundError if the split is missing, and UsageError, with the line, for an invalid example: no
    input or target, or a target that is not among the choices.
    """
    file = task.folder / f"{split}.jsonl"
    try:
        if file.stat().st_size > _MOST_BYTES:
            raise UsageError(f"{file} is larger than the limit of {_MOST_BYTES >> 20} MiB.")
        lines = file.read_text("utf-8").split("\n")
    except FileNotFoundError as error:
        raise NotFoundError(
            f"The task {task.name} has no {split} examples: {file} does not exist."
        ) from error
    except (OSError, UnicodeDecodeError) as error:
        raise UsageError(f"{file} cannot be read: {error}.") from error
    rows = tuple(_examples(task, file, lines))
    if not rows:
        raise UsageError(f"{file} contains no examples.")
    return rows


def budget(task: Task, n: int = BUDGET, *, seed: int = 0, valid: float = VALID_SHARE) -> ExampleBudget:
    """`n` of the training examples drawn without replacement, the share `valid` of them for validation.

    The draw depends only on the seed and the task's name. Raises UsageError if the task has fewer than `n`
    training examples or a part would be empty.
    """
    held = round(n * valid)
    if not 1 <= held < n:
        raise UsageError(f"A budget of {n} examples cannot be split into training and validation; use more.")
    train_examples = first_examples(task, n, seed=seed)
    return ExampleBudget(train_examples[held:], train_examples[:held], seed)


def first_examples(task: Task, n: int, *, seed: int = 0) -> tuple[Example, ...]:
    """The first `n` of the training examples in a random order by the seed: a smaller `n` gives a subset.

    A selection and a training with the same seed therefore read the same examples. Raises UsageError if the
    task has fewer.
    """
    pool = examples(task, "train")
    if n > len(pool):
        raise UsageError(
            f"{task.name} has {len(pool)} training examples, fewer than the requested {n}; request fewer."
        )
    order = random.Random(f"{task.name}:{seed}")  # noqa: S311 - a draw, not a secret
    return tuple(order.sample(pool, len(pool))[:n])


def draw(task: Task, split: Split, limit: int | None = None, *, seed: int = 0) -> tuple[Example, ...]:
    """At most `limit` examples of a split, drawn by the seed; all of them, in the file's order, without."""
    pool = examples(task, split)
    if limit is None or limit >= len(pool):
        return pool
    if limit < 1:
        raise UsageError(f"The limit of examples must be at least 1, not {limit}.")
    return tuple(random.Random(f"{task.name}:{split}:{seed}").sample(pool, limit))  # noqa: S311 - a draw


def _document(file: Path) -> dict[str, Any]:
    try:
        document = load_json(file.read_bytes(), max_bytes=_MOST_BYTES)
    except (OSError, ConfigError) as error:
        raise UsageError(f"{file} cannot be read: {error}.") from error
    if not isinstance(document, dict):
        raise UsageError(f"{file} is not a valid task: it does not contain a JSON object.")
    return document


def _examples(task: Task, file: Path, lines: Sequence[str]) -> Iterator[Example]:
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        try:
            document: Any = load_json(line.encode(), max_bytes=_MOST_BYTES)
            choices = _choices(document.get("choices")) or task.choices
            example = Example(_text(document, "input"), _text(document, "target"), choices)
        except (ConfigError, KeyError, TypeError, ValueError, AttributeError) as error:
            raise UsageError(f"{file} line {number} is not a valid example: {_reason(error)}.") from error
        if task.metric == "accuracy" and example.target not in choices:
            wrong = (
                "has no choices"
                if not choices
                else f"has the target {example.target!r}, which is not a choice"
            )
            raise UsageError(f"{file} line {number} {wrong}.")
        yield example


def _text(document: dict[str, Any], key: str) -> str:
    value = document[key]
    if not isinstance(value, str) or not value.strip():
        raise ValueError(f"{key} must be a non-empty string")
    return value


def _new_tokens(value: object) -> int:
    if not isinstance(value, int) or isinstance(value, bool) or not 1 <= value <= _MOST_NEW_TOKENS:
        raise ValueError(f"max_new_tokens must be a whole number from 1 to {_MOST_NEW_TOKENS}")
    return value


def _role(value: object) -> InstructionRole:
    for role in _ROLES:
        if value == role:
            return role
    raise ValueError("instruction_role must be user or system")


def _choices(value: object) -> tuple[str, ...]:
    if value is None:
        return ()
    if not isinstance(value, list) or not all(isinstance(choice, str) and choice.strip() for choice in value):
        raise ValueError("choices must be a list of strings")
    if len(value) < 2 or len(set(value)) < len(value):
        raise ValueError("choices must have at least two different entries")
    return tuple(value)


def _reason(error: Exception) -> str:
    return f"it does not contain {error.args[0]}" if isinstance(error, KeyError) else str(error)


def _digest(folder: Path) -> str:
    """The sha256 over the names and hashes of the task's existing files."""
    digest = hashlib.sha256()
    for name in (TASK_NAME, *(f"{split}.jsonl" for split in SPLITS)):
        file = folder / name
        if file.is_file():
            digest.update(f"{name} {hashlib.sha256(file.read_bytes()).hexdigest()}\n".encode())
    return digest.hexdigest()
