"""The factors of members in memory, on the device of their layers."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from catalog.adapters import modules_of_model
from catalog.errors import MergeError
from merging.members import MergeMember, Shape, iterate_stacks, load_members, shapes
from merging.model import is_conv1d, is_router, reads_dt_proj

# A layer of one expert, as transformers 4 had it in Mixtral and Qwen's models.
_EXPERT = re.compile(r"\.experts\.[0-9]+\.")
_Kind = tuple[torch.device, torch.dtype]
# Views of a buffer begin at multiples of this many bytes, as allocations do.
_ALIGNMENT = 256


@dataclass(frozen=True, slots=True, eq=False)
class Resident:
    """Members whose factors have been read: for each module A of (R, in) and B^T of (R, out).

    Scalings are folded in. `devices` has the device of each module's factors. Factors of one device and data
    type are views of one buffer of `buffers`, by which they are transferred.
    """

    members: tuple[MergeMember, ...]
    shapes: tuple[Shape, ...]
    factors: Mapping[str, tuple[Tensor, Tensor]]
    devices: Mapping[str, torch.device]
    buffers: Mapping[_Kind, Tensor]

    def place(self) -> Resident:
        """The same on their devices, by one transfer for each buffer; it waits only for its own stream."""
        placed = {kind: buffer.to(kind[0], non_blocking=True) for kind, buffer in self.buffers.items()}
        factors = {
            name: (_same_view(a, placed[kind]), _same_view(bt, placed[kind]))
            for name, (a, bt) in self.factors.items()
            for kind in [(self.devices[name], a.dtype)]
        }
        return replace(self, factors=factors, buffers=placed)


def _same_view(part: Tensor, buffer: Tensor) -> Tensor:
    """The view of a buffer at the place that `part` has in a buffer of the same size."""
    return buffer.as_strided(part.shape, part.stride(), part.storage_offset())


def _room(shape: Shape, itemsize: int) -> tuple[int, int, int]:
    """Numbers of values in a buffer: of A, of A with its gap, and of both factors with their gaps."""
    gap = _ALIGNMENT // itemsize
    a, bt = shape.total * shape.in_features, shape.total * shape.out_features
    padded = -(-a // gap) * gap
    return a, padded, padded - (-bt // gap) * gap


def read(
    model: nn.Module, members: Sequence[MergeMember], device: torch.device | None, dtype: torch.dtype | None
) -> Resident:
    """The members' factors in main memory, in `dtype` or in that of each layer's weights.

    Their device is `device`, by default that of the layer. Layers are checked before weights are read. Raises
    MergeError for a module without a matching layer in the model, and the errors of reading members.
    """
    # Spellings of the base model's name do not matter: the model itself decides whether a member matches.
    loaded = load_members(list(members), base="") if members else ()
    union = shapes(loaded)
    weights = {shape.name: layer(model, shape, loaded).weight for shape in union}
    devices = {name: device or weight.device for name, weight in weights.items()}
    kinds = {name: (devices[name], dtype or _dtype_of(weight, model)) for name, weight in weights.items()}
    buffers = _buffers(union, kinds)
    starts = dict.fromkeys(buffers, 0)
    by_name = {shape.name: shape for shape in union}
    factors = {}
    for stack in iterate_stacks(loaded):
        shape, kind = by_name[stack.name], kinds[stack.name]
        size, second, total = _room(shape, kind[1].itemsize)
        space = buffers[kind][starts[kind] : starts[kind] + total]
        starts[kind] += total
        a = space[:size].view(shape.total, shape.in_features)
        bt = space[second : second + shape.total * shape.out_features].view(shape.total, shape.out_features)
        factors[stack.name] = (a.copy_(stack.a), bt.copy_(stack.b.T))
    return Resident(loaded, union, factors, devices, buffers)


def _buffers(union: Sequence[Shape], kinds: Mapping[str, _Kind]) -> dict[_Kind, Tensor]:
    """Empty buffers in main memory for the factors of each device and data type, pinned for a GPU."""
    sizes: dict[_Kind, int] = {}
    for shape in union:
        kind = kinds[shape.name]
        sizes[kind] = sizes.get(kind, 0) + _room(shape, kind[1].itemsize)[2]
    return {
        (device, dtype): torch.empty(size, dtype=dtype, pin_memory=device.type == "cuda")
        for (device, dtype), size in sizes.items()
    }


def _dtype_of(weight: Tensor, model: nn.Module) -> torch.dtype:
    """The data type of a layer's factors: that of its weights, or of others where these are quantised."""
    if weight.dtype.is_floating_point:
        return weight.dtype
    return next(values.dtype for values in model.parameters() if values.dtype.is_floating_point)


def _submodule(model: nn.Module, shape: Shape) -> nn.Module | None:
    """The layer that a name means in the model: of that name, or of its spelling in another version."""
    try:
        return model.get_submodule(shape.name)
    except AttributeError:
        place = modules_of_model(model).place(shape.name, shape.in_features, shape.out_features)
        return None if place is None else model.get_submodule(place)


def _reads_weights_itself(model: nn.Module, module: nn.Module) -> bool:
    """Whether a block of the model reads this layer's weights itself."""
    return any(reads_dt_proj(block) and block.dt_proj is module for block in model.modules())


def _has_stacked_experts(model: nn.Module) -> bool:
    """Whether a module of the model holds the weights of all experts in tensors of three dimensions."""
    return any("experts" in name and parameter.ndim == 3 for name, parameter in model.named_parameters())


def layer(model: nn.Module, shape: Shape, members: Sequence[MergeMember]) -> Any:
    """The model's layer of that name; raises MergeError if none matches."""
    owner = next(member.name for member, rank in zip(members, shape.ranks, strict=True) if rank)
    module = _submodule(model, shape)
    if module is None:
        if _EXPERT.search(shape.name) and _has_stacked_experts(model):
            raise MergeError(
                f"{shape.name} is a layer of one expert, and the experts of the base model are one tensor, "
                f"as transformers 5 stores them; {owner} is loaded by plain PEFT, and not applied here."
            )
        raise MergeError(f"The base model has no module {shape.name}; {owner} belongs to another model.")
    if _reads_weights_itself(model, module):
        raise MergeError(
            f"The base model reads the weights of {shape.name} without calling that layer, so that a live "
            f"adapter has no effect; leave out {owner}."
        )
    if is_router(module):
        raise MergeError(
            f"{shape.name} of the base model chooses experts and returns more than its output, so that a "
            f"live adapter cannot change it; leave out {owner}."
        )
    if shape.kind == "embedding":
        fits, sizes = type(module) is nn.Embedding, ("num_embeddings", "embedding_dim")
    elif is_conv1d(module):
        fits, sizes = True, ("nx", "nf")
    else:
        fits, sizes = isinstance(module, nn.Linear), ("in_features", "out_features")
    if not fits:
        raise MergeError(
            f"{shape.name} of the base model is a {type(module).__name__}, and only linear layers and plain "
            f"embeddings are adapted live; leave out {owner}."
        )
    widths = tuple(getattr(module, name) for name in sizes)
    if widths != (shape.in_features, shape.out_features):
        raise MergeError(
            f"{shape.name} is {shape.in_features} to {shape.out_features} in {owner} and {widths[0]} to "
            f"{widths[1]} in the base model; use the model that it was trained on."
        )
    return module
