"""The requests of lm-evaluation-harness, answered by a loaded base model: its interface `LM`, by facts.

Contexts and answers are tokenised as `lm_eval.models.huggingface` does: together, without a closing token.
Answers to one context are read with it in one tree. Nothing of the harness is imported here.
"""

from __future__ import annotations

import typing
from collections.abc import Iterator, Mapping, Sequence
from itertools import islice
from typing import Any

from catalog.errors import EvaluationError, UsageError
from merging.evaluation.generation import generate
from merging.evaluation.questions import check_reading, reads_plainly
from merging.evaluation.scoring import greedy_likelihoods, likelihoods, mean_loss
from merging.evaluation.trees import pack_prompts, tree_of
from merging.model import LoadedBase, Prompt, render_turns

# Tokens to generate where a task does not say how many, as in the harness.
MOST_TOKENS = 256
_MOST_NAMES = ("max_gen_toks", "max_new_tokens", "max_tokens", "max_completion_tokens")
_STOP_NAME = "until"


class Request(typing.Protocol):
    """A request of the harness: its kind, its arguments, and the document that it belongs to."""

    request_type: str
    doc_id: int | None

    @property
    def args(self) -> tuple[Any, ...]:
        """(context, continuation), (text,) or (context, settings of generation)."""
        ...


