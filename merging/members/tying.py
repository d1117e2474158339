"""Properties of a base model's weights by its class: tensors with several names, and transposed ones."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from catalog.errors import ConfigError, UsageError
from catalog.files import load_json

if TYPE_CHECKING:
    from torch import nn

_FLAG = "tie_word_embeddings"
_MAX_CONFIG = 16 * 1024 * 1024


def modules_sharing_weights(base: Path, module: str) -> tuple[str, ...]:
    """The modules with which a module of the base model in a folder shares its weights, empty if none.

    They are those of the model that config.json describes, built without memory: the defaults of its class
    count, not only the file. Modules of the same short name count as one, because names in a checkpoint may
    differ from the model's. Raises UsageError if config.json does not state whether embeddings are shared and
    transformers is not installed or does not know the model.
    """
    config = base_config(base)
    model = _built(config)
    if model is None:
        return _tying_flags(base, config, module)
    names: dict[int, list[str]] = {}
    for name, value in model.named_parameters(remove_duplicate=False):
        if name.endswith(".weight"):
            names.setdefault(id(value), []).append(name.removesuffix(".weight"))
    short = _short(module)
    for group in names.values():
        if len(group) > 1 and any(_short(name) == short for name in group):
            return tuple(name for name in group if _short(name) != short) or tuple(group)
    return ()


def transposed_layers(base: Path) -> frozenset[str] | None:
    """The short names of the layers whose weights the base model in a folder stores as (in, out), as in
    GPT-2.

    PEFT goes by the layer too, and corrects fan_in_fan_out. None if config.json does not name a model that
    transformers knows.
    """
    model = _built(base_config(base))
    if model is None:
        return None
    from transformers.pytorch_utils import Conv1D

    return frozenset(_short(name) for name, module in model.named_modules() if isinstance(module, Conv1D))


def _short(module: str) -> str:
    return module.rpartition(".")[2]


def base_config(base: Path) -> dict[str, Any]:
    """The content of the base model's config.json; empty if it cannot be read."""
    try:
        document = load_json((base / "config.json").read_bytes(), max_bytes=_MAX_CONFIG)
    except (OSError, ConfigError):
        return {}
    return document if isinstance(document, dict) else {}


def _built(config: Mapping[str, Any]) -> nn.Module | None:
    """The model of a configuration on the meta device; None if transformers does not know it.

    No code in the base model's folder is executed.
    """
    try:
        import torch
        import transformers
    except ImportError:
        return None
    settings = {key: value for key, value in config.items() if key not in ("model_type", "auto_map")}
    names = config.get("architectures")
    names = [name for name in names if isinstance(name, str)] if isinstance(names, list) else []
    classes = [getattr(transformers, name, None) for name in names]
    level = transformers.logging.get_verbosity()
    transformers.logging.set_verbosity(logging.CRITICAL)
    try:
        settings_class = transformers.AutoConfig.for_model(str(config.get("model_type")), **settings)
        with torch.device("meta"):
            build: Any = next(
                (model_class._from_config for model_class in classes if model_class is not None), None
            )
            model: nn.Module = (build or transformers.AutoModelForCausalLM.from_config)(settings_class)
            return model
    # Its classes raise any kind of error for an invalid configuration; then the file's flags decide.
    except Exception:
        return None
    finally:
        transformers.logging.set_verbosity(level)


def _tying_flags(base: Path, config: Mapping[str, Any], module: str) -> tuple[str, ...]:
    """The flags of config.json, including those of nested configurations."""
    nested = [value for value in config.values() if isinstance(value, dict)]
    flags = [section[_FLAG] for section in (config, *nested) if isinstance(section.get(_FLAG), bool)]
    if not flags:
        raise UsageError(
            f"Whether {module} shares its weights with another layer of {base} is not known: config.json "
            f"does not contain {_FLAG}, and transformers does not know the model or is not installed; "
            "pip install 'loradex[eval]', or add it to config.json."
        )
    return ("another layer",) if any(flags) else ()
