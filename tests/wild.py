"""Local Hubs made of real adapters: the folders found on GitHub, and the pool of the recycling paper."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from catalog.bases import BaseDims, dims
from tests.hubs import adapter_config, card, make_repo, safetensors_header_bytes
from tests.shared_data import data

LLAMA = "meta-llama/Llama-3.1-8B-Instruct"


def wild_hub(root: Path) -> int:
    """Every wild folder as a repository of its own, bytes unchanged, no weights; gives their number."""
    folders = [folder for folder in sorted(data("wild").iterdir()) if folder.is_dir()]
    for folder in folders:
        files: dict[str, bytes | str] = {file.name: file.read_bytes() for file in folder.iterdir()}
        owner, _, rest = folder.name.partition("__")
        make_repo(root, f"{owner}/{re.sub('-{2,}|_{2,}', '-', rest)}", files)
    return len(folders)


def paper_hub(root: Path) -> list[str]:
    """The 960 ids of the recycling paper's pool with their real configs and headers at the real shapes.

    The weights behind the headers are holes: only `headers` crawls make sense. Gives the ids.
    """
    facts = json.loads((data("recycling_paper") / "adapter_info.json").read_text())
    ids = (data("recycling_paper") / "pool_ids.txt").read_text().split()
    shape = dims(LLAMA)
    assert shape is not None
    for number, name in enumerate(ids):
        known = facts.get(name)
        if not known:
            make_repo(root, name, {"README.md": card(base_model=LLAMA)})
            continue
        fields = {key: known[key] for key in ("r", "lora_alpha", "lora_dropout", "target_modules")}
        files: dict[str, bytes | str] = {
            "adapter_config.json": json.dumps(adapter_config(base_model_name_or_path=LLAMA, **fields)),
            "README.md": card(base_model=LLAMA),
        }
        folder = make_repo(root, name, files)
        size = _hollow(folder / "adapter_model.safetensors", _shapes(known, shape))
        override = {"files": {"adapter_model.safetensors": {"size": size, "sha256": f"{number:064x}"}}}
        (folder / ".hub.json").write_text(json.dumps(override))
    return ids


def _shapes(known: dict[str, Any], shape: BaseDims) -> Iterable[tuple[str, tuple[int, int]]]:
    """(tensor name, shape) of the LoRA factors that PEFT would save for these targets on Llama-3.1-8B."""
    targets, rank = known["target_modules"], known["r"]
    targets = [targets] if isinstance(targets, str) else targets
    for target in sorted(targets):
        found = shape.shape(target.rpartition(".")[2])
        if found is None:
            continue
        inside, outside = (shape.vocab if width is None else width for width in found)
        part = "self_attn" if target.rpartition(".")[2] in ("q_proj", "k_proj", "v_proj", "o_proj") else "mlp"
        if target == "lm_head":
            places = ["base_model.model.lm_head"]
        elif target == "embed_tokens":
            name = "base_model.model.model.embed_tokens.lora_embedding_"
            yield f"{name}A", (rank, inside)
            yield f"{name}B", (outside, rank)
            continue
        elif "." in target:
            places = [f"base_model.model.{target}"]
        else:
            places = [
                f"base_model.model.model.layers.{layer}.{part}.{target}" for layer in range(shape.layers)
            ]
        for place in places:
            yield f"{place}.lora_A.weight", (rank, inside)
            yield f"{place}.lora_B.weight", (outside, rank)


def _hollow(path: Path, tensors: Iterable[tuple[str, tuple[int, int]]]) -> int:
    """Writes a safetensors file whose header is real and whose values are a hole; gives its size in bytes."""
    header: dict[str, Any] = {}
    end = 0
    for name, shape in tensors:
        begin, end = end, end + 2 * shape[0] * shape[1]
        header[name] = {"dtype": "BF16", "shape": list(shape), "data_offsets": [begin, end]}
    head = safetensors_header_bytes(header)
    path.write_bytes(head)
    with path.open("r+b") as file:
        file.truncate(len(head) + end)
    return len(head) + end
