"""A LoRA folded into its base: W + s B A for every module, shard by shard, in the base model's layout.

Each shard keeps its header, its tensors' order and their data types; values that change are computed in
float32 and rounded once. One range of rows of one tensor is in memory at a time.
"""

from __future__ import annotations

import math
import os
import shutil
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from io import BufferedReader
from pathlib import Path
from typing import Any, BinaryIO

from catalog.adapters import BaseModules, Header, LoraModule, Tensor, read_header
from catalog.errors import ConfigError, MergeError, UsageError, WeightsError
from catalog.files import load_json
from merging.members import (
    MERGE_RECORD,
    MergeMember,
    load_member,
    modules_sharing_weights,
    new_folder,
    read_module,
    storage,
    transposed_layers,
    write_json,
)

_PREFIX = 8
_CHUNK = 32 * 1024 * 1024
_INDEX = "model.safetensors.index.json"
_SINGLE = "model.safetensors"
_MAX_JSON = 64 * 1024 * 1024
_WEIGHTS = frozenset({".safetensors", ".bin", ".pt", ".pth", ".gguf", ".h5", ".msgpack", ".onnx", ".ckpt"})
_NOT_COPIED = frozenset({MERGE_RECORD, "README.md", "pytorch_model.bin.index.json"})
_DTYPES: Mapping[str, str] = {"F64": "float64", "F32": "float32", "F16": "float16", "BF16": "bfloat16"}


@dataclass(frozen=True, slots=True)
class FoldReport:
    """The written folder, its shards, how many modules changed, and the bytes of all shards."""

    folder: Path
    shards: tuple[str, ...]
    modules: int
    size: int


def apply_to(
    base: Path,
    adapter: Path | MergeMember,
    out: Path,
    *,
    device: str = "cpu",
    overwrite: bool = False,
    progress: Callable[[int, int], None] | None = None,
) -> FoldReport:
    """The base model in a folder with an adapter added, as a full model in the folder `out`.

    Configuration and tokenizer are copied, weights of other formats are not. `progress` is called with the
    number of tensors changed and the total. Raises MergeError if the base model lacks a module of the
    adapter, UsageError for a folder without a base model in safetensors, StorageError if writing fails; `out`
    is written atomically.
    """
    member = adapter if isinstance(adapter, MergeMember) else load_member(adapter, purpose="added to a base")
    headers = _headers(base)
    turned = transposed_layers(base)
    changes = _changes(base, member, headers, turned)
    done, size = 0, 0
    with new_folder(out, overwrite) as folder:
        for name, header in headers.items():
            with storage(out), (base / name).open("rb") as source, (folder / name).open("wb") as target:
                _copy(source, target, _PREFIX + header.length)
                for tensor in header.tensors:
                    if tensor.name in changes:
                        module = changes[tensor.name]
                        is_turned = _is_turned(member, module, turned)
                        _add(source, target, tensor, member, module, device, is_turned=is_turned)
                        done += 1
                        if progress is not None:
                            progress(done, len(changes))
                    else:
                        _copy(source, target, tensor.end - tensor.begin)
                target.flush()
                os.fsync(target.fileno())
            size += header.file_size
        with storage(out):
            _copy_others(base, folder)
            write_json(folder / MERGE_RECORD, _record(member, tuple(headers), len(changes)))
    return FoldReport(out, tuple(headers), len(changes), size)


def refuse_unfoldable(base: Path, members: Iterable[MergeMember]) -> None:
    """Raises for the first member that `apply_to` would refuse; reads only headers."""
    headers = _headers(base)
    turned = transposed_layers(base)
    for member in members:
        _changes(base, member, headers, turned)


def refuse_misfits(base: Path, members: Iterable[MergeMember]) -> None:
    """Raises MergeError for the first member with a module whose weight has another shape in the base in a
    folder.

    Reads only the headers of the base model's shards. Modules that are absent from them or stored quantised
    are ignored, as is a base model that is not in safetensors.
    """
    try:
        _shards(base)
    except UsageError:
        return
    tensors = _Tensors(_headers(base).values())
    turned = transposed_layers(base)
    for member in members:
        for module in member.spec.modules:
            tensor = tensors.of(module)
            if tensor is not None and tensor.dtype in _DTYPES:
                _refuse_shape(tensor, member, module, turned)


class _Tensors:
    """The tensors of a base, found by the modules of adapters."""

    def __init__(self, headers: Iterable[Header]) -> None:
        self._by_name = {tensor.name: tensor for header in headers for tensor in header.tensors}
        # A stored matrix may be transposed: the width is taken from the tensor itself.
        names = (name.removesuffix(".weight") for name in self._by_name if name.endswith(".weight"))
        self._modules = BaseModules(dict.fromkeys(names, (None, None)))

    def of(self, module: LoraModule) -> Tensor | None:
        """The weight of the layer that a module means; None if there is none, or more than one."""
        name = self._modules.place(module.name, module.in_features, module.out_features)
        return None if name is None else self._by_name[f"{name}.weight"]


def refuse_tied(base: Path, members: Iterable[MergeMember]) -> None:
    """Raises MergeError for the first member with a module that shares its weights with another layer of the
    base in a folder: an update folded into the one would change both.

    Checks only modules outside the layers. Raises UsageError if the base model does not define it.
    """
    for member in members:
        for module in member.spec.modules:
            outside = module.kind == "embedding" or module.layer is None
            if outside and (tied := modules_sharing_weights(base, module.name)):
                raise MergeError(
                    f"{module.name} of the base shares its weights with {', '.join(tied)} (tied "
                    f"embeddings), so that folding {member.name} into it would change both; leave it out "
                    f'(`without="{module.short_name}"`), or load the adapter beside the base.'
                )