class HarnessModel:
    """A base model in its current state as the harness asks models.

    Tokens of contexts and answers are kept, so that the same requests for the next adapter cost no
    tokenising. Texts longer than `limit` tokens are an EvaluationError: remove their documents first
    (`too_long`).
    """

    rank = 0
    world_size = 1

    def __init__(self, base: LoadedBase) -> None:
        self.base = base
        tokenizer = base.tokenizer
        # What precedes an empty context: the beginning of a sequence, or its end where there is none.
        starts = (tokenizer.bos_token_id, tokenizer.eos_token_id)
        self._prefix = next((int(token) for token in starts if token is not None), None)
        self._tokens: dict[str, tuple[int, ...]] = {}

    @property
    def tokenizer_name(self) -> str:
        """The name under which the harness would keep requests; it keeps none here."""
        return self.base.name

    def apply_chat_template(
        self, chat_history: Sequence[Mapping[str, str]], add_generation_prompt: bool = True
    ) -> str:
        """The turns in the model's chat template, with the base model's date."""
        return render_turns(
            self.base.tokenizer, chat_history, self.base.date, open_turn=add_generation_prompt
        )

    def chat_template(self, chat_template: bool | str = False) -> str:
        """The template's text."""
        return str(self.base.tokenizer.chat_template or "")

    def loglikelihood(self, requests: Sequence[Request]) -> list[tuple[float, bool]]:
        """Of each request log p(answer | context) in nats, and whether greedy generation begins with it."""
        groups: dict[tuple[int, ...], dict[tuple[int, ...], int]] = {}
        pairs = [self._pair(*request.args) for request in requests]
        for context, answer in pairs:
            answers = groups.setdefault(context, {})
            answers.setdefault(answer, len(answers))
        prompts = [Prompt(context, tuple(answers), 0) for context, answers in groups.items()]
        check_reading(self.base, prompts)
        values = dict(zip(groups, greedy_likelihoods(self.base, prompts), strict=True))
        return [values[context][groups[context][answer]] for context, answer in pairs]

    def loglikelihood_rolling(self, requests: Sequence[Request]) -> list[float]:
        """log p(text) in nats of each request, in windows of at most `limit` tokens.

        Each token is predicted once; the last window is full, as in the harness.
        """
        windows = [list(self._windows(request.args[0])) for request in requests]
        prompts = [prompt for parts in windows for prompt in parts]
        check_reading(self.base, prompts)
        sums = iter(likelihoods(self.base, prompts))
        return [sum(next(sums)[0] for _ in parts) for parts in windows]

    def generate_until(self, requests: Sequence[Request]) -> list[str]:
        """The greedy continuation of each context, up to its first stop string; white space is kept."""
        texts: list[str] = [""] * len(requests)
        groups: dict[tuple[int, tuple[str, ...]], list[int]] = {}
        for number, request in enumerate(requests):
            groups.setdefault(_generation(request.args[1]), []).append(number)
        for (most, stop), numbers in groups.items():
            contexts = [self._context(requests[number]) for number in numbers]
            # Any answer: only questions are read.
            prompts = [Prompt(context, (context[-1:],), 0) for context in contexts]
            for number, text in zip(
                numbers, generate(self.base, prompts, most=most, stop=stop, strip=False), strict=True
            ):
                texts[number] = text
        return texts

    def too_long(self, requests: Sequence[Request]) -> dict[int | None, int]:
        """By document, the tokens of its longest request where these are more than the model reads."""
        lengths: dict[int | None, int] = {}
        for request in requests:
            if (length := self._length(request)) > self.base.limit:
                lengths[request.doc_id] = max(length, lengths.get(request.doc_id, 0))
        return lengths

    def tokens(self, requests: Sequence[Request]) -> int:
        """The number of tokens that the model reads and writes for the requests, at most."""
        prompts = [prompt for request in requests for prompt in self._prompts(request)]
        read = sum(
            len(tree_of(prompts[at] for at in group).tokens) for group in pack_prompts(prompts, 1 << 12)
        )
        generated = (
            _generation(item.args[1])[0] for item in requests if item.request_type == "generate_until"
        )
        return read + sum(generated)

    def mark(self, requests: Sequence[Request]) -> str:
        """The loss on the first few requests: a model of the same name may be different.

        An empty text may have no tokens; "" if no request has any.
        """
        firsts = (prompt for request in requests for prompt in islice(self._prompts(request), 1))
        prompts = list(islice(firsts, 4))
        if not prompts:
            return ""
        check_reading(self.base, prompts)
        return f"{mean_loss(prompts, likelihoods(self.base, prompts)):.4g}"

    def reads_plainly(self, requests: Sequence[Request]) -> bool:
        """Whether some of the requests are read individually since a tree would be wrong."""
        return reads_plainly(self.base, [prompt for item in requests for prompt in self._prompts(item)])

    def _prompts(self, request: Request) -> Iterator[Prompt]:
        """What is read for a request; a context alone is read but for its last token."""
        if request.request_type == "loglikelihood_rolling":
            yield from self._windows(request.args[0])
        elif request.request_type == "generate_until":
            context = self._context(request)
            yield Prompt(context[:-1] or context, (context[-1:],), 0)
        else:
            context, answer = self._pair(*request.args)
            yield Prompt(context, (answer,), 0)

    def _length(self, request: Request) -> int:
        if request.request_type == "loglikelihood_rolling":
            return 0
        if request.request_type == "generate_until":
            return len(self._context(request)) + _generation(request.args[1])[0]
        return sum(map(len, self._pair(*request.args)))

    def _context(self, request: Request) -> tuple[int, ...]:
        """The tokens after which text is generated: at least the one that begins a text."""
        return self._encode(request.args[0]) or (self._start,)

    def _pair(self, context: str, continuation: str) -> tuple[tuple[int, ...], tuple[int, ...]]:
        """The tokens of a context and of its continuation, tokenised together.

        Blanks at the end of the context belong to the continuation.
        """
        if not context:
            answer = self._encode(continuation, special=False)
            start = (self._start,)
            pair = (start, answer) if answer[:1] != start else (answer[:1], answer[1:])
        else:
            ending = context[len(context.rstrip()) :]
            context = context.rstrip()
            both, tokens = self._encode(f"{context}{ending}{continuation}"), self._encode(context)
            pair = tokens, both[len(tokens) :]
        if not pair[1] or not pair[0]:
            raise EvaluationError(
                f"The answer {continuation[:40]!r} has no tokens after those of its context; change the task."
            )
        return pair

    def _windows(self, text: str) -> Iterator[Prompt]:
        """A text in windows, each a context and the tokens that it predicts."""
        tokens = (self._start, *self._encode(text))
        width = self.base.limit
        for start in range(0, len(tokens) - 1, width):
            end = min(start + width, len(tokens) - 1)
            # The first window begins with the prefix; later ones reach back to be full.
            first = 0 if start == 0 else end - width
            yield Prompt(tokens[first : start + 1], (tokens[start + 1 : end + 1],), 0)

    @property
    def _start(self) -> int:
        if self._prefix is None:
            raise UsageError("The tokenizer has no token that begins or ends a sequence; use another model.")
        return self._prefix

    def _encode(self, text: str, special: bool = True) -> tuple[int, ...]:
        """The tokens of a text, with those that the tokenizer adds unless the text begins with them."""
        key = text if special else f"\0{text}"
        if key not in self._tokens:
            tokenizer = self.base.tokenizer
            start = "" if self._prefix is None else tokenizer.decode([self._prefix])
            add = special and not (start and text.startswith(start))
            self._tokens[key] = tuple(tokenizer(text, add_special_tokens=add)["input_ids"])
        return self._tokens[key]


def _generation(settings: Mapping[str, Any]) -> tuple[int, tuple[str, ...]]:
    """The largest number of new tokens, and the stop strings; raises UsageError for sampling."""
    if settings.get("do_sample") and settings.get("temperature") != 0:
        raise UsageError("The task samples its answers; only greedy generation is supported.")
    stop = settings.get(_STOP_NAME) or ()
    stops = (stop,) if isinstance(stop, str) else tuple(stop)
    most = next((settings[name] for name in _MOST_NAMES if settings.get(name) is not None), MOST_TOKENS)
    return int(most), tuple(filter(None, stops))
