"""The drawing of the errors is the tree of their classes, which `loradex.errors` has all of."""

from __future__ import annotations

import importlib
import re
from collections.abc import Iterator
from pathlib import Path

import loradex.errors
from catalog import errors

ROOT = Path(__file__).parents[2]
ROOMS = ("catalog", "crawler", "merging", "studies", "loradex")


def tree(kind: type[errors.LoradexError], depth: int = 0) -> Iterator[tuple[int, str]]:
    yield depth, kind.__name__
    for below in kind.__subclasses__():
        yield from tree(below, depth + 1)


def drawn() -> list[tuple[int, str]]:
    lines = re.findall(r"^([│├└─ ]*)(\w+Error)\b", errors.__doc__ or "", re.MULTILINE)
    return [(len(indent) // 4, name) for indent, name in lines]


def test_the_drawing_is_the_tree_of_classes() -> None:
    for room in ROOMS:
        for file in sorted((ROOT / room).rglob("*.py")):
            if "LoradexError)" in file.read_text(encoding="utf-8"):
                importlib.import_module(".".join(file.relative_to(ROOT).with_suffix("").parts))
    assert sorted(drawn()) == sorted(tree(errors.LoradexError))
    assert {name for _, name in drawn()} == {name for name in vars(loradex.errors) if name.endswith("Error")}
