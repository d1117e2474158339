"""A LoRA adapter as a GGUF file, which llama.cpp and Ollama load next to a base model in GGUF.

llama.cpp scales by alpha over the rank of each tensor (src/llama-adapter.h, `get_scale`): here all tensors
have one rank, alpha is that rank, and the scaling is folded into B. In Llama's architecture the rows of q and
k are in another order than in transformers (convert_hf_to_gguf.py, `permute`), and so are those of B; A
stays.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from catalog.adapters import dims
from catalog.errors import MergeError, UsageError
from catalog.extras import require_extra
from catalog.files import read_limited
from merging.members import (
    MergeMember,
    Shape,
    base_of,
    base_source,
    load_members,
    modules_sharing_weights,
    portable_form,
    read_module,
    shapes,
    write_text,
)

if TYPE_CHECKING:
    from torch import Tensor

# By model_type: the architecture of llama.cpp, and whether it turns the rows of q and k.
_ARCHITECTURES = {
    "llama": ("LLAMA", True),
    "mistral": ("LLAMA", True),
    "qwen2": ("QWEN2", False),
    "qwen3": ("QWEN3", False),
    "gemma": ("GEMMA", False),
    "gemma2": ("GEMMA2", False),
    "gemma3_text": ("GEMMA3", False),
}
_MOST_CONFIG = 1024 * 1024
GGUF_NAME = "adapter.gguf"


@dataclass(frozen=True, slots=True)
class GgufBase:
    """What the names and rows of a GGUF adapter depend on: model_type, numbers of heads and of layers."""

    model_type: str
    heads: int
    key_value_heads: int
    layers: int


@dataclass(frozen=True, slots=True)
class GgufLayout:
    """Where llama.cpp looks for factors: the architecture, the tensors' names by module, and the numbers of
    heads whose rows are in its order, 0 for the rows as they are.
    """

    architecture: str
    names: Mapping[str, str]
    heads: Mapping[str, int]


def gguf_base(base: str | None) -> GgufBase:
    """The base model in a folder with its config.json, or of this name in the built-in table.

    Raises UsageError if neither is there, or llama.cpp's own converter is needed.
    """
    if base and (Path(base) / "config.json").is_file():
        described = _of_folder(Path(base) / "config.json")
    elif base and (widths := dims(base)):
        described = GgufBase(widths.type, widths.q // widths.head, widths.kv // widths.head, widths.layers)
    else:
        raise UsageError(
            f"The heads and layers of {base or 'the base model'} are not known; give the folder of the base "
            "model, or a folder with its config.json, as `base`."
        )
    if described.model_type not in _ARCHITECTURES:
        known = ", ".join(_ARCHITECTURES)
        raise UsageError(
            f"GGUF adapters are written for {known}, not for {described.model_type}; use "
            "convert_lora_to_gguf.py of llama.cpp with the normalised adapter."
        )
    return described


def write_gguf(
    member: MergeMember,
    file: Path,
    *,
    base: str | None = None,
    dtype: str = "float32",
    progress: Callable[[int, int], None] | None = None,
) -> int:
    """Writes an adapter as a GGUF file, and returns its rank.

    `base` is as for `gguf_base`, by default the base that the adapter names; `dtype` is float32 or float16.
    Raises UsageError, MergeError for a module that llama.cpp has no name for and for values that `dtype`
    cannot represent, and the errors of `load_members`.
    """
    require_extra("eval", "A GGUF file")
    import gguf
    import torch

    if dtype not in ("float32", "float16"):
        raise UsageError(f"A GGUF adapter is stored in float32 or float16, not in {dtype}.")
    (member,) = load_members([member], base=base)
    union = shapes([member])
    layout = gguf_layout(union, base_source(base, base_of([member], base)), member.name)
    form = portable_form(union, {shape.name: shape.largest for shape in union}, None)
    writer = gguf.GGUFWriter(file, layout.architecture)
    writer.add_type(gguf.GGUFType.ADAPTER)
    writer.add_string(gguf.Keys.Adapter.TYPE, "lora")
    writer.add_float32(gguf.Keys.Adapter.LORA_ALPHA, float(form.rank))
    for number, shape in enumerate(union):
        name, heads = layout.names[shape.name], layout.heads[shape.name]
        a, b = (factor.float() for factor in read_module(member, shape.name))
        b = b * shape.scalings[0]
        if heads:
            b = _llama_rows(b, heads)
        a, b = form.pad(a, b)
        if shape.kind == "embedding":
            a = a.T
        for side, factor in (("lora_a", a), ("lora_b", b)):
            values = factor.to(getattr(torch, dtype)).contiguous()
            if not bool(torch.isfinite(values).all()):
                if not bool(torch.isfinite(factor).all()):
                    raise MergeError(f"{shape.name} of {member.name} contains NaN or infinity.")
                raise MergeError(
                    f"{shape.name} of {member.name} is not finite in {dtype}; write float32 instead."
                )
            writer.add_tensor(f"{name}.weight.{side}", values.numpy())
        if progress is not None:
            progress(number + 1, len(union))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return form.rank


def gguf_layout(modules: Sequence[Shape], base: str | None, adapter: str) -> GgufLayout:
    """How the modules of an adapter of this name are written; reads no weights and writes nothing.

    `base` is as for `gguf_base`. Raises its errors, UsageError if the extra `eval` is not installed, and
    MergeError for a module that llama.cpp has no name for, or that has other rows than the base's heads.
    """
    require_extra("eval", "A GGUF file")
    import gguf

    described = gguf_base(base)
    _refuse_tied_layers(modules, base, adapter)
    architecture, turned = _ARCHITECTURES[described.model_type]
    kind = gguf.MODEL_ARCH[architecture]
    table = gguf.get_tensor_name_map(kind, described.layers)
    counts = {"attn_q": described.heads, "attn_k": described.key_value_heads} if turned else {}
    names: dict[str, str] = {}
    heads: dict[str, int] = {}
    for shape in modules:
        name = table.get_name(shape.name)
        if name is None:
            raise MergeError(f"{adapter} cannot be written as GGUF: llama.cpp has no name for {shape.name}.")
        names[shape.name] = name
        count = heads[shape.name] = counts.get(name.rpartition(".")[2], 0)
        if count and shape.out_features % (2 * count):
            raise MergeError(
                f"{shape.out_features} rows of {shape.name} are not those of {count} heads; name the base of "
                f"{adapter} (`base`)."
            )
    return GgufLayout(gguf.MODEL_ARCH_NAMES[kind], names, heads)


def _refuse_tied_layers(modules: Sequence[Shape], base: str | None, adapter: str) -> None:
    """Raises MergeError for factors of an output head or an embedding that are one in the base model.

    A file of such a base has no tensor of its own for the head, and llama.cpp does not load the adapter; one
    of the embedding ends the program there. Raises UsageError where the folder that says so is not there.
    """
    layers = [
        module.name
        for module in modules
        if module.name.rpartition(".")[2] == "lm_head" or module.kind == "embedding"
    ]
    if not layers:
        return
    if not base or not (Path(base) / "config.json").is_file():
        raise UsageError(
            f"{adapter} adapts {layers[0]}; give the folder of the base model as `base`, since llama.cpp "
            "does not load that where the head is the embedding."
        )
    for layer in layers:
        if modules_sharing_weights(Path(base), layer):
            raise MergeError(
                f"{adapter} cannot be written as GGUF: the head and the embedding of its base model "
                f"are one, and llama.cpp does not load factors of {layer}; leave it out by `without`."
            )


def add_gguf(
    member: MergeMember,
    folder: Path,
    *,
    base: str | None = None,
    dtype: str = "float32",
    modelfile: bool = True,
) -> Path:
    """Writes `adapter.gguf`, and a Modelfile for Ollama, into the folder of an adapter; the former's path.

    Raises what `write_gguf` raises; a file appears complete or not at all.
    """
    target = folder / GGUF_NAME
    part = folder / f".{GGUF_NAME}.part"
    try:
        write_gguf(member, part, base=base, dtype=dtype)
        part.replace(target)
    finally:
        part.unlink(missing_ok=True)
    if modelfile:
        text = "# FROM: the name of the base model in Ollama, or its GGUF file\nFROM base.gguf\n"
        write_text(folder / "Modelfile", f"{text}ADAPTER ./{GGUF_NAME}\n")
    return target


def _llama_rows(b: Tensor, heads: int) -> Tensor:
    """The rows of B of q or k in llama.cpp's order: the halves of each head in turn."""
    out, rank = b.shape
    return b.reshape(heads, 2, out // heads // 2, rank).swapaxes(1, 2).reshape(out, rank)


def _of_folder(file: Path) -> GgufBase:
    advice = "give the folder of a base model"
    data = read_limited(file, _MOST_CONFIG, kind="a model's configuration", advice=advice, error=UsageError)
    try:
        config: dict[str, Any] = json.loads(data)
        config = config.get("text_config") or config
        heads = int(config["num_attention_heads"])
        key_value_heads = int(config.get("num_key_value_heads") or heads)
        layers = int(config["num_hidden_layers"])
        return GgufBase(str(config["model_type"]), heads, key_value_heads, layers)
    except (KeyError, TypeError, ValueError, AttributeError, RecursionError) as error:
        raise UsageError(f"{file} is not the configuration of a decoder: {error}.") from error
