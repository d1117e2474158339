"""Greedy answers to questions, as text.

What all questions begin with is read once: its keys and values stay in memory, and each batch of questions
goes on from there. A row leaves its batch when its answer ends. If a model would not give a text the same in
this way as alone (`merging.model.reading`), its own `generate` reads every question from its beginning.

An ensemble of several states of a model (adapters) generates one text: each state reads it, and the token
with the highest mean probability is next.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING, Any

from catalog.errors import EvaluationError, UsageError
from merging.evaluation.prefix import ReadPrefix, read_prefix, shared_length
from merging.evaluation.questions import check_reading, position_count
from merging.evaluation.scoring import batches, logit_options, too_large
from merging.evaluation.sizing import batch_tokens
from merging.model import LoadedBase, Prompt, Sizes, chat_format, in_pieces, quiet

if TYPE_CHECKING:
    from torch import Tensor

MOST_NEW_TOKENS = 30
# Tokens of a row by which the memory of a batch is measured.
_ROW = 128
# States of an ensemble on a processor whose keys and values count as those of one.
_MORE = 4
Progress = Callable[[int, int], None]
# Puts the model into one of its states for a block.
State = Callable[[], contextlib.AbstractContextManager[object]]


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
    return generate_together(
        base, prompts, [contextlib.nullcontext], most=most, stop=stop, strip=strip, progress=progress
    )


def generate_together(
    base: LoadedBase,
    prompts: Sequence[Prompt],
    states: Sequence[State],
    *,
    most: int | Sequence[int] = MOST_NEW_TOKENS,
    stop: Sequence[str] = (),
    strip: bool = True,
    progress: Progress | None = None,
) -> list[str]:
    """`generate` by the ensemble of several states of the model: the next token has the highest mean
    probability over them.

    Also raises EvaluationError for several states of a model whose texts cannot go on from keys and values.
    """
    limits = _limits(prompts, most)
    if not all(stop):
        raise UsageError("A text that ends an answer (`stop`) must not be empty.")
    _check_positions(base, prompts, limits)
    check_reading(base, prompts)
    ends = end_tokens(base)
    prefixes = [_read_in(state, base, prompts) for state in states]
    texts = [""] * len(prompts)

    def answer(indices: Sequence[int]) -> list[list[int]]:
        questions = [prompts[index].question for index in indices]
        most = [limits[index] for index in indices]
        known = [prefix for prefix in prefixes if prefix is not None]
        if len(known) == len(states) and _length(prompts, limits, indices) <= base.reading.tree_length:
            return _continue(base, states, known, questions, most, stop, ends)
        if len(states) > 1:
            raise EvaluationError(
                f"An ensemble of {base.name} cannot generate, since the model reads each text from its "
                "beginning; use tasks with choices."
            )
        with states[0]():
            return continue_in_full(base, questions, most, stop, ends)

    done = 0
    groups = question_groups(base, prompts, limits, len(states))
    size = lambda indices: len(states) * len(indices) * _length(prompts, limits, indices)  # noqa: E731
    sizes = Sizes(base.memory, "generation", size)
    for indices, rows in in_pieces(groups, answer, lambda index: too_large(prompts[index]), sizes):
        for index, row in zip(indices, rows, strict=True):
            text = answer_text(base, row, stop)
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


def _read_in(state: State, base: LoadedBase, prompts: Sequence[Prompt]) -> ReadPrefix | None:
    """The beginning that the questions share, read in a state; None if the model reads only complete
    texts."""
    if base.reading.depends_on_order or not prompts:
        return None
    questions = [prompt.question for prompt in prompts]
    with state():
        return read_prefix(base, questions[0][: shared_length(questions)])


def _length(prompts: Sequence[Prompt], limits: Sequence[int], indices: Sequence[int]) -> int:
    """Tokens of the longest of these questions with its answer."""
    return max(len(prompts[index].question) + limits[index] for index in indices)


def _continue(
    base: LoadedBase,
    states: Sequence[State],
    prefixes: Sequence[ReadPrefix],
    questions: Sequence[Sequence[int]],
    limits: Sequence[int],
    stop: Sequence[str],
    ends: frozenset[int],
) -> list[list[int]]:
    """The tokens after each question, whose rows are padded between the prefix and what follows it.

    Each state has read its prefix.
    """
    import torch

    answers: list[list[int]] = [[] for _ in questions]
    remaining = list(range(len(questions)))
    with torch.no_grad():
        batches_read = []
        for state, prefix in zip(states, prefixes, strict=True):
            with state():
                batches_read.append(_Batch(base, prefix, questions))
        while remaining:
            kept = []
            likely = _likely_tokens([batch.logits for batch in batches_read])
            for at, token in enumerate(likely[:, 0].tolist()):
                index = remaining[at]
                if token not in ends:
                    answers[index].append(token)
                    if len(answers[index]) < limits[index] and not _has_stop(base, answers[index], stop):
                        kept.append(at)
            remaining = [remaining[at] for at in kept]
            if remaining:
                for state, batch in zip(states, batches_read, strict=True):
                    with state():
                        batch.go_on(kept, likely)
    return answers


def _likely_tokens(logits: Sequence[Tensor]) -> Tensor:
    """The most likely token of every row by the mean probability, (rows, 1), from logits of each state."""
    import torch

    if len(logits) == 1:
        return logits[0].argmax(-1, keepdim=True)
    probabilities = (row.to(torch.promote_types(row.dtype, torch.float32)).softmax(-1) for row in logits)
    return torch.stack(list(probabilities)).mean(0).argmax(-1, keepdim=True)


class _Batch:
    """Rows of a batch with the keys and values of what they have read, and the logits of the next tokens,
    (rows, vocabulary)."""

    def __init__(self, base: LoadedBase, prefix: ReadPrefix, questions: Sequence[Sequence[int]]) -> None:
        import torch

        self._base, device, start = base, base.device, prefix.length
        own = [list(question[start:]) for question in questions]
        longest = max(map(len, own))
        padding = torch.tensor([longest - len(row) for row in own], device=device)[:, None]
        tokens = torch.tensor([row[:1] * (longest - len(row)) + row for row in own], device=device)
        places = torch.arange(longest, device=device)
        # Of every row: the keys that later tokens see.
        self._visible = torch.cat(
            [torch.ones(len(own), start, dtype=torch.bool, device=device), places >= padding], dim=1
        )
        earlier = torch.ones(longest, start + longest, dtype=torch.bool, device=device).tril(start)
        self._padded = bool(padding.any())
        self._cache = prefix.rows(len(own))
        self._positions = torch.tensor([[len(question)] for question in questions], device=device)
        self.logits = self._read(
            tokens, (start + places - padding).clamp(min=0), self._visible[:, None] & earlier
        )

    def go_on(self, kept: Sequence[int], tokens: Tensor) -> None:
        """Reads the next token of the rows at `kept`, from those of all rows; the others leave the batch."""
        import torch

        if len(kept) < len(tokens):
            rows = torch.tensor(kept, device=tokens.device)
            self._cache.batch_select_indices(rows)
            tokens, self._positions, self._visible = (
                values[rows] for values in (tokens, self._positions, self._visible)
            )
        self._visible = torch.cat([self._visible, self._visible.new_ones(len(tokens), 1)], dim=1)
        self.logits = self._read(tokens, self._positions, self._visible[:, None])
        self._positions = self._positions + 1

    def _read(self, tokens: Tensor, positions: Tensor, visible: Tensor) -> Tensor:
        """The logits after (rows, n) tokens; each sees the keys in `visible`, (rows, n, keys)."""
        import torch

        base = self._base
        mask = None
        if self._padded:
            mask = torch.zeros(visible.shape, dtype=base.dtype, device=base.device)
            mask = mask.masked_fill_(~visible, torch.finfo(base.dtype).min)[:, None]
        logits: Tensor = base.model(
            input_ids=tokens,
            position_ids=positions,
            attention_mask=mask,
            past_key_values=self._cache,
            use_cache=True,
            **logit_options(base.model, 1),
        ).logits
        return logits[:, -1].to(base.device)


def continue_in_full(
    base: LoadedBase,
    questions: Sequence[Sequence[int]],
    limits: Sequence[int],
    stop: Sequence[str],
    ends: frozenset[int],
) -> list[list[int]]:
    """The tokens after each question by the model's own `generate`, padded at their beginnings."""
    import torch
    from transformers import GenerationConfig, StoppingCriteriaList

    pad = base.tokenizer.pad_token_id
    pad = base.tokenizer.eos_token_id if pad is None else pad
    longest = max(map(len, questions))
    settings = GenerationConfig(  # type: ignore[no-untyped-call]
        do_sample=False,
        max_new_tokens=max(limits),
        eos_token_id=sorted(ends),
        pad_token_id=pad,
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
    with torch.no_grad(), quiet(), _no_settings(base.model):
        out = base.model.generate(
            tokens, attention_mask=mask, generation_config=settings, stopping_criteria=criteria
        )
    rows = out[:, longest:].tolist()
    return [_until_end(row[:limit], ends) for row, limit in zip(rows, limits, strict=True)]


@contextlib.contextmanager
def _no_settings(model: Any) -> Iterator[None]:
    """Inside the block the model has no generation settings of its own, such as beams or forbidden tokens,
    which transformers would take where none are given: an answer is the likeliest one."""
    from transformers import GenerationConfig

    own = model.generation_config
    model.generation_config = GenerationConfig()  # type: ignore[no-untyped-call]
    try:
        yield
    finally:
        model.generation_config = own


def _until_end(tokens: Sequence[int], ends: frozenset[int]) -> list[int]:
    """The tokens before the first that ends an answer."""
    end = next((at for at, token in enumerate(tokens) if token in ends), len(tokens))
    return list(tokens[:end])


def _has_stop(base: LoadedBase, tokens: Any, stop: Sequence[str]) -> bool:
    return bool(stop) and any(word in _decode(base, tokens) for word in stop)


def answer_text(base: LoadedBase, tokens: Sequence[int], stop: Sequence[str] = ()) -> str:
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
    if total > (room := position_count(base.model)):
        raise EvaluationError(
            f"A question of {total - most} tokens leaves no room for an answer of {most} tokens in the "
            f"{room} positions of this model; shorten or remove it."
        )


def _read_probe(base: LoadedBase, tokens: int) -> object:
    """Reads rows of 128 tokens, that many in all, and keeps their keys and values meanwhile."""
    import torch

    rows = torch.zeros((tokens // _ROW, _ROW), dtype=torch.int64, device=base.device)
    with torch.no_grad():
        return base.model(input_ids=rows, use_cache=True, **logit_options(base.model, 1))


def question_groups(
    base: LoadedBase, prompts: Sequence[Prompt], limits: Sequence[int], states: int = 1
) -> list[list[int]]:
    """Indices of prompts to be answered together: one by one if padding or other rows may matter.

    Each of several `states` of the model keeps the keys and values of all rows; on a processor those of an
    ensemble may take four times the memory of one, as shorter batches read the weights more often.
    """
    copies = states if base.device.type == "cuda" else -(-states // _MORE)
    lengths = [copies * (len(prompt.question) + limit) for prompt, limit in zip(prompts, limits, strict=True)]
    budget = batch_tokens(base, "generation", lambda tokens: _read_probe(base, tokens))
    return batches(lengths, 0 if base.reading.depends_on_order else budget)
