"""The portable form of an adapter: one rank and whole groups of modules, as every engine reads it.

Ranks are filled up with zero rows of A and zero columns of B, and groups of modules (q, k and v; gate and up;
the same in every layer) with zero factors, so that the update stays the same. Nothing is ever truncated.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from catalog.adapters import BaseModules
from merging.members.stacks import Shape

if TYPE_CHECKING:
    from torch import Tensor

# Ranks that every engine scales rightly and vLLM has room for; above them multiples of 16 (TGI and LoRAX).
_RANKS = (8, 16, 32, 64, 128, 256, 320, 512)
_STEP = 16
_GROUPS = (("q_proj", "k_proj", "v_proj"), ("gate_proj", "up_proj"))
_LAYER = re.compile(r"(?<=\.)[0-9]+(?=\.)")
# A file that is larger by more than this share, and these bytes of float32, is worth a sentence.
_SHARE = 0.25
_LEAST = 16 * 1024 * 1024


@dataclass(frozen=True, slots=True)
class PortableForm:
    """`rank` of every module, and the modules with zero factors (`zeros`) that complete groups.

    `targets` are short names that mean exactly the modules of the file, None if only full names do.
    """

    rank: int
    zeros: tuple[Shape, ...] = ()
    targets: tuple[str, ...] | None = None

    def pad(self, a: Tensor, b: Tensor) -> tuple[Tensor, Tensor]:
        """A of (rank, in) and B of (out, rank), filled up with zeros."""
        from torch.nn.functional import pad

        missing = self.rank - a.shape[0]
        if missing < 0:
            raise ValueError(f"a module of rank {a.shape[0]} does not fit the form of rank {self.rank}")
        return (pad(a, (0, 0, 0, missing)), pad(b, (0, missing))) if missing else (a, b)

    def zero_factors(self, dtype: str) -> Iterator[tuple[Shape, Tensor, Tensor]]:
        """The factors of the modules in `zeros`."""
        import torch

        kind = getattr(torch, dtype)
        for shape in self.zeros:
            yield (
                shape,
                torch.zeros(self.rank, shape.in_features, dtype=kind),
                torch.zeros(shape.out_features, self.rank, dtype=kind),
            )

    def record(self) -> dict[str, Any]:
        """What a record states of the form."""
        return {"rank": self.rank, "zero_modules": len(self.zeros)}

    def note(self, ranks: Mapping[str, int], shapes: Iterable[Shape], advice: str = "") -> str | None:
        """A sentence, with advice, where the form makes the file much larger than modules of these ranks."""
        widths = {shape.name: shape.in_features + shape.out_features for shape in shapes}
        compact = sum(rank * widths[name] for name, rank in ranks.items())
        zeros = sum(shape.in_features + shape.out_features for shape in self.zeros)
        portable = self.rank * (sum(widths[name] for name in ranks) + zeros)
        if portable <= compact * (1 + _SHARE) or 4 * (portable - compact) < _LEAST:
            return None
        filled = f" and zero factors for {len(self.zeros)} modules" if self.zeros else ""
        return (
            f"One rank of {self.rank}{filled}, which all engines read, makes the file "
            f"{portable / compact:.1f} times as large{advice}."
        )


def portable_rank(rank: int) -> int:
    """The smallest rank from this on that every engine reads."""
    return next((size for size in _RANKS if size >= rank), -(-rank // _STEP) * _STEP)


def portable_form(union: Sequence[Shape], ranks: Mapping[str, int], base: BaseModules | None) -> PortableForm:
    """The form for modules of these largest ranks by name; groups are completed if `base` has the modules."""
    rank = portable_rank(max(ranks.values(), default=1))
    if base is None or any(
        shape.name not in base.shapes or base.misfit(shape.name, shape.in_features, shape.out_features)
        for shape in union
    ):
        return PortableForm(rank)
    present = {shape.name for shape in union}
    templates = {_template(name) for name in present if _LAYER.search(name)}
    for group in _GROUPS:
        for template in tuple(templates):
            stem, _, short = template.rpartition(".")
            if short in group:
                templates |= {f"{stem}.{name}" for name in group}
    zeros = tuple(
        Shape(name, "linear", width[0] or 0, width[1] or 0, (), ())
        for name, width in base.shapes.items()
        if name not in present and _template(name) in templates and all(width)
    )
    return PortableForm(rank, zeros, _targets(present | {shape.name for shape in zeros}, base))


def _template(name: str) -> str:
    """A module's name with 0 for the number of its layer."""
    return _LAYER.sub("0", name, count=1)


def _targets(names: Iterable[str], base: BaseModules) -> tuple[str, ...] | None:
    """The short names of modules if no other module of the base has one of them."""
    names = set(names)
    short = {name.rpartition(".")[2] for name in names}
    every = {name for name in base.shapes if name.rpartition(".")[2] in short}
    return tuple(sorted(short)) if every == names else None
