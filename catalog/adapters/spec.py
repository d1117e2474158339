"""A configuration and a safetensors header, joined into AdapterSpec: every LoRA module with shape, rank and
scaling.

`catalog.adapters.names` maps tensors to modules.
"""

from __future__ import annotations

import functools
import re
from collections import defaultdict
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field

from catalog.adapters.base_modules import modules_of_spelling
from catalog.adapters.config import AdapterConfig, ScalingRule
from catalog.adapters.header import Header, Tensor
from catalog.adapters.names import Kind, ModuleNames, canonical_tensor, names_peft_misses, read_names
from catalog.adapters.records import Finding
from catalog.errors import ConfigError

# The kind of a tensor that is not a LoRA factor, by a part of its name; the first match counts.
_OTHER_KINDS: tuple[tuple[str, str], ...] = (
    (".lora_magnitude_vector", "magnitude"),
    # VeLoRA compresses activations for its backward pass; the forward pass is plain LoRA.
    (".lora_velora_embed", "auxiliary"),
    (".trainable_tokens_", "trainable_tokens"),
    (".original_module.", "base_copy"),
    (".modules_to_save.", "saved"),
    (".base_layer.", "base_copy"),
    (".lora_", "unknown"),
)
_INSIDE_A_LAYER = re.compile(
    r"(\.modules_to_save(\.[^.]+)?|\.base_layer|\.token_adapter|\.trainable_tokens_[a-z]+)*(\.[^.]+)?\Z"
)
_Problems = defaultdict[str, list[str]]
# Data types that a factor may have: plain numbers of a sign, an exponent and a fraction.
FACTOR_DTYPES = frozenset({"F64", "F32", "F16", "BF16", "F8_E4M3", "F8_E5M2"})
_SHOWN = 5
# No path of a model's module has more parts.
_MOST_PARTS = 16


@dataclass(frozen=True, slots=True)
class LoraModule:
    """A complete pair of factors, A of (rank, in_features) and B of (out_features, rank).

    `name` is the module's name in the base model. For an embedding `in_features` is the vocabulary and
    `out_features` the hidden width. `layer` is the first number in the name.
    """

    name: str
    layer: int | None
    kind: Kind
    in_features: int
    out_features: int
    rank: int
    scaling: float

    @property
    def short_name(self) -> str:
        """The last component of the name: q_proj, lm_head."""
        return self.name.rpartition(".")[2]


@dataclass(frozen=True, slots=True)
class OtherTensor:
    """A tensor that is not a LoRA factor; its name is cut and escaped if it is not a valid name.

    Kinds: magnitude, bias, lora_bias, saved (whole weights that replace the base's), base_copy (weights of
    the base model that PEFT saves with an adapted embedding), trainable_tokens, auxiliary (what only training
    needs), unknown. `layer` is the layer that a tensor of kind saved or trainable_tokens belongs to, by the
    name that the configuration gives it or its own.
    """

    name: str
    kind: str
    layer: str = field(default="", compare=False)


@dataclass(frozen=True, slots=True)
class AdapterSpec:
    """The LoRA modules of one weights file in the order of layer and name, and its other content.

    `problems` are those for which the adapter cannot be used as it is, each with the first few modules:
    unpaired_factor, rank_mismatch, empty_tensor, not_a_matrix, duplicate_factor, bad_dtype, bad_pattern.
    `respelled` are the names of factors that PEFT does not recognise, `absent` the modules that
    the base, where the configuration names a known one, does not have, `of_parameters` the modules whose
    factors are those of bare parameters.
    """

    modules: tuple[LoraModule, ...]
    others: tuple[OtherTensor, ...] = ()
    problems: tuple[Finding, ...] = ()
    dtypes: tuple[str, ...] = ()
    respelled: tuple[str, ...] = ()
    absent: tuple[str, ...] = ()
    of_parameters: tuple[str, ...] = ()

    @property
    def parameters(self) -> int:
        """The number of parameters in the complete LoRA pairs."""
        return sum(m.rank * (m.in_features + m.out_features) for m in self.modules)

    @property
    def ranks(self) -> tuple[int, ...]:
        """The distinct ranks, ascending."""
        return tuple(sorted({module.rank for module in self.modules}))

    @property
    def targets(self) -> tuple[str, ...]:
        """The distinct short names, sorted."""
        return tuple(sorted({module.short_name for module in self.modules}))


