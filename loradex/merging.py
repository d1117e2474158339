"""`loradex.merge`, `inspect`, `fold` and the table of merge methods."""

from __future__ import annotations

import dataclasses
import shlex
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from catalog.adapters import table_with
from catalog.errors import UsageError
from catalog.settings import Settings
from loradex.arguments import check_arguments, check_choice
from loradex.members import (
    MemberSet,
    MemberSource,
    load_folded,
    open_members,
    read_base_table,
    read_engines,
    settings_of,
    split_layers,
)
from loradex.progress import ProgressCallback, ProgressEvent, ProgressOption, ProgressStep, reporting
from loradex.rows import Rows

if TYPE_CHECKING:
    from catalog.adapters import BaseTable
    from loradex.catalog import Catalog
    from merging.members import MergeMember
    from merging.static import FoldReport, Inspection, MergeReport, Plan, Price


@dataclass(frozen=True)
class MethodParameter:
    """A parameter of a merge method: its default, the values it takes in words, and what it does."""

    name: str
    default: float | int | str | bool
    range: str
    meaning: str


@dataclass(frozen=True)
class MethodRow:
    """A merge method; `weight` is a member's where none is given, "mean" for 1/N.

    `normalised` methods divide the weights by their sum. `exact` ones compute the quantity that they define,
    with no approximation but rounding. `gauge` is what happens where a member's factors change and its update
    does not: "invariant", "rotations" (invariant under these), or "dependent". `data` methods need
        activations.
    """

    method: str
    summary: str
    paper: str
    weight: float | Literal["mean"]
    normalised: bool
    exact: bool
    gauge: str
    data: bool
    parameters: tuple[MethodParameter, ...]


def methods() -> Rows[MethodRow]:
    """The merge methods, with their parameters and where they come from.

    Examples:
        >>> [row.method for row in loradex.methods() if row.exact][:2]
        ['sum', 'average']
    """
    from merging.methods import METHODS

    rows = (
        MethodRow(
            row.name,
            row.summary,
            row.paper,
            row.weight,
            row.normalised,
            row.exact,
            row.gauge,
            row.data,
            tuple(MethodParameter(p.name, p.default, p.range, p.meaning) for p in row.parameters),
        )
        for row in METHODS.values()
    )
    return Rows(rows, MethodRow)


