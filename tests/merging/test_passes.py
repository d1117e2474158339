"""One layer in either order of multiplication, over shapes of all kinds, against float64."""

from __future__ import annotations

import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.nn import functional
from torch.utils.flop_counter import FlopCounterMode

from merging.live.passes import Part, folds, pass_by_factors, pass_by_sum
from tests.merging.tiny import PRODUCT_FLOPS

sizes = st.integers(1, 9)


@st.composite
def layers(draw: st.DrawFn) -> tuple[Part, Tensor, Tensor, Tensor | None, Tensor]:
    """A part, inputs, weights, a bias or none, and what the layer must give, all but the last in float32."""
    inside, outside, rank, batch = draw(sizes), draw(sizes), draw(sizes), draw(sizes)
    lengths = draw(st.lists(sizes, min_size=0, max_size=2))
    sets = draw(st.none() | st.integers(1, 3))
    generator = torch.Generator().manual_seed(draw(st.integers(0, 1000)))

    def random(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator)

    rows = None if sets is None else torch.randint(sets, (batch,), generator=generator)
    groups = () if rows is None else tuple((rows == n).nonzero()[:, 0] for n in range(sets or 0))
    a, bt, scales = (
        random(rank, inside),
        random(rank, outside),
        random(*(() if sets is None else (sets,)), rank),
    )
    x, weight = random(batch, *lengths, inside), random(outside, inside)
    bias = random(outside) if draw(st.booleans()) else None
    values = scales.expand(batch, rank) if rows is None else scales[rows]
    matrices = weight.double() + torch.einsum("ro,br,ri->boi", bt.double(), values.double(), a.double())
    expected = torch.einsum("b...i,boi->b...o", x.double(), matrices) + (0 if bias is None else bias.double())
    return Part("m", a, bt, scales, rows, groups), x, weight, bias, expected


@given(layers())
def test_both_orders_give_the_sum(drawn: tuple[Part, Tensor, Tensor, Tensor | None, Tensor]) -> None:
    part, x, weight, bias, expected = drawn
    for result in (
        pass_by_factors(x, functional.linear(x, weight, bias), part),
        pass_by_sum(x, weight, bias, part),
        pass_by_sum(x, weight, bias, part, torch.empty_like(weight)),
    ):
        assert result.shape == expected.shape
        assert torch.allclose(result.double(), expected, rtol=1e-4, atol=1e-4)


@given(layers())
def test_both_orders_have_the_gradients_of_the_sum(
    drawn: tuple[Part, Tensor, Tensor, Tensor | None, Tensor],
) -> None:
    part, x, weight, bias, _ = drawn
    result = []
    for order in ("factored", "folded"):
        leaves = [x.clone().requires_grad_(), part.scales.clone().requires_grad_()]
        tracked = Part("m", part.a, part.bt, leaves[1], part.rows, part.groups)
        y = (
            pass_by_factors(leaves[0], functional.linear(leaves[0], weight, bias), tracked)
            if order == "factored"
            else pass_by_sum(leaves[0], weight, bias, tracked)
        )
        result.append(torch.autograd.grad(y.sin().sum(), leaves))
    for item, other in zip(*result, strict=True):
        assert torch.allclose(item, other, rtol=1e-3, atol=1e-3)


@settings(max_examples=50)
@given(sizes, sizes, sizes, st.integers(1, 40), st.booleans())
def test_the_order_with_fewer_operations_is_chosen(
    inside: int, outside: int, rank: int, count: int, training: bool
) -> None:
    scales = torch.ones(rank, requires_grad=training)
    part = Part("m", torch.randn(rank, inside), torch.randn(rank, outside), scales)
    weight, costs = torch.randn(outside, inside), {}
    for order in ("factored", "folded"):
        x = torch.randn(count, inside, requires_grad=training)
        with FlopCounterMode(display=False, custom_mapping=PRODUCT_FLOPS) as counter:
            y = (
                pass_by_factors(x, functional.linear(x, weight), part)
                if order == "factored"
                else pass_by_sum(x, weight, None, part)
            )
            if training:
                y.sum().backward()
        costs[order] = counter.get_total_flops()
    assert folds(part, count) == (costs["folded"] < costs["factored"])
