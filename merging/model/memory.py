"""Work in pieces that fit into memory: a piece that does not fit is halved, until the smallest raises an
error.

Devices report insufficient memory in different ways: CUDA by torch.OutOfMemoryError, the
allocators of the CPU and of Apple's GPUs and the libraries of CUDA by a RuntimeError, numpy by a MemoryError.
"""

from __future__ import annotations

import contextlib
import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import TypeVar

from catalog.errors import MemoryLimitError

Result = TypeVar("Result")
_WORDS = re.compile(
    r"can't allocate memory|not enough memory|out of memory|CUDA(BLAS|DNN|_)\w*_?ALLOC_FAILED"
    r"|CU(BLAS|DNN|FFT|SOLVER)_STATUS_ALLOC_FAILED|Cannot allocate memory",
    re.IGNORECASE,
)


def is_shortage(error: BaseException) -> bool:
    """Whether an error reports insufficient memory of a device."""
    import torch

    if isinstance(error, (torch.OutOfMemoryError, MemoryError)):
        return True
    return isinstance(error, RuntimeError) and bool(_WORDS.search(str(error)))


def in_pieces(
    groups: Iterable[Sequence[int]], work: Callable[[Sequence[int]], Result], smallest: Callable[[int], str]
) -> Iterator[tuple[Sequence[int], Result]]:
    """Each group with the result of `work`, in order; a group that does not fit into memory is halved.

    Raises MemoryLimitError with the message `smallest` for a single item that does not fit; other errors of
    `work` propagate.
    """
    waiting = list(groups)[::-1]
    while waiting:
        group = waiting.pop()
        try:
            result = work(group)
        except (RuntimeError, MemoryError) as error:
            if not is_shortage(error):
                raise
            if len(group) == 1:
                raise MemoryLimitError(smallest(group[0])) from error
            half = len(group) // 2
            waiting += [group[half:], group[:half]]
            continue
        yield group, result


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