def adapter_names(header: Header, config: AdapterConfig | None) -> ModuleNames:
    """How the names of a file are read: by the modules of the base that its configuration names, where the
    program knows them, else by fixed rules.
    """
    if config is None:
        return read_names(header)
    base = None if config.layer_replication else modules_of_spelling(config.base_model)
    return read_names(header, base, config.task_type)


def lora_modules(header: Header, config: AdapterConfig, names: ModuleNames | None = None) -> AdapterSpec:
    """The modules that a header and a configuration describe together; never raises for their content.

    Pairs that are incomplete, empty, or contradict each other or the configuration are reported in
    `problems`; only complete pairs of matching shape are in `modules`, also if the configuration gives them
    another rank. Without a usable rank and scaling (another method than LoRA, a pattern that cannot be
    evaluated) there are no modules.
    """
    names = names or adapter_names(header, config)
    halves: dict[tuple[str, Kind], dict[str, Tensor]] = {}
    problems: _Problems = defaultdict(list)
    for tensor in header.tensors:
        key = names.keys.get(tensor.name)
        if key is None or key.leaf == "bias":
            continue
        pair = halves.setdefault((key.module, key.kind), {})
        if key.side in pair:
            problems["duplicate_factor"].append(key.module)
        pair[key.side] = tensor
    for name, kind in halves:
        if kind == "embedding" and (name, "linear") in halves:
            problems["duplicate_factor"].append(f"{name} is an embedding and a linear layer")
    rules = _rules(config, problems)
    holders = frozenset(name.rpartition(".")[0] for name in config.target_parameters or ()) - {""}
    modules = [
        module
        for (name, kind), pair in halves.items()
        if rules is not None and (module := _module(name, kind, pair, rules, holders, problems)) is not None
    ]
    modules.sort(key=lambda m: (-1 if m.layer is None else m.layer, m.name))
    dtypes = tuple(sorted({tensor.dtype for pair in halves.values() for tensor in pair.values()}))
    tensor_roles, saved = tensors_beside(header, config, names), frozenset(config.modules_to_save or ())
    other_tensors = tuple(
        OtherTensor(_presentable(name), kind, _layer_of_saved(name, saved))
        for name, kind in tensor_roles.items()
    )
    return AdapterSpec(
        tuple(modules),
        other_tensors,
        tuple(Finding(kind, _abridge(details)) for kind, details in sorted(problems.items())),
        dtypes,
        respelled=names_peft_misses(header, names),
        absent=names.absent,
        of_parameters=tuple(m.name for m in modules if _is_of_parameters(m.name, holders)),
    )


def tensors_beside(header: Header, config: AdapterConfig, names: ModuleNames | None = None) -> dict[str, str]:
    """The kind of each tensor of a file that is not a LoRA factor, by its name (see `OtherTensor`).

    A bias in a wrapped layer is a copy of the base's where the configuration trains no biases and the
    layer's weight is next to it, as PEFT saves an adapted output head; else it was trained
    (Qwen2's `q_proj.base_layer.bias`).
    """
    keys = (names or adapter_names(header, config)).keys
    all_names, saved = {tensor.name for tensor in header.tensors}, frozenset(config.modules_to_save or ())
    roles: dict[str, str] = {}
    for tensor in header.tensors:
        key = keys.get(tensor.name)
        if key is None or key.leaf == "bias":
            roles[tensor.name] = "lora_bias" if key else _other_kind(tensor.name, all_names, config, saved)
    return roles


def _part_in(path: str, names: Collection[str]) -> str | None:
    """The first of the names, the shortest before longer ones, that is a part of the path and not its end."""
    parts = path.split(".")
    return next(
        (
            name
            for length in range(1, min(len(parts), _MOST_PARTS + 1) if names else 1)
            for start in range(len(parts) - length)
            if (name := ".".join(parts[start : start + length])) in names
        ),
        None,
    )


def _layer_of_saved(name: str, saved: Collection[str]) -> str:
    """The layer that a whole saved tensor belongs to: as the configuration names it, else its short name."""
    name = canonical_tensor(name)
    return _part_in(name, saved) or _INSIDE_A_LAYER.sub("", name).rpartition(".")[2]


