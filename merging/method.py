"""What a merge method is: a row with a name, parameters, a source, and a function of one module."""

from __future__ import annotations

import difflib
import hashlib
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from catalog.errors import UsageError
from merging.lowrank import Grams, Update, grams
from merging.stack import Stack

Value = float | int | str | bool
Options = Mapping[str, Value]


@dataclass(frozen=True, slots=True)
class Parameter:
    """One parameter of a method: a number from `low` to `high`, or one of `choices`.

    The type of `default` is the type of the value.
    """

    name: str
    default: Value
    meaning: str
    low: float = -math.inf
    high: float = math.inf
    choices: tuple[str, ...] = ()

    @property
    def range(self) -> str:
        """The allowed values in words."""
        if self.choices:
            return " | ".join(self.choices)
        if isinstance(self.default, bool):
            return "true | false"
        low, high = (f"{bound:g}" if math.isfinite(bound) else "any" for bound in (self.low, self.high))
        return "any" if low == high == "any" else f"{low} to {high}"

    def read(self, value: object) -> Value:
        """The value in the parameter's type, from itself or from text; raises UsageError."""
        try:
            return self._read(value)
        except (ValueError, OverflowError) as error:
            raise UsageError(f"{self.name} must be {self.range}, not {value!r}.") from error

    def _read(self, value: object) -> Value:
        if self.choices:
            if str(value) not in self.choices:
                raise ValueError
            return str(value)
        if isinstance(self.default, bool):
            return (
                {"true": True, "false": False}[str(value).lower()] if str(value).lower() in _FLAGS else _no()
            )
        if isinstance(value, bool) or not isinstance(value, (int, float, str)):
            raise ValueError
        number = float(value)
        if not (self.low <= number <= self.high and math.isfinite(number)):
            raise ValueError
        if isinstance(self.default, int):
            return int(number) if number == int(number) else _no()
        return number


@dataclass
class Work:
    """All that a method sees of one module: the members' factors, their weights, and what was asked.

    `weights` has one entry a member, none of them 0; `rank` is the largest rank that the result may have;
    `names` tell members apart for random numbers; `memory` is a budget in bytes for what exceeds the factors;
    `inputs` holds one file of activations a member for the methods that need them.
    """

    stack: Stack
    weights: tuple[float, ...]
    rank: int
    names: tuple[str, ...]
    options: Options = field(default_factory=dict)
    seed: int = 0
    memory: int = 512 * 1024 * 1024
    inputs: tuple[Path, ...] = ()
    _grams: Grams | None = field(default=None, repr=False)

    def grams(self) -> Grams:
        """The Gram matrices in float64, computed once."""
        if self._grams is None:
            self._grams = grams(self.stack)
        return self._grams

    def number(self, name: str) -> float:
        """A parameter that is a number."""
        return float(self.options[name])

    def key(self, *parts: object) -> int:
        """A stable 62-bit seed for this module and these parts."""
        text = "\x1f".join(str(part) for part in (self.seed, self.stack.name, *parts))
        return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big") >> 2


Gauge = Literal["invariant", "rotations", "dependent"]


@dataclass(frozen=True, slots=True)
class MergeMethod:
    """A row of the table of methods.

    `exact` says that the result is the quantity that the method defines, with no approximation but rounding.
    `gauge` says what happens when a member's factors change and its update does not (A to G A, B to B G^-1):
    nothing, nothing for rotations G, or something. `weight` is a member's weight where none is given, "mean"
    for 1/N; `normalised` says that weights are divided by their sum. `full_rank` says that without a rank
    asked for the result has the rank that it needs (else: the members' largest), `truncates` that it can be
    brought to a lower one. `equal_ranks` says that members of different ranks are refused, `data` that the
    method needs activations, `units` that the rank counts units of the members and cannot exceed theirs.
    `cost` is what the time goes into: the factors' bytes (and float32 grams where it truncates), float64
    grams, or the entries of the updates.
    """

    name: str
    summary: str
    paper: str
    run: Callable[[Work], Update]
    parameters: tuple[Parameter, ...] = ()
    exact: bool = False
    data: bool = False
    gauge: Gauge = "invariant"
    weight: float | Literal["mean"] = "mean"
    normalised: bool = False
    full_rank: bool = False
    truncates: bool = True
    equal_ranks: bool = False
    cost: Literal["bytes", "grams", "entries"] = "bytes"
    units: bool = False

    def options(self, given: Mapping[str, object]) -> dict[str, Value]:
        """All parameters with the given values read and checked; raises UsageError with the nearest names."""
        known = {parameter.name: parameter for parameter in self.parameters}
        for name in given:
            if name not in known:
                raise UsageError(
                    f"{self.name} has no parameter {name!r}; {nearest(name, known)}."
                    if known
                    else f"{self.name} has no parameters, so {name!r} cannot be set."
                )
        values = {name: parameter.default for name, parameter in known.items()}
        return values | {name: known[name].read(value) for name, value in given.items()}

    def default_weights(self, count: int) -> tuple[float, ...]:
        """The weights of `count` members where none are given."""
        return (1 / count if self.weight == "mean" else self.weight,) * count


def nearest(name: str, known: Mapping[str, object] | Sequence[str]) -> str:
    """'did you mean …' with the nearest known names, or all of them where none is near."""
    close = difflib.get_close_matches(name, list(known), n=3, cutoff=0.5)
    return f"did you mean {' or '.join(close)}" if close else f"there are {', '.join(known)}"


_FLAGS = {"true": True, "false": False}


def _no() -> Value:
    raise ValueError
