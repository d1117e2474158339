"""The definition of a merge method: a row with a name, parameters, a source, and a function of one module."""

from __future__ import annotations

import difflib
import hashlib
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Literal

from catalog.errors import UsageError
from merging.members import Stack
from merging.methods.lowrank import Grams, Update, grams

# Squared norms below this share of their bound are rounding of float32 factors.
_ROUNDING = 1e-12
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
        """The value in the parameter's type, from a value or a text; raises UsageError."""
        try:
            return self._read(value)
        except (KeyError, ValueError, OverflowError) as error:
            raise UsageError(f"{self.name} must be {self.range}, not {value!r}.") from error

    def _read(self, value: object) -> Value:
        if self.choices:
            if str(value) not in self.choices:
                raise ValueError
            return str(value)
        if isinstance(self.default, bool):
            return {"true": True, "false": False}[str(value).lower()]
        if isinstance(value, bool) or not isinstance(value, (int, float, str)):
            raise ValueError
        number = float(value)
        is_integer = isinstance(self.default, int)
        if not (self.low <= number <= self.high and math.isfinite(number)) or (is_integer and number % 1):
            raise ValueError
        return int(number) if is_integer else number


@dataclass
class ModuleWork:
    """The input of a method for one module: the members' factors, their weights, and the options.

    `weights` has one entry a member, none of them 0; `rank` is the largest rank that the result may have;
    `names` identify members for random numbers; `memory` is a budget in bytes for what exceeds the factors;
    `inputs` holds one file of activations a member for the methods that need them. `limits` are magnitudes
    by name that members' entries must reach, if a method finds them over all modules.
    """

    stack: Stack
    weights: tuple[float, ...]
    rank: int
    names: tuple[str, ...]
    options: Options = field(default_factory=dict)
    seed: int = 0
    memory: int = 512 * 1024 * 1024
    inputs: tuple[Path, ...] = ()
    limits: Mapping[str, float] = field(default_factory=dict)
    _grams: Grams | None = field(default=None, repr=False)

    def grams(self) -> Grams:
        """The Gram matrices in float64, computed once."""
        if self._grams is None:
            self._grams = grams(self.stack)
        return self._grams

    def of(self, members: Sequence[int]) -> ModuleWork:
        """The same work for some of the members, with unchanged weights."""
        import torch

        stack, ranges = self.stack, self.stack.ranges()
        index = [column for n in members for column in range(ranges[n].start, ranges[n].stop)]
        member_columns = torch.tensor(index, dtype=torch.long, device=stack.a.device)
        complete = len(index) == stack.a.shape[0]
        products = self._grams
        if products is not None and not complete:
            products = Grams(*(gram[member_columns][:, member_columns] for gram in products))
        return replace(
            self,
            stack=Stack(
                stack.name,
                stack.a if complete else stack.a[member_columns],
                stack.b if complete else stack.b[:, member_columns],
                tuple(stack.ranks[n] for n in members),
                tuple(stack.scalings[n] for n in members),
            ),
            weights=tuple(self.weights[n] for n in members),
            names=tuple(self.names[n] for n in members),
            inputs=tuple(self.inputs[n] for n in members) if self.inputs else (),
            _grams=products,
        )

    def of_updates(self) -> ModuleWork:
        """The same work for the members whose update of this module is not 0; for all where each is 0."""
        here = self.updates()
        return self.of(here) if 0 < len(here) < len(self.weights) else self

    def updates(self) -> list[int]:
        """The members whose update of this module is not 0.

        It is 0 if float32 cannot distinguish ||B_i A_i||^2 from 0 relative to ||A_i||^2 ||B_i||^2.
        """
        gram_pair, here = self.grams(), []
        for n, place in enumerate(self.stack.ranges()):
            a, b = gram_pair.a[place, place], gram_pair.b[place, place]
            bound = float(a.trace() * b.trace())
            if bound > 0 and float((a * b).sum()) > _ROUNDING * bound:
                here.append(n)
        return here

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
    `gauge` is the effect of changing a member's factors but not its update (A to G A, B to B G^-1): nothing,
    nothing for rotations G, or something. `weight` is the default weight of a member, "mean" for 1/N;
    `normalised` means that weights are divided by their sum. `full_rank` means that by default the result has
    the rank that it needs (else: the members' largest), `truncates` that a lower rank can be requested.
    `equal_ranks` says that members of different ranks are refused, `data` that the method needs activations,
    `units` that the rank counts units of the members and cannot exceed theirs. `cost` is the main part of the
    time: the factors' bytes (and float32 grams where it truncates), float64 grams, or the entries of the
    updates. `survey`, where a method has one, reads the works of all modules before the first is merged, as
    often as necessary, and returns their `limits`. `revision` is incremented when the same call gives a
    different result.
    """

    name: str
    summary: str
    paper: str
    run: Callable[[ModuleWork], Update]
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
    survey: Callable[[Callable[[], Iterator[ModuleWork]]], Mapping[str, float]] | None = None
    revision: int = 1

    @property
    def is_sum(self) -> bool:
        """Whether the result is the weighted sum of the updates, or its best approximation of a rank."""
        return self.exact and self.cost == "bytes"

    def options(self, settings: Mapping[str, object]) -> dict[str, Value]:
        """All parameters with the given values parsed and validated; raises UsageError with the nearest
        names."""
        parameters = {parameter.name: parameter for parameter in self.parameters}
        for name in settings:
            if name not in parameters:
                raise UsageError(
                    f"{self.name} has no parameter {name!r}; {nearest(name, parameters)}."
                    if parameters
                    else f"{self.name} has no parameters; leave out {name!r}."
                )
        values = {name: parameter.default for name, parameter in parameters.items()}
        return values | {name: parameters[name].read(value) for name, value in settings.items()}

    def default_weights(self, count: int) -> tuple[float, ...]:
        """The default weights of `count` members."""
        return (1 / count if self.weight == "mean" else self.weight,) * count


def nearest(name: str, names: Mapping[str, object] | Sequence[str]) -> str:
    """'did you mean …' with the nearest known names, or all of them if none is near."""
    close = difflib.get_close_matches(name, list(names), n=3, cutoff=0.5)
    return f"did you mean {' or '.join(close)}" if close else f"there are {', '.join(names)}"
