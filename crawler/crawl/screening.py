"""The facts about an adapter → all reasons against it. A verdict is a value, never an exception.

All reasons are found, not only the first; `catalog.rules` defines which rule set refuses for which.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass

from catalog.adapters import (
    PARTIAL,
    AdapterConfig,
    AdapterSpec,
    BaseDims,
    BaseIdentity,
    Finding,
    WeightsHealth,
    features,
    format_detail,
    grants_more,
    misfit_widths,
    modules_of_base,
    names_nothing,
    peft_refusals,
)
from catalog.errors import ConfigError, UsageError, WeightsError
from catalog.rules import NORM_EXPLODED, PAPER_NORM, RULE_SETS, Reason

CONFIG_NAME = "adapter_config.json"
WEIGHTS_NAME = "adapter_model.safetensors"
PICKLE_NAMES = ("adapter_model.bin", "adapter_model.pt", "adapter_model.pth")

_MAX_DETAIL = 500
_STATUS: dict[str, Reason] = {
    "gated": Reason.GATED,
    "disabled": Reason.DISABLED,
    "private": Reason.PRIVATE,
    "refused": Reason.PRIVATE,
    "private_or_missing": Reason.VANISHED,
    "vanished": Reason.VANISHED,
    "revision_gone": Reason.VANISHED,
    "entry_gone": Reason.VANISHED,
    "integrity": Reason.INTEGRITY,
    "too_large": Reason.TOO_LARGE,
}
_CONFIG_KINDS = {"lfs_pointer": Reason.CONFIG_LFS_POINTER, "not_peft": Reason.CONFIG_NOT_PEFT}
_WEIGHTS_KINDS = dict.fromkeys(("truncated", "empty_file", "size_mismatch"), Reason.TRUNCATED) | {
    "unreadable": Reason.WEIGHTS_UNREADABLE
}
_EMBEDDINGS = frozenset({"embed_tokens", "lm_head", "wte"})
# Short names of the modules of causal language models, of Llama's and of older families.
_CAUSAL_MODULES = frozenset(
    {"q_proj", "k_proj", "v_proj", "o_proj", "out_proj", "qkv_proj", "gate_proj", "up_proj", "down_proj"}
    | {
        "gate_up_proj",
        "c_attn",
        "c_proj",
        "c_fc",
        "query_key_value",
        "dense_h_to_4h",
        "dense_4h_to_h",
        "W_pack",
    }
    | {"Wqkv", "fc1", "fc2", "in_proj", "x_proj", "wq", "wk", "wv", "wo", "w1", "w2", "w3", "attn.c_attn"}
)
_NO_LICENSE = frozenset({"unknown", "other", "none", "unlicensed"})


@dataclass(frozen=True, slots=True)
class Evidence:
    """The facts about one adapter; None, or empty, if nothing was read.

    `status` is the reason why reading stopped, `detail` in words; `files` are the names in the
    adapter's folder; `problems` are sentences about entries of the repository's file list,
    `card_problems` the names of the problems for which the card, or a part of it, could not be read.
    """

    status: str | None = None
    detail: str = ""
    subfolder: str = ""
    files: tuple[str, ...] = ()
    config: AdapterConfig | ConfigError | None = None
    spec: AdapterSpec | WeightsError | None = None
    base: BaseIdentity | None = None
    dims: BaseDims | None = None
    base_license: str | None = None
    card_license: str | None = None
    health: WeightsHealth | None = None
    problems: tuple[str, ...] = ()
    card_problems: tuple[str, ...] = ()


Found = Iterator[Finding]


def screen(evidence: Evidence) -> tuple[Finding, ...]:
    """All reasons against an adapter, each once, in the order of the table of rules."""
    findings: dict[str, Finding] = {}
    for check in _CHECKS:
        for finding in check(evidence):
            findings.setdefault(finding.reason, Finding(finding.reason, finding.detail[:_MAX_DETAIL]))
    return tuple(findings[reason] for reason in Reason if reason in findings)


def refusing(rules: str) -> tuple[str, ...]:
    """Values of the reasons for which a set of rules refuses; raises UsageError for an unknown set."""
    if rules not in RULE_SETS:
        raise UsageError(f"Unknown rules {rules!r}; choose one of {', '.join(RULE_SETS)}.")
    return tuple(reason.value for reason in Reason if getattr(reason, rules))


def reasons_to_refuse(findings: Iterable[Finding], rules: str) -> tuple[str, ...]:
    """The reasons among findings for which a set of rules refuses, none: accepted. Raises UsageError."""
    refused = set(refusing(rules))
    return tuple(finding.reason for finding in findings if finding.reason in refused)


def _repository(evidence: Evidence) -> Found:
    status = evidence.status
    if status not in (None, "", "ok"):
        yield Finding(_STATUS.get(status, Reason.NOT_READ), evidence.detail or status)
    if evidence.problems:
        yield Finding(Reason.UNUSABLE_FILES, "; ".join(evidence.problems))
    if evidence.card_problems:
        yield Finding(Reason.CARD_UNREADABLE, ", ".join(evidence.card_problems))


def _files(evidence: Evidence) -> Found:
    if evidence.status in {"gated", "disabled", "vanished"} and not evidence.files:
        return
    if evidence.config is None and CONFIG_NAME not in evidence.files:
        yield Finding(Reason.NO_ADAPTER)
        return
    if evidence.subfolder:
        yield Finding(Reason.NOT_ROOT, evidence.subfolder)
    if WEIGHTS_NAME in evidence.files:
        return
    pickles = [name for name in evidence.files if name in PICKLE_NAMES]
    if pickles:
        yield Finding(Reason.PICKLE_ONLY, ", ".join(pickles))
    else:
        other_files = [name for name in evidence.files if name.endswith(".safetensors")][:5]
        yield Finding(Reason.NO_SAFETENSORS, f"there is {', '.join(other_files)}" if other_files else "")


def _config(evidence: Evidence) -> Found:
    config = evidence.config
    if isinstance(config, ConfigError):
        yield Finding(_CONFIG_KINDS.get(config.kind, Reason.CONFIG_UNREADABLE), str(config))
    elif config is not None:
        yield from _task(config, evidence)
        yield from _patterns(config)
        spec = evidence.spec if isinstance(evidence.spec, AdapterSpec) else None
        yield from features(config, spec)
        refusals = peft_refusals(config, spec)
        if refusals:
            yield Finding(Reason.CONFIG_PEFT_REFUSES, "; ".join(refusals))


def _task(config: AdapterConfig, evidence: Evidence) -> Found:
    if config.task_type is None:
        yield Finding(Reason.TASK_TYPE_MISSING)
        spec, targets = evidence.spec, config.target_modules
        names: tuple[str, ...] = targets if isinstance(targets, tuple) else ()
        if isinstance(spec, AdapterSpec) and spec.modules:
            names = tuple(module.name for module in spec.modules)
        if names and not _looks_causal(names):
            yield Finding(Reason.NOT_CAUSAL_LM, f"no task type, and modules such as {names[0]}")
    elif config.task_type != "CAUSAL_LM":
        yield Finding(Reason.NOT_CAUSAL_LM, config.task_type)


def _looks_causal(names: Iterable[str]) -> bool:
    """Whether module names are those of a decoder: a known short name, and no encoder on the way to it."""
    parts = [name.split(".") for name in names]
    return any(p[-1] in _CAUSAL_MODULES for p in parts) and not any("encoder" in p for p in parts)


def _patterns(config: AdapterConfig) -> Found:
    """The reasons of the paper's collector by the configuration alone."""
    if config.rank_pattern:
        yield Finding(Reason.RANK_PATTERN, format_detail(config.rank_pattern))
    if config.alpha_pattern:
        yield Finding(Reason.ALPHA_PATTERN, format_detail(config.alpha_pattern))
    settings = [key for key in ("loftq_config", "eva_config", "corda_config") if config.has_settings(key)]
    if settings:
        yield Finding(Reason.INIT_CONFIG, ", ".join(settings))


