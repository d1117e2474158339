"""The YAML front matter of a model card, restricted: plain JSON-like values or a named problem.

A safe loader alone is not enough. Aliases let a kilobyte stand for gigabytes, merge keys too; deep nesting
exhausts the stack, base-60 integers the processor. The text is therefore parsed into events first (no
values are built), and built only if the events are few, shallow and without application tags. The result can
be written as JSON and stored in any database.
"""

from __future__ import annotations

import datetime
import logging
import math
from collections.abc import Hashable, Mapping
from typing import Any

import yaml

from catalog.files import (
    CORE_TAGS,
    MOST_DEPTH,
    MOST_NODES,
    UNSTORABLE,
    BoundedLoader,
    YamlError,
    check_events,
)

log = logging.getLogger(__name__)

MAX_FRONT = 1024 * 1024
_MAX_CHARACTERS = 2 * MAX_FRONT
_YAML = "tag:yaml.org,2002:"
_PLAIN_TAGS = CORE_TAGS | {_YAML + name for name in ("timestamp", "binary", "set", "omap")}

Front = dict[str, Any]


class _TooBigError(Exception):
    """Values that aliases blow up beyond what is kept."""


class _Loader(BoundedLoader):
    """A safe loader with a limit on the length of numbers, which does not expand merge keys."""

    def flatten_mapping(self, node: yaml.MappingNode) -> None:
        """Leaves `<<` an ordinary key: merging copies, and nested copies multiply."""


_Loader.add_constructor(_YAML + "merge", lambda _, node: str(node.value))


def split(text: str) -> tuple[str | None, str]:
    """(front matter or None, body) of a README: the part between a first line `---` and the next one."""
    start = text.lstrip("\ufeff \t\r\n")
    first, newline, remaining = start.partition("\n")
    if first.rstrip() != "---" or not newline:
        return None, text
    if remaining.startswith("---") and remaining[3:4] in ("", "\r", "\n"):
        return "", remaining[3:]
    at = remaining.find("\n---")
    while at >= 0 and remaining[at + 4 : at + 5] not in ("", "\r", "\n"):
        at = remaining.find("\n---", at + 4)
    return (None, text) if at < 0 else (remaining[:at], remaining[at + 4 :])


def load(text: str) -> tuple[Front, tuple[str, ...]]:
    """The values of front matter, and the problems for which they could not be read; never raises.

    Problems: too_large, bad_yaml, unsafe_tag, alias_bomb, not_a_mapping. With a problem the values are empty.
    Dates become ISO texts, keys become texts, numbers that JSON cannot represent become texts.
    """
    if len(text) > MAX_FRONT:
        return {}, ("too_large",)
    try:
        check_events(text, _Loader, _PLAIN_TAGS)
        loaded = yaml.load(text, Loader=_Loader)  # noqa: S506 - a SafeLoader with less in it
        if loaded is None:
            return {}, ()
    except YamlError as error:
        return {}, (error.kind,)
    except Exception as error:
        # PyYAML's constructors trust the tags: KeyError of `!!bool x`, IndexError of `!!float ''`, and more.
        log.debug("front matter cannot be read", exc_info=error)
        return {}, ("bad_yaml",)
    if not isinstance(loaded, dict):
        return {}, ("not_a_mapping",)
    try:
        return _Plain().mapping(loaded, 0), ()
    except _TooBigError:
        return {}, ("alias_bomb",)


class _Plain:
    """Turns what YAML built into what JSON can hold; counts nodes and characters with aliases expanded."""

    def __init__(self) -> None:
        self.nodes = 0
        self.characters = 0

    def mapping(self, value: Mapping[Hashable, object], depth: int) -> Front:
        return {str(self.value(key, depth + 1)): self.value(entry, depth + 1) for key, entry in value.items()}

    def value(self, value: object, depth: int) -> Any:
        self._count(value, depth)
        if isinstance(value, str):
            return plain_text(value)
        if value is None or isinstance(value, bool):
            return value
        if isinstance(value, int):
            return value if abs(value) < 2**63 else str(value)
        if isinstance(value, float):
            return value if math.isfinite(value) else str(value)
        if isinstance(value, datetime.date):
            return value.isoformat()
        if isinstance(value, Mapping):
            return self.mapping(value, depth)
        if isinstance(value, set):
            # The order of a set differs between processes.
            return sorted((self.value(entry, depth + 1) for entry in value), key=repr)
        if isinstance(value, (list, tuple)):
            return [self.value(entry, depth + 1) for entry in value]
        return f"binary of {len(value)} bytes" if isinstance(value, bytes) else str(type(value).__name__)

    def _count(self, value: object, depth: int) -> None:
        self.nodes += 1
        self.characters += len(value) if isinstance(value, str) else 0
        if self.nodes > MOST_NODES or self.characters > _MAX_CHARACTERS or depth > 2 * MOST_DEPTH:
            raise _TooBigError


def plain_text(text: str) -> str:
    """The text without characters that a database cannot store: NUL and halves of surrogate pairs become
    U+FFFD."""
    return UNSTORABLE.sub("\ufffd", text)
