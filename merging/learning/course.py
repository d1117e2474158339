"""The course of one training: batches, AdamW steps by a cosine schedule, validation, and when to end.

The parameters of the optimiser are trained; this module does not depend on adapters.
"""

from __future__ import annotations

import contextlib
import math
import random
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

from catalog.errors import MemoryLimitError, UsageError
from merging.evaluation import (
    entropies,
    likelihoods,
    losses,
    mean_loss,
    read_tokens,
    reading_groups,
    targets_only,
    tree_width,
)
from merging.model import LoadedBase, Prompt, is_shortage, recompute_layers, release

if TYPE_CHECKING:
    from torch import Tensor
    from torch.optim import Optimizer
    from torch.optim.lr_scheduler import LRScheduler

# Recycling paper, 1.8.
WARM_UP = 0.1
MOST_NORM = 1.0
# The kind of work under which sizes are recorded.
_TRAINING = "training"
# The mean over examples of the right answer's loss a token, the mean over the tokens of all right answers, or
# the entropy among the answers.
Objective = Literal["loss", "token_loss", "entropy"]


@dataclass(frozen=True, slots=True)
class Recipe:
    """How long and by what steps: `evaluate_every` in steps, `patience` in measurements."""

    steps: int = 100
    batch: int = 8
    evaluate_every: int = 10
    patience: int = 20
    seed: int = 0

    def check(self) -> None:
        """Raises UsageError for an invalid number."""
        for name in ("steps", "batch", "evaluate_every", "patience"):
            if getattr(self, name) < 1:
                raise UsageError(f"{name} must be at least 1, not {getattr(self, name)}.")


@dataclass(frozen=True, slots=True)
class Measure:
    """The loss per token in nats after this number of steps: on validation, and the mean over the batches
    since the measure before."""

    step: int
    train: float
    valid: float


@dataclass(frozen=True, slots=True)
class Course:
    """The result of one learning rate; the best measure counts.

    `steps` are those taken. `diverged` is the step at which a loss was not finite, and None for a good one.
    """

    learning_rate: float
    steps: int
    best_step: int | None
    valid_loss: float | None
    diverged: int | None
    losses: tuple[Measure, ...]
    seconds: float

    @classmethod
    def read(cls, document: dict[str, Any]) -> Course:
        """The course from its fields as JSON."""
        return cls(**{**document, "losses": tuple(Measure(**measure) for measure in document["losses"])})


def run(
    base: LoadedBase,
    optimiser: Optimizer,
    rate: float,
    recipe: Recipe,
    train: Sequence[Prompt],
    valid: Sequence[Prompt],
    *,
    dropout: bool = False,
    objective: Objective = "loss",
    best: float = math.inf,
    better: Callable[[], None] | None = None,
    report_step: Callable[[int], None] | None = None,
) -> Course:
    """Train the optimiser's parameters; `rate`, its learning rate, is the highest of the schedule.

    Cosine to zero after a warm-up of a tenth of the steps, gradients clipped to norm 1. `objective` is what
    is lowered, in training and validation. `better` is called at each new lowest
    validation loss below `best`, so that the caller can keep the state, and `report_step` after each step.
    `dropout` puts the model into training mode for the steps. Raises MemoryLimitError if a prompt does not
    fit into memory.
    """
    from transformers import get_cosine_schedule_with_warmup

    began = time.perf_counter()
    base.model.eval()
    schedule = get_cosine_schedule_with_warmup(optimiser, round(WARM_UP * recipe.steps), recipe.steps)
    measures: list[Measure] = []
    since: list[float] = []
    diverged, step, lowest = None, 0, 0
    for step, batch in enumerate(batches(train, recipe), 1):
        since.append(_step(base, optimiser, schedule, batch, dropout, objective))
        if report_step is not None:
            report_step(step)
        finite = math.isfinite(since[-1])
        if finite and step % recipe.evaluate_every and step < recipe.steps:
            continue
        loss = mean_of(base, valid, objective) if finite else math.nan
        if not math.isfinite(loss):
            diverged = step
            break
        measures.append(Measure(step, math.fsum(since) / len(since), loss))
        since.clear()
        if len(measures) == 1 or loss < measures[lowest].valid:
            lowest = len(measures) - 1
            if loss < best and better is not None:
                better()
        if len(measures) - 1 - lowest >= recipe.patience:
            break
    chosen = measures[lowest] if measures else None
    return Course(
        learning_rate=rate,
        steps=step,
        best_step=chosen.step if chosen else None,
        valid_loss=chosen.valid if chosen else None,
        diverged=diverged,
        losses=tuple(measures),
        seconds=round(time.perf_counter() - began, 3),
    )


def descend(
    base: LoadedBase,
    trained: Sequence[Tensor],
    rate: float,
    recipe: Recipe,
    train: Sequence[Prompt],
    valid: Sequence[Prompt],
    objective: Objective,
    progress: Callable[[int, int], None] | None,
) -> tuple[list[Tensor], Course, float]:
    """Copies of `trained` at its best validation loss, the start included, the course, and the loss before.

    AdamW without weight decay. `progress` is called with the number of steps done and the total.
    """
    import torch

    best = [values.detach().clone() for values in trained]

    def better() -> None:
        for copy, values in zip(best, trained, strict=True):
            copy.copy_(values.detach())

    def report_step(step: int) -> None:
        if progress is not None:
            progress(step, recipe.steps)

    before = mean_of(base, valid, objective)
    course = run(
        base,
        torch.optim.AdamW(trained, lr=rate, betas=(0.9, 0.999), weight_decay=0.0),
        rate,
        recipe,
        train,
        valid,
        objective=objective,
        best=before if math.isfinite(before) else math.inf,
        better=better,
        report_step=report_step,
    )
    return best, course, before


