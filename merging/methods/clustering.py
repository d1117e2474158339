"""LoRA-LEGO: a LoRA as a set of rank-1 units, a merge as the centroids of clusters of all units.

https://arxiv.org/abs/2409.16167. No code of the authors is public; defaults and both reweightings follow the
re-implementation in TARA-Merge (https://arxiv.org/abs/2603.26299), which takes equal ranks and ignores
alpha. Here scalings are folded in as sqrt|s| on both sides, ranks may differ, and clusters are found from
R x R Gram matrices. A unit is [a_j ; b_j], row j of A and column j of B.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from merging.members import Stack
from merging.methods.lowrank import Update, coordinates, grams
from merging.methods.method import MergeMethod, ModuleWork, Parameter

if TYPE_CHECKING:
    from torch import Tensor


def lego(work: ModuleWork) -> Update:
    """B P^T diag(c) P A for the means P over k clusters of units, k the rank asked for.

    1. units: all members' units, times sqrt|w|. 2. clusters: k-means of their directions. 3. centroids: means
    of the raw units, times the first reweighting (mean norm of the cluster over the norm of the centroid).
    4. output: times sqrt(r / k) with r the mean rank of the members, the second reweighting. With as many
    clusters as units this is the concatenation, if the second reweighting is off.
    """
    stack = _units(work)
    a, b, means = _cluster_units(stack, work)
    if not len(a):
        return Update(stack.a[:1], stack.b[:, :1], 0.0, 0.0)
    factor = _parameter_reweighting(a, b, means, str(work.options["norm"]))
    if work.options["rescale"]:
        # Members whose units are all 0 count as absent.
        nonzero = (stack.a != 0).any(1) & (stack.b != 0).any(0)
        places = zip(stack.ranks, stack.ranges(), strict=True)
        present = [rank for rank, place in places if bool(nonzero[place].any())]
        factor = factor * (sum(present) / len(present) / means.shape[0]) ** 0.25
    return Update(factor[:, None] * (means @ a), (b @ means.T) * factor, None, 0.0)


def centroid_energy(work: ModuleWork) -> tuple[float, float]:
    """The part of the units' squared lengths that centroids represent, and the total.

    Sums over clusters of size * ||mu||^2 and over units of ||s||^2 before either reweighting. The difference
    is the objective of the paper's clustering, the sum of ||s - mu||^2.
    """
    a, b, means = _cluster_units(_units(work), work)
    a, b, means = (part.double() for part in (a, b, means))
    held = (means @ a).square().sum(1) + (b @ means.T).square().sum(0)
    return float((held * (means > 0).sum(1)).sum()), float(a.square().sum() + b.square().sum())


def clusters(likeness: Tensor, lengths: Tensor, count: int, iterations: int, key: int | None) -> Tensor:
    """The cluster of each unit, 0 to count - 1, by Lloyd's algorithm on inner products of (R, R).

    It starts from the longest unit and then always the one farthest from those chosen, so that the order of
    units does not matter; with a `key`, from random units. A cluster that loses all its units gets the one
    that is farthest from its centroid.
    """
    import torch

    units = likeness.shape[0]
    if count >= units:
        return torch.arange(units, device=likeness.device)
    seeds = _farthest(likeness, lengths, count) if key is None else _random(units, count, key)
    centroids = torch.nn.functional.one_hot(seeds.to(likeness.device), units).to(likeness)
    labels = None
    for _ in range(iterations):
        distances = _distances(likeness, centroids)
        new = distances.argmin(1)
        _fill_empty(new, distances, count)
        if labels is not None and torch.equal(new, labels):
            break
        labels, centroids = new, _means(new)
    assigned: Tensor = labels if labels is not None else _distances(likeness, centroids).argmin(1)
    return assigned


def singular_units(stack: Stack) -> Stack:
    """The same updates with units that are singular triplets, sqrt(sigma) on both sides.

    The largest entry of b is positive. This takes the gauge out: the units depend on the updates alone.
    """
    import torch

    parts_a, parts_b = [], []
    stack_grams = grams(stack)
    for place in stack.ranges():
        (c_a, k_a), (c_b, k_b) = (coordinates(gram[place, place]) for gram in stack_grams)
        u, s, vh = torch.linalg.svd(k_b @ k_a.T, full_matrices=False)
        roots = s.sqrt()
        a = (roots[:, None] * vh) @ c_a @ stack.a[place].double()
        b = stack.b[:, place].double() @ c_b.T @ u * roots
        sign = b.gather(0, b.abs().argmax(0, keepdim=True)).sign()[0]
        parts_a.append((a * sign[:, None]).float())
        parts_b.append((b * sign).float())
    ranks = tuple(part.shape[0] for part in parts_a)
    return replace(stack, a=torch.cat(parts_a), b=torch.cat(parts_b, 1), ranks=ranks)


def _units(work: ModuleWork) -> Stack:
    """The units that the option names, times sqrt|w| on both sides."""
    stack = singular_units(work.stack) if work.options["units"] == "singular" else work.stack
    d = stack.columns(work.weights).to(stack.a)
    roots = d.abs().sqrt()
    return replace(stack, a=stack.a * (roots * d.sign())[:, None], b=stack.b * roots)


def _cluster_units(stack: Stack, work: ModuleWork) -> tuple[Tensor, Tensor, Tensor]:
    """Factors of the units that are not 0, (R, in) and (out, R), and means over their clusters, (k, R)."""
    stack_grams = grams(stack)
    lengths = stack_grams.a.diagonal() * stack_grams.b.diagonal()
    alive = lengths > 0
    a, b = stack.a[alive], stack.b[:, alive]
    if not len(a):
        return a, b, a.new_zeros(0, 0)
    likeness = _cosines(stack_grams.a[alive][:, alive]) + _cosines(stack_grams.b[alive][:, alive])
    labels = clusters(
        likeness,
        lengths[alive],
        min(work.rank, len(a)),
        int(work.number("iterations")),
        None if work.options["start"] == "farthest" else work.key("start"),
    )
    return a, b, _means(labels).to(a)


def _cosines(gram: Tensor) -> Tensor:
    norms = gram.diagonal().sqrt()
    return gram / norms[:, None] / norms


def _distances(likeness: Tensor, centroids: Tensor) -> Tensor:
    """Squared distances of units to centroids, (R, k); centroids are rows of weights over units, (k, R)."""
    cross = likeness @ centroids.T
    own = (centroids.T * cross).sum(0)
    return likeness.diagonal()[:, None] - 2 * cross + own


def _means(labels: Tensor) -> Tensor:
    """(k, R): row c has 1 / size at the units of cluster c."""
    import torch

    one_hot = torch.nn.functional.one_hot(labels).T.to(torch.float64)
    return one_hot / one_hot.sum(1, keepdim=True)


def _fill_empty(labels: Tensor, distances: Tensor, count: int) -> None:
    """Give each empty cluster the unit that is farthest from its own centroid, in place."""
    import torch

    sizes = torch.bincount(labels, minlength=count)
    own = distances.gather(1, labels[:, None])[:, 0].clone()
    for empty in (sizes == 0).nonzero()[:, 0].tolist():
        own[sizes[labels] < 2] = -1
        unit = int(own.argmax())
        sizes[labels[unit]] -= 1
        sizes[empty] = 1
        labels[unit] = empty
        own[unit] = -1


def _farthest(likeness: Tensor, lengths: Tensor, count: int) -> Tensor:
    import torch

    squares = likeness.diagonal()
    seeds = [int(lengths.argmax())]
    nearest = squares + squares[seeds[0]] - 2 * likeness[seeds[0]]
    while len(seeds) < count:
        nearest[seeds[-1]] = -1
        seeds.append(int(nearest.argmax()))
        nearest = torch.minimum(nearest, squares + squares[seeds[-1]] - 2 * likeness[seeds[-1]])
    return torch.tensor(seeds)


def _random(units: int, count: int, key: int) -> Tensor:
    import torch

    return torch.randperm(units, generator=torch.Generator().manual_seed(key))[:count]


def _parameter_reweighting(a: Tensor, b: Tensor, means: Tensor, norm: str) -> Tensor:
    """For each cluster the mean norm of its units over the norm of their mean, (k,)."""
    import torch

    order = {"max": float("inf"), "l2": 2.0}.get(norm)
    if order is None:
        return means.new_ones(means.shape[0])

    def norms(rows: Tensor, columns: Tensor) -> Tensor:
        both = torch.stack([rows.norm(order, dim=1), columns.norm(order, dim=0)])
        column_norms: Tensor = both.norm(order, dim=0)
        return column_norms

    centroid = norms(means @ a, b @ means.T)
    factor: Tensor = torch.where(centroid > 0, (means @ norms(a, b)) / centroid, 0)
    return factor


METHODS = (
    MergeMethod(
        "lora-lego",
        "Rank-1 units in clusters; the centroids are the units.",
        "https://arxiv.org/abs/2409.16167",
        lego,
        (
            Parameter(
                "norm",
                "max",
                "norm of the first reweighting, which gives a centroid its cluster's mean norm",
                choices=("max", "l2", "none"),
            ),
            Parameter("rescale", True, "the second reweighting, the result times sqrt(r / k)"),
            Parameter("iterations", 10, "rounds of k-means at most", 1, 1000),
            Parameter(
                "start",
                "farthest",
                "first centroids: units far apart, or random ones by the seed",
                choices=("farthest", "random"),
            ),
            Parameter(
                "units",
                "stored",
                "units as the factors have them, or singular triplets",
                choices=("stored", "singular"),
            ),
        ),
        gauge="dependent",
        weight=1.0,
        cost="grams",
        units=True,
    ),
)
