"""Examples as tokens: the question through the tokenizer's chat template, each answer closed by its end.

The question is one user's turn, instruction and input with an empty line between them, or, by the protocol or
the task, a system message and a user's turn; an answer is followed by the token that ends a turn. The loss of
an answer, and the choice among answers, count these tokens only.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import date
from functools import lru_cache
from typing import Any

from catalog.errors import UsageError
from merging.model.protocol import OWN, Protocol
from merging.model.tasks import Example, Task

# The date of the prompts, for templates that include one: that of Llama 3.1's template.
DATE = date(2024, 7, 26)
_OTHER_DATE = date(2031, 11, 3)
_CLOCK = "strftime_now"
_THINKING = "enable_thinking"
# A content that no template contains.
_SENTINEL = "qzcontentzq"
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


@dataclass(frozen=True, slots=True)
class ChatFormat:
    """The properties of a tokenizer's chat template, by rendering it.

    `closing_token` ends an answer. `has_system` is whether a system message is part of the text; else the
    instruction is the beginning of the user's message. `silences` says that the template asks for an answer
    without thoughts if told so (`enable_thinking=False`, as Qwen 3), and that its text is another then.
    """

    closing_token: int
    has_system: bool
    silences: bool


def chat_format(tokenizer: Any) -> ChatFormat:
    """The properties of the tokenizer's chat template; those of plain text if it has none.

    The closing token is the special token with which the template closes an assistant's message, whatever its
    name ("<|eot_id|>", "<|im_end|>", "<end_of_turn>", "<|end|>"), or the end of sequence if it closes none.
    Raises UsageError for a tokenizer without either.
    """
    if not getattr(tokenizer, "chat_template", None):
        return ChatFormat(_end_of_sequence(tokenizer), False, False)
    question = {"role": "user", "content": "?"}
    texts = {_in_template(tokenizer, [question], DATE, silent=silent) for silent in (True, False)}
    system = _attempt(tokenizer, [{"role": "system", "content": _SENTINEL}, question])
    return ChatFormat(_closing_token(tokenizer), _SENTINEL in system, len(texts) > 1)


def encode(
    tokenizer: Any, task: Task, examples: Sequence[Example], limit: int, *, date: date = DATE
) -> list[Prompt]:
    """The examples in tokens; raises UsageError for one that is longer than `limit` tokens."""
    prompts = encode_each(tokenizer, task, examples, date=date)
    for number, prompt in enumerate(prompts, 1):
        if prompt.length > limit:
            raise length_error(task, number, prompt.length, limit)
    return prompts


def length_error(task: Task, number: int, length: int, limit: int) -> UsageError:
    """The error for an example that is too long."""
    return UsageError(
        f"Example {number} of {task.name} has {length} tokens, more than the {limit} that the "
        'model reads; shorten or remove it, or leave such examples out (`too_long="skip"`).'
    )


def encode_each(
    tokenizer: Any,
    task: Task,
    examples: Sequence[Example],
    *,
    date: date = DATE,
    protocol: Protocol = OWN,
) -> list[Prompt]:
    """The examples in tokens as the protocol asks them, without a limit of length."""
    answers: dict[str, tuple[int, ...]] = {}
    chat = chat_format(tokenizer)

    def answer(text: str) -> tuple[int, ...]:
        if text not in answers:
            content = text.strip() if protocol.trim else text
            tokens = tokenizer(content, add_special_tokens=False)["input_ids"]
            answers[text] = (*tokens, chat.closing_token)
        return answers[text]

    # A template writes the special tokens itself.
    special = not getattr(tokenizer, "chat_template", None)
    appended = _appended_count(tokenizer) if special else 0
    prompts = []
    for example in examples:
        choices = example.choices if task.metric == "accuracy" else (example.target,)
        text = question_text(tokenizer, task, example, date, protocol, chat)
        tokens = tokenizer(text, add_special_tokens=special)["input_ids"]
        question = tuple(tokens[: len(tokens) - appended])
        prompts.append(Prompt(question, tuple(map(answer, choices)), choices.index(example.target)))
    return prompts


def _appended_count(tokenizer: Any) -> int:
    """The number of special tokens that the tokenizer appends to a text; some end every text so."""
    text, whole = (list(tokenizer("?", add_special_tokens=special)["input_ids"]) for special in (False, True))
    places = [at for at in range(len(whole)) if text and whole[at : at + len(text)] == text]
    return len(whole) - len(text) - places[0] if places else 0


def folds_instruction(tokenizer: Any, task: Task, protocol: Protocol) -> bool:
    """Whether the instruction is to be a system message and the tokenizer's template has none."""
    return _in_system(task, protocol) and not chat_format(tokenizer).has_system


