"""The parts of an output that change from run to run, each replaced by one narrow rule; and wording."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

# A document of more bytes is recorded as its sha256, its size and its keys.
MOST = 4_000
_VERSION_KEYS = ("loradex", "numpy", "peft", "python", "safetensors", "torch", "transformers")


def normalise(text: str, folders: Mapping[str, str]) -> str:
    """The text with paths, ports, times of this run, durations and versions of packages replaced."""
    for path, name in sorted(folders.items(), key=lambda item: -len(item[0])):
        text = text.replace(path, name)
    for pattern, name in RULES:
        text = pattern.sub(name, text)
    return text


RULES: tuple[tuple[re.Pattern[str], str], ...] = (
    (re.compile(r"http://127\.0\.0\.1:\d+"), "http://127.0.0.1:PORT"),
    # Times of this run have microseconds, those that the Hub reports have zeros there.
    (re.compile(r"\d{4}-\d\d-\d\d[T ]\d\d:\d\d:\d\d\.(?!0{6})\d{6}Z?"), "TIME"),
    # How many pages SQLite takes depends on the order in which the workers of a crawl end.
    (re.compile(r'("bytes": )\d+(,\s+"dialect": "sqlite")'), r"\1BYTES\2"),
    (re.compile(r'("seconds": )[0-9.e-]+'), r"\1SECONDS"),
    (re.compile(rf'("(?:{"|".join(_VERSION_KEYS)})": )"\d[^"]*"'), r'\1"VERSION"'),
)


def without_wording(text: str, keys: Iterable[str]) -> str:
    """A JSON document in which the values of these keys, texts or lists of texts, are replaced by a mark."""
    for key in keys:
        text = re.sub(rf'("{key}": )"(?:[^"\\]|\\.)*"', r'\1"TEXT"', text)
        text = re.sub(
            rf'("{key}": )\[\s*"(?:[^"\\]|\\.)*"(?:,\s*"(?:[^"\\]|\\.)*")*\s*\]', r'\1["TEXT"]', text
        )
    return text


def compact(text: str) -> str:
    """The text, or where it is long its sha256, size and keys, so that a renamed key is seen by name."""
    data = text.encode()
    if len(data) <= MOST:
        return text
    keys = ", ".join(sorted(_keys_of(text)))
    return f"sha256 {hashlib.sha256(data).hexdigest()}, {len(data)} bytes\nkeys: {keys}\n"


def _keys_of(text: str) -> set[str]:
    result: set[str] = set()
    # What stands for a number is none.
    text = re.sub(r": (SECONDS|BYTES)\b", ": 0", text)
    try:
        values = [json.loads(text)]
    except ValueError:
        try:
            values = [json.loads(line) for line in text.splitlines()]
        except ValueError:
            return set(text.splitlines()[:1])
    for value in values:
        _collect(value, result.add)
    return result


def _collect(value: Any, add: Callable[[str], None]) -> None:
    """Adds the keys; those with a point in them are names of modules."""
    if isinstance(value, dict):
        for key, inner in value.items():
            if "." not in key:
                add(key)
            _collect(inner, add)
    elif isinstance(value, list):
        for inner in value:
            _collect(inner, add)


def file_line(path: Path, name: str) -> str:
    """A file that is not text: its name, sha256 and size."""
    data = path.read_bytes()
    return f"{name} sha256 {hashlib.sha256(data).hexdigest()} {len(data)}"
