"""The largest curvature of the loss in an adapter's parameters, against dense Hessians in float64."""

from __future__ import annotations

from pathlib import Path

import pytest

peft = pytest.importorskip("peft")

import torch  # noqa: E402
from torch.nn.attention import SDPBackend, sdpa_kernel  # noqa: E402

from catalog.errors import EvaluationError  # noqa: E402
from merging.evaluation import losses  # noqa: E402
from merging.learning import Recipe, TrainingSettings, curvature_at_start, largest_eigenvalue  # noqa: E402
from merging.learning.course import set_seeds  # noqa: E402
from merging.learning.training import lora_config  # noqa: E402
from merging.learning.variants import adapt_model, variant  # noqa: E402
from merging.model import encode, read_task  # noqa: E402
from tests.merging.tiny import tiny_base, write_task  # noqa: E402

ROWS = [(f"item {number}", "yes" if number % 3 else "no") for number in range(6)]


@pytest.mark.parametrize("values", [[3.0, 1.0, -2.0], [1.0, 0.5, -4.0], [-1.0, -2.0, -5.0]])
def test_the_largest_eigenvalue_by_hand(values: list[float]) -> None:
    turn, _ = torch.linalg.qr(
        torch.randn(3, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    )
    matrix = turn @ torch.diag(torch.tensor(values, dtype=torch.float64)) @ turn.T
    found = largest_eigenvalue(lambda v: matrix @ v, torch.ones(3, dtype=torch.float64), iterations=20)
    assert found.value == pytest.approx(max(values), rel=1e-6)
    assert found.residual < 1e-6
    assert found.products == 3


@pytest.mark.parametrize("largest", [5.0, 40.0])
def test_products_end_where_the_eigenvalue_is_known(largest: float) -> None:
    values = torch.cat([torch.linspace(-3, 3, 199, dtype=torch.float64), torch.tensor([largest])])
    start = torch.randn(200, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    found = largest_eigenvalue(lambda v: values * v, start, iterations=60)
    assert found.products < 30
    assert found.residual < 1e-4
    assert found.value == pytest.approx(largest, rel=1e-7)
    few = largest_eigenvalue(lambda v: values * v, start, iterations=3)
    assert few.products == 3
    assert few.residual > 1e-4


def test_nothing_has_no_curvature() -> None:
    assert largest_eigenvalue(lambda v: 0 * v, torch.ones(3)).value == 0


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
@pytest.mark.parametrize("good", [0, 1, 2])
def test_a_product_that_is_not_finite_is_one_sentence(bad: float, good: int) -> None:
    """At whichever product it appears, and in whichever entry."""
    calls = iter([*[1.0] * good, *[bad] * 9])

    def product(vector: torch.Tensor) -> torch.Tensor:
        return vector * torch.tensor([1.0, 2.0, 3.0 * next(calls)])

    with pytest.raises(EvaluationError, match="products of the loss's Hessian are not finite"):
        largest_eigenvalue(product, torch.tensor([1.0, -2.0, 3.0]))


def test_a_loss_without_curvature_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A gradient that is finite, with second derivatives that are not."""
    base = tiny_base(dtype=torch.float32)
    task = read_task(write_task(tmp_path / "task", ROWS))
    settings = TrainingSettings(1, 1.0, ("q_proj",), "lora", 0.0, "float32", Recipe(1, 1))

    def kinked(*arguments: object) -> object:
        values, *rest = losses(*arguments)  # type: ignore[arg-type]
        return values + (values - values.detach()).abs().pow(1.5), *rest

    monkeypatch.setattr("merging.learning.curvature.losses", kinked)
    with pytest.raises(EvaluationError, match="Hessian are not finite"):
        curvature_at_start(base, task, task_examples(task), settings)


@pytest.mark.parametrize("name", ["lora", "gaussian"])
def test_curvature_is_that_of_the_dense_hessian(tmp_path: Path, name: str) -> None:
    task = read_task(write_task(tmp_path / "task", ROWS))
    base = tiny_base(layers=1, hidden=16, dtype=torch.float64)
    settings = TrainingSettings(1, 1.0, ("q_proj", "o_proj"), name, 0.0, "float32", Recipe(1, 1))
    before = {key: values.clone() for key, values in base.model.state_dict().items()}
    found = curvature_at_start(base, task, task_examples(task), settings, iterations=40)
    assert all(torch.equal(before[key], values) for key, values in base.model.state_dict().items())
    prompts = encode(base.tokenizer, task, task_examples(task), base.limit)
    config = lora_config(base, settings)
    with (
        set_seeds(0, base),
        adapt_model(base.model, variant(name), config, lambda: None) as model,
        sdpa_kernel(SDPBackend.MATH),
    ):
        parameters = [values for values in model.parameters() if values.requires_grad]
        slopes = torch.autograd.grad(losses(base, prompts)[0].mean(), parameters, create_graph=True)
        rows = [
            torch.cat([part.flatten() for part in torch.autograd.grad(entry, parameters, retain_graph=True)])
            for slope in slopes
            for entry in slope.flatten()
        ]
    hessian = torch.stack(rows).double()
    assert torch.allclose(hessian, hessian.T, atol=1e-6)
    assert found.value == pytest.approx(float(torch.linalg.eigvalsh(hessian)[-1]), rel=1e-4)


def task_examples(task):  # type: ignore[no-untyped-def]
    from merging.model import draw

    return draw(task, "train", 4)
