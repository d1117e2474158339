"""Trainable coefficients of members: their number, activation and start.

The design space of "The Appeal and Reality of Recycling LoRAs with Adaptive Merging" (its released layer,
peft_extension/lorahub/layers.py): module m adds sum_i f(c_{g,i}) Delta W_{m,i}, f an activation and g the
group of modules that share the coefficients c. AdaMerging (arXiv 2310.02575) has a layer's or a task's
coefficients with the identity, LoRA Soups (2410.13025) and pi-Tuning (2304.14381) have a softmax, LoraHub
(2307.13269) one coefficient a member.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, get_args

import torch
from torch import Tensor, nn
from torch.nn import functional

from catalog.errors import UsageError
from merging.members import Shape
from merging.methods import nearest

Granularity = Literal["adapter", "layer", "sublayer", "module", "rank"]
Activation = Literal["linear", "squared", "leaky_relu", "softmax", "sigmoid"]
Init = Literal["zero", "uniform", "normal", "equal", "equal_root", "one_hot"]
Applied = float | tuple[float, ...]

_SLOPE = 0.01
_SPREAD = 0.5


@dataclass(frozen=True, slots=True)
class Design:
    """The granularity, activation and start of coefficients; raises UsageError for invalid combinations.

    `granularity`: one coefficient a member for the whole "adapter", for each "layer", for each "sublayer"
    (modules of one parent: attention, mlp), for each "module", or one for each "rank" of each module.
    `activation`: "linear" (c), "squared" (c^2), "leaky_relu" (slope 0.01), "softmax" over the members that
    have a module of the group, "sigmoid".
    `init` of c, before the activation: "zero", "uniform" on [0, 1], "normal" of mean 0 and deviation 0.5,
    "equal" 1/N, "equal_root" 1/sqrt N, "one_hot" 1 for the member `target` and 0 for others.
    """

    granularity: Granularity = "module"
    activation: Activation = "leaky_relu"
    init: Init = "zero"
    seed: int = 0
    target: int | None = None

    def __post_init__(self) -> None:
        for field, literal in (("granularity", Granularity), ("activation", Activation), ("init", Init)):
            value = getattr(self, field)
            if value not in get_args(literal):
                raise UsageError(f"Unknown {field} {value!r}; {nearest(str(value), get_args(literal))}.")
        if self.activation == "softmax" and self.granularity == "rank":
            raise UsageError("A softmax over members is not possible for the granularity rank; use module.")
        if self.activation == "squared" and self.init == "zero":
            raise UsageError("A squared coefficient of 0 has no gradient; use another start.")
        if (self.init == "one_hot") != (self.target is not None):
            raise UsageError(
                "A start at one member requires its number as target; other starts do not accept a target."
            )


class Coefficients(nn.Module):
    """Trainable coefficients c of (groups, N), or of (ranks of all modules,), as the one parameter `raw`.

    `shapes` and `names` are those of the members (`LiveStack.shapes`). Values are float32. Coefficients of
    members without a module in a group exist but have no effect.
    """

    _where: Tensor
    _present: Tensor

    def __init__(self, shapes: Sequence[Shape], names: Sequence[str], design: Design | None = None) -> None:
        super().__init__()
        self.design = design or Design()
        self.shapes = tuple(shapes)
        self.names = tuple(names)
        target = self.design.target
        if target is not None and not 0 <= target < len(names):
            raise UsageError(
                f"The target {target} is not a member: the {len(names)} members are counted from 0."
            )
        groups, where, present = _layout(self.shapes, len(names), self.design.granularity)
        self.groups = groups
        self.register_buffer("_where", where, persistent=False)
        self.register_buffer("_present", present, persistent=False)
        size = (int(where.numel()),) if self.design.granularity == "rank" else (len(groups), len(names))
        self.raw = nn.Parameter(_start(size, self.design, self.shapes, len(names)))

    def values(self) -> Tensor:
        """f(c), of the shape of `raw`."""
        match self.design.activation:
            case "squared":
                return self.raw.square()
            case "leaky_relu":
                return functional.leaky_relu(self.raw, _SLOPE)
            case "softmax":
                return self.raw.masked_fill(~self._present, float("-inf")).softmax(-1)
            case "sigmoid":
                return self.raw.sigmoid()
            case _:
                return self.raw

    def scales(self) -> dict[str, Tensor]:
        """The scale of each rank, (R,) for every module by name; differentiable with respect to `raw`."""
        ranks = [shape.total for shape in self.shapes]
        parts = self.values().reshape(-1)[self._where].split_with_sizes(ranks)
        return {shape.name: part for shape, part in zip(self.shapes, parts, strict=True)}

    def numbers(self) -> dict[str, tuple[Applied, ...]]:
        """The applied coefficients, for records: for each module one number per member, 0 if it lacks the
        module.

        With one coefficient per rank, a tuple of numbers per member instead.
        """
        with torch.no_grad():
            scales = {name: part.tolist() for name, part in self.scales().items()}
        by_rank = self.design.granularity == "rank"
        return {shape.name: _by_member(scales[shape.name], shape, by_rank) for shape in self.shapes}


def _layout(
    shapes: Sequence[Shape], count: int, granularity: Granularity
) -> tuple[tuple[str, ...], Tensor, Tensor]:
    """Groups in the order of modules, the place in `raw` of every rank, who has a module of each group."""
    keys = [_group(shape, granularity) for shape in shapes]
    groups = tuple(dict.fromkeys(keys))
    number = {key: n for n, key in enumerate(groups)}
    present = torch.zeros(len(groups), count, dtype=torch.bool)
    places: list[int] = []
    for shape, key in zip(shapes, keys, strict=True):
        present[number[key]] |= torch.tensor(shape.ranks) > 0
        for member, rank in enumerate(shape.ranks):
            places += [number[key] * count + member] * rank
    where = torch.arange(len(places)) if granularity == "rank" else torch.tensor(places)
    return groups, where, present


def _group(shape: Shape, granularity: Granularity) -> str:
    """The name of the group; modules outside the layers make up one, "", of the granularity layer."""
    parts = shape.name.split(".")
    if granularity == "adapter":
        return ""
    if granularity == "layer":
        number = next((n for n, part in enumerate(parts) if part.isdigit()), None)
        return "" if number is None else ".".join(parts[: number + 1])
    return ".".join(parts[:-1]) if granularity == "sublayer" else shape.name


def _start(size: tuple[int, ...], design: Design, shapes: Sequence[Shape], count: int) -> Tensor:
    generator = torch.Generator().manual_seed(design.seed)
    match design.init:
        case "uniform":
            return torch.rand(size, generator=generator)
        case "normal":
            return torch.randn(size, generator=generator) * _SPREAD
        case "equal":
            return torch.full(size, 1 / count)
        case "equal_root":
            return torch.full(size, count**-0.5)
        case "one_hot":
            by_member = [float(member == design.target) for member in range(count)]
            if design.granularity != "rank":
                return torch.tensor(by_member).repeat(size[0], 1)
            by_rank = [
                by_member[m] for shape in shapes for m, rank in enumerate(shape.ranks) for _ in range(rank)
            ]
            return torch.tensor(by_rank)
        case _:
            return torch.zeros(size)


def _by_member(values: list[float], shape: Shape, by_rank: bool) -> tuple[Applied, ...]:
    parts = [tuple(values[place]) for place in shape.ranges()]
    return tuple(part if by_rank else part[0] if part else 0.0 for part in parts)


def columns(
    shapes: Sequence[Shape], coefficients: Mapping[str, Sequence[float | Sequence[float]]]
) -> dict[str, Tensor]:
    """The scale of each rank, float64 of (R,), from one number a member and module, or one for each rank.

    The reverse of `Coefficients.numbers`; modules that `coefficients` does not name are left out. Raises
    UsageError for modules that no member has and for numbers that are not one a member or one a rank.
    """
    shapes_by_name = {shape.name: shape for shape in shapes}
    result = {}
    for name, numbers in coefficients.items():
        if name not in shapes_by_name:
            raise UsageError(f"No member has a module {name}; use the members' names of modules.")
        result[name] = _column(shapes_by_name[name], numbers)
    return result


def _column(shape: Shape, numbers: Sequence[float | Sequence[float]]) -> Tensor:
    if len(numbers) != len(shape.ranks):
        raise UsageError(
            f"{shape.name} requires one coefficient for each of {len(shape.ranks)} members, not "
            f"{len(numbers)}."
        )
    values: list[float] = []
    for number, rank in zip(numbers, shape.ranks, strict=True):
        own = [float(number)] * rank if isinstance(number, (int, float)) else list(map(float, number))
        if len(own) != rank:
            raise UsageError(
                f"{shape.name} requires one coefficient for each of {rank} ranks, not {len(own)}."
            )
        values += own
    column = torch.tensor(values, dtype=torch.float64)
    if not bool(column.isfinite().all()):
        raise UsageError(f"A coefficient of {shape.name} is not a finite number.")
    return column
