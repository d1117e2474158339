"""Greedy answers to questions, as text."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

from catalog.errors import EvaluationError, UsageError
from merging.evaluation.scoring import WIDTH, batches, too_large
from merging.model import LoadedBase, Prompt, chat_format, in_pieces, quiet

MOST_NEW_TOKENS = 30
# Names of tables of positions, as in GPT-2, OPT and similar models.
_TABLES = frozenset({"wpe", "embed_positions", "position_embeddings"})
Progress = Callable[[int, int], None]


def generate(
    base: LoadedBase,
    prompts: Sequence[Prompt],
    *,
    most: int | Sequence[int] = MOST_NEW_TOKENS,
    stop: Sequence[str] = (),
    strip: bool = True,
    progress: Progress | None = None,
) -> list[str]:
    """The greedy answer to every question, without special tokens and, with `strip`, blanks at its ends.

    An answer has at most `most` tokens (one number, or one for each prompt), and ends at a token that ends a
    turn (`end_tokens`) or before the first text of `stop` in it. Raises UsageError for a number of tokens
    below 1 or an empty text, MemoryLimitError if a question alone does not fit into memory, and
    EvaluationError if a model with a table of positions has too few for the answer.
    """
    limits = _limits(prompts, most)
    if not all(stop):
        raise UsageError("A text that ends an answer (`stop`) must not be empty.")
    _check_positions(base, prompts, limits)
    texts = [""] * len(prompts)
    done = 0
    groups = _question_groups(base, prompts, limits)

    def answer(indices: Sequence[int]) -> list[list[int]]:
        group = [prompts[index].question for index in indices]
        return _continue_plainly(base, group, [limits[index] for index in indices], stop)

    for indices, rows in in_pieces(groups, answer, lambda index: too_large(prompts[index])):
        for index, row in zip(indices, rows, strict=True):
            text = _text(base, row, stop)
            texts[index] = text.strip() if strip else text
        done += len(indices)
        if progress is not None:
            progress(done, len(prompts))
    return texts


def end_tokens(base: LoadedBase) -> frozenset[int]:
    """The tokens at which an answer ends.

    The tokenizer's end of sequence, those of the model's generation settings, and the token with which the
    chat template closes an answer.
    """
    own = base.model.generation_config.eos_token_id
    ends = {base.tokenizer.eos_token_id, *([own] if isinstance(own, int) else own or ())}
    return frozenset((ends - {None}) | {chat_format(base.tokenizer).closing_token})


def _continue_plainly(
    base: LoadedBase, questions: Sequence[Sequence[int]], limits: Sequence[int], stop: Sequence[str]
) -> list[list[int]]:
    """The tokens after each question by the model's own `generate`, padded at their beginnings."""
    import torch
    from transformers import GenerationConfig, StoppingCriteriaList

    ends = end_tokens(base)
    pad = base.tokenizer.pad_token_id
    pad = base.tokenizer.eos_token_id if pad is None else pad
    longest = max(map(len, questions))
    settings = GenerationConfig(  # type: ignore[no-untyped-call]
        do_sample=False, max_new_tokens=max(limits), eos_token_id=sorted(ends), pad_token_id=pad
    )

    def stopped(tokens: Any, _scores: Any, **_: Any) -> Any:
        flags = [
            len(row) - longest >= limit or _has_stop(base, row[longest:], stop)
            for row, limit in zip(tokens, limits, strict=True)
        ]
        return torch.tensor(flags, device=tokens.device)

    tokens = torch.tensor([[pad] * (longest - len(q)) + list(q) for q in questions], device=base.device)
    mask = torch.tensor([[0] * (longest - len(q)) + [1] * len(q) for q in questions], device=base.device)
    criteria: Any = StoppingCriteriaList([stopped])
    with torch.no_grad(), quiet():
        out = base.model.generate(
            tokens, attention_mask=mask, generation_config=settings, stopping_criteria=criteria
        )
    rows = out[:, longest:].tolist()
    return [_until_end(row[:limit], ends) for row, limit in zip(rows, limits, strict=True)]


def _until_end(tokens: Sequence[int], ends: frozenset[int]) -> list[int]:
    """The tokens before the first that ends an answer."""
    end = next((at for at, token in enumerate(tokens) if token in ends), len(tokens))
    return list(tokens[:end])


def _has_stop(base: LoadedBase, tokens: Any, stop: Sequence[str]) -> bool:
    return bool(stop) and any(word in _decode(base, tokens) for word in stop)


def _text(base: LoadedBase, tokens: Sequence[int], stop: Sequence[str]) -> str:
    """The answer as text, up to the first stop."""
    text = _decode(base, tokens)
    return text[: min([place for word in stop if (place := text.find(word)) >= 0], default=len(text))]


def _decode(base: LoadedBase, tokens: Any) -> str:
    return str(base.tokenizer.decode(tokens, skip_special_tokens=True))


def _limits(prompts: Sequence[Prompt], most: int | Sequence[int]) -> list[int]:
    limits = [most] * len(prompts) if isinstance(most, int) else list(most)
    if len(limits) != len(prompts):
        raise UsageError(f"{len(prompts)} questions require as many numbers of tokens, not {len(limits)}.")
    if any(limit < 1 for limit in limits):
        raise UsageError(f"An answer must have at least 1 token (`most`), not {min(limits)}.")
    return limits


def _check_positions(base: LoadedBase, prompts: Sequence[Prompt], limits: Sequence[int]) -> None:
    """Raises EvaluationError if the longest question leaves no room for its answer."""
    sizes = [(len(prompt.question) + limit, limit) for prompt, limit in zip(prompts, limits, strict=True)]
    total, most = max(sizes, default=(0, 0))
    if total > (room := _positions(base.model)):
        raise EvaluationError(
            f"A question of {total - most} tokens leaves no room for an answer of {most} tokens in the "
            f"{room} positions of this model; shorten or remove it."
        )


def _positions(model: Any) -> float:
    """The size of a model's table of positions; no limit without one."""
    from torch import nn

    tables = (
        module.num_embeddings - getattr(module, "offset", 0)
        for name, module in model.named_modules()
        if isinstance(module, nn.Embedding) and name.rpartition(".")[2] in _TABLES
    )
    return min(tables, default=math.inf)


def _question_groups(base: LoadedBase, prompts: Sequence[Prompt], limits: Sequence[int]) -> list[list[int]]:
    """Indices of prompts to be answered together: one by one if padding or other rows may matter."""
    lengths = [len(prompt.question) + limit for prompt, limit in zip(prompts, limits, strict=True)]
    budget = WIDTH.get(base.device.type, WIDTH["cpu"]) * 4
    return batches(lengths, 0 if base.reading.depends_on_order else budget)
