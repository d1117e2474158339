"""Coefficients by search: a generation of candidates reads the examples in one batch, without merging.

LoraHub (arXiv 2307.13269; algorithm.py of sail-sg/lorahub): minimise the loss plus 0.05 times the mean of
the absolute coefficients, within 1.5 of 0, starting at 0. It uses NGOpt of nevergrad and adds A and B of the
members separately, which needs equal ranks and adds products across members; here the updates are added,
and the optimiser is CMA-ES (Hansen, arXiv 1604.00772) as pycma has it.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from catalog.errors import EvaluationError, MemoryLimitError
from merging.evaluation import candidate_likelihoods, mean_loss, targets_only
from merging.model import LoadedBase, Prompt

if TYPE_CHECKING:
    from merging.live import LiveStack

PENALTY = 0.05
BOUND = 1.5
SPREAD = 0.5


@dataclass(frozen=True, slots=True)
class Try:
    """One candidate: its loss per token in nats, and the minimised value with the penalty."""

    weights: tuple[float, ...]
    loss: float
    value: float


def search(
    base: LoadedBase,
    live: LiveStack,
    prompts: Sequence[Prompt],
    tries: int,
    seed: int,
    progress: Callable[[int, int], None] | None = None,
) -> list[Try]:
    """At most `tries` vectors of one weight a member, in order; the first is 0, the base itself.

    Raises EvaluationError if no candidate has a finite loss.
    """
    attempts = evaluate_candidates(base, live, prompts, [[0.0] * len(live.members)])
    optimiser = _optimiser(len(live.members), tries, seed)
    while len(attempts) < tries and not optimiser.stop():
        proposals = [list(map(float, proposal))[: len(live.members)] for proposal in optimiser.ask()]
        room = tries - len(attempts)
        evaluations = evaluate_candidates(base, live, prompts, proposals[:room])
        attempts += evaluations
        if progress is not None:
            progress(len(attempts), tries)
        if len(evaluations) < len(proposals):
            break
        optimiser.tell(
            [[*proposal, *[0.0] * (2 - len(proposal))] for proposal in proposals],
            [proposal.value if math.isfinite(proposal.value) else 1e9 for proposal in evaluations],
        )
    if not any(math.isfinite(proposal.value) for proposal in attempts):
        raise EvaluationError("No candidate has a finite loss; leave out members with large updates.")
    return attempts


def evaluate_candidates(
    base: LoadedBase, live: LiveStack, prompts: Sequence[Prompt], candidates: Sequence[Sequence[float]]
) -> list[Try]:
    """The loss of each vector of weights over the resident members, all in one pass over the prompts.

    If a prompt with all of them does not fit into memory, they are halved. Raises MemoryLimitError if it does
    not fit with one.
    """
    groups = [range(len(candidates))]
    while True:
        try:
            return [
                attempt
                for group in groups
                for attempt in _tries(base, live, prompts, [candidates[n] for n in group])
            ]
        except MemoryLimitError:
            if len(groups) == len(candidates):
                raise
        groups = [
            half for group in groups for half in (group[: len(group) // 2], group[len(group) // 2 :]) if half
        ]


def _tries(
    base: LoadedBase, live: LiveStack, prompts: Sequence[Prompt], candidates: Sequence[Sequence[float]]
) -> list[Try]:
    """The loss of each vector of weights, in one pass over the prompts."""
    import torch

    sets = [live.scales_of(weights) for weights in candidates]
    scales = {name: torch.stack([scale_set[name] for scale_set in sets]) for name in sets[0]}
    live.set_scales(scales, torch.arange(len(candidates)))
    targets = targets_only(prompts)
    with live.attach():
        answers = candidate_likelihoods(base, targets, len(candidates))
    result = []
    for weights, values in zip(candidates, answers, strict=True):
        loss = mean_loss(targets, values)
        penalty = PENALTY * sum(map(abs, weights)) / len(weights)
        result.append(Try(tuple(weights), loss, loss + penalty if math.isfinite(loss) else math.inf))
    return result


def _optimiser(count: int, tries: int, seed: int) -> Any:
    """CMA-ES over `count` weights; over at least two, which it requires: the second then has no effect."""
    import cma

    options = {"bounds": [-BOUND, BOUND], "seed": seed % (2**32 - 1) + 1, "maxfevals": tries, "verbose": -9}
    return cma.CMAEvolutionStrategy([0.0] * max(2, count), SPREAD, options)
