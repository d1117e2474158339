"""What an adapter is besides scaling * B A on its base model: one answer for a crawl, a merge and a number.

What the weights file holds decides. PEFT saves biases, whole modules and trained tokens only where the base
has any, so that a setting of the configuration without tensors changes nothing. Where no header was read,
the setting is all that is known, and it is taken at its word.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from catalog.adapters.spec import AdapterConfig, AdapterSpec

# Initialisations that change the base: the stored factors are relative to a base that nobody else has.
RELATIVE_INITS = ("pissa", "corda", "olora", "loftq", "lora_ga")
_VARIANTS = ("use_qalora", "use_bdlora", "kasa_config", "monteclora_config", "arrow_config")
# The feature that a tensor beside the factors means, by its kind; other kinds mean none.
_OF_TENSORS: Mapping[str, str] = {
    "magnitude": "use_dora",
    "bias": "has_bias",
    "lora_bias": "lora_bias",
    "saved": "full_weights",
    "trainable_tokens": "trainable_tokens",
    "unknown": "unknown_tensor",
    "base_copy": "base_copy",
}
# What makes the update another than scaling * B A, in words; the names are those of the crawl's reasons.
SENTENCES: Mapping[str, str] = {
    "not_lora": "it is another method than LoRA",
    "use_dora": "DoRA rescales the base weights by learned magnitudes",
    "has_bias": "it trains biases of the base model",
    "lora_bias": "its B factors have a bias",
    "modules_to_save": "it replaces whole modules of the base model",
    "bad_pattern": "its rank or alpha patterns cannot be evaluated safely",
    "layer_replication": "it runs on a base model with repeated layers",
    "alora": "it is active after certain tokens only (aLoRA)",
    "trainable_tokens": "it trains embeddings of single tokens",
    "target_parameters": "it adapts bare parameters, not modules",
    "lora_variant": "a variant of LoRA whose update is not B A",
    "relative_init": "its update is relative to a changed base model",
    "no_lora_tensors": "its weights file holds no LoRA factors",
    "unpaired_factor": "a module has only one of the factors A and B",
    "rank_mismatch": "ranks of A, B and the config disagree",
    "empty_tensor": "a factor has no elements",
    "not_a_matrix": "a factor is no matrix",
    "duplicate_factor": "a module has a factor twice, as of two adapters",
    "bad_dtype": "a factor is stored in a data type that is no plain number",
    "full_weights": "it carries whole weights beside the factors",
    "unknown_tensor": "it carries tensors of unknown meaning",
}
# For these the norm and the vectors of B A are not those of the whole update; for the rest there are none.
PARTIAL = frozenset(SENTENCES).difference(("not_lora", "no_lora_tensors", "bad_pattern")) | {"non_finite"}
# What a merge can leave out by the name of a layer.
IN_LAYERS = frozenset({"modules_to_save", "full_weights", "trainable_tokens"})
_SHOWN = 200


@dataclass(frozen=True, slots=True)
class Feature:
    """One thing beside plain LoRA under the name of the crawl's reason, with what was seen."""

    reason: str
    detail: str = ""


def features(config: AdapterConfig, spec: AdapterSpec | None = None) -> tuple[Feature, ...]:
    """Everything that an adapter is or holds besides scaling * B A, each reason once, in a fixed order.

    Reasons with a sentence in SENTENCES make the update another one; `base_copy` and `unused_setting` do not.
    Without `spec`, the modules and other tensors of the weights file, the configuration alone is asked.
    """
    features_by_reason: dict[str, Feature] = {}
    for feature in _features(config, spec if config.is_lora else None):
        features_by_reason.setdefault(feature.reason, feature)
    return tuple(features_by_reason.values())


def beside_the_update(config: AdapterConfig, spec: AdapterSpec | None = None) -> tuple[Feature, ...]:
    """The features that make the update another than scaling * B A."""
    return tuple(feature for feature in features(config, spec) if feature.reason in SENTENCES)