@dataclass(frozen=True)
class MergeRequest:
    """A merge to be priced (`cost`) or run (`run`); the arguments are those of `merge`."""

    members: MemberSource
    method: str
    parameters: Mapping[str, object] = field(default_factory=dict)
    weights: Sequence[float] | None = None
    rank: int | None = None
    mixed_ranks: bool = False
    dtype: str | None = None
    device: str = "cpu"
    seed: int = 0
    without: str | Collection[str] = ()
    heads: str | None = None
    base: str | None = None
    control: str | None = None
    apply_to: Path | None = None
    form: str = "peft"
    catalog: Catalog | Settings | None = None

    @check_arguments
    def cost(self, *, progress: ProgressOption = False) -> Price:
        """The rank, size, memory and time of the merge; reads no weights and writes nothing."""
        from merging.static import price

        with reporting(progress) as report, self._check(report) as (plan, *_):
            return price(plan)

    @check_arguments
    def run(
        self, out: str | Path, *, overwrite: bool = False, progress: ProgressOption = False
    ) -> MergeReport:
        """Merges into the folder `out`; see `merge`."""
        from merging.static import apply_to, apply_whole, carry_out

        target = Path(out)
        folder = target.with_name(f"{target.name}-adapter") if self.apply_to else target
        engines = read_engines(self.catalog)
        with reporting(progress) as report, self._check(report) as (plan, opened, table, notes):
            if self.control and plan.heads:
                raise UsageError(
                    "Stand-ins have no saved heads to merge; give `control` with `heads` drop, or without it."
                )
            if self.control:
                plan = self._plan_control(opened.members, table, target)
            manifest = opened.manifest
            pool = {"name": manifest.name, "digest": manifest.digest} if manifest else None
            step = ProgressStep(report, "merging")
            if self.apply_to is not None and self._is_whole(plan):
                whole = apply_whole(
                    plan, Path(self.apply_to), target, overwrite=overwrite, pool=pool, progress=step.working
                )
                return self._finish(whole, target, notes, step)
            merged = carry_out(
                plan,
                folder,
                overwrite=overwrite,
                pool=pool,
                engines=engines,
                beside=self._gguf_writer(plan),
                progress=step.working,
            )
            for note in merged.notes:
                step.note(note)
            if self.apply_to is not None:
                apply_to(
                    Path(self.apply_to),
                    folder,
                    target,
                    device=self.device,
                    overwrite=overwrite,
                    progress=ProgressStep(report, "adding to the base").working,
                )
            return self._finish(merged, target, notes, step)

    def _finish(
        self, merged: MergeReport, target: Path, notes: tuple[str, ...], step: ProgressStep
    ) -> MergeReport:
        """The report with the files that were asked for, and all notes."""
        from merging.static import GGUF_NAME

        conversion = self._conversion(target)
        for note in conversion:
            step.note(note)
        model = target if self.apply_to else None
        gguf = target / GGUF_NAME if self.form == "gguf" and model is None else None
        return dataclasses.replace(merged, model=model, gguf=gguf, notes=(*notes, *merged.notes, *conversion))

    def _gguf_writer(self, plan: Plan) -> Callable[[Path], object] | None:
        """What writes adapter.gguf and a Modelfile beside a merged adapter, if that is asked for."""
        if self.form != "gguf" or self.apply_to is not None:
            return None
        from merging.members import load_member
        from merging.static import add_gguf

        kind = "float16" if plan.dtype == "float16" else "float32"
        return lambda folder: add_gguf(load_member(folder), folder, base=plan.source, dtype=kind)

    def _refuse_form(self, plan: Plan) -> None:
        """Raises UsageError for an unknown form, and where a GGUF adapter cannot hold the merge."""
        check_choice("form", self.form, ("peft", "gguf"))
        if self.form == "gguf" and self.apply_to is None:
            from merging.static import gguf_layout

            if plan.heads:
                raise UsageError("A GGUF adapter has no place for saved layers; use `heads` drop.")
            gguf_layout(plan.written(), plan.source, "The merge")

    def _conversion(self, target: Path) -> tuple[str, ...]:
        """A note on how the GGUF file of a full model is made, if it is asked for."""
        if self.form != "gguf" or self.apply_to is None:
            return ()
        model, file = (shlex.quote(str(path)) for path in (target, target / "model.gguf"))
        command = f"python convert_hf_to_gguf.py {model} --outfile {file}"
        return (f"llama.cpp makes the GGUF file of the model: {command}",)

    @contextmanager
    def _check(
        self, report: ProgressCallback
    ) -> Iterator[tuple[Plan, MemberSet, BaseTable, tuple[str, ...]]]:
        """The plan, checked without reading weights, what it was made of, and notes, which are reported."""
        from merging.members import check_heads
        from merging.static import refuse_unfoldable

        check_heads(self.heads)
        if self.apply_to is not None and self.heads in ("first", "average"):
            raise UsageError(
                f"Saved layers are not added to a base; use `heads` drop in place of {self.heads}, or leave "
                "out `apply_to`."
            )
        settings = settings_of(self.catalog)
        table = read_base_table(settings, report) if settings else table_with(())
        purpose = "merged or added to a base" if self.apply_to else "merged"
        layers = split_layers(self.without)
        with open_members(
            self.members,
            settings=settings,
            report=report,
            without=layers,
            purpose=purpose,
            table=table,
            bases=(self.base, self.apply_to),
            heads=self.heads,
        ) as opened:
            plan = self._plan(opened.members, table)
            notes = (
                *plan.notes,
                *base_notes(table, self.base, opened.members),
                *layer_notes(layers, opened.members),
            )
            self._refuse_form(plan)
            for note in notes:
                report(ProgressEvent("checking", note=note))
            if self.apply_to is not None:
                refuse_unfoldable(Path(self.apply_to), plan.members)
            yield plan, opened, table, notes

    def _plan(self, members: Sequence[MergeMember], table: BaseTable) -> Plan:
        from merging.static import plan

        return plan(
            members,
            self.method,
            parameters=self.parameters,
            weights=self.weights,
            rank=self.rank,
            dtype=self.dtype,
            device=self.device,
            seed=self.seed,
            base=self.base,
            table=table,
            portable=not self.mixed_ranks,
            whole=self.apply_to is not None,
            heads=self.heads,
        )

    def _is_whole(self, plan: Plan) -> bool:
        """Whether updates of full rank are added to a base as they are."""
        return self.rank is None and any(plan.members[n].folded for n in plan.present)

    def _plan_control(self, members: Sequence[MergeMember], table: BaseTable, out: Path) -> Plan:
        """The same merge of stand-ins of the members, which are written next to `out`."""
        from merging.static import stand_ins

        place = out.with_name(f"{out.name}-members")
        controls = stand_ins(members, self.control or "", place, self.seed, base=self.base, table=table)
        return self._plan(controls, table)


