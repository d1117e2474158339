"""Coefficients by granularity, activation and start: counted and worked by hand."""

from __future__ import annotations

import math
from typing import Any, get_args

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from catalog.errors import UsageError
from merging.learning.coefficients import Activation, Coefficients, Design, Granularity, Init, columns
from merging.members import Shape

LAYER = "model.layers.{}.{}"


def shape_of(name: str, ranks: tuple[int, ...]) -> Shape:
    """A module of four features of which members have these ranks."""
    return Shape(name, "linear", 4, 4, ranks, tuple(float(rank > 0) for rank in ranks))


SHAPES = (
    shape_of("lm_head", (0, 2, 0)),
    shape_of(LAYER.format(0, "mlp.up_proj"), (1, 2, 3)),
    shape_of(LAYER.format(0, "self_attn.q_proj"), (1, 0, 3)),
    shape_of(LAYER.format(0, "self_attn.v_proj"), (1, 2, 0)),
    shape_of(LAYER.format(1, "mlp.up_proj"), (1, 2, 0)),
)
NAMES = ("one", "two", "three")
Q, UP = SHAPES[2].name, SHAPES[1].name


def numbers_of(values: Any = None, **design: Any) -> Coefficients:
    """Coefficients of the three members, with these values for what is trained."""
    result = Coefficients(SHAPES, NAMES, Design(**design))
    if values is not None:
        with torch.no_grad():
            result.raw.copy_(torch.tensor(values).expand_as(result.raw))
    return result


@pytest.mark.parametrize(
    ("granularity", "shape"),
    [("adapter", (1, 3)), ("layer", (3, 3)), ("sublayer", (4, 3)), ("module", (5, 3)), ("rank", (18,))],
)
def test_there_are_as_many_as_the_granularity_says(granularity: Granularity, shape: tuple[int, ...]) -> None:
    assert tuple(numbers_of(granularity=granularity).raw.shape) == shape


@pytest.mark.parametrize(
    ("activation", "expected"),
    [
        ("linear", [2.0, -1.0, -1.0, -1.0]),
        ("squared", [4.0, 1.0, 1.0, 1.0]),
        ("leaky_relu", [2.0, -0.01, -0.01, -0.01]),
        ("sigmoid", [1 / (1 + math.exp(-2)), *[1 / (1 + math.e)] * 3]),
        # member two has no q_proj, so that the softmax is over 2 and -1
        ("softmax", [1 / (1 + math.exp(-3)), *[1 / (1 + math.exp(3))] * 3]),
    ],
)
def test_activations_by_hand(activation: Activation, expected: list[float]) -> None:
    result = numbers_of([2.0, 5.0, -1.0], activation=activation, init="normal")
    assert result.scales()[Q].tolist() == pytest.approx(expected, rel=1e-6)


def test_a_softmax_is_over_the_members_that_are_there() -> None:
    numbers = numbers_of([0.0, 1.0, 2.0], activation="softmax").numbers()
    assert numbers["lm_head"] == (0.0, 1.0, 0.0)
    for shape in SHAPES:
        assert sum(map(float, numbers[shape.name])) == pytest.approx(1)  # type: ignore[arg-type]
    complete = numbers_of([0.0, 1.0, 2.0], activation="softmax", granularity="adapter").numbers()
    assert complete[UP] == pytest.approx([math.exp(n) / (1 + math.e + math.e**2) for n in range(3)])


@pytest.mark.parametrize(
    ("init", "expected"),
    [("zero", [0, 0, 0]), ("equal", [1 / 3] * 3), ("equal_root", [3**-0.5] * 3), ("one_hot", [0, 0, 1])],
)
@pytest.mark.parametrize("granularity", get_args(Granularity))
def test_starts_by_hand(init: Init, expected: list[float], granularity: Granularity) -> None:
    target = 2 if init == "one_hot" else None
    result = numbers_of(activation="linear", init=init, granularity=granularity, target=target).scales()[UP]
    assert result.tolist() == pytest.approx([expected[n] for n in (0, 1, 1, 2, 2, 2)])


@pytest.mark.parametrize(("init", "mean", "deviation"), [("uniform", 0.5, 12**-0.5), ("normal", 0, 0.5)])
def test_random_starts_have_the_distribution_that_they_are_named_for(
    init: Init, mean: float, deviation: float
) -> None:
    shape = shape_of("model.layers.0.q_proj", (4000,) * 5)
    raw = Coefficients([shape], list("abcde"), Design("rank", "linear", init, seed=3)).raw.detach()
    assert float(raw.mean()) == pytest.approx(mean, abs=4 * deviation / 20_000**0.5)
    assert float(raw.std()) == pytest.approx(deviation, rel=0.03)
    if init == "uniform":
        assert float(raw.min()) >= 0
        assert float(raw.max()) < 1


