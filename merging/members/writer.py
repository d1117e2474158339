"""A merged adapter on the disk: a folder that PEFT loads, written atomically.

Factors are written module by module; the header, whose length is reserved beforehand, is
written at the end. A temporary folder next to the target is renamed to it.
"""

from __future__ import annotations

import contextlib
import errno
import json
import math
import os
import platform
import re
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO

from catalog.adapters import CONFIG_NAME, WEIGHTS_NAME
from catalog.errors import StorageError, UsageError
from catalog.files import remove_abandoned, replace_folder, sync, temporary_folder
from merging.members.member import MergeMember
from merging.members.portable import PortableForm
from merging.members.stacks import Shape

if TYPE_CHECKING:
    from torch import Tensor

MERGE_RECORD = "merge.json"
DTYPES: Mapping[str, str] = {"float32": "F32", "bfloat16": "BF16", "float16": "F16"}
# Bytes of a header entry beyond the tensor's name: data type, two sizes and two offsets of up to 20 digits.
_ENTRY = 160


@contextlib.contextmanager
def new_folder(out: Path, overwrite: bool, record: str = MERGE_RECORD) -> Iterator[Path]:
    """A temporary folder next to `out` that becomes `out` when the block ends without an error.

    An existing merge, identified by its `record`, is replaced with `overwrite`; any other folder or file is
    not touched. Raises UsageError if `out` must not be replaced and StorageError if writing fails; the
    temporary folder is removed in either case.
    """
    with contextlib.ExitStack() as stack:
        with storage(out):
            out.parent.mkdir(parents=True, exist_ok=True)
            remove_abandoned(out.parent)
            refuse_existing(out, overwrite, record)
            temporary = stack.enter_context(temporary_folder(out.parent))
            folder = temporary / out.name
            folder.mkdir()
        yield folder
        with storage(out):
            replace_folder(folder, out, temporary)


@contextlib.contextmanager
def storage(path: Path) -> Iterator[None]:
    """Translates an error of the disk into a StorageError."""
    try:
        yield
    except OSError as error:
        raise StorageError(f"{path} cannot be written: {error.strerror or error}.") from error


@dataclass
class TensorWriter:
    """A safetensors file that grows tensor by tensor; made by `tensor_writer`."""

    file: BinaryIO
    dtype: str
    reserved: int
    entries: dict[str, dict[str, Any]] = field(default_factory=dict)
    end: int = 0

    def write(self, name: str, values: Tensor) -> None:
        """Append a tensor in the file's data type; raises OverflowError if that cannot represent it."""
        import torch

        cast = values.to(getattr(torch, self.dtype)).cpu().contiguous().reshape(-1)
        # The sum decides unless it overflows.
        if not (math.isfinite(float(cast.sum())) or bool(torch.isfinite(cast).all())):
            raise OverflowError
        data = cast.view(torch.uint8).numpy().data
        self.entries[name] = {
            "dtype": DTYPES[self.dtype],
            "shape": list(values.shape),
            "data_offsets": [self.end, self.end + len(data)],
        }
        self.file.write(data)
        self.end += len(data)

    def finish(self) -> None:
        """Write the header, padded with spaces to the reserved length, and flush all bytes to the disk."""
        text = json.dumps({"__metadata__": {"format": "pt"}, **self.entries}, separators=(",", ":")).encode()
        self.file.seek(0)
        self.file.write(self.reserved.to_bytes(8, "little") + text.ljust(self.reserved))
        self.file.truncate(8 + self.reserved + self.end)
        self.file.flush()
        os.fsync(self.file.fileno())


@contextlib.contextmanager
def tensor_writer(path: Path, dtype: str, names: Sequence[str], size: int = 0) -> Iterator[TensorWriter]:
    """A writer for tensors of these names; the file is complete when the block ends without an error.

    `size` is the sum of their sizes in bytes where it is known: the disk then reserves the file at once.
    """
    reserved = sum(len(json.dumps(name)) + _ENTRY for name in names) + 64
    reserved += -reserved % 8
    with path.open("wb") as file:
        if size:
            _reserve(file, 8 + reserved + size)
        file.seek(8 + reserved)
        writer = TensorWriter(file, dtype, reserved)
        yield writer
        writer.finish()


def _reserve(file: BinaryIO, size: int) -> None:
    """Reserves a file's bytes on the disk, where the system can; raises OSError for a disk without room."""
    if sys.platform.startswith("linux"):
        try:
            os.posix_fallocate(file.fileno(), 0, size)
        except OSError as error:
            if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
                raise


