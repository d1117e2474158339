"""The names of an adapter's tensors: which module of the base model each belongs to, by the same rules
everywhere.

Programs write one module in many ways: wrappers of data-parallel training, FSDP, torch.compile and activation
checkpointing leave their parts in the path, PEFT's prefix is repeated, lost, or stands behind another one,
and versions of transformers move `model.` and `language_model.` about. If the modules of the base model are
known they decide, else fixed rules. An ambiguous name is left as it is and reported, never guessed. PEFT
itself loads only its own spelling (`peft_names`), and only warns about missing keys.

Sources: PEFT's checkpoint format (https://huggingface.co/docs/peft/developer_guides/checkpoint); the prefixes
of torch.nn.parallel, torch.distributed.fsdp, torch._dynamo and torch.utils.checkpoint; the renaming of
https://github.com/huggingface/transformers/pull/38627 (language_model.model → model.language_model).
"""

from __future__ import annotations

import functools
import re
from collections import Counter
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Literal

from catalog.adapters.base_modules import BaseModules
from catalog.adapters.header import Header, Tensor

Kind = Literal["linear", "embedding"]
Side = Literal["A", "B"]
Leaf = Literal["weight", "bias"]

PREFIX = "base_model.model."
CAUSAL = "CAUSAL_LM"
# Parts of a path that wrappers add, whole: no model of transformers has a module of such a name.
WRAPPERS = frozenset(
    {"module", "_orig_mod", "_fsdp_wrapped_module", "_checkpoint_wrapped_module", "_fpw_module"}
    | {"_forward_module"}
)
# Module names longer than this, or with control characters, are not names of a model's modules.
MAX_NAME = 1000
# The adapters of one base model have the same names: this many are cached.
_REMEMBERED = 1 << 14
_FACTOR = re.compile(
    r"(?P<module>.+?)\.lora_(?P<embedding>embedding_)?(?P<side>[AB])"
    r"(?:\.(?P<adapter>(?!weight\Z|bias\Z)[^.]+))?(?:\.(?P<leaf>weight|bias))?\Z"
)
# Other words for A and B, read only behind PEFT's own prefix: torchtune and MLX use them for other layouts.
_DIALECT = re.compile(
    r"(?P<module>.+?)\.(?:lora_(?P<embedding>embedding_)?(?P<side>[ab])(?:\.(?!weight\Z)[^.]+)?|lora\.(?P<word>down|up))"
    r"\.weight\Z"
)
_SIDES: Mapping[str, Side] = {"A": "A", "B": "B", "a": "A", "b": "B", "down": "A", "up": "B"}
_OWN_NAME = re.compile(r"(?<=[AB])\.default(?=\.(?:weight|bias)\Z|\Z)")
_SIDED = frozenset({"lora_A", "lora_B", "lora_embedding_A", "lora_embedding_B"})
# What transformers moved below `model.` with its models of vision and text.
_MOVED_HEADS = frozenset({"vision_tower", "multi_modal_projector", "visual"})
# The first reading of names, by which fingerprints of version 1 were made.
_FIRST_PREFIXES = ("module.", "_orig_mod.", PREFIX)


@dataclass(frozen=True, slots=True)
class FactorKey:
    """One half of a LoRA module: which module, which half, and whether it is an embedding's."""

    module: str
    side: Side
    kind: Kind
    leaf: Leaf = "weight"


@dataclass(frozen=True, slots=True)
class ModuleNames:
    """The reading of the names of one file.

    `keys` has the place of each LoRA factor by the tensor's name. `written` gives for each module the name
    under which PEFT finds it in the base: different from the module's own only if versions of transformers
    differ and the base model is not known. `absent` are the modules, sorted, that the base model does not
    have; empty if the base model is not known. `kept` are the parts of paths that are the base's own, though
    wrappers use them too.
    """

    keys: Mapping[str, FactorKey]
    written: Mapping[str, str] = field(default_factory=dict)
    absent: tuple[str, ...] = ()
    kept: frozenset[str] = frozenset()


def factor_key(tensor_name: str) -> FactorKey | None:
    """The module and side of a tensor by fixed rules, or None if it is not a LoRA factor."""
    factor = _factor(tensor_name, frozenset())
    return None if factor is None else factor[1]


