"""Untrained stand-ins of members: controls for merges of real adapters.

A stand-in is an adapter folder like the member's own, with the same modules, ranks and scalings, whose
factors are random, or the member's in the wrong layers. `control.json` next to the factors describes it.

* random-pooled: every A and B of N(0, std), std that of all entries which the pool's members store for that
  factor of that module. So does the released code of the recycling paper (https://arxiv.org/abs/2602.12323;
  reinit_case in peft_extension/lorahub/layers.py of https://github.com/r-three/realistic-adaptive-merging):
  the factors of all members lie in one tensor, and its `std()` is taken. They are as stored there too: each
  member's scaling stays what it is and is no part of std, and large ranks count for more.
* random-each: the same with the std of that member's own A and B of the module.
* random-directions: Delta W = U S V^T keeps S, while U and V become random orthonormal directions (Haar
  measure, by QR with the sign fix of Mezzadri, https://arxiv.org/abs/math-ph/0609050). In float32, because
  bfloat16 would change S; the others keep the member's data type.
* shuffled-layers: the member's own factors, permuted among modules that differ in nothing but the layer, on a
  random cycle, so that none stays where it was. Modules that lie in the same layers move together.
* permuted-ranks: the member's own factors with the ranks of each module in a random order, A's rows and B's
  columns alike: the same update, so that a merge which looks at more than updates is told by what changes
  (the permutation experiment of LoRA-LEGO, https://arxiv.org/abs/2409.16167).
"""

from __future__ import annotations

import hashlib
import json
import math
import re
from collections.abc import Callable, Mapping, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

from catalog.adapters import CONFIG_NAME, BaseTable, LoraModule
from catalog.errors import MergeError, UsageError, WeightsError
from merging.members import (
    MergeMember,
    adapter_config,
    digest_of,
    factor_names,
    load_member,
    load_members,
    new_folder,
    read_module,
    shapes,
    storage,
    tensor_writer,
    weights_path,
    write_json,
)
from merging.static.plans import result_dtype

if TYPE_CHECKING:
    from torch import Tensor

KINDS = ("random-pooled", "random-each", "random-directions", "shuffled-layers", "permuted-ranks")
CONTROL_NAME = "control.json"
RECORD_VERSION = 1
_STRANGE = re.compile(r"[^A-Za-z0-9_.-]+")
# The layer's number in a module's name: the first part that is one.
_NUMBER = re.compile(r"(?:(?<=\.)|\A)[0-9]{1,6}(?=\.|\Z)")

# The standard deviations of A and of B of each module.
Spread = Mapping[str, tuple[float, float]]
# New factors of one module from those of its name.
_Draw = Callable[[str], "tuple[Tensor, Tensor]"]


def stand_ins(
    members: Sequence[Path | MergeMember],
    kind: str,
    out: Path,
    seed: int = 0,
    *,
    base: str | None = None,
    table: BaseTable | None = None,
) -> tuple[MergeMember, ...]:
    """A stand-in of every member, each in a separate folder below `out`; the members are the pool.

    PEFT loads it like any adapter. `kind` is one of KINDS; `base` and `table` are those of `load_members`.
    Random numbers belong to seed, kind, the member's name and weights, and the module: the same call writes
    the same bytes. A folder that contains exactly this stand-in is not written again. Its name is the
    member's with kind and seed, its `source` the member's with its digest.

    Raises UsageError for an unknown kind and a folder with other content, MergeError for values that are not
    finite and for a member that has a module in one layer only (shuffled-layers), StorageError, and the
    errors of `load_members`.
    """
    loaded = load_members(members, base=base, table=table)
    folded = next((member.name for member in loaded if member.folded), None)
    if folded is not None:
        raise MergeError(
            f"A control has no factors to draw for the folded DoRA of {folded}; leave out `control`."
        )
    pooled = _pool_spread(kind, loaded)
    return tuple(
        _stand_in(member, kind, out / f"{number:03}-{_STRANGE.sub('--', member.name)[-80:]}", seed, *pooled)
        for number, member in enumerate(loaded, 1)
    )


def entry_deviations(members: Sequence[MergeMember]) -> dict[str, tuple[float, float]]:
    """The standard deviations of all stored entries of A and of B by module, over all members that have it.

    With the divisor n - 1, as `torch.std`; 0 for a single entry. Raises MergeError for values that are not
    finite, WeightsError.
    """
    deviations = {}
    for shape in shapes(members):
        pairs = [_factors(member, shape.name) for member in members if shape.name in member.places]
        deviations[shape.name] = (_std([a for a, _ in pairs]), _std([b for _, b in pairs]))
    return deviations


