"""Products with fixed weights: those of torch up to rounding, with the same gradients."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

torch = pytest.importorskip("torch")

from merging.model import FixedLinear, multiply, products, quicken_layers  # noqa: E402


@pytest.fixture(autouse=True)
def onednn(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """A processor on which oneDNN is the faster, whatever this one is; one with AVX2 alone by parameter."""
    monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda: getattr(request, "param", "AVX512"))
    products._onednn_pays.cache_clear()
    yield
    products._onednn_pays.cache_clear()


def _case(seed: int = 0, bias: bool = True) -> tuple[object, object, object]:
    rng = torch.Generator().manual_seed(seed)
    x = torch.randn(2, 7, 5, generator=rng)
    weight = torch.randn(3, 5, generator=rng)
    return x, weight, torch.randn(3, generator=rng) if bias else None


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("turned", [True, False])
def test_a_product_is_that_of_float64(bias: bool, turned: bool) -> None:
    x, weight, offset = _case(bias=bias)
    if turned:
        weight = weight.t().contiguous().t()
        x = x.transpose(0, 1).contiguous().transpose(0, 1)
    expected = torch.nn.functional.linear(
        x.double(), weight.double(), None if offset is None else offset.double()
    )
    assert torch.allclose(multiply(x, weight, offset).double(), expected, atol=1e-5)
    assert multiply(x[:0], weight, offset).shape == (0, 7, 3)
    if offset is not None:
        stepped = torch.stack([offset, offset + 9], 1)[:, 0]
        assert torch.equal(multiply(x, weight, stepped), multiply(x, weight, offset))


def test_gradients_of_first_and_second_order_are_those_of_torch() -> None:
    results = []
    for product in (multiply, torch.nn.functional.linear):
        x, weight, offset = _case()
        x.requires_grad_(True)
        (slope,) = torch.autograd.grad(product(x, weight, offset).pow(3).sum(), x, create_graph=True)
        (curvature,) = torch.autograd.grad(slope.pow(2).sum(), x)
        results.append((slope.detach(), curvature))
    for mine, torchs in zip(*results, strict=True):
        assert torch.allclose(mine, torchs, rtol=1e-4, atol=1e-3)


def test_weights_that_learn_and_other_types_are_left_to_torch() -> None:
    x, weight, _ = _case()
    weight.requires_grad_(True)
    multiply(x, weight).sum().backward()
    assert torch.allclose(weight.grad, x.sum((0, 1)).expand(3, -1), atol=1e-5)
    x, weight, offset = (values.double() for values in _case())
    assert torch.equal(multiply(x, weight, offset), torch.nn.functional.linear(x, weight, offset))


@pytest.mark.parametrize("onednn", ["AVX2", "DEFAULT"], indirect=True)
def test_without_avx512_products_are_those_of_torch(onednn: None) -> None:
    model = torch.nn.Sequential(torch.nn.Linear(5, 3)).requires_grad_(False)
    quicken_layers(model)
    assert type(model[0]) is torch.nn.Linear
    x, weight, offset = _case()
    assert torch.equal(multiply(x, weight, offset), torch.nn.functional.linear(x, weight, offset))


def test_layers_of_a_model_in_float32_alone_are_quickened() -> None:
    model = torch.nn.Sequential(
        torch.nn.Linear(5, 3), torch.nn.Linear(3, 2).to(torch.bfloat16), torch.nn.LayerNorm(2)
    )
    before = model[0](_case()[0])
    quicken_layers(model)
    assert [type(layer).__name__ for layer in model] == ["FixedLinear", "Linear", "LayerNorm"]
    assert isinstance(model[0], torch.nn.Linear)
    model.requires_grad_(False)
    assert torch.allclose(model[0](_case()[0]), before, atol=1e-6)
    assert FixedLinear(5, 3)(_case()[0]).shape == (2, 7, 3)
