"""A validated merge before its execution: all checks that do not read weights."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from catalog.adapters import BaseTable
from catalog.errors import MergeError, UsageError
from merging.members import (
    DTYPES,
    MergeMember,
    PortableForm,
    SavedHead,
    Shape,
    base_modules,
    base_note,
    base_of,
    base_source,
    load_members,
    portable_form,
    saved_heads,
    shapes,
)
from merging.methods import MergeMethod, Value, find_method

MEMORY = 512 * 1024 * 1024
_STORED = {"F32": "float32", "BF16": "bfloat16", "F16": "float16"}


@dataclass(frozen=True, slots=True)
class Plan:
    """A validated merge before its execution.

    `weights` has one entry a member as the method uses it, `rank` the requested bound, else the method's.
    `base` is the canonical name of the base model, `source` its folder if that was given, else the same name.
    `notes` are sentences for the user. A `portable` result
    has the form that every engine reads, else the ranks that come out.
    """

    members: tuple[MergeMember, ...]
    method: MergeMethod
    options: Mapping[str, Value]
    weights: tuple[float, ...]
    rank: int | None
    dtype: str
    device: str
    seed: int
    base: str | None
    source: str | None = None
    memory: int = MEMORY
    inputs: tuple[Path, ...] = ()
    notes: tuple[str, ...] = ()
    portable: bool = False
    heads: tuple[SavedHead, ...] = ()
    head_choice: str | None = None

    @property
    def present(self) -> tuple[int, ...]:
        """Members whose weight is not 0."""
        return tuple(n for n, weight in enumerate(self.weights) if weight)

    def bound(self, shape: Shape) -> int:
        """The largest rank that the result may have in a module."""
        if not self.method.truncates:
            return shape.total
        largest = (
            shape.total
            if self.method.full_rank
            else max(module.rank for n in self.present for module in self.members[n].spec.modules)
        )
        return min(self.rank or largest, shape.in_features, shape.out_features)

    def rank_of(self, shape: Shape) -> int:
        """The rank of the result in a module, as far as it is known in advance; never less."""
        bound = self.bound(shape)
        if self.method.equal_ranks:
            return shape.largest
        return bound if self.method.cost == "entries" else min(bound, shape.total)

    def form(self) -> PortableForm | None:
        """The form of the result that every engine reads; None if it has the ranks that come out."""
        if not self.portable:
            return None
        union = shapes([self.members[n] for n in self.present])
        base = base_modules(self.source) if self.source else None
        return portable_form(union, {shape.name: self.rank_of(shape) for shape in union}, base)

    def written(self) -> tuple[Shape, ...]:
        """The modules of the result, those with zero factors last."""
        union, form = shapes([self.members[n] for n in self.present]), self.form()
        return (*union, *form.zeros) if form else union

    def joins(self, shape: Shape) -> bool:
        """Whether the result of a module is the members' factors side by side."""
        sums = self.method.full_rank and self.method.is_sum
        return sums and self.device == "cpu" and self.bound(shape) >= shape.total

    def is_dense(self, shape: Shape) -> bool:
        """Whether a module is summed as a matrix: some member's update of it has full rank."""
        return self.method.is_sum and any(
            shape.name in self.members[n].places for n in self.present if self.members[n].folded
        )


def plan(
    members: Sequence[Path | MergeMember],
    method: str,
    *,
    parameters: Mapping[str, object] | None = None,
    weights: Sequence[float] | None = None,
    rank: int | None = None,
    dtype: str | None = None,
    device: str = "cpu",
    seed: int = 0,
    base: str | None = None,
    table: BaseTable | None = None,
    memory: int = MEMORY,
    inputs: Sequence[Path] = (),
    portable: bool = False,
    whole: bool = False,
    heads: str | None = None,
) -> Plan:
    """A merge, validated as far as possible without reading weights; writes nothing.

    `base` and `table` are those of `load_members`, `portable` is the form of the result. A `whole` result is
    added to a base, and can have full rank. `heads` is what becomes of saved heads and embeddings.
    Raises UsageError for invalid arguments, MergeError for members that do not match the method or each
    other, and the errors of `load_members`.
    """
    row = find_method(method)
    options = row.options(parameters or {})
    loaded = load_members(members, base=base, table=table)
    of_all = base_of(loaded, base, table)
    note = base_note(loaded, of_all, table)
    shares = _weights(row, len(loaded), weights)
    present = [member for member, share in zip(loaded, shares, strict=True) if share]
    if row.data and len(inputs) != len(loaded):
        raise UsageError(f"{row.name} needs one file of activations for each of the {len(loaded)} members.")
    if inputs and not row.data:
        raise UsageError(f"{row.name} does not accept activations; leave them out.")
    _refuse_rank(row, present, rank)
    _refuse_folded(row, present, rank, whole)
    _refuse_device(device)
    source = base_source(base, of_all)
    return Plan(
        members=loaded,
        method=row,
        options=options,
        weights=shares,
        rank=rank,
        dtype=result_dtype(dtype, present),
        device=device,
        seed=seed,
        base=of_all,
        source=source,
        memory=memory,
        inputs=tuple(inputs),
        notes=(note,) if note else (),
        portable=portable,
        heads=saved_heads(loaded, shares, heads, source),
        head_choice=heads,
    )


