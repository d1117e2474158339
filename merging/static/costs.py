"""The cost of a merge in advance: rank, size, memory, and time from a short calibration.

Sizes and ranks are exact. The time is arithmetic and bytes over rates that are measured for a moment on the
device: two matrix products, an eigenproblem, a pass over memory. On a busy machine eleven merges by six
methods took 0.95 to 2.4 times the estimate. The memory is what the arrays need; allocators and libraries took
about as much again in the one case compared.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

from merging.members import MergeMember, Shape, shapes
from merging.static.plans import Plan

if TYPE_CHECKING:
    from torch import Tensor

_BYTES = {"float32": 4, "bfloat16": 2, "float16": 2}
# Passes over all entries for the methods that use them: threshold, merge, and those of the subspace.
_PASSES = 3
# Bytes of a block of all members and of its results.
_BLOCKS = 8 * 4 * 1024 * 1024
_SIDE = 768
_EIGEN = 192


@dataclass(frozen=True, slots=True)
class Rates:
    """The device's rates per second: operations in float32 and float64, eigenproblems' n^3, and bytes."""

    single: float
    double: float
    eigen: float
    memory: float


@dataclass(frozen=True, slots=True)
class Price:
    """The data that a merge reads and writes, and its resources. `rank` is the largest of the result, `size`
    the bytes of its weights, `memory` the peak in bytes, without the program itself, `operations` of floating
    point.
    """

    members: int
    modules: int
    rank: int
    parameters: int
    size: int
    read: int
    memory: int
    operations: float
    seconds: float


def price(planned: Plan, rates: Rates | None = None) -> Price:
    """The price of a plan; calibrates the device for about a tenth of a second if no rates are given."""
    members = [planned.members[n] for n in planned.present]
    union = shapes(members)
    rates = rates or calibrate(planned.device)
    ranks = {shape.name: planned.rank_of(shape) for shape in union}
    form = planned.form()
    if form is not None:
        ranks = dict.fromkeys(ranks, form.rank)
    written = planned.written()
    parameters = sum(
        ranks.get(s.name, max(ranks.values())) * (s.in_features + s.out_features) for s in written
    )
    parameters += sum(head.parameters for head in planned.heads)
    read = sum(place.end - place.begin for m in members for pair in m.places.values() for place in pair)
    read += sum(member.folded.read_size(member) for member in members if member.folded)
    read += sum(head.read_size for head in planned.heads)
    size = parameters * _BYTES[planned.dtype]
    steps = [_operations(planned, shape) for shape in union]
    seconds = sum(
        single / rates.single + double / rates.double + eigen / rates.eigen for single, double, eigen in steps
    )
    elements = sum(_numbers_moved(planned, shape) for shape in union)
    return Price(
        members=len(members),
        modules=len(written),
        rank=max(ranks.values()),
        parameters=parameters,
        size=size,
        read=read,
        memory=max(
            *(_memory(planned, shape) for shape in union),
            *(head.memory(_BYTES[planned.dtype]) for head in planned.heads),
            0,
        ),
        operations=sum(sum(step) for step in steps),
        seconds=seconds + (4 * read + 4 * size + 4 * elements) / rates.memory,
    )


def calibrate(device: str = "cpu") -> Rates:
    """Rates of the device, each measured once after a warm-up."""
    import torch

    matrix = torch.rand(_SIDE, _SIDE, device=device)
    wide = matrix.double()
    small = wide[:_EIGEN, :_EIGEN] + wide[:_EIGEN, :_EIGEN].T
    long = torch.rand(1 << 23, device=device)
    return Rates(
        single=2 * _SIDE**3 / _seconds(lambda: matrix @ matrix, device),
        double=2 * _SIDE**3 / _seconds(lambda: wide @ wide, device),
        eigen=_EIGEN**3 / _seconds(lambda: torch.linalg.eigh(small).eigenvalues, device),
        memory=2 * 4 * len(long) / _seconds(lambda: long * 2.0, device),
    )


def _seconds(work: Callable[[], Tensor], device: str) -> float:
    import torch

    spent = []
    for _ in range(2):
        began = time.perf_counter()
        work()
        if device.startswith("cuda"):
            torch.cuda.synchronize(device)
        spent.append(time.perf_counter() - began)
    return max(min(spent), 1e-9)


def _operations(planned: Plan, shape: Shape) -> tuple[float, float, float]:
    """(float32, float64, n^3 of eigenproblems) of one module."""
    total, width = shape.total, shape.in_features + shape.out_features
    if planned.is_dense(shape):
        products = 2.0 * shape.in_features * shape.out_features
        inner = sum(_inner_rank(planned.members[n], shape) for n in planned.present)
        side = min(shape.in_features, shape.out_features)
        return 0.0, products * (inner + side + planned.rank_of(shape)), float(side**3)
    sums = 2.0 * total * planned.rank_of(shape) * width
    if planned.method.cost == "bytes" and planned.rank_of(shape) >= total:
        return 0.0, 0.0, 0.0
    if planned.method.cost == "entries":
        rows, columns = _sides(planned, shape)
        products = _passes(planned) * 2.0 * total * rows * columns
        if planned.options["space"] == "delta":
            return products, 0.0, 0.0
        return products, 2.0 * total**2 * width + sums, 4.0 * total**3
    grams = 2.0 * total**2 * width
    if planned.method.cost == "bytes":
        return grams + sums, 0.0, float(total**3)
    return 0.0, grams + sums, 4.0 * total**3


def _inner_rank(member: MergeMember, shape: Shape) -> int:
    """The rank of the factors whose product is a member's update, or part of it."""
    if shape.name not in member.places:
        return 0
    return member.folded.rank if member.folded else member.modules[shape.name].rank


def _numbers_moved(planned: Plan, shape: Shape) -> float:
    """Numbers that are moved through memory in addition to the factors themselves."""
    if planned.method.cost != "entries":
        return 0.0
    present = sum(1 for rank in shape.ranks if rank)
    rows, columns = _sides(planned, shape)
    return 12.0 * _passes(planned) * present * rows * columns


def _passes(planned: Plan) -> int:
    """Passes over all entries: two more if magnitudes are found over all modules."""
    return _PASSES + 2 * (planned.options.get("trim") == "vector")


def _sides(planned: Plan, shape: Shape) -> tuple[int, int]:
    """Rows and columns of the matrices whose entries are used."""
    space = planned.options["space"]
    rows = shape.out_features if space == "delta" else min(shape.total, shape.out_features)
    return rows, min(shape.total, shape.in_features) if space == "core" else shape.in_features


def _memory(planned: Plan, shape: Shape) -> int:
    width = shape.in_features + shape.out_features
    if planned.is_dense(shape):
        # The sum, one update, and the base's weight; then a Gram matrix and its eigenvectors in float64.
        matrix = shape.in_features * shape.out_features
        return 12 * matrix + 4 * 8 * min(shape.in_features, shape.out_features) ** 2
    factors = 4 * width * (2 * shape.total + 2 * planned.rank_of(shape))
    square = 8 * 8 * shape.total**2 if _operations(planned, shape)[2] else 0
    if planned.method.cost != "entries":
        return factors + square
    rows, columns = _sides(planned, shape)
    return factors + square + min(planned.memory, 4 * rows * columns) + _BLOCKS
