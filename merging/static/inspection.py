"""The geometry of a pool and of its merge: angles, shares, overlaps, energy by rank."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from catalog.adapters import BaseTable
from catalog.errors import UsageError
from merging.members import MergeMember, Stack, iterate_stacks, load_members, shapes
from merging.methods import Grams, coordinates, grams, pair_products, precise_truncation

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True, slots=True)
class Inspection:
    """Members compared by their whole updates, all numbers exact up to rounding.

    `cosines` are between members. `input_overlap` and `output_overlap` are the shares of directions that two
    members share, 0 to 1: the mean over modules of ||Q_i^T Q_j||^2 / min(r_i, r_j) with orthonormal bases of
    the rows of A and of the columns of B; None if two members share no module. `interference` is ||sum w
    Delta W||^2 / sum ||w Delta W||^2: 1 for orthogonal updates, N for equal ones, less than 1 if they cancel.
    `energy_by_rank` is the share of the weighted sum's energy that rank 1, 2, … keeps in every module. With a
    result, `shares` are <w_i Delta W_i, M> / ||M||^2, which add up to 1 for the exact sum, and `likeness` the
    cosines between members and M. `notes` are notes for the user on the members.
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
    notes: tuple[str, ...] = ()

    def document(self) -> dict[str, Any]:
        """All numbers, and the ranks that keep 50, 90 and 99 % of the energy, as plain values."""
        numbers = {name: value for name, value in asdict(self).items() if name != "notes"}
        return numbers | {f"rank_for_{share}": self.rank_for(share / 100) for share in (50, 90, 99)}

    def rank_for(self, share: float) -> int:
        """The smallest rank that keeps this share of the energy in the weighted sum."""
        ranks = (n + 1 for n, value in enumerate(self.energy_by_rank) if value >= share - 1e-9)
        return next(ranks, len(self.energy_by_rank))

    def plot(self, path: Path) -> None:
        """Writes a picture of the cosines and of the energy by rank: .svg, .png or .pdf.

        Raises UsageError for another suffix and where the extra `plot` is not installed, StorageError if
        writing fails.
        """
        import numpy as np

        from catalog.pictures import merge_picture

        ranks = {share: self.rank_for(share) for share in (0.5, 0.9, 0.99)} if self.energy_by_rank else {}
        merge_picture(self.names, np.array(self.cosines), self.energy_by_rank, ranks, path)


class _PairSums:
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
    members: Sequence[Path | MergeMember],
    *,
    result: Path | MergeMember | None = None,
    weights: Sequence[float] | None = None,
    base: str | None = None,
    table: BaseTable | None = None,
    device: str = "cpu",
    progress: Callable[[int, int], None] | None = None,
) -> Inspection:
    """Members compared with each other and, if a `result` is given, with their merge.

    `weights` are those of the sum, by default 1 / N; `base` and `table` are those of
    `load_members`. Reads every factor once and writes nothing; raises the errors of `load_members`.
    """
    loaded = load_members([*members, result] if result is not None else members, base=base, table=table)
    count = len(members)
    used = tuple(weights) if weights is not None else (1 / count,) * count
    if len(used) != count:
        raise UsageError(f"{count} members require as many weights, not {len(used)}.")
    if not all(math.isfinite(weight) for weight in used) or not any(used):
        raise UsageError("Weights must be finite numbers, at least one of them not 0.")
    sums = _PairSums(count, len(loaded))
    union = shapes(loaded)
    padded = used if result is None else (*used, 0.0)
    for number, stack in enumerate(iterate_stacks(loaded, device)):
        gram_pair = grams(stack)
        sums.products += pair_products(gram_pair, stack.ranks).cpu()
        # The result may have modules of zeros that no member has.
        if any(stack.ranks[:count]):
            _add_overlaps(sums, gram_pair, stack, count)
            sums.add_spectrum(precise_truncation(gram_pair, stack.columns(padded), 1).squares.cpu())
        if progress is not None:
            progress(number + 1, len(union))
    names = tuple(member.name for member in loaded[:count])
    return _inspection(names, used, sums, result is not None)


def _add_overlaps(sums: _PairSums, gram_pair: Grams, stack: Stack, count: int) -> None:
    """Adds ||Q_i^T Q_j||^2 / min(r_i, r_j) of one module for all pairs of members, of both sides."""
    import torch

    here = [n for n in range(count) if stack.ranks[n]]
    places = [stack.ranges()[n] for n in here]
    for total, gram in zip(sums.overlaps, gram_pair, strict=True):
        bases = [coordinates(gram[place, place])[0] for place in places]
        rows = torch.cat([basis @ gram[place] for basis, place in zip(bases, places, strict=True)])
        squares = [(rows[:, p] @ basis.T).square().sum(1) for basis, p in zip(bases, places, strict=True)]
        sizes = torch.tensor([len(basis) for basis in bases], device=gram.device)
        owner = torch.repeat_interleave(torch.arange(len(here), device=gram.device), sizes)
        inner = torch.zeros(len(here), len(here), dtype=torch.float64, device=gram.device)
        inner.index_add_(0, owner, torch.stack(squares, 1))
        shares = inner / torch.minimum(sizes[:, None], sizes)
        total[torch.tensor(here)[:, None], torch.tensor(here)] += shares.cpu()
    for i in here:
        sums.shared[i, here] += 1


def _inspection(
    names: tuple[str, ...], weights: tuple[float, ...], sums: _PairSums, judged: bool
) -> Inspection:
    count = len(names)
    products = sums.products.tolist()
    norms = [math.sqrt(max(0.0, products[n][n])) for n in range(len(products))]
    cosine = [
        [products[i][j] / (norms[i] * norms[j]) if norms[i] * norms[j] else 0.0 for j in range(len(norms))]
        for i in range(len(norms))
    ]
    pairs = [(i, j) for i in range(count) for j in range(count)]
    total = math.fsum(weights[i] * weights[j] * products[i][j] for i, j in pairs)
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
        interference=total / apart if apart else 0.0,
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