@pytest.mark.parametrize("init", ["uniform", "normal"])
def test_a_seed_gives_the_same_start_and_another_a_different_one(init: Init) -> None:
    item, same, other = (numbers_of(init=init, seed=seed).raw for seed in (1, 1, 2))
    assert torch.equal(item, same)
    assert not torch.equal(item, other)


@pytest.mark.parametrize("granularity", get_args(Granularity))
@pytest.mark.parametrize("activation", get_args(Activation))
def test_every_start_can_be_left(granularity: Granularity, activation: Activation) -> None:
    if (granularity, activation) == ("rank", "softmax"):
        return
    result = numbers_of(granularity=granularity, activation=activation, init="normal")
    generator = torch.Generator().manual_seed(0)
    sum((s * torch.rand(s.shape, generator=generator)).sum() for s in result.scales().values()).backward()
    assert result.raw.grad is not None
    assert bool(result.raw.grad.any())


def test_zero_with_leaky_relu_can_be_left() -> None:
    result = numbers_of()
    sum(scales.sum() for scales in result.scales().values()).backward()
    assert result.raw.grad is not None
    assert float(result.raw.grad[1, 1]) == pytest.approx(0.02)  # two ranks, slope 0.01 at 0
    assert float(result.raw.grad[0, 0]) == 0  # nobody's lm_head


def test_groups_share_their_coefficient() -> None:
    with torch.no_grad():
        layer = numbers_of(granularity="layer", activation="linear")
        layer.raw.copy_(torch.arange(9.0).reshape(3, 3))
        sub = numbers_of(granularity="sublayer", activation="linear")
        sub.raw.copy_(torch.arange(12.0).reshape(4, 3))
    assert layer.groups == ("", "model.layers.0", "model.layers.1")
    assert layer.numbers() == {
        SHAPES[0].name: (0.0, 1.0, 0.0),
        SHAPES[1].name: (3.0, 4.0, 5.0),
        SHAPES[2].name: (3.0, 0.0, 5.0),
        SHAPES[3].name: (3.0, 4.0, 0.0),
        SHAPES[4].name: (6.0, 7.0, 0.0),
    }
    assert sub.groups == ("", "model.layers.0.mlp", "model.layers.0.self_attn", "model.layers.1.mlp")
    assert sub.numbers()[SHAPES[2].name] == (6.0, 0.0, 8.0)
    assert sub.numbers()[SHAPES[3].name] == (6.0, 7.0, 0.0)


def test_one_number_a_rank_is_a_tuple_a_member() -> None:
    result = numbers_of(torch.arange(18.0).tolist(), granularity="rank", activation="linear")
    assert result.numbers()[UP] == ((2.0,), (3.0, 4.0), (5.0, 6.0, 7.0))
    assert result.numbers()["lm_head"] == ((), (0.0, 1.0), ())


ranks = st.lists(st.integers(0, 3), min_size=3, max_size=3).filter(any)


@given(st.lists(ranks, min_size=1, max_size=4), st.sampled_from(get_args(Granularity)), st.integers(0, 99))
def test_numbers_and_scales_say_the_same(table: list[list[int]], granularity: Granularity, seed: int) -> None:
    shapes = [
        shape_of(f"model.layers.{n // 2}.{'mlp.up' if n % 2 else 'self_attn.q'}_proj", tuple(row))
        for n, row in enumerate(table)
    ]
    result = Coefficients(shapes, NAMES, Design(granularity, "leaky_relu", "normal", seed))
    back = columns(shapes, result.numbers())
    for name, scales in result.scales().items():
        assert torch.equal(back[name].float(), scales.detach())


@pytest.mark.parametrize(
    ("design", "message"),
    [
        ({"granularity": "modul"}, "did you mean module"),
        ({"activation": "relu"}, "Unknown activation 'relu'"),
        ({"init": "nil"}, "Unknown init 'nil'"),
        ({"activation": "softmax", "granularity": "rank"}, "use module"),
        ({"activation": "squared"}, "no gradient"),
        ({"init": "one_hot"}, "requires its number"),
        ({"target": 1}, "other starts do not accept a target"),
        ({"init": "one_hot", "target": 3}, "target 3 is not a member"),
    ],
)
def test_what_cannot_be_trained_is_refused(design: dict[str, Any], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        numbers_of(**design)


@pytest.mark.parametrize(
    ("numbers", "message"),
    [
        ({"norm": [1, 2, 3]}, "No member has a module norm"),
        ({Q: [1, 2]}, "requires one coefficient for each of 3 members, not 2"),
        ({Q: [1, 2, [1, 2]]}, "requires one coefficient for each of 3 ranks, not 2"),
        ({Q: [1, 2, float("nan")]}, "not a finite number"),
    ],
)
def test_numbers_that_do_not_fit_are_refused(numbers: dict[str, Any], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        columns(SHAPES, numbers)
