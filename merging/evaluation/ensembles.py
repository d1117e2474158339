"""The score of an ensemble: the mean over adapters of the probabilities that each gives.

The members are not merged: the base model reads everything once with each of them.
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Iterator, Sequence
from functools import partial
from typing import TYPE_CHECKING

from catalog.errors import EvaluationError, UsageError
from merging.evaluation.generation import generate_together
from merging.evaluation.measurement import (
    Measured,
    answered_prompts,
    judge_choices,
    judge_texts,
    new_tokens,
    normalise_lengths,
    text_metric,
)
from merging.evaluation.questions import Questions, TooLong, ask
from merging.evaluation.scoring import Likelihoods, likelihoods, mean_loss
from merging.members import MergeMember
from merging.model import OWN, Example, LoadedBase, Prompt, Protocol, Task

if TYPE_CHECKING:
    from merging.live import LiveStack


def measure_ensemble(
    base: LoadedBase,
    members: Sequence[MergeMember],
    task: Task,
    questions: Sequence[Example],
    too_long: TooLong = "error",
    protocol: Protocol = OWN,
) -> Measured:
    """The score of the ensemble of the members, each with the same weight, on these examples.

    Accuracy: the choice with the highest mean of the members' probabilities, each normalised over the
    choices of a question, is the answer. Other metrics compare the text whose every token has the highest
    mean probability. The loss is that of the right answer's mean probability, a token. Afterwards the base
    model is as before. Raises UsageError without members, EvaluationError for a member whose output is not
    finite or if an ensemble cannot generate (a model that reads texts from their beginnings, an adapter that
    PEFT alone can apply), MergeError for a member that does not match the base model, and the errors of
    `ask`.
    """
    asked = ask(base, task, questions, too_long, protocol, new_tokens(task, protocol))
    return measure_ensemble_asked(base, members, task, asked)


def measure_ensemble_asked(
    base: LoadedBase, members: Sequence[MergeMember], task: Task, asked: Questions
) -> Measured:
    """As `measure_ensemble`, on examples that are prompts already."""
    if not members:
        raise UsageError("An ensemble requires at least one member; give adapters.")
    chooses = text_metric(task, asked.protocol) is None
    if not chooses:
        _refuse_apart(members)
    prompts = answered_prompts(task, asked)
    values = [_member_likelihoods(base, member, task, prompts) for member in members]
    loss = mean_loss(prompts, _mean_logs(values))
    margins: Sequence[float] = ()
    if chooses:
        shares = [_shares(normalise_lengths(prompts, row, asked)) for row in values]
        value, right, margins = judge_choices(prompts, _mean_logs(shares))
    else:
        value, right = judge_texts(task, asked, _generate(base, members, task, asked))
    return Measured(value, loss, len(prompts), asked.left_out, tuple(right), tuple(margins))


def _refuse_apart(members: Sequence[MergeMember]) -> None:
    """Raises EvaluationError for a member with which an ensemble cannot generate."""
    if apart := next((member for member in members if member.apart), None):
        raise EvaluationError(
            f"{apart.name} can be applied by PEFT alone, and an ensemble that generates adds all members to "
            "the layers in turn; leave it out, or use tasks with choices."
        )


def _member_likelihoods(
    base: LoadedBase, member: MergeMember, task: Task, prompts: Sequence[Prompt]
) -> list[Likelihoods]:
    """The likelihoods by one member; raises EvaluationError if they are not finite."""
    from merging.live import apply_member

    with apply_member(base.model, member):
        values = likelihoods(base, prompts)
    if not math.isfinite(mean_loss(prompts, values)) or any(
        math.isnan(value) for row in values for value in row
    ):
        raise EvaluationError(
            f"The output of the model with {member.name} on {task.name} is not finite, since its weights "
            "overflow; leave it out."
        )
    return values


def _shares(answers: Sequence[Likelihoods]) -> list[Likelihoods]:
    """The log-probabilities of every prompt's answers, normalised over them."""
    sums = [_log_sum(row) for row in answers]
    return [tuple(value - total for value in row) for row, total in zip(answers, sums, strict=True)]


def _mean_logs(values: Sequence[Sequence[Likelihoods]]) -> list[Likelihoods]:
    """The log of the mean probability over members of every prompt's answers."""
    count = math.log(len(values))
    return [
        tuple(_log_sum(logs) - count for logs in zip(*rows, strict=True))
        for rows in zip(*values, strict=True)
    ]


def _log_sum(logs: Sequence[float]) -> float:
    """log of the sum of exponentials."""
    most = max(logs)
    if math.isinf(most):
        return most
    return most + math.log(math.fsum(math.exp(value - most) for value in logs))


def _generate(base: LoadedBase, members: Sequence[MergeMember], task: Task, asked: Questions) -> list[str]:
    from merging.live import LiveStack

    live = LiveStack(base.model, members)
    states = [partial(_state, live, number) for number in range(len(members))]
    with live.attach():
        return generate_together(base, asked.prompts, states, most=task.max_new_tokens)


@contextlib.contextmanager
def _state(live: LiveStack, number: int) -> Iterator[None]:
    """Inside the block the model has one of the resident members."""
    weights = [float(at == number) for at in range(len(live.members))]
    live.set_scales(live.scales_of(weights))
    yield