def _headers(base: Path) -> dict[str, Header]:
    """The headers of the base's shards by their names, sorted."""
    return {
        name: read_header(base / name, f"The base's shard {name} cannot be used") for name in _shards(base)
    }


def _shards(base: Path) -> tuple[str, ...]:
    """The names of the base's shards, sorted."""
    try:
        index = (base / _INDEX).read_bytes() if (base / _INDEX).is_file() else None
    except OSError as error:
        raise UsageError(f"{base / _INDEX} cannot be read: {error.strerror or error}.") from error
    if index is None:
        if not (base / _SINGLE).is_file():
            raise UsageError(f"{base} does not contain a base model in safetensors; give the folder of one.")
        return (_SINGLE,)
    try:
        document = load_json(index, max_bytes=_MAX_JSON)
    except ConfigError as error:
        raise UsageError(f"{_INDEX} of the base cannot be used: {error}.") from error
    table = document.get("weight_map") if isinstance(document, dict) else None
    if not isinstance(table, dict) or not table:
        raise UsageError(f"{_INDEX} of the base model does not contain weight_map.")
    names = sorted(set(map(str, table.values())))
    for name in names:
        if Path(name).name != name or not (base / name).is_file():
            raise UsageError(f"The base model's shard {name!r} is missing; fetch the complete model.")
    return tuple(names)


def _changes(
    base: Path, member: MergeMember, headers: Mapping[str, Header], turned: frozenset[str] | None
) -> dict[str, LoraModule]:
    """The tensor that each module changes, with the matching shape."""
    refuse_tied(base, [member])
    tensors = _Tensors(headers.values())
    changes = {}
    for module in member.spec.modules:
        tensor = tensors.of(module)
        if tensor is None:
            raise MergeError(f"The base has no {module.name}.weight; {member.name} belongs to another model.")
        _refuse_shape(tensor, member, module, turned)
        if tensor.dtype not in _DTYPES:
            raise MergeError(
                f"{tensor.name} is stored as {tensor.dtype}; fold into a base that is not quantised."
            )
        changes[tensor.name] = module
    return changes


def _refuse_shape(
    tensor: Tensor, member: MergeMember, module: LoraModule, turned: frozenset[str] | None
) -> None:
    shape = (module.out_features, module.in_features)
    if tensor.shape != (shape[::-1] if _is_turned(member, module, turned) else shape):
        raise MergeError(
            f"{tensor.name} of the base has shape {list(tensor.shape)}, {member.name} requires "
            f"{list(shape)} and belongs to another model."
        )


def _is_turned(member: MergeMember, module: LoraModule, turned: frozenset[str] | None) -> bool:
    """Whether the base stores the weight as (in, out): embeddings, and the Conv1D of GPT-2.

    If the base model does not define it (`turned` is None), the adapter's fan_in_fan_out does.
    """
    if module.kind == "embedding":
        return True
    return member.config.fan_in_fan_out if turned is None else module.short_name in turned


def _add(
    source: BufferedReader,
    target: BinaryIO,
    tensor: Tensor,
    member: MergeMember,
    module: LoraModule,
    device: str,
    *,
    is_turned: bool,
) -> None:
    """Write rows of W + s B A from rows of W."""
    import torch

    a, b = (part.to(device).to(torch.float32) for part in read_module(member, module.name))
    left, right = (a.T, b.T) if is_turned else (b, a)
    right = right * module.scaling
    kind = getattr(torch, _DTYPES[tensor.dtype])
    row = (tensor.end - tensor.begin) // tensor.shape[0]
    step = max(1, _CHUNK // row)
    for start in range(0, tensor.shape[0], step):
        rows = slice(start, min(start + step, tensor.shape[0]))
        raw = torch.empty((rows.stop - start) * row, dtype=torch.uint8)
        if source.readinto(raw.numpy().data) != raw.numel():
            raise WeightsError("truncated", "The base became shorter while it was read; fetch it again.")
        values = raw.view(kind).reshape(-1, tensor.shape[1]).to(device)
        wide = values if values.dtype == torch.float64 else values.to(torch.float32)
        summed = (wide + (left[rows] @ right).to(wide.dtype)).to(kind)
        if not math.isfinite(float(summed.sum(dtype=torch.float64))):
            raise MergeError(f"{tensor.name} with the adapter is not finite in {tensor.dtype}.")
        target.write(summed.cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data)


def _copy(source: BinaryIO, target: BinaryIO, count: int) -> None:
    while count:
        data = source.read(min(count, _CHUNK))
        if not data:
            raise WeightsError("truncated", "The base became shorter while it was read; fetch it again.")
        target.write(data)
        count -= len(data)


def _copy_others(base: Path, folder: Path) -> None:
    """Copy the files other than weights: configuration, tokenizer, license; not an old record."""
    for file in sorted(base.iterdir()):
        hidden = file.name.startswith(".") or file.name in _NOT_COPIED
        if file.is_file() and file.suffix not in _WEIGHTS and not hidden:
            shutil.copyfile(file, folder / file.name)


def _record(member: MergeMember, shards: tuple[str, ...], modules: int) -> dict[str, Any]:
    """The record of the folding, with the adapter's merge.json if it has one."""
    try:
        document = load_json((member.folder / MERGE_RECORD).read_bytes(), max_bytes=_MAX_JSON)
    except (OSError, ConfigError):
        document = None
    return {
        "folded": member.name,
        "sha256": member.sha256(),
        "base_model": member.config.base_model,
        "shards": list(shards),
        "modules": modules,
        "merge": document,
    }