@contextlib.contextmanager
def set_seeds(seed: int, base: LoadedBase) -> Iterator[None]:
    """torch's generators are seeded, and restored when the block ends."""
    import torch

    with torch.random.fork_rng([base.device] if base.device.type == "cuda" else []):
        torch.manual_seed(seed)
        yield


def batches(prompts: Sequence[Prompt], recipe: Recipe) -> Iterator[list[Prompt]]:
    """The batch of every step: the prompts in a random order by the seed, a new one for each epoch.

    A batch continues over the end of an epoch, so that all have the same size.
    """
    draw = random.Random(f"batches:{recipe.seed}")  # noqa: S311 - an order, not a secret
    waiting: list[Prompt] = []
    for _ in range(recipe.steps):
        while len(waiting) < recipe.batch:
            waiting += draw.sample(list(prompts), len(prompts))
        yield waiting[: recipe.batch]
        del waiting[: recipe.batch]


def gradients(
    base: LoadedBase, batch: Sequence[Prompt], clear: Callable[[], None], objective: Objective = "loss"
) -> float:
    """The mean objective of a batch; its gradients are added to those of the trained parameters.

    The batch is read in as few trees as fit into memory. If memory does not suffice `clear` is called, which
    resets all gradients, and the batch is read again: first with layers that are computed again in the
    backward pass (gradient checkpointing), then also in smaller trees, whose gradients add up to the same.
    `base.memory` records both for later batches. Raises MemoryLimitError if a prompt alone does not fit.
    """
    memory, read = base.memory, _read(batch, objective)
    width = min(tree_width(base), max(1, memory.refused.get(_TRAINING, 1 << 20) // 2))
    total = sum(_weights(batch, objective))
    while True:
        groups = reading_groups(base, read, width)
        try:
            with recompute_layers(base.model) if memory.checkpointing else contextlib.nullcontext():
                return sum(_part(base, [batch[at] for at in group], total, objective) for group in groups)
        except (RuntimeError, MemoryError) as error:
            if not is_shortage(error):
                raise
            if memory.checkpointing and max(map(len, groups)) == 1:
                memory.refused.pop(_TRAINING, None)
                longest = max(prompt.length for prompt in batch)
                raise MemoryLimitError(
                    f"Training on a prompt of {longest} tokens does not fit into memory; use a device with "
                    "more, or shorter examples."
                ) from error
        clear()
        release()
        if memory.checkpointing:
            largest = max(read_tokens(base, [read[at] for at in group]) for group in groups)
            memory.refuse(_TRAINING, min(largest, width))
            width = max(1, memory.refused[_TRAINING] // 2)
        memory.checkpointing = True


def mean_of(base: LoadedBase, prompts: Sequence[Prompt], objective: Objective) -> float:
    """The mean over the prompts of the objective, in nats."""
    if objective == "loss":
        return valid_loss(base, prompts)
    if objective == "token_loss":
        targets = targets_only(prompts)
        sums = [values[0] for values in likelihoods(base, targets)]
        return -math.fsum(sums) / sum(_weights(targets, objective))
    total = 0.0
    for values in likelihoods(base, prompts):
        log_sum = math.log(math.fsum(math.exp(value - max(values)) for value in values)) + max(values)
        total -= math.fsum(math.exp(value - log_sum) * (value - log_sum) for value in values)
    return total / len(prompts)


def valid_loss(base: LoadedBase, prompts: Sequence[Prompt]) -> float:
    """The mean loss a token of the right answers, in nats."""
    targets = targets_only(prompts)
    return mean_loss(targets, likelihoods(base, targets))


def _read(prompts: Sequence[Prompt], objective: Objective) -> Sequence[Prompt]:
    """The prompts with the answers that the objective reads."""
    return prompts if objective == "entropy" else targets_only(prompts)


def _weights(prompts: Sequence[Prompt], objective: Objective) -> list[int]:
    """The weight of each prompt in the mean: one, or the number of tokens of its right answer."""
    return [len(prompt.target) if objective == "token_loss" else 1 for prompt in prompts]


def _part(base: LoadedBase, prompts: Sequence[Prompt], total: int, objective: Objective) -> float:
    """The share of the prompts in the mean, whose weights add up to `total`; adds its gradients."""
    import torch

    values = entropies(base, prompts) if objective == "entropy" else losses(base, prompts)
    weights = values.new_tensor(_weights(prompts, objective))
    part = (values[0] * weights).sum() / total
    torch.autograd.backward(part)
    return float(part.detach())


def _step(
    base: LoadedBase,
    optimiser: Optimizer,
    schedule: LRScheduler,
    batch: Sequence[Prompt],
    dropout: bool,
    objective: Objective,
) -> float:
    """One step; the loss before it. A loss that is not finite changes nothing."""
    import torch

    optimiser.zero_grad(set_to_none=True)
    if dropout:
        base.model.train()
    loss = gradients(base, batch, optimiser.zero_grad, objective)
    if dropout:
        base.model.eval()
    if math.isfinite(loss):
        trained = [
            parameter
            for group in optimiser.param_groups
            for parameter in group["params"]
            if parameter.grad is not None
        ]
        torch.nn.utils.clip_grad_norm_(trained, MOST_NORM)
        optimiser.step()
        schedule.step()
    return loss
