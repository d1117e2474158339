"""Examples as the prompts of a model, with a count of those that are too long and a check of its reading.

Whether a tree of prompts gives the same results as each prompt alone is checked with prompts of the task,
once for each model and length (`merging.model.reading`): a tree as crowded as any, and the same texts by
themselves.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

from catalog.errors import UsageError
from merging.evaluation.scoring import both_ways, tree_width
from merging.evaluation.trees import TokenTree
from merging.model import (
    OWN,
    Example,
    LoadedBase,
    Prompt,
    Protocol,
    Task,
    date_of,
    encode_each,
    folds_instruction,
    is_shortage,
    length_error,
)

TooLong = Literal["error", "skip"]
# Of a tree and of plain reading, log p of a token may differ by this many times the data type's step to the
# power of 2/3 (2.4e-4 in float32, .1 in float16, .4 in bfloat16), or by this many times the difference of two
# plain batches of the same texts. SmolLM2-135M's differ by 1e-5 in float32 and .16 in bfloat16.
_ROUNDING = 10.0
_NOISE = 4.0
# Names of tables of positions: embeddings of GPT-2, OPT and similar models, sines of GPT-J and CodeGen.
_TABLES = frozenset({"wpe", "embed_positions", "position_embeddings", "positions_embed"})


@dataclass(frozen=True, slots=True)
class Questions:
    """Examples that a model can read, with their prompts by `protocol`; `left_out` are too long for it.

    `folded` says that an instruction that was to be a system message is in the user's.
    """

    examples: tuple[Example, ...]
    prompts: tuple[Prompt, ...]
    left_out: int = 0
    protocol: Protocol = OWN
    folded: bool = False


def ask(
    base: LoadedBase,
    task: Task,
    examples: Sequence[Example],
    too_long: TooLong = "error",
    protocol: Protocol = OWN,
    new_tokens: int = 0,
) -> Questions:
    """The examples as the base model reads them; those longer than its limit are an error or left out, never
    cut.

    Where answers of `new_tokens` are generated, "skip" leaves out too what leaves no room for that many in a
    model's table of positions. Checks the base model's way of reading. Raises UsageError for an example that
    is too long, or with "skip" if no other is left, without any example, and for a choice without tokens
    where the protocol counts no other.
    """
    if not examples:
        raise UsageError(f"There are no examples of {task.name} to read; give at least one.")
    prompts = encode_each(base.tokenizer, task, examples, date=base.date, protocol=protocol)
    if task.metric == "accuracy" and protocol.answers not in ("likelihood", "generation"):
        _refuse_empty_choices(task, examples, prompts)
    lengths = [_length(base, prompt, protocol) for prompt in prompts]
    if too_long == "error":
        for number, length in enumerate(lengths, 1):
            if length > base.limit:
                raise length_error(task, number, length, base.limit)
    positions = position_count(base.model) if new_tokens and too_long == "skip" else math.inf
    read = [
        at
        for at, length in enumerate(lengths)
        if length <= base.limit and len(prompts[at].question) + new_tokens <= positions
    ]
    if not read:
        limit, answers = min(base.limit, positions), f" with answers of {new_tokens}" if new_tokens else ""
        raise UsageError(
            f"All {len(examples)} examples of {task.name} are longer{answers} than the {limit} tokens that "
            "the model reads; shorten them or choose another model."
        )
    prompts_read = tuple(prompts[at] for at in read)
    check_reading(base, prompts_read)
    return Questions(
        tuple(examples[at] for at in read),
        prompts_read,
        len(examples) - len(read),
        protocol,
        folds_instruction(base.tokenizer, task, protocol),
    )


def _refuse_empty_choices(task: Task, examples: Sequence[Example], prompts: Sequence[Prompt]) -> None:
    """Raises UsageError for a choice of which the tokenizer leaves nothing but its closing token."""
    for number, (example, prompt) in enumerate(zip(examples, prompts, strict=True), 1):
        for choice, answer in zip(example.choices, prompt.answers, strict=True):
            if len(answer) == 1:
                raise UsageError(
                    f"Example {number} of {task.name} has the choice {choice[:40]!r}, of which the tokenizer "
                    "leaves no tokens; use another base model, or a protocol that counts the closing token."
                )


def _length(base: LoadedBase, prompt: Prompt, protocol: Protocol) -> int:
    """The number of tokens of a prompt that is compared with the model's limit.

    With `question_limit` it is that of the question and one of its answer, unless the whole is longer than
    the positions that the model has.
    """
    if not protocol.question_limit:
        return prompt.length
    positions = getattr(base.model.config.get_text_config(), "max_position_embeddings", None)
    if prompt.length > max(base.limit, positions or prompt.length):
        return prompt.length
    return len(prompt.question) + 1


def position_count(model: Any) -> float:
    """The size of a model's table of positions; no limit without one."""
    from torch import nn

    tables = [
        module.num_embeddings - getattr(module, "offset", 0)
        for name, module in model.named_modules()
        if isinstance(module, nn.Embedding) and name.rpartition(".")[2] in _TABLES
    ]
    tables += [len(values) for name, values in model.named_buffers() if name.rpartition(".")[2] in _TABLES]
    return min(tables, default=math.inf)