def _pool_spread(kind: str, pool: Sequence[MergeMember]) -> tuple[Spread, tuple[str, ...]]:
    """The spread of a pool and the digests of its members, empty if the kind does not use it."""
    if kind not in KINDS:
        raise UsageError(f"{kind!r} is not a control; use one of {', '.join(KINDS)}.")
    if kind != "random-pooled":
        return {}, ()
    return entry_deviations(pool), tuple(member.sha256() for member in pool)


def _stand_in(
    member: MergeMember, kind: str, out: Path, seed: int, pooled: Spread, digests: Sequence[str]
) -> MergeMember:
    digest = member.sha256()
    dtype = _dtype(member, kind)
    record = {
        "record_version": RECORD_VERSION,
        "control": kind,
        "seed": seed,
        "of": member.name,
        "of_sha256": digest,
        "pool_sha256": list(digests),
        "source": dict(member.source),
        "dtype": dtype,
        "versions": {name: version(name) for name in ("numpy", "torch")},
    }
    document = _document(member)
    weights = _held(out, record, document)
    if weights is None:
        draw = _draw(member, kind, (seed, kind, member.name, digest), pooled)
        with new_folder(out, overwrite=False) as folder:
            _write_factors(member, draw, folder, dtype)
            weights = digest_of(weights_path(folder))
            with storage(out):
                write_json(folder / CONFIG_NAME, document)
                write_json(folder / CONTROL_NAME, {**record, "sha256": weights})
    return load_member(
        out,
        name=f"{member.name}:{kind}:{seed}",
        digest=weights,
        license_id=member.license,
        source={**member.source, "control": kind, "seed": str(seed), "of": member.name, "of_sha256": digest},
        base=member.base,
    )


def _held(out: Path, record: Mapping[str, Any], document: Mapping[str, Any]) -> str | None:
    """The digest of the weights in a folder that holds this stand-in, byte by byte; else None."""
    try:
        documents = [
            json.loads((out / name).read_text(encoding="utf-8")) for name in (CONTROL_NAME, CONFIG_NAME)
        ]
        digest = digest_of(weights_path(out))
    except (OSError, ValueError, WeightsError):
        return None
    return digest if documents == [{**record, "sha256": digest}, document] else None


def _document(member: MergeMember) -> dict[str, Any]:
    """The adapter_config.json: plain LoRA on the member's modules with its ranks and alphas."""
    ranks = {module.name: module.rank for module in member.spec.modules}
    config = member.config
    return {
        **adapter_config([member], config.base_model, ranks),
        "r": config.rank,
        "lora_alpha": int(config.alpha) if config.alpha.is_integer() else config.alpha,
        "rank_pattern": dict(config.rank_pattern),
        "alpha_pattern": dict(config.alpha_pattern),
        "use_rslora": config.use_rslora,
    }


def _write_factors(member: MergeMember, draw: _Draw, folder: Path, dtype: str) -> None:
    union = shapes([member])
    names = [name for shape in union for name in factor_names(shape)]
    with storage(folder), tensor_writer(weights_path(folder), dtype, names) as writer:
        for shape in union:
            for name, values in zip(factor_names(shape), draw(shape.name), strict=True):
                try:
                    writer.write(name, values)
                except OverflowError as error:
                    raise MergeError(
                        f"The stand-in of {member.name} is too large for {dtype} in {shape.name}; "
                        "leave the member out."
                    ) from error


def _draw(member: MergeMember, kind: str, key: tuple[object, ...], pooled: Spread) -> _Draw:
    if kind == "shuffled-layers":
        origin = _shuffle_modules(member, key)
        return lambda module: _factors(member, origin[module])
    if kind == "random-directions":
        return lambda module: _redirect_factors(member, module, (*key, module))
    if kind == "permuted-ranks":
        return lambda module: _permute_ranks(member, module, (*key, module))
    spreads = pooled if kind == "random-pooled" else entry_deviations([member])
    return lambda module: _normals(member.modules[module], spreads[module], (*key, module))


def _normals(
    module: LoraModule, spreads: tuple[float, float], key: tuple[object, ...]
) -> tuple[Tensor, Tensor]:
    """A and B of independent normal numbers with these standard deviations, float32."""
    std_a, std_b = spreads
    a = _normal((*key, "A"), module.rank, module.in_features)
    b = _normal((*key, "B"), module.out_features, module.rank)
    return a.mul_(std_a).float(), b.mul_(std_b).float()


