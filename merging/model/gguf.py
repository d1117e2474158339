"""The header of a GGUF file, validated within the bounds of the file before a library reads it.

The format is that of ggml, docs/gguf.md, versions 2 and 3: magic, version, numbers of tensors and of values;
the values by name; of each tensor its name, shape, type and place; then the data. The library that converts
such files reads past the end of one that is cut off, and allocates memory for any count.
"""

from __future__ import annotations

import math
import struct
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import BinaryIO

# The largest models have about 2,000 tensors, 100 values and vocabularies of 300,000 words.
_MOST_ENTRIES = 1 << 16
_MOST_ITEMS = 1 << 22
_LONGEST_NAME = 1 << 16
_MOST_DIMENSIONS = 4
_ALIGNMENT = 32
_STRING, _ARRAY, _BOOL = 8, 9, 7
_FORMATS = {0: "B", 1: "b", 2: "H", 3: "h", 4: "I", 5: "i", 6: "f", _BOOL: "?", 10: "Q", 11: "q", 12: "d"}
_NUMBERS = ("block_count", "embedding_length", "feed_forward_length", "attention.head_count")
_WORDS = "tokenizer.ggml.tokens"
# The architectures that are converted, with the projections of theirs that have a bias.
_BIASES: Mapping[str, tuple[str, ...]] = {"llama": (), "qwen2": ("attn_q", "attn_k", "attn_v")}
# The kinds of tokenizer that the conversion library reads for them; it reads others as one of these.
_TOKENIZERS: Mapping[str, tuple[str, ...]] = {"llama": ("llama", "gpt2"), "qwen2": ("gpt2",)}
_TOKENIZER = "tokenizer.ggml.model"
# Where positions are scaled, as in Llama 3.1 and with YaRN: the conversion library ignores it. A factor
# without a type is a linear one to llama.cpp.
_SCALED_TENSOR = "rope_freqs.weight"
_NO_SCALING: Mapping[str, tuple[object, ...]] = {
    "rope.scaling.type": (None, "none"),
    "rope.scaling.factor": (None, 0, 1),
    "rope.scale_linear": (None, 0, 1),
}


class GgufError(ValueError):
    """A truncated or unsupported GGUF file; the message gives the cause."""


@dataclass(frozen=True)
class GgufHeader:
    """Single values by name, the lengths of the lists, and the shapes of tensors, fastest dimension first."""

    values: Mapping[str, object]
    lists: Mapping[str, int]
    tensors: Mapping[str, tuple[int, ...]]


