"""A member of a merge: an adapter folder whose every tensor is understood, or a sentence why not.

What a merge of updates cannot carry over (DoRA's magnitudes, biases, whole saved layers, an initialisation
that changed the base) is refused by name, so that nothing of an adapter is lost in silence. Factors are read
with plain reads: pages of a memory map would count as memory until the whole file has been touched.
"""

from __future__ import annotations

import functools
import hashlib
import re
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace
from io import RawIOBase
from pathlib import Path
from typing import TYPE_CHECKING

from catalog.adapter import (
    AdapterConfig,
    AdapterSpec,
    Header,
    LoraModule,
    Tensor,
    factor_key,
    header_length,
    lora_modules,
    parse_config,
    parse_header,
)
from catalog.errors import ConfigError, MergeError, UsageError, WeightsError

if TYPE_CHECKING:
    import torch

CONFIG_NAME = "adapter_config.json"
WEIGHTS_NAME = "adapter_model.safetensors"
_PREFIX = 8
_MAX_CONFIG = 1024 * 1024
_MAX_CARD = 64 * 1024
_CHUNK = 1 << 22
# What `without` calls the weights of the base that an adapter repeats.
COPIES = "copies"
_LEAF = re.compile(r"(\.modules_to_save|\.base_layer)?\.(weight|bias)$")
# Initialisations that change the base: the stored factors are relative to a base that nobody else has.
_RELATIVE_INITS = ("pissa", "corda", "olora", "loftq", "lora_ga")
_VARIANTS = ("use_qalora", "use_bdlora", "kasa_config", "monteclora_config", "arrow_config")
_OTHER_TENSORS: Mapping[str, str] = {
    "magnitude": "magnitudes of DoRA",
    "bias": "biases",
    "lora_bias": "biases of LoRA",
    "saved": "whole layers that replace the base's (modules_to_save)",
    "base_copy": "a copy of layers of the base",
    "trainable_tokens": "trained tokens",
    "unknown": "tensors of an unknown kind",
}
_LICENSE = re.compile(r"^license:[ \t]*[\"']?([\w.+-]{1,64})[\"']?[ \t]*$", re.MULTILINE)


@dataclass(frozen=True, slots=True)
class Member:
    """An adapter that can be merged.

    `name` is what records and messages call it. `digest` is the sha256 of the weights where somebody has
    pinned it, `source` what else is known of its origin (repository, commit), `left_out` the tensors that the
    caller asked to leave out; all three are copied to merge.json.
    """

    name: str
    folder: Path
    config: AdapterConfig
    spec: AdapterSpec
    places: Mapping[str, tuple[Tensor, Tensor]] = field(hash=False, repr=False)
    start: int
    licence: str | None = None
    digest: str | None = None
    source: Mapping[str, str] = field(default_factory=dict, hash=False)
    left_out: tuple[str, ...] = ()

    @property
    def weights(self) -> Path:
        """The safetensors file."""
        return self.folder / WEIGHTS_NAME

    @property
    def modules(self) -> dict[str, LoraModule]:
        """Modules by name."""
        return {module.name: module for module in self.spec.modules}


def load_member(
    folder: Path,
    *,
    name: str | None = None,
    digest: str | None = None,
    licence: str | None = None,
    source: Mapping[str, str] | None = None,
    without: Collection[str] = (),
) -> Member:
    """The adapter in a folder that PEFT has written, its header checked, no weights read.

    `without` names layers, such as lm_head, of which the adapter's factors and saved weights are left out, or
    says "copies" for the weights of the base that PEFT saves beside a LoRA of the embeddings or the output
    head (`lm_head.base_layer.weight`): without these nothing is lost.
    Raises MergeError for an adapter that holds more than plain LoRA, ConfigError and WeightsError for broken
    files, UsageError where there is no adapter.
    """
    name = name or folder.name
    config = _config(folder, name)
    _refuse_features(name, config)
    header = _header(folder / WEIGHTS_NAME, name)
    left_out = tuple(tensor.name for tensor in header.tensors if _named(tensor.name, without))
    header = replace(header, tensors=tuple(t for t in header.tensors if not _named(t.name, without)))
    spec = lora_modules(header, config)
    _refuse_tensors(name, spec)
    return Member(
        name=name,
        folder=folder,
        config=config,
        spec=spec,
        places=_places(header),
        start=_PREFIX + header.length,
        licence=licence or _licence(folder),
        digest=digest,
        source=dict(source or {}),
        left_out=left_out,
    )


