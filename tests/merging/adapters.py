"""Small adapters in folders and in memory, and their dense updates in float64."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from catalog.adapters.config import ScalingRule, parse_config
from catalog.adapters.names import factor_key
from merging.members import MergeMember, Stack
from merging.methods import ModuleWork, Update, find_method
from merging.static import MergeReport, carry_out, plan
from tests.hubs import adapter_config

Q = "model.layers.0.self_attn.q_proj"
SHAPES: Mapping[str, tuple[int, int]] = {
    "model.layers.0.self_attn.q_proj": (12, 12),
    "model.layers.0.self_attn.v_proj": (12, 8),
    "model.layers.0.mlp.down_proj": (20, 12),
    "model.layers.1.self_attn.q_proj": (12, 12),
}
ALL = tuple(SHAPES)


def merge(
    members: Sequence[Path | MergeMember],
    method: str,
    out: Path,
    *,
    overwrite: bool = False,
    pool: Mapping[str, str] | None = None,
    progress: Callable[[int, int], None] | None = None,
    **options: Any,
) -> MergeReport:
    """The members merged by a method into a folder; `options` are those of `plan`."""
    return carry_out(plan(members, method, **options), out, overwrite=overwrite, pool=pool, progress=progress)


def adapter(
    folder: Path,
    seed: int = 0,
    rank: int = 3,
    modules: Sequence[str] = ALL,
    ranks: Mapping[str, int] | None = None,
    dtype: torch.dtype = torch.float32,
    factors: Mapping[str, tuple[Tensor, Tensor]] | None = None,
    **config: Any,
) -> Path:
    """Writes an adapter of random factors (or those given) and returns its folder."""
    generator = torch.Generator().manual_seed(seed)
    tensors = {}
    for name in modules:
        r = (ranks or {}).get(name, rank)
        if factors is not None:
            a, b = factors[name]
        else:
            inside, outside = SHAPES[name]
            a, b = torch.randn(r, inside, generator=generator), torch.randn(outside, r, generator=generator)
        tensors[f"base_model.model.{name}.lora_A.weight"] = a.to(dtype).contiguous()
        tensors[f"base_model.model.{name}.lora_B.weight"] = b.to(dtype).contiguous()
    folder.mkdir(parents=True)
    save_file(tensors, folder / "adapter_model.safetensors")
    targets = sorted({name.rpartition(".")[2] for name in modules})
    fields: dict[str, Any] = {"r": rank, "lora_alpha": 2 * rank, "target_modules": targets}
    document = adapter_config(**fields | {"rank_pattern": dict(ranks or {})} | config)
    (folder / "adapter_config.json").write_text(json.dumps(document))
    return folder


def deltas(folder: Path) -> dict[str, Tensor]:
    """s B A of every module by name, in float64, from the files alone."""
    rules = ScalingRule(parse_config((folder / "adapter_config.json").read_bytes()))
    halves: dict[str, dict[str, Tensor]] = {}
    for name, tensor in load_file(folder / "adapter_model.safetensors").items():
        key = factor_key(name)
        assert key is not None
        halves.setdefault(key.module, {})[key.side] = tensor.double()
    return {name: rules.scaling(name) * pair["B"] @ pair["A"] for name, pair in halves.items()}


def total(weights: Sequence[float], folders: Sequence[Path]) -> dict[str, Tensor]:
    """The weighted sum of dense updates by module; a missing module adds nothing."""
    result: dict[str, Tensor] = {}
    for weight, folder in zip(weights, folders, strict=True):
        for name, delta in deltas(folder).items():
            result[name] = result.get(name, torch.zeros_like(delta)) + weight * delta
    return result


def distance(left: Mapping[str, Tensor], right: Mapping[str, Tensor]) -> float:
    """The relative Frobenius distance of two updates over all modules."""
    assert set(left) == set(right)
    square = sum(float((left[name] - right[name]).square().sum()) for name in left)
    complete = sum(float(right[name].square().sum()) for name in right)
    return float((square / complete) ** 0.5)


def stack_of(*pairs: tuple[Any, Any], name: str = Q) -> Stack:
    """A stack of (A, B) pairs with scaling 1, as lists or tensors."""
    tensors = [(torch.as_tensor(a).float(), torch.as_tensor(b).float()) for a, b in pairs]
    return Stack(
        name,
        torch.cat([a for a, _ in tensors]),
        torch.cat([b for _, b in tensors], 1),
        tuple(a.shape[0] for a, _ in tensors),
        (1.0,) * len(tensors),
    )


def random_stack(ranks: Sequence[int], inside: int = 14, outside: int = 10, seed: int = 0) -> Stack:
    """A stack of random members."""
    generator = torch.Generator().manual_seed(seed)
    return stack_of(
        *(
            (torch.randn(r, inside, generator=generator), torch.randn(outside, r, generator=generator))
            for r in ranks
        )
    )


def dense(stack: Stack) -> list[Tensor]:
    """Each member's update in float64."""
    return [stack.b[:, place].double() @ stack.a[place].double() for place in stack.ranges()]


def work(
    method: str,
    stack: Stack,
    weights: Sequence[float] | None = None,
    rank: int | None = None,
    seed: int = 0,
    names: Sequence[str] | None = None,
    memory: int = 1 << 29,
    **options: Any,
) -> ModuleWork:
    """What a method sees of one module, with its default weights and all the rank there is unless told."""
    row = find_method(method)
    count = len(stack.ranks)
    arguments = row.default_weights(count) if weights is None else tuple(weights)
    limit = stack.a.shape[0] if row.full_rank else min(stack.a.shape[1], stack.b.shape[0])
    return ModuleWork(
        stack=stack,
        weights=tuple(w / sum(arguments) for w in arguments) if row.normalised else arguments,
        rank=limit if rank is None else rank,
        names=tuple(names) if names else tuple(str(n) for n in range(count)),
        options=row.options(options),
        seed=seed,
        memory=memory,
    )


def run(method: str, stack: Stack, *words: Any, **options: Any) -> Update:
    """One method on the module that `work` gives it."""
    return find_method(method).run(work(method, stack, *words, **options))


def product(update: Update) -> Tensor:
    """b a in float64."""
    return update.b.double() @ update.a.double()


def gap(update: Update, expected: Tensor) -> float:
    """The relative Frobenius distance of a merged module from what was expected."""
    return float((product(update) - expected).norm() / expected.norm())


def rotate(stack: Stack, seed: int = 0, orthogonal: bool = True) -> Stack:
    """The same updates with every member's factors changed, A to G A and B to B G^-1."""
    generator = torch.Generator().manual_seed(seed)
    pairs = []
    for place in stack.ranges():
        g = torch.randn(place.stop - place.start, place.stop - place.start, generator=generator).double()
        g = torch.linalg.qr(g).Q if orthogonal else g + 2 * torch.eye(len(g))
        pairs.append((g @ stack.a[place].double(), stack.b[:, place].double() @ torch.linalg.inv(g)))
    return stack_of(*pairs)