def _in_system(task: Task, protocol: Protocol) -> bool:
    return "system" in (protocol.instruction_role, task.instruction_role)


def question_text(
    tokenizer: Any,
    task: Task,
    example: Example,
    date: date = DATE,
    protocol: Protocol = OWN,
    chat: ChatFormat | None = None,
) -> str:
    """The question as the model reads it, up to the beginning of its answer, with this date."""
    instruction, content = task.instruction, example.input
    if protocol.trim:
        instruction, content = instruction.strip(), content.strip()
    if _in_system(task, protocol) and (chat or chat_format(tokenizer)).has_system:
        turns = [{"role": "system", "content": instruction}, {"role": "user", "content": content}]
    else:
        turns = [{"role": "user", "content": f"{instruction}\n\n{content}"}]
    if getattr(tokenizer, "chat_template", None):
        return _in_template(tokenizer, turns, date, date_string=_format_date(date))
    return f"{instruction}\n\n{content}\n\n"


def date_of(tokenizer: Any, date: date = DATE) -> str | None:
    """The date in the format of records if it is part of a question's text; else None.

    It is if the chat template uses the current time, and if `date` differs from the template's default.
    """
    if not getattr(tokenizer, "chat_template", None):
        return None
    question = [{"role": "user", "content": "?"}]
    texts = {_in_template(tokenizer, question, other) for other in (DATE, _OTHER_DATE)}
    texts.add(_in_template(tokenizer, question, date, date_string=_format_date(date)))
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
    variables: dict[str, Any] = {
        "date_string": _format_date(date),
        "continue_final_message": not open_turn,
    }
    return _in_template(tokenizer, turns, date, answered=not open_turn, **variables)


def _in_template(
    tokenizer: Any,
    turns: Sequence[Mapping[str, str]],
    date: date,
    *,
    answered: bool = False,
    silent: bool = True,
    **variables: Any,
) -> str:
    """A conversation in the chat template, with midnight of the date as the current time.

    It ends where the assistant's answer begins, or with this answer if it is `answered`. A model that can
    think is asked not to if `silent`.
    """
    template = tokenizer.get_chat_template()
    if _CLOCK in template:
        variables["chat_template"] = _clock(date) + template
    if silent and _THINKING in template:
        variables[_THINKING] = False
    text = tokenizer.apply_chat_template(
        list(turns), add_generation_prompt=not answered, tokenize=False, **variables
    )
    return str(text)


def _attempt(tokenizer: Any, turns: Sequence[Mapping[str, str]], *, answered: bool = False) -> str:
    """A conversation in the chat template; the empty text if the template refuses it."""
    from jinja2 import TemplateError

    try:
        return _in_template(tokenizer, turns, DATE, answered=answered)
    except (TemplateError, TypeError):
        return ""


def _closing_token(tokenizer: Any) -> int:
    """The special token that comes next after an assistant's message in the chat template."""
    turns = [{"role": "user", "content": "?"}, {"role": "assistant", "content": _SENTINEL}]
    _, _, rest = _attempt(tokenizer, turns, answered=True).rpartition(_SENTINEL)
    special = {
        number
        for number, token in tokenizer.added_tokens_decoder.items()
        if token.content.strip() and token.content in rest
    }
    for token in tokenizer(rest, add_special_tokens=False)["input_ids"] if special else ():
        if token in special:
            return int(token)
        if tokenizer.decode([token]).strip():
            break
    return _end_of_sequence(tokenizer)


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


def final_answer(text: str, marker: str) -> str:
    """What follows the last marker in a text; the whole text if it has none, or the marker is empty.

    Markers are read from the left, as in the recycling paper's code: "#### 7" leaves " 7", "##### 7" "# 7".
    """
    return text.split(marker)[-1] if marker else text


def normalise_text(text: str) -> str:
    """A text as exact match compares it: lower case, no blanks, no full stops and line ends at its ends.

    As the recycling paper's code does (r-three/realistic-adaptive-merging at cfc70df): signs between
    characters, such as the point of 12.5 or a line end, are part of the answer.
    """
    return text.replace(" ", "").strip().strip(".").lower()


def _end_of_sequence(tokenizer: Any) -> int:
    if tokenizer.eos_token_id is None:
        raise UsageError("The tokenizer has no end-of-sequence token; use another base model.")
    return int(tokenizer.eos_token_id)
