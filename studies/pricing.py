"""What a study will take on another machine, by what `loradex doctor` measured there.

The work of a step is counted in tokens of the base model: those that are read, those that are generated and
those that are learned from. The base need not be on this machine: a token is taken as four bytes of text, and
generated answers are taken as long as the right ones. An adaptive merge is priced like the training of one
LoRA on as many tokens. Static merges, stand-ins and model cards are not priced.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from catalog.errors import ConfigError, UsageError
from catalog.files import load_json, read_limited
from catalog.pictures import count_noun
from studies.log import is_number
from studies.store import Place, Step

if TYPE_CHECKING:
    from merging.model import Task

DOCTOR = "loradex-doctor/1"
_MOST_BYTES = 1024 * 1024
_BYTES_A_TOKEN = 4
# Tokens that a chat template adds to an instruction, a question and an answer.
_FRAME = 24
_FREE = frozenset({"pick", "pool", "relevance", "set", "single", "trainings"})
# The kinds of steps whose work is that of the base model.
PRICED = frozenset({"adapt", "curvature", "ensemble", "gradient", "measured", "score", "train"})
# What a report calls a base model in a folder.
LOCAL_MODEL = "a local folder"


@dataclass(frozen=True, slots=True)
class Speed:
    """Tokens a second of a machine, by its report: read, generated, and learned from."""

    machine: str
    model: str
    read: float
    generated: float
    learned: float
    dtype: str = ""


@dataclass(frozen=True, slots=True)
class StudyPrice:
    """What steps take on a machine: hours by kind of step, and the number of steps that are not priced."""

    machine: str
    model: str
    hours: dict[str, float]
    unpriced: dict[str, int]
    dtype: str = ""

    @property
    def total(self) -> float:
        """Hours of all priced steps."""
        return math.fsum(self.hours.values())


@dataclass(frozen=True, slots=True)
class Work:
    """Tokens that a step reads, generates and learns from."""

    read: float = 0.0
    generated: float = 0.0
    learned: float = 0.0

    def __add__(self, other: Work) -> Work:
        return Work(self.read + other.read, self.generated + other.generated, self.learned + other.learned)

    def times(self, count: float) -> Work:
        """The work done `count` times."""
        return Work(self.read * count, self.generated * count, self.learned * count)


def read_speed(file: Path) -> Speed:
    """The speed of a machine by a JSON document of `loradex doctor`.

    Raises NotFoundError if there is no such file, and UsageError if it cannot be read, is something else, or
    lacks a measurement.
    """
    advice = f"write one by `loradex doctor --base B --json > {file.name}`"
    data = read_limited(file, _MOST_BYTES, kind="a report of doctor", advice=advice, error=UsageError)
    try:
        document = load_json(data, max_bytes=_MOST_BYTES)
    except ConfigError as error:
        raise UsageError(f"{file} cannot be read: {error}.") from error
    if not isinstance(document, dict) or document.get("format") != DOCTOR:
        raise UsageError(f"{file} is not a report of doctor; {advice}.")
    machine, model = _part(document, "machine"), _part(document, "model")
    rates = [
        _positive(document, file, name)
        for name in (
            "read_tokens_per_second",
            "generated_tokens_per_second",
            "step_tokens",
            "step_seconds",
        )
    ]
    threads = machine.get("threads")
    count = count_noun(threads, "thread") if isinstance(threads, int) else "any threads"
    processor = f"{machine.get('processor') or 'CPU'}, {count}"
    return Speed(
        machine=str(machine.get("name") or processor),
        model=str(model.get("name") or "unknown"),
        dtype=str(model.get("dtype") or ""),
        read=rates[0],
        generated=rates[1],
        learned=rates[2] / rates[3],
    )


def price(place: Place, pending: Sequence[Step], speed: Speed) -> StudyPrice:
    """What the steps take on a machine of this speed."""
    hours, unpriced = defaultdict[str, float](float), defaultdict[str, int](int)
    for step in pending:
        work = work_of(place, step)
        if work is None:
            unpriced[step.kind] += 1
        elif step.kind not in _FREE:
            seconds = work.read / speed.read + work.generated / speed.generated + work.learned / speed.learned
            hours[step.kind] += seconds / 3600
    return StudyPrice(
        speed.machine, speed.model, dict(sorted(hours.items())), dict(sorted(unpriced.items())), speed.dtype
    )


def work_of(place: Place, step: Step) -> Work | None:
    """The tokens of a step; None for one whose work is not that of the base model."""
    from merging.model import find_protocol, read_task

    params = step.params
    if step.kind in _FREE:
        return Work()
    if step.kind not in PRICED:
        return None
    task = read_task(place.tasks[params["task"]["name"]])
    generates = task.metric != "accuracy" or find_protocol(params.get("protocol", "")).answers != "likelihood"
    if step.kind == "score":
        return _judge(task, params, generates)
    if step.kind == "ensemble":
        return _judge(task, params, generates).times(_pool_size(step))
    example = _mean_lengths(task, "train", None)
    if step.kind == "gradient":
        return Work(learned=params["samples"] * example.text)
    if step.kind == "curvature":
        # A product with the Hessian is a gradient of a gradient: about two of them.
        return Work(learned=2 * params["iterations"] * params["samples"] * example.text)
    shots = params["budget"]
    if step.kind == "measured":
        count = params.get("samples") or shots["train"] + shots["valid"]
        return example.answer_work(generates).times(count * (1 + len(params["adapters"])))
    if step.kind == "train":
        settings = params["settings"]
        return _learn(example, settings["steps"], settings["batch"], shots)
    return _adapt(params, example, shots) + _judge(task, params, generates)


def _adapt(params: Mapping[str, Any], example: _Lengths, shots: Mapping[str, int]) -> Work:
    from merging.learning import Recipe, find_adaptive

    method = find_adaptive(params["method"])
    steps = params["settings"].get("steps") or method.steps
    if method.learner == "candidates":
        return Work(read=steps * (shots["train"] + shots["valid"]) * example.text)
    return _learn(example, steps, Recipe(steps).batch, shots) if steps else Work()


def _learn(example: _Lengths, steps: int, batch: int, shots: Mapping[str, int]) -> Work:
    """Steps of training, with the loss on the validation examples in between."""
    from merging.learning import Recipe

    checks = 1 + steps // Recipe(steps).evaluate_every
    return Work(read=checks * shots["valid"] * example.text, learned=steps * batch * example.text)


def _judge(task: Task, params: Mapping[str, Any], generates: bool) -> Work:
    test = _mean_lengths(task, "test", params["test"])
    return test.answer_work(generates).times(test.count)


def _pool_size(step: Step) -> int:
    """The members of a step's pool, as far as the pool says it."""
    pool = step.inputs["pool"]
    while pool.kind == "stand-ins":
        pool = pool.inputs["pool"]
    if pool.kind == "trainings":
        return len(pool.inputs)
    return int(pool.params.get("k") or len(pool.params["adapters"]))


