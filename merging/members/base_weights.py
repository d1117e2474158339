"""The weights of a base model in a folder of safetensors, found by the modules of adapters."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from catalog.adapters import BaseModules, Header, LoraModule, Tensor, read_header
from catalog.errors import ConfigError, MergeError, UsageError, WeightsError
from catalog.files import load_json
from merging.members.member import MergeMember
from merging.members.tying import base_config, transposed_layers

if TYPE_CHECKING:
    import torch

_PREFIX = 8
_INDEX = "model.safetensors.index.json"
_SINGLE = "model.safetensors"
_MAX_JSON = 64 * 1024 * 1024
# The data types of weights that are not quantised, by their names in a header and in torch.
BASE_DTYPES: Mapping[str, str] = {
    "F64": "float64",
    "F32": "float32",
    "F16": "float16",
    "BF16": "bfloat16",
}


class BaseWeights:
    """The headers of a base model's shards by name, sorted; weights are read one at a time.

    Raises UsageError for a folder without a base model in safetensors, WeightsError for a file that is not
    one.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.headers: dict[str, Header] = {
            name: read_header(folder / name, f"The base's shard {name} cannot be used")
            for name in shard_names(folder)
        }
        self._turned = transposed_layers(folder)
        self._shards = {t.name: name for name, header in self.headers.items() for t in header.tensors}
        self._tensors = {t.name: t for header in self.headers.values() for t in header.tensors}
        # A stored matrix may be transposed: the width is taken from the tensor itself.
        names = (name.removesuffix(".weight") for name in self._tensors if name.endswith(".weight"))
        self._modules = BaseModules(dict.fromkeys(names, (None, None)))

    def of(self, module: LoraModule) -> Tensor | None:
        """The weight of the layer that a module means; None if there is none, or more than one."""
        name = self._modules.place(module.name, module.in_features, module.out_features)
        return None if name is None else self._tensors[f"{name}.weight"]

    def locate(self, member: MergeMember, module: LoraModule) -> Tensor:
        """The weight of the layer that a member's module means.

        Raises MergeError if there is none of its shape, or if it is quantised.
        """
        tensor = self.of(module)
        if tensor is None:
            quantised = base_config(self.folder).get("quantization_config") is not None
            reason = "fold into a base that is not quantised" if quantised else ""
            reason = reason or f"{member.name} belongs to another model"
            raise MergeError(f"The base has no {module.name}.weight; {reason}.")
        if tensor.dtype not in BASE_DTYPES:
            raise MergeError(
                f"{tensor.name} is stored as {tensor.dtype}; fold into a base that is not quantised."
            )
        self.refuse_shape(tensor, member, module)
        return tensor

    def refuse_shape(self, tensor: Tensor, member: MergeMember, module: LoraModule) -> None:
        """Raises MergeError for a weight of another shape than the module's."""
        shape = (module.out_features, module.in_features)
        if tensor.shape != (shape[::-1] if self.is_turned(member, module) else shape):
            raise MergeError(
                f"{tensor.name} of the base has shape {list(tensor.shape)}, {member.name} requires "
                f"{list(shape)} and belongs to another model."
            )

    def is_turned(self, member: MergeMember, module: LoraModule) -> bool:
        """Whether the base stores the weight as (in, out): embeddings, and the Conv1D of GPT-2.

        If the base model does not define it, the adapter's fan_in_fan_out does.
        """
        if module.kind == "embedding":
            return True
        return member.config.fan_in_fan_out if self._turned is None else module.short_name in self._turned

    def read(self, member: MergeMember, module: LoraModule) -> torch.Tensor:
        """The weight (out, in) of the layer that a member's module means, in the stored data type.

        Raises MergeError as `locate` does, and WeightsError if the file cannot be read.
        """
        import torch

        tensor = self.locate(member, module)
        shard = self._shards[tensor.name]
        raw = torch.empty(tensor.end - tensor.begin, dtype=torch.uint8)
        try:
            with (self.folder / shard).open("rb") as file:
                file.seek(_PREFIX + self.headers[shard].length + tensor.begin)
                count = file.readinto(raw.numpy().data)
        except OSError as error:
            raise WeightsError("unreadable", f"The base's shard {shard} cannot be read: {error}.") from error
        if count != raw.numel():
            raise WeightsError("truncated", "The base became shorter while it was read; fetch it again.")
        weight = raw.view(getattr(torch, BASE_DTYPES[tensor.dtype])).reshape(tensor.shape)
        return weight.T if self.is_turned(member, module) else weight


def is_base_folder(folder: Path) -> bool:
    """Whether a folder has the weights of a model in safetensors."""
    return any((folder / name).is_file() for name in (_SINGLE, _INDEX))


def shard_names(base: Path) -> tuple[str, ...]:
    """The names of the shards of the base model in a folder, sorted; raises UsageError if there are none."""
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
