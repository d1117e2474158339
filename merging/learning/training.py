"""A new LoRA on a task, its learning rate chosen on validation examples: the baseline of every merge.

The recipe is that of the recycling paper (1.8): AdamW, cosine with a tenth of warm-up, the loss of the
answers alone, the state with the best validation loss. Learning rates lie on the grid of "Learning Rate
Matters" (arXiv 2602.04998), four a decade; a finished rate is kept next to the target, so that a killed run
continues.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import math
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

from catalog.adapters import CONFIG_NAME, WEIGHTS_NAME
from catalog.errors import DivergedError, UsageError
from merging.evaluation import Questions, TooLong, ask
from merging.learning import variants
from merging.learning.continuation import write_trained
from merging.learning.course import Course, Objective, Recipe, batches, gradients, mean_of, run, set_seeds
from merging.learning.training_record import LIBRARIES, card, record
from merging.live import calm, restore_model
from merging.members import (
    DTYPES,
    new_folder,
    package_versions,
    refuse_existing,
    storage,
    write_json,
    write_text,
)
from merging.model import OWN, ExampleBudget, LoadedBase, Prompt, Protocol, Task, memory_limit

if TYPE_CHECKING:
    from torch import Tensor

TRAIN_RECORD = "train.json"
RATE_NAME = "rate.json"
_FINISHED = "finished"
ALL_LINEAR = variants.ALL_LINEAR
# "Learning Rate Matters": the grid begins here with four points a decade, the best rate of LoRA at rank 128
# and alpha = r is 2e-4, and from r = 4 to r = 256 it falls by 5.6.
_GRID_START = 2e-6
_GRID_POINTS = 4
_BEST_AT_128 = 2e-4
_FALL = math.log(5.6) / math.log(256 / 4)
Progress = Callable[[int, int], None]


@dataclass(frozen=True, slots=True)
class TrainingSettings:
    """Everything that determines a training, in addition to base model, task and rate."""

    rank: int
    alpha: float
    targets: str | tuple[str, ...]
    variant: str
    dropout: float
    dtype: str
    recipe: Recipe

    @property
    def scaling(self) -> float:
        """The factor of B A."""
        rooted = variants.variant(self.variant).options.get("use_rslora", False)
        return self.alpha / (math.sqrt(self.rank) if rooted else self.rank)


@dataclass(frozen=True, slots=True)
class TrainReport:
    """A trained adapter: its folder, the record as train.json has it, and notes for the user."""

    folder: Path
    record: dict[str, Any]
    notes: tuple[str, ...] = ()

    @property
    def learning_rate(self) -> float:
        """The rate that was chosen."""
        return float(self.record["learning_rate"])

    @property
    def valid_loss(self) -> float:
        """The loss per token of the stored adapter on the validation examples, in nats."""
        return float(self.record["valid_loss"])


class _Given(NamedTuple):
    base: LoadedBase
    learned: Questions
    chosen_by: Questions

    @property
    def train(self) -> tuple[Prompt, ...]:
        return self.learned.prompts

    @property
    def valid(self) -> tuple[Prompt, ...]:
        return self.chosen_by.prompts

    @property
    def objective(self) -> Objective:
        return "token_loss" if self.learned.protocol.token_loss else "loss"


def train(
    base: LoadedBase,
    task: Task,
    budget: ExampleBudget,
    out: Path,
    *,
    rank: int = 16,
    alpha: float | None = None,
    targets: str | Sequence[str] = ALL_LINEAR,
    learning_rates: Sequence[float] | None = None,
    steps: int = 100,
    batch: int = 8,
    dropout: float = 0.0,
    variant: str = "lora",
    seed: int = 0,
    evaluate_every: int = 10,
    patience: int = 20,
    dtype: Literal["bfloat16", "float16", "float32"] = "bfloat16",
    too_long: TooLong = "error",
    protocol: Protocol = OWN,
    preset: str = "",
    overwrite: bool = False,
    progress: Progress | None = None,
) -> TrainReport:
    """A LoRA trained on `budget.train`, written to the folder `out` with train.json and a model card.

    `alpha` is the rank unless given, `targets` names modules or is "all-linear" (the output layer excluded),
    `learning_rates` are `default_rates` unless given. Every rate starts from the same seed and sees the same
    batches; after each `evaluate_every` steps the loss on `budget.valid` is measured, `patience` measurements
    without a new best end a rate, and the rate with the lowest loss is chosen. A loss that is not finite ends
    a rate too, which is then recorded and never chosen. Examples too long for the base model are an error, or
    left out and counted (`too_long`). Prompts and loss are those of `protocol`; the name of the `preset` that
    the settings come from is recorded. Factors are trained in float32 and stored as `dtype`. `progress` is
    called with the number of steps done and the total.

    The base model is unchanged afterwards, bit for bit. The same call writes the same weights on the same
    machine (on a CPU with as many threads). `out` appears complete or not at all; the same call after a kill
    trains only the rates that are missing. Raises UsageError for invalid settings and EvaluationError if no
    rate stays finite or a prompt does not fit into memory, and the errors of `ask`.
    """
    settings = TrainingSettings(
        rank=rank,
        alpha=float(rank if alpha is None else alpha),
        targets=_targets(targets),
        variant=variant,
        dropout=dropout,
        dtype=dtype,
        recipe=Recipe(steps, batch, evaluate_every, patience, seed),
    )
    _refuse_settings(settings)
    if base.quantised and variants.variant(variant).changes_base:
        raise UsageError(
            f"The variant {variant} changes the weights of the base model at its start, and those in "
            f"{base.quantised} are fixed; use lora, or a base model in bfloat16."
        )
    rates = _rates(default_rates(settings) if learning_rates is None else learning_rates)
    if not overwrite:
        _remove_finished(out)
    refuse_existing(out, overwrite, TRAIN_RECORD)
    inputs = _Given(
        base, *(ask(base, task, part, too_long, protocol) for part in (budget.train, budget.valid))
    )
    with memory_limit("The training"):
        before = mean_of(base, inputs.valid, inputs.objective)
        working = _working_folder(out, _identity(inputs, task, settings, before))
        courses = _all_rates(inputs, settings, rates, working, progress)
        best = _choose_course(courses)
        with new_folder(out, overwrite, TRAIN_RECORD) as folder, storage(out):
            for name in (CONFIG_NAME, WEIGHTS_NAME):
                shutil.copyfile(working / _folder_name(best.learning_rate) / name, folder / name)
            losses = before, loss_on_disk(base, folder, inputs.valid, inputs.objective)
            parts = (inputs.learned, inputs.chosen_by)
            document = record(
                base, task, budget.seed, parts, asdict(settings), courses, best, losses, folder, preset
            )
            write_json(folder / TRAIN_RECORD, document)
            write_text(folder / "README.md", card(task, document))
            write_text(working / _FINISHED, "")
    shutil.rmtree(working, ignore_errors=True)
    return TrainReport(out, document)


def default_rates(settings: TrainingSettings) -> tuple[float, ...]:
    """Four neighbours of the grid, a decade apart but one point, around where the best rate is expected.

    A higher rank requires a lower rate, and so do some variants; the first steps change the weights by
    scaling times rate, so that the rate is inversely proportional to alpha.
    """
    expected = _BEST_AT_128 * (128 / settings.rank) ** _FALL
    expected /= settings.scaling * variants.variant(settings.variant).slower
    middle = round(_GRID_POINTS * math.log10(expected / _GRID_START))
    return tuple(
        float(f"{_GRID_START * 10 ** (point / _GRID_POINTS):.5g}") for point in range(middle - 1, middle + 3)
    )


@contextlib.contextmanager
def wear_adapter(base: LoadedBase, folder: Path) -> Iterator[None]:
    """Inside the block the base model has the adapter in a folder, of any variant, loaded by plain PEFT."""
    from peft import PeftModel

    with set_seeds(0, base), restore_model(base.model), calm():
        PeftModel.from_pretrained(base.model, folder)
        yield


def loss_on_disk(
    base: LoadedBase, folder: Path, valid: Sequence[Prompt], objective: Objective = "loss"
) -> float:
    """The loss of the adapter in a folder as plain PEFT loads it, including rounding."""
    with wear_adapter(base, folder):
        return mean_of(base, valid, objective)


def _all_rates(
    inputs: _Given,
    settings: TrainingSettings,
    rates: Sequence[float],
    working: Path,
    progress: Progress | None,
) -> list[Course]:
    """The course of every rate, including those that a killed run has finished."""
    courses = []
    steps = settings.recipe.steps
    for number, rate in enumerate(rates):

        def report_step(step: int, done: int = number * steps) -> None:
            if progress is not None:
                progress(done + step, len(rates) * steps)

        place = working / _folder_name(rate)
        if (place / RATE_NAME).is_file():
            courses.append(Course.read(json.loads((place / RATE_NAME).read_text("utf-8"))))
        else:
            with new_folder(place, overwrite=True, record=RATE_NAME) as folder:
                courses.append(_one_rate(inputs, settings, rate, folder, report_step))
        report_step(steps)
    return courses


def _one_rate(
    inputs: _Given, settings: TrainingSettings, rate: float, folder: Path, report_step: Callable[[int], None]
) -> Course:
    """Trains with one rate; the best state, unless the rate diverged, and its course are in the folder."""
    base, recipe, row = inputs.base, settings.recipe, variants.variant(settings.variant)
    best: dict[str, Tensor] = {}

    def gradient() -> None:
        gradients(base, next(batches(inputs.train, recipe)), base.model.zero_grad, inputs.objective)

    config = lora_config(base, settings)
    with set_seeds(recipe.seed, base), variants.adapt_model(base.model, row, config, gradient) as model:
        start = variants.factors(model) if row.changes_base else {}
        course = run(
            base,
            variants.optimiser(row, model, rate),
            rate,
            recipe,
            inputs.train,
            inputs.valid,
            dropout=settings.dropout > 0,
            objective=inputs.objective,
            better=lambda: best.update(variants.factors(model)),
            report_step=report_step,
        )
    with storage(folder):
        if course.diverged is None:
            tensors = variants.difference(best, start) if row.changes_base else best
            _write_adapter(folder, tensors, variants.config_to_store(row, config, base), settings.dtype)
        write_json(folder / RATE_NAME, asdict(course))
    return course


def lora_config(base: LoadedBase, settings: TrainingSettings) -> Any:
    """PEFT's configuration of a new adapter, without the options of its variant."""
    from peft import LoraConfig

    alpha: Any = int(settings.alpha) if settings.alpha.is_integer() else settings.alpha
    targets: Any = settings.targets if isinstance(settings.targets, str) else list(settings.targets)
    if targets == ALL_LINEAR:
        targets, _ = variants.reachable(base.model)
    return LoraConfig(
        r=settings.rank,
        lora_alpha=alpha,
        target_modules=targets,
        lora_dropout=settings.dropout,
        task_type="CAUSAL_LM",
    )


