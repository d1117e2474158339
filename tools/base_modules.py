"""Makes catalog/adapters/base_modules.json: the modules of known base models that a LoRA can adapt, with
their widths.

    .venv/bin/python -m tools.base_modules

Each model is built from its dimensions in bases.json on the meta device, without weights or network.
Modules outside the layers are listed by name, those inside once with `layers`, which all layers must share.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from catalog.adapters.base_modules import built_modules

ROOT = Path(__file__).resolve().parent.parent
TARGET = ROOT / "catalog" / "adapters" / "base_modules.json"


def document() -> str:
    """The text of the data file."""
    dimensions = json.loads((ROOT / "catalog" / "adapters" / "bases.json").read_text(encoding="utf-8"))[
        "dims"
    ]
    lines = [f" {json.dumps(name)}: {json.dumps(_describe(name, dims))}" for name, dims in dimensions.items()]
    return "{\n" + ",\n".join(lines) + "\n}\n"


def _describe(name: str, dims: dict[str, Any]) -> dict[str, Any]:
    """Layers, and widths (in, out) of the modules inside and outside them; null for the vocabulary."""
    shapes = built_modules(_config(dims)).shapes
    inside: dict[str, tuple[int | None, int | None]] = {}
    outside: dict[str, tuple[int | None, int | None]] = {}
    for module, shape in shapes.items():
        widths = (
            None if shape[0] == dims["vocab"] else shape[0],
            None if shape[1] == dims["vocab"] else shape[1],
        )
        head, _, tail = module.partition("model.layers.")
        if head or not tail:
            outside[module] = widths
            continue
        short = tail.partition(".")[2]
        if inside.setdefault(short, widths) != widths:
            raise ValueError(f"{name}: {module} is not as in the other layers")
    if len(shapes) != len(outside) + dims["layers"] * len(inside):
        raise ValueError(f"{name}: its layers hold different modules")
    return {"layers": dims["layers"], "inside": inside, "outside": outside}


def _config(dims: dict[str, Any]) -> dict[str, Any]:
    """A config.json for a model of these dimensions."""
    head = dims["head"]
    return {
        "model_type": dims["type"],
        "hidden_size": dims["hidden"],
        "intermediate_size": dims["mlp"],
        "num_hidden_layers": dims["layers"],
        "num_attention_heads": dims["q"] // head,
        "num_key_value_heads": dims["kv"] // head,
        "head_dim": head,
        "vocab_size": dims["vocab"],
    }


if __name__ == "__main__":
    TARGET.write_text(document(), encoding="utf-8")
