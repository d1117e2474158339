"""Regular expressions from strangers, matched in bounded time.

PEFT lets `rank_pattern` and `alpha_pattern` hold regular expressions, and a backtracking engine needs
exponential time for some of them (`(a+)+$`). Here an expression is a small tree, and matching carries the
*set* of positions that the text so far can end at through it: no backtracking, so nested quantifiers cost
no more than others. A `Budget` of steps bounds the whole work on one adapter.

Supported: literals, `.`, classes, groups, `|`, `* + ? {m,n}` greedy or lazy, `^ $ \\b \\d \\w \\s` and
their negations. Anything else (look-around, back-references, flags, possessive quantifiers) raises
ConfigError of kind bad_pattern; no such pattern was seen in a published adapter's rank or alpha table.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass

from catalog.errors import ConfigError

MAX_PATTERN = 1000
MAX_TEXT = 1000
_MAX_GROUPS = 30
_MAX_REPEAT = 1000
_LITERAL_KEY = re.compile(r"(?:[A-Za-z0-9_-]|\\?\.)+\Z")
_COUNT = re.compile(r"\{([0-9]{0,5})(,?)([0-9]{0,5})\}")
_GROUP_OPENING = re.compile(r"\?(?::|P<[A-Za-z_]\w{0,60}>)")


@dataclass(slots=True)
class Budget:
    """Steps that are left; spending more than that raises ConfigError of kind bad_pattern."""

    steps: int = 2_000_000

    def spend(self, steps: int) -> None:
        self.steps -= steps
        if self.steps < 0:
            raise ConfigError("bad_pattern", "matching the module patterns takes too long")


def is_regular_expression(text: str) -> bool:
    """Whether Python compiles this text, so that PEFT can match names with it."""
    try:
        re.compile(text)
    except (re.error, RecursionError, OverflowError):
        return False
    return True


Positions = frozenset[int]
# A node maps the positions it may start at to those it may end at.
Node = Callable[[str, Positions, Budget], Positions]


class Pattern:
    """One key of a pattern table; building it raises ConfigError of kind bad_pattern where it is not
    supported.
    """

    def __init__(self, text: str) -> None:
        self.text = text
        plain = len(text) <= MAX_PATTERN and _LITERAL_KEY.match(text)
        self.literal = text.replace("\\", "") if plain else None
        # Most keys are plain names, and a table may have thousands: those are parsed when one has to be.
        self._node = None if self.literal is not None else _Parser(text).parse()

    def matches(self, name: str, budget: Budget) -> bool:
        """Whether `name` is a match as a whole; never of what follows one of its dots."""
        if len(name) > MAX_TEXT:
            raise ConfigError("bad_pattern", f"a module name of {len(name)} characters is too long to match")
        if self._node is None:
            self._node = _Parser(self.text).parse()
        budget.spend(2)
        return len(name) in self._node(name, frozenset([0]), budget)

    def matches_suffix(self, name: str, budget: Budget) -> bool:
        """Whether `name`, or what follows one of its dots, is a match as a whole, as PEFT decides it."""
        budget.spend(2)
        if self.literal is not None:
            tail = name[-len(self.literal) :]
            if tail == self.literal:
                return len(name) == len(tail) or name[-len(tail) - 1] == "."
            # An unescaped dot stands for any character, which matters only where the rest agrees.
            if len(tail) != len(self.literal) or any(
                ours not in (theirs, ".") for ours, theirs in zip(self.literal, tail, strict=True)
            ):
                return False
        if len(name) > MAX_TEXT:
            raise ConfigError("bad_pattern", f"a module name of {len(name)} characters is too long to match")
        starts = frozenset([0, *(i + 1 for i, character in enumerate(name) if character == ".")])
        if self._node is None:
            self._node = _Parser(self.text).parse()
        return len(name) in self._node(name, starts, budget)


class _Parser:
    """Recursive descent over one pattern; `parse` gives the node of the whole."""

    def __init__(self, pattern: str) -> None:
        if len(pattern) > MAX_PATTERN:
            raise ConfigError("bad_pattern", f"a pattern of {len(pattern)} characters is too long")
        self.text = pattern
        self.at = 0
        self.groups = 0

    def parse(self) -> Node:
        node = self._alternation()
        if self.at < len(self.text):
            raise self._refuse("unbalanced )")
        return node

    def _refuse(self, what: str) -> ConfigError:
        return ConfigError("bad_pattern", f"the pattern {self.text[:60]!r} cannot be evaluated: {what}")

    def _peek(self) -> str:
        return self.text[self.at : self.at + 1]

    def _take(self) -> str:
        character = self._peek()
        if not character:
            raise self._refuse("it ends too early")
        self.at += 1
        return character

    def _alternation(self) -> Node:
        branches = [self._sequence()]
        while self._peek() == "|":
            self.at += 1
            branches.append(self._sequence())
        return branches[0] if len(branches) == 1 else _either(branches)

    def _sequence(self) -> Node:
        nodes: list[Node] = []
        while self._peek() not in ("", "|", ")"):
            nodes.append(self._quantified(self._atom()))
        return _then(nodes)

    def _quantified(self, node: Node) -> Node:
        bounds = self._quantifier()
        if bounds is None:
            return node
        if self._peek() == "?":
            self.at += 1  # lazy: which match is found first differs, whether there is one does not
        if self._peek() == "+" or self._quantifier() is not None:
            raise self._refuse("a quantifier on a quantifier")
        low, high = bounds
        if max(low, high or 0) > _MAX_REPEAT or (high is not None and high < low):
            raise self._refuse("a repeat count out of range")
        return _repeat(node, low, high)

    def _quantifier(self) -> tuple[int, int | None] | None:
        simple: dict[str, tuple[int, int | None]] = {"*": (0, None), "+": (1, None), "?": (0, 1)}
        if self._peek() in simple:
            return simple[self._take()]
        counted = _COUNT.match(self.text, self.at)
        if counted is None or counted.group(0) in ("{}", "{,}"):
            return None
        self.at = counted.end()
        low, comma, high = counted.groups()
        if not comma:
            return int(low), int(low)
        return int(low or 0), int(high) if high else None

    def _atom(self) -> Node:
        character = self._take()
        if character == "(":
            return self._group()
        if character == "[":
            return _one(self._charset())
        if character == "\\":
            return self._escape()
        if character == ".":
            return _one(lambda c: c != "\n")
        if character in "*+?":
            raise self._refuse("nothing to repeat")
        if character == "^":
            return _where(lambda _, position: position == 0)
        if character == "$":
            return _where(lambda text, position: position == len(text))
        return _one(lambda c: c == character)

    def _group(self) -> Node:
        self.groups += 1
        if self.groups > _MAX_GROUPS:
            raise self._refuse("too many groups")
        if self._peek() == "?":
            opening = _GROUP_OPENING.match(self.text, self.at)
            if opening is None:
                raise self._refuse("look-around and flags are not supported")
            self.at = opening.end()
        node = self._alternation()
        if self._peek() != ")":
            raise self._refuse("a missing )")
        self.at += 1
        return node

    def _escape(self) -> Node:
        character = self._take()
        if character in "bB":
            boundary = character == "b"
            return _where(lambda text, position: _at_word_edge(text, position) is boundary)
        return _one(self._escaped(character))

    def _escaped(self, character: str) -> Callable[[str], bool]:
        """Whether a character is in the class that backslash and `character` name."""
        classes: dict[str, Callable[[str], bool]] = {
            "d": str.isdecimal,
            "w": _is_word,
            "s": str.isspace,
        }
        inside = classes.get(character.lower())
        if inside is not None:
            return inside if character.islower() else lambda c: not inside(c)
        if character.isalnum():
            raise self._refuse(f"the escape \\{character} is not supported")
        return lambda c: c == character

    def _charset(self) -> Callable[[str], bool]:
        negated = self._peek() == "^"
        self.at += negated
        members: list[Callable[[str], bool]] = []
        while self._peek() != "]" or not members:
            members.append(self._member())
        self.at += 1
        return lambda c: any(member(c) for member in members) is not negated

    def _member(self) -> Callable[[str], bool]:
        low = self._take()
        if low == "\\":
            return self._escaped(self._take())
        if self._peek() == "-" and self.text[self.at + 1 : self.at + 2] not in ("", "]"):
            self.at += 1
            high = self._take()
            if high == "\\" or high < low:
                raise self._refuse("a character range that is empty or escaped")
            return lambda c: low <= c <= high
        return lambda c: c == low


def _is_word(character: str) -> bool:
    return character.isalnum() or character == "_"


def _at_word_edge(text: str, position: int) -> bool:
    before = position > 0 and _is_word(text[position - 1])
    after = position < len(text) and _is_word(text[position])
    return before is not after


def _one(accepts: Callable[[str], bool]) -> Node:
    def step(text: str, starts: Positions, budget: Budget) -> Positions:
        budget.spend(1 + len(starts))
        return frozenset(p + 1 for p in starts if p < len(text) and accepts(text[p]))

    return step


def _where(holds: Callable[[str, int], bool]) -> Node:
    def stay(text: str, starts: Positions, budget: Budget) -> Positions:
        budget.spend(1 + len(starts))
        return frozenset(p for p in starts if holds(text, p))

    return stay


def _then(nodes: list[Node]) -> Node:
    def chain(text: str, starts: Positions, budget: Budget) -> Positions:
        budget.spend(1)
        for node in nodes:
            if not starts:
                break
            starts = node(text, starts, budget)
        return starts

    return chain


def _either(branches: list[Node]) -> Node:
    def union(text: str, starts: Positions, budget: Budget) -> Positions:
        return frozenset[int]().union(*(branch(text, starts, budget) for branch in branches))

    return union


def _repeat(node: Node, low: int, high: int | None) -> Node:
    def repeat(text: str, starts: Positions, budget: Budget) -> Positions:
        for _ in range(low):
            if not starts:
                break
            starts = node(text, starts, budget)
        reached, frontier, count = starts, starts, low
        # A position is followed once only, so the loop ends after at most len(text) rounds.
        while frontier and (high is None or count < high):
            frontier = node(text, frontier, budget) - reached
            reached |= frontier
            count += 1
        return reached

    return repeat