def _write_adapter(folder: Path, tensors: Mapping[str, Tensor], config: Any, dtype: str) -> None:
    """Writes weights and configuration; the modules' names, a set in PEFT, in their order."""
    write_trained(folder, tensors, dtype)
    config.save_pretrained(folder)
    document = json.loads((folder / CONFIG_NAME).read_text("utf-8"))
    document["target_modules"] = sorted(document["target_modules"])
    write_json(folder / CONFIG_NAME, document)


def _choose_course(courses: Sequence[Course]) -> Course:
    """The course with the lowest validation loss, the lower rate on a tie; raises DivergedError."""
    finite = [course for course in courses if course.diverged is None]
    if not finite:
        lowest = min(course.learning_rate for course in courses)
        raise DivergedError(
            f"The loss became infinite with every learning rate, the lowest {lowest:g}; choose lower ones."
        )
    return min(finite, key=lambda course: (course.valid_loss, course.learning_rate))


def _working_path(out: Path) -> Path:
    return out.with_name(f".{out.name}.training")


def _remove_finished(out: Path) -> None:
    """Removes the rates of a run that was killed after its adapter was in place."""
    working = _working_path(out)
    if (out / TRAIN_RECORD).is_file() and (working / _FINISHED).is_file():
        shutil.rmtree(working, ignore_errors=True)