def _base(evidence: Evidence) -> Found:
    base, config = evidence.base, evidence.config
    if base is None or not isinstance(config, AdapterConfig):
        return
    raw = "" if names_nothing(config.base_model) else (config.base_model or "").strip()
    if base.canonical is None:
        if names_nothing(base.raw):
            yield Finding(Reason.BASE_MISSING)
        else:
            yield Finding(Reason.BASE_LOCAL_PATH, base.raw or "")
    if raw and base.canonical is None:
        yield Finding(Reason.BASE_MISMATCH, raw)
    elif base.canonical is not None and base.canonical.rpartition("/")[2].lower() not in raw.lower():
        yield Finding(Reason.BASE_MISMATCH, raw or "the config names none")


def _header(evidence: Evidence) -> Found:
    spec, config = evidence.spec, evidence.config
    if isinstance(spec, WeightsError):
        yield Finding(_WEIGHTS_KINDS.get(spec.kind, Reason.HEADER_INVALID), str(spec))
        return
    if spec is None or not isinstance(config, AdapterConfig) or not config.is_lora:
        return
    embeddings = [m.name for m in spec.modules if m.kind == "embedding" or m.short_name in _EMBEDDINGS]
    if embeddings:
        yield Finding(Reason.EMBEDDING_LORA, ", ".join(embeddings[:3]))
    if spec.respelled:
        yield Finding(Reason.KEY_SPELLING, f"{spec.respelled[0]} ({len(spec.respelled)} tensors)")
    yield from _shapes(spec, config, evidence)
    yield from _modules(spec, config, evidence)


