"""An adapter in a folder on this machine: its configuration and its safetensors file, as PEFT saves them."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from catalog.adapters.config import AdapterConfig, parse_config
from catalog.adapters.engine_rules import EngineFacts, engine_facts
from catalog.adapters.feature import PARTIAL, beside_the_update
from catalog.adapters.header import Header, parse_header
from catalog.adapters.records import Finding
from catalog.adapters.spec import AdapterSpec, lora_modules
from catalog.adapters.weights import header_bytes
from catalog.errors import ConfigError, NotFoundError, WeightsError
from catalog.files import read_up_to

CONFIG_NAME = "adapter_config.json"
WEIGHTS_NAME = "adapter_model.safetensors"
MOST_CONFIG = 1024 * 1024


@dataclass(frozen=True)
class AdapterFolder:
    """The content of a folder; only the header of the weights was read."""

    path: Path
    config: AdapterConfig
    weights: Path
    spec: AdapterSpec

    @property
    def partial(self) -> tuple[Finding, ...]:
        """The features of its update in addition to scaling * B A, named by the crawl's reasons."""
        features_beside = beside_the_update(self.config, self.spec)
        return tuple(feature for feature in features_beside if feature.reason in PARTIAL)


def is_adapter_folder(path: Path) -> bool:
    """Whether the path is a folder with an adapter_config.json."""
    return (path / CONFIG_NAME).is_file()


def read_folder(path: Path) -> AdapterFolder:
    """The adapter in a folder; pickles are never opened.

    Raises NotFoundError, ConfigError, and WeightsError (of kind no_safetensors, or for a broken header).
    """
    if not is_adapter_folder(path):
        raise NotFoundError(f"{path} does not contain {CONFIG_NAME}; give the folder of one adapter.")
    config, weights = read_config(path, f"{path} cannot be read"), path / WEIGHTS_NAME
    if not config.is_lora:
        raise ConfigError(
            "not_lora", f"{path} contains a {config.peft_type} adapter; only LoRA is supported."
        )
    if not weights.is_file():
        raise WeightsError(
            "no_safetensors", f"{path} does not contain {WEIGHTS_NAME}; pickles are never opened."
        )
    header = read_header(weights, f"{path} cannot be read")
    return AdapterFolder(path, config, weights, lora_modules(header, config))


def read_engine_facts(folder: Path) -> EngineFacts | None:
    """What engines look at in the adapter in a folder, by its configuration alone without a weights file that
    can be read; None if the configuration cannot be.
    """
    try:
        config = read_config(folder, f"{folder} cannot be read")
    except ConfigError:
        return None
    try:
        return engine_facts(config, read_folder(folder).spec)
    except (ConfigError, WeightsError):
        return engine_facts(config)


def read_config(folder: Path, refusal: str) -> AdapterConfig:
    """The configuration in a folder; raises ConfigError, whose message begins with `refusal`."""
    try:
        data = read_up_to(folder / CONFIG_NAME, MOST_CONFIG)
        if data is None:
            raise ConfigError(
                "too_large",
                f"{CONFIG_NAME} has more than {MOST_CONFIG:,} bytes, too many for a configuration of PEFT",
            )
        return parse_config(data)
    except ConfigError as error:
        raise ConfigError(error.kind, f"{refusal}: {error}.") from error
    except OSError as error:
        raise ConfigError("unreadable", f"{refusal}: its configuration cannot be read: {error}.") from error


def read_header(weights: Path, refusal: str) -> Header:
    """The header of a safetensors file; raises WeightsError, whose message begins with `refusal`."""
    try:
        return parse_header(header_bytes(weights), weights.stat().st_size)
    except WeightsError as error:
        raise WeightsError(error.kind, f"{refusal}: {error}.") from error
