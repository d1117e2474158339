"""Which configurations PEFT does not load though their meaning is clear: byte order marks, null fields, more.

The rules are those of PEFT 0.21 (`LoraConfig.__post_init__`, `LoraLayer.update_layer`,
`set_peft_model_state_dict`); `tests/unit/test_peft_config.py` compares them with PEFT itself.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

from catalog.adapters.config import AdapterConfig
from catalog.adapters.patterns import is_regular_expression
from catalog.adapters.spec import AdapterSpec

# Fields that PEFT reads without looking for null.
_NO_NULL = ("bias", "lora_dropout", "rank_pattern", "alpha_pattern")
_TABLES = (
    *("velora_config", "kasa_config", "eva_config", "corda_config", "lora_ga_config", "arrow_config"),
    "use_bdlora",
)
_TASKS = ("SEQ_CLS", "SEQ_2_SEQ_LM", "CAUSAL_LM", "TOKEN_CLS", "QUESTION_ANS", "FEATURE_EXTRACTION")
_INITS = re.compile(
    r"|(?i:gaussian|olora|mica)|loftq|eva|orthogonal|lora_ga|pissa(?:_niter_[0-9]+)?", re.ASCII
)
# Modules of every decoder: PEFT looks for their saved weights, and for no others' that it does not find.
_IN_DECODERS = frozenset(
    {"embed_tokens", "lm_head", "norm", "input_layernorm", "post_attention_layernorm", "self_attn", "mlp"}
)


def peft_refusals(config: AdapterConfig, spec: AdapterSpec | None = None) -> tuple[str, ...]:
    """Why PEFT does not load the adapter with this configuration, one phrase per reason; empty if it does.

    `spec` describes the weights file, if its header was read. Only problems visible in these files are
    reported, not modules that the base model lacks.
    """
    return tuple(_refusals(config, spec)) if config.is_lora else ()


def _refusals(config: AdapterConfig, spec: AdapterSpec | None) -> Iterator[str]:
    raw = config.raw
    if config.bom:
        yield "a byte order mark"
    yield from (f"{key} null" for key in _NO_NULL if key in raw and raw[key] is None)
    yield from (f"{key} not an object" for key in _TABLES if not isinstance(raw.get(key), dict | None))
    if config.task_type is not None and config.task_type not in _TASKS:
        yield f"task_type {config.task_type!r}"
    if config.bias not in ("none", "all") and not config.bias.endswith("_only"):
        yield f"bias {config.bias!r}"
    if config.dropout > 1:
        yield f"lora_dropout {config.dropout:g}"
    yield from _targets(config)
    yield from _combinations(config)
    yield from _initialisation(config)
    if spec is not None:
        yield from _missing_tensors(config, spec)


def _targets(config: AdapterConfig) -> Iterator[str]:
    """Strings that PEFT uses as patterns and Python does not compile, and an empty list."""
    patterns = {"target_modules": config.target_modules, "exclude_modules": config.exclude_modules}
    for key, text in patterns.items():
        if isinstance(text, str) and not is_regular_expression(text):
            yield f"{key} not a pattern"
    if config.target_modules == () and not config.target_parameters:
        yield "target_modules empty"


def _combinations(config: AdapterConfig) -> Iterator[str]:
    """Settings that PEFT does not allow together."""
    layers, pattern = config.raw.get("layers_to_transform"), config.raw.get("layers_pattern")
    if isinstance(config.target_modules, str) and (layers is not None or pattern is not None):
        yield "layers with target_modules as a pattern"
    elif pattern and layers is None:
        yield "layers_pattern without layers_to_transform"
    if config.use_dora and config.raw.get("megatron_config"):
        yield "use_dora with megatron_config"
    if config.lora_bias and (config.use_dora or not isinstance(config.init_lora_weights, bool)):
        yield f"lora_bias with {'use_dora' if config.use_dora else 'init_lora_weights'}"


def _initialisation(config: AdapterConfig) -> Iterator[str]:
    """PEFT initialises an adapter before it loads the weights, CorDA from data that is not available."""
    init = config.init_lora_weights
    if isinstance(init, str) and not _INITS.fullmatch(init):
        yield f"init_lora_weights {init[:40]!r}"
    elif init == "loftq" and not config.has_settings("loftq_config"):
        yield "init_lora_weights 'loftq' without loftq_config"


def settings_of_nothing(config: AdapterConfig, spec: AdapterSpec) -> dict[str, Any]:
    """Fields that name modules or tokens absent from the file, with their values without these.

    PEFT raises for them where the base has such modules.
    """
    saved = {other.layer for other in spec.others if other.kind == "saved"}
    stored = [name for name in config.modules_to_save or () if name in saved]
    settings: dict[str, Any] = {}
    if len(stored) < len(config.modules_to_save or ()):
        settings["modules_to_save"] = stored or None
    tokens = config.trainable_token_indices
    if tokens is not None and tokens != {} and all(o.kind != "trainable_tokens" for o in spec.others):
        settings["trainable_token_indices"] = None
    return settings


def _missing_tensors(config: AdapterConfig, spec: AdapterSpec) -> Iterator[str]:
    """Modules and tokens that the configuration says are saved, where PEFT finds the module and no tensor."""
    settings = settings_of_nothing(config, spec)
    inside = _IN_DECODERS | {part for module in spec.modules for part in module.name.split(".")}
    stored = settings.get("modules_to_save", config.modules_to_save) or ()
    yield from (
        f"modules_to_save {name} without its weights"
        for name in config.modules_to_save or ()
        if name in inside and name not in stored
    )
    if "trainable_token_indices" in settings:
        yield "trainable_token_indices without their weights"
