"""The fingerprint of an adapter: its update in vectors that are short enough to keep for every adapter.

The factors of a LoRA are not unique: B G and G^-1 A give the same model for every invertible G. Only the
update s B A is unique, and everything here is a function of it, computed from the factors without forming it.

`delta` is a linear sketch of the whole update. A module has two fixed matrices of random signs, L of
(out_features, 32) and R of (in_features, 32), and all modules are added into one buffer,
S = sum_l (L_l^T X_l R_l) / 32 with X_l = s_l B_l A_l. Inner products of buffers are unbiased estimates of
inner products of updates, a sum of updates has the sum of their buffers, and for m = 32 the variance of
||S||^2 / ||X||^2 is at most 2/m^2 + (4/m + 2/m^2) sum_l (||X_l||^4 / rho_l) / ||X||^4, where rho_l is the
participation (sum sigma^2)^2 / (sum sigma^4) of the singular values of X_l.

`output` sketches the output side of an update and ignores its input side: sum_l X_l X_l^T / ||X_l||^2. With
Z_l = P_l^T B_l for signs P_l of (out_features, 46) it holds the entries above the diagonal of
sum_l Z_l (A_l A_l^T) Z_l^T / ||B_l A_l||^2 over the root of their number. Signs of different modules are
independent, so these have mean zero, and inner products estimate sum_l ||X_l^T Y_l||^2 / (||X_l|| ||Y_l||)^2
without bias. Two runs on one task from other initial A agree in it but hardly in `delta`, because A stays
close to where it began. Every module that is not zero has the same weight: with exact products on 39 real
adapters of 14 kinds of tasks, five neighbours were of the same kind in 60 % of what is possible so, in 55 %
with modules weighted by their norm and in 44 % by its square; scalings cancel besides.

Signs come from SHAKE128 (FIPS 202) and depend on nothing but the kind of sketch, the version, the module's
name in the base model and the side, so that vectors made anywhere can be compared.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from catalog.adapters import (
    AdapterConfig,
    Module,
    file_header,
    fingerprint_pattern,
    gram,
    header_modules,
    health,
    iterate_factors,
    product_norm,
    relative_scalings,
    tensor_digest,
)

if TYPE_CHECKING:
    from numpy import float32, float64, uint8
    from numpy.typing import NDArray
    from torch import Tensor

FINGERPRINT_VERSION = 1
_DELTA_WIDTH = 32
_OUTPUT_WIDTH = 46
DELTA_SIZE = _DELTA_WIDTH**2
OUTPUT_SIZE = _OUTPUT_WIDTH * (_OUTPUT_WIDTH - 1) // 2
LEADING = 7
EXPLODING = 1e5
BARELY_TRAINED = 0.02
# Rows of signs that are made at once: a multiple of 8, so that they begin with a byte.
_ROWS = 8192
# A Gram matrix of unit columns with a smaller eigenvalue has lost half of its digits: then QR.
_ILL_CONDITIONED = 1e-8
# Squares of longer vectors have no sum in float32: one such adapter would spoil every comparison.
_LONGEST = 1e18

Verdict = Literal["healthy", "empty", "zero_update", "non_finite", "exploding", "barely_trained"]


@dataclass(frozen=True)
class Fingerprint:
    """The vectors of one weights file under one pattern of scalings; all float32.

    `modules` are the names of the complete LoRA modules, sorted; the rows of `spectrum` are theirs, of
    (modules, 8): the norm of B A without scaling, then its leading seven singular values, descending, 0
    beyond the rank, and NaN in a row of a module that holds a value that is not finite. `delta` of (1024,) is
    the sketch of the update divided by its largest absolute scaling; multiply it by that for the update as
    it is. `output` of (1035,) is scale-free. Modules that are not finite are left out of both, and an
    absurdly large delta is zero (see `delta_sketch`).
    `tensor_digest` names the tensors as `catalog.adapters.tensor_digest` does, `scaling_pattern` the relation
    of the scalings, and the modules where they have other names than these once had (`fingerprint_pattern`).
    """

    modules: tuple[str, ...]
    spectrum: NDArray[float32]
    delta: NDArray[float32]
    output: NDArray[float32]
    tensor_digest: str
    scaling_pattern: str
    version: int = FINGERPRINT_VERSION

    @property
    def norms(self) -> dict[str, float | None]:
        """||B A|| by module name, as `catalog.adapters.weights.module_norms` gives it but in float32."""
        return spectrum_norms(self.modules, self.spectrum)


def spectrum_norms(modules: Sequence[str], spectrum: NDArray[float32]) -> dict[str, float | None]:
    """||B A|| by module name from the rows of a `Fingerprint.spectrum`, None where not finite."""
    rows = zip(modules, spectrum[:, 0].tolist(), strict=True)
    return {module: norm if math.isfinite(norm) else None for module, norm in rows}


def fingerprint(path: Path, config: AdapterConfig, device: str | None = None) -> Fingerprint:
    """The fingerprint of a safetensors file; one module at a time is read, and nothing is written.

    `device` is where the arithmetic is done, as torch names it: without it the GPU where there is one.
    Raises WeightsError for a file that cannot be read and ConfigError as ScalingRule does.
    """
    import numpy as np

    header = file_header(path)
    names = header_modules(header, config)
    relative = relative_scalings(names, config)
    place = _device(device)
    delta, output, rows = _square(_DELTA_WIDTH), _square(_OUTPUT_WIDTH), []
    for name, a, b in iterate_factors(path, config):
        factors = _factors(name, a.to(place), b.to(place))
        rows.append(_spectrum(factors))
        if factors.norm is not None:
            delta += relative[name] * _delta_term(factors)
            output += _output_term(factors)
    return Fingerprint(
        modules=names,
        spectrum=np.array(rows, dtype=np.float32).reshape(-1, 1 + LEADING),
        delta=_vector(delta),
        output=_above_diagonal(output),
        tensor_digest=tensor_digest(path),
        scaling_pattern=fingerprint_pattern(header, config),
    )


def use_one_thread() -> None:
    """Makes torch use one thread in this process from now on.

    The matrices of an adapter are too small for more (measured: ten times slower with two threads on two busy
    cores); a crawl has its workers instead.
    """
    import torch

    torch.set_num_threads(1)


def delta_sketch(modules: Iterable[Module]) -> NDArray[float32]:
    """The sketch of an update, (1024,) float32, linear in it: its scalings count as they are.

    Modules with a value that is not finite are left out. Works where the factors lie. An update so large that
    the squares of its sketch have no sum in float32, which is not comparable, gives zeros.
    """
    total = _square(_DELTA_WIDTH)
    for module in modules:
        factors = _factors(module.name, module.a, module.b)
        if factors.norm is not None:
            total += module.scaling * _delta_term(factors)
    return _vector(total)


def output_sketch(modules: Iterable[Module]) -> NDArray[float32]:
    """The sketch of the output side of an update, (1035,) float32; scalings and norms of modules cancel.

    Modules that are zero, or hold a value that is not finite, are left out. Works where the factors lie.
    """
    total = _square(_OUTPUT_WIDTH)
    for module in modules:
        factors = _factors(module.name, module.a, module.b)
        if factors.norm is not None and module.scaling:
            total += _output_term(factors)
    return _above_diagonal(total)


def signs(kind: str, module: str, side: str, rows: int, width: int) -> NDArray[float32]:
    """A (rows, width) float32 matrix of +1 and -1 that depends only on the arguments.

    `kind` is "delta" or "output", `side` "A" for rows that meet the input and "B" for the output. Row i is
    the i-th group of `width` bits of SHAKE128("loradex {kind} {version} {module} {side}"), the most
    significant bit of a byte first, 1 for +1: so the rows of a shorter matrix begin a longer one.
    """
    import numpy as np

    packed = _sign_bits(kind, module, side, rows, width)
    return _unpack_signs(np.frombuffer(packed, np.uint8), rows, width)


def stable_rank(row: NDArray[float32]) -> float:
    """||B A||_F^2 / sigma_1^2 of a row of `Fingerprint.spectrum`; 0.0 for a zero product, NaN as the row."""
    norm, first = float(row[0]), float(row[1])
    return 0.0 if first == 0.0 else (norm / first) ** 2


def verdict(norms: Mapping[str, float | None], config: AdapterConfig) -> Verdict:
    """One word for the health of an adapter, from its norms (`catalog.adapters.weights.module_norms`).

    The first that fits. empty: it has no complete module. non_finite: a module holds NaN or infinity, or a
    product beyond float32. zero_update: every product is zero. exploding: the norm of the update is above
    EXPLODING, while all weights of an 8B model together have a norm of a few thousands. barely_trained: the
    root mean square of the norms of its modules is below BARELY_TRAINED; one step of Adam at a learning rate
    of 1e-4 gives a module of width 4096 at rank 8 and scaling 2 about that
    (2 * 1e-4 * (4096 * 8 / 3)^1/2 = 0.021, B being zero before and the rows of A of norm 3^-1/2), and 39 real
    adapters of 40 steps have 0.36 to 2.2. Raises ConfigError as ScalingRule does.
    """
    weights_health = health(norms, config)
    if not weights_health.modules:
        return "empty"
    if weights_health.non_finite:
        return "non_finite"
    if weights_health.zero_update:
        return "zero_update"
    if weights_health.norm > EXPLODING:
        return "exploding"
    return (
        "barely_trained"
        if weights_health.norm < BARELY_TRAINED * math.sqrt(weights_health.modules)
        else "healthy"
    )


@dataclass(frozen=True)
class _Factors:
    """A module's factors on their device, A A^T and B^T B in float64, and ||B A||: None if it is not a finite
    float32.
    """

    name: str
    a: Tensor
    b: Tensor
    gram_a: Tensor
    gram_b: Tensor
    norm: float | None


def _factors(name: str, a: Tensor, b: Tensor) -> _Factors:
    gram_a, gram_b = gram(a.T), gram(b)
    return _Factors(name, a, b, gram_a, gram_b, product_norm(gram_a, gram_b))


def _spectrum(factors: _Factors) -> list[float]:
    """The norm and the leading singular values of B A, 1 + LEADING numbers."""
    import torch

    if factors.norm is None:
        return [math.nan] * (1 + LEADING)
    if factors.norm == 0.0:
        return [0.0] * (1 + LEADING)
    core = _triangle(factors.b, factors.gram_b) @ _triangle(factors.a.T, factors.gram_a).T
    values = torch.linalg.svdvals(core)[:LEADING].tolist()
    return [factors.norm, *values, *[0.0] * (LEADING - len(values))]


def _triangle(tall: Tensor, gram_matrix: Tensor) -> Tensor:
    """An R of (at most r, r) in float64 with R^T R = M^T M, from the Gram matrix of M or, if that has lost
    too many digits, by QR.
    """
    import torch

    lengths = gram_matrix.diagonal().sqrt()
    nonzero = lengths > 0
    unit = gram_matrix[nonzero][:, nonzero] / torch.outer(lengths[nonzero], lengths[nonzero])
    values, vectors = torch.linalg.eigh(unit)
    if float(values[0]) < _ILL_CONDITIONED:
        exact = tall.to(torch.float32).to(torch.float64)
        triangle: Tensor = torch.linalg.qr(exact, mode="r").R
        return triangle
    triangle = torch.zeros(len(values), len(lengths), dtype=torch.float64, device=tall.device)
    triangle[:, nonzero] = values.sqrt()[:, None] * vectors.T * lengths[nonzero]
    return triangle


def _delta_term(factors: _Factors) -> NDArray[float64]:
    """L^T (B A) R / s of (s, s)."""
    left = _project("delta", factors.name, "B", factors.b, _DELTA_WIDTH)
    right = _project("delta", factors.name, "A", factors.a.T, _DELTA_WIDTH)
    term: NDArray[float64] = (left @ right.T / _DELTA_WIDTH).cpu().numpy()
    return term


def _output_term(factors: _Factors) -> NDArray[float64]:
    """P^T (B A)(B A)^T P / ||B A||^2 of (s, s); zero for a zero product."""
    if not factors.norm:
        return _square(_OUTPUT_WIDTH)
    half = _project("output", factors.name, "B", factors.b, _OUTPUT_WIDTH) / factors.norm
    term: NDArray[float64] = (half @ factors.gram_a @ half.T).cpu().numpy()
    return term


def _project(kind: str, module: str, side: str, tall: Tensor, width: int) -> Tensor:
    """signs^T M of (width, r) in float64 for a tall M of (n, r), summed in float32 block by block of rows."""
    import numpy as np
    import torch

    packed = np.frombuffer(_sign_bits(kind, module, side, tall.shape[0], width), np.uint8)
    total = torch.zeros(width, tall.shape[1], dtype=torch.float64, device=tall.device)
    for start in range(0, tall.shape[0], _ROWS):
        block = tall[start : start + _ROWS]
        bits = packed[start * width // 8 :]
        matrix = torch.from_numpy(_unpack_signs(bits, len(block), width)).to(tall.device)
        part = matrix.T @ block.to(torch.float32)
        if not bool(torch.isfinite(part).all()):
            part = matrix.T.to(torch.float64) @ block.to(torch.float64)
        total += part
    return total


def _sign_bits(kind: str, module: str, side: str, rows: int, width: int) -> bytes:
    seed = f"loradex {kind} {FINGERPRINT_VERSION} {module} {side}"
    return hashlib.shake_128(seed.encode()).digest(-(-rows * width // 8))


def _unpack_signs(packed: NDArray[uint8], rows: int, width: int) -> NDArray[float32]:
    """The leading bits of bytes as a (rows, width) matrix of signs."""
    import numpy as np

    flat: NDArray[float32] = np.take(_signs_of_bytes(), packed[: -(-rows * width // 8)], axis=0).reshape(-1)
    return flat[: rows * width].reshape(rows, width)


@cache
def _signs_of_bytes() -> NDArray[float32]:
    """The eight signs of each byte, (256, 8)."""
    import numpy as np

    bits = np.unpackbits(np.arange(256, dtype=np.uint8)[:, None], axis=1)
    return bits.astype(np.float32) * 2 - 1


def _vector(square: NDArray[float64]) -> NDArray[float32]:
    """The entries row by row; zeros where their length is above _LONGEST."""
    import numpy as np

    if float(np.linalg.norm(square)) > _LONGEST:
        square = np.zeros_like(square)
    return square.astype(np.float32).ravel()


def _above_diagonal(square: NDArray[float64]) -> NDArray[float32]:
    """The entries above the diagonal, row by row, over the root of their number."""
    import numpy as np

    entries = square[np.triu_indices(_OUTPUT_WIDTH, 1)] / math.sqrt(OUTPUT_SIZE)
    return entries.astype(np.float32)


def _square(width: int) -> NDArray[float64]:
    import numpy as np

    return np.zeros((width, width))


def _device(device: str | None) -> str:
    import torch

    return device or ("cuda" if torch.cuda.is_available() else "cpu")
