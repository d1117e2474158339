"""The merge of members into one adapter: the loop over modules, its record, and its model card."""

from __future__ import annotations

import math
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from catalog.adapters import Engine, engine_problems, rank_option
from catalog.errors import MergeError
from merging.members import (
    MERGE_RECORD,
    MergeMember,
    PortableForm,
    SavedHead,
    Scratch,
    Shape,
    digest_of,
    factor_names,
    head_tensors,
    heads_record,
    join_factors,
    new_folder,
    package_versions,
    read_stack,
    refuse_infinite,
    saved_names,
    shapes,
    storage,
    sum_dense,
    tensor_writer,
    weights_path,
    write_config,
    write_json,
    write_text,
)
from merging.methods import ModuleWork, Update, truncate_dense
from merging.static.card import model_card
from merging.static.plans import Plan

if TYPE_CHECKING:
    from torch import Tensor

RECORD_VERSION = 1
# Norms of an untruncated sum are measured up to this rank: the time grows with its square.
_CHEAP_RANK = 64
_LEAST = 1e-30


@dataclass(frozen=True, slots=True)
class ModuleReport:
    """One merged module: its rank, ||Delta W||_F^2, and the part that the rank discards.

    `energy` is None if measuring it would take longer than the merge: untruncated sums of high rank.
    """

    rank: int
    energy: float | None
    discarded: float


@dataclass(frozen=True, slots=True)
class MergeReport:
    """The result of a merge: the folder, the record as in merge.json, and each module by name.

    `model` is the folder of the base model with the merge added, `gguf` the file for llama.cpp, if requested;
    `misread` are warnings about engines that do not read the result as PEFT does, `notes` are notes for the
    user.
    """

    folder: Path
    record: Mapping[str, Any]
    modules: Mapping[str, ModuleReport]
    model: Path | None = None
    gguf: Path | None = None
    misread: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()

    @property
    def energy_share(self) -> float | None:
        """The share of the energy that the result keeps, None if the energy was not measured or is 0."""
        totals = self.record["totals"]
        return 1 - totals["discarded"] / totals["energy"] if totals["energy"] else None

    def document(self) -> dict[str, Any]:
        """The record with the folder, the energy kept and warnings about other programs, as plain values."""
        facts = {
            "folder": str(self.folder),
            "kept": self.energy_share,
            "misread": self.misread,
            **self.record,
        }
        files = {"model": self.model, "gguf": self.gguf}
        return facts | {key: str(path) for key, path in files.items() if path}