@check_arguments
def merge(
    members: MemberSource,
    method: str,
    *,
    out: str | Path,
    parameters: Mapping[str, object] | None = None,
    weights: Sequence[float] | None = None,
    rank: int | None = None,
    mixed_ranks: bool = False,
    dtype: str | None = None,
    device: str = "cpu",
    seed: int = 0,
    without: str | Collection[str] = (),
    heads: str | None = None,
    base: str | None = None,
    control: str | None = None,
    apply_to: str | Path | None = None,
    form: str = "peft",
    overwrite: bool = False,
    catalog: Catalog | Settings | None = None,
    progress: ProgressOption = False,
) -> MergeReport:
    """One adapter out of many, written to the folder `out`, which plain PEFT loads.

    Args:
        members: Folders of adapters, or one pool: a `Pool`, its name in `catalog`, its pool.json or its
            folder.
        method: The name of a row of `methods()`.
        out: The folder to write. It appears complete or not at all.
        parameters: Values of the method's parameters by name.
        weights: One number a member, in their order. By default 1/N or 1 each, as the method has it.
        rank: The largest rank of the result in any module.
        mixed_ranks: Write the rank that each module needs. By default all modules have one rank that every
            engine reads (8, 16, 32, 64, 128, 256, 320, 512 or the next multiple of 16), filled up with zeros.
        dtype: "float32", "bfloat16" or "float16", of the result; by default that of the members.
        device: "cpu", "cuda" or "cuda:N".
        seed: Of methods that draw, and of `control`.
        without: Layers, such as "lm_head" or ["lm_head", "embed_tokens"], of which whole weights and factors
            of all members are left out.
        heads: What becomes of output heads and embeddings that members save whole: those of the "first"
            member that has some, the "average" of these by the members' weights, or "drop". Other whole
            layers, such as classifiers, and new tokens are refused.
        base: The base model that the members share, where they do not name it, or name different ones. With
            its folder, weights in safetensors included, DoRA members are folded: merged as the difference
            between the weights that they make and the base's, which has full rank. They require `rank`, or
            `apply_to`, whose folder serves as `base` too.
        control: Merge stand-ins of the members: "random-pooled", "random-each", "random-directions",
            "shuffled-layers" or "permuted-ranks". They are written to the folder `out` with "-members"
            appended.
        apply_to: The folder of a base model to add the merge to. `out` is then the full model, and the
            adapter lies in the folder `out` with "-adapter" appended; there is none where DoRA members are
            added without a `rank`, exactly.
        form: "gguf" writes adapter.gguf, a LoRA for llama.cpp, and a Modelfile for Ollama beside the adapter;
            of a full model (`apply_to`) a note has the command of llama.cpp's own converter.
        overwrite: Replace what is in `out`.
        catalog: Where a pool of this name is found, names of base models that are added to those known, and
            rules for engines in use.
        progress: See `loradex.progress`.

    Returns:
        The folder, the record that merge.json holds, rank and energy of each module, and `notes`: sentences
        on what is unusual about the members.

    Raises:
        UsageError: The method, a parameter, or another argument is not valid.
        MergeError: The members do not fit each other, the method, or the base model.
        ConfigError, WeightsError: A file of a member cannot be used.
        NotFoundError, PoolError: The pool is not in the catalog, or its files are not the pinned ones.
        StorageError: The disk refuses.

    Writes:
        adapter_config.json, adapter_model.safetensors, merge.json (members with digests, method, parameters,
        energy) and README.md, a model card. The same call writes the same bytes.

    Examples:
        >>> report = loradex.merge(["first", "second"], "ties", rank=16, out="merged")
        >>> report.folder
        PosixPath('merged')
    """
    request = MergeRequest(
        members,
        method,
        parameters=parameters or {},
        weights=weights,
        rank=rank,
        mixed_ranks=mixed_ranks,
        dtype=dtype,
        device=device,
        seed=seed,
        without=without,
        heads=heads,
        base=base,
        control=control,
        apply_to=None if apply_to is None else Path(apply_to),
        form=form,
        catalog=catalog,
    )
    return request.run(out, overwrite=overwrite, progress=progress)