def _modules(spec: AdapterSpec, config: AdapterConfig, evidence: Evidence) -> Found:
    """Modules that the base model lacks; layers beyond its last are reported by their number."""
    base = modules_of_base(evidence.base.canonical) if evidence.base is not None else None
    if base is None or config.layer_replication:
        return
    layers = evidence.dims.layers if evidence.dims is not None else 0
    of_parameters = set(spec.of_parameters)
    absent = [
        module.name
        for module in spec.modules
        if module.name not in base.shapes and (module.layer is None or module.layer < layers)
        # Parameters are not modules.
        if module.name not in of_parameters
    ]
    if absent:
        more = f" and {len(absent) - 3} more" if len(absent) > 3 else ""
        yield Finding(Reason.NO_SUCH_MODULE, f"{', '.join(absent[:3])}{more}")


def _shapes(spec: AdapterSpec, config: AdapterConfig, evidence: Evidence) -> Found:
    dims = evidence.dims
    if dims is None or config.layer_replication:
        return
    for module in spec.modules:
        expected = dims.shape(module.short_name)
        if module.layer is not None and module.layer >= dims.layers:
            yield Finding(Reason.WRONG_BASE_SHAPE, f"{module.name}: the base has {dims.layers} layers")
        elif expected and (required := misfit_widths(expected, module.in_features, module.out_features)):
            actual = f"{module.in_features} to {module.out_features}"
            yield Finding(Reason.WRONG_BASE_SHAPE, f"{module.name}: {actual}, the base has {required}")


def _values(evidence: Evidence) -> Found:
    health = evidence.health
    if health is None:
        return
    if health.non_finite:
        yield Finding(Reason.NON_FINITE)
    if health.zero_update and not _is_partial(evidence):
        yield Finding(Reason.ZERO_UPDATE)
    # The paper measures the decoder's layers only.
    norm = health.norm if health.norm_in_layers is None else health.norm_in_layers
    if not PAPER_NORM[0] < norm <= PAPER_NORM[1]:
        yield Finding(Reason.NORM_OUT_OF_RANGE, f"{norm:.4g}")
    if health.norm > NORM_EXPLODED:
        yield Finding(Reason.NORM_EXPLODED, f"{health.norm:.4g}")


def _is_partial(evidence: Evidence) -> bool:
    """Whether the update is more than B A, so that a zero product does not mean a zero update."""
    config, spec = evidence.config, evidence.spec
    if not isinstance(config, AdapterConfig) or not isinstance(spec, AdapterSpec):
        return False
    return any(feature.reason in PARTIAL for feature in features(config, spec))


def _licenses(evidence: Evidence) -> Found:
    of_base = (evidence.base_license or "").strip().lower()
    of_card = (evidence.card_license or "").strip().lower()
    if not of_card or of_card in _NO_LICENSE:
        yield Finding(Reason.LICENSE_MISSING, of_card)
    elif grants_more(of_card, of_base):
        yield Finding(Reason.LICENSE_CONFLICT, f"{of_card}, the base model is {of_base}")


_CHECKS: tuple[Callable[[Evidence], Found], ...] = (
    _repository,
    _files,
    _config,
    _base,
    _header,
    _values,
    _licenses,
)
