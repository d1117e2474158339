"""Many adapters over one base model that stays in memory: their weights change, the model does not.

All members are resident as stacked factors (`merging.members.stacks`), and a linear layer gives
y = W x + B (s * (A x)), s the scale of each rank. A new vector of coefficients is a new s; several of them
can share one batch; gradients reach the scales alone. Nothing is merged, and the base's weights are never
written to.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, Literal

import torch
from torch import Tensor, nn

from catalog.errors import LoradexError, MergeError, UsageError
from merging.live.passes import Gate, Part, folds, pass_by_factors, pass_by_lookup, pass_by_sum, sum_weights
from merging.live.resident import Resident, layer, read
from merging.members import MergeMember, Shape, Stack
from merging.model import FixedLinear, is_conv1d, memory_limit

_BESIDE = "The memory of the adapters in addition to the base model"
Way = Literal["cheapest", "factored", "folded"]
Scales = Mapping[str, Tensor]


class LiveStack:
    """A model and the members whose weighted sum its layers add while `attached`.

    `model` is any torch module whose layers have the names that the members use; they must be plain linear
    layers or embeddings of the members' widths. Factors are kept on each layer's device and, unless `dtype`
    is given, in the layer's data type; scales are float32 (float64 over a float64 model) and multiply before
    anything is rounded. `train_factors` makes A and B leaves that require gradients. `way` is for
    measurements: "cheapest" chooses an order of multiplication layer by layer, see `merging.live`; only
    float32 and wider layers are ever folded, since narrower ones would round small updates away.

    Without `set_scales` every member has scale 1. Raises MergeError for a module that the model lacks, that
    is not such a layer or that has different widths, and the errors of reading members.
    """

    def __init__(
        self,
        model: nn.Module,
        members: Sequence[MergeMember] = (),
        device: str | torch.device | None = None,
        dtype: torch.dtype | None = None,
        *,
        train_factors: bool = False,
        way: Way = "cheapest",
    ) -> None:
        self.model = model
        self.way = way
        self._device = None if device is None else torch.device(device)
        self._dtype = dtype
        self._train_factors = train_factors
        self._sites: dict[str, Any] = {}
        self._attached: contextlib.ExitStack | None = None
        self._gate: Gate | None = None
        self._given: list[Part] = []
        self._parts: dict[str, Part] = {}
        self._scratch: dict[torch.Size, Tensor] = {}
        self.swap(members)

    @property
    def members(self) -> tuple[MergeMember, ...]:
        """The resident members in the order of their scales."""
        return self._resident.members

    @property
    def shapes(self) -> tuple[Shape, ...]:
        """Every module of any member, sorted by layer and name."""
        return self._resident.shapes

    @property
    def factors(self) -> Mapping[str, tuple[Tensor, Tensor]]:
        """A of (R, in) and B^T of (R, out) of every module, scalings folded in; training changes these."""
        return self._resident.factors

    def stacks(self) -> Iterator[Stack]:
        """The current factors, in float32 on the CPU, in the order of `shapes`."""
        for shape in self.shapes:
            a, bt = (part.detach().to("cpu", torch.float32) for part in self.factors[shape.name])
            yield Stack(shape.name, a, bt.T, shape.ranks, tuple(float(rank > 0) for rank in shape.ranks))

    def scales_of(self, weights: Sequence[float]) -> dict[str, Tensor]:
        """Scales that give each member one weight in all modules."""
        if len(weights) != len(self.members):
            raise UsageError(f"{len(self.members)} members require as many weights, not {len(weights)}.")
        values = torch.tensor([float(weight) for weight in weights], dtype=torch.float64)
        return {
            shape.name: torch.repeat_interleave(values, torch.tensor(shape.ranks)) for shape in self.shapes
        }

    def set_scales(self, scales: Scales, rows: Tensor | None = None) -> None:
        """From now on module m adds B (s * (A x)) with s = `scales[m]` of (R,), or nothing if it has none.

        With `rows`, one integer for each row of a batch, scales are (K, R) and row i uses the set `rows[i]`.
        Ranks whose scales are 0 and require no gradient are skipped. Raises UsageError for modules that no
        member has and for wrong shapes.
        """
        self._give(self._check_scales(scales, rows))

    def _give(self, parts: list[Part]) -> None:
        self._given = parts
        self._choose()

    def _choose(self) -> None:
        """Parts with an effect; a gate sees the ranks of all members."""
        self._parts = _by_name(self._given) if self._gate else _used_parts(self._given)

    def _check_scales(self, scales: Scales, rows: Tensor | None) -> list[Part]:
        ranks = {shape.name: shape.total for shape in self.shapes}
        if unknown := sorted(set(scales) - set(ranks)):
            raise UsageError(f"No member has a module {unknown[0]}; use the names in `shapes`.")
        sets = () if rows is None else _sets(scales, rows)
        groups = [] if rows is None else [(rows.cpu() == n).nonzero()[:, 0] for n in range(*sets)]
        parts = []
        for name, scale in scales.items():
            if tuple(scale.shape) != (*sets, ranks[name]):
                raise UsageError(
                    f"The scales of {name} have shape {list(scale.shape)}, not {[*sets, ranks[name]]}."
                )
            a, bt = self.factors[name]
            kind = torch.float64 if a.dtype == torch.float64 else torch.float32
            here = None if rows is None else rows.to(a.device)
            placed = tuple(group.to(a.device) for group in groups)
            parts.append(Part(name, a, bt, scale.to(a.device, kind), here, placed))
        return parts

    @contextlib.contextmanager
    def attach(self, gate: Gate | None = None) -> Iterator[LiveStack]:
        """Inside the block the model's layers add the members; afterwards the model is restored.

        `gate(module, x, h)` with h = A x of (..., R) gives a factor for each rank that depends on the input
        (Arrow, LoRA-Flow), multiplied with the scales; with a gate no rank is left out for its scale of 0.
        """
        if self._attached is not None:
            raise UsageError("The members are already attached; leave that block first.")
        with contextlib.ExitStack() as stack:
            self._attached, self._gate = stack, gate
            stack.callback(self._forget)
            self._choose()
            for name in self._sites:
                self._attach(name, stack)
            yield self

    def _forget(self) -> None:
        self._attached, self._gate = None, None
        self._scratch = {}

    def _attach(self, name: str, stack: contextlib.ExitStack) -> None:
        """Replaces this module's forward by its pass until `stack` closes."""
        module = self._sites[name]
        own = module.__dict__.get("forward")
        inner = module.forward

        def forward(x: Tensor) -> Tensor:
            part = self._parts.get(name)
            return inner(x) if part is None else self._pass(part, module, inner, own is None, x)

        def restore() -> None:
            if own is None:
                del module.forward
            else:
                module.forward = own

        module.forward = forward
        stack.callback(restore)

    def _pass(self, part: Part, module: Any, inner: Any, plain: bool, x: Tensor) -> Tensor:
        if part.rows is not None and x.shape[0] != len(part.rows):
            raise UsageError(
                f"{part.name} has a batch of {x.shape[0]} rows, but scales for {len(part.rows)}; give "
                "scales for each row of the batch."
            )
        if isinstance(module, nn.Embedding):
            return pass_by_lookup(x, inner(x), part, self._gate)
        if plain and self._gate is None and self._may_fold(part, module, x):
            scratch = None if part.scales.requires_grad else self._room(module.weight)
            return pass_by_sum(x, module.weight, module.bias, part, scratch)
        return pass_by_factors(x, inner(x), part, self._gate)

    def _may_fold(self, part: Part, module: nn.Linear, x: Tensor) -> bool:
        weight = module.weight
        possible = (
            type(module) in (nn.Linear, FixedLinear)
            and weight.dtype in (torch.float32, torch.float64)
            and weight.dtype == part.a.dtype == x.dtype
            and not part.a.requires_grad
            and not (torch.is_grad_enabled() and weight.requires_grad)
            and not torch.is_autocast_enabled(x.device.type)
        )
        cheaper = self.way == "folded" or (self.way == "cheapest" and folds(part, x.numel() // x.shape[-1]))
        return possible and cheaper

    def _room(self, weight: Tensor) -> Tensor:
        """Memory of the weights' shape that folding may write to."""
        if weight.shape not in self._scratch:
            with torch.inference_mode(False):
                self._scratch[weight.shape] = torch.empty_like(weight)
        return self._scratch[weight.shape]

    def swap(self, members: Sequence[MergeMember]) -> None:
        """Makes other members resident, each with scale 1; attached layers stay attached.

        Members that cannot be read raise as in the constructor, and the previous ones stay resident.
        """
        with memory_limit(_BESIDE):
            self._settle(self._read(members))

    def _settle(self, host: Resident) -> None:
        resident = host.place()
        for values in (values for pair in resident.factors.values() for values in pair):
            values.requires_grad_(self._train_factors)
        new = [shape for shape in resident.shapes if shape.name not in self._sites]
        self._sites |= {shape.name: layer(self.model, shape, resident.members) for shape in new}
        self._resident = resident
        if self._attached is not None:
            for shape in new:
                self._attach(shape.name, self._attached)
        self.set_scales(self.scales_of([1.0] * len(resident.members)))

    def _read(self, members: Sequence[MergeMember]) -> Resident:
        return read(self.model, members, self._device, self._dtype)

    def sweep(
        self, groups: Iterable[Sequence[MergeMember]]
    ) -> Iterator[tuple[Sequence[MergeMember], LoradexError | None]]:
        """Makes one group of members after the other resident; the next is read in a thread at the same time.

        Yields each group with None, or with the error for which it is skipped; then the previous members stay
        resident.
        """
        with ThreadPoolExecutor(1) as reader:
            remaining = iter(groups)
            ahead: tuple[Sequence[MergeMember], Future[Resident]] | None = None
            while True:
                following = next(remaining, None)
                coming = None if following is None else (following, reader.submit(self._read, following))
                if ahead is not None:
                    yield ahead[0], self._swap_layers(ahead[1])
                if coming is None:
                    return
                ahead = coming

    def _swap_layers(self, reading: Future[Resident]) -> LoradexError | None:
        try:
            with memory_limit(_BESIDE):
                self._settle(reading.result())
        except LoradexError as error:
            return error
        return None

    @contextlib.contextmanager
    def dense(self, scales: Scales) -> Iterator[LiveStack]:
        """Inside the block the layers have separate weights W + B diag(s) A, and no live addition.

        Sums are made in float32 and rounded once. The model's parameters are set aside and restored bit for
        bit, also after an error; layers that share their weights are separated inside the block. Requires the
        memory of all changed weights again, and raises MemoryLimitError if it is not available. Raises
        UsageError as `set_scales` does and MergeError for layers whose weights are not a plain matrix of the
        layer's widths.
        """
        parts = _used_parts(self._check_scales(scales, None))
        before = self._given
        with contextlib.ExitStack() as stack:
            for name, part in parts.items():
                module = self._sites[name]
                with torch.no_grad(), memory_limit("A second copy of the weights that adapters change"):
                    weight = nn.Parameter(_sum(module, part), requires_grad=False)
                stack.callback(setattr, module, "weight", module.weight)
                module.weight = weight
            stack.callback(self._give, before)
            self._give([])
            yield self

    @property
    def crossover(self) -> float:
        """The number of tokens for one vector of coefficients at which `dense` costs as much as `attached`.

        2 R in out operations once against 2 R (in + out) for each token, summed over the modules.
        """
        once = sum(shape.total * shape.in_features * shape.out_features for shape in self._linear())
        per_token = sum(shape.total * (shape.in_features + shape.out_features) for shape in self._linear())
        return once / per_token if per_token else 0.0

    def worthwhile(self, tokens: int) -> bool:
        """Whether `dense` costs less than `attached` for this number of tokens with one vector of
        coefficients; never over quantised weights."""
        plain = all(site.weight.is_floating_point() for site in self._sites.values())
        return plain and tokens > self.crossover

    def _linear(self) -> list[Shape]:
        return [shape for shape in self.shapes if shape.kind == "linear"]


def _by_name(parts: Iterable[Part]) -> dict[str, Part]:
    return {part.name: part for part in parts}


def _sets(scales: Scales, rows: Tensor) -> tuple[int]:
    """The number of sets of scales; raises UsageError if a row uses a missing one."""
    sets = next((len(groups) for groups in scales.values()), 0)
    if rows.dim() != 1 or rows.dtype not in (torch.int64, torch.int32) or not len(rows):
        raise UsageError("Rows must be a vector of integers, the set of scales of each row of the batch.")
    if not 0 <= int(rows.min()) <= int(rows.max()) < sets:
        raise UsageError(
            f"A row uses the set of scales {int(rows.max())}, but there are {sets} sets, counted from 0."
        )
    return (sets,)


def _used_parts(parts: Sequence[Part]) -> dict[str, Part]:
    """The parts without ranks of scale 0, which one transfer from the device determines."""
    fixed = [part for part in parts if not part.trains]
    masks = [(part.scales != 0).reshape(-1, part.scales.shape[-1]).any(0) for part in fixed]
    if not masks:
        return _by_name(parts)
    together = torch.cat([mask.to(masks[0].device) for mask in masks]).cpu()
    flags = together.split_with_sizes([len(mask) for mask in masks])
    narrow = {part.name: _narrow_part(part, used) for part, used in zip(fixed, flags, strict=True)}
    used_parts = [narrow.get(part.name, part) for part in parts]
    return _by_name(part for part in used_parts if part is not None)


def _narrow_part(part: Part, used: Tensor) -> Part | None:
    """The part with the used ranks alone: itself, a view where they follow each other, else a copy."""
    places = used.nonzero()[:, 0]
    if not len(places):
        return None
    if len(places) == len(used):
        return part
    first, last = int(places[0]), int(places[-1])
    selection: Any = slice(first, last + 1) if last - first + 1 == len(places) else places.to(part.a.device)
    return Part(
        part.name, part.a[selection], part.bt[selection], part.scales[..., selection], part.rows, part.groups
    )


def _sum(module: Any, part: Part) -> Tensor:
    """W + B diag(s) A in the layer's data type; W + A^T diag(s) B^T of an embedding or Conv1D, (in, out)."""
    weight, wide = module.weight, torch.promote_types(module.weight.dtype, torch.float32)
    a, bt = part.a.to(wide), part.bt.to(wide)
    pair = (bt, a) if isinstance(module, nn.Embedding) or is_conv1d(module) else (a, bt)
    if weight.shape != (pair[1].shape[1], pair[0].shape[1]) or not weight.dtype.is_floating_point:
        raise MergeError(
            f"{part.name} of the base model is stored in a form that cannot be changed; load the base model "
            "unquantised."
        )
    return sum_weights(weight.to(wide), *pair, part.scales.to(wide)).to(weight.dtype)
