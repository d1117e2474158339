"""Attention over a tree in blocks gives what attention with the whole mask gives, with fewer pairs."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import pytest
import torch
from torch.nn import functional
from torch.overrides import TorchFunctionMode

from merging.evaluation import losses, sparse_attention
from merging.evaluation.sparse_attention import SparseAttention
from merging.evaluation.trees import tree_of
from merging.model import LoadedBase, Prompt
from tests.merging.tiny import tiny_base


class PairCount(TorchFunctionMode):
    """Counts the pairs of queries and keys of all attention inside the block."""

    def __init__(self) -> None:
        super().__init__()
        self.pairs = 0
        self.calls = 0

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: Any = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        if func is functional.scaled_dot_product_attention:
            self.calls += 1
            self.pairs += args[0].shape[-2] * args[1].shape[-2]
        return func(*args, **(kwargs or {}))


def many_prompts(count: int, seed: int = 0) -> list[Prompt]:
    """Prompts that share 20 tokens and have 10 of their own and two answers."""
    draw = random.Random(seed)
    shared = tuple(draw.randrange(250) for _ in range(20))
    own = [tuple(draw.randrange(250) for _ in range(10)) for _ in range(count)]
    return [Prompt((*shared, *tokens), ((1, 2, 3), (4, 5)), 0) for tokens in own]


def dense(monkeypatch: pytest.MonkeyPatch) -> None:
    """No tree leaves out enough for blocks."""
    monkeypatch.setattr(sparse_attention, "_MOST", -1.0)


def losses_and_gradient(base: LoadedBase, prompts: Sequence[Prompt], candidates: int = 1) -> tuple[Any, Any]:
    weight = base.model.model.layers[0].self_attn.k_proj.weight.requires_grad_(True)
    values = losses(base, prompts, candidates)
    (gradient,) = torch.autograd.grad(values.sum(), weight)
    weight.requires_grad_(False)
    return values.detach(), gradient


@pytest.mark.parametrize("candidates", [1, 3])
@pytest.mark.parametrize("count", [12, 40])
def test_losses_and_gradients_are_those_of_the_whole_mask(
    monkeypatch: pytest.MonkeyPatch, count: int, candidates: int
) -> None:
    base, prompts = tiny_base(dtype=torch.float64), many_prompts(count)
    with PairCount() as sparse_count:
        sparse, sparse_gradient = losses_and_gradient(base, prompts, candidates)
    dense(monkeypatch)
    with PairCount() as dense_count:
        whole, whole_gradient = losses_and_gradient(base, prompts, candidates)
    torch.testing.assert_close(sparse, whole, rtol=0, atol=1e-12)
    torch.testing.assert_close(sparse_gradient, whole_gradient, rtol=0, atol=1e-12)
    size = len(tree_of(prompts).tokens)
    assert dense_count.calls == 2
    assert dense_count.pairs >= 2 * size**2 * 0.8
    assert sparse_count.pairs < 0.75 * dense_count.pairs


def test_most_pairs_of_a_long_tree_are_left_out(monkeypatch: pytest.MonkeyPatch) -> None:
    base, prompts = tiny_base(), many_prompts(60)
    with PairCount() as sparse_count:
        losses(base, prompts)
    dense(monkeypatch)
    with PairCount() as dense_count:
        losses(base, prompts)
    assert sparse_count.pairs < 0.25 * dense_count.pairs


def saved_bytes(base: LoadedBase, prompts: Sequence[Prompt]) -> tuple[int, Any, Any]:
    """What is kept for the gradient, and the losses with their gradient."""
    kept: dict[int, Any] = {}

    def keep(values: torch.Tensor) -> torch.Tensor:
        storage = values.untyped_storage()
        kept[storage.data_ptr()] = storage
        return values

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda values: values):
        values, gradient = losses_and_gradient(base, prompts)
    return sum(storage.nbytes() for storage in kept.values()), values, gradient


def test_a_long_prompt_keeps_no_copies_of_keys_for_its_gradient(monkeypatch: pytest.MonkeyPatch) -> None:
    base = tiny_base(dtype=torch.float64)
    draw = random.Random(0)
    prompts = [Prompt(tuple(draw.randrange(250) for _ in range(510)), ((1, 2),), 0)]
    with PairCount() as count:
        sparse_bytes, sparse, sparse_gradient = saved_bytes(base, prompts)
    assert count.calls == 2 * 8
    dense(monkeypatch)
    dense_bytes, whole, whole_gradient = saved_bytes(base, prompts)
    torch.testing.assert_close(sparse, whole, rtol=0, atol=1e-12)
    torch.testing.assert_close(sparse_gradient, whole_gradient, rtol=0, atol=1e-12)
    assert sparse_bytes <= dense_bytes


def test_a_short_tree_is_one_block() -> None:
    base, prompts = tiny_base(), many_prompts(2)
    with PairCount() as count:
        losses(base, prompts)
    assert count.calls == 2


def test_attention_with_another_mask_is_as_it_is() -> None:
    generator = torch.Generator().manual_seed(0)
    query, key, value = (torch.randn(1, 2, 256, 8, generator=generator) for _ in range(3))
    visible = np.eye(256, dtype=bool)
    mask = torch.zeros(256, 256).masked_fill_(~torch.from_numpy(visible), torch.finfo(torch.float32).min)
    other = torch.randn(256, 256, generator=generator)
    transposed = mask.clone().T
    attend = functional.scaled_dot_product_attention
    for attn_mask in (None, other, mask + other, transposed, mask[None, :128].expand(2, -1, -1)[:, :, :128]):
        length = 256 if attn_mask is None else attn_mask.shape[-1]
        parts = [values[:, :, :length] for values in (query, key, value)]
        expected = attend(*parts, attn_mask=attn_mask)
        with SparseAttention(visible, mask), PairCount() as count:
            result = attend(*parts, attn_mask=attn_mask)
        assert torch.equal(result, expected)
        assert count.calls == 0 or count.pairs == length**2
    with SparseAttention(visible, mask):
        own = attend(query, key, value, attn_mask=mask[None, None].expand(1, 1, -1, -1))
    # A token that sees itself alone has its own value.
    torch.testing.assert_close(own, value)


def test_gradients_are_the_same_where_layers_are_computed_again() -> None:
    from merging.learning.course import gradients

    base, prompts = tiny_base(dtype=torch.float64), many_prompts(40)
    weight = base.model.model.layers[0].self_attn.k_proj.weight
    found = []
    for again in (False, True):
        weight.requires_grad_(True)
        weight.grad = None
        with base.memory.checkpoint(again):
            gradients(base, prompts, base.model.zero_grad)
        found.append(weight.grad)
    torch.testing.assert_close(found[0], found[1], rtol=0, atol=1e-12)
