"""Exact algebra on stacked factors: the properties of Delta W = B D A from R x R matrices.

With the Gram matrices G_A = A A^T and G_B = B^T B, a basis of the rows of A is C_A A with C_A G_A C_A^T = I,
and all products, norms, angles and singular values of updates follow without a matrix of the layer's size.
The grams do not depend on the weights D: with them a new weight vector costs one eigenproblem of
R x R. Notation: R sum of the ranks, d_in and d_out the layer's widths, D = diag(d) one weight a column.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

from merging.members import Stack

if TYPE_CHECKING:
    from torch import Tensor, dtype

# Numbers that are cast to float64 at once: 16 MiB.
_CHUNK = 2 * 1024 * 1024
# Squares of singular values below this share of the largest are rounding of float32 factors.
_ROUNDING = 1e-13
# The float32 path keeps energies to about 1e-6; it is taken where the truncation itself loses far more, and
# where the Cholesky factor's diagonal spans less than this.
_LOSS = 1e-4
_SPAN = 0.03
_LEAST = 1e-30


class Grams(NamedTuple):
    """G_A = A A^T and G_B = B^T B, both (R, R) in one data type, float32 or float64."""

    a: Tensor
    b: Tensor


class Truncation(NamedTuple):
    """A low-rank update in terms of the stacked factors: (B left) (right A).

    `left` is (R, r), `right` (r, R); `squares` are all squared singular values of the whole, descending, in
    float64.
    """

    left: Tensor
    right: Tensor
    squares: Tensor

    @property
    def energy(self) -> float:
        """||Delta W||_F^2 before the truncation."""
        return float(self.squares.sum())

    @property
    def discarded(self) -> float:
        """The part of the energy that the truncation drops."""
        return float(self.squares[self.right.shape[0] :].sum())


@dataclass(frozen=True, slots=True)
class Update:
    """A merged module, Delta W = b a in float32: `a` of (r, in), `b` of (out, r).

    `energy` is ||.||_F^2 of what the method made, None if it was not measured, `discarded` the part of it
    that the rank r cannot hold.
    """

    a: Tensor
    b: Tensor
    energy: float | None
    discarded: float


def grams(stack: Stack, precise: bool = True) -> Grams:
    """Both Gram matrices, in float64, or in float32 where `precise` is False."""
    import torch

    kind = torch.float64 if precise else torch.float32
    return Grams(_row_gram(stack.a, kind), _row_gram(stack.b.T, kind))


def pair_products(gram_pair: Grams, ranks: Sequence[int]) -> Tensor:
    """<Delta W_i, Delta W_j> of all members, (N, N) in float64: block sums of G_A * G_B (elementwise).

    The trace identity <B_i A_i, B_j A_j> = tr((B_i^T B_j)(A_j A_i^T)).
    """
    import torch

    terms = (gram_pair.a * gram_pair.b).to(torch.float64)
    owner = torch.repeat_interleave(torch.tensor(list(ranks), device=terms.device))
    one_hot = torch.nn.functional.one_hot(owner, len(ranks)).to(torch.float64)
    return one_hot.T @ terms @ one_hot


def coordinates(gram: Tensor) -> tuple[Tensor, Tensor]:
    """(C, K) of (q, R): C G C^T = I on the q existing directions, and K = C G.

    The rows of C A are orthonormal and A = K^T (C A). From the eigenvectors of G in float64; directions below
    the rounding of float32 factors are dropped, so that dependent factors are harmless; a zero matrix has one
    direction, with C = 0.
    """
    import torch

    values, vectors = torch.linalg.eigh(gram.to(torch.float64))
    significant = values > _ROUNDING * values[-1].clamp(min=0)
    significant[-1] = True
    roots, vectors = values[significant].clamp(min=0).sqrt()[:, None], vectors[:, significant].T
    return torch.where(roots > 0, vectors / roots, 0), vectors * roots


def truncation(gram_pair: Grams, d: Tensor, rank: int) -> Truncation | None:
    """The best rank-r approximation of B D A from Gram matrices in float32, by Cholesky.

    None where that is not accurate enough: nearly dependent rows of A, squares that overflow, or a loss that
    float32 cannot distinguish from zero. `precise_truncation` has the formula and always a result.
    """
    import torch

    basis = _cholesky_coordinates(gram_pair.a)
    if basis is None:
        return None
    core = _core(gram_pair, basis, d)
    # Squares of very large or small values leave the range of float32.
    if not _LEAST < float(core.diagonal().max()) < math.inf or not bool(torch.isfinite(core).all()):
        return None
    result = _truncation(core, basis, d, rank)
    return None if _inaccurate(result.squares, rank) else result


def precise_truncation(gram_pair: Grams, d: Tensor, rank: int) -> Truncation:
    """The best rank-r approximation of B D A (Eckart-Young) from Gram matrices in float64.

    With a basis C of A's rows and K = C G_A, the squared singular values are the eigenvalues of
    K D G_B D K^T = V S^2 V^T, and Delta W_r = (B D K^T V_r)(V_r^T C A).
    """
    basis = coordinates(gram_pair.a)
    return _truncation(_core(gram_pair, basis, d), basis, d, rank)


def _core(gram_pair: Grams, basis: tuple[Tensor, Tensor], d: Tensor) -> Tensor:
    """K D G_B D K^T, whose eigenvalues are the squared singular values."""
    scaled = basis[1] * d.to(basis[1])
    return scaled @ gram_pair.b @ scaled.T


def _truncation(core: Tensor, basis: tuple[Tensor, Tensor], d: Tensor, rank: int) -> Truncation:
    import torch

    c, k = basis
    scaled = k * d.to(k)
    values, vectors = torch.linalg.eigh(core)
    squares = values.flip(0).to(torch.float64).clamp(min=0)
    leading = vectors.flip(1)[:, : _numerical_rank(squares, rank)]
    roots = squares[: leading.shape[1]].pow(0.25).to(k)
    inverse = torch.where(roots > 0, 1 / roots, 0)
    return Truncation((scaled.T @ leading) * inverse, (leading * roots).T @ c, squares)


def core_truncation(core: Tensor, left: Tensor, right: Tensor, rank: int) -> Truncation:
    """The best rank-r approximation of (B left^T) core (right A), where these two are orthonormal bases.

    `core` is (p, q), `left` (p, R), `right` (q, R), all float64, the latter two as `coordinates` gives them.
    """
    import torch

    u, s, vh = torch.linalg.svd(core, full_matrices=False)
    squares = s.square()
    rank_kept = _numerical_rank(squares, rank)
    roots = s[:rank_kept].sqrt()
    return Truncation(left.T @ (u[:, :rank_kept] * roots), (roots[:, None] * vh[:rank_kept]) @ right, squares)


def apply(stack: Stack, cut: Truncation) -> Update:
    """The update that a truncation describes, its factors multiplied out."""
    a = _concatenate([cut.right @ part for part in _parts(stack.a, cut.right.dtype)], 1)
    b = _concatenate([part.T @ cut.left for part in _parts(stack.b.T, cut.left.dtype)], 0)
    return Update(a, b, cut.energy, cut.discarded)


def truncate(stack: Stack, d: Tensor, rank: int) -> Update:
    """The best rank-r approximation of B D A, weights `d` of (R,), with the energy that it loses.

    In float32 where that is accurate, else in float64; through the full matrix if R exceeds a side of it,
    because then that is smaller.
    """
    if stack.a.shape[0] > min(stack.a.shape[1], stack.b.shape[0]):
        return truncate_dense((stack.b * d.to(stack.b)) @ stack.a, rank)
    cut = truncation(grams(stack, precise=False), d, rank)
    return apply(stack, precise_truncation(grams(stack), d, rank) if cut is None else cut)


def truncate_dense(matrix: Tensor, rank: int) -> Update:
    """The best rank-r approximation of a matrix in full form, by eigenvectors of its smaller Gram
    matrix in float64.
    """
    import torch

    if matrix.shape[0] < matrix.shape[1]:
        turned = truncate_dense(matrix.T, rank)
        return Update(turned.b.T.contiguous(), turned.a.T.contiguous(), turned.energy, turned.discarded)
    values, vectors = torch.linalg.eigh(_row_gram(matrix.T, torch.float64))
    squares = values.flip(0).clamp(min=0)
    rank_kept = _numerical_rank(squares, rank)
    leading = vectors.flip(1)[:, :rank_kept]
    roots = squares[:rank_kept].pow(0.25)
    inverse = torch.where(roots > 0, 1 / roots, 0)
    b = _concatenate([part.T @ (leading * inverse) for part in _parts(matrix.T, torch.float64)], 0)
    a = (leading * roots).T.to(torch.float32).contiguous()
    return Update(a, b, float(squares.sum()), float(squares[rank_kept:].sum()))


def concatenate(stack: Stack, d: Tensor) -> Update:
    """B D A itself at rank R: sqrt|d| on both sides, the sign in a. Its energy is not measured."""
    roots = d.abs().sqrt().to(stack.a)
    return Update(stack.a * (roots * d.sign().to(roots))[:, None], stack.b * roots, None, 0.0)


def _row_gram(rows: Tensor, kind: dtype) -> Tensor:
    """M M^T of a wide M in the given data type, cast part by part."""
    import torch

    if rows.dtype == kind:
        return rows @ rows.T
    total = torch.zeros(rows.shape[0], rows.shape[0], dtype=kind, device=rows.device)
    for part in _parts(rows, kind):
        total.addmm_(part, part.T)
    return total


def _parts(rows: Tensor, kind: dtype) -> Iterator[Tensor]:
    """Ranges of columns in the given data type; the whole where nothing needs to be cast."""
    width = rows.shape[1] if rows.dtype == kind else max(1, _CHUNK // max(1, rows.shape[0]))
    for start in range(0, rows.shape[1], width):
        yield rows[:, start : start + width].to(kind)


def _concatenate(parts: list[Tensor], dimension: int) -> Tensor:
    import torch

    tensor = parts[0] if len(parts) == 1 else torch.cat(parts, dimension)
    return tensor.to(torch.float32).contiguous()


def _cholesky_coordinates(gram: Tensor) -> tuple[Tensor, Tensor] | None:
    """(C, K) = (L^-1, L^T) for G = L L^T; None where the rows are too nearly dependent for float32."""
    import torch

    lower, failed = torch.linalg.cholesky_ex(gram)
    diagonal = lower.diagonal()
    if bool(failed) or not float(diagonal.min()) > _SPAN * float(diagonal.max()):
        return None
    eye = torch.eye(gram.shape[0], dtype=gram.dtype, device=gram.device)
    return torch.linalg.solve_triangular(lower, eye, upper=False), lower.T


def _inaccurate(squares: Tensor, rank: int) -> bool:
    """Whether float32 eigenvalues are too inexact for the loss of the truncation at this rank."""
    if rank >= len(squares):
        return True
    loss = float(squares[rank:].sum()) < _LOSS * float(squares.sum())
    return loss or float(squares[rank - 1]) < 0.1 * _LOSS * float(squares[0])


def _numerical_rank(squares: Tensor, rank: int) -> int:
    """The number of directions to keep: those above rounding, at most `rank`, at least one."""
    return max(1, min(rank, int((squares > _ROUNDING * squares[0]).sum())))
