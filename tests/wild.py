"""Local Hubs made of real adapters: the folders found on GitHub, and the pool of the recycling paper."""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from catalog.adapters import AdapterConfig, BaseDims, BaseTable, dims, initial_spellings, parse_config
from catalog.errors import ConfigError
from crawler.crawl.screening import Evidence, reasons_to_refuse, screen
from tests.hubs import adapter_config, card, make_repo, safetensors_header_bytes
from tests.shared_data import data, index

LLAMA = "meta-llama/Llama-3.1-8B-Instruct"


# What a configuration announces and only the weights file can hold.
ANNOUNCED = frozenset({"has_bias", "lora_bias", "modules_to_save", "trainable_tokens", "target_parameters"})


@dataclass(frozen=True)
class ByConfig:
    """What becomes of the wild folders by configuration, card and base alone, as if each had a sound weights
    file.

    `read` would be measured, `used` the rules accept, `open` are refused for nothing but what the weights
    file may not hold; `reasons` counts the reasons that refuse.
    """

    folders: int
    read: int
    used: int
    open: int
    reasons: dict[str, int]


def by_config(rules: str = "ours") -> ByConfig:
    """The wild folders judged by their configurations alone."""
    table = BaseTable(initial_spellings())
    rows, read, used, undecided = index("wild"), 0, 0, 0
    reasons: Counter[str] = Counter()
    for row in rows:
        config: AdapterConfig | ConfigError
        try:
            config = parse_config((data("wild") / row["dir"] / row["config_file"]).read_bytes())
        except ConfigError as error:
            config = error
        by_name = config.base_model if isinstance(config, AdapterConfig) else None
        evidence = Evidence(
            files=("adapter_config.json", "adapter_model.safetensors"),
            config=config,
            base=table.identify(by_name),
            card_license=row["card_license"],
        )
        refused = set(reasons_to_refuse(screen(evidence), rules))
        reasons.update(refused)
        read += isinstance(config, AdapterConfig) and config.is_lora
        used += not refused
        undecided += bool(refused) and refused <= ANNOUNCED
    return ByConfig(len(rows), read, used, undecided, dict(reasons.most_common()))


def wild_hub(root: Path) -> int:
    """Every wild folder as a repository of its own, bytes unchanged, no weights; gives their number."""
    folders = [folder for folder in sorted(data("wild").iterdir()) if folder.is_dir()]
    for folder in folders:
        files: dict[str, bytes | str] = {file.name: file.read_bytes() for file in folder.iterdir()}
        owner, _, remaining = folder.name.partition("__")
        make_repo(root, f"{owner}/{re.sub('-{2,}|_{2,}', '-', remaining)}", files)
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
        names = facts.get(name)
        if not names:
            make_repo(root, name, {"README.md": card(base_model=LLAMA)})
            continue
        fields = {key: names[key] for key in ("r", "lora_alpha", "lora_dropout", "target_modules")}
        files: dict[str, bytes | str] = {
            "adapter_config.json": json.dumps(adapter_config(base_model_name_or_path=LLAMA, **fields)),
            "README.md": card(base_model=LLAMA),
        }
        folder = make_repo(root, name, files)
        size = _hollow(folder / "adapter_model.safetensors", _shapes(names, shape))
        override = {"files": {"adapter_model.safetensors": {"size": size, "sha256": f"{number:064x}"}}}
        (folder / ".hub.json").write_text(json.dumps(override))
    return ids


def _shapes(names: dict[str, Any], shape: BaseDims) -> Iterable[tuple[str, tuple[int, int]]]:
    """(tensor name, shape) of the LoRA factors that PEFT would save for these targets on Llama-3.1-8B."""
    targets, rank = names["target_modules"], names["r"]
    targets = [targets] if isinstance(targets, str) else targets
    for target in sorted(targets):
        result = shape.shape(target.rpartition(".")[2])
        if result is None:
            continue
        inside, outside = (shape.vocab if width is None else width for width in result)
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
