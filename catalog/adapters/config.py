"""adapter_config.json, read strictly: a file that PEFT writes becomes an AdapterConfig, any other a
ConfigError with its kind.

For peft_type LORA every field that changes what the weights mean must have the type that PEFT writes. For
the other methods the file is read leniently (a wrong type leaves the default), so that "not a
LoRA" is the reason that such an adapter gets. Unknown keys remain in `raw`.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import partial
from typing import TypeVar

from catalog.adapters.patterns import Budget, Pattern
from catalog.errors import ConfigError
from catalog.files import UTF8_BOM, load_json

MAX_RANK = 65_536
_MLX_KEYS = ("lora_parameters", "adapter_path", "fine_tune_type", "lora_layers")
T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class AdapterConfig:
    """The content of an adapter_config.json; `raw` is the whole document, including keys of other programs.

    `rank` is None for methods other than LoRA. `target_modules` are sorted names, or one text that PEFT
    reads as a regular expression (or "all-linear"). Fields typed `object` have their JSON value.
    """

    peft_type: str
    rank: int | None
    alpha: float
    task_type: str | None = None
    base_model: str | None = None
    revision: str | None = None
    use_rslora: bool = False
    rank_pattern: Mapping[str, int] = field(default_factory=dict, hash=False)
    alpha_pattern: Mapping[str, float] = field(default_factory=dict, hash=False)
    target_modules: tuple[str, ...] | str | None = None
    exclude_modules: tuple[str, ...] | str | None = None
    modules_to_save: tuple[str, ...] | None = None
    layers_to_transform: tuple[int, ...] | None = None
    bias: str = "none"
    use_dora: bool = False
    lora_bias: bool = False
    fan_in_fan_out: bool = False
    dropout: float = 0.0
    init_lora_weights: bool | str = True
    layer_replication: object = field(default=None, hash=False)
    trainable_token_indices: object = field(default=None, hash=False)
    target_parameters: tuple[str, ...] | None = None
    alora_invocation_tokens: object = field(default=None, hash=False)
    peft_version: str | None = None
    bom: bool = False
    raw: Mapping[str, object] = field(default_factory=dict, hash=False, repr=False)

    @property
    def is_lora(self) -> bool:
        """Whether this is a LoRA and not another method that PEFT saves in the same form."""
        return self.peft_type == "LORA"

    def has_settings(self, key: str) -> bool:
        """Whether a sub-configuration such as eva_config or loftq_config holds anything."""
        return bool(self.raw.get(key))


def parse_config(data: bytes) -> AdapterConfig:
    """The configuration in the bytes of an adapter_config.json.

    Raises only ConfigError, of kind lfs_pointer, too_large, not_json, not_object, not_peft (mlx-lm
    and others use the same file name) or bad_field (a field that PEFT could not have written; the message
    names it).
    """
    raw = load_json(data)
    if not isinstance(raw, dict):
        raise ConfigError("not_object", "adapter_config.json does not contain a JSON object")
    peft_type = raw.get("peft_type")
    if not isinstance(peft_type, str) or not peft_type:
        author = " but of mlx-lm" if any(key in raw for key in _MLX_KEYS) else ""
        raise ConfigError("not_peft", f"adapter_config.json is not of PEFT{author}: it names no peft_type")
    fields = _Fields(raw, strict=peft_type == "LORA")
    init = fields.optional("init_lora_weights", _flag_or_text)
    return AdapterConfig(
        peft_type=peft_type,
        rank=fields.require("r", _rank) if fields.strict else None,
        alpha=fields.require("lora_alpha", _number) if fields.strict else 0.0,
        task_type=fields.optional("task_type", _text),
        base_model=fields.optional("base_model_name_or_path", _text),
        revision=fields.optional("revision", _text),
        use_rslora=fields.get("use_rslora", _flag, False),
        rank_pattern=fields.get("rank_pattern", partial(_table, read=_rank), {}),
        alpha_pattern=fields.get("alpha_pattern", partial(_table, read=_number), {}),
        target_modules=fields.optional("target_modules", _names_or_pattern),
        exclude_modules=fields.optional("exclude_modules", _names_or_pattern),
        modules_to_save=fields.optional("modules_to_save", _names),
        layers_to_transform=fields.optional("layers_to_transform", _layers),
        bias=fields.get("bias", _text, "none"),
        use_dora=fields.get("use_dora", _flag, False),
        lora_bias=fields.get("lora_bias", _flag, False),
        fan_in_fan_out=fields.get("fan_in_fan_out", _flag, False),
        dropout=fields.get("lora_dropout", _number, 0.0),
        init_lora_weights=True if init is None else init,
        layer_replication=raw.get("layer_replication"),
        trainable_token_indices=raw.get("trainable_token_indices"),
        target_parameters=fields.optional("target_parameters", _names),
        alora_invocation_tokens=raw.get("alora_invocation_tokens"),
        peft_version=fields.optional("peft_version", _text),
        bom=data.startswith(UTF8_BOM),
        raw=raw,
    )


class _Fields:
    """Reads typed fields; a wrong type raises ConfigError if `strict`, else it is replaced by the default."""

    def __init__(self, raw: Mapping[str, object], *, strict: bool) -> None:
        self.raw = raw
        self.strict = strict

    def require(self, key: str, read: Callable[[object], T]) -> T:
        """The value of a required field."""
        try:
            return read(self.raw.get(key))
        except ValueError as error:
            raise ConfigError("bad_field", f"{key} of adapter_config.json {error}") from error

    def get(self, key: str, read: Callable[[object], T], default: T) -> T:
        """The value, or the default where the key is absent or null."""
        value = self.optional(key, read)
        return default if value is None else value

    def optional(self, key: str, read: Callable[[object], T]) -> T | None:
        """The value, or None where the key is absent or null."""
        if self.raw.get(key) is None:
            return None
        if self.strict:
            return self.require(key, read)
        try:
            return read(self.raw[key])
        except ValueError:
            return None


def _rank(value: object) -> int:
    if type(value) is not int or not 1 <= value <= MAX_RANK:
        raise ValueError(f"must be a whole number from 1 to {MAX_RANK}, not {_short_value(value)}")
    return value


def _number(value: object) -> float:
    if type(value) not in (int, float):
        raise ValueError(f"must be a number, not {_short_value(value)}")
    try:
        number = float(value)  # type: ignore[arg-type]  # int or float: the line above checked
    except OverflowError as error:
        raise ValueError("is too large") from error
    if not math.isfinite(number):
        raise ValueError("must be finite")
    return number


def _flag(value: object) -> bool:
    if not isinstance(value, bool):
        raise ValueError(f"must be true or false, not {_short_value(value)}")
    return value


def _text(value: object) -> str:
    if not isinstance(value, str):
        raise ValueError(f"must be a string, not {_short_value(value)}")
    return value


def _flag_or_text(value: object) -> bool | str:
    return value if isinstance(value, str) else _flag(value)


def _names(value: object) -> tuple[str, ...]:
    if not isinstance(value, list) or not all(isinstance(name, str) for name in value):
        raise ValueError(f"must be a list of names, not {_short_value(value)}")
    return tuple(sorted(set(value)))


def _names_or_pattern(value: object) -> tuple[str, ...] | str:
    return value if isinstance(value, str) else _names(value)


def _layers(value: object) -> tuple[int, ...]:
    layers = value if isinstance(value, list) else [value]
    if any(type(layer) is not int for layer in layers):
        raise ValueError(f"must be layer numbers, not {_short_value(value)}")
    return tuple(layers)


def _table(value: object, read: Callable[[object], T]) -> dict[str, T]:
    if not isinstance(value, dict):
        raise ValueError(f"must be an object, not {_short_value(value)}")
    try:
        return {key: read(entry) for key, entry in value.items()}
    except ValueError as error:
        raise ValueError(f"has an entry that {error}") from error


def _short_value(value: object) -> str:
    text = repr(value)
    return text if len(text) <= 60 else text[:57] + "..."


class ScalingRule:
    """Rank and scaling of each module, as PEFT takes them from a configuration.

    The first key of a pattern table, in the order of the file, that matches the module's name or what
    follows one of its dots wins. Building and asking raise ConfigError of kind bad_pattern if a key is not a
    supported regular expression or the tables need too many steps (see `catalog.adapters.patterns`).
    """

    def __init__(self, config: AdapterConfig) -> None:
        self._rank = config.rank
        self._alpha = config.alpha
        self._rslora = config.use_rslora
        self._budget = Budget()
        self._ranks = [(Pattern(key, self._budget), rank) for key, rank in config.rank_pattern.items()]
        self._alphas = [(Pattern(key, self._budget), alpha) for key, alpha in config.alpha_pattern.items()]

    def rank(self, module: str) -> int:
        """The rank of a module; raises ConfigError of kind bad_field if the configuration does not define
        it."""
        if self._rank is None:
            raise ConfigError("bad_field", "an adapter that is not a LoRA has no rank")
        return self._first(self._ranks, module, self._rank)

    def scaling(self, module: str) -> float:
        """The scaling of B A: alpha / r, or alpha / sqrt(r) for rank-stabilised LoRA."""
        rank = self.rank(module)
        alpha = self._first(self._alphas, module, self._alpha)
        return alpha / (math.sqrt(rank) if self._rslora else rank)

    def _first(self, table: list[tuple[Pattern, T]], module: str, default: T) -> T:
        for pattern, value in table:
            if pattern.matches_suffix(module, self._budget):
                return value
        return default