def _redirect_factors(member: MergeMember, module: str, key: tuple[object, ...]) -> tuple[Tensor, Tensor]:
    """A' = sqrt(S / |s|) V^T and B' = U sqrt(S / |s|), S the singular values of s B A, U and V random.

    Rows beyond the rank that the layer allows are zero.
    """
    import torch

    shape = member.modules[module]
    a, b = (factor.double() for factor in _factors(member, module))
    # The singular values of B A are those of the product of both triangles.
    values = torch.linalg.svdvals(torch.linalg.qr(b).R @ torch.linalg.qr(a.T).R.T)
    rank = len(values)
    new_a, new_b = torch.zeros_like(a), torch.zeros_like(b)
    new_a[:rank] = values.sqrt()[:, None] * _orthonormal((*key, "A"), shape.in_features, rank).T
    new_b[:, :rank] = _orthonormal((*key, "B"), shape.out_features, rank) * values.sqrt()
    return new_a.float(), new_b.float()


def _permute_ranks(member: MergeMember, module: str, key: tuple[object, ...]) -> tuple[Tensor, Tensor]:
    """A and B with the module's ranks in a random order."""
    import numpy as np

    a, b = _factors(member, module)
    order = np.random.Generator(np.random.Philox(key=_module_seed(key))).permutation(a.shape[0])
    return a[order], b[:, order]


def _orthonormal(key: tuple[object, ...], rows: int, columns: int) -> Tensor:
    """Orthonormal columns by Haar measure, float64 of (rows, columns): Q of normal numbers, R's signs taken
    into it.
    """
    import torch

    q, r = torch.linalg.qr(_normal(key, rows, columns))
    signed: Tensor = q * torch.where(r.diagonal() < 0, -1.0, 1.0)
    return signed


def _shuffle_modules(member: MergeMember, key: tuple[object, ...]) -> dict[str, str]:
    """The module whose factors each module gets: the next on a random cycle through the layers."""
    import numpy as np

    # Modules that differ in nothing but the layer: same place, shape, rank and scaling.
    columns: dict[tuple[object, ...], list[str]] = {}
    for m in member.spec.modules:
        place = _NUMBER.sub("*", m.name, count=1)
        same = (place, m.kind, m.in_features, m.out_features, m.rank, m.scaling)
        columns.setdefault(same, []).append(m.name)
    origin = {}
    for names in columns.values():
        if len(names) < 2:
            raise MergeError(
                f"The layers of {member.name} cannot be shuffled: no other layer has a module like "
                f"{names[0]}; choose another control or leave it out."
            )
        layers = tuple(member.modules[name].layer for name in names)
        order = np.random.Generator(np.random.Philox(key=_module_seed((*key, layers)))).permutation(
            len(names)
        )
        origin.update({names[order[n]]: names[order[n - 1]] for n in range(len(names))})
    return origin


def _factors(member: MergeMember, module: str) -> tuple[Tensor, Tensor]:
    """A and B as stored, in float32 or better; raises MergeError if they are not finite."""
    import torch

    a, b = (
        factor if factor.dtype == torch.float64 else factor.float() for factor in read_module(member, module)
    )
    if not bool(torch.isfinite(a).all() and torch.isfinite(b).all()):
        raise MergeError(f"{member.name} cannot have a stand-in: {module} contains NaN or infinity.")
    return a, b


def _std(parts: Sequence[Tensor]) -> float:
    """The standard deviation of all entries of all parts about their common mean, in float64."""
    count = sum(part.numel() for part in parts)
    mean = math.fsum(float(part.double().sum()) for part in parts) / count
    squares = math.fsum(float((part.double() - mean).square().sum()) for part in parts)
    return math.sqrt(squares / (count - 1)) if count > 1 else 0.0


def _normal(key: tuple[object, ...], rows: int, columns: int) -> Tensor:
    """Standard normal numbers of a counter-based generator with a key of 128 bits, float64."""
    import numpy as np
    import torch

    generator = np.random.Generator(np.random.Philox(key=_module_seed(key)))
    return torch.from_numpy(generator.standard_normal((rows, columns)))


def _module_seed(key: tuple[object, ...]) -> int:
    text = "\x1f".join(str(part) for part in key)
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:16], "big")


def _dtype(member: MergeMember, kind: str) -> str:
    """The data type to write: the member's if it can be written, else float32."""
    return "float32" if kind == "random-directions" else result_dtype(None, [member])
