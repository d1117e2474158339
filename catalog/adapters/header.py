"""The header of a safetensors file: tensors and metadata, validated without reading weights.

The safetensors library opens every file that `parse_header` accepts. It is a little stricter than the
library: a repeated tensor name is refused even if both entries agree, and nesting and sizes have lower caps.
Format: https://huggingface.co/docs/safetensors/index#format
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache

from catalog.errors import ConfigError, WeightsError
from catalog.files import LFS_POINTER, load_json

# The Hub's own client refuses a longer header; the library's limit is four times that.
MAX_HEADER = 25_000_000
PREFIX = 8
_MAX_DIMENSION = 2**53
_LONG = 100_000
# The headers of about 1,500 tensors at most are remembered.
_KNOWN_LENGTH = 1 << 18

# Bits of one element, for every data type that safetensors 0.8 knows.
DTYPE_BITS: Mapping[str, int] = {
    "BOOL": 8,
    "F4": 4,
    "F6_E2M3": 6,
    "F6_E3M2": 6,
    "U8": 8,
    "I8": 8,
    "F8_E5M2": 8,
    "F8_E4M3": 8,
    "F8_E8M0": 8,
    "F8_E4M3FNUZ": 8,
    "F8_E5M2FNUZ": 8,
    "I16": 16,
    "U16": 16,
    "F16": 16,
    "BF16": 16,
    "I32": 32,
    "U32": 32,
    "F32": 32,
    "C64": 64,
    "F64": 64,
    "I64": 64,
    "U64": 64,
}


@dataclass(frozen=True, slots=True)
class Tensor:
    """One entry of the header; `begin` and `end` are bytes from the end of the header."""

    name: str
    dtype: str
    shape: tuple[int, ...]
    begin: int
    end: int

    @property
    def elements(self) -> int:
        """The number of elements; 1 for a scalar, 0 if a dimension is 0."""
        return math.prod(self.shape)


@dataclass(frozen=True, slots=True)
class Header:
    """A checked header: tensors in the order of their bytes, string metadata, and the length of the JSON in
    bytes.
    """

    tensors: tuple[Tensor, ...]
    metadata: Mapping[str, str]
    length: int

    @property
    def file_size(self) -> int:
        """The size of the whole file in bytes."""
        return PREFIX + self.length + (self.tensors[-1].end if self.tensors else 0)


def header_length(first8: bytes) -> int:
    """Length in bytes of the JSON header, from the first eight bytes of the file.

    Raises WeightsError of kind empty_file, truncated, lfs_pointer, header_invalid (length 0) or
    header_too_large.
    """
    if not first8:
        raise WeightsError("empty_file", "the weights file is empty")
    if LFS_POINTER.startswith(first8[:PREFIX]) and len(first8) >= PREFIX:
        raise WeightsError("lfs_pointer", "a Git LFS pointer was uploaded in place of the weights")
    if len(first8) < PREFIX:
        raise WeightsError("truncated", f"a weights file of {len(first8)} bytes has no header")
    length = int.from_bytes(first8[:PREFIX], "little")
    if length > MAX_HEADER:
        raise WeightsError(
            "header_too_large", f"a header of {length} bytes exceeds the limit of {MAX_HEADER}"
        )
    if length < 2:
        raise WeightsError("header_invalid", f"a header of {length} bytes does not contain a JSON object")
    return length


def parse_header(data: bytes, file_size: int | None = None) -> Header:
    """The checked header of a safetensors file that begins with `data`.

    `data` must contain the 8 bytes of length and the whole JSON; the rest is ignored. `file_size` is the size
    of the whole file if it is known. Raises only WeightsError, of kind empty_file, truncated, lfs_pointer,
    header_too_large, header_invalid or size_mismatch (the tensors end before or after the file does).
    """
    length = header_length(data)
    if file_size is not None and PREFIX + length > file_size:
        raise WeightsError(
            "truncated", f"a file of {file_size} bytes cannot contain a header of {length} bytes"
        )
    if len(data) < PREFIX + length:
        raise WeightsError("truncated", f"{len(data)} bytes cannot contain a header of {length} bytes")
    read = _read_known_tensors if length <= _KNOWN_LENGTH else _read_tensors
    tensors, metadata = read(data[PREFIX : PREFIX + length])
    header = Header(tensors, dict(metadata), length)
    if file_size is not None and header.file_size != file_size:
        raise WeightsError(
            "size_mismatch", f"the header promises {header.file_size} bytes, the file has {file_size}"
        )
    return header


def _read_tensors(json_bytes: bytes) -> tuple[tuple[Tensor, ...], dict[str, str]]:
    entries = _read_object(json_bytes)
    metadata = _metadata(entries.pop("__metadata__", None))
    tensors = sorted(
        (_tensor(name, entry) for name, entry in entries.items()), key=lambda t: (t.begin, t.end)
    )
    _check_contiguous(tensors)
    return tuple(tensors), metadata


# What is worked out of one file comes from its header again and again, while few files are read at a time.
_read_known_tensors = lru_cache(maxsize=16)(_read_tensors)


def _read_object(json_bytes: bytes) -> dict[str, object]:
    if not json_bytes.startswith(b"{"):
        raise _invalid("it does not start with {")
    # A valid entry has at least 11 bytes for each comma; millions of numbers would only fill the memory.
    if len(json_bytes) > _LONG and json_bytes.count(b",") > len(json_bytes) // 6:
        raise _invalid("it contains more numbers than tensors have")
    try:
        value = load_json(json_bytes, max_bytes=MAX_HEADER, max_depth=16, unique_keys=True)
    except ConfigError as error:
        raise _invalid(str(error)) from error
    if not isinstance(value, dict):
        raise _invalid("it is not an object")
    return value


def _metadata(value: object) -> dict[str, str]:
    if value is None:
        return {}
    if not isinstance(value, dict) or not all(isinstance(text, str) for text in value.values()):
        raise _invalid("__metadata__ is not an object of strings")
    return value


def _tensor(name: str, entry: object) -> Tensor:
    if not isinstance(entry, dict):
        raise _invalid(f"{_short(name)} is not an object")
    dtype = entry.get("dtype")
    if not isinstance(dtype, str) or dtype not in DTYPE_BITS:
        raise _invalid(f"{_short(name)} has the unknown data type {_short(str(dtype))}")
    shape = _sizes(entry.get("shape"), name)
    offsets = _sizes(entry.get("data_offsets"), name)
    if len(offsets) != 2 or offsets[1] < offsets[0]:
        raise _invalid(f"{_short(name)} has offsets that are not a range")
    tensor = Tensor(name, dtype, shape, offsets[0], offsets[1])
    bits = DTYPE_BITS[dtype]
    for size in shape:
        bits *= size
        # The library multiplies in 64 bits and refuses an overflow, even one that a later 0 would undo.
        if bits >= 2**64:
            raise _invalid(f"{_short(name)} has a shape that is too large")
    if bits != 8 * (tensor.end - tensor.begin):
        raise _invalid(
            f"{_short(name)} has {tensor.end - tensor.begin} bytes for shape {list(shape)} of {dtype}"
        )
    return tensor


def _sizes(value: object, name: str) -> tuple[int, ...]:
    # JSON's true is an int for Python; `type` tells them apart.
    if not isinstance(value, list) or any(type(n) is not int or not 0 <= n <= _MAX_DIMENSION for n in value):
        raise _invalid(f"{_short(name)} has a shape or offsets that are not sizes")
    return tuple(value)


def _check_contiguous(tensors: list[Tensor]) -> None:
    expected = 0
    for tensor in tensors:
        if tensor.begin != expected:
            what = "overlaps its neighbour" if tensor.begin < expected else "leaves a hole before it"
            raise _invalid(f"{_short(tensor.name)} {what}")
        expected = tensor.end


def _short(text: str) -> str:
    return repr(text if len(text) <= 80 else text[:77] + "...")


def _invalid(what: str) -> WeightsError:
    return WeightsError("header_invalid", f"the safetensors header is broken: {what}")