def carry_out(
    planned: Plan,
    out: Path,
    *,
    overwrite: bool = False,
    pool: Mapping[str, str] | None = None,
    engines: Sequence[Engine] | None = None,
    beside: Callable[[Path], object] | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> MergeReport:
    """One adapter merged from a plan's members, written to the folder `out` with merge.json and a model card.

    `pool` (its name and digest) is copied into the record; `engines` have the rules by which the report and
    the card say who misreads it, by default the program's own. `beside` writes more files into the folder
    before it appears. `progress` is called with the number of
    modules done and of all. The folder appears complete or not at all. Raises StorageError if writing fails,
    MergeError for values that are not finite.
    """
    with ExitStack() as stack:
        folder = stack.enter_context(new_folder(out, overwrite))
        hashing = ThreadPoolExecutor(1)
        stack.callback(hashing.shutdown, cancel_futures=True)
        digests = [member.digest or hashing.submit(digest_of, member.weights) for member in planned.members]
        present = [planned.members[n] for n in planned.present]
        union, form = shapes(present), planned.form()
        updates = merged_updates(planned, progress, written=True)
        stack.callback(updates.close)
        refuse = partial(refuse_infinite, members=present)
        modules = write_updates(folder, planned.dtype, union, updates, form, planned.heads, refuse)
        ranks = {name: module.rank for name, module in modules.items()}
        with storage(out):
            write_config(folder, planned.members, planned.base, ranks, form, saved_names(planned.heads))
            record = merge_record(planned, modules, pool, digests) | ({"form": form.record()} if form else {})
            write_json(folder / MERGE_RECORD, record)
            misread = engine_problems(folder, engines)
            option = rank_option(engines, "vllm", form.rank if form else max(ranks.values()))
            write_text(folder / "README.md", model_card(planned.method, record, misread, option))
        if beside is not None:
            beside(folder)
    advice = "; `mixed_ranks=True` writes the ranks as they are"
    note = form.note(ranks, union, advice) if form else None
    return MergeReport(out, record, modules, misread=misread, notes=(note,) if note else ())


def works(planned: Plan) -> Iterator[ModuleWork]:
    """The input of a plan's method for each module; reads every factor once and writes nothing."""
    members = [planned.members[n] for n in planned.present]
    limits = _limits(planned, members)
    for shape in shapes(members):
        yield _work(planned, shape, members, limits)


def _limits(planned: Plan, members: Sequence[MergeMember]) -> Mapping[str, float]:
    """The result of the method's survey of all modules; reads the factors as often as it requires."""
    survey = planned.method.survey
    union = shapes(members)
    return survey(lambda: (_work(planned, shape, members, {}) for shape in union)) if survey else {}


def merged_updates(
    planned: Plan, progress: Callable[[int, int], None] | None = None, written: bool = False
) -> Generator[tuple[Shape, Update], None, None]:
    """Shape and update of each module; modules that only members of weight 0 have are left out.

    If factors are `written` unchanged, side by side, they are in the data type of the file.
    """
    import torch

    members = [planned.members[n] for n in planned.present]
    weights = [planned.weights[n] for n in planned.present]
    union = shapes(members)
    limits = _limits(planned, members)
    with Scratch() as scratch:
        for number, shape in enumerate(union):
            if written and planned.joins(shape):
                a, b = join_factors(shape, members, weights, getattr(torch, planned.dtype), scratch)
                yield shape, Update(a, b, None, 0.0)
            elif planned.is_dense(shape):
                matrix = sum_dense(shape, members, weights).to(planned.device)
                with finite_products(shape.name):
                    update = truncate_dense(matrix, planned.bound(shape))
                yield shape, update
            else:
                with finite_products(shape.name):
                    update = planned.method.run(_work(planned, shape, members, limits))
                yield shape, update
            if progress is not None:
                progress(number + 1, len(union))


@contextmanager
def finite_products(module: str) -> Iterator[None]:
    """Translates the error of a decomposition of values that are not finite, or too far apart, into a
    MergeError."""
    from torch import linalg

    try:
        yield
    except linalg.LinAlgError as error:  # type: ignore[attr-defined]  # exported, but not declared
        raise MergeError(
            f"The products of the factors of {module} are too large for float32; leave out the member with "
            "values like that."
        ) from error


def whole_updates(planned: Plan) -> Callable[[Shape], Tensor]:
    """What gives the merged update of a module of a plan as a matrix (out, in) in float32, not truncated."""
    members = [planned.members[n] for n in planned.present]
    weights = [planned.weights[n] for n in planned.present]
    union = shapes(members)
    whole = replace(planned, rank=max(max(shape.in_features, shape.out_features) for shape in union))
    limits = _limits(whole, members)

    def update_of(shape: Shape) -> Tensor:
        if whole.method.is_sum:
            return sum_dense(shape, members, weights)
        with finite_products(shape.name):
            update = whole.method.run(_work(whole, shape, members, limits))
        return update.b @ update.a

    return update_of


def _work(
    planned: Plan, shape: Shape, members: Sequence[MergeMember], limits: Mapping[str, float]
) -> ModuleWork:
    """The method's input for one module: the members that have it, with unchanged weights."""
    names = [member.name for member in members]
    work = ModuleWork(
        stack=read_stack(shape, members, planned.device),
        weights=tuple(planned.weights[n] for n in planned.present),
        rank=planned.bound(shape),
        names=tuple(f"{name}#{names[:n].count(name)}" for n, name in enumerate(names)),
        options=planned.options,
        seed=planned.seed,
        memory=planned.memory,
        inputs=tuple(planned.inputs[n] for n in planned.present) if planned.inputs else (),
        limits=limits,
    )
    return work.of([n for n, rank in enumerate(work.stack.ranks) if rank])


def write_updates(
    folder: Path,
    dtype: str,
    union: Sequence[Shape],
    updates: Iterable[tuple[Shape, Update]],
    form: PortableForm | None = None,
    heads: Sequence[SavedHead] = (),
    refuse: Callable[[Shape], object] | None = None,
) -> dict[str, ModuleReport]:
    """Writes the factors of updates to a folder one by one, and reports each module by name.

    `union` has every possible module. With `form` factors are filled up with zeros; the reports have the
    ranks before that. `heads` are saved whole after them. Raises MergeError if `dtype` cannot represent a
    value, unless `refuse` raises first, with the reason, and StorageError if writing fails.
    """
    import torch

    written = (*union, *form.zeros) if form else union
    names = [name for shape in written for name in factor_names(shape)] + [head.tensor for head in heads]
    modules: dict[str, ModuleReport] = {}
    size = form.rank * sum(shape.in_features + shape.out_features for shape in written) if form else 0
    size += sum(head.shape[0] * head.shape[1] for head in heads) if form else 0
    size *= torch.finfo(getattr(torch, dtype)).bits // 8
    with storage(folder), tensor_writer(weights_path(folder), dtype, names, size) as writer:
        for shape, update in updates:
            factors = form.pad(update.a, update.b) if form else (update.a, update.b)
            try:
                for name, values in zip(factor_names(shape), factors, strict=True):
                    writer.write(name, values)
            except OverflowError as error:
                if refuse is not None:
                    refuse(shape)
                # Factors that were made in the type of the file do not tell what overflowed.
                exact = all(values.dtype == torch.float32 for values in factors)
                if exact and not all(bool(torch.isfinite(values).all()) for values in factors):
                    raise MergeError(f"The factors of {shape.name} contain NaN or infinity.") from error
                raise MergeError(
                    f"The factors of {shape.name} are too large for {dtype}; write float32 instead."
                ) from error
            modules[shape.name] = ModuleReport(update.a.shape[0], _energy(update), update.discarded)
        for shape, a, b in form.zero_factors(dtype) if form else ():
            for name, values in zip(factor_names(shape), (a, b), strict=True):
                writer.write(name, values)
        for name, values in head_tensors(heads, dtype):
            try:
                writer.write(name, values)
            except OverflowError as error:
                raise MergeError(f"{name} is too large for {dtype}; write float32 instead.") from error
    return modules


def _energy(update: Update) -> float | None:
    """||b a||_F^2 as measured by the method, else by r x r Gram matrices if these are small."""
    import torch

    if update.energy is not None or update.a.shape[0] > _CHEAP_RANK:
        return update.energy

    for kind in (torch.float32, torch.float64):
        a, b = update.a.to(kind), update.b.to(kind)
        energy = float(((a @ a.T) * (b.T @ b)).sum(dtype=torch.float64))
        # Squares of very large or small values leave the range of float32.
        if _LEAST < energy < math.inf:
            break
    return max(0.0, energy)


def totals(modules: Mapping[str, ModuleReport]) -> dict[str, Any]:
    """Energy, norm and discarded energy of all modules; None if not every module is measured."""
    measured = [module.energy for module in modules.values() if module.energy is not None]
    energy = math.fsum(measured) if len(measured) == len(modules) else None
    return {
        "energy": energy,
        "norm": None if energy is None else math.sqrt(energy),
        "discarded": math.fsum(module.discarded for module in modules.values()),
        "modules": len(modules),
    }


def merge_record(
    planned: Plan,
    modules: Mapping[str, ModuleReport],
    pool: Mapping[str, str] | None = None,
    digests: Sequence[str | Future[str]] | None = None,
) -> dict[str, Any]:
    """What merge.json states; the members' files are read where `digests` does not have theirs."""
    if digests is None:
        digests = [member.sha256() for member in planned.members]
    sha256s = [digest if isinstance(digest, str) else digest.result() for digest in digests]
    return {
        "record_version": RECORD_VERSION,
        "base_model": planned.base,
        "method": planned.method.name,
        **({"revision": planned.method.revision} if planned.method.revision > 1 else {}),
        "paper": planned.method.paper,
        "exact": planned.method.exact,
        "parameters": dict(planned.options),
        "seed": planned.seed,
        "rank": planned.rank,
        "dtype": planned.dtype,
        "device": planned.device,
        "pool": dict(pool) if pool else None,
        "members": _member_entries(planned, sha256s),
        "modules": {name: asdict(module) for name, module in modules.items()},
        "totals": totals(modules),
        **(
            {"heads": heads_record(planned.head_choice, planned.members, planned.heads)}
            if planned.head_choice
            else {}
        ),
        "versions": package_versions("loradex", "torch", "safetensors"),
    }


def _member_entries(planned: Plan, digests: Sequence[str]) -> list[dict[str, Any]]:
    return [
        {
            "name": member.name,
            "weight": weight,
            "rank": _own_rank(member),
            "modules": len(member.spec.modules),
            "license": member.license,
            "sha256": digest,
            **({"source": dict(member.source)} if member.source else {}),
            **({"folded": "dora"} if member.folded else {}),
            **({"left_out": list(member.left_out)} if member.left_out else {}),
            **({"base_model": spelling} if spelling and spelling != planned.base else {}),
        }
        for member, weight, digest in zip(planned.members, planned.weights, digests, strict=True)
        for spelling in (member.config.base_model,)
    ]


def _own_rank(member: MergeMember) -> int:
    """The largest rank of a member's own factors."""
    return member.folded.rank if member.folded else max(module.rank for module in member.spec.modules)
