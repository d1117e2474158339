"""The largest curvature of the loss in an adapter's own parameters, by products of the Hessian with vectors.

A gradient step of rate η is stable along a direction of curvature λ up to η = 2 / λ, so that the best rate of
a configuration is expected to fall with the largest one ("Learning Rate Matters", arXiv 2602.04998).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from catalog.errors import EvaluationError
from merging.evaluation import TooLong, ask, losses
from merging.learning import variants
from merging.learning.course import gradients, set_seeds
from merging.learning.training import TrainingSettings, lora_config
from merging.model import OWN, Example, LoadedBase, Protocol, Task, memory_limit

if TYPE_CHECKING:
    from torch import Tensor

_ITERATIONS = 20
# Of the residual, relative to the eigenvalue, whose error is of the square of it.
_TOLERANCE = 1e-4
# Of the next vector, relative to the matrix: below it those before span a space of their own.
_ROUNDING = 1e-7


@dataclass(frozen=True, slots=True)
class Curvature:
    """The largest eigenvalue of the Hessian, in nats a token over squared units of the parameters.

    `residual` is the norm of H v - value v for the unit vector v that was found, relative to the value: an
    eigenvalue lies within this share of it. `products` counts those with the Hessian.
    """

    value: float
    residual: float
    products: int


def largest_eigenvalue(
    product: Callable[[Tensor], Tensor], start: Tensor, *, iterations: int = _ITERATIONS
) -> Curvature:
    """The largest eigenvalue of a symmetric matrix by its `product` with a vector, from the vector `start`.

    Lanczos's method with every new vector made orthogonal to all before, twice: at the start of a LoRA, where
    one factor is zero, eigenvalues come in pairs of both signs, among which power iteration hardly converges.
    Golub and Van Loan (2013), sections 10.1 and 10.3. Ends after `iterations` products, or after two with
    residuals below 1e-4.

    Raises EvaluationError for a product that is not finite.
    """
    basis = [start / start.norm()]
    diagonal: list[float] = []
    beside: list[float] = []
    value = residual = math.inf
    while True:
        image = product(basis[-1])
        diagonal.append(float(basis[-1] @ image))
        for _ in range(2):
            for vector in basis:
                image = image - (vector @ image) * vector
        beside.append(float(image.norm()))
        if not (math.isfinite(diagonal[-1]) and math.isfinite(beside[-1])):
            raise EvaluationError(
                "The products of the loss's Hessian are not finite: the loss has no curvature there, or the "
                "data type of the base model is too short for it; load the model in float32."
            )
        before = residual
        value, residual = _ritz_value(diagonal, beside)
        scale = max(map(abs, [*diagonal, *beside[:-1]]))
        if (
            len(basis) == min(iterations, len(start))
            or beside[-1] <= _ROUNDING * scale
            or max(before, residual) < _TOLERANCE
        ):
            return Curvature(value, residual, len(basis))
        basis.append(image / beside[-1])


def _ritz_value(diagonal: Sequence[float], beside: Sequence[float]) -> tuple[float, float]:
    """The largest eigenvalue of the tridiagonal matrix, and its residual relative to it.

    The last number of `beside` is the norm of what the products leave outside the space.
    """
    import torch

    small = torch.diag(torch.tensor(diagonal, dtype=torch.float64))
    small += torch.diag(torch.tensor(beside[:-1], dtype=torch.float64), -1)
    values, vectors = torch.linalg.eigh(small)
    value = float(values[-1])
    residual = abs(beside[-1] * float(vectors[-1, -1]))
    return value, residual / abs(value) if value else 0.0


def curvature_at_start(
    base: LoadedBase,
    task: Task,
    examples: Sequence[Example],
    settings: TrainingSettings,
    *,
    iterations: int = _ITERATIONS,
    too_long: TooLong = "error",
    protocol: Protocol = OWN,
) -> Curvature:
    """The largest curvature of the mean loss of `examples` in the parameters of a new adapter at its start.

    All examples are read in one tree. The base model is unchanged afterwards. Raises EvaluationError if the
    loss or its curvature is not finite, MemoryLimitError if the examples do not fit into memory, and the
    errors of `ask`.
    """
    import torch
    from torch.nn.attention import SDPBackend, sdpa_kernel

    prompts = ask(base, task, examples, too_long, protocol).prompts
    row, config = variants.variant(settings.variant), lora_config(base, settings)

    def gradient() -> None:
        gradients(base, prompts, base.model.zero_grad)

    with (
        memory_limit("The curvature"),
        set_seeds(settings.recipe.seed, base),
        variants.adapt_model(base.model, row, config, gradient) as model,
        # The other kernels have no second derivatives.
        sdpa_kernel(SDPBackend.MATH),
    ):
        parameters = [values for values in model.parameters() if values.requires_grad]
        slopes = torch.autograd.grad(losses(base, prompts)[0].mean(), parameters, create_graph=True)
        slope = torch.cat([values.flatten() for values in slopes])
        if not bool(torch.isfinite(slope).all()):
            raise EvaluationError(f"The loss on {task.name} is not finite at the start of the adapter.")

        def product(vector: Tensor) -> Tensor:
            images = torch.autograd.grad(slope, parameters, vector, retain_graph=True)
            return torch.cat([values.flatten() for values in images])

        start = torch.randn(len(slope), dtype=slope.dtype).to(slope.device)
        return largest_eigenvalue(product, start, iterations=iterations)
