"""Protocols: how a task is asked, how its answers are chosen and compared, and what a loss counts.

The project's own protocol has an empty name and is the default everywhere. Scores of different protocols are
different quantities and never share a column.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

from catalog.errors import UsageError

InstructionRole = Literal["user", "system"]
AnswerRule = Literal[
    "likelihood", "likelihood_open", "likelihood_per_token", "likelihood_per_character", "generation"
]


@dataclass(frozen=True, slots=True)
class Protocol:
    """How examples become prompts, and answers become scores; `name` is "" for the project's own.

    `instruction_role` is the turn that contains the instruction: the user's, before the input with an empty
    line between them, or the system's. `trim` removes white space around instruction, input and answers.

    `answers` is how a task with choices is answered: by the log-likelihood of a choice with its closing token
    ("likelihood"), without it ("likelihood_open"), without it and divided by the number of its tokens
    ("likelihood_per_token") or of its characters ("likelihood_per_character", as acc_norm of
    lm-evaluation-harness), or by greedy text that must equal the target ("generation"). If `marker` is not
    empty, only what follows its last occurrence is compared, in the answer and in the target.

    `question_limit` says that a prompt is too long if its question alone has as many tokens as the model
    reads, as in the recycling paper; else the question with its longest answer counts. `token_loss` weighs
    every token of the answers of a batch equally; else the mean of each answer is taken first.
    """

    name: str = ""
    instruction_role: InstructionRole = "user"
    trim: bool = False
    answers: AnswerRule = "likelihood"
    marker: str = ""
    question_limit: bool = False
    token_loss: bool = False


OWN = Protocol()
# r-three/realistic-adaptive-merging at cfc70df: scripts/llama_child.py, evaluation.py and jobs/run_tuning.py.
RECYCLING_PAPER = Protocol(
    "recycling-paper",
    instruction_role="system",
    trim=True,
    answers="generation",
    marker="####",
    question_limit=True,
    token_loss=True,
)
_ROWS = (
    OWN,
    Protocol("likelihood-open", answers="likelihood_open"),
    Protocol("likelihood-per-token", answers="likelihood_per_token"),
    Protocol("likelihood-per-character", answers="likelihood_per_character"),
    RECYCLING_PAPER,
)
PROTOCOLS: Mapping[str, Protocol] = {row.name: row for row in _ROWS}


def find_protocol(name: str) -> Protocol:
    """The protocol of this name; raises UsageError, with the names, if there is none."""
    if name not in PROTOCOLS:
        names = ", ".join(filter(None, PROTOCOLS))
        raise UsageError(f"{name} is not a protocol; use one of {names}, or none for the project's own.")
    return PROTOCOLS[name]
