"""Small, valid LoRA repositories for a Hub in a folder."""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from safetensors.numpy import save

BASE = "meta-llama/Llama-3.1-8B-Instruct"
SETTLED = 1_700_000_000  # a date of files that is past, so that facts of them may be remembered


def make_repo(
    root: Path,
    repo_id: str,
    files: Mapping[str, bytes | str] | None = None,
    hub: Mapping[str, Any] | None = None,
    *,
    mtime: float | None = SETTLED,
) -> Path:
    """Writes a repository below `root` and returns its folder; `files` defaults to a complete adapter.

    Every file gets the same fixed date unless `mtime` is None.
    """
    folder = root / repo_id
    folder.mkdir(parents=True, exist_ok=True)
    for path, content in (lora_files() if files is None else files).items():
        target = folder / path
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_bytes(content.encode() if isinstance(content, str) else content)
        if mtime is not None:
            os.utime(target, (mtime, mtime))
    if hub is not None:
        (folder / ".hub.json").write_text(json.dumps(hub))
    return folder


def lora_files(base: str = BASE, **over: Any) -> dict[str, bytes | str]:
    """The three files of a small adapter; `over` changes its configuration."""
    config = adapter_config(base_model_name_or_path=base, **over)
    return {
        "README.md": card(base_model=base),
        "adapter_config.json": json.dumps(config, indent=2),
        "adapter_model.safetensors": safetensors_bytes(lora_tensors(r=config["r"]), {"format": "pt"}),
    }


def adapter_config(**over: Any) -> dict[str, Any]:
    """A configuration as PEFT writes it for a plain causal LM adapter of rank 4."""
    config: dict[str, Any] = {
        "alpha_pattern": {},
        "auto_mapping": None,
        "base_model_name_or_path": BASE,
        "bias": "none",
        "exclude_modules": None,
        "fan_in_fan_out": False,
        "inference_mode": True,
        "init_lora_weights": True,
        "layer_replication": None,
        "layers_pattern": None,
        "layers_to_transform": None,
        "loftq_config": {},
        "lora_alpha": 8,
        "lora_bias": False,
        "lora_dropout": 0.0,
        "modules_to_save": None,
        "peft_type": "LORA",
        "r": 4,
        "rank_pattern": {},
        "revision": None,
        "target_modules": ["q_proj", "v_proj"],
        "task_type": "CAUSAL_LM",
        "trainable_token_indices": None,
        "use_dora": False,
        "use_rslora": False,
    }
    return config | over


def card(body: str = "# An adapter\n", **front: Any) -> str:
    """A model card with this front matter (JSON is YAML); PEFT's own keys unless they are given."""
    front = {"library_name": "peft", "base_model": BASE} | front
    lines = [f"{key}: {json.dumps(value)}" for key, value in front.items() if value is not None]
    return "\n".join(["---", *lines, "---", "", body])


def safetensors_bytes(
    tensors: Mapping[str, np.ndarray[Any, Any]], metadata: Mapping[str, str] | None = None
) -> bytes:
    """A safetensors file of these tensors."""
    return save(dict(tensors), None if metadata is None else dict(metadata))


def safetensors_header_bytes(header: Any, *, length: int | None = None, body: bytes = b"") -> bytes:
    """A file that begins with this header (a JSON value, or bytes as they are); `length` may lie about it."""
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return (len(text) if length is None else length).to_bytes(8, "little") + text + body


def lora_tensors(
    layers: int = 1,
    hidden: Mapping[str, tuple[int, int]] | int = 8,
    r: int = 4,
    targets: Iterable[str] = ("q_proj", "v_proj"),
    seed: int = 0,
) -> dict[str, np.ndarray[Any, Any]]:
    """LoRA factors under PEFT's names: A is (r, in), B is (out, r), float32.

    `hidden` is one size for every target, or target → (in, out).
    """
    random = np.random.default_rng(seed)
    tensors: dict[str, np.ndarray[Any, Any]] = {}
    for layer in range(layers):
        for target in targets:
            size_in, size_out = (hidden, hidden) if isinstance(hidden, int) else hidden[target]
            block = "mlp" if target in ("gate_proj", "up_proj", "down_proj") else "self_attn"
            module = f"base_model.model.model.layers.{layer}.{block}.{target}"
            tensors[f"{module}.lora_A.weight"] = random.standard_normal((r, size_in), dtype=np.float32)
            tensors[f"{module}.lora_B.weight"] = random.standard_normal((size_out, r), dtype=np.float32)
    return tensors
