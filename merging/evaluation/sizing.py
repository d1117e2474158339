"""How many tokens a model reads at once: fixed on a processor, on a GPU by its free memory.

On a GPU two readings of random tokens show what a token takes. The size follows from them once for each base
model and kind of work; what does not fit after all is halved, and remembered (`merging.model.memory`).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, Literal

from merging.model import LoadedBase, is_shortage, release

Work = Literal["reading", "generation"]
# Tokens of one tree, and of the questions and answers of one batch; longer trees save little on a processor.
FIXED: dict[Work, int] = {"reading": 1024, "generation": 4096}
_MOST: dict[Work, int] = {"reading": 4096, "generation": 65536}
_LEAST = 64
_PROBES = (256, 1024)
# Of the free memory; what else is on the device takes some, and pieces of it are lost between tensors.
_SHARE = 0.7


def batch_tokens(base: LoadedBase, work: Work, read: Callable[[int], object]) -> int:
    """The tokens that are read at once; `read` reads as many random ones as `work` would."""
    if base.device.type != "cuda":
        return FIXED[work]
    if work not in base.memory.sizes:
        base.memory.sizes[work] = _measure(base, read, _MOST[work])
    return base.memory.sizes[work]


def fitting_tokens(free: int, probes: Sequence[tuple[int, int]], most: int) -> int:
    """The largest power of two of tokens, from 64 to `most`, whose peak fits into 70 % of the `free` bytes.

    The peak of n tokens is a n + b n^2 (attention masks), through two `probes` of (tokens, peak in bytes);
    where it grows more slowly than n, the larger of the peaks a token times n.
    """
    (few, low), (many, high) = probes
    square = max(0.0, (high / many - low / few) / (many - few))
    linear = high / many - square * many if square else max(low / few, high / many)
    room = _SHARE * free
    if not square and not linear:
        return most
    tokens = 2 * room / (linear + math.sqrt(linear**2 + 4 * square * room))
    return int(min(most, max(_LEAST, 2 ** math.floor(math.log2(max(tokens, 1.0))))))


def _measure(base: LoadedBase, read: Callable[[int], object], most: int) -> int:
    probes = []
    for tokens in _PROBES:
        try:
            probes.append((tokens, peak_bytes(base, partial(read, tokens))))
        except (RuntimeError, MemoryError) as error:
            if not is_shortage(error):
                raise
            release()
            return max(_LEAST, tokens // 4)
    return fitting_tokens(free_bytes(base), probes, most)


def peak_bytes(base: LoadedBase, read: Callable[[], object]) -> int:
    """The most bytes that a call takes on one of the model's GPUs, beside what is there before."""
    import torch

    devices = _gpus(base)
    before = []
    for device in devices:
        torch.cuda.reset_peak_memory_stats(device)
        before.append(torch.cuda.memory_allocated(device))
    read()
    return max(
        torch.cuda.max_memory_allocated(device) - used for device, used in zip(devices, before, strict=True)
    )


def free_bytes(base: LoadedBase) -> int:
    """The bytes that are free on the fullest of the model's GPUs, with those that torch keeps for later."""
    import torch

    return min(
        torch.cuda.mem_get_info(device)[0]
        + torch.cuda.memory_reserved(device)
        - torch.cuda.memory_allocated(device)
        for device in _gpus(base)
    )


def _gpus(base: LoadedBase) -> list[Any]:
    devices = {parameter.device for parameter in base.model.parameters()}
    return sorted((device for device in devices if device.type == "cuda"), key=str)