def _is_of_parameters(module: str, holders: Collection[str]) -> bool:
    """Whether the factors under this name are those of bare parameters (`target_parameters`), not a module's.

    PEFT wraps the module that holds the parameter, once a parameter: `experts.base_layer` is the inner one.
    """
    if not holders:
        return False
    while module.endswith(".base_layer"):
        module = module.removesuffix(".base_layer")
    parts = module.split(".")
    return any(".".join(parts[-length:]) in holders for length in range(1, min(len(parts), _MOST_PARTS) + 1))


def _abridge(details: list[str]) -> str:
    text = ", ".join(detail if len(detail) <= 120 else detail[:117] + "..." for detail in details[:_SHOWN])
    more = len(details) - _SHOWN
    return f"{text} and {more} more" if more > 0 else text


def _presentable(name: str) -> str:
    name = name if name.isprintable() else ascii(name)
    return name if len(name) <= 200 else name[:197] + "..."


def _other_kind(name: str, names: Collection[str], config: AdapterConfig, saved: Collection[str]) -> str:
    kind = next((kind for part, kind in _OTHER_KINDS if part in name), None)
    weight_beside = name.endswith(".bias") and f"{name.removesuffix('bias')}weight" in names
    if kind == "base_copy" and name.endswith(".base_layer.bias"):
        return "base_copy" if config.bias == "none" and weight_beside else "bias"
    if kind is not None:
        return kind
    if _part_in(name, saved):
        return "saved"
    if name.endswith(".bias"):
        return "saved" if weight_beside else "bias"
    return "saved" if name.endswith(".weight") else "unknown"


def _rules(config: AdapterConfig, problems: _Problems) -> ScalingRule | None:
    if not config.is_lora:
        return None
    try:
        return ScalingRule(config)
    except ConfigError as error:
        problems["bad_pattern"].append(str(error))
        return None


def _module(
    name: str,
    kind: Kind,
    pair: Mapping[str, Tensor],
    rules: ScalingRule,
    holders: Collection[str],
    problems: _Problems,
) -> LoraModule | None:
    """The module of one pair, or None and a problem if it is not a valid pair."""
    if len(pair) < 2:
        problems["unpaired_factor"].append(f"{name} has only {next(iter(pair))}")
        return None
    a, b = pair["A"], pair["B"]
    if 0 in a.shape or 0 in b.shape:
        problems["empty_tensor"].append(f"{name} of {list(a.shape)} and {list(b.shape)}")
        return None
    if len(a.shape) != 2 or len(b.shape) != 2:
        problems["not_a_matrix"].append(f"{name} of {list(a.shape)} and {list(b.shape)}")
        return None
    if not {a.dtype, b.dtype} <= FACTOR_DTYPES:
        problems["bad_dtype"].append(f"{name} of {a.dtype} and {b.dtype}")
        return None
    rank, in_features = a.shape
    out_features, rank_of_b = b.shape
    if rank != rank_of_b:
        problems["rank_mismatch"].append(f"{name}: A has rank {rank}, B {rank_of_b}")
        return None
    # The factors of a bare parameter are those of its experts, side by side.
    experts = _is_of_parameters(name, holders)
    factor = _scaling(name, rank, rules, problems, experts=experts)
    if factor is None:
        return None
    return LoraModule(name, layer_of(name), kind, in_features, out_features, rank, factor)


def _scaling(name: str, rank: int, rules: ScalingRule, problems: _Problems, *, experts: bool) -> float | None:
    """The scaling by the configuration, or None and a problem if it defines none."""
    try:
        promised = rules.rank(name)
        if promised != rank and not (experts and rank % promised == 0):
            problems["rank_mismatch"].append(f"{name}: rank {rank}, the configuration says {promised}")
        return rules.scaling(name)
    except ConfigError as error:
        problems["bad_pattern"].append(str(error))
        return None


@functools.lru_cache(maxsize=1 << 14)
def layer_of(name: str) -> int | None:
    """The layer of a module: the first number in its name."""
    numbers = (part for part in name.split(".") if part.isascii() and part.isdigit() and len(part) <= 6)
    return next(map(int, numbers), None)
