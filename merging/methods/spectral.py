"""Merges of singular vectors: TSV-M, Iso-C, Iso-CTS, all on R x R cores.

With orthonormal bases U of the columns of B and V of the rows of A (`lowrank.coordinates`), every update is
U M_i V^T and keeps its singular values in its core M_i, so that nothing of the layer's size is decomposed.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import partial
from typing import TYPE_CHECKING

from merging.methods.lowrank import Truncation, Update, apply, coordinates, core_truncation
from merging.methods.method import MergeMethod, ModuleWork, Parameter
from merging.methods.sign_election import SCALE

if TYPE_CHECKING:
    from torch import Tensor

# Singular values below this share of the largest are rounding.
_ROUNDING = 1e-6


@dataclass(frozen=True, slots=True)
class Cores:
    """Members in the common bases: `left` C_B of (p, R), `right` C_A of (q, R); core i is k_b_i k_a_i^T."""

    left: Tensor
    right: Tensor
    k_b: Tensor
    k_a: Tensor
    places: tuple[slice, ...]

    def sides(self, member: int) -> tuple[Tensor, Tensor]:
        """Factors of M_i, (p, r_i) and (q, r_i): M_i is the one times the other transposed."""
        place = self.places[member]
        return self.k_b[:, place], self.k_a[:, place]


def cores(work: ModuleWork) -> Cores:
    """The members' cores, in float64."""
    gram_pair = work.grams()
    (left, k_b), (right, k_a) = coordinates(gram_pair.b), coordinates(gram_pair.a)
    return Cores(left, right, k_b, k_a, work.stack.ranges())


