"""Examples as tokens: the question through the tokenizer's chat template, each answer closed by its end.

The question is one user's turn, instruction and input with an empty line between them; an answer is followed
by the token that ends a turn. The loss of an answer, and the choice among answers, count these tokens only.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import date
from functools import lru_cache
from typing import Any

from catalog.errors import UsageError
from merging.model.tasks import Example, Task

# The date of the prompts, for templates that include one: that of Llama 3.1's template.
DATE = date(2024, 7, 26)
_OTHER_DATE = date(2031, 11, 3)
_CLOCK = "strftime_now"
_MONTHS = ("Jan", "Feb", "Mar", "Apr", "May", "Jun", "Jul", "Aug", "Sep", "Oct", "Nov", "Dec")


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

    @property
    def depth(self) -> int:
        """Tokens of the longest path that is read: an answer's last token is predicted and never read."""
        return self.length - 1


def encode(
    tokenizer: Any, task: Task, examples: Sequence[Example], limit: int, *, date: date = DATE
) -> list[Prompt]:
    """The examples in tokens; raises UsageError for one that is longer than `limit` tokens."""
    prompts = encode_each(tokenizer, task, examples, date=date)
    for number, prompt in enumerate(prompts, 1):
        if prompt.length > limit:
            raise UsageError(
                f"Example {number} of {task.name} has {prompt.length} tokens, more than the {limit} that the "
                'model reads; shorten or remove it, or leave such examples out (`too_long="skip"`).'
            )
    return prompts


def encode_each(
    tokenizer: Any, task: Task, examples: Sequence[Example], *, date: date = DATE
) -> list[Prompt]:
    """The examples in tokens, without a limit of length."""
    answers: dict[str, tuple[int, ...]] = {}

    def answer(text: str) -> tuple[int, ...]:
        if text not in answers:
            answers[text] = (*tokenizer(text, add_special_tokens=False)["input_ids"], end)
        return answers[text]

    end = _end_of_turn(tokenizer)
    prompts = []
    for example in examples:
        choices = example.choices if task.metric == "accuracy" else (example.target,)
        question = _question(tokenizer, task, example, date)
        prompts.append(Prompt(question, tuple(map(answer, choices)), choices.index(example.target)))
    return prompts


def question_text(tokenizer: Any, task: Task, example: Example, date: date = DATE) -> str:
    """The question as the model reads it, up to the beginning of its answer, with this date."""
    content = f"{task.instruction}\n\n{example.input}"
    if getattr(tokenizer, "chat_template", None):
        return _in_template(tokenizer, content, date, date_string=_format_date(date))
    return f"{content}\n\n"


def date_of(tokenizer: Any, date: date = DATE) -> str | None:
    """The date in the format of records if it is part of a question's text; else None.

    It is if the chat template uses the current time, and if `date` differs from the template's default.
    """
    if not getattr(tokenizer, "chat_template", None):
        return None
    texts = {_in_template(tokenizer, "?", other) for other in (DATE, _OTHER_DATE)}
    texts.add(_in_template(tokenizer, "?", date, date_string=_format_date(date)))
    return None if len(texts) == 1 else date.isoformat()


def render_turns(
    tokenizer: Any, turns: Sequence[Mapping[str, str]], date: date = DATE, *, open_turn: bool = True
) -> str:
    """Turns (role, content) in the tokenizer's chat template, with midnight of the date as the current time.

    With `open_turn` the assistant's turn begins after them; else the last turn is left open. Raises
    UsageError for a tokenizer without a template.
    """
    if not getattr(tokenizer, "chat_template", None):
        raise UsageError("The tokenizer has no chat template; use another base model, or plain texts.")
    template = tokenizer.get_chat_template()
    variables = {"chat_template": _clock(date) + template} if _CLOCK in template else {}
    text = tokenizer.apply_chat_template(
        [dict(turn) for turn in turns],
        tokenize=False,
        add_generation_prompt=open_turn,
        continue_final_message=not open_turn,
        date_string=_format_date(date),
        **variables,
    )
    return str(text)


def _in_template(tokenizer: Any, content: str, date: date, **variables: str) -> str:
    """A user's turn in the chat template, with midnight of the date as the current time."""
    template = tokenizer.get_chat_template()
    if _CLOCK in template:
        variables["chat_template"] = _clock(date) + template
    turn = [{"role": "user", "content": content}]
    return str(tokenizer.apply_chat_template(turn, add_generation_prompt=True, tokenize=False, **variables))


@lru_cache
def _clock(date: date) -> str:
    """A macro that replaces the function for the current time in templates.

    transformers does not accept other functions for templates. The line end belongs to the macro's tag, so
    that the template after it begins at a line's start.
    """
    filters = "".join(
        f"|replace({json.dumps(sign)}, {json.dumps(date.strftime(sign))})"
        for letter in "aAbBcCdDeFgGhHIjlmMpPrRsSTuUVwWxXyYzZf"
        for sign in (f"%-{letter}", f"%{letter}")
    )
    return f"{{% macro {_CLOCK}(format) %}}{{{{ format{filters}|replace('%%', '%') }}}}{{% endmacro %}}\n"


def _format_date(date: date) -> str:
    """The date as Llama's templates have it; months are English for every locale."""
    return f"{date.day:02d} {_MONTHS[date.month - 1]} {date.year}"


def normalise_text(text: str) -> str:
    """A text as exact match compares it: lower case, no blanks, no full stops and line ends at its ends.

    As the recycling paper's code does (r-three/realistic-adaptive-merging at cfc70df): signs between
    characters, such as the point of 12.5 or a line end, are part of the answer.
    """
    return text.replace(" ", "").strip().strip(".").lower()


def _question(tokenizer: Any, task: Task, example: Example, date: date) -> tuple[int, ...]:
    text = question_text(tokenizer, task, example, date)
    # A template writes the special tokens itself.
    special = not getattr(tokenizer, "chat_template", None)
    return tuple(tokenizer(text, add_special_tokens=special)["input_ids"])


def _end_of_turn(tokenizer: Any) -> int:
    """The token that ends an answer: the tokenizer's end of sequence, for most chat models their turn's."""
    if tokenizer.eos_token_id is None:
        raise UsageError("The tokenizer has no end-of-sequence token; use another base model.")
    return int(tokenizer.eos_token_id)
