"""A tiny Llama of random weights, and adapters of random factors for it."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
import transformers
from safetensors.torch import save_file
from torch import Tensor

from merging.members import MergeMember, load_member
from tests.hubs import adapter_config

QKV = ("q_proj", "k_proj", "v_proj")
TARGETS = (*QKV, "o_proj", "gate_proj", "up_proj", "down_proj")


def tiny(seed: int = 0, **config: Any) -> Any:
    """A LlamaForCausalLM in float32 and evaluation mode, none of whose parameters asks for gradients."""
    sizes = {"hidden_size": 32, "intermediate_size": 48, "num_attention_heads": 4, "vocab_size": 64}
    shape = {"num_key_value_heads": 2, "num_hidden_layers": 2}
    torch.manual_seed(seed)
    model = transformers.LlamaForCausalLM(transformers.LlamaConfig(**(sizes | shape | config)))
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() == 2:
                parameter.mul_(4)  # far enough from zero that layers matter
    return model.eval().requires_grad_(False)


def tokens(rows: int = 3, length: int = 7, seed: int = 0) -> Tensor:
    """Random ids."""
    return torch.randint(64, (rows, length), generator=torch.Generator().manual_seed(seed))


def write(
    folder: Path,
    model: Any,
    seed: int,
    rank: int = 4,
    targets: Sequence[str] = TARGETS,
    ranks: Mapping[str, int] | None = None,
    size: float = 0.03,
    dtype: torch.dtype = torch.float32,
    **config: Any,
) -> MergeMember:
    """An adapter of random factors in a folder, as PEFT would have written it."""
    generator = torch.Generator().manual_seed(seed)
    tensors = {}
    for name, module in model.named_modules():
        if name.rpartition(".")[2] not in targets:
            continue
        embedding = isinstance(module, torch.nn.Embedding)
        outside, inside = module.weight.T.shape if embedding else module.weight.shape
        r = (ranks or {}).get(name, rank)
        stem = f"base_model.model.{name}.lora_" + ("embedding_" if embedding else "")
        leaf = "" if embedding else ".weight"
        tensors[f"{stem}A{leaf}"] = torch.randn(r, inside, generator=generator).to(dtype)
        tensors[f"{stem}B{leaf}"] = (torch.randn(outside, r, generator=generator) * size).to(dtype)
    folder.mkdir(parents=True)
    save_file(tensors, folder / "adapter_model.safetensors")
    fields: dict[str, Any] = {"r": rank, "lora_alpha": 2 * rank, "target_modules": sorted(targets)}
    document = adapter_config(**fields | {"rank_pattern": dict(ranks or {})} | config)
    (folder / "adapter_config.json").write_text(json.dumps(document))
    return load_member(folder)


def mixed(place: Path, model: Any) -> list[MergeMember]:
    """Members as they are met: ranks, scalings and targets of their own, one of them rank-stabilised."""
    return [
        write(place / "m0", model, 0, rank=2, lora_alpha=16),
        write(place / "m1", model, 1, rank=6, targets=("q_proj", "k_proj"), use_rslora=True),
        write(place / "m2", model, 2, rank=3, ranks={"model.layers.1.self_attn.q_proj": 5}, lora_alpha=1),
        write(place / "m3", model, 3, rank=4, targets=("v_proj", "down_proj", "lm_head")),
    ]
