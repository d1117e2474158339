"""Protocols: how a task is asked, how its answers are chosen and compared, and what a loss counts.

The project's own protocol has an empty name and is the default everywhere. Scores of different protocols are
different quantities and never stand in one column.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

from catalog.errors import UsageError

InstructionRole = Literal["user", "system"]
AnswerRule = Literal[
    "likelihood", "likelihood_open", "likelihood_per_token", "likelihood_per_byte", "generation"
]


@dataclass(frozen=True, slots=True)
class Protocol:
    """How examples become prompts, and answers become scores; `name` is "" for the project's own.

    `instruction_role` is the turn that holds the task's instruction: the user's, before the input with
    `joiner` between them, or the system's. `trim` removes white space around instruction, input and target.
    `answers` is how a task with choices is answered: by the log-likelihood of a choice with its closing token
    ("likelihood"), without it ("likelihood_open"), without it and divided by the number of its tokens
    ("likelihood_per_token") or of its UTF-8 bytes ("likelihood_per_byte", acc_norm of
    lm-evaluation-harness), or by greedy generation and exact match ("generation"). If `marker` is not empty,
    only what follows its last occurrence is compared, in prediction and target.
    """

    name: str = ""
    instruction_role: InstructionRole = "user"
    joiner: str = "\n\n"
    trim: bool = False
    answers: AnswerRule = "likelihood"
    marker: str = ""


RECYCLING_PAPER = Protocol(
    "recycling-paper", instruction_role="system", trim=True, answers="generation", marker="####"
)
_ROWS = (
    Protocol(),
    Protocol("likelihood-open", answers="likelihood_open"),
    Protocol("likelihood-per-token", answers="likelihood_per_token"),
    Protocol("likelihood-per-byte", answers="likelihood_per_byte"),
    RECYCLING_PAPER,
)
PROTOCOLS: Mapping[str, Protocol] = {row.name: row for row in _ROWS}


def find_protocol(name: str) -> Protocol:
    """The protocol of this name; raises UsageError, with the names, if there is none."""
    if name not in PROTOCOLS:
        known = ", ".join(filter(None, PROTOCOLS))
        raise UsageError(f"{name} is not a protocol; use one of {known}, or none for the project's own.")
    return PROTOCOLS[name]
