"""Work in pieces that fit into memory: a piece that does not fit is halved, until the smallest raises an
error.

What did not fit is recorded for each base model and kind of work, and not tried again.

Devices report insufficient memory in different ways: CUDA by torch.OutOfMemoryError, the
allocators of the CPU and of Apple's GPUs and the libraries of CUDA by a RuntimeError, numpy by a MemoryError.
"""

from __future__ import annotations

import contextlib
import math
import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeVar

from catalog.errors import MemoryLimitError

Result = TypeVar("Result")
_WORDS = re.compile(
    r"can't allocate memory|not enough memory|out of memory|CUDA(BLAS|DNN|_)\w*_?ALLOC_FAILED"
    r"|CU(BLAS|DNN|FFT|SOLVER)_STATUS_ALLOC_FAILED|Cannot allocate memory",
    re.IGNORECASE,
)


@dataclass(slots=True, eq=False)
class MemoryRecord:
    """What fits into the memory of a base model's device, and what did not.

    `sizes` holds, for each kind of work, the tokens that are read at once, where these were measured;
    `refused` the smallest size that did not fit, in tokens. `checkpointing`
    says that layers are computed again in the backward pass, so that their activations need not be stored.
    """

    refused: dict[str, int] = field(default_factory=dict)
    sizes: dict[str, int] = field(default_factory=dict)
    checkpointing: bool = False

    @contextlib.contextmanager
    def checkpoint(self, always: bool) -> Iterator[None]:
        """Inside the block layers are computed again in the backward pass, if `always` or as before."""
        before = self.checkpointing
        self.checkpointing = always or before
        try:
            yield
        finally:
            if always:
                self.checkpointing = before

    def refuse(self, work: str, size: int) -> None:
        """Records that work of this size did not fit."""
        self.refused[work] = min(size, self.refused.get(work, size))

    def fits(self, work: str, size: int) -> bool:
        """Whether work of this size is not known to be too large."""
        return size < self.refused.get(work, math.inf)


@dataclass(frozen=True, slots=True)
class Sizes:
    """How a record sees pieces of work: the kind, and the size of a piece in tokens."""

    record: MemoryRecord
    work: str
    size: Callable[[Sequence[int]], int]

    def fits(self, piece: Sequence[int]) -> bool:
        """Whether the piece is not known to be too large; a single item is always tried."""
        return len(piece) == 1 or self.record.fits(self.work, self.size(piece))

    def refuse(self, piece: Sequence[int]) -> None:
        """Records that the piece did not fit."""
        self.record.refuse(self.work, self.size(piece))


def is_shortage(error: BaseException) -> bool:
    """Whether an error reports insufficient memory of a device."""
    import torch

    if isinstance(error, (torch.OutOfMemoryError, MemoryError)):
        return True
    return isinstance(error, RuntimeError) and bool(_WORDS.search(str(error)))


def in_pieces(
    groups: Iterable[Sequence[int]],
    work: Callable[[Sequence[int]], Result],
    smallest: Callable[[int], str],
    sizes: Sizes | None = None,
) -> Iterator[tuple[Sequence[int], Result]]:
    """Each group with the result of `work`, in order; a group that does not fit into memory is halved.

    With `sizes`, groups as large as one that did not fit before are halved without being tried. Raises
    MemoryLimitError with the message `smallest` for a single item that does not fit; other errors of `work`
    propagate.
    """
    waiting = list(groups)[::-1]
    while waiting:
        group = waiting.pop()
        if sizes is None or sizes.fits(group):
            try:
                result = work(group)
            except (RuntimeError, MemoryError) as error:
                if not is_shortage(error):
                    raise
                if len(group) == 1:
                    raise MemoryLimitError(smallest(group[0])) from error
            else:
                yield group, result
                continue
            release()
            if sizes is not None:
                sizes.refuse(group)
        half = len(group) // 2
        waiting += [group[half:], group[:half]]


def release() -> None:
    """Returns the memory that torch keeps for later tensors to the GPU, after a shortage."""
    import torch

    if torch.cuda.is_available():
        torch.cuda.empty_cache()


@contextlib.contextmanager
def recompute_layers(model: Any) -> Iterator[None]:
    """Inside the block a backward pass computes the inside of each layer again, which is not stored.

    The gradient checkpointing of transformers requires a model in training mode, in which some models drop
    values at random; this does not.
    """
    from torch.utils.checkpoint import checkpoint
    from transformers.modeling_layers import GradientCheckpointingLayer

    with contextlib.ExitStack() as stack:
        for layer in model.modules():
            if isinstance(layer, GradientCheckpointingLayer):
                _recompute(layer, stack, checkpoint)
        yield


def _recompute(layer: Any, stack: contextlib.ExitStack, checkpoint: Callable[..., Any]) -> None:
    own, inner = layer.__dict__.get("forward"), layer.forward

    def forward(*inputs: Any, **named_inputs: Any) -> Any:
        return checkpoint(inner, *inputs, use_reentrant=False, **named_inputs)

    def restore() -> None:
        if own is None:
            del layer.forward
        else:
            layer.forward = own

    layer.forward = forward
    stack.callback(restore)


@contextlib.contextmanager
def memory_limit(what: str) -> Iterator[None]:
    """Translates a shortage of memory inside the block into a MemoryLimitError that names `what`."""
    try:
        yield
    except (RuntimeError, MemoryError) as error:
        if not is_shortage(error):
            raise
        raise MemoryLimitError(
            f"{what} does not fit into memory; use a device with more, or a smaller base model."
        ) from error