@dataclass(frozen=True, slots=True)
class _Lengths:
    """Examples of a split, and how many tokens they have on average."""

    count: int
    question: float
    answer: float
    choices: float

    @property
    def text(self) -> float:
        """A question with its right answer."""
        return self.question + self.answer

    def answer_work(self, generates: bool) -> Work:
        """The work of answering a question: by generation, or by the likelihood of every choice."""
        if generates:
            return Work(read=self.question, generated=self.answer)
        return Work(read=self.question + max(self.choices, self.answer))


@lru_cache(maxsize=512)
def _mean_lengths(task: Task, split: Literal["train", "test"], limit: int | None) -> _Lengths:
    from merging.model import draw

    examples = draw(task, split, limit)
    frame = _FRAME + _tokens(task.instruction)
    answers = [_tokens(example.target) + 1 for example in examples]
    if task.max_new_tokens:
        answers = [min(answer, task.max_new_tokens) for answer in answers]
    choices = [sum(_tokens(choice) + 1 for choice in example.choices or task.choices) for example in examples]
    count = max(len(examples), 1)
    return _Lengths(
        len(examples),
        frame + math.fsum(_tokens(example.input) for example in examples) / count,
        math.fsum(answers) / count,
        math.fsum(choices) / count,
    )


def _tokens(text: str) -> float:
    return len(text.encode()) / _BYTES_A_TOKEN


def _part(document: Mapping[str, Any], name: str) -> Mapping[str, Any]:
    part = document.get(name)
    return part if isinstance(part, dict) else {}


def _positive(document: Mapping[str, Any], file: Path, name: str) -> float:
    value = _part(document, "measures").get(name)
    if value is None or not is_number(value) or value <= 0:
        raise UsageError(f"{file} has no {name}; run `loradex doctor` again, with the base that fits.")
    return float(value)