def layers_to_leave_out(config: AdapterConfig, spec: AdapterSpec) -> tuple[str, ...]:
    """The names of the layers without which the rest is plain LoRA, sorted; none where names do not do it.

    These are the layers that were saved whole, and embeddings with trained tokens.
    """
    if not spec.modules or {feature.reason for feature in beside_the_update(config, spec)} - IN_LAYERS:
        return ()
    saved_tensors = (other for other in spec.others if other.kind in {"saved", "trainable_tokens"})
    return tuple(sorted({other.layer for other in saved_tensors}))


def _features(config: AdapterConfig, spec: AdapterSpec | None) -> Iterator[Feature]:
    if not config.is_lora:
        yield Feature("not_lora", config.peft_type)
    yield from _whatever_is_stored(config)
    yield from _settings(config) if spec is None else _stored_features(config, spec)


def _whatever_is_stored(config: AdapterConfig) -> Iterator[Feature]:
    """What the configuration decides alone: PEFT does it whatever the file holds."""
    if config.use_dora:
        yield Feature("use_dora")
    if config.layer_replication:
        yield Feature("layer_replication", format_detail(config.layer_replication))
    if config.alora_invocation_tokens:
        yield Feature("alora", format_detail(config.alora_invocation_tokens))
    # PEFT takes a table for switched on even where it is empty.
    variants = [key for key in _VARIANTS if config.has_settings(key) or isinstance(config.raw.get(key), dict)]
    if variants:
        yield Feature("lora_variant", ", ".join(variants))
    init = config.init_lora_weights
    if isinstance(init, str) and init.lower().startswith(RELATIVE_INITS):
        yield Feature("relative_init", init)
    elif "kasa_config" in variants:
        yield Feature("relative_init", "kasa")


def _settings(config: AdapterConfig) -> Iterator[Feature]:
    """What the configuration says of tensors that nobody has looked for."""
    settings: tuple[tuple[str, object], ...] = (
        ("has_bias", config.bias if config.bias != "none" else None),
        ("lora_bias", "lora_bias" if config.lora_bias else None),
        ("modules_to_save", config.modules_to_save),
        ("trainable_tokens", config.trainable_token_indices),
        ("target_parameters", config.target_parameters),
    )
    for reason, value in settings:
        if value:
            yield Feature(reason, format_detail(value))


def _stored_features(config: AdapterConfig, spec: AdapterSpec) -> Iterator[Feature]:
    """What the weights file holds, and what the configuration names of which it holds nothing."""
    kinds = {other.kind for other in spec.others}
    layers = {other.layer for other in spec.others if other.kind == "saved"}
    saved_layers = tuple(name for name in config.modules_to_save or () if name in layers)
    idle = tuple(name for name in config.modules_to_save or () if name not in layers)
    if saved_layers:
        yield Feature("modules_to_save", format_detail(saved_layers))
    if layers:
        yield Feature("full_weights", format_detail(tuple(sorted(layers))))
    for other in spec.others:
        if other.kind in _OF_TENSORS:
            yield Feature(_OF_TENSORS[other.kind], other.name)
    if spec.of_parameters:
        yield Feature("target_parameters", format_detail(config.target_parameters))
    for problem in spec.problems:
        yield Feature(problem.kind, problem.detail)
    if not spec.modules and not spec.problems:
        yield Feature("no_lora_tensors")
    unused: tuple[tuple[str, object], ...] = (
        (f"bias {config.bias}", config.bias != "none" and "bias" not in kinds),
        ("lora_bias", config.lora_bias and "lora_bias" not in kinds),
        (f"modules_to_save {format_detail(idle)}", idle),
        ("trainable_token_indices", config.trainable_token_indices and "trainable_tokens" not in kinds),
    )
    if any(is_unused for _, is_unused in unused):
        yield Feature("unused_setting", "; ".join(setting for setting, is_unused in unused if is_unused))


def format_detail(value: object) -> str:
    """A value of a configuration as a detail: names with commas between them, cut after 200 characters."""
    text = ", ".join(map(str, value)) if isinstance(value, tuple) else str(value)
    return text if len(text) <= _SHOWN else text[: _SHOWN - 3] + "..."
