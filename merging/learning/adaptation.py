"""Adaptive merging: coefficients of members learned from a task's examples.

The members are applied next to the base model's layers (`merging.live`); learned are their coefficients,
routing directions, or, for some methods, their factors. The course of learning is that of the recycling paper
(1.8): AdamW, cosine, a tenth of warm-up, the state with the best validation loss, the start included.
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from catalog.adapters import Engine
from catalog.errors import EvaluationError, MergeError, UsageError
from merging.evaluation import Questions, TooLong, ask, unusual
from merging.learning.adaptive import AdaptiveMethod, find_adaptive
from merging.learning.candidates import search
from merging.learning.coefficients import Coefficients, Design
from merging.learning.combination import Numbers, combine
from merging.learning.continuation import Continuation, continue_training
from merging.learning.course import Course, Objective, Recipe, descend, mean_of
from merging.live import ArrowGate, LiveStack, prototypes
from merging.members import MergeMember
from merging.model import OWN, ExampleBudget, LoadedBase, Prompt, Protocol, Task, memory_limit
from merging.static import MergeReport

RECORD_VERSION = 1
Progress = Callable[[int, int], None]


@dataclass(frozen=True, slots=True, eq=False)
class Adaptation:
    """The result of learning, with its base model.

    `numbers` are the coefficients by module and member, None for a method that routes; `record` is the
    content of adapt.json. `valid_before` is the validation loss at the method's start, `valid_loss` that of
    the kept state, both per token in nats (the entropy for a method without labels).
    """

    method: AdaptiveMethod
    live: LiveStack
    numbers: Numbers | None
    gate: ArrowGate | None
    valid_before: float
    valid_loss: float
    record: Mapping[str, Any]

    @contextlib.contextmanager
    def apply(self) -> Iterator[None]:
        """Inside the block the base model acts as the adapted model."""
        with self.live.attach(self.gate):
            yield

    def write(
        self,
        out: Path,
        *,
        rank: int | None = None,
        dtype: str | None = None,
        base: str | None = None,
        overwrite: bool = False,
        portable: bool = False,
        engines: Sequence[Engine] | None = None,
    ) -> MergeReport:
        """Folds the result into one PEFT adapter, with adapt.json, by `merging.learning.combination.combine`.

        Raises MergeError for a method whose result is not a single adapter.
        """
        if self.numbers is None:
            raise MergeError(
                f"{self.method.name} routes every token separately, so its result is not a single adapter; "
                "evaluate it directly, or choose a method that folds."
            )
        return combine(
            self.live.members,
            self.numbers,
            out,
            rank=rank,
            dtype=dtype,
            base=base,
            record=self.record,
            overwrite=overwrite,
            stacks=self.live.stacks() if self.method.factors else None,
            portable=portable,
            engines=engines,
        )


def adapt(
    base: LoadedBase,
    members: Sequence[MergeMember],
    task: Task,
    budget: ExampleBudget,
    method: str,
    *,
    target: MergeMember | None = None,
    steps: int | None = None,
    rate: float | None = None,
    batch: int = 8,
    evaluate_every: int = 10,
    patience: int = 20,
    seed: int = 0,
    too_long: TooLong = "error",
    protocol: Protocol = OWN,
    preset: str = "",
    progress: Progress | None = None,
) -> Adaptation | Continuation:
    """The members (the target adapter first, where one is given) adapted to a task by `method`.

    Gradients see `budget.train` and `budget.valid` chooses among the states; a method that tries candidates
    scores them on both, as published. Examples too long for the base model are an error, or left out and
    counted (`too_long`). Prompts and loss are those of `protocol`; the name of the `preset` that settings
    come from is recorded. `steps` and `rate` are the row's unless given. The base's weights stay unchanged.
    A target that PEFT alone can apply (DoRA) can be trained on, which gives a Continuation.
    The same call gives the same numbers on the same machine. Raises UsageError for an unknown method, a
    missing target, and invalid settings; MergeError for members that do not match; EvaluationError if the
    loss is not finite, and the errors of `ask`.
    """
    row = find_adaptive(method)
    if row.alone and target is None:
        raise UsageError(f"{row.name} takes a target adapter alone; name one (`target`).")
    pool = ([target] if target else []) + ([] if row.alone else list(members))
    if not pool:
        raise UsageError("Adaptation requires at least one adapter; name it.")
    _refuse_apart(row, pool)
    recipe = Recipe(row.steps if steps is None else steps, batch, evaluate_every, patience, seed)
    _refuse(row, recipe, steps, rate)
    if row.objective == "entropy" and task.metric != "accuracy":
        raise UsageError(f"{row.name} chooses among answers, and {task.name} has no choices.")
    rate = row.rate if rate is None else rate
    train, valid = (ask(base, task, part, too_long, protocol) for part in (budget.train, budget.valid))
    weighted = protocol.token_loss and row.objective == "loss"
    objective: Objective = "token_loss" if weighted else row.objective
    facts = _record(base, row, task, budget, (train, valid), recipe, rate, preset)
    if pool[0].apart:
        prompts = train.prompts, valid.prompts
        return _continue(base, row, pool[0], prompts, recipe, rate, objective, facts, progress)
    # Training is in float32: a small step would round away in bfloat16.
    kind = torch.float32 if row.factors and base.dtype.itemsize < torch.float32.itemsize else None
    with memory_limit(f"A pool of {len(pool)} with the base model"):
        live = LiveStack(base.model, pool, dtype=kind, train_factors=row.factors)
    work = _Work(base, row, live, train.prompts, valid.prompts, recipe, rate, objective)
    learn = {
        "none": _learn_nothing,
        "coefficients": _gradients,
        "candidates": _search_weights,
        "routing": _learn_routing,
    }[row.learner]
    with memory_limit(f"{row.name} on a pool of {len(pool)}"):
        numbers, gate, course = learn(work, progress)
    _refuse_infinite(row, course["valid_loss"])
    record = (
        facts
        | _memory_facts(base)
        | {
            "members": [_member(member) for member in pool],
            "target": target.name if target else None,
            "course": course,
            "coefficients": None
            if numbers is None
            else {name: list(values) for name, values in numbers.items()},
        }
    )
    return Adaptation(row, work.live, numbers, gate, course["valid_before"], course["valid_loss"], record)


def _record(
    base: LoadedBase,
    row: AdaptiveMethod,
    task: Task,
    budget: ExampleBudget,
    question_sets: tuple[Questions, Questions],
    recipe: Recipe,
    rate: float,
    preset: str,
) -> dict[str, Any]:
    """The part of adapt.json that is known before learning."""
    train, valid = question_sets
    return {
        "format": f"loradex-adapt/{RECORD_VERSION}",
        "method": asdict(row),
        "base": {"name": base.name, "revision": base.revision},
        "task": {"name": task.name, "digest": task.digest, "license": task.license},
        "budget": {"train": len(train.prompts), "valid": len(valid.prompts), "seed": budget.seed},
        **({"preset": preset} if preset else {}),
        **unusual(base, train, valid),
        "recipe": {"rate": rate, **asdict(recipe)} if row.learner != "none" else None,
        "versions": {name: version(name) for name in ("loradex", "torch", "transformers")},
    }


def _memory_facts(base: LoadedBase) -> dict[str, Any]:
    """The part of adapt.json on memory, known after learning: a shortage may have changed the passes."""
    return {"gradient_checkpointing": True} if base.memory.checkpointing else {}


def _continue(
    base: LoadedBase,
    row: AdaptiveMethod,
    member: MergeMember,
    prompts: tuple[Sequence[Prompt], Sequence[Prompt]],
    recipe: Recipe,
    rate: float,
    objective: Objective,
    facts: Mapping[str, Any],
    progress: Progress | None,
) -> Continuation:
    """An adapter trained on by PEFT; `prompts` are for learning and for validation."""
    with memory_limit(f"{row.name} of {member.name}"):
        tensors, course, before = continue_training(base, member, rate, recipe, *prompts, objective, progress)
    document = _course_document(course, before)
    _refuse_infinite(row, document["valid_loss"])
    record = (
        dict(facts)
        | _memory_facts(base)
        | {
            "members": [_member(member)],
            "target": member.name,
            "course": document,
            "coefficients": None,
        }
    )
    return Continuation(row, base, member, tensors, before, document["valid_loss"], record)


@dataclass(frozen=True, slots=True, eq=False)
class _Work:
    base: LoadedBase
    row: AdaptiveMethod
    live: LiveStack
    train: tuple[Prompt, ...]
    valid: tuple[Prompt, ...]
    recipe: Recipe
    rate: float
    objective: Objective

    def coefficients(self) -> Coefficients:
        """The row's coefficients at their start, where the live stack's factors are."""
        row = self.row
        target = 0 if row.init == "one_hot" else None
        design = Design(row.granularity, row.activation, row.init, self.recipe.seed, target)
        names = [member.name for member in self.live.members]
        return Coefficients(self.live.shapes, names, design).to(self.base.device)

    def validate(self) -> float:
        """The current objective on the validation examples."""
        return mean_of(self.base, self.valid, self.objective)


_Learned = tuple[Numbers | None, ArrowGate | None, dict[str, Any]]


def _learn_nothing(work: _Work, progress: Progress | None) -> _Learned:
    coefficients = work.coefficients()
    work.live.set_scales(coefficients.scales())
    with work.live.attach():
        loss = work.validate()
    if progress is not None:
        progress(1, 1)
    return coefficients.numbers(), None, {"valid_before": loss, "valid_loss": loss}


def _gradients(work: _Work, progress: Progress | None) -> _Learned:
    coefficients = work.coefficients()
    trained: list[nn.Parameter | Tensor] = [coefficients.raw]
    if work.row.factors:
        trained += [part for pair in work.live.factors.values() for part in pair]

    def renew() -> None:
        work.live.set_scales(coefficients.scales())

    course = _learn(work, trained, renew, None, progress)
    with torch.no_grad():
        renew()
    return coefficients.numbers(), None, course


def _learn_routing(work: _Work, progress: Progress | None) -> _Learned:
    directions = prototypes(work.live)
    gate = ArrowGate(work.live.shapes, directions)
    if not work.recipe.steps or not work.rate:
        with work.live.attach(gate):
            loss = work.validate()
        return None, gate, {"valid_before": loss, "valid_loss": loss}
    trained = [values.requires_grad_(True) for values in gate.directions.values()]
    course = _learn(work, trained, lambda: None, gate, progress)
    for values in trained:
        values.requires_grad_(False)
    return None, gate, course


def _learn(
    work: _Work,
    trained: Sequence[Tensor],
    renew: Callable[[], None],
    gate: ArrowGate | None,
    progress: Progress | None,
) -> dict[str, Any]:
    """Follows gradients of `trained`, leaves it in the state with the best validation loss, returns the
    course.

    `renew` is called before each pass of the model, so that values that depend on `trained` are updated.
    """
    hook = work.base.model.register_forward_pre_hook(lambda _module, _inputs: renew())
    try:
        with work.live.attach(gate):
            best, course, before = descend(
                work.base,
                trained,
                work.rate,
                work.recipe,
                work.train,
                work.valid,
                work.objective,
                progress,
            )
    finally:
        hook.remove()
    with torch.no_grad():
        for copy, values in zip(best, trained, strict=True):
            values.copy_(copy)
    return _course_document(course, before)


def _course_document(course: Course, before: float) -> dict[str, Any]:
    """The course with the loss of the start, which remains if no state was better."""
    losses = [loss for loss in (before, *(measure.valid for measure in course.losses)) if math.isfinite(loss)]
    # Without the time it took: the same call writes the same bytes.
    document = {name: value for name, value in asdict(course).items() if name != "seconds"}
    return {"valid_before": before, **document, "valid_loss": min(losses, default=math.nan)}


def _search_weights(work: _Work, progress: Progress | None) -> _Learned:
    attempts = search(
        work.base, work.live, work.train + work.valid, work.recipe.steps, work.recipe.seed, progress
    )
    best = min(attempts, key=lambda attempt: attempt.value).weights

    def measure(weights: Sequence[float]) -> float:
        work.live.set_scales(work.live.scales_of(weights))
        with work.live.attach():
            return work.validate()

    numbers = {
        shape.name: tuple(weight if rank else 0.0 for weight, rank in zip(best, shape.ranks, strict=True))
        for shape in work.live.shapes
    }
    before, after = measure([0.0] * len(best)), measure(best)
    infinite = {"loss": None, "value": None}
    tries = [asdict(row) | ({} if math.isfinite(row.value) else infinite) for row in attempts]
    return numbers, None, {"valid_before": before, "valid_loss": after, "tries": tries}


def _refuse(row: AdaptiveMethod, recipe: Recipe, steps: int | None, rate: float | None) -> None:
    if row.steps:
        recipe.check()
    elif steps is not None or rate is not None:
        raise UsageError(f"{row.name} does not learn; leave out steps and learning rate.")
    if rate is not None and not (rate > 0 and math.isfinite(rate)):
        raise UsageError(f"The learning rate must be above 0, not {rate}.")


def _refuse_infinite(row: AdaptiveMethod, loss: float) -> None:
    """Raises EvaluationError for a loss that is not finite."""
    if not math.isfinite(loss):
        raise EvaluationError(
            f"The loss of {row.name} is not finite; leave out large members, or use a lower rate."
        )


def _refuse_apart(row: AdaptiveMethod, pool: Sequence[MergeMember]) -> None:
    """Raises MergeError for an adapter that PEFT alone can apply, unless it is alone and trained on."""
    for member in pool:
        if member.apart and not (row.alone and row.factors):
            raise MergeError(
                f"{member.name} cannot be adapted by {row.name}: {member.apart}, and only updates "
                "scaling * B A are scaled and added; train it on by target-continued (`target`), or "
                "evaluate it alone."
            )


def _member(member: MergeMember) -> dict[str, Any]:
    return {
        "name": member.name,
        "sha256": member.sha256(),
        "license": member.license,
        "rank": max(module.rank for module in member.spec.modules),
        **({"source": dict(member.source)} if member.source else {}),
    }