@check_arguments
def inspect(
    members: MemberSource,
    *,
    result: str | Path | None = None,
    weights: Sequence[float] | None = None,
    without: str | Collection[str] = (),
    base: str | None = None,
    device: str = "cpu",
    catalog: Catalog | Settings | None = None,
    progress: ProgressOption = False,
) -> Inspection:
    """How similar the members are, how much they interfere, and the energy that each rank of their sum keeps.

    Args:
        members: As for `merge`.
        result: The folder of a merge of them, to be compared with each member.
        weights: One number a member in the sum; 1/N each by default.
        without, base, device, catalog: As for `merge`.
        progress: See `loradex.progress`.

    Returns:
        Norms, cosines and overlaps of N members (N x N), the interference, and the energy by rank, all exact
        up to rounding; its method `plot` draws it.

    Raises:
        UsageError, MergeError, ConfigError, WeightsError, NotFoundError, PoolError: As for `merge`.

    Examples:
        >>> loradex.inspect(["first", "second"]).cosines[0][1]
        0.03
    """
    from merging.members import base_note, base_of, load_member
    from merging.static import inspection

    settings, layers = settings_of(catalog), split_layers(without)
    with reporting(progress) as report:
        table = read_base_table(settings, report) if settings else table_with(())
        with open_members(
            members,
            settings=settings,
            report=report,
            without=layers,
            purpose="compared",
            table=table,
            bases=(base,),
        ) as opened:
            merged = None
            if result is not None:
                load = partial(load_member, Path(result), without=layers, purpose="compared")
                (merged,) = load_folded([load], (base,))
            inspected = inspection.inspect(
                opened.members,
                result=merged,
                weights=weights,
                base=base,
                table=table,
                device=device,
                progress=ProgressStep(report, "reading").working,
            )
        note = base_note(opened.members, base_of(opened.members, base, table), table)
        notes = (
            *([note] if note else []),
            *base_notes(table, base, opened.members),
            *layer_notes(layers, opened.members),
        )
        for sentence in notes:
            report(ProgressEvent("checking", note=sentence))
    return dataclasses.replace(inspected, notes=notes)


@check_arguments
def fold(
    base: str | Path,
    adapter: str | Path,
    *,
    out: str | Path,
    device: str = "cpu",
    overwrite: bool = False,
    progress: ProgressOption = False,
) -> FoldReport:
    """The base model in a folder with an adapter added, as a full model in the folder `out`.

    Args:
        base: A folder with config.json and weights in safetensors.
        adapter: The folder of an adapter that PEFT loads: LoRA, or DoRA of this base.
        out: The folder to write. It appears complete or not at all.
        device: Where the products are computed: "cpu", "cuda" or "cuda:N".
        overwrite: Replace what is in `out`.
        progress: See `loradex.progress`.

    Raises:
        MergeError: A module of the adapter has no place in the base.
        UsageError: `base` is not a folder of a model in safetensors.
        StorageError: The disk refuses.

    Examples:
        >>> loradex.fold("base", "merged", out="model").folder
        PosixPath('model')
    """
    from merging.static import apply_to

    with reporting(progress) as report:
        step = ProgressStep(report, "adding to the base")
        return apply_to(
            Path(base), Path(adapter), Path(out), device=device, overwrite=overwrite, progress=step.working
        )


@check_arguments
def base_notes(table: BaseTable, base: str | None, members: Sequence[MergeMember]) -> list[str]:
    """A sentence on a base that neither the table nor a member names, or on a folder that is not a model."""
    base_names = {member.config.base_model for member in members}
    if base is None or base in base_names or table.known(base):
        return []
    if Path(base).is_dir():
        is_model = (Path(base) / "config.json").is_file()
        return (
            [] if is_model else [f"{base} does not contain config.json, so that its modules are not known."]
        )
    return [f"No base model is known as {base}; {table.nearest(base)}."]


def layer_notes(layers: Collection[str], members: Sequence[MergeMember]) -> list[str]:
    """A sentence on each layer that was to be left out and of which no member holds anything."""
    left_out = [f".{tensor}." for member in members for tensor in member.left_out]
    unused = [layer for layer in layers if not any(f".{layer}." in tensor for tensor in left_out)]
    return [f"No member holds anything of {layer}, which `without` names." for layer in unused]
