"""The score of a model in its current state on examples: the choices compared, or the texts generated."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, fields
from typing import Any

from catalog.errors import EvaluationError
from catalog.scores import TASK_METRICS
from merging.evaluation.generation import generate
from merging.evaluation.metrics import compare_texts
from merging.evaluation.questions import Questions, TooLong, ask
from merging.evaluation.scoring import (
    Likelihoods,
    answer_margins,
    likelihoods,
    mean_loss,
    open_answers,
    right_answers,
    targets_only,
)
from merging.model import METRICS, OWN, Example, LoadedBase, Prompt, Protocol, Task


@dataclass(frozen=True, slots=True)
class Measured:
    """A score on n examples: `value` by the task's metric, from 0 to 1, and the mean over examples of the
    right answer's loss a token, in nats. `left_out` examples were too long for the model. `outcomes` says of
    each example whether its answer was right, and `margins`, of a task with choices, by how much the best
    other choice was more likely than the right one (nats).
    """

    value: float
    loss: float
    n: int
    left_out: int = 0
    outcomes: tuple[bool, ...] = field(default=(), repr=False)
    margins: tuple[float, ...] = field(default=(), repr=False)

    def document(self) -> dict[str, Any]:
        """The score as JSON, without those of single examples; the number left out is included if any."""
        return without_defaults(self, "outcomes", "margins")


def measure(
    base: LoadedBase,
    task: Task,
    questions: Sequence[Example],
    too_long: TooLong = "error",
    protocol: Protocol = OWN,
) -> Measured:
    """The score of the model in its current state on these examples.

    Accuracy: the choice with the highest log-likelihood by the rule of the protocol is the answer. Other
    metrics compare the greedy text with the target, and so does a protocol that generates for tasks with
    choices, by exact match. Raises EvaluationError if the model's output is not finite, and the errors of
    `ask`.
    """
    asked = ask(base, task, questions, too_long, protocol, new_tokens(task, protocol))
    return measure_asked(base, task, asked)


def score_metric(task: Task, protocol: Protocol = OWN) -> str:
    """The name of the metric of a task's scores by a protocol."""
    return METRICS[text_metric(task, protocol) or task.metric]


def text_metric(task: Task, protocol: Protocol = OWN) -> str | None:
    """The metric of task.json that compares generated texts; None if the likelihood of choices decides."""
    if task.metric != "accuracy":
        return task.metric
    return "exact_match" if protocol.answers == "generation" else None


def new_tokens(task: Task, protocol: Protocol) -> int:
    """The most tokens of an answer that is generated; 0 where the likelihood of choices decides."""
    return task.max_new_tokens if text_metric(task, protocol) else 0


def measure_asked(base: LoadedBase, task: Task, question_set: Questions) -> Measured:
    """As `measure`, on examples that are prompts already."""
    prompts = answered_prompts(task, question_set)
    answers = likelihoods(base, prompts)
    loss = mean_loss(prompts, answers)
    margins: Sequence[float] = ()
    if text_metric(task, question_set.protocol) is None:
        compared = normalise_lengths(prompts, answers, question_set)
        value, right, margins = judge_choices(prompts, compared)
    else:
        texts = generate(base, question_set.prompts, most=task.max_new_tokens)
        value, right = judge_texts(task, question_set, texts)
    if not math.isfinite(loss) or any(map(math.isnan, margins)):
        raise EvaluationError(f"The output of the model on {task.name} is not finite; its weights overflow.")
    return Measured(value, loss, len(prompts), question_set.left_out, tuple(right), tuple(margins))


def answered_prompts(task: Task, question_set: Questions) -> Sequence[Prompt]:
    """The prompts with the answers whose likelihoods are needed: the choices, or the targets of texts."""
    prompts, protocol = question_set.prompts, question_set.protocol
    if text_metric(task, protocol) is not None:
        return targets_only(prompts)
    return prompts if protocol.answers == "likelihood" else open_answers(prompts)


def judge_choices(
    prompts: Sequence[Prompt], answers: Sequence[Likelihoods]
) -> tuple[float, Sequence[bool], Sequence[float]]:
    """The accuracy of the most likely choices, whether each is right, and the margins in nats."""
    right = right_answers(prompts, answers)
    return sum(right) / len(right), right, answer_margins(prompts, answers)


def judge_texts(task: Task, question_set: Questions, texts: Sequence[str]) -> tuple[float, Sequence[bool]]:
    """The score of generated answers, and whether each is right unless the metric is graded."""
    protocol = question_set.protocol
    metric = text_metric(task, protocol) or task.metric
    targets = [question.target for question in question_set.examples]
    value, values = compare_texts(metric, texts, targets, marker=protocol.marker)
    return value, () if TASK_METRICS[metric].graded else [bool(answer_value) for answer_value in values]


def normalise_lengths(
    prompts: Sequence[Prompt], answers: Sequence[Likelihoods], question_set: Questions
) -> Sequence[Likelihoods]:
    """The log-likelihoods divided by the lengths that the protocol counts, if it counts any."""
    rule = question_set.protocol.answers
    if rule == "likelihood_per_token":
        lengths = [[len(answer) for answer in prompt.answers] for prompt in prompts]
    elif rule == "likelihood_per_character":
        lengths = [[len(choice) for choice in example.choices] for example in question_set.examples]
    else:
        return answers
    pairs = zip(answers, lengths, strict=True)
    return [tuple(value / n for value, n in zip(values, row, strict=True)) for values, row in pairs]


def without_defaults(record: Any, *hidden: str) -> dict[str, Any]:
    """The fields of a score except those with their defaults, and the hidden ones."""
    usual = {row.name: row.default for row in fields(record) if row.name not in hidden}
    document = asdict(record)
    return {name: document[name] for name in usual if document[name] != usual[name]}