def factor_names(shape: Shape) -> tuple[str, str]:
    """The names under which PEFT looks for A and B of a module."""
    stem = f"base_model.model.{shape.name}.lora_"
    return (
        (f"{stem}embedding_A", f"{stem}embedding_B")
        if shape.kind == "embedding"
        else (
            f"{stem}A.weight",
            f"{stem}B.weight",
        )
    )


def adapter_config(
    members: Sequence[MergeMember],
    base: str | None,
    ranks: Mapping[str, int],
    form: PortableForm | None = None,
    saved: Sequence[str] = (),
) -> dict[str, Any]:
    """The adapter_config.json of a merge: alpha = r in every module, so that its scaling is 1.

    All modules have the rank of `form`. Without it the most frequent rank is `r`, modules of other ranks are
    in both patterns by their full names, escaped as regular expressions, which PEFT expects.
    """
    if form is not None:
        ranks = dict.fromkeys([*ranks, *(shape.name for shape in form.zeros)], form.rank)
    counts = sorted(ranks.values())
    usual = max(sorted(set(counts)), key=counts.count)
    exceptions = sorted((n for n, rank in ranks.items() if rank != usual), key=lambda n: (-len(n), n))
    pattern = {re.escape(name): ranks[name] for name in exceptions}
    tasks = {member.config.task_type for member in members}
    return {
        "alpha_pattern": pattern,
        "auto_mapping": None,
        "base_model_name_or_path": base,
        "bias": "none",
        "fan_in_fan_out": members[0].config.fan_in_fan_out,
        "inference_mode": True,
        "init_lora_weights": True,
        "layers_pattern": None,
        "layers_to_transform": None,
        "lora_alpha": usual,
        "lora_dropout": 0.0,
        "modules_to_save": list(saved) or None,
        "peft_type": "LORA",
        "r": usual,
        "rank_pattern": pattern,
        "revision": None,
        "target_modules": list(form.targets) if form and form.targets else _targets(members, tuple(ranks)),
        "task_type": tasks.pop() if len(tasks) == 1 else None,
        "use_dora": False,
        "use_rslora": False,
    }


def write_json(path: Path, value: object) -> None:
    """Write a JSON document, sorted and indented, and flush it to the disk."""
    text = json.dumps(value, indent=2, sort_keys=True, ensure_ascii=False, allow_nan=False)
    write_text(path, text + "\n")


def write_text(path: Path, text: str) -> None:
    """Write a text in UTF-8 and flush it to the disk."""
    path.write_text(text, encoding="utf-8", newline="\n")
    sync(path)


def write_config(
    folder: Path,
    members: Sequence[MergeMember],
    base: str | None,
    ranks: Mapping[str, int],
    form: PortableForm | None = None,
    saved: Sequence[str] = (),
) -> None:
    """Write adapter_config.json; `saved` are the layers whose weights are whole in the file."""
    write_json(folder / CONFIG_NAME, adapter_config(members, base, ranks, form, saved))


def weights_path(folder: Path) -> Path:
    """The file of an adapter folder's factors."""
    return folder / WEIGHTS_NAME


def _targets(members: Sequence[MergeMember], names: Sequence[str]) -> list[str]:
    """Short names if they mean exactly these modules in every layer, else the full names.

    They do if each member uses short names for all layers, and no layer of a member lacks one.
    """
    plain = all(
        isinstance(member.config.target_modules, tuple)
        and not member.config.exclude_modules
        and member.config.layers_to_transform is None
        and {name.rpartition(".")[2] for name in member.modules} == set(member.config.target_modules)
        for member in members
    )
    short = sorted({name.rpartition(".")[2] for name in names})
    every = (name for member in members for name in member.modules)
    layers = {tuple(part for part in name.split(".") if part.isdigit()) for name in every}
    return short if plain and len(names) == len(short) * len(layers) else sorted(names)


def refuse_existing(out: Path, overwrite: bool, record: str) -> None:
    if not (out.exists() or out.is_symlink()) or (out.is_dir() and not any(out.iterdir())):
        return
    if not overwrite:
        raise UsageError(f"{out} exists; use another folder or `overwrite=True`.")
    if out.is_symlink() or not (out / record).is_file():
        raise UsageError(f"{out} contains other files and is not overwritten; use another folder.")


def package_versions(*names: str) -> dict[str, str | None]:
    """The versions of Python and of these packages, None for one that is not installed."""
    numbers: dict[str, str | None] = {"python": platform.python_version()}
    for name in names:
        try:
            numbers[name] = version(name)
        except PackageNotFoundError:
            numbers[name] = None
    return numbers
