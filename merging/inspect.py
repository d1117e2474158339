"""What is in a pool, and what a merge kept of it: angles, shares, overlaps, energy by rank."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from catalog.errors import UsageError
from merging.lowrank import Grams, coordinates, grams, pair_products, precise_truncation
from merging.members import Member, load_members
from merging.stack import Stack, iterate_stacks, shapes

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True, slots=True)
class Inspection:
    """Members compared by their whole updates, all numbers exact up to rounding.

    `cosines` are between members. `input_overlap` and `output_overlap` are the shares of directions that two
    members have in common, 0 to 1: the mean over modules of ||Q_i^T Q_j||^2 / min(r_i, r_j) with orthonormal
    bases of the rows of A and of the columns of B; None where two members share no module. `interference` is
    ||sum w Delta W||^2 / sum ||w Delta W||^2: 1 for orthogonal updates, N for equal ones, less than 1 where
    they cancel. `energy_by_rank` is the share of the weighted sum's energy that rank 1, 2, … keeps in every
    module. With a result, `shares` are <w_i Delta W_i, M> / ||M||^2, which add up to 1 for the exact sum, and
    `likeness` the cosines between members and M.
    """

    names: tuple[str, ...]
    weights: tuple[float, ...]
    norms: tuple[float, ...]
    cosines: tuple[tuple[float, ...], ...]
    input_overlap: tuple[tuple[float | None, ...], ...]
    output_overlap: tuple[tuple[float | None, ...], ...]
    interference: float
    energy_by_rank: tuple[float, ...]
    shares: tuple[float, ...] | None = None
    likeness: tuple[float, ...] | None = None

    def rank_for(self, share: float) -> int:
        """The smallest rank that keeps this share of the energy in the weighted sum."""
        kept = (n + 1 for n, value in enumerate(self.energy_by_rank) if value >= share - 1e-9)
        return next(kept, len(self.energy_by_rank))


class _Sums:
    """Running sums over modules."""

    def __init__(self, members: int, products: int) -> None:
        import torch

        self.products = torch.zeros(products, products, dtype=torch.float64)
        self.overlaps = [torch.zeros(members, members, dtype=torch.float64) for _ in "ab"]
        self.shared = torch.zeros(members, members, dtype=torch.float64)
        self.spectrum = torch.zeros(0, dtype=torch.float64)

    def add_spectrum(self, squares: Tensor) -> None:
        import torch

        longer = max(len(self.spectrum), len(squares))
        self.spectrum = sum(  # type: ignore[assignment]  # a sum of two tensors is a tensor
            torch.nn.functional.pad(values, (0, longer - len(values))) for values in (self.spectrum, squares)
        )


def inspect(
    members: Sequence[Path | Member],
    *,
    result: Path | Member | None = None,
    weights: Sequence[float] | None = None,
    base: str | None = None,
    device: str = "cpu",
    progress: Callable[[int, int], None] | None = None,
) -> Inspection:
    """Members compared with each other and, where a `result` is given, with the merge of them.

    `weights` are those of the sum, 1 / N where none are given. Reads every factor once and writes
    nothing; raises what `load_members` raises.
    """
    loaded = load_members([*members, result] if result is not None else members, base=base)
    count = len(members)
    used = tuple(weights) if weights is not None else (1 / count,) * count
    if len(used) != count or not any(used):
        raise UsageError(f"There are {len(used)} weights for {count} members; give one each, not all 0.")
    sums = _Sums(count, len(loaded))
    union = shapes(loaded)
    padded = used if result is None else (*used, 0.0)
    for number, stack in enumerate(iterate_stacks(loaded, device)):
        found = grams(stack)
        sums.products += pair_products(found, stack.ranks).cpu()
        _add_overlaps(sums, found, stack, count)
        if any(stack.ranks[:count]):
            sums.add_spectrum(precise_truncation(found, stack.columns(padded), 1).squares.cpu())
        if progress is not None:
            progress(number + 1, len(union))
    names = tuple(member.name for member in loaded[:count])
    return _inspection(names, used, sums, result is not None)


def plot(found: Inspection, path: Path) -> None:
    """Write a picture of the cosines and of the energy by rank, in the format that the file's name says.

    Raises UsageError where matplotlib is not installed.
    """
    try:
        from matplotlib.figure import Figure
    except ImportError as error:
        raise UsageError("Pictures need matplotlib; pip install matplotlib.") from error
    figure = Figure(figsize=(11, 4.5), layout="constrained")
    left, right = figure.subplots(1, 2)
    image = left.imshow(found.cosines, vmin=-1, vmax=1, cmap="RdBu_r")
    left.set_title("cosines between members")
    left.set_xticks(range(len(found.names)), [str(n + 1) for n in range(len(found.names))])
    left.set_yticks(range(len(found.names)), [f"{n + 1} {name[:30]}" for n, name in enumerate(found.names)])
    figure.colorbar(image, ax=left)
    right.plot(range(1, len(found.energy_by_rank) + 1), found.energy_by_rank)
    right.set(xlabel="rank", ylabel="share of the energy kept", ylim=(0, 1.02), title="energy by rank")
    figure.savefig(path, metadata={"Date": None} if path.suffix == ".svg" else None)


def _add_overlaps(sums: _Sums, found: Grams, stack: Stack, count: int) -> None:
    here = [n for n in range(count) if stack.ranks[n]]
    places = stack.ranges()
    for total, gram in zip(sums.overlaps, found, strict=True):
        bases = {n: coordinates(gram[places[n], places[n]])[0] for n in here}
        for i in here:
            for j in here:
                inner = bases[i] @ gram[places[i], places[j]] @ bases[j].T
                total[i, j] += float(inner.square().sum()) / min(inner.shape)
    for i in here:
        sums.shared[i, here] += 1


def _inspection(names: tuple[str, ...], weights: tuple[float, ...], sums: _Sums, judged: bool) -> Inspection:
    count = len(names)
    products = sums.products.tolist()
    norms = [math.sqrt(max(0.0, products[n][n])) for n in range(len(products))]
    cosine = [
        [products[i][j] / (norms[i] * norms[j]) if norms[i] * norms[j] else 0.0 for j in range(len(norms))]
        for i in range(len(norms))
    ]
    pairs = [(i, j) for i in range(count) for j in range(count)]
    whole = math.fsum(weights[i] * weights[j] * products[i][j] for i, j in pairs)
    apart = math.fsum(weights[n] ** 2 * products[n][n] for n in range(count))
    energy = float(sums.spectrum.sum())
    square = products[-1][-1]
    return Inspection(
        names=names,
        weights=weights,
        norms=tuple(norms[:count]),
        cosines=tuple(tuple(row[:count]) for row in cosine[:count]),
        input_overlap=_means(sums.overlaps[0], sums.shared),
        output_overlap=_means(sums.overlaps[1], sums.shared),
        interference=whole / apart if apart else 0.0,
        energy_by_rank=tuple((sums.spectrum.cumsum(0) / energy).tolist()) if energy else (),
        shares=tuple(weights[n] * products[n][-1] / square if square else 0.0 for n in range(count))
        if judged
        else None,
        likeness=tuple(cosine[n][-1] for n in range(count)) if judged else None,
    )


def _means(totals: Tensor, shared: Tensor) -> tuple[tuple[float | None, ...], ...]:
    return tuple(
        tuple(float(total / number) if number else None for total, number in zip(row, numbers, strict=True))
        for row, numbers in zip(totals, shared, strict=True)
    )