def tsv_merge(work: ModuleWork) -> Update:
    """TSV-M: the top k singular triplets of each member, their vectors made orthogonal to each other.

    https://arxiv.org/abs/2412.00081: U = [U_1 ... U_N] is replaced by the nearest matrix with
    orthonormal columns, P Q^T of its SVD P D Q^T, and V likewise. A member whose update is 0 has no
    singular directions and takes none from the others.
    """
    import torch

    work = work.of_updates()
    member_cores = cores(work)
    components = int(work.number("components"))
    most = components or max(1, min(work.stack.a.shape[1], work.stack.b.shape[0]) // len(work.weights))
    us, vs, values = [], [], []
    for member, weight in enumerate(work.weights):
        u, s, vh = _product_svd(*member_cores.sides(member))
        us.append(u[:, :most])
        vs.append(vh[:most])
        values.append(weight * s[:most])
    u, v = _nearest_orthonormal(torch.cat(us, 1)), _nearest_orthonormal(torch.cat(vs).T)
    core = u * torch.cat(values) @ v.T * work.number("scale")
    return apply(work.stack, core_truncation(core, member_cores.left, member_cores.right, work.rank))


def iso_c(work: ModuleWork) -> Update:
    """Iso-C: the weighted sum with every singular value replaced by their mean.

    https://arxiv.org/abs/2502.04959. The mean is over the singular values that are not zero; the
    paper's code divides their sum by the layer's width, which `over` = width does.
    """
    member_cores = cores(work)
    d = work.stack.columns(work.weights)
    u, s, vh = _svd(member_cores.k_b * d @ member_cores.k_a.T)
    width = min(work.stack.a.shape[1], work.stack.b.shape[0])
    mean = float(s.sum()) / (width if work.options["over"] == "width" else len(s))
    return _isotropic(work, member_cores, u, vh.T, mean)


def iso_cts(work: ModuleWork) -> Update:
    """Iso-CTS: common directions of the sum, and for each member the strongest ones outside of these.

    https://arxiv.org/abs/2502.04959: all of them made orthonormal, with one
    singular value, the mean of theirs. The directions count together what the rank allows. With `over` =
    width they count together the layer's width, and the mean is over the width, as in the paper's code;
    directions of singular values that are 0, which a dense SVD fills in, are left out. A member whose update
    is 0 has no individual directions.
    """
    import torch

    work = work.of_updates()
    member_cores = cores(work)
    u, s, vh = _svd(member_cores.k_b * work.stack.columns(work.weights) @ member_cores.k_a.T)
    width = min(work.stack.a.shape[1], work.stack.b.shape[0])
    full = work.options["over"] == "width"
    total = width if full else min(work.rank, len(s))
    count = len(work.weights)
    share = min(total // count, round((total - int(total * work.number("common"))) / count))
    common = min(total - share * count, len(s))
    us, values, vs = [u[:, :common]], [s[:common]], [vh[:common]]
    for member, weight in enumerate(work.weights):
        left, right = member_cores.sides(member)
        outside = weight * (left - us[0] @ (us[0].T @ left))
        own_u, own_s, own_vh = _product_svd(outside, right, floor=float(s[0]))
        us.append(own_u[:, :share])
        values.append(own_s[:share])
        vs.append(own_vh[:share])
    u, v = _nearest_orthonormal(torch.cat(us, 1)), _nearest_orthonormal(torch.cat(vs).T)
    singular_values = torch.cat(values)
    return _isotropic(
        work, member_cores, u, v, float(singular_values.sum()) / (width if full else len(singular_values))
    )


def _svd(core: Tensor, floor: float = 0.0) -> tuple[Tensor, Tensor, Tensor]:
    """The SVD without values that are rounding relative to the largest value or to `floor`; at least one
    triplet."""
    import torch

    u, s, vh = torch.linalg.svd(core, full_matrices=False)
    rank_kept = max(0 if floor else 1, int((s > _ROUNDING * max(float(s[0]), floor)).sum()))
    return u[:, :rank_kept], s[:rank_kept], vh[:rank_kept]


def _product_svd(left: Tensor, right: Tensor, floor: float = 0.0) -> tuple[Tensor, Tensor, Tensor]:
    """The SVD of left right^T from (p, r) and (q, r), through r x r matrices."""
    import torch

    (q_left, r_left), (q_right, r_right) = torch.linalg.qr(left), torch.linalg.qr(right)
    u, s, vh = _svd(r_left @ r_right.T, floor)
    return q_left @ u, s, vh @ q_right.T


def _nearest_orthonormal(columns: Tensor) -> Tensor:
    """The polar factor P Q^T of P D Q^T; directions that depend on others get no arbitrary substitute."""
    u, _, vh = _svd(columns)
    return u @ vh


def _isotropic(work: ModuleWork, member_cores: Cores, u: Tensor, v: Tensor, value: float) -> Update:
    """value * U V^T, or its first columns where the rank is smaller; the others are the energy lost.

    Of more directions than U or V has rows it is the best approximation of the rank.
    """
    value *= work.number("scale")
    if u.shape[1] > min(u.shape[0], v.shape[0]):
        return apply(
            work.stack, core_truncation(value * u @ v.T, member_cores.left, member_cores.right, work.rank)
        )
    rank_kept = min(work.rank, u.shape[1])
    root = abs(value) ** 0.5
    left = member_cores.left.T @ u[:, :rank_kept] * root * (1 if value >= 0 else -1)
    right = (v[:, :rank_kept].T * root) @ member_cores.right
    update = apply(work.stack, Truncation(left, right, u.new_zeros(0)))
    energy, lost = (
        float((x @ y.T).square().sum()) * value**2 for x, y in ((u, v), (u[:, rank_kept:], v[:, rank_kept:]))
    )
    return replace(update, energy=energy, discarded=lost)


_OVER = Parameter("over", "rank", "the mean is over the rank, or over the width", choices=("rank", "width"))

_spectral = partial(MergeMethod, exact=True, weight=1.0, cost="grams", full_rank=True)
METHODS = (
    _spectral(
        "tsv-m",
        "Leading singular vectors, made orthogonal to each other.",
        "https://arxiv.org/abs/2412.00081",
        tsv_merge,
        (Parameter("components", 0, "singular triplets a member; 0 for width / N", 0, 65536), SCALE),
    ),
    _spectral(
        "iso-c",
        "The weighted sum, its singular values made equal.",
        "https://arxiv.org/abs/2502.04959",
        iso_c,
        (SCALE, _OVER),
    ),
    _spectral(
        "iso-cts",
        "Common and own directions with one singular value.",
        "https://arxiv.org/abs/2502.04959",
        iso_cts,
        (
            Parameter("common", 0.8, "share of the directions that are common", 0, 1),
            SCALE,
            replace(_OVER, meaning="directions and their mean are counted over the rank, or over the width"),
        ),
    ),
)