def read_names(header: Header, base: BaseModules | None = None, task: str | None = CAUSAL) -> ModuleNames:
    """The places of all LoRA factors of a file; never raises for any name.

    With the base's modules each name must mean exactly one of them, of the factors' widths: one that differs
    from a module's in `model.` or `language_model.` alone is taken for it, unless a second name means the
    same. A `task` other than a causal model's has another class of model, which may lack `model.`: then what
    is written keeps it or leaves it out as the file does.
    """
    keep = base.parts & WRAPPERS if base is not None else frozenset()
    keys: dict[str, FactorKey] = {}
    written: dict[str, str] = {}
    for tensor in header.tensors:
        factor = _factor(tensor.name, keep)
        if factor is not None:
            path, key = factor
            keys[tensor.name] = key
            written.setdefault(key.module, _live(path) if task in (None, CAUSAL) else path)
    if base is None:
        return ModuleNames(keys, written)
    places = _places(header.tensors, keys, base)
    if any(place not in (None, module) for module, place in places.items()):
        keys = {name: replace(key, module=places[key.module] or key.module) for name, key in keys.items()}
    return ModuleNames(
        keys,
        written={
            places[old] or old: places[old] or old if task in (None, CAUSAL) else path
            for old, path in written.items()
        },
        absent=tuple(sorted(module for module, place in places.items() if place is None)),
        kept=keep,
    )


def peft_names(header: Header, names: ModuleNames) -> dict[str, str]:
    """The name under which PEFT finds each tensor of a file, by the tensor's own name.

    Other tensors keep their names without the additions of wrappers, repeated prefixes, and the prefix if no
    factor has it.
    """
    bare = bool(names.keys) and not any(PREFIX in name for name in names.keys)
    modules = {
        factor[0]: names.written[names.keys[tensor.name].module]
        for tensor in header.tensors
        if tensor.name in names.keys and (factor := _factor(tensor.name, names.kept))
    }
    return {
        tensor.name: _peft_name(names.keys[tensor.name], names.written)
        if tensor.name in names.keys
        else _peft_path(tensor.name, names.kept, modules, bare=bare)
        for tensor in header.tensors
    }


def names_peft_misses(header: Header, names: ModuleNames) -> tuple[str, ...]:
    """The names of factors under which PEFT does not look for them, in the order of the file.

    PEFT reads the name of the adapter that it loads as, `default`, in front of the leaf too.
    """
    expected_names = ((tensor.name, names.keys.get(tensor.name)) for tensor in header.tensors)
    return tuple(
        name
        for name, key in expected_names
        if key is not None and _OWN_NAME.sub("", name) != _peft_name(key, names.written)
    )


def canonical_tensor(name: str) -> str:
    """A tensor's name without the additions of programs: the same for all spellings that the fixed rules
    know."""
    key = factor_key(name)
    if key is None:
        if len(name) > MAX_NAME or not name.isprintable():
            return name
        below = ".".join(_below_prefix(_unwrap(name.split("."), ())))
        return _move_names(_live(below)) if below else name
    return _factor_of_name(key, key.module)


@functools.lru_cache(maxsize=_REMEMBERED)
def first_key(name: str) -> FactorKey | None:
    """The place of a LoRA factor as names were first read, by prefixes in front alone; None for others."""
    if len(name) > MAX_NAME or not name.isprintable():
        return None
    while start := next((p for p in _FIRST_PREFIXES if name.startswith(p)), None):
        name = name[len(start) :]
    match = _FACTOR.match(name)
    return None if match is None else _key(match["module"], match)


def first_tensor(name: str) -> str:
    """A tensor's name as digests of tensors were first made of it."""
    key = first_key(name)
    if key is None:
        # The module of a factor next to it: prefixes are removed by one rule.
        first = first_key(f"{name}.lora_A.weight")
        return first.module if first else name
    return _factor_of_name(key, key.module)


@functools.lru_cache(maxsize=_REMEMBERED)
def _factor(name: str, keep: frozenset[str]) -> tuple[str, FactorKey] | None:
    """The path of a factor's module without the additions of programs, and its place; None if it is not a
    factor."""
    if len(name) > MAX_NAME or not name.isprintable():
        return None
    plain = ".".join(_unwrap(name.split("."), keep))
    match = _FACTOR.match(plain) or (_DIALECT.match(plain) if PREFIX in plain else None)
    below = _below_prefix(match["module"].split(".")) if match else []
    if match is None or not any(below) or not _SIDED.isdisjoint(below):
        return None
    path = ".".join(below)
    return path, _key(_move_names(_live(path)), match)


