"""Strict parsing of untrusted JSON: one value, or a `ConfigError` that names the kind.

`json.loads` accepts more than the format does, and fails on malicious input: NaN literals, integers
of thousands of digits, nesting beyond the stack, lone surrogates and NUL characters that no database column
stores.

Duplicate keys are not refused. Of a repeated key the last one wins, which is what PEFT and the Hub read. The
header of a safetensors file is stricter (`unique_keys=True`), because its format forbids them. A UTF-8 byte
order mark is dropped.
"""

from __future__ import annotations

import json
import math
import re
from typing import Any

from catalog.errors import ConfigError

LFS_POINTER = b"version https://git-lfs"
MEBIBYTE = 1024 * 1024
_MAX_DIGITS = 300
UTF8_BOM = b"\xef\xbb\xbf"
_UTF16_BOMS = (b"\xff\xfe", b"\xfe\xff")
# What no database stores in a text: NUL and halves of surrogate pairs.
UNSTORABLE = re.compile("[\x00\ud800-\udfff]")
_INT64 = 2**63 - 1


def load_json(
    data: bytes,
    *,
    max_bytes: int = MEBIBYTE,
    max_depth: int = 64,
    unique_keys: bool = False,
    finite: bool = True,
) -> object:
    """The value in `data`.

    Without `finite`, NaN, infinities and numbers beyond the range of a float are read as NaN and infinity,
    for a caller that reports their place. Raises ConfigError of kind too_large (more than `max_bytes`),
    lfs_pointer (the file is a Git LFS pointer, the content is elsewhere) or not_json (everything that is not
    JSON in UTF-8 with finite numbers, and nesting beyond `max_depth`).
    """
    if len(data) > max_bytes:
        raise ConfigError("too_large", f"{len(data)} bytes of JSON are more than the {max_bytes} allowed")
    if data.startswith(LFS_POINTER):
        raise ConfigError("lfs_pointer", "a Git LFS pointer was uploaded in place of the file")
    text = _decode(data)
    hooks = _Hooks(unique_keys, finite)
    try:
        value = json.loads(
            text,
            object_pairs_hook=hooks.pairs,
            parse_int=hooks.integer,
            parse_float=hooks.number,
            parse_constant=hooks.constant,
        )
    except RecursionError as error:
        raise _not_json(f"nesting deeper than {max_depth} levels") from error
    except ValueError as error:
        raise _not_json(str(error)) from error
    _check_tree(value, max_depth)
    return value


def _decode(data: bytes) -> str:
    if data.startswith(_UTF16_BOMS) or b"\x00" in data[:4]:
        raise _not_json("the text is UTF-16 or UTF-32, not UTF-8")
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise _not_json(f"not UTF-8 at byte {error.start}") from error


class _Hooks:
    """The callbacks of the JSON parser."""

    def __init__(self, unique_keys: bool, finite: bool) -> None:
        self.unique_keys = unique_keys
        self.finite = finite

    def pairs(self, pairs: list[tuple[str, object]]) -> dict[str, object]:
        mapping = dict(pairs)
        if self.unique_keys and len(mapping) != len(pairs):
            raise ValueError("an object repeats a key")
        return mapping

    def integer(self, digits: str) -> int | float:
        if len(digits) > _MAX_DIGITS:
            if not self.finite:
                return math.copysign(math.inf, -1 if digits.startswith("-") else 1)
            raise ValueError(f"an integer of {len(digits)} digits")
        # Other readers, the safetensors library among them, take "-0" for a float.
        return -0.0 if digits == "-0" else int(digits)

    def number(self, text: str) -> float:
        value = float(text)
        if self.finite and not math.isfinite(value):
            raise ValueError(f"a number out of range: {text[:20]}")
        return value

    def constant(self, name: str) -> float:
        if not self.finite:
            return float(name)
        raise ValueError(f"the literal {name} is not JSON")


def _check_tree(value: object, max_depth: int) -> None:
    """Raises if the tree is too deep or a string cannot be stored in a database."""
    level: list[object] = [value]
    for _ in range(max_depth + 1):
        below: list[object] = []
        for node in level:
            if isinstance(node, str):
                _check_text(node)
            elif isinstance(node, dict):
                for key in node:
                    _check_text(key)
                below.extend(node.values())
            elif isinstance(node, list):
                below.extend(node)
        if not below:
            return
        level = below
    raise _not_json(f"nesting deeper than {max_depth} levels")


def _check_text(text: str) -> None:
    if UNSTORABLE.search(text):
        raise _not_json("a string contains a NUL character or half a surrogate pair")


def _not_json(what: str) -> ConfigError:
    return ConfigError("not_json", f"this is not JSON: {what}")


def clean_text(text: str) -> str:
    """The text with NUL and lone surrogates replaced, so that every database can store it."""
    return text.replace("\x00", "\ufffd").encode("utf-8", "replace").decode("utf-8")


def clean_json(value: Any) -> Any:
    """The value with clean texts, keys as texts, and null for numbers that JSON or 64 bits cannot hold."""
    if isinstance(value, str):
        return clean_text(value)
    if isinstance(value, dict):
        return {clean_text(str(key)): clean_json(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [clean_json(item) for item in value]
    if isinstance(value, bool) or value is None:
        return value
    if isinstance(value, int):
        return value if abs(value) <= _INT64 else None
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    return clean_text(str(value))
