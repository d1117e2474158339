"""The values in a safetensors adapter: LoRA factors, module by module, and what their norms say of its
health.

Files are memory-mapped, one module at a time is held in float64, and a pickle is never opened. The norms of
the bare products B A depend on the file alone, so that one measurement serves every adapter that has the
same bytes; `health` joins them with the scaling of a configuration.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from catalog.adapter import Header, factor_key, header_length, parse_header
from catalog.adapter_config import AdapterConfig, ScalingRule
from catalog.errors import WeightsError
from catalog.header import PREFIX

if TYPE_CHECKING:
    from torch import Tensor

# Version of `module_norms`: a change of what it gives raises it, and files are read again.
MEASURE_VERSION = 1
# Numbers that are cast to float64 at once: 32 MiB.
_CHUNK = 4 * 1024 * 1024


@dataclass(frozen=True, slots=True)
class WeightsHealth:
    """What the values of an adapter say.

    `norm` is the Frobenius norm of the whole update, (sum over modules of ||s B A||^2)^1/2, over the finite
    modules; `norm_in_layers` is the same without embeddings and output head, None where nobody measured it.
    `zero_update` means that B A is zero in every module: the adapter does nothing. `modules` counts
    complete pairs.
    """

    norm: float
    non_finite: bool
    zero_update: bool
    modules: int
    norm_in_layers: float | None = None


class Factors(NamedTuple):
    """One LoRA module as stored: A of (rank, in_features), B of (out_features, rank), in the file's data
    type.
    """

    module: str
    a: Tensor
    b: Tensor


def measure(path: Path, config: AdapterConfig) -> WeightsHealth:
    """Health of the adapter in a safetensors file under a configuration.

    Raises WeightsError for a file that cannot be read and ConfigError of kind bad_pattern or bad_field for a
    configuration that gives no scaling.
    """
    return health(module_norms(path), config)


def module_norms(path: Path) -> dict[str, float | None]:
    """||B A|| (Frobenius, without scaling) of every complete LoRA pair by module name; None where not finite.

    0.0 means that the product is zero to the last bit that float64 keeps, whatever B and A are by themselves.
    Raises WeightsError.
    """
    norms = {factors.module: _product_norm(factors.a, factors.b) for factors in iterate_factors(path)}
    return {module: norms[module] for module in sorted(norms)}


def health(norms: Mapping[str, float | None], config: AdapterConfig) -> WeightsHealth:
    """Health from the norms that `module_norms` gave; raises ConfigError as ScalingRule does."""
    rules = ScalingRule(config)
    scaled = {name: abs(rules.scaling(name)) * norm for name, norm in norms.items() if norm is not None}
    return WeightsHealth(
        norm=math.hypot(*scaled.values()),
        non_finite=len(scaled) < len(norms),
        zero_update=0 < len(scaled) == len(norms) and not any(scaled.values()),
        modules=len(norms),
        norm_in_layers=math.hypot(*(norm for name, norm in scaled.items() if ".layers." in f".{name}")),
    )


def iterate_factors(path: Path) -> Iterator[Factors]:
    """Every complete pair of matching matrices in a safetensors file, sorted by module name, memory-mapped.

    Halves without a partner and pairs of contradicting shape are passed over: the header names them
    (`catalog.adapter.lora_modules`). Raises WeightsError for a file that is broken.
    """
    from safetensors import SafetensorError, safe_open

    head = header_bytes(path)
    try:
        header = parse_header(head, path.stat().st_size)
        with safe_open(path, framework="pt") as file:
            for module, a, b in _pairs(header):
                yield Factors(module, file.get_tensor(a), file.get_tensor(b))
    except (SafetensorError, OSError) as error:
        raise WeightsError("header_invalid", f"the weights cannot be read: {error}") from error


def header_bytes(path: Path) -> bytes:
    """The head of a safetensors file, length included; raises WeightsError."""
    try:
        with path.open("rb") as file:
            first = file.read(PREFIX)
            return first + file.read(header_length(first))
    except OSError as error:
        raise WeightsError("unreadable", f"the weights cannot be read: {error}") from error


def _pairs(header: Header) -> list[tuple[str, str, str]]:
    """(module, name of A, name of B) of each complete pair of matching, non-empty matrices."""
    halves: dict[str, dict[str, tuple[str, tuple[int, ...]]]] = {}
    for tensor in header.tensors:
        key = factor_key(tensor.name)
        if key is not None and key.leaf == "weight" and len(tensor.shape) == 2 and tensor.elements:
            halves.setdefault(key.module, {})[key.side] = (tensor.name, tensor.shape)
    found = []
    for module, pair in sorted(halves.items()):
        if len(pair) == 2 and pair["A"][1][0] == pair["B"][1][1]:
            found.append((module, pair["A"][0], pair["B"][0]))
    return found


def _product_norm(a: Tensor, b: Tensor) -> float | None:
    """||B A|| from the r x r Gram matrices: ||B A||^2 = tr(B^T B A A^T); None where a value is not finite."""
    import torch

    gram_a, gram_b = _gram(a.T), _gram(b)
    if not bool(torch.isfinite(gram_a).all() and torch.isfinite(gram_b).all()):
        return None
    terms = gram_b * gram_a
    square = float(terms.sum())
    # The sum is known to some units in the last place of its terms: less than that is zero.
    noise = 64 * torch.finfo(torch.float64).eps * float(terms.abs().sum())
    return math.sqrt(square) if square > noise else 0.0


def _gram(tall: Tensor) -> Tensor:
    """M^T M of (r, r) in float64 for a tall M of (n, r), cast chunk by chunk by way of float32."""
    import torch

    columns = tall.shape[1]
    gram = torch.zeros(columns, columns, dtype=torch.float64)
    rows = max(1, _CHUNK // columns)
    for start in range(0, tall.shape[0], rows):
        exact = tall[start : start + rows].to(torch.float32).to(torch.float64)
        gram += exact.T @ exact
    return gram
