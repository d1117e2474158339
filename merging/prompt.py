"""Examples as tokens: the question through the tokenizer's chat template, each answer closed by its end.

The question is one user's turn, instruction and input with an empty line between them; an answer is followed
by the token that ends a turn. The loss of an answer, and the choice among answers, count these tokens only.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from catalog.errors import UsageError
from merging.tasks import Example, Task


@dataclass(frozen=True, slots=True)
class Prompt:
    """An example in tokens: the question, the answers to choose from, and which of them is right.

    A task of free text has one answer, the target.
    """

    question: tuple[int, ...]
    answers: tuple[tuple[int, ...], ...]
    right: int

    @property
    def target(self) -> tuple[int, ...]:
        """The tokens of the right answer."""
        return self.answers[self.right]

    @property
    def length(self) -> int:
        """Tokens of the question with its longest answer."""
        return len(self.question) + max(len(answer) for answer in self.answers)


def encode(tokenizer: Any, task: Task, examples: Sequence[Example], limit: int) -> list[Prompt]:
    """The examples in tokens; raises UsageError for one that is longer than `limit` tokens."""
    answers: dict[str, tuple[int, ...]] = {}

    def answer(text: str) -> tuple[int, ...]:
        if text not in answers:
            answers[text] = (*tokenizer(text, add_special_tokens=False)["input_ids"], end)
        return answers[text]

    end = _end_of_turn(tokenizer)
    prompts = []
    for number, example in enumerate(examples, 1):
        choices = example.choices if task.metric == "accuracy" else (example.target,)
        prompt = Prompt(
            _question(tokenizer, task, example), tuple(map(answer, choices)), choices.index(example.target)
        )
        if prompt.length > limit:
            raise UsageError(
                f"Example {number} of {task.name} has {prompt.length} tokens, more than the {limit} that the "
                "model reads; shorten it or take it out."
            )
        prompts.append(prompt)
    return prompts


def question_text(tokenizer: Any, task: Task, example: Example) -> str:
    """The question as the model reads it, up to where its answer begins."""
    content = f"{task.instruction}\n\n{example.input}"
    if getattr(tokenizer, "chat_template", None):
        turn = [{"role": "user", "content": content}]
        return str(tokenizer.apply_chat_template(turn, add_generation_prompt=True, tokenize=False))
    return f"{content}\n\n"


def normalised(text: str) -> str:
    """A text as exact match compares it: lower case, no white space, no full stops (recycling paper, 1.5)."""
    return re.sub(r"[\s.]+", "", text).lower()


def _question(tokenizer: Any, task: Task, example: Example) -> tuple[int, ...]:
    text = question_text(tokenizer, task, example)
    # A template writes the special tokens itself.
    special = not getattr(tokenizer, "chat_template", None)
    return tuple(tokenizer(text, add_special_tokens=special)["input_ids"])


def _end_of_turn(tokenizer: Any) -> int:
    """The token that ends an answer: the tokenizer's end of sequence, for most chat models their turn's."""
    if tokenizer.eos_token_id is None:
        raise UsageError("The tokenizer names no end of sequence; choose another base model.")
    return int(tokenizer.eos_token_id)
