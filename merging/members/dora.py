"""DoRA folded with the base model at hand: W' - W as the update of a module, of full rank.

W' = diag(m / ||W + s B A||) (W + s B A) with norms over the rows, one a output (DoRA, arXiv:2402.09353,
equation 5; PEFT, tuners/lora/dora.py). An embedding's outputs are the channels of the hidden width.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

from merging.members.base_weights import BaseWeights
from merging.members.member import MergeMember, read_magnitude, read_module

if TYPE_CHECKING:
    from torch import Tensor

# Numbers in float64 at a time: 32 MiB.
_CHUNK = 4 * 1024 * 1024


@dataclass(frozen=True, slots=True)
class DoraFold:
    """What a DoRA member's updates are made of: the base's weights, and scalings by the place of A.

    `rank` is the largest of the member's own factors.
    """

    base: BaseWeights = field(repr=False)
    scalings: Mapping[int, float] = field(repr=False)
    rank: int

    def read_size(self, member: MergeMember) -> int:
        """The bytes of the magnitudes, and of the base's weights of its modules."""
        weights = (self.base.locate(member, module) for module in member.spec.modules)
        return sum(tensor.end - tensor.begin for tensor in (*weights, *member.magnitudes.values()))

    def update(self, member: MergeMember, module: str) -> Tensor:
        """W' - W of a module, (out, in) in float32, computed in float64.

        Raises MergeError if the base has no such weight, WeightsError if a file cannot be read.
        """
        import torch

        a, b = read_module(replace(member, folded=None), module)
        a, b = a.to(torch.float64), b.to(torch.float64)
        scaling = self.scalings[member.places[module][0].begin]
        magnitude = read_magnitude(member, module).to(torch.float64)
        weight = self.base.read(member, member.modules[module])
        out = torch.empty(weight.shape, dtype=torch.float32)
        step = max(1, _CHUNK // weight.shape[1])
        for start in range(0, weight.shape[0], step):
            rows = slice(start, start + step)
            frozen = weight[rows].to(torch.float64)
            trained = torch.addmm(frozen, b[rows], a, alpha=scaling)
            gain = magnitude[rows] / torch.linalg.vector_norm(trained, dim=1)
            out[rows] = trained * gain[:, None] - frozen
        return out

    def factors(self, member: MergeMember, module: str) -> tuple[Tensor, Tensor]:
        """A and B whose product is the update: itself beside the identity of its smaller side."""
        import torch

        update = self.update(member, module)
        if update.shape[0] <= update.shape[1]:
            return update, torch.eye(update.shape[0])
        return torch.eye(update.shape[1]), update


def fold_dora(member: MergeMember, base: BaseWeights) -> MergeMember:
    """A member whose updates are W' - W of a DoRA adapter, in plain form; other members as they are.

    Its modules have full rank, and the scaling 1. Raises MergeError for a module that the base does not have.
    """
    if not member.magnitudes or member.folded is not None:
        return member
    for module in member.spec.modules:
        base.locate(member, module)
    rank = max(module.rank for module in member.spec.modules)
    scalings = {member.places[m.name][0].begin: m.scaling for m in member.spec.modules}
    modules = tuple(
        replace(module, rank=min(module.in_features, module.out_features), scaling=1.0)
        for module in member.spec.modules
    )
    spec = replace(member.spec, modules=modules, dtypes=("F32",))
    return replace(member, spec=spec, folded=DoraFold(base, scalings, rank))
