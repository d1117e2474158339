"""Members as stacked factors, module by module: Delta W = B A for all of them together.

For member i with scaling s_i the rows sign(s_i) sqrt|s_i| A_i stand below each other and the columns
sqrt|s_i| B_i beside each other, so that the sum of all updates is B A, and member i is a range of rows and
columns. The sign is in A, where PEFT's functions have it. One module of every member is in memory at a time.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from catalog.adapter import LoraModule
from catalog.errors import MergeError
from merging.members import Member, read_module

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True, slots=True)
class Shape:
    """A module of the union of all members: `ranks` has one entry a member, 0 where it lacks the module."""

    name: str
    kind: str
    in_features: int
    out_features: int
    ranks: tuple[int, ...]

    @property
    def total(self) -> int:
        """Sum of the ranks."""
        return sum(self.ranks)

    @property
    def largest(self) -> int:
        """The largest rank of a member."""
        return max(self.ranks)

    @property
    def limit(self) -> int:
        """The largest rank that the sum of the updates can have."""
        return min(self.total, self.in_features, self.out_features)


@dataclass(frozen=True, slots=True)
class Stack:
    """Stacked factors of one module in float32: `a` of (R, in), `b` of (out, R), R the sum of `ranks`.

    For an embedding in is the vocabulary, out the width. `ranks` is 0 for a member without the module, and so
    is its entry of `scalings`.
    """

    name: str
    a: Tensor
    b: Tensor
    ranks: tuple[int, ...]
    scalings: tuple[float, ...]

    def ranges(self) -> tuple[slice, ...]:
        """Rows of `a` and columns of `b` of each member."""
        ends = [sum(self.ranks[: n + 1]) for n in range(len(self.ranks))]
        return tuple(slice(end - rank, end) for end, rank in zip(ends, self.ranks, strict=True))

    def columns(self, values: Sequence[float]) -> Tensor:
        """One value a member, repeated for each of its ranks: float64 of (R,) on the factors' device."""
        import torch

        each = [value for value, rank in zip(values, self.ranks, strict=True) for _ in range(rank)]
        return torch.tensor(each, dtype=torch.float64, device=self.a.device)


def shapes(members: Sequence[Member]) -> tuple[Shape, ...]:
    """Every module of any member, sorted by layer and name."""
    tables = [member.modules for member in members]
    union: dict[str, LoraModule] = {}
    for table in tables:
        for name, module in table.items():
            union.setdefault(name, module)
    order = sorted(union.values(), key=lambda m: (-1 if m.layer is None else m.layer, m.name))
    return tuple(
        Shape(
            m.name,
            m.kind,
            m.in_features,
            m.out_features,
            tuple(table[m.name].rank if m.name in table else 0 for table in tables),
        )
        for m in order
    )


def iterate_stacks(members: Sequence[Member], device: str = "cpu") -> Iterator[Stack]:
    """The stack of every module in the order of `shapes`; raises WeightsError and, for values that are not
    finite, MergeError.
    """
    tables = [member.modules for member in members]
    for shape in shapes(members):
        yield _stacked(shape, members, tables, device)


def _stacked(
    shape: Shape, members: Sequence[Member], tables: Sequence[dict[str, LoraModule]], device: str
) -> Stack:
    import torch

    a = torch.empty(shape.total, shape.in_features, device=device)
    b = torch.empty(shape.out_features, shape.total, device=device)
    scalings = tuple(table[shape.name].scaling if shape.name in table else 0.0 for table in tables)
    stack = Stack(shape.name, a, b, shape.ranks, scalings)
    for member, scaling, place in zip(members, scalings, stack.ranges(), strict=True):
        if place.start == place.stop:
            continue
        raw_a, raw_b = read_module(member, shape.name)
        root = math.sqrt(abs(scaling))
        torch.mul(raw_a.to(device).to(torch.float32), math.copysign(root, scaling), out=a[place])
        torch.mul(raw_b.to(device).to(torch.float32), root, out=b[:, place])
    if not (_finite(a) and _finite(b)):
        _refuse_infinite(stack, members)
    return stack


def _refuse_infinite(stack: Stack, members: Sequence[Member]) -> None:
    """Raises MergeError with the first member whose factors hold NaN or infinity."""
    for member, place in zip(members, stack.ranges(), strict=True):
        if not (_finite(stack.a[place]) and _finite(stack.b[:, place])):
            raise MergeError(f"{member.name} cannot be merged: {stack.name} holds NaN or infinity.")


def _finite(values: Tensor) -> bool:
    """Whether every value is finite; the sum answers at once unless it overflows."""
    import torch

    return math.isfinite(float(values.sum())) or bool(torch.isfinite(values).all())
