"""Learned coefficients applied: from members, one adapter that PEFT loads.

Each module is sum_i c_{m,i} Delta W_{m,i}, exact at the rank of all members whose coefficient is not 0, or
its best approximation of a lower rank with a report of the discarded energy.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from catalog.adapters import Engine, engine_problems
from catalog.errors import MergeError
from merging.members import (
    MergeMember,
    PortableForm,
    Shape,
    Stack,
    base_modules,
    iterate_stacks,
    new_folder,
    portable_form,
    shapes,
    storage,
    write_config,
    write_json,
)
from merging.methods import Update, concatenate, truncate
from merging.static import MergeReport, plan, totals, write_updates

if TYPE_CHECKING:
    from torch import Tensor

ADAPT_RECORD = "adapt.json"
Numbers = Mapping[str, Sequence[float | Sequence[float]]]


def combine(
    members: Sequence[Path | MergeMember],
    coefficients: Numbers,
    out: Path,
    *,
    rank: int | None = None,
    dtype: str | None = None,
    device: str = "cpu",
    base: str | None = None,
    record: Mapping[str, Any] | None = None,
    overwrite: bool = False,
    stacks: Iterable[Stack] | None = None,
    portable: bool = False,
    engines: Sequence[Engine] | None = None,
) -> MergeReport:
    """One adapter in the folder `out`: the members weighted by `coefficients`, with adapt.json.

    `coefficients` has for each module one number a member, or a sequence of them for the member's ranks
    (`Coefficients.numbers`); members and modules without a number other than 0 are left out. Without `rank`
    the result is exact; `rank` limits the rank of every module. `dtype` is that of all members, else float32.
    `stacks` are factors to use instead of the members' files, in the order of `merging.members.shapes`
    (trained ones: `LiveStack.stacks`). `record` is copied into adapt.json, with the result of the folding
    under "combined". A `portable` result has the form that every engine reads; `engines` have the rules
    by which the report says who misreads it, by default the program's own. The folder appears complete or
    not at all; one written by `combine` is replaced with `overwrite`. Raises the errors of
    `merging.static.plan`, MergeError if all coefficients are 0, StorageError if writing fails.
    """
    from merging.learning.coefficients import columns

    planned = plan(members, "sum", rank=rank, dtype=dtype, device=device, base=base)
    union = shapes(planned.members)
    scales = columns(union, coefficients)
    used = [shape for shape in union if shape.name in scales and bool(scales[shape.name].any())]
    if not used:
        raise MergeError("Every coefficient is 0, so the result is the base model; no adapter was written.")
    source = iterate_stacks(planned.members, device) if stacks is None else stacks
    with new_folder(out, overwrite, ADAPT_RECORD) as folder:
        updates = _updates(used, source, scales, rank)
        form = _form(used, scales, rank, base or planned.base) if portable else None
        modules = write_updates(folder, planned.dtype, used, updates, form)
        combined = {
            "rank": rank,
            "dtype": planned.dtype,
            "modules": {name: asdict(module) for name, module in modules.items()},
            "totals": totals(modules),
            **({"form": form.record()} if form else {}),
        }
        document = dict(record or {}) | {"combined": combined}
        # The base model by its canonical name, or the folder of a given model: PEFT finds it there.
        name = base if base and (Path(base) / "config.json").is_file() else planned.base
        with storage(out):
            ranks = {name: module.rank for name, module in modules.items()}
            write_config(folder, planned.members, name, ranks, form)
            write_json(folder / ADAPT_RECORD, document)
        misread = engine_problems(folder, engines)
    return MergeReport(out, document, modules, misread=misread)


def _form(
    used: Sequence[Shape], scales: Mapping[str, Tensor], rank: int | None, base: str | None
) -> PortableForm:
    """The form that every engine reads, for modules of the ranks that `_update` gives them."""
    ranks = {shape.name: int(scales[shape.name].count_nonzero()) for shape in used}
    ranks = {name: min(count, rank or count) for name, count in ranks.items()}
    return portable_form(used, ranks, base_modules(base) if base else None)


def _updates(
    used: Sequence[Shape], stacks: Iterable[Stack], scales: Mapping[str, Tensor], rank: int | None
) -> Iterator[tuple[Shape, Update]]:
    """B D A of each module without ranks of weight 0, truncated to `rank`."""
    names = {shape.name: shape for shape in used}
    for stack in stacks:
        if stack.name in names:
            d = scales[stack.name].to(stack.a.device)
            columns = d.nonzero()[:, 0]
            factors = Stack(stack.name, stack.a[columns], stack.b[:, columns], (len(columns),), (1.0,))
            is_exact = rank is None or rank >= len(columns)
            update = (
                concatenate(factors, d[columns]) if is_exact else truncate(factors, d[columns], rank or 1)
            )
            yield names[stack.name], update