def _refuse_rank(row: MergeMethod, members: Sequence[MergeMember], rank: int | None) -> None:
    """Raises UsageError for a rank that the method does not accept, MergeError for unequal ranks."""
    if rank is not None and not row.truncates:
        raise UsageError(f"{row.name} determines the rank; leave out `rank`.")
    if rank is not None and rank < 1:
        raise UsageError(f"The rank must be at least 1, not {rank}.")
    if row.units and rank is not None and rank > max(shape.total for shape in shapes(members)):
        raise UsageError(
            f"{rank} clusters exceed the number of units of the members in every module; use a lower rank."
        )
    if row.equal_ranks:
        _refuse_ranks(members, row)


def _refuse_folded(row: MergeMethod, members: Sequence[MergeMember], rank: int | None, whole: bool) -> None:
    """Raises for a method that has no use for updates of full rank, and where their rank is not chosen."""
    folded = next((member.name for member in members if member.folded), None)
    if folded is None:
        return
    if row.gauge == "dependent" or row.units or row.data:
        raise MergeError(
            f"{row.name} combines the factors of members, and the folded DoRA of {folded} has none; use "
            "average, sum, svd, or a method on entries."
        )
    if not whole and not row.truncates:
        raise UsageError(
            f"{row.name} keeps all ranks, and the folded DoRA of {folded} has full rank; use sum with `rank`."
        )
    if not whole and rank is None:
        raise UsageError(
            f"The folded DoRA of {folded} has full rank; set `rank`, or `apply_to`, which adds all of it to "
            "the base model."
        )


def _weights(row: MergeMethod, count: int, member_weights: Sequence[float] | None) -> tuple[float, ...]:
    weights = (
        row.default_weights(count)
        if member_weights is None
        else tuple(float(weight) for weight in member_weights)
    )
    if len(weights) != count:
        raise UsageError(f"{count} members require as many weights, not {len(weights)}.")
    if not all(math.isfinite(weight) for weight in weights) or not any(weights):
        raise UsageError("Weights must be finite numbers, at least one of them not 0.")
    if not row.normalised:
        return weights
    total = math.fsum(weights)
    if total == 0:
        raise UsageError(f"{row.name} divides the weights by their sum, which is 0; use sum.")
    return tuple(weight / total for weight in weights)


def _refuse_device(device: str) -> None:
    import torch

    try:
        kind = torch.device(device)
    except RuntimeError as error:
        raise UsageError(f"{device!r} is not a device; use cpu, cuda or cuda:0.") from error
    if kind.type not in ("cpu", "cuda"):
        raise UsageError(f"Merges run only on cpu and cuda, not on {kind.type}.")
    if kind.type == "cuda" and (kind.index or 0) >= torch.cuda.device_count():
        raise UsageError(f"The device {device} is not available; use cpu.")


def result_dtype(requested: str | None, members: Sequence[MergeMember]) -> str:
    """The requested data type, else the one that all members share, else float32."""
    if requested is not None:
        if requested not in DTYPES:
            raise UsageError(f"{requested!r} is not a supported data type; use one of {', '.join(DTYPES)}.")
        return requested
    stored = {dtype for member in members for dtype in member.spec.dtypes}
    return _STORED.get(stored.pop(), "float32") if len(stored) == 1 else "float32"


def _refuse_ranks(members: Sequence[MergeMember], row: MergeMethod) -> None:
    for shape in shapes(members):
        if len({rank for rank in shape.ranks if rank}) > 1:
            raise MergeError(
                f"{row.name} needs equal ranks and {shape.name} has {sorted({r for r in shape.ranks if r})}; "
                "average and svd take any."
            )