def load_members(folders: Sequence[Path | Member], *, base: str | None = None) -> tuple[Member, ...]:
    """Members that fit together: one base model, and one shape for every module.

    `base` says that all of them belong to this base, whatever spelling each gives.
    Raises MergeError and what `load_member` raises.
    """
    if not folders:
        raise UsageError("There is nothing to merge; name at least one adapter.")
    members = [entry if isinstance(entry, Member) else load_member(entry) for entry in folders]
    if base is None:
        _refuse_bases(members)
    _refuse_shapes(members)
    return tuple(members)


def base_of(members: Sequence[Member], base: str | None = None) -> str | None:
    """The base model of a merge: the one given, or the first that a member names."""
    return base or next((m.config.base_model for m in members if m.config.base_model), None)


def read_module(member: Member, module: str) -> tuple[torch.Tensor, torch.Tensor]:
    """A of (rank, in) and B of (out, rank) as stored, in the file's data type and in memory of their own.

    Raises WeightsError where the file ends early or cannot be read.
    """
    a, b = member.places[module]
    try:
        with member.weights.open("rb", buffering=0) as file:
            return _read(file, member, a), _read(file, member, b)
    except OSError as error:
        raise WeightsError("unreadable", f"The weights of {member.name} cannot be read: {error}.") from error


def digest_of(path: Path) -> str:
    """The sha256 of a file in hexadecimal; raises WeightsError where it cannot be read."""
    digest = hashlib.sha256()
    try:
        with path.open("rb") as file:
            while chunk := file.read(_CHUNK):
                digest.update(chunk)
    except OSError as error:
        raise WeightsError("unreadable", f"The file {path.name} cannot be read: {error}.") from error
    return digest.hexdigest()


def _config(folder: Path, name: str) -> AdapterConfig:
    try:
        with (folder / CONFIG_NAME).open("rb") as file:
            data = file.read(_MAX_CONFIG + 1)
    except FileNotFoundError as error:
        raise UsageError(f"{folder} holds no {CONFIG_NAME}; name a folder that PEFT has written.") from error
    except OSError as error:
        raise ConfigError("unreadable", f"The configuration of {name} cannot be read: {error}.") from error
    try:
        return parse_config(data)
    except ConfigError as error:
        raise ConfigError(error.kind, f"{name} cannot be merged: {error}.") from error


def _header(path: Path, name: str) -> Header:
    try:
        with path.open("rb") as file:
            first = file.read(_PREFIX)
            return parse_header(first + file.read(header_length(first)), path.stat().st_size)
    except FileNotFoundError as error:
        raise UsageError(f"{name} holds no {WEIGHTS_NAME}; only safetensors files are read.") from error
    except OSError as error:
        raise WeightsError("unreadable", f"The weights of {name} cannot be read: {error}.") from error
    except WeightsError as error:
        raise WeightsError(error.kind, f"{name} cannot be merged: {error}.") from error


def _refuse_features(name: str, config: AdapterConfig) -> None:
    """Raises MergeError for whatever the configuration switches on beyond plain LoRA."""
    init = config.init_lora_weights
    relative = isinstance(init, str) and init.lower().startswith(_RELATIVE_INITS)
    variants = [key for key in _VARIANTS if config.switched_on(key)]
    reasons: tuple[tuple[object, str], ...] = (
        (not config.is_lora, f"it is {config.peft_type}, not LoRA"),
        (config.use_dora, "it is DoRA, whose magnitudes do not add"),
        (config.bias != "none", f"it trains biases (bias={config.bias})"),
        (config.lora_bias, "it has biases of LoRA (lora_bias)"),
        (config.modules_to_save, f"it replaces whole layers (modules_to_save {config.modules_to_save})"),
        (config.trainable_token_indices, "it trains tokens (trainable_token_indices)"),
        (config.target_parameters, "it targets bare parameters (target_parameters)"),
        (config.layer_replication, "it repeats layers of the base (layer_replication)"),
        (config.alora_invocation_tokens is not None, "it is an activated LoRA (alora_invocation_tokens)"),
        (relative, f"its update is relative to a base that {init} changed; convert it with PEFT first"),
        (variants, f"it is a variant of LoRA ({', '.join(variants)})"),
    )
    for present, reason in reasons:
        if present:
            raise MergeError(f"{name} cannot be merged: {reason}.")


