"""The values in a safetensors adapter: LoRA factors, module by module, their scalings, and its health, judged
by their norms.

Files are memory-mapped, one module at a time is held in float64, and a pickle is never opened. The norms of
the bare products B A depend on the file alone, so that one measurement serves every adapter that has the
same bytes; `health` joins them with the scaling of a configuration.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO, NamedTuple

from catalog.adapters.config import AdapterConfig, ScalingRule
from catalog.adapters.header import PREFIX, Header, header_length, parse_header
from catalog.adapters.header import Tensor as Entry
from catalog.adapters.names import FactorKey, canonical_tensor, first_key, first_tensor
from catalog.adapters.spec import FACTOR_DTYPES, adapter_names
from catalog.errors import WeightsError

if TYPE_CHECKING:
    from torch import Tensor

# What a LoRA on any known base model stays far below: a small file could ask for Gram matrices, or for
# projections, that fill the memory.
MOST_RANK = 4096
MOST_WIDTH = 2**22
# Numbers that are cast to float64 at once: 32 MiB.
_CHUNK = 4 * 1024 * 1024
# Bytes that are hashed at once.
_BLOCK = 1024 * 1024
# Digits of a relative scaling: alpha / r is known to sixteen.
_DIGITS = 12


@dataclass(frozen=True, slots=True)
class WeightsHealth:
    """The health of an adapter, judged by its values.

    `norm` is the Frobenius norm of the whole update, (sum over modules of ||s B A||^2)^1/2, over the finite
    modules; `norm_in_layers` is the same without embeddings and output head, None if it was not measured.
    `zero_update` means that B A is zero in every module: the adapter does nothing. `modules` counts
    complete pairs.
    """

    norm: float
    non_finite: bool
    zero_update: bool
    modules: int
    norm_in_layers: float | None = None


class Module(NamedTuple):
    """One LoRA module of an adapter: its update is scaling * B A.

    A is (rank, in_features) and B (out_features, rank), as stored: in the file's data type, unscaled.
    """

    name: str
    a: Tensor
    b: Tensor
    scaling: float


def module_norms(path: Path, config: AdapterConfig | None = None) -> dict[str, float | None]:
    """||B A|| (Frobenius, without scaling) of every complete LoRA pair by module name; None where not finite.

    0.0 means that the product is zero to the last bit that float64 keeps, whatever B and A are by themselves.
    Raises WeightsError.
    """
    return {module: product_norm(gram(a.T), gram(b)) for module, a, b in iterate_factors(path, config)}


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


def iterate_modules(path: Path, config: AdapterConfig) -> Iterator[Module]:
    """Every complete LoRA module of a safetensors file with its scaling, sorted by name, one in memory at a
    time.

    The factors may be views of the mapped file: keeping one keeps the file open. Raises WeightsError as
    `iterate_factors` does and ConfigError as ScalingRule does.
    """
    rules = ScalingRule(config)
    for module, a, b in iterate_factors(path, config):
        yield Module(module, a, b, rules.scaling(module))


def iterate_factors(path: Path, config: AdapterConfig | None = None) -> Iterator[tuple[str, Tensor, Tensor]]:
    """(module, A, B) of each complete pair of matching matrices in a safetensors file, sorted, memory-mapped.

    A is (rank, in_features) and B (out_features, rank), in the file's data type.

    A configuration determines the base model of the modules if their names do not. Halves without a
    partner, pairs whose shapes do not match, and those of unsupported data types are skipped: the header
    lists them (`catalog.adapters.lora_modules`). Raises WeightsError for a file that is broken, and of kind
    too_large for a rank above MOST_RANK or a width above MOST_WIDTH.
    """
    from safetensors import SafetensorError, safe_open

    pairs = _pairs(file_header(path), config)
    try:
        with safe_open(path, framework="pt") as file:
            for module, a, b in pairs:
                yield module, file.get_tensor(a), file.get_tensor(b)
    except (SafetensorError, OSError) as error:
        raise WeightsError("header_invalid", f"the weights cannot be read: {error}") from error


def header_modules(header: Header, config: AdapterConfig | None = None) -> tuple[str, ...]:
    """The names of the modules that `iterate_factors` gives of a file with this header, sorted."""
    return tuple(module for module, _, _ in _pairs(header, config))


def fingerprint_pattern(header: Header, config: AdapterConfig) -> str:
    """A stable name of the reading of a file under a configuration: with the file's digest, the key of
    results from its values.

    It is the `scaling_pattern`. It includes the names of modules only if they differ from those of the first
    reading, so that results made with other names are not found under it. Raises ConfigError as ScalingRule
    does, and WeightsError as `iterate_factors`.
    """
    modules = header_modules(header, config)
    pattern = scaling_pattern(modules, config)
    if pattern or modules == _first_modules(header):
        return pattern
    return hashlib.sha256(json.dumps(modules).encode()).hexdigest()[:32]


def has_first_names(header: Header, config: AdapterConfig | None = None) -> bool:
    """Whether the modules of a file have the names that they had when fingerprints were first made."""
    return header_modules(header, config) == _first_modules(header)


def relative_scalings(modules: Iterable[str], config: AdapterConfig) -> dict[str, float]:
    """The scaling of each module over the largest absolute one, to twelve digits; 0.0 where all are zero.

    A change of alpha alone leaves them as they are. Raises ConfigError as ScalingRule does.
    """
    rules = ScalingRule(config)
    scalings = {module: rules.scaling(module) for module in sorted(modules)}
    largest = max(map(abs, scalings.values()), default=0.0)
    if largest == 0.0:
        return dict.fromkeys(scalings, 0.0)
    return {module: float(f"{scaling / largest:.{_DIGITS}g}") for module, scaling in scalings.items()}


def scaling_pattern(modules: Iterable[str], config: AdapterConfig) -> str:
    """A stable name of the relation between the scalings of the modules: "" if all are the same and positive.

    Else 32 hexadecimal digits of a SHA-256 over the names and `relative_scalings`, so that a file and this
    pattern give the update up to one positive factor. Raises ConfigError as ScalingRule does.
    """
    relative = relative_scalings(modules, config)
    if all(scaling == 1.0 for scaling in relative.values()):
        return ""
    return hashlib.sha256(json.dumps(list(relative.items())).encode()).hexdigest()[:32]


def header_bytes(path: Path) -> bytes:
    """The head of a safetensors file, length included; raises WeightsError."""
    try:
        with path.open("rb") as file:
            first = file.read(PREFIX)
            return first + file.read(header_length(first))
    except OSError as error:
        raise WeightsError("unreadable", f"the weights cannot be read: {error}") from error


def file_header(path: Path) -> Header:
    """The checked header of a safetensors file; raises WeightsError."""
    head = header_bytes(path)
    try:
        return parse_header(head, path.stat().st_size)
    except OSError as error:
        raise WeightsError("unreadable", f"the weights cannot be read: {error}") from error


def tensor_digest(path: Path) -> str:
    """A SHA-256 over all tensors of a file, 64 hexadecimal digits: name, data type, shape and bytes of each.

    The header's metadata, the order in the file, and what programs add to the names of tensors do not count;
    a cast to another data type does. Raises WeightsError.
    """
    header = file_header(path)
    canonical = first_tensor if has_first_names(header) else canonical_tensor
    lines = []
    try:
        with path.open("rb") as file:
            file.seek(PREFIX + header.length)
            for tensor in header.tensors:
                content = _digest_of(file, tensor.end - tensor.begin)
                lines.append(json.dumps([canonical(tensor.name), tensor.dtype, tensor.shape, content]))
    except OSError as error:
        raise WeightsError("unreadable", f"the weights cannot be read: {error}") from error
    return hashlib.sha256("\n".join(sorted(lines)).encode()).hexdigest()


def _digest_of(file: BinaryIO, size: int) -> str:
    """SHA-256 of the next bytes of a file; raises WeightsError where it ends before them."""
    digest = hashlib.sha256()
    while size > 0:
        block = file.read(min(size, _BLOCK))
        if not block:
            raise WeightsError("truncated", "the weights file became shorter while it was read")
        digest.update(block)
        size -= len(block)
    return digest.hexdigest()


def gram(tall: Tensor, other: Tensor | None = None) -> Tensor:
    """M^T N of (r, q) in float64 for a tall M of (n, r) and N of (n, q), N = M where it is not given.

    Cast chunk by chunk by way of float32. It lies on the device of M, and is not finite where M is not.
    """
    import torch

    second = tall if other is None else other
    total = torch.zeros(tall.shape[1], second.shape[1], dtype=torch.float64, device=tall.device)
    rows = max(1, _CHUNK // max(total.shape))
    for start in range(0, tall.shape[0], rows):
        exact = tall[start : start + rows].to(torch.float32).to(torch.float64)
        if other is None:
            total += exact.T @ exact
        else:
            total += exact.T @ other[start : start + rows].to(torch.float32).to(torch.float64)
    return total


def product_norm(gram_a: Tensor, gram_b: Tensor) -> float | None:
    """||B A|| from A A^T and B^T B: ||B A||^2 = tr(B^T B A A^T).

    None where a value is not finite, or the norm no finite float32.
    """
    import torch

    if not bool(torch.isfinite(gram_a).all() and torch.isfinite(gram_b).all()):
        return None
    terms = gram_b * gram_a
    square = float(terms.sum())
    # The sum is known to some units in the last place of its terms: less than that is zero.
    noise = 64 * torch.finfo(torch.float64).eps * float(terms.abs().sum())
    norm = math.sqrt(square) if square > noise else 0.0
    return norm if norm <= torch.finfo(torch.float32).max else None


def _pairs(header: Header, config: AdapterConfig | None = None) -> list[tuple[str, str, str]]:
    """(module, name of A, name of B) of each complete pair of matching, non-empty matrices of numbers.

    A module with two copies of a half is left out, since it is ambiguous.
    """
    halves: dict[str, dict[str, Entry]] = {}
    repeated = set()
    for tensor, key in _numbers(header, adapter_names(header, config).keys):
        pair = halves.setdefault(key.module, {})
        if key.side in pair:
            repeated.add(key.module)
        pair[key.side] = tensor
    return _matching({module: pair for module, pair in halves.items() if module not in repeated})


def _first_modules(header: Header) -> tuple[str, ...]:
    """The modules of a file, sorted, as they were named when fingerprints of version 1 were first made."""
    keys = {tensor.name: key for tensor in header.tensors if (key := first_key(tensor.name))}
    halves: dict[str, dict[str, Entry]] = {}
    for tensor, key in _numbers(header, keys):
        halves.setdefault(key.module, {})[key.side] = tensor
    return tuple(module for module, _, _ in _matching(halves))


def _numbers(header: Header, keys: Mapping[str, FactorKey]) -> Iterator[tuple[Entry, FactorKey]]:
    """The factors that are non-empty matrices of numbers, with their places, in the order of the file."""
    for tensor in header.tensors:
        key = keys.get(tensor.name)
        number = tensor.dtype in FACTOR_DTYPES and len(tensor.shape) == 2 and tensor.elements
        if key is not None and key.leaf == "weight" and number:
            yield tensor, key


def _matching(halves: Mapping[str, Mapping[str, Entry]]) -> list[tuple[str, str, str]]:
    """(module, name of A, name of B) of each pair whose inner sizes agree, sorted by module."""
    pairs = []
    for module, pair in sorted(halves.items()):
        if len(pair) == 2 and pair["A"].shape[0] == pair["B"].shape[1]:
            a, b = pair["A"], pair["B"]
            _check_size(module, a.shape[0], a.shape[1], b.shape[0])
            pairs.append((module, a.name, b.name))
    return pairs


def _check_size(module: str, rank: int, in_features: int, out_features: int) -> None:
    if rank > MOST_RANK or max(in_features, out_features) > MOST_WIDTH:
        raise WeightsError(
            "too_large",
            f"{module} maps {in_features} to {out_features} features at rank {rank}; at most {MOST_WIDTH} "
            f"features and rank {MOST_RANK} are read",
        )