def prompt_date(base: LoadedBase) -> str | None:
    """The date of the prompts, if the base model's template includes one; else None."""
    return date_of(base.tokenizer, base.date)


def reads_plainly(base: LoadedBase, prompts: Sequence[Prompt]) -> bool:
    """Whether some of the prompts are read individually since a tree would be wrong."""
    return any(prompt.depth > base.reading.tree_length for prompt in prompts)


def unusual(base: LoadedBase, *question_sets: Questions) -> dict[str, Any]:
    """The unusual properties of questions for a record: protocol, instruction in the user's message although
    it was to be a system message, date, plain reading, examples left out."""
    date, left_out = prompt_date(base), sum(questions.left_out for questions in question_sets)
    plain = any(reads_plainly(base, questions.prompts) for questions in question_sets)
    protocol = question_sets[0].protocol.name
    return {
        **({"protocol": protocol} if protocol else {}),
        **({"folded": True} if any(questions.folded for questions in question_sets) else {}),
        **({"date": date} if date else {}),
        **({"plain": True} if plain else {}),
        **({"left_out": left_out} if left_out else {}),
    }


def check_reading(base: LoadedBase, prompts: Sequence[Prompt]) -> None:
    """Records in `base.reading` up to which length trees match plain reading, for these prompts.

    Tries the longest prompt whose length is not known yet, then the shortest, then the middle one.
    """
    reading, tried = base.reading, 0
    while True:
        unsure = sorted(
            (prompt for prompt in prompts if reading.unsure(prompt.depth)), key=lambda prompt: prompt.depth
        )
        if not unsure:
            return
        at = (len(unsure) - 1, 0)[tried] if tried < 2 else len(unsure) // 2
        tried += 1
        equal = _equal(base, unsure[at], unsure)
        if equal is None:
            return
        reading.learn(unsure[at].depth, equal)


def _equal(base: LoadedBase, longest: Prompt, other_prompts: Sequence[Prompt]) -> bool | None:
    """Whether a tree with these prompts gives the same as each alone; None if the model's output is not
    finite."""
    import torch

    width = tree_width(base)
    while True:
        prompts, few = _crowd(longest, other_prompts, width)
        try:
            tree, alone, batch = both_ways(base, prompts, few)
            break
        except (RuntimeError, MemoryError) as error:
            if not is_shortage(error):
                raise
        if width < longest.depth:
            # If two paths do not fit into memory, trees of several are not read either.
            return None
        width //= 2
    if not all(map(math.isfinite, alone)):
        return None
    lengths = [len(answer) for at in few for answer in prompts[at].answers]
    noise = _apart(alone, batch, lengths)
    step = max(torch.finfo(base.dtype).eps, torch.finfo(torch.float32).eps)
    return bool(tree) and _apart(tree, alone, lengths) <= max(_ROUNDING * step ** (2 / 3), _NOISE * noise)


def _apart(left: Sequence[float], right: Sequence[float], lengths: Sequence[int]) -> float:
    """The largest difference of two lists of likelihoods, a token."""
    return max(abs(a - b) / length for a, b, length in zip(left, right, lengths, strict=True))


def _crowd(longest: Prompt, candidates: Sequence[Prompt], width: int) -> tuple[list[Prompt], list[int]]:
    """Prompts of a tree of about `width` tokens that branches repeatedly, and which of them are compared.

    The longest one comes first and, with its second half turned, last; between them stand others and, to fill
    the tree, its tokens in other orders.
    """
    question, answer = longest.question, max(longest.answers, key=len)
    half = len(question) // 2
    turned = Prompt((*question[:half], *question[half:][::-1]), (answer,), 0)
    prompts = [Prompt(question, (question[: len(answer)], answer), 1)]
    tree = TokenTree()
    tree.add(prompts[0])
    fitting = [prompt for prompt in candidates if prompt.depth <= longest.depth and prompt is not longest][:2]
    middle = [Prompt(prompt.question, prompt.answers[:2], 0) for prompt in fitting]
    filling = [Prompt((*question[at:], *question[:at]), (answer,), 0) for at in range(1, len(question), 7)]
    for prompt in (*middle, *filling):
        if len(tree.tokens) + tree.new_tokens(prompt) + tree.new_tokens(turned) > width:
            break
        prompts.append(prompt)
        tree.add(prompt)
    return [*prompts, turned], sorted({*range(min(1 + len(middle), len(prompts))), len(prompts)})
