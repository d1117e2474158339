"""An adapter in a folder on this machine: its configuration and its safetensors file, as PEFT saves them."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from catalog.adapters.feature import PARTIAL, Feature, beside_the_update
from catalog.adapters.spec import AdapterConfig, AdapterSpec, lora_modules, parse_config, parse_header
from catalog.adapters.weights import header_bytes
from catalog.errors import ConfigError, NotFoundError, WeightsError

CONFIG_NAME = "adapter_config.json"
WEIGHTS_NAME = "adapter_model.safetensors"
MOST_CONFIG = 1024 * 1024


@dataclass(frozen=True)
class AdapterFolder:
    """What a folder holds; of the weights only the header was read."""

    path: Path
    config: AdapterConfig
    weights: Path
    spec: AdapterSpec

    @property
    def partial(self) -> tuple[Feature, ...]:
        """What its update is besides scaling * B A, by the names of the crawl's reasons."""
        features_beside = beside_the_update(self.config, self.spec)
        return tuple(feature for feature in features_beside if feature.reason in PARTIAL)


def is_adapter_folder(path: Path) -> bool:
    """Whether the path is a folder with an adapter_config.json."""
    return (path / CONFIG_NAME).is_file()


def read_folder(path: Path) -> AdapterFolder:
    """The adapter in a folder; a pickle beside the configuration is never opened.

    Raises NotFoundError, ConfigError, and WeightsError (of kind no_safetensors, or for a broken header).
    """
    file, weights = path / CONFIG_NAME, path / WEIGHTS_NAME
    if not file.is_file():
        raise NotFoundError(f"{path} holds no {CONFIG_NAME}; name the folder of one adapter.")
    try:
        if file.stat().st_size > MOST_CONFIG:
            raise ConfigError(
                "too_large", f"{CONFIG_NAME} has more than {MOST_CONFIG:,} bytes, and is none of PEFT"
            )
        config = parse_config(file.read_bytes())
    except ConfigError as error:
        raise ConfigError(error.kind, f"{path} cannot be read: {error}.") from error
    except OSError as error:
        raise ConfigError("unreadable", f"{file} cannot be read: {error.strerror}.") from error
    if not config.is_lora:
        raise ConfigError("not_lora", f"{path} holds a {config.peft_type} adapter; only LoRA is understood.")
    if not weights.is_file():
        raise WeightsError("no_safetensors", f"{path} has no {WEIGHTS_NAME}; pickles are never opened.")
    try:
        header = parse_header(header_bytes(weights), weights.stat().st_size)
    except WeightsError as error:
        raise WeightsError(error.kind, f"{path} cannot be read: {error}.") from error
    return AdapterFolder(path, config, weights, lora_modules(header, config))
