"""The modules of a base model that a LoRA can adapt: names and widths, without its weights.

`base_modules.json` contains those of the known base models, made by tools/base_modules.py; for any other base
model in a folder they are built from its config.json on torch's meta device.
"""

from __future__ import annotations

import functools
import json
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from importlib.resources import files
from pathlib import Path
from typing import TYPE_CHECKING, Any

from catalog.adapters.bases import dims_name, initial_table
from catalog.errors import UsageError
from catalog.files import read_up_to

if TYPE_CHECKING:
    from torch import nn

Shape = tuple[int | None, int | None]
# Parts of a name that one version of a library has and another lacks.
_MOVABLE = frozenset({"model", "language_model"})
_MOST_CONFIG = 1024 * 1024
_MOST_LAYERS = 10_000


@dataclass(frozen=True)
class BaseModules:
    """(in_features, out_features) by module name; None for a width that fine-tunes change (the vocabulary).

    An embedding counts as a layer from the vocabulary to the hidden width.
    """

    shapes: Mapping[str, Shape]

    @cached_property
    def parts(self) -> frozenset[str]:
        """Every part of every name."""
        return frozenset(part for name in self.shapes for part in name.split("."))

    @cached_property
    def _reduce_names(self) -> Mapping[str, tuple[str, ...]]:
        modules: dict[str, list[str]] = {}
        for name in self.shapes:
            modules.setdefault(reduce_name(name), []).append(name)
        return {name: tuple(names) for name, names in modules.items()}

    def place(self, name: str, in_features: int | None, out_features: int | None) -> str | None:
        """The one module that a name means: itself, or the only one of these widths that differs from it in
        `model.` and `language_model.` alone; None if no module, or more than one, matches.

        A width of None is not compared.
        """
        if name in self.shapes:
            return name
        candidates = self._reduce_names.get(reduce_name(name), ())
        fit = [module for module in candidates if self.misfit(module, in_features, out_features) is None]
        return fit[0] if len(fit) == 1 else None

    def misfit(self, name: str, in_features: int | None, out_features: int | None) -> str | None:
        """The widths of a module of the base model that a factor pair does not match, in words; None if it
        matches."""
        return misfit_widths(self.shapes.get(name, (None, None)), in_features, out_features)


def misfit_widths(shape: Shape, in_features: int | None, out_features: int | None) -> str | None:
    """The widths of a module in words where those of a factor pair are others, None where they match.

    A width of None is not compared.
    """
    pairs = zip(shape, (in_features, out_features), strict=True)
    if all(width is None or other is None or width == other for width, other in pairs):
        return None
    return " to ".join("any" if width is None else str(width) for width in shape)


def reduce_name(name: str) -> str:
    """A name without the leading parts that differ between versions of a library."""
    parts = name.split(".")
    while len(parts) > 1 and parts[0] in _MOVABLE:
        parts = parts[1:]
    return ".".join(parts)


def modules_of_base(canonical: str | None) -> BaseModules | None:
    """The modules of a base model in the built-in table, by its canonical name."""
    name = dims_name(canonical) if canonical else None
    return None if name is None else _known(name)


@functools.lru_cache(maxsize=256)
def modules_of_spelling(raw: str | None) -> BaseModules | None:
    """The modules of the base model that a configuration names in any spelling of the built-in table."""
    return modules_of_base(initial_table().identify(raw).canonical) if raw else None


def modules_of_folder(folder: Path) -> BaseModules:
    """The modules of the model whose config.json lies in a folder; raises UsageError.

    Only config.json is read; no code in the folder is executed.
    """
    file = folder / "config.json"
    try:
        data = read_up_to(file, _MOST_CONFIG)
        if data is None:
            raise UsageError(f"{file} is larger than any model's configuration.")
        config = json.loads(data)
    except (OSError, ValueError, RecursionError) as error:
        raise UsageError(f"{file} cannot be read as a model's configuration: {error}.") from error
    if not isinstance(config, dict):
        raise UsageError(f"{file} does not contain a JSON object; give the folder of a base model.")
    if _most_layers(config) > _MOST_LAYERS:
        raise UsageError(f"{file} requires more layers than any model has.")
    try:
        return built_modules(config)
    except Exception as error:  # any error of a library for values that do not describe a model
        reason = str(error).partition("\n")[0]
        raise UsageError(f"{file} does not describe a model: {reason}.") from error


def _most_layers(config: Mapping[str, Any]) -> int:
    """The largest number of layers in a configuration or a nested one."""
    inside = (_most_layers(value) for value in config.values() if isinstance(value, dict))
    own = (v for key, v in config.items() if key.endswith(("layers", "layer")) and isinstance(v, int))
    return max((*inside, *own), default=0)


def built_modules(config: Mapping[str, Any]) -> BaseModules:
    """The linear layers and embeddings of the model of a configuration, built without memory: of the causal
    model, else of that for images and text.

    Raises the errors of transformers for an unknown configuration.
    """
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM, AutoModelForImageTextToText

    settings = {key: value for key, value in config.items() if key not in ("model_type", "auto_map")}
    config_object = AutoConfig.for_model(str(config.get("model_type")), **settings)
    build: Any = AutoModelForCausalLM.from_config
    with torch.device("meta"):
        try:
            model = build(config_object)
        except ValueError:
            build = AutoModelForImageTextToText.from_config
            model = build(config_object)
    return modules_of_model(model)


def modules_of_model(model: nn.Module) -> BaseModules:
    """The linear layers and embeddings of a model, by their names in it."""
    from torch import nn
    from transformers.pytorch_utils import Conv1D

    shapes: dict[str, Shape] = {}
    for name, module in model.named_modules():
        if isinstance(module, nn.Linear):
            shapes[name] = (module.in_features, module.out_features)
        elif isinstance(module, nn.Embedding):
            shapes[name] = (module.num_embeddings, module.embedding_dim)
        elif isinstance(module, Conv1D):
            shapes[name] = (module.weight.shape[0], module.weight.shape[1])
    return BaseModules(shapes)


@functools.cache
def _known(name: str) -> BaseModules:
    text = files("catalog.adapters").joinpath("base_modules.json").read_text(encoding="utf-8")
    widths = json.loads(text)[name]
    shapes = {module: tuple(shape) for module, shape in widths["outside"].items()}
    for layer in range(widths["layers"]):
        shapes |= {f"model.layers.{layer}.{short}": tuple(shape) for short, shape in widths["inside"].items()}
    return BaseModules(shapes)
