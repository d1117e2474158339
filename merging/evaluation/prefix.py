"""The beginning that several texts share, read once: its keys and values in every layer."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from merging.evaluation.scoring import logit_options
from merging.model import LoadedBase, is_shortage

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True, slots=True, eq=False)
class ReadPrefix:
    """Keys and values of `length` tokens: for each layer two tensors of (1, heads, length, head width)."""

    length: int
    layers: tuple[tuple[Tensor, Tensor], ...]

    def rows(self, count: int) -> Any:
        """A cache of transformers in which each of `count` rows has read the prefix."""
        from transformers import DynamicCache

        # Without a configuration no layer forgets what lies before its window.
        cache = DynamicCache()
        for at, (keys, values) in enumerate(self.layers):
            cache.update(keys.expand(count, -1, -1, -1), values.expand(count, -1, -1, -1), at)
        return cache


def shared_length(questions: Sequence[tuple[int, ...]]) -> int:
    """The number of tokens that all questions begin with; each has at least one more."""
    first, last = min(questions), max(questions)
    shared = next(
        (at for at, pair in enumerate(zip(first, last, strict=False)) if pair[0] != pair[1]), len(first)
    )
    return min(shared, min(map(len, questions)) - 1)


def read_prefix(base: LoadedBase, tokens: Sequence[int]) -> ReadPrefix | None:
    """The prefix of these tokens, empty if memory does not suffice.

    None if the model does not keep keys and values of every layer.
    """
    import torch
    from transformers import DynamicCache

    empty = ReadPrefix(0, ())
    if not tokens:
        return empty
    cache = DynamicCache()
    try:
        with torch.no_grad():
            base.model(
                input_ids=torch.tensor([list(tokens)], device=base.device),
                past_key_values=cache,
                use_cache=True,
                **logit_options(base.model, 1),
            )
    except (RuntimeError, MemoryError) as error:
        if not is_shortage(error):
            raise
        return empty
    layers = [_tensors(layer) for layer in cache.layers]
    complete = [pair for pair in layers if pair is not None and pair[0].shape[2] == len(tokens)]
    if len(complete) != base.model.config.get_text_config().num_hidden_layers:
        return None
    return ReadPrefix(len(tokens), tuple(complete))


def _tensors(layer: Any) -> tuple[Tensor, Tensor] | None:
    """The keys and values of a layer of a cache, None if it keeps something else."""
    keys, values = getattr(layer, "keys", None), getattr(layer, "values", None)
    return None if keys is None or values is None else (keys, values)