def _working_folder(out: Path, identity: Mapping[str, Any]) -> Path:
    """The hidden folder next to `out` in which finished rates are kept; emptied if it belongs to another
    run."""
    working = _working_path(out)
    mark = working / "run.json"
    with storage(working):
        # As JSON, so that tuples and lists are equal.
        text = json.dumps(identity, sort_keys=True)
        if mark.is_file() and mark.read_text("utf-8") == text:
            return working
        shutil.rmtree(working, ignore_errors=True)
        working.mkdir(parents=True)
        write_text(mark, text)
    return working


def _identity(inputs: _Given, task: Task, settings: TrainingSettings, before: float) -> dict[str, Any]:
    """The conditions under which a finished rate counts.

    The base model's weights are identified by their loss on the validation examples.
    """
    base = inputs.base
    prompts = json.dumps([[asdict(prompt) for prompt in part] for part in (inputs.train, inputs.valid)])
    return {
        "base": [base.name, base.revision, str(base.dtype), base.device.type, f"{before:.6g}"],
        "task": task.digest,
        "prompts": hashlib.sha256(prompts.encode()).hexdigest(),
        "settings": asdict(settings),
        "versions": package_versions(*LIBRARIES),
        # Only if they matter, so that a training of an earlier version continues.
        **({"objective": inputs.objective} if inputs.objective != "loss" else {}),
    }


def _folder_name(rate: float) -> str:
    return f"rate-{rate!r}"


def _targets(targets: str | Sequence[str]) -> str | tuple[str, ...]:
    if isinstance(targets, str):
        return targets if targets == ALL_LINEAR else (targets,)
    return tuple(sorted(set(targets)))


def _rates(learning_rates: Sequence[float]) -> tuple[float, ...]:
    rates = tuple(sorted({float(rate) for rate in learning_rates}))
    if not rates or not all(math.isfinite(rate) and rate > 0 for rate in rates):
        raise UsageError("Learning rates must be positive numbers, such as 2e-4; give at least one.")
    return rates


def _refuse_settings(settings: TrainingSettings) -> None:
    variants.variant(settings.variant)
    settings.recipe.check()
    if settings.rank < 1:
        raise UsageError(f"The rank must be at least 1, not {settings.rank}.")
    if not (math.isfinite(settings.alpha) and settings.alpha > 0):
        raise UsageError(f"alpha must be a positive number, not {settings.alpha}.")
    if not 0 <= settings.dropout < 1:
        raise UsageError(f"The dropout must be at least 0 and below 1, not {settings.dropout}.")
    if not settings.targets:
        raise UsageError(f"Name the modules to train, or use {ALL_LINEAR}.")
    if settings.dtype not in DTYPES:
        raise UsageError(f"The data type must be one of {', '.join(DTYPES)}, not {settings.dtype}.")
