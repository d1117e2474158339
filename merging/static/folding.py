"""A LoRA folded into its base: W + s B A for every module, shard by shard, in the base model's layout.

Each shard keeps its header, its tensors' order and their data types; values that change are computed in
float32 and rounded once. One range of rows of one tensor is in memory at a time.
"""

from __future__ import annotations

import math
import os
import shutil
from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import dataclass
from io import BufferedReader
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO

from catalog.adapters import LoraModule, Tensor
from catalog.errors import ConfigError, MergeError, UsageError, WeightsError
from catalog.files import load_json
from merging.members import (
    BASE_DTYPES,
    MERGE_RECORD,
    BaseWeights,
    MergeMember,
    fold_dora,
    load_member,
    modules_sharing_weights,
    new_folder,
    read_module,
    shapes,
    shard_names,
    storage,
    write_json,
)
from merging.static.merger import MergeReport, ModuleReport, merge_record, whole_updates
from merging.static.plans import Plan

if TYPE_CHECKING:
    from torch import Tensor as TorchTensor

_PREFIX = 8
_CHUNK = 32 * 1024 * 1024
_MAX_JSON = 64 * 1024 * 1024
_WEIGHTS = frozenset({".safetensors", ".bin", ".pt", ".pth", ".gguf", ".h5", ".msgpack", ".onnx", ".ckpt"})
_NOT_COPIED = frozenset({MERGE_RECORD, "README.md", "pytorch_model.bin.index.json"})


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

    DoRA is folded with the weights of that base. Configuration and tokenizer are copied, weights of other
    formats are not. `progress` is called with the number of tensors changed and the total. Raises MergeError
    if the base model lacks a module of the adapter, UsageError for a folder without a base model in
    safetensors, StorageError if writing fails; `out` is written atomically.
    """
    weights = BaseWeights(base)
    if not isinstance(adapter, MergeMember):
        adapter = load_member(adapter, purpose="added to a base", dora=True)
    member = fold_dora(adapter, weights)
    changes = _changes(weights, member)

    def changed_rows(name: str) -> Callable[[slice], TorchTensor]:
        module = changes[name]
        return _product_rows(member, module, device, is_turned=weights.is_turned(member, module))

    return _write_model(
        weights,
        changes.keys(),
        changed_rows,
        lambda: _record(member, tuple(weights.headers), len(changes)),
        out,
        overwrite,
        progress,
    )


def apply_whole(
    planned: Plan,
    base: Path,
    out: Path,
    *,
    overwrite: bool = False,
    pool: Mapping[str, str] | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> MergeReport:
    """The base model in a folder with a merge added, whose updates are not truncated, as a full model.

    For members of full rank, such as folded DoRA: no adapter is written between. merge.json of the model
    holds the record of the merge. Raises what `apply_to` and `carry_out` raise.
    """
    weights = BaseWeights(base)
    modules = {m.name: (member, m) for member in planned.members for m in member.spec.modules}
    changes: dict[str, str] = {}
    for member in planned.members:
        changes |= {tensor: module.name for tensor, module in _changes(weights, member).items()}
    shapes_by_name = {shape.name: shape for shape in shapes([planned.members[n] for n in planned.present])}
    changes = {tensor: name for tensor, name in changes.items() if name in shapes_by_name}
    reports: dict[str, ModuleReport] = {}
    update_of = whole_updates(planned)

    def changed_rows(name: str) -> Callable[[slice], TorchTensor]:
        module = changes[name]
        update = update_of(shapes_by_name[module])
        energy = float(update.double().square().sum())
        reports[module] = ModuleReport(min(update.shape), energy, 0.0)
        turned = update.T if weights.is_turned(*modules[module]) else update
        return lambda rows: turned[rows]

    def record() -> dict[str, Any]:
        merge = merge_record(planned, dict(sorted(reports.items())), pool)
        return {
            "folded": planned.method.name,
            "sha256": None,
            "base_model": planned.base,
            "shards": list(weights.headers),
            "modules": len(changes),
            "merge": merge,
        }

    written: dict[str, Any] = {}
    _write_model(
        weights,
        changes.keys(),
        changed_rows,
        lambda: written.setdefault("record", record()),
        out,
        overwrite,
        progress,
    )
    return MergeReport(out, written["record"]["merge"], reports)


def _write_model(
    base: BaseWeights,
    changes: Collection[str],
    changed_rows: Callable[[str], Callable[[slice], TorchTensor]],
    record: Callable[[], dict[str, Any]],
    out: Path,
    overwrite: bool,
    progress: Callable[[int, int], None] | None,
) -> FoldReport:
    """A copy of a base model in which the named tensors are changed by what `changed_rows` gives for each."""
    done, size = 0, 0
    with new_folder(out, overwrite) as folder:
        for name, header in base.headers.items():
            with (
                storage(out),
                (base.folder / name).open("rb") as source,
                (folder / name).open("wb") as target,
            ):
                _copy(source, target, _PREFIX + header.length)
                for tensor in header.tensors:
                    if tensor.name in changes:
                        _add(source, target, tensor, changed_rows(tensor.name))
                        done += 1
                        if progress is not None:
                            progress(done, len(changes))
                    else:
                        _copy(source, target, tensor.end - tensor.begin)
                target.flush()
                os.fsync(target.fileno())
            size += header.file_size
        with storage(out):
            _copy_others(base.folder, folder)
            write_json(folder / MERGE_RECORD, record())
    return FoldReport(out, tuple(base.headers), len(changes), size)


def refuse_unfoldable(base: Path, members: Iterable[MergeMember]) -> None:
    """Raises for the first member that `apply_to` would refuse; reads only headers."""
    weights = BaseWeights(base)
    for member in members:
        _changes(weights, member)


def refuse_misfits(base: Path, members: Iterable[MergeMember]) -> None:
    """Raises MergeError for the first member with a module whose weight has another shape in the base in a
    folder.

    Reads only the headers of the base model's shards. Modules that are absent from them or stored quantised
    are ignored, as is a base model that is not in safetensors.
    """
    try:
        shard_names(base)
    except UsageError:
        return
    weights = BaseWeights(base)
    for member in members:
        for module in member.spec.modules:
            tensor = weights.of(module)
            if tensor is not None and tensor.dtype in BASE_DTYPES:
                weights.refuse_shape(tensor, member, module)


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


def _changes(base: BaseWeights, member: MergeMember) -> dict[str, LoraModule]:
    """The tensor that each module changes, with the matching shape."""
    refuse_tied(base.folder, [member])
    return {base.locate(member, module).name: module for module in member.spec.modules}


def _product_rows(
    member: MergeMember, module: LoraModule, device: str, *, is_turned: bool
) -> Callable[[slice], TorchTensor]:
    """Rows of the update as the base stores its weight."""
    import torch

    if member.folded is not None:
        update = member.folded.update(member, module.name).to(device)
        stored = update.T if is_turned else update
        return lambda rows: stored[rows]
    a, b = (part.to(device).to(torch.float32) for part in read_module(member, module.name))
    left, right = (a.T, b.T) if is_turned else (b, a)
    right = right * module.scaling
    return lambda rows: left[rows] @ right


def _add(
    source: BufferedReader,
    target: BinaryIO,
    tensor: Tensor,
    changed_rows: Callable[[slice], TorchTensor],
) -> None:
    """Write rows of W + Delta W from rows of W."""
    import torch

    kind = getattr(torch, BASE_DTYPES[tensor.dtype])
    row = (tensor.end - tensor.begin) // tensor.shape[0]
    step = max(1, _CHUNK // row)
    for start in range(0, tensor.shape[0], step):
        rows = slice(start, min(start + step, tensor.shape[0]))
        raw = torch.empty((rows.stop - start) * row, dtype=torch.uint8)
        if source.readinto(raw.numpy().data) != raw.numel():
            raise WeightsError("truncated", "The base became shorter while it was read; fetch it again.")
        update = changed_rows(rows)
        values = raw.view(kind).reshape(-1, tensor.shape[1]).to(update.device)
        wide = values if values.dtype == torch.float64 else values.to(torch.float32)
        summed = (wide + update.to(wide.dtype)).to(kind)
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
