"""The features of an adapter in addition to scaling * B A on its base model, the same for crawls, merges and
results.

The content of the weights file decides. PEFT saves biases, whole modules and trained tokens only where the
base has any, so that a setting of the configuration without tensors changes nothing. If no header was read,
the setting alone decides.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping

from catalog.adapters.config import AdapterConfig
from catalog.adapters.records import Finding
from catalog.adapters.spec import AdapterSpec

# Initialisations that change the base: the stored factors are relative to a modified base model.
RELATIVE_INITS = ("pissa", "corda", "olora", "loftq", "lora_ga")
_VARIANTS = ("use_qalora", "use_bdlora", "kasa_config", "monteclora_config", "arrow_config")
# The feature that a tensor other than a factor implies, by its kind; other kinds imply none.
_OF_TENSORS: Mapping[str, str] = {
    "magnitude": "use_dora",
    "bias": "has_bias",
    "lora_bias": "lora_bias",
    "saved": "full_weights",
    "trainable_tokens": "trainable_tokens",
    "unknown": "unknown_tensor",
    "base_copy": "base_copy",
}
# Why the update is not scaling * B A, in words; the names are those of the crawl's reasons.
SENTENCES: Mapping[str, str] = {
    "not_lora": "it uses a method other than LoRA",
    "use_dora": "DoRA rescales the base weights by learned magnitudes",
    "has_bias": "it trains biases of the base model",
    "lora_bias": "its B factors have a bias",
    "modules_to_save": "it replaces whole modules of the base model",
    "bad_pattern": "its rank or alpha patterns cannot be evaluated safely",
    "layer_replication": "it runs on a base model with repeated layers",
    "alora": "it is active only after certain tokens (aLoRA)",
    "trainable_tokens": "it trains embeddings of single tokens",
    "target_parameters": "it adapts parameters, not modules",
    "lora_variant": "a variant of LoRA whose update is not B A",
    "relative_init": "its update is relative to a modified base model",
    "no_lora_tensors": "its weights file contains no LoRA factors",
    "unpaired_factor": "a module has only one of the factors A and B",
    "rank_mismatch": "ranks of A, B and the config disagree",
    "empty_tensor": "a factor has no elements",
    "not_a_matrix": "a factor is not a matrix",
    "duplicate_factor": "a module has two copies of a factor",
    "bad_dtype": "a factor is stored in an unsupported data type",
    "full_weights": "it contains whole weights in addition to the factors",
    "unknown_tensor": "it contains tensors of unknown meaning",
}
# For these the norm and the vectors of B A are not those of the whole update; for the others there are none.
PARTIAL = frozenset(SENTENCES).difference(("not_lora", "no_lora_tensors", "bad_pattern")) | {"non_finite"}
# What a merge can leave out by the name of a layer.
IN_LAYERS = frozenset({"modules_to_save", "full_weights", "trainable_tokens"})
_SHOWN = 200


def features(config: AdapterConfig, spec: AdapterSpec | None = None) -> tuple[Finding, ...]:
    """All features of an adapter in addition to scaling * B A, each reason once, in a fixed order.

    Reasons with a sentence in SENTENCES change the update; `base_copy` and `unused_setting` do not.
    Without `spec`, the modules and other tensors of the weights file, only the configuration is used.
    """
    features_by_reason: dict[str, Finding] = {}
    method = () if config.is_lora else (Finding("not_lora", config.peft_type),)
    declared = _stored_features(config, spec) if spec is not None and config.is_lora else _settings(config)
    for feature in (*method, *_whatever_is_stored(config), *declared):
        features_by_reason.setdefault(feature.reason, feature)
    return tuple(features_by_reason.values())


def beside_the_update(config: AdapterConfig, spec: AdapterSpec | None = None) -> tuple[Finding, ...]:
    """The features for which the update is not scaling * B A."""
    return tuple(feature for feature in features(config, spec) if feature.reason in SENTENCES)


def layers_to_leave_out(
    config: AdapterConfig, spec: AdapterSpec, accepted: Collection[str] = ()
) -> tuple[str, ...]:
    """The names of the layers without which the adapter is plain LoRA, sorted; empty if leaving out layers
    does not suffice.

    These are layers saved as a whole, and embeddings with trained tokens. Reasons that are `accepted` may
    remain.
    """
    reasons = {feature.reason for feature in beside_the_update(config, spec)}
    if not spec.modules or reasons - IN_LAYERS - set(accepted):
        return ()
    saved_tensors = (other for other in spec.others if other.kind in {"saved", "trainable_tokens"})
    return tuple(sorted({other.layer for other in saved_tensors}))


def _whatever_is_stored(config: AdapterConfig) -> Iterator[Finding]:
    """The features that the configuration alone decides, whatever the file contains."""
    if config.use_dora:
        yield Finding("use_dora")
    if config.layer_replication:
        yield Finding("layer_replication", format_detail(config.layer_replication))
    if config.alora_invocation_tokens:
        yield Finding("alora", format_detail(config.alora_invocation_tokens))
    # PEFT treats an empty table as enabled.
    variants = [key for key in _VARIANTS if config.has_settings(key) or isinstance(config.raw.get(key), dict)]
    if variants:
        yield Finding("lora_variant", ", ".join(variants))
    init = config.init_lora_weights
    if isinstance(init, str) and init.lower().startswith(RELATIVE_INITS):
        yield Finding("relative_init", init)
    elif "kasa_config" in variants:
        yield Finding("relative_init", "kasa")


def _settings(config: AdapterConfig) -> Iterator[Finding]:
    """The features that the configuration declares, if the file was not read."""
    settings: tuple[tuple[str, object], ...] = (
        ("has_bias", config.bias if config.bias != "none" else None),
        ("lora_bias", "lora_bias" if config.lora_bias else None),
        ("modules_to_save", config.modules_to_save),
        ("trainable_tokens", config.trainable_token_indices),
        ("target_parameters", config.target_parameters),
    )
    for reason, value in settings:
        if value:
            yield Finding(reason, format_detail(value))


def _stored_features(config: AdapterConfig, spec: AdapterSpec) -> Iterator[Finding]:
    """The features in the weights file, and the settings of the configuration for which it has no tensors."""
    kinds = {other.kind for other in spec.others}
    layers = {other.layer for other in spec.others if other.kind == "saved"}
    saved_layers = tuple(name for name in config.modules_to_save or () if name in layers)
    idle = tuple(name for name in config.modules_to_save or () if name not in layers)
    if saved_layers:
        yield Finding("modules_to_save", format_detail(saved_layers))
    if layers:
        yield Finding("full_weights", format_detail(tuple(sorted(layers))))
    for other in spec.others:
        if other.kind in _OF_TENSORS:
            yield Finding(_OF_TENSORS[other.kind], other.name)
    if spec.of_parameters:
        yield Finding("target_parameters", format_detail(config.target_parameters))
    yield from spec.problems
    if not spec.modules and not spec.problems:
        yield Finding("no_lora_tensors")
    unused: tuple[tuple[str, object], ...] = (
        (f"bias {config.bias}", config.bias != "none" and "bias" not in kinds),
        ("lora_bias", config.lora_bias and "lora_bias" not in kinds),
        (f"modules_to_save {format_detail(idle)}", idle),
        ("trainable_token_indices", config.trainable_token_indices and "trainable_tokens" not in kinds),
    )
    if any(is_unused for _, is_unused in unused):
        yield Finding("unused_setting", "; ".join(setting for setting, is_unused in unused if is_unused))


def format_detail(value: object) -> str:
    """A value of a configuration as a detail: names with commas between them, cut after 200 characters."""
    text = ", ".join(map(str, value)) if isinstance(value, tuple) else str(value)
    return text if len(text) <= _SHOWN else text[: _SHOWN - 3] + "..."