def _peft_path(name: str, keep: frozenset[str], modules: Mapping[str, str], *, bare: bool) -> str:
    """A tensor's name without wrappers, and its module as in the base where a factor of it has another name.

    PEFT's prefix is in front where it stood in the name, or where `bare` asks for it.
    """
    parts = _unwrap(name.split("."), keep)
    below = _below_prefix(parts)
    if below == parts and not bare:
        return ".".join(parts)
    for end in range(len(below), 0, -1):
        if (module := ".".join(below[:end])) in modules:
            return PREFIX + ".".join([modules[module], *below[end:]])
    return PREFIX + ".".join(below)


def _key(module: str, match: re.Match[str]) -> FactorKey:
    groups = match.groupdict()
    return FactorKey(
        module=module,
        side=_SIDES[groups["side"] or groups["word"]],
        kind="embedding" if groups["embedding"] else "linear",
        leaf="bias" if groups.get("leaf") == "bias" else "weight",
    )


def _unwrap(parts: Sequence[str], keep: Collection[str]) -> list[str]:
    return [part for part in parts if part not in WRAPPERS or part in keep]


def _below_prefix(parts: Sequence[str]) -> list[str]:
    """The part after the last of PEFT's prefixes; the whole name without one."""
    ends = [at + 2 for at in range(len(parts) - 1) if parts[at] == "base_model" and parts[at + 1] == "model"]
    return list(parts[max(ends, default=0) :])


@functools.lru_cache(maxsize=_REMEMBERED)
def _live(path: str) -> str:
    """A path as a causal model of transformers has it: with `model.` once, where it was lost or repeated."""
    parts = path.split(".")
    while parts[:2] == ["model", "model"] or (parts[0] == "base_model" and len(parts) > 1):
        parts = parts[1:]
    if parts[:2] == ["model", "lm_head"]:
        parts = parts[1:]
    if parts[0] == "embed_tokens" or (parts[0] == "layers" and len(parts) > 1 and parts[1].isdigit()):
        parts = ["model", *parts]
    return ".".join(parts)


def _move_names(path: str) -> str:
    """A path of a model of vision and text as transformers has it since its names were moved."""
    parts = path.split(".")
    if parts[0] in _MOVED_HEADS:
        return f"model.{path}"
    remaining = parts[1:] if parts[:2] == ["model", "language_model"] else parts
    if remaining[0] != "language_model":
        return path
    remaining = remaining[1:]
    while remaining[:1] == ["model"]:
        remaining = remaining[1:]
    if remaining[:1] == ["lm_head"]:
        return ".".join(remaining)
    return (
        ".".join(["model", "language_model", *remaining])
        if remaining[:1] in (["layers"], ["embed_tokens"])
        else path
    )


def _places(
    tensors: Iterable[Tensor], keys: Mapping[str, FactorKey], base: BaseModules
) -> dict[str, str | None]:
    """The base model's module that each name means, None if it means none or shares it with another name."""
    widths: dict[str, dict[Side, int]] = {}
    for tensor in tensors:
        key = keys.get(tensor.name)
        if key is not None:
            sides = widths.setdefault(key.module, {})
            if key.leaf == "weight" and len(tensor.shape) == 2:
                sides[key.side] = tensor.shape[1] if key.side == "A" else tensor.shape[0]
    places = {
        module: base.place(module, sides.get("A", 0), sides.get("B", 0)) for module, sides in widths.items()
    }
    shared = Counter(place for place in places.values() if place is not None)
    return {
        module: place if place is not None and (shared[place] == 1 or place == module) else None
        for module, place in places.items()
    }


def _peft_name(key: FactorKey, written: Mapping[str, str]) -> str:
    return PREFIX + _factor_of_name(key, written[key.module], embedding_leaf=False)


def _factor_of_name(key: FactorKey, module: str, *, embedding_leaf: bool = True) -> str:
    embedding = "embedding_" if key.kind == "embedding" else ""
    leaf = "" if embedding and not embedding_leaf and key.leaf == "weight" else f".{key.leaf}"
    return f"{module}.lora_{embedding}{key.side}{leaf}"
