"""Exact inner products of two adapters' updates, by trace identities on the factors.

With C = B_i^T B_j and D = A_i A_j^T, both of rank times rank, <B_i A_i, B_j A_j> = sum(C * D) and
||(B_i A_i)^T (B_j A_j)||^2 = tr(A_i A_i^T C A_j A_j^T C^T): no update is ever formed. This decides what the
sketches of `catalog.fingerprints.sketches` only estimate, at the price of reading both files.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from catalog.adapters import AdapterConfig, Module, gram, iterate_modules, product_norm
from catalog.errors import WeightsError

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True)
class Cosine:
    """How two updates relate, in float64.

    `delta` is the cosine of the whole updates with their scalings, `output` that of what
    `catalog.fingerprints.output_sketch` estimates. 0.0 stands for the cosine with an update that is zero.
    `norm_ratio` is the norm of the left update over that of the right one: infinite over zero, and 1.0 for
    zero over zero.
    """

    delta: float
    output: float
    norm_ratio: float


def exact_cosine(left: Path, left_config: AdapterConfig, right: Path, right_config: AdapterConfig) -> Cosine:
    """The cosines of two adapters in safetensors files; one module of each is in memory at a time.

    A module that only one of them has counts in the norms alone; one that holds a value that is not finite
    counts as absent. Raises WeightsError of kind base_mismatch where a module of both has other shapes, so
    that they belong to different base models, and WeightsError and ConfigError as
    `catalog.adapters.weights.iterate_modules` does.
    """
    rows = [(0.0,) * 6]
    for mine, other in _pair_modules(
        iterate_modules(left, left_config), iterate_modules(right, right_config)
    ):
        rows.append((*_inner(mine, mine), *_inner(other, other), *_inner(mine, other)))
    left_delta, left_output, right_delta, right_output, delta, output = (
        math.fsum(column) for column in zip(*rows, strict=True)
    )
    return Cosine(
        delta=_cosine(delta, left_delta, right_delta),
        output=_cosine(output, left_output, right_output),
        norm_ratio=_ratio(left_delta, right_delta),
    )


@dataclass(frozen=True)
class _Measured:
    """A module with A A^T and the norm of B A, both float64."""

    module: Module
    gram_a: Tensor
    norm: float


def _pair_modules(
    left: Iterator[Module], right: Iterator[Module]
) -> Iterator[tuple[_Measured | None, _Measured | None]]:
    """The modules of two adapters, both sorted by name, side by side; None if an adapter has no such
    module."""
    mine, other = next(left, None), next(right, None)
    while mine is not None or other is not None:
        if other is None or (mine is not None and mine.name < other.name):
            yield _measure(mine), None
            mine = next(left, None)
        elif mine is None or other.name < mine.name:
            yield None, _measure(other)
            other = next(right, None)
        else:
            _check_shapes(mine, other)
            yield _measure(mine), _measure(other)
            mine, other = next(left, None), next(right, None)


def _measure(module: Module | None) -> _Measured | None:
    """The measured module, or None if its update is zero or not finite."""
    if module is None:
        return None
    gram_a = gram(module.a.T)
    norm = product_norm(gram_a, gram(module.b))
    return _Measured(module, gram_a, norm) if norm and module.scaling else None


def _check_shapes(left: Module, right: Module) -> None:
    """Raises WeightsError where the update of a module has another shape in the other adapter."""
    mine, other = ((len(module.b), module.a.shape[1]) for module in (left, right))
    if mine != other:
        raise WeightsError(
            "base_mismatch",
            f"{left.name} has the shape {mine} in one adapter and {other} in the other: compare adapters of "
            "the same base model.",
        )


def _inner(left: _Measured | None, right: _Measured | None) -> tuple[float, float]:
    """<X, Y> of the scaled updates of one module, and ||X^T Y||^2 / (||X||^2 ||Y||^2)."""
    if left is None or right is None:
        return 0.0, 0.0
    outer = gram(left.module.b, right.module.b)
    inner = gram(left.module.a.T, right.module.a.T)
    delta = left.module.scaling * right.module.scaling * float((outer * inner).sum())
    output = float(((left.gram_a @ outer) * (outer @ right.gram_a)).sum())
    return delta, output / (left.norm * right.norm) ** 2


def _cosine(inner: float, left: float, right: float) -> float:
    """An inner product over the roots of two squared norms, within -1 and 1; 0.0 where one is zero."""
    if left <= 0.0 or right <= 0.0:
        return 0.0
    return min(1.0, max(-1.0, inner / math.sqrt(left) / math.sqrt(right)))


def _ratio(left: float, right: float) -> float:
    """The root of the ratio of two squared norms."""
    if right <= 0.0:
        return math.inf if left > 0.0 else 1.0
    return math.sqrt(max(left, 0.0) / right)
