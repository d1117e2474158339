"""The files of an adapter as plain PEFT loads them: names of tensors, and a configuration that it accepts.

The bytes of tensors never change. Files that PEFT loads stay unchanged, byte for byte; problems that only the
user can decide are reported.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from catalog.adapters.config import AdapterConfig, parse_config
from catalog.adapters.engine_rules import Engine, engine_facts, load_engines, verdict
from catalog.adapters.folder import CONFIG_NAME, MOST_CONFIG, WEIGHTS_NAME
from catalog.adapters.header import PREFIX, Header, parse_header
from catalog.adapters.names import ModuleNames, peft_names
from catalog.adapters.patterns import Budget, Pattern, is_regular_expression
from catalog.adapters.peft_config import peft_refusals, settings_of_nothing
from catalog.adapters.spec import AdapterSpec, adapter_names, lora_modules
from catalog.adapters.weights import header_bytes
from catalog.errors import ConfigError, LoradexError
from catalog.files import UTF8_BOM, read_up_to, replace_file

_CHUNK = 1 << 20


@dataclass(frozen=True)
class _Adapter:
    """The content of a folder: its configuration, the head of its weights, and the reading of its names."""

    config: AdapterConfig
    header: Header
    names: ModuleNames
    spec: AdapterSpec

    @property
    def modules(self) -> dict[str, str]:
        """The kind of each module by the name under which PEFT finds it in the base."""
        return {self.names.written[module.name]: module.kind for module in self.spec.modules}


def make_loadable(folder: Path) -> frozenset[str]:
    """Rewrites a folder's files if PEFT would not load them, or only in part; other files stay unchanged.

    Names of tensors become PEFT's own. In the configuration a byte order mark goes, null becomes what it
    means (no bias, no dropout, no pattern), modules and tokens absent from the file are removed, and target
    modules that leave out modules of the file become the file's. A folder that cannot be read, or in which
    two tensors would get one name, stays as it is (see `load_problems`). Raises OSError if writing fails.
    """
    adapter = _read(folder)
    if isinstance(adapter, str):
        return frozenset()
    renamed = peft_names(adapter.header, adapter.names)
    if len(set(renamed.values())) < len(renamed):
        return frozenset()
    changed = set()
    data = (folder / CONFIG_NAME).read_bytes()
    if (repaired := _repair_config(data, adapter)) != data:
        (folder / CONFIG_NAME).write_bytes(repaired)
        changed.add(CONFIG_NAME)
    if any(name != new for name, new in renamed.items()):
        _rename_tensors(folder / WEIGHTS_NAME, adapter.header, renamed)
        changed.add(WEIGHTS_NAME)
    return frozenset(changed)


def load_problems(folder: Path) -> tuple[str, ...]:
    """Why plain PEFT does not load all of the adapter in a folder, in phrases; empty if it does."""
    adapter = _read(folder)
    if isinstance(adapter, str):
        return (adapter,)
    spec, problems = adapter.spec, []
    if spec.respelled:
        total = len(adapter.names.keys)
        some = "none" if len(spec.respelled) == total else f"{total - len(spec.respelled)}"
        problems.append(f"PEFT finds {some} of its {total} factors under names such as {spec.respelled[0]}")
    if spec.absent:
        problems.append(f"its base model has no module {spec.absent[0]}")
    problems += [
        f"PEFT does not load its configuration: {reason}" for reason in peft_refusals(adapter.config, spec)
    ]
    if left := _modules_without_target(adapter.config, adapter.modules):
        problems.append(f"its configuration does not target {len(left)} of its modules, such as {left[0]}")
    return tuple(problems)


def engine_problems(folder: Path, engines: Sequence[Engine] | None = None) -> tuple[str, ...]:
    """Warnings about engines that do not run the adapter in a folder as PEFT does, a sentence an engine.

    `engines` have the rules, by default the program's own. Engines that read no folder of PEFT are not named.
    """
    adapter = _read(folder)
    if isinstance(adapter, str):
        return ()
    facts = engine_facts(adapter.config, adapter.spec)
    every = load_engines() if engines is None else engines
    readers = [engine for engine in every if all(rule.when != "any" for rule in engine.rules)]
    reasons = ((engine.title, "; ".join(verdict(engine, facts).reasons)) for engine in readers)
    return tuple(f"{title} {text}." for title, text in reasons if text)


def _read(folder: Path) -> _Adapter | str:
    """The adapter in a folder, or why it cannot be read."""
    try:
        data = read_up_to(folder / CONFIG_NAME, MOST_CONFIG)
        if data is None:
            return f"its {CONFIG_NAME} is too large"
        config = parse_config(data)
        if not config.is_lora:
            return f"it is {config.peft_type}, not LoRA"
        weights = folder / WEIGHTS_NAME
        header = parse_header(header_bytes(weights), weights.stat().st_size)
    except LoradexError as error:
        return str(error)
    except OSError as error:
        return f"it cannot be read: {error.strerror}"
    names = adapter_names(header, config)
    return _Adapter(config, header, names, lora_modules(header, config, names))


def _repair_config(data: bytes, adapter: _Adapter) -> bytes:
    """The configuration as PEFT loads it; the same bytes if no change is needed."""
    config, raw = adapter.config, dict(adapter.config.raw)
    meant: dict[str, Any] = {"lora_dropout": 0.0, "rank_pattern": {}, "alpha_pattern": {}}
    if all(other.kind not in ("bias", "lora_bias") for other in adapter.spec.others):
        meant["bias"] = "none"
    changes = {key: value for key, value in meant.items() if key in raw and raw[key] is None}
    if any(reason.endswith(" weights") for reason in peft_refusals(config, adapter.spec)):
        changes |= settings_of_nothing(config, adapter.spec)
    if adapter.modules and _modules_without_target(config, adapter.modules):
        changes["target_modules"] = sorted(adapter.modules)
        unset = ("exclude_modules", "layers_to_transform", "layers_pattern")
        changes |= {key: None for key in unset if raw.get(key) is not None}
    if not changes:
        return data.removeprefix(UTF8_BOM)
    return f"{json.dumps(raw | changes, indent=2, sort_keys=True)}\n".encode()


def _modules_without_target(config: AdapterConfig, modules: Mapping[str, str]) -> list[str]:
    """The modules that the configuration does not target, so that PEFT drops their factors; sorted.

    A pattern that cannot be evaluated safely counts as targeting all modules, an invalid one as targeting
    none.
    """
    if config.target_parameters:
        return []
    patterns = (config.target_modules, config.exclude_modules)
    if not all(is_regular_expression(text) for text in patterns if isinstance(text, str)):
        return sorted(modules)
    budget, left = Budget(), []
    try:
        for name, kind in sorted(modules.items()):
            if not _is_targeted(config, name, kind, budget):
                left.append(name)
    except ConfigError:
        return []
    return left


def _is_targeted(config: AdapterConfig, name: str, kind: str, budget: Budget) -> bool:
    """Whether PEFT adapts a module (`check_target_module_exists` of PEFT 0.21)."""
    if config.exclude_modules and _is_named(config.exclude_modules, name, budget):
        return False
    targets = config.target_modules
    if targets is None:
        return False
    if isinstance(targets, str) and targets.lower() == "all-linear":
        return kind == "linear" and name.rpartition(".")[2] != "lm_head"
    layers = config.layers_to_transform
    if isinstance(targets, str) or name in targets or not layers or config.raw.get("layers_pattern"):
        return _is_named(targets, name, budget)
    layer = next((int(part) for part in name.split(".")[2:-1] if part.isdecimal()), None)
    return layer in layers and _is_named(targets, name, budget)


def _is_named(names: tuple[str, ...] | str, module: str, budget: Budget) -> bool:
    """Whether a pattern is the whole name, or one of these names is it or the end of it."""
    if isinstance(names, str):
        return Pattern(names, budget).matches(module, budget)
    return any(f".{module}".endswith(f".{name}") for name in names)


def _rename_tensors(file: Path, header: Header, names: Mapping[str, str]) -> None:
    """Rewrites a safetensors file with other names, in the order of its bytes, metadata kept."""
    entries: dict[str, Any] = {"__metadata__": dict(header.metadata)} if header.metadata else {}
    for tensor in header.tensors:
        entries[names[tensor.name]] = {
            "dtype": tensor.dtype,
            "shape": list(tensor.shape),
            "data_offsets": [tensor.begin, tensor.end],
        }
    text = json.dumps(entries, separators=(",", ":"), ensure_ascii=False).encode()
    text += b" " * (-len(text) % 8)
    with replace_file(file) as new, file.open("rb") as source, new.open("wb") as target:
        source.seek(PREFIX + header.length)
        target.write(len(text).to_bytes(PREFIX, "little") + text)
        shutil.copyfileobj(source, target, _CHUNK)