def check_architecture(path: Path) -> str:
    """The architecture of a whole GGUF file, "llama" or "qwen2"; raises GgufError for any other file, and for
    one with other tensors.
    """
    header = read_header(path)
    kind = str(header.values.get("general.architecture"))
    if kind not in _BIASES:
        raise GgufError(f"its architecture is {kind[:40]!r}, not 'llama' or 'qwen2'")
    blocks, width, inner, heads = (_number(header, kind, name) for name in _NUMBERS)
    if width % heads:
        raise GgufError(f"a width of {width:,} is not divisible by {heads:,} heads")
    _refuse_scaled_positions(header, kind)
    if _WORDS not in header.lists:
        raise GgufError(f"it does not contain {_WORDS}")
    if header.values.get(_TOKENIZER) not in _TOKENIZERS[kind]:
        known = " or ".join(map(repr, _TOKENIZERS[kind]))
        raise GgufError(f"its {_TOKENIZER} is {str(header.values.get(_TOKENIZER))[:40]!r}, not {known}")
    # Each block has separate tensors, so that a larger number is invalid.
    if blocks > len(header.tensors):
        raise GgufError(f"it has {len(header.tensors):,} tensors, too few for {blocks:,} blocks")
    groups = _number(header, kind, "attention.head_count_kv", heads)
    length = _number(header, kind, "attention.key_length", width // heads)
    weights = {
        "attn_norm": (width,),
        "attn_q": (width, heads * length),
        "attn_k": (width, groups * length),
        "attn_v": (width, groups * length),
        "attn_output": (heads * length, width),
        "ffn_norm": (width,),
        "ffn_gate": (width, inner),
        "ffn_up": (width, inner),
        "ffn_down": (inner, width),
    }
    block = {f"{name}.weight": shape for name, shape in weights.items()}
    block |= {f"{name}.bias": weights[name][1:] for name in _BIASES[kind]}
    embeddings = (width, header.lists[_WORDS])
    expected = {"token_embd.weight": embeddings, "output_norm.weight": (width,)}
    for number in range(blocks):
        expected |= {f"blk.{number}.{name}": shape for name, shape in block.items()}
    # Without its own, the output has the weights of the embeddings.
    _compare(header.tensors, expected, {"output.weight": embeddings})
    return kind


def _refuse_scaled_positions(header: GgufHeader, kind: str) -> None:
    scaled = [
        f"{kind}.{name}"
        for name, values in _NO_SCALING.items()
        if header.values.get(f"{kind}.{name}") not in values
    ]
    scaled += [_SCALED_TENSOR] if _SCALED_TENSOR in header.tensors else []
    if scaled:
        raise GgufError(
            f"its positions are scaled ({scaled[0]}), which a conversion loses; use its own checkpoint"
        )


def _number(header: GgufHeader, kind: str, name: str, default: int | None = None) -> int:
    value = header.values.get(f"{kind}.{name}", default)
    if type(value) is not int or value < 1:
        raise GgufError(f"it does not contain {kind}.{name}")
    return value


def _compare(
    tensors: Mapping[str, tuple[int, ...]],
    expected: Mapping[str, tuple[int, ...]],
    optional: Mapping[str, tuple[int, ...]],
) -> None:
    for name, shape in {**expected, **optional}.items():
        if name in tensors and tensors[name] != shape:
            raise GgufError(f"{name} has the shape {list(tensors[name])}, not {list(shape)}")
        if name in expected and name not in tensors:
            raise GgufError(f"it does not contain the tensor {name}")
    for name in tensors:
        if name not in expected and name not in optional:
            raise GgufError(f"it has a tensor {name[:80]}, which a model with its header does not have")


def read_header(path: Path) -> GgufHeader:
    """The header of a GGUF file; raises GgufError for one that is truncated, or not of version 2 or 3."""
    with path.open("rb") as file:
        return _GgufReader(file, path.stat().st_size).header()


@dataclass
class _GgufReader:
    """A file of `size` bytes that is read from the start; a length beyond its end raises GgufError."""

    file: BinaryIO
    size: int
    values: dict[str, object] = field(default_factory=dict)
    lists: dict[str, int] = field(default_factory=dict)

    def header(self) -> GgufHeader:
        if self.take(4) != b"GGUF":
            raise GgufError("it does not begin with GGUF")
        version = self.number("I")
        if version not in (2, 3):
            big = version and not version & 0xFFFF
            raise GgufError(
                "it is big-endian" if big else f"its version is {version}; only 2 and 3 are supported"
            )
        tensors, values = self.number("Q"), self.number("Q")
        if not 0 < tensors <= _MOST_ENTRIES or values > _MOST_ENTRIES:
            raise GgufError(f"it claims {tensors:,} tensors and {values:,} values, which no model has")
        for _ in range(values):
            self.read_value()
        return GgufHeader(self.values, self.lists, self.tensors(tensors))

    def tensors(self, count: int) -> dict[str, tuple[int, ...]]:
        """The shapes by name; raises GgufError if the data of one is not in the file."""
        from gguf.constants import GGML_QUANT_SIZES, GGMLQuantizationType

        shapes: dict[str, tuple[int, ...]] = {}
        ends = [0]
        for _ in range(count):
            name = self.name()
            dimensions = self.number("I")
            if not 0 < dimensions <= _MOST_DIMENSIONS:
                raise GgufError(f"the tensor {name} has {dimensions:,} dimensions")
            shape = tuple(self.number("Q") for _ in range(dimensions))
            kind, offset = self.number("I"), self.number("Q")
            if name in shapes:
                raise GgufError(f"the tensor {name} is repeated")
            if kind not in GGMLQuantizationType._value2member_map_:
                raise GgufError(f"the tensor {name} has the unknown type {kind}")
            block, size = GGML_QUANT_SIZES[GGMLQuantizationType(kind)]
            if 0 in shape or shape[0] % block:
                raise GgufError(f"the tensor {name} has the impossible shape {list(shape)}")
            shapes[name] = shape
            ends.append(offset + math.prod(shape) // block * size)
        alignment = self.values.get("general.alignment", _ALIGNMENT)
        if type(alignment) is not int or not 0 < alignment <= self.size:
            raise GgufError("its alignment is not a number of bytes")
        start = -(-self.file.tell() // alignment) * alignment
        if start + max(ends) > self.size:
            raise GgufError(f"it is truncated: it requires {start + max(ends):,} bytes and has {self.size:,}")
        return shapes

    def read_value(self) -> None:
        """Reads one value, and stores it unless it is a list."""
        name, kind = self.name(), self.number("I")
        if kind == _STRING:
            self.values[name] = self.text()
        elif kind in _FORMATS:
            self.values[name] = self.unpack(_FORMATS[kind])
        elif kind == _ARRAY:
            self.skip_list(name)
        else:
            raise GgufError(f"the value {name} has the unknown type {kind}")

    def skip_list(self, name: str) -> None:
        kind, count = self.number("I"), self.number("Q")
        if count > _MOST_ITEMS:
            raise GgufError(f"the list {name} claims {count:,} items")
        self.lists[name] = count
        if kind in _FORMATS:
            self.skip(count * struct.calcsize(_FORMATS[kind]))
        elif kind == _STRING:
            for _ in range(count):
                self.skip(self.number("Q"))
        else:
            raise GgufError(f"the list {name} has items of the unknown type {kind}")

    def name(self) -> str:
        """A name of a value or a tensor, made safe for a message."""
        length = self.number("Q")
        if length > _LONGEST_NAME:
            raise GgufError(f"it contains a name of {length:,} bytes")
        return self.take(length).decode("utf-8", "backslashreplace")

    def text(self) -> str:
        return self.take(self.number("Q")).decode("utf-8", "backslashreplace")

    def number(self, code: str) -> int:
        return int(self.unpack(code))

    def unpack(self, code: str) -> int | float | bool:
        value: int | float | bool = struct.unpack(f"<{code}", self.take(struct.calcsize(f"<{code}")))[0]
        return value

    def skip(self, length: int) -> None:
        self.check(length)
        self.file.seek(length, 1)

    def take(self, length: int) -> bytes:
        self.check(length)
        return self.file.read(length)

    def check(self, length: int) -> None:
        """Raises GgufError if fewer than this many bytes are left."""
        if length > self.size - self.file.tell():
            raise GgufError(f"it is truncated after {self.size:,} bytes")