def _refuse_tensors(name: str, spec: AdapterSpec) -> None:
    """Raises MergeError for tensors that no merge of updates carries over."""
    for problem in spec.problems:
        what = problem.kind.replace("_", " ")
        raise MergeError(
            f"{name} cannot be merged: its weights contradict themselves ({what}: {problem.detail})."
        )
    for other in spec.others:
        raise MergeError(
            f"{name} cannot be merged: it holds {_OTHER_TENSORS[other.kind]}, such as {other.name}"
            f"{_remedy(spec)}."
        )
    if not spec.modules:
        raise MergeError(f"{name} cannot be merged: it holds no LoRA factors.")
    kinds: dict[str, str] = {}
    for module in spec.modules:
        if kinds.setdefault(module.name, module.kind) != module.kind:
            raise MergeError(f"{name} cannot be merged: {module.name} is an embedding and a linear layer.")


def _remedy(spec: AdapterSpec) -> str:
    """How to leave out what stands in the way, where that can be done."""
    kinds = {other.kind for other in spec.others}
    if kinds == {"base_copy"}:
        return f"; --without {COPIES} leaves it out and loses nothing"
    if kinds <= {"base_copy", "saved"}:
        layers = {_LEAF.sub("", other.name).rpartition(".")[2] for other in spec.others}
        return f"; --without {','.join(sorted(layers))} leaves out these layers"
    return ""


def _named(tensor: str, without: Collection[str]) -> bool:
    """Whether a tensor is of a layer that is named, or a copy of the base where copies are named."""
    parts = tensor.split(".")
    return any(part in without for part in parts) or (COPIES in without and "base_layer" in parts)


def _refuse_bases(members: Sequence[Member]) -> None:
    named = [member for member in members if member.config.base_model]
    for member in named[1:]:
        if member.config.base_model != named[0].config.base_model:
            raise MergeError(
                f"{named[0].name} belongs to {named[0].config.base_model} and {member.name} to "
                f"{member.config.base_model}; merge adapters of one base, or name the one they share."
            )


def _refuse_shapes(members: Sequence[Member]) -> None:
    seen: dict[str, tuple[Member, LoraModule]] = {}
    for member in members:
        if member.config.fan_in_fan_out != members[0].config.fan_in_fan_out:
            raise MergeError(
                f"{member.name} and {members[0].name} differ in fan_in_fan_out; merge them apart."
            )
        for module in member.spec.modules:
            first, other = seen.setdefault(module.name, (member, module))
            shapes = [(m.kind, m.in_features, m.out_features) for m in (other, module)]
            if shapes[0] != shapes[1]:
                raise MergeError(
                    f"{module.name} is {_shape(other)} in {first.name} and {_shape(module)} in "
                    f"{member.name}; merge adapters of one base."
                )


def _shape(module: LoraModule) -> str:
    return f"{module.kind} of {module.in_features} to {module.out_features}"


def _places(header: Header) -> dict[str, tuple[Tensor, Tensor]]:
    halves: dict[str, dict[str, Tensor]] = {}
    for tensor in header.tensors:
        key = factor_key(tensor.name)
        if key is not None:
            halves.setdefault(key.module, {})[key.side] = tensor
    return {module: (pair["A"], pair["B"]) for module, pair in halves.items()}


def _read(file: RawIOBase, member: Member, tensor: Tensor) -> torch.Tensor:
    import torch

    raw = torch.empty(tensor.end - tensor.begin, dtype=torch.uint8)
    file.seek(member.start + tensor.begin)
    view, done = memoryview(raw.numpy().data), 0
    while done < len(view) and (count := file.readinto(view[done:])):
        done += count
    if done < raw.numel():
        raise WeightsError("truncated", f"The weights of {member.name} end early; fetch them again.")
    return raw.view(_dtypes()[tensor.dtype]).reshape(tensor.shape)


@functools.cache
def _dtypes() -> Mapping[str, torch.dtype]:
    import torch

    return {
        "F64": torch.float64,
        "F32": torch.float32,
        "F16": torch.float16,
        "BF16": torch.bfloat16,
        "F8_E4M3": torch.float8_e4m3fn,
        "F8_E5M2": torch.float8_e5m2,
    }


def _licence(folder: Path) -> str | None:
    """The licence that the front matter of the model card names, None where there is none."""
    try:
        with (folder / "README.md").open("rb") as file:
            text = file.read(_MAX_CARD).decode("utf-8", "replace")
    except OSError:
        return None
    parts = text.split("\n---", 1)
    found = _LICENSE.search(parts[0]) if text.startswith("---") and len(parts) == 2 else None
    return found[1].lower() if found else None
