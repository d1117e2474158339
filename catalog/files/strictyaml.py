"""YAML as data, restricted like JSON in `catalog.files.strictjson`: small, shallow, without application tags.

A safe loader alone is not enough: aliases let a kilobyte stand for gigabytes or point to what holds them,
deep nesting exhausts the stack, and PyYAML's constructors raise any error for a tag and its text. The
text is therefore read as events first, then as nodes, and values are built only within the limits.
"""

from __future__ import annotations

import re
from collections.abc import Collection
from dataclasses import dataclass
from typing import Any

import yaml

MOST_EVENTS = 20_000
MOST_DEPTH = 40
MOST_NODES = 50_000
# Numbers of more characters, and those to base 60, are strings: parsing them takes too long.
MOST_DIGITS = 60
_YAML = "tag:yaml.org,2002:"
CORE_TAGS = frozenset(_YAML + name for name in ("str", "int", "float", "bool", "null", "seq", "map"))


class YamlError(ValueError):
    """A text that is not read: the problem in words, its kind for programs, and its line, from 1."""

    def __init__(self, kind: str, problem: str, line: int | None) -> None:
        super().__init__(f"line {line}: {problem}" if line else problem)
        self.kind, self.problem, self.line = kind, problem, line


@dataclass(frozen=True)
class YamlDocument:
    """The value of a text, and its node, which has line numbers; None for an empty text."""

    value: Any
    node: yaml.Node | None


class BoundedLoader(yaml.SafeLoader):
    """A safe loader with a limit on the length of numbers, which refuses a value that does not match its
    tag."""

    def construct_object(self, node: yaml.Node, deep: bool = False) -> Any:
        """The value of a node; raises ConstructorError with its line."""
        try:
            return super().construct_object(node, deep)
        # The tag is wrong: KeyError of `!!bool x`, IndexError of `!!float ''`, ValueError of 2024-13-01.
        except (LookupError, ValueError, TypeError, AttributeError, OverflowError) as error:
            problem = f"{_short(node.value)} is not a valid {node.tag.rpartition(':')[2]}"
            raise yaml.constructor.ConstructorError(None, None, problem, node.start_mark) from error


class Loader(BoundedLoader):
    """A bounded loader with the numbers of YAML 1.2: 1e-3 is one."""


Loader.add_implicit_resolver(
    _YAML + "float", re.compile(r"[-+]?[0-9]+(\.[0-9]*)?[eE][-+]?[0-9]+"), list("-+0123456789")
)


def _check_bounds(name: str) -> None:
    construct = yaml.SafeLoader.yaml_constructors[_YAML + name]

    def construct_bounded(loader: BoundedLoader, node: yaml.ScalarNode) -> object:
        text = node.value
        # A node that is not a scalar is left to the constructor, which refuses it.
        long = isinstance(text, str) and (len(text) > MOST_DIGITS or (":" in text and name != "timestamp"))
        return text if long else construct(loader, node)

    BoundedLoader.add_constructor(_YAML + name, construct_bounded)


for _name in ("int", "float", "timestamp"):
    _check_bounds(_name)


def read_yaml(text: str) -> YamlDocument:
    """The one document in a text; raises YamlError for invalid, too large or self-referencing YAML.

    Only the tags of YAML's core schema are allowed. A key is a scalar, and unique in its mapping.
    """
    try:
        check_events(text, Loader, CORE_TAGS)
        loader = Loader(text)
        try:
            node = loader.get_single_node()
            if node is None:
                return YamlDocument(None, None)
            _check_aliases(node)
            _check_names(node)
            return YamlDocument(loader.construct_document(node), node)
        finally:
            loader.dispose()
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        problem = error.problem or error.context or "it ends too early"
        raise YamlError("bad_yaml", problem, mark.line + 1 if mark else None) from error
    except yaml.reader.ReaderError as error:
        line = text.count("\n", 0, error.position) + 1
        raise YamlError("bad_yaml", f"the character {error.character!r} is not allowed", line) from error


def check_events(text: str, loader: type[yaml.SafeLoader], tags: Collection[str]) -> None:
    """Reads a text without building a value; raises YamlError for too many events, too deep ones, other tags.

    The kinds are `too_large` and `unsafe_tag`; invalid YAML raises yaml.YAMLError.
    """
    depth = 0
    for count, event in enumerate(yaml.parse(text, Loader=loader)):
        if isinstance(event, yaml.CollectionStartEvent):
            depth += 1
        elif isinstance(event, yaml.CollectionEndEvent):
            depth -= 1
        line = event.start_mark.line + 1 if event.start_mark else None
        tag = getattr(event, "tag", None)
        if tag is not None and tag != "!" and tag not in tags:
            raise YamlError("unsafe_tag", f"the tag {_short(tag)} is not allowed", line)
        if depth > MOST_DEPTH:
            raise YamlError("too_large", f"more than {MOST_DEPTH} levels are nested", line)
        if count > MOST_EVENTS:
            raise YamlError("too_large", f"there are more than {MOST_EVENTS:,} entries", line)


def _check_aliases(root: yaml.Node) -> None:
    """Raises YamlError if aliases form a cycle, or expand to too many or too deep nodes."""
    # The number of nodes below each node, itself included, and their depth, with aliases expanded.
    sizes: dict[int, tuple[int, int]] = {}
    open_nodes: set[int] = set()

    def measure(node: yaml.Node) -> tuple[int, int]:
        line = node.start_mark.line + 1
        if id(node) in open_nodes:
            raise YamlError("alias_bomb", "an alias refers to its own parent", line)
        if id(node) not in sizes:
            open_nodes.add(id(node))
            below = [measure(child) for child in _children(node)]
            open_nodes.discard(id(node))
            size, height = (
                1 + sum(node_size for node_size, _ in below),
                1 + max((node_size for _, node_size in below), default=0),
            )
            if size > MOST_NODES or height > 2 * MOST_DEPTH:
                raise YamlError("alias_bomb", f"its aliases expand to more than {MOST_NODES:,} entries", line)
            sizes[id(node)] = size, height
        return sizes[id(node)]

    measure(root)


def _check_names(root: yaml.Node) -> None:
    """Raises YamlError for a key that is a list or a mapping, or that is repeated in one mapping."""
    waiting, visited = [root], {id(root)}
    while waiting:
        node = waiting.pop()
        if isinstance(node, yaml.MappingNode):
            names = set()
            for key, _ in node.value:
                line = key.start_mark.line + 1
                if not isinstance(key, yaml.ScalarNode):
                    raise YamlError("bad_yaml", "a name must be a word, not a list", line)
                if key.value in names:
                    raise YamlError("twice", f"{_short(key.value)} is repeated; keep one", line)
                names.add(key.value)
        below = [child for child in _children(node) if id(child) not in visited]
        visited.update(map(id, below))
        waiting += reversed(below)


def _children(node: yaml.Node) -> list[yaml.Node]:
    if isinstance(node, yaml.MappingNode):
        return [child for pair in node.value for child in pair]
    return list(node.value) if isinstance(node, yaml.SequenceNode) else []


def _short(text: object) -> str:
    line = " ".join(str(text).split())
    return repr(line if len(line) <= 40 else line[:39] + "…")
