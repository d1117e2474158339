"""Untrusted regular expressions, matched by RE2 in time linear in the length of the name.

PEFT lets `rank_pattern` and `alpha_pattern` hold regular expressions, and a backtracking engine needs
exponential time for some of them (`(a+)+$`). RE2 bounds the size of a compiled expression, and a `Budget` of
steps the work on one adapter.

Supported is what Python and RE2 read alike: literals, `.`, classes, groups, `|`, `* + ? {m,n}` greedy or
lazy, `^ $ \\b \\d \\w \\s` and their negations. Anything else (look-around, back-references, flags,
possessive quantifiers) raises ConfigError of kind bad_pattern; no such pattern was seen in a published
adapter's rank or alpha table.
"""

from __future__ import annotations

import functools
import re
from dataclasses import dataclass
from typing import Any

from catalog.errors import ConfigError

MAX_PATTERN = 1000
MAX_TEXT = 1000
_MAX_GROUPS = 30
# Bytes of a compiled expression and its automaton: about 10,000 instructions. At most this many are cached.
_MEMORY, _KEPT = 1 << 18, 1024
# What compiling costs, in steps for each instruction, and comparing with a plain name.
_COMPILING, _COMPARING = 100, 1000
_LITERAL_KEY = re.compile(r"(?:[A-Za-z0-9_-]|\\?\.)+\Z")
# What means the same to Python and to RE2: not so other escapes and groups, [[:alpha:]], {,n}.
_SHARED = re.compile(
    r"(?:[^\\(\[{]|\\(?:[bBdDsSwW]|[^A-Za-z0-9])|\((?!\?)|\(\?(?::|P<[A-Za-z_]\w*>)|\[(?!:)|\{(?!,))*",
    re.ASCII | re.DOTALL,
)
# Classes of characters that are of ASCII to RE2, of Unicode to Python.
_CLASS = re.compile(r"\\[bBdDsSwW]")


@dataclass(slots=True)
class Budget:
    """Steps (instructions of a pattern times characters of a name, a few nanoseconds each) that are left;
    spending more raises ConfigError of kind bad_pattern.
    """

    steps: int = 1_000_000_000

    def spend(self, steps: int) -> None:
        self.steps -= steps
        if self.steps < 0:
            raise ConfigError("bad_pattern", "matching the module patterns takes too long")


def is_regular_expression(text: str) -> bool:
    """Whether this is a valid regular expression of Python, so that PEFT can match names with it."""
    try:
        re.compile(text)
    except (re.error, RecursionError, OverflowError):
        return False
    return True


class Pattern:
    """One key of a pattern table; building it raises ConfigError of kind bad_pattern where it is not
    supported.
    """

    def __init__(self, text: str, budget: Budget | None = None) -> None:
        self.text = text
        plain = len(text) <= MAX_PATTERN and _LITERAL_KEY.match(text)
        self.literal = text.replace("\\", "") if plain else None
        # Most keys are plain names, and a table may have thousands: they are compiled when needed.
        if self.literal is None:
            _check_syntax(text)
            size = _compile(text, text).programsize
            if budget is not None:
                budget.spend(size * _COMPILING)

    def matches(self, name: str, budget: Budget) -> bool:
        """Whether `name` is a match as a whole; never of what follows one of its dots."""
        return self._is_match(self.text, name, budget)

    def matches_suffix(self, name: str, budget: Budget) -> bool:
        """Whether `name`, or what follows one of its dots, is a match as a whole, as PEFT decides it."""
        budget.spend(_COMPARING)
        if self.literal is not None:
            tail = name[-len(self.literal) :]
            if tail == self.literal:
                return len(name) == len(tail) or name[-len(tail) - 1] == "."
            # An unescaped dot stands for any character, which matters only where the rest agrees.
            if len(tail) != len(self.literal) or any(
                ours not in (theirs, ".") for ours, theirs in zip(self.literal, tail, strict=True)
            ):
                return False
        return self._is_match(rf"(?:.*\.)?(?:{self.text})", name, budget)

    def _is_match(self, expression: str, name: str, budget: Budget) -> bool:
        if len(name) > MAX_TEXT:
            raise ConfigError("bad_pattern", f"a module name of {len(name)} characters is too long to match")
        if not name.isascii() and _CLASS.search(self.text):
            raise ConfigError("bad_pattern", f"{self.text[:60]!r} is matched with names in ASCII only")
        compiled = _compile(expression, self.text)
        budget.spend(compiled.programsize * (len(name) + _COMPILING))
        return compiled.fullmatch(name) is not None


def _check_syntax(text: str) -> None:
    if len(text) > MAX_PATTERN:
        raise ConfigError("bad_pattern", f"a pattern of {len(text)} characters is too long")
    if not _SHARED.fullmatch(text):
        raise _refusal(text, "look-around, flags, special escapes and back-references are not supported")
    if text.count("(") > _MAX_GROUPS:
        raise _refusal(text, "too many groups")


@functools.lru_cache(_KEPT)
def _compile(expression: str, text: str) -> Any:
    """The expression, which has the pattern `text` in it, as RE2 compiles it."""
    import re2

    options = re2.Options()
    options.max_mem, options.never_capture, options.log_errors = _MEMORY, True, False
    try:
        return re2.compile(expression, options)
    except re2.error as error:
        raise _refusal(text, error.args[0].decode(errors="replace").partition(":")[0]) from error
    except UnicodeEncodeError as error:
        raise _refusal(text, "it is not Unicode") from error


def _refusal(text: str, why: str) -> ConfigError:
    return ConfigError("bad_pattern", f"the pattern {text[:60]!r} cannot be evaluated: {why}")
