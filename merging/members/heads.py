"""Output heads and embeddings that members save whole, and what a merge holds of them.

PEFT saves a module of `modules_to_save` in place of the base's (`base_model.model.lm_head.weight`). Such
weights are no update and are never added to one: the result has those of the first member that saves them,
or their mean.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from catalog.adapters import dims
from catalog.errors import MergeError, UsageError
from merging.members.member import MergeMember, read_saved_rows
from merging.members.tying import base_config

if TYPE_CHECKING:
    from torch import Tensor

HEADS = ("first", "average", "drop")
_CHUNK = 8 * 1024 * 1024


@dataclass(frozen=True, slots=True)
class SavedHead:
    """A saved layer of the result: the members that it is made of, with their shares, which sum to 1."""

    layer: str
    shape: tuple[int, int]
    members: tuple[MergeMember, ...]
    shares: tuple[float, ...]

    @property
    def tensor(self) -> str:
        """The name under which PEFT looks for it."""
        return f"base_model.model.{self.layer}.weight"

    @property
    def parameters(self) -> int:
        """How many numbers it has."""
        return self.shape[0] * self.shape[1]

    @property
    def read_size(self) -> int:
        """The bytes that are read of the members' files."""
        places = (member.saved[self.layer] for member in self.members)
        return sum(place.end - place.begin for place in places)

    def memory(self, width: int) -> int:
        """The bytes of its weights, `width` a number, and of a range of rows in float32 as read and as
        summed."""
        return self.parameters * width + 3 * 4 * min(self.parameters, _CHUNK)

    def read(self, dtype: str) -> Tensor:
        """The weights in the data type of that name, averaged in float32."""
        import torch

        out = torch.empty(self.shape, dtype=getattr(torch, dtype))
        step = max(1, _CHUNK // self.shape[1])
        for start in range(0, self.shape[0], step):
            rows = slice(start, min(start + step, self.shape[0]))
            total = torch.zeros(rows.stop - rows.start, self.shape[1])
            for member, share in zip(self.members, self.shares, strict=True):
                total.add_(read_saved_rows(member, self.layer, rows), alpha=share)
            if not bool(torch.isfinite(total).all()):
                raise MergeError(f"The saved {self.layer} contains NaN or infinity; use `heads` drop.")
            out[rows] = total
        return out


def saved_heads(
    members: Sequence[MergeMember], weights: Sequence[float], choice: str | None, base: str | None
) -> tuple[SavedHead, ...]:
    """The saved layers of a merge by the choice "first" or "average".

    Members of weight 0 have no part in it. `base` is the name or the folder of the base model. Raises
    MergeError for a vocabulary of another size than the base's or another member's, and for weights that have
    no mean.
    """
    layers: dict[str, list[tuple[MergeMember, float]]] = {}
    for member, weight in zip(members, weights, strict=True):
        for layer in member.saved if weight else ():
            layers.setdefault(layer, []).append((member, weight))
    vocabulary = _vocabulary(base) if layers else None
    heads = []
    for layer, pairs in sorted(layers.items()):
        first, *_ = (member for member, _ in pairs)
        for member, weight in zip(members, weights, strict=True):
            if weight and any(module.name == layer for module in member.spec.modules):
                raise MergeError(
                    f"{member.name} has factors of {layer}, which {first.name} saves whole, and PEFT would "
                    "load one of the two; use `heads` drop, or leave a member out."
                )
        shape = first.saved[layer].shape
        for member, _ in pairs:
            _refuse_tokens(member, layer, first, vocabulary)
        if choice == "first":
            pairs = pairs[:1]
        total = math.fsum(weight for _, weight in pairs)
        if total == 0:
            raise MergeError(f"The weights of the members that save {layer} sum to 0; use `heads` first.")
        shares = tuple(weight / total for _, weight in pairs) if choice == "average" else (1.0,)
        heads.append(SavedHead(layer, (shape[0], shape[1]), tuple(member for member, _ in pairs), shares))
    return tuple(heads)


def heads_record(choice: str, members: Sequence[MergeMember], heads: Sequence[SavedHead]) -> dict[str, Any]:
    """What merge.json states: the choice, and by layer the members and shares that are in the result."""
    layers: Mapping[str, Any] = {
        head.layer: [
            {"member": member.name, "share": share}
            for member, share in zip(head.members, head.shares, strict=True)
        ]
        for head in heads
    }
    dropped = {member.name: list(member.dropped) for member in members if member.dropped}
    return {"choice": choice, "layers": layers, **({"dropped": dropped} if dropped else {})}


def saved_names(heads: Sequence[SavedHead]) -> list[str]:
    """What modules_to_save of the configuration names."""
    return sorted({head.layer.rpartition(".")[2] for head in heads})


def head_tensors(heads: Sequence[SavedHead], dtype: str) -> Iterator[tuple[str, Tensor]]:
    """Name and weights of each saved layer, one at a time."""
    for head in heads:
        yield head.tensor, head.read(dtype)


def _refuse_tokens(member: MergeMember, layer: str, first: MergeMember, vocabulary: int | None) -> None:
    """Raises MergeError for new tokens, whose rows mean something by the member's own tokenizer alone."""
    rows, *width = member.saved[layer].shape
    expected, *first_width = first.saved[layer].shape
    if vocabulary not in (None, rows):
        raise MergeError(
            f"{member.name} saves {layer} with {rows} tokens, and its base has {vocabulary}: rows of new "
            "tokens need the tokenizer of that member; use `heads` drop, or leave it out."
        )
    if (rows, width) != (expected, first_width):
        raise MergeError(
            f"{member.name} saves {layer} with {rows} tokens and {first.name} with {expected}: rows of new "
            "tokens need the tokenizer of that member; use `heads` drop, or leave one out."
        )


def _vocabulary(base: str | None) -> int | None:
    """The number of tokens of the base model in a folder or of a known name; None if it is not known."""
    if base is None:
        return None
    config = base_config(Path(base))
    text = config.get("text_config")
    size = (text if isinstance(text, dict) else config).get("vocab_size")
    if isinstance(size, int):
        return size
    widths = dims(base)
    return widths.vocab if widths else None


def check_heads(choice: str | None) -> None:
    """Raises UsageError for another choice than those of HEADS."""
    if choice is not None and choice not in HEADS:
        raise UsageError(f"`heads` is {choice!r}; use one of {', '.join(HEADS)}.")
