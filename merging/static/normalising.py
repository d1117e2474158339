"""An adapter in the form that every engine reads: the same update, written anew."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from catalog.adapters import Engine, engine_problems
from catalog.errors import UsageError
from catalog.files import sync
from merging.members import (
    MergeMember,
    Shape,
    base_modules,
    base_of,
    base_source,
    digest_of,
    load_members,
    new_folder,
    portable_form,
    read_module,
    saved_heads,
    saved_names,
    shapes,
    storage,
    sum_dense,
    write_config,
    write_json,
)
from merging.methods import Update, truncate_dense
from merging.static.merger import ModuleReport, totals, write_updates
from merging.static.plans import result_dtype

NORMALISE_RECORD = "normalise.json"
RECORD_VERSION = 1
_CARD = "README.md"


@dataclass(frozen=True, slots=True)
class NormaliseReport:
    """A normalised adapter: the folder, what normalise.json states, and what engines still misread.

    `notes` are sentences on what the user should know.
    """

    folder: Path
    record: Mapping[str, Any]
    misread: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()

    def document(self) -> dict[str, Any]:
        """The record with the folder and warnings about engines, as plain values."""
        return {"folder": str(self.folder), "misread": self.misread, **self.record}


def normalise(
    member: MergeMember,
    out: Path,
    *,
    dtype: str | None = None,
    base: str | None = None,
    rank: int | None = None,
    overwrite: bool = False,
    engines: Sequence[Engine] | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> NormaliseReport:
    """The adapter in the form that every engine reads, written to the folder `out` with normalise.json.

    All scalings are folded into B, ranks and groups of modules are filled up with zeros, names are PEFT's;
    the update stays the same but for the rounding of scaled values into `dtype`, by default the stored one
    (float32 where several are). `base` names the base model if the configuration does not. A folded DoRA, of
    full rank, is truncated to `rank`, and the record has the energy kept. The model card is copied. `engines`
    have the rules of `misread`, by default the program's own. Raises the errors of `load_members`, MergeError
    for values that are not finite or too large, UsageError for a `rank` where nothing is truncated or none
    where it is, and StorageError.
    """
    (member,) = load_members([member], base=base)
    name = base_of([member], base)
    kind = result_dtype(dtype, [member])
    union = shapes([member])
    _refuse_rank(member, rank)
    ranks = {shape.name: min(shape.largest, rank or shape.largest) for shape in union}
    source = base_source(base, name)
    form = portable_form(union, ranks, base_modules(source) if source else None)
    heads = saved_heads([member], [1.0], "first", source)
    rounded: list[str] = []
    with new_folder(out, overwrite, NORMALISE_RECORD) as folder:
        updates = _note_rounding(_scaled(member, union, ranks, progress), kind, rounded)
        modules = write_updates(folder, kind, union, updates, form, heads)
        with storage(out):
            spelling = name or member.config.base_model
            write_config(folder, [member], spelling, ranks, form, saved_names(heads))
            card = member.folder / _CARD
            if card.is_file():
                shutil.copyfile(card, folder / _CARD)
                sync(folder / _CARD)
            record = {
                "record_version": RECORD_VERSION,
                "adapter": member.name,
                "base_model": name,
                "sha256": member.digest or digest_of(member.weights),
                "license": member.license,
                "dtype": kind,
                "rank": max(ranks.values()),
                "form": form.record(),
                "changes": _changes(member, union, ranks, form.rank, len(form.zeros)),
                **(_fold_record(modules) if member.folded else {}),
                **({"saved": [head.layer for head in heads]} if heads else {}),
                **({"left_out": list(member.left_out)} if member.left_out else {}),
            }
            write_json(folder / NORMALISE_RECORD, record)
            misread = engine_problems(folder, engines)
    notes = (form.note(ranks, union), _rounding(rounded, len(union), kind))
    return NormaliseReport(out, record, misread, tuple(note for note in notes if note))


def _fold_record(modules: Mapping[str, ModuleReport]) -> dict[str, Any]:
    """What the record states of a folded DoRA: the energy of its update, and the share that is kept."""
    sums = totals(modules)
    kept = 1 - sums["discarded"] / sums["energy"] if sums["energy"] else None
    return {"folded": "dora", "energy": sums["energy"], "discarded": sums["discarded"], "kept": kept}


def _refuse_rank(member: MergeMember, rank: int | None) -> None:
    """Raises UsageError for a rank where nothing is truncated, and where a folded DoRA has none."""
    if member.folded is None and rank is not None:
        raise UsageError(f"{member.name} is not DoRA and keeps its ranks; leave out `rank`.")
    if member.folded is not None and rank is None:
        raise UsageError(f"The folded DoRA of {member.name} has full rank; set `rank`.")
    if rank is not None and rank < 1:
        raise UsageError(f"The rank must be at least 1, not {rank}.")


def _scaled(
    member: MergeMember,
    union: Sequence[Shape],
    ranks: Mapping[str, int],
    progress: Callable[[int, int], None] | None,
) -> Iterator[tuple[Shape, Update]]:
    """A as stored and B times the scaling of each module, in float32 or better; DoRA truncated to `ranks`."""
    import torch

    for number, shape in enumerate(union):
        if member.folded is not None:
            yield shape, truncate_dense(sum_dense(shape, [member], [1.0]), ranks[shape.name])
        else:
            a, b = read_module(member, shape.name)
            wide = torch.float64 if torch.float64 in (a.dtype, b.dtype) else torch.float32
            yield shape, Update(a.to(wide), b.to(wide) * shape.scalings[0], None, 0.0)
        if progress is not None:
            progress(number + 1, len(union))


def _changes(
    member: MergeMember, union: Sequence[Shape], ranks: Mapping[str, int], rank: int, zeros: int
) -> list[str]:
    """What differs from the adapter as it was, in words."""
    if member.folded is not None:
        return [f"DoRA folded with the base model and truncated to rank {min(rank, max(ranks.values()))}"]
    sizes, scalings = {shape.largest for shape in union}, {shape.scalings[0] for shape in union}
    changes = []
    if scalings != {1.0}:
        low, high = min(scalings), max(scalings)
        span = f"{low:g}" if low == high else f"{low:g} to {high:g}"
        changes.append(f"scaling {span} folded into B")
    if sizes != {rank}:
        low, high = min(sizes), max(sizes)
        changes.append(f"rank {low if low == high else f'{low} to {high}'} filled up to {rank}")
    if zeros:
        changes.append(f"zero factors for {zeros} modules that complete groups")
    if member.spec.respelled:
        changes.append("names of tensors as PEFT writes them")
    return changes


def _note_rounding(
    updates: Iterable[tuple[Shape, Update]], dtype: str, rounded: list[str]
) -> Iterator[tuple[Shape, Update]]:
    """The same updates; `rounded` gets the names of those of which `dtype` does not hold every value."""
    import torch

    kind = getattr(torch, dtype)
    for shape, update in updates:
        if dtype != "float32" and any(
            not bool((factor.to(kind) == factor).all()) for factor in (update.a, update.b)
        ):
            rounded.append(shape.name)
        yield shape, update


def _rounding(rounded: Sequence[str], modules: int, dtype: str) -> str | None:
    """A sentence where values of the result are not represented exactly in a short data type."""
    if not rounded:
        return None
    return f"Values of {len(rounded)} of {modules} modules are rounded into {dtype}; float32 keeps them."
