"""`loradex.train`, `adapt` and `evaluate`: a base model and tasks in, adapters and scores out."""

from __future__ import annotations

import dataclasses
import datetime
import hashlib
import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, TypeAlias

from catalog.adapters import is_adapter_folder
from catalog.errors import LoradexError, MergeError, UsageError
from catalog.files import output_file
from catalog.settings import Settings
from loradex.arguments import check_arguments
from loradex.bases import open_base, prompt_notes
from loradex.harness import HarnessTask, harness_round, is_harness_task, load_harness_task
from loradex.members import MemberSource, open_members, read_engines, settings_of
from loradex.outcomes import FewItems, few_items
from loradex.presets import with_presets
from loradex.progress import ProgressCallback, ProgressEvent, ProgressOption, ProgressStep, reporting
from loradex.rows import PlacementRow, Rows

if TYPE_CHECKING:
    from catalog.adapters import Engine
    from loradex.catalog import Catalog
    from merging.evaluation import Measured, ScoreRound, TaskScore
    from merging.learning import Adaptation, Continuation, TrainReport
    from merging.members import MergeMember
    from merging.model import LoadedBase, Protocol, Task

BaseSource: TypeAlias = "str | Path | LoadedBase"
TaskSource: TypeAlias = "str | Path | Task"
Split = Literal["train", "valid", "test"]
TooLong = Literal["error", "skip"]
BaseDtype = Literal["bfloat16", "float16", "float32", "8bit", "4bit"]


@dataclass(frozen=True)
class AdaptiveRow:
    """An adaptive merge method, with the settings that it is published with.

    `learner` is what it learns: "none", "coefficients" by gradients, "candidates" by trials, or "routing".
    `rate` is its learning rate, `steps` its number of steps or trials. `factors` are trained too, `alone`
    only the target takes part, and `folds` is whether the result is one adapter.
    """

    method: str
    summary: str
    paper: str
    learner: str
    granularity: str
    activation: str
    init: str
    rate: float
    steps: int
    objective: str
    factors: bool
    alone: bool
    folds: bool


def adaptive_methods() -> Rows[AdaptiveRow]:
    """The methods of `adapt`, with their settings and where they come from.

    Example:
        >>> "recycling" in [row.method for row in loradex.adaptive_methods()]
        True
    """
    from merging.learning import ADAPTIVE

    rows = (
        AdaptiveRow(row.name, **{name: value for name, value in asdict(row).items() if name != "name"})
        for row in ADAPTIVE.values()
    )
    return Rows(rows, AdaptiveRow)


@check_arguments
def load_task(name: str | Path, folder: str | Path | None = None) -> Task:
    """The task in the folder `name`, or of that name below `folder`.

    A task is a folder with task.json (name, instruction, metric, choices) and the examples train.jsonl,
    valid.jsonl and test.jsonl.

    Raises:
        NotFoundError: The task does not exist; the message lists the tasks below `folder`.
        UsageError: A file of the task is not valid.

    Example:
        >>> loradex.load_task("tasks/mine").metric
        'accuracy'
    """
    from merging.model import find_task

    if is_harness_task(str(name)):
        raise UsageError(f"{name} can only be evaluated; make a task of it with `import_task`.")
    return find_task(str(name), None if folder is None else Path(folder))


@check_arguments
def load_tasks(names: Sequence[str | Path], folder: str | Path | None = None) -> list[Task]:
    """The tasks of these names or in these folders; ["all"] are all tasks below `folder`.

    Raises what `load_task` raises.
    """
    from merging.model import TASK_NAME

    if folder is not None and list(names) == ["all"]:
        names = sorted(path.parent.name for path in Path(folder).glob(f"*/{TASK_NAME}"))
    return [load_task(name, folder) for name in names]


@check_arguments
def load_base(
    base: str | Path,
    *,
    device: str = "cpu",
    dtype: BaseDtype | None = None,
    date: datetime.date | None = None,
    catalog: Catalog | Settings | None = None,
    progress: ProgressOption = False,
) -> LoadedBase:
    """A base model in memory, for several calls of `train`, `adapt` and `evaluate`.

    Args:
        base: A folder, an id on the Hub, or the id of a model that is kept in the data folder of `catalog`.
        device: "cpu", "cuda", "cuda:N", or "auto", which spreads the layers over all GPUs.
        dtype: Of the weights: "bfloat16", "float16" or "float32", by default float32 on a CPU and bfloat16
            elsewhere; "8bit" or "4bit" by bitsandbytes, on a GPU, for reading and training.
        date: The day that chat templates name in prompts; 2024-07-26 by default.
        catalog: Whose data folder holds base models, and what was found of their way of reading.
        progress: See `loradex.progress`.

    Raises:
        NotFoundError: The model does not exist.
        UsageError: The model is not a causal language model, or the device or data type is not available.
        MemoryLimitError: The model does not fit into the memory of the device.
    """
    with reporting(progress) as report:
        return _as_model(base, catalog, device, dtype, date, report)


@check_arguments
@with_presets
def train(
    base: BaseSource,
    task: TaskSource,
    *,
    out: str | Path,
    rank: int = 16,
    alpha: float | None = None,
    learning_rates: Sequence[float] | None = None,
    steps: int = 100,
    batch: int = 8,
    samples: int = 100,
    targets: str | Sequence[str] = "all-linear",
    dropout: float = 0.0,
    variant: str = "lora",
    evaluate_every: int = 10,
    patience: int = 20,
    dtype: Literal["bfloat16", "float16", "float32"] = "bfloat16",
    seed: int = 0,
    too_long: TooLong = "error",
    protocol: str = "",
    preset: str = "",
    date: datetime.date | None = None,
    device: str = "cpu",
    base_dtype: BaseDtype | None = None,
    gradient_checkpointing: bool = False,
    overwrite: bool = False,
    catalog: Catalog | Settings | None = None,
    progress: ProgressOption = False,
) -> TrainReport:
    """A new LoRA of a base model, trained on a task: the baseline that every merge is compared with.

    Each learning rate is trained from the same start, and the adapter with the lowest loss on the validation
    examples is written.

    Args:
        base: As for `load_base`, or what that returned.
        task: A task, or its folder.
        out: The folder to write. It appears complete or not at all.
        rank: The rank r of the factors A (r x in) and B (out x r).
        alpha: Updates are scaled by alpha / rank; by default the rank, a scaling of 1.
        learning_rates: Rates to try; by default four around what the rank needs.
        steps: Steps of each rate.
        batch: Examples of a step.
        samples: Training examples to draw from the task, a fifth of them for validation.
        targets: Names of modules, such as ["q_proj", "v_proj"], or "all-linear".
        dropout: Of the inputs of A, from 0 to 1.
        variant: "lora", "rslora", "dora", "pissa", "olora", "lora-ga", "gaussian", "orthogonal", "mica",
            "loraplus" or "lora-fa".
        evaluate_every: Steps between two validations.
        patience: Validations without a new best that end a rate.
        dtype: In which the adapter is stored.
        seed: Of the examples that are example_budget, the start and the order.
        too_long: "error", or "skip" to leave out and count examples that are longer than the model reads.
        protocol: How the task is asked and the loss counted: "" for this project's way, or "recycling-paper".
        preset: "recycling-paper" takes rank 64, alpha 16, dropout 0.1, one rate of 3e-4, 400 steps, "skip"
            and the protocol from the paper, wherever the call gives nothing else.
        date, device, catalog: As for `load_base`.
        base_dtype: The data type of the base model, as `dtype` of `load_base`.
        gradient_checkpointing: Compute the inside of layers again in the backward pass instead of storing it.
            Used without being asked for where memory does not suffice, which `notes` then say.
        overwrite: Replace the training that is in `out`.
        progress: See `loradex.progress`.

    Returns:
        The folder, the record that train.json holds, and `notes`: sentences on what is unusual.

    Raises:
        UsageError: An argument is not valid, or examples are too long.
        NotFoundError: The model or task does not exist.
        EvaluationError: No rate has a finite loss, or the work does not fit into memory.
        StorageError: The disk refuses.

    Writes:
        What PEFT loads, train.json with every rate and loss, and a model card. The same call after an
        interruption continues with the rates that are missing.

    Example:
        >>> report = loradex.train("HuggingFaceTB/SmolLM2-135M-Instruct", "tasks/mine", rank=8, out="mine")
        >>> report.valid_loss < report.record["valid_loss_before"]
        True
    """
    from merging.learning import train as train_adapter
    from merging.model import budget, find_protocol

    loaded_task = _as_task(task)
    example_budget = budget(loaded_task, samples, seed=seed)
    with reporting(progress) as report:
        model = _as_model(base, catalog, device, base_dtype, date, report)
        with model.memory.checkpoint(gradient_checkpointing):
            trained = train_adapter(
                model,
                loaded_task,
                example_budget,
                Path(out),
                rank=rank,
                alpha=alpha,
                targets=targets,
                learning_rates=learning_rates,
                steps=steps,
                batch=batch,
                dropout=dropout,
                variant=variant,
                seed=seed,
                evaluate_every=evaluate_every,
                patience=patience,
                dtype=dtype,
                too_long=too_long,
                protocol=find_protocol(protocol),
                preset=preset,
                overwrite=overwrite,
                progress=ProgressStep(report, "training").working,
            )
        notes = _report_notes(report, [*prompt_notes(trained.record), *_training_notes(trained.record)])
    return dataclasses.replace(trained, notes=notes)


@dataclass(frozen=True)
class AdaptReport:
    """What `adapt` has learned, and the adapter that it has written.

    `record` is what adapt.json holds, with the validation losses (nats a token) before and after. `folder` is
    None where nothing was to be written, or the result is not an adapter, which `problem` then explains.
    `score` is the measured score on `split`, where that was asked for.
    """

    folder: Path | None
    record: Mapping[str, Any]
    misread: tuple[str, ...] = ()
    split: str | None = None
    score: Measured | None = None
    problem: str = ""
    notes: tuple[str, ...] = ()

    def document(self) -> dict[str, Any]:
        """The report as plain values, as the command prints it."""
        document = dict(self.record)
        if self.folder is not None:
            document |= {"folder": str(self.folder), "misread": self.misread}
        if self.score is not None:
            document["score"] = {"split": self.split, **self.score.document()}
        return document


@check_arguments
@with_presets
def adapt(
    members: MemberSource,
    base: BaseSource,
    task: TaskSource,
    *,
    out: str | Path | None = None,
    method: str = "recycling",
    target: str | Path | None = None,
    control: str | None = None,
    samples: int = 100,
    steps: int | None = None,
    learning_rate: float | None = None,
    batch: int = 8,
    rank: int | None = None,
    mixed_ranks: bool = False,
    seed: int = 0,
    split: Literal["valid", "test"] | None = None,
    limit: int | None = None,
    too_long: TooLong = "error",
    protocol: str = "",
    preset: str = "",
    date: datetime.date | None = None,
    device: str = "cpu",
    dtype: BaseDtype | None = None,
    gradient_checkpointing: bool = False,
    overwrite: bool = False,
    catalog: Catalog | Settings | None = None,
    progress: ProgressOption = False,
) -> AdaptReport:
    """One adapter out of many, by how much of each a task's examples want.

    Args:
        members: As for `merge`; may be empty where `target` is given. A method that takes the target alone
            leaves them out, which is in the `notes` of the result.
        base: As for `load_base`, or what that returned.
        task: A task, or its folder.
        out: The folder to write. It appears complete or not at all; None writes nothing.
        method: A row of `adaptive_methods()`.
        target: The folder of an adapter that was trained on the task; it is the first member.
        control: Stand-ins in place of the members, as for `merge`. They are kept in the data folder of
            `catalog`.
        samples: Training examples to draw from the task, a fifth of them for validation.
        steps: Steps or trials; by default those of the method.
        learning_rate: By default that of the method.
        batch: Examples of a step.
        rank: The largest rank of what is written.
        mixed_ranks: Write the rank that each module needs, instead of the one rank that every engine reads.
        seed: Of the examples that are example_budget, and of the method.
        split: "valid" or "test": also score the result on these examples.
        limit: The largest number of examples to score.
        too_long, protocol, date, device, catalog, gradient_checkpointing: As for `train`.
        dtype: Of the base model, as for `load_base`.
        preset: "recycling-paper" takes the method `recycling` with its 100 steps at 5e-2, "skip" and the
            protocol from the paper, wherever the call gives nothing else.
        overwrite: Replace what is in `out`.
        progress: See `loradex.progress`.

    Raises:
        UsageError: An argument is not valid, or neither `out` nor `split` is given.
        MergeError: The members do not fit each other or the base.
        NotFoundError: The model, task or pool does not exist.
        EvaluationError: The loss is not finite, or the work does not fit into memory.
        StorageError: The disk refuses.

    Writes:
        What PEFT loads, adapt.json (members, coefficients, course) and a model card.

    Example:
        >>> report = loradex.adapt(["first", "second"], "base", "tasks/mine", out="adapted")
        >>> report.record["valid_loss"] <= report.record["valid_before"]
        True
    """
    from catalog.pictures import count_noun
    from merging.evaluation import measure
    from merging.learning import ADAPT_RECORD, find_adaptive
    from merging.learning import adapt as learn
    from merging.members import load_member, refuse_existing
    from merging.model import budget, draw, find_protocol

    if out is None and split is None:
        raise UsageError("Say where the adapter goes (`out`), or what to score it on (`split`).")
    row, asked_by = find_adaptive(method), find_protocol(protocol)
    folder, engines = None if out is None else Path(out), read_engines(catalog)
    if folder is not None:
        if not row.folds:
            raise UsageError(f"{row.name} makes no adapter; leave out `out` and give `split`.")
        refuse_existing(folder, overwrite, ADAPT_RECORD)
    loaded_task = _as_task(task)
    example_budget = budget(loaded_task, samples, seed=seed)
    with (
        reporting(progress) as report,
        _open_pool(members, catalog, "adapted", report) as opened,
    ):
        if control:
            opened = _stand_ins(opened, control, seed, str(getattr(base, "name", base)), catalog)
        model = _as_model(base, catalog, device, dtype, date, report)
        first = load_member(Path(target), purpose="adapted", peft_layers=True) if target else None
        with model.memory.checkpoint(gradient_checkpointing):
            adaptation = learn(
                model,
                opened,
                loaded_task,
                example_budget,
                method,
                target=first,
                steps=steps,
                rate=learning_rate,
                batch=batch,
                seed=seed,
                too_long=too_long,
                protocol=asked_by,
                preset=preset,
                progress=ProgressStep(report, "adapting").working,
            )
        written = _write_adaptation(adaptation, folder, rank, model.name, overwrite, not mixed_ranks, engines)
        if split is not None:
            examples = draw(loaded_task, split, limit)
            with _apply(adaptation, model, written.folder):
                score = measure(model, loaded_task, examples, too_long, asked_by)
            written = dataclasses.replace(written, split=split, score=score)
        notes = prompt_notes(adaptation.record)
        if row.alone and opened:
            notes.append(
                f"{row.name} takes the target adapter alone: {count_noun(len(opened), 'member')} left out."
            )
        return dataclasses.replace(written, notes=_report_notes(report, notes))


class TaskScores(Rows["TaskScore"]):
    """Scores of adapters on tasks; `failures` are the errors of adapters that cannot be put on the base.

    Where only a few items were asked, the rows are of these, and `placements` has the scores predicted.
    """

    def __init__(
        self,
        scores: Iterable[TaskScore],
        failures: Iterable[LoradexError],
        notes: Sequence[str],
        placements: Iterable[PlacementRow] = (),
    ) -> None:
        from merging.evaluation import TaskScore

        super().__init__(scores, TaskScore, notes)
        self.failures = tuple(failures)
        self.placements = Rows(placements, PlacementRow)

    def document(self) -> dict[str, Any]:
        """The scores as scores.json has them, which `Catalog.import_scores` reads.

        `items` has the hashes of the examples, once for each list that scores name by `items_sha`. Predicted
        scores are in `placements`, without those of the few items, which are no scores of the task.
        """
        if self.placements:
            return {"placements": self.placements.to_dicts()}
        items = {score.items_sha: score.item_hashes for score in self if score.item_hashes}
        return {"scores": [score.document() for score in self], **({"items": items} if items else {})}


@check_arguments
@with_presets
def evaluate(
    base: BaseSource,
    tasks: TaskSource | Sequence[TaskSource],
    adapters: str | Path | Sequence[str | Path] = (),
    *,
    pool: MemberSource | None = None,
    folder: str | Path | None = None,
    split: Split = "test",
    limit: int | None = None,
    seed: int = 0,
    chat_template: bool = False,
    shots: int | None = None,
    items: int | None = None,
    without_base: bool = False,
    ensemble: str | None = None,
    out: str | Path | None = None,
    log: str | Path | None = None,
    too_long: TooLong = "error",
    protocol: str = "",
    preset: str = "",
    date: datetime.date | None = None,
    device: str = "cpu",
    dtype: BaseDtype | None = None,
    catalog: Catalog | Settings | None = None,
    progress: ProgressOption = False,
) -> TaskScores:
    """The scores of a base model, of adapters and of the members of a pool on tasks, each alone and together.

    Accuracy takes the choice of the highest likelihood, exact match the greedy answer.

    Args:
        base: As for `load_base`, or what that returned.
        tasks: Tasks, their folders, or their names below `folder`; ["all"] are all of it. "harness:NAME" is a
            task of lm-evaluation-harness (extra `harness`), with its own prompts, metrics and split.
        adapters: Folders of adapters.
        pool: A pool, as for `merge`.
        folder: Where tasks are that are given by name; for those of the harness, files *.yaml.
        split: "train", "valid" or "test".
        limit: The largest number of examples of each task; of the harness's tasks the first ones.
        seed: Of the draw of these examples.
        chat_template: Put the prompts of the harness's tasks into the model's chat template.
        shots: Examples before each question of the harness's tasks; by default their own number.
        items: Ask only so many items of each task, those that tell most by the answers of the adapters that
            the scores in `catalog` have, and predict the score on all of them (`placements` of the result).
        without_base: Leave out the base model alone.
        ensemble: Also score the ensemble of all these adapters, under this name: the mean of the
            probabilities that they give to each choice, or to each next token of a text. Nothing is merged;
            it costs as much as all of them, and shows what a merge of them loses.
        out: The file scores.json to write.
        log: A file with one line a score, written as it is measured; a call that was stopped continues from
            it.
        too_long, date, device, catalog: As for `train`.
        dtype: Of the base model, as for `load_base`.
        protocol: As for `train`. Other ways to choose among answers are "likelihood-open" (without the
            closing token), "likelihood-per-token" and "likelihood-per-character" (acc_norm of the harness).
            Tasks of the harness have protocols of their own.
        preset: "recycling-paper" takes the protocol and "skip", wherever the call gives nothing else.
        progress: See `loradex.progress`.

    Returns:
        One row a score, with its value (0 to 1), the number of examples and the loss (nats a token); adapters
        that cannot be put on the base are in `failures`, and what is unusual is in `notes`.

    Raises:
        UsageError: An argument is not valid, a folder is not an adapter, examples are too long, or fewer than
            10 adapters have answered the items of a task (`items`).
        NotFoundError: The model, task or pool does not exist.
        StorageError: The log or the file cannot be written.

    Example:
        >>> scores = loradex.evaluate("base", ["tasks/mine"], ["merged"])
        >>> [(row.adapter, row.n) for row in scores]
        [('base', 100), ('merged', 100)]
    """
    from merging.evaluation import scores as evaluation
    from merging.model import Task, find_protocol

    sources = [tasks] if isinstance(tasks, (str, Path, Task)) else list(tasks)
    if split != "test" and any(map(is_harness_task, sources)):
        raise UsageError("Tasks of lm-evaluation-harness have a split of their own; leave out `split`.")
    asked_by = find_protocol(protocol)
    if protocol and any(map(is_harness_task, sources)):
        raise UsageError("Tasks of lm-evaluation-harness have a protocol of their own; leave out `protocol`.")
    folders = [adapters] if isinstance(adapters, (str, Path)) else list(adapters)
    alone = _load_adapters(folders)
    scores: list[TaskScore] = []
    failures: list[LoradexError] = []
    with (
        reporting(progress) as report,
        _open_pool(pool or (), catalog, "evaluated", report) as opened,
    ):
        loaded_tasks = _load_tasks(sources, folder, shots)
        names = [member.name for member in (*opened, *alone)]
        if ensemble is not None:
            _check_ensemble(ensemble, names)
        asked = names if ensemble is None else [*names, ensemble]
        choices = (
            {}
            if items is None
            else _choose_items(loaded_tasks, split, items, limit, asked_by, catalog, asked)
        )
        model = _as_model(base, catalog, device, dtype, date, report)
        for score in evaluation.evaluate(
            model,
            [*opened, *alone],
            [
                harness_round(
                    task, model, limit=limit, seed=seed, shots=shots, chat=chat_template, too_long=too_long
                )
                if isinstance(task, HarnessTask)
                else _item_round(model, task, split, choices[task.name], asked_by)
                if choices
                else task
                for task in loaded_tasks
            ],
            split=split,
            limit=limit,
            seed=seed,
            log=None if log is None else Path(log),
            with_base=not without_base,
            ensemble=ensemble or "",
            too_long=too_long,
            protocol=asked_by,
            progress=ProgressStep(report, "scoring").working,
        ):
            if isinstance(score, LoradexError):
                failures.append(score)
            else:
                scores.append(score)
        notes = [f"left out: {failure}" for failure in failures] + _score_notes(scores)
        notes += _folding_notes(model, loaded_tasks, asked_by)
        placements = [_place(score, choices[score.task]) for score in scores if choices]
        rows = TaskScores(scores, failures, _report_notes(report, notes), placements)
    if out is not None:
        _write_document(Path(out), rows.document())
    return rows


def _choose_items(
    tasks: Sequence[Task | HarnessTask],
    split: Split,
    items: int,
    limit: int | None,
    protocol: Protocol,
    catalog: Catalog | Settings | None,
    asked: Sequence[str],
) -> dict[str, FewItems]:
    """Of each task the items that tell most, by the scores in the catalog of adapters other than `asked`.

    Raises UsageError where two tasks have one name, so that their scores are the same to the catalog.
    """
    from catalog.database import reading, score_store
    from merging.evaluation import score_metric

    settings = settings_of(catalog)
    if settings is None or limit is not None:
        raise UsageError("Items are chosen by the scores of a catalog; give a `catalog`, and no `limit`.")
    choices: dict[str, FewItems] = {}
    with reading(settings) as session:
        for task in tasks:
            if task.name in choices:
                raise UsageError(
                    f"Two tasks are called {task.name}; choose items for one after the other, or rename one."
                )
            if isinstance(task, HarnessTask):
                raise UsageError(
                    "Items of a task of lm-evaluation-harness are not chosen; leave out `items`."
                )
            which = score_store.ScoreFilter(task.name, split, score_metric(task, protocol), protocol.name)
            stored = score_store.stored_scores(session, which)
            choices[task.name] = few_items(stored, task.name, items, asked)
    return choices


def _item_round(base: LoadedBase, task: Task, split: Split, few: FewItems, protocol: Protocol) -> ScoreRound:
    """The chosen items of a task as questions."""
    from catalog.scores import item_hash
    from merging.evaluation import item_round
    from merging.model import examples

    by_hash = {item_hash(row.input, row.target, row.choices): row for row in examples(task, split)}
    if missing := sum(digest not in by_hash for digest in few.hashes):
        raise UsageError(
            f"{missing} of the {len(few.hashes)} items chosen are not {split} examples of {task.name}; use "
            "the task folder that the scores in the catalog are from."
        )
    return item_round(base, task, split, [by_hash[digest] for digest in few.hashes], protocol)


def _place(score: TaskScore, few: FewItems) -> PlacementRow:
    """The predicted score of an adapter from that on the chosen items."""
    from catalog.scores import read_outcomes, unpack_bitmap

    outcomes = read_outcomes(score.items_sha, score.outcomes, score.margins, score.n)
    right = unpack_bitmap(outcomes.bitmap, score.n)
    return few.place(score.adapter, score.task, score.split, score.metric, right)


def _training_notes(record: Mapping[str, Any]) -> list[str]:
    """Sentences on modules that were not trained, and on a best rate at the end of those tried."""
    notes = []
    if skipped := record.get("untrained"):
        notes.append(f"not trained: {', '.join(skipped)}, which all-linear leaves out in this model")
    if edge := record["edge"]:
        side = {"lowest": "lower", "highest": "higher"}[edge]
        notes.append(f"the best rate is the {edge} tried; `learning_rates` with {side} ones may do better")
    return notes


def _score_notes(scores: Sequence[TaskScore]) -> list[str]:
    """What is unusual about scores, each sentence once; the rows themselves count examples left out."""
    records = [{**score.document(), "left_out": 0} for score in scores]
    return list(dict.fromkeys(note for record in records for note in prompt_notes(record)))


def _folding_notes(model: LoadedBase, tasks: Sequence[Task | HarnessTask], protocol: Protocol) -> list[str]:
    from merging.model import folds_instruction

    own = [task for task in tasks if not isinstance(task, HarnessTask)]
    return prompt_notes({"folded": any(folds_instruction(model.tokenizer, task, protocol) for task in own)})


def _report_notes(report: ProgressCallback, notes: Sequence[str]) -> tuple[str, ...]:
    for note in notes:
        report(ProgressEvent("notes", note=note))
    return tuple(notes)


def _load_tasks(
    sources: Sequence[TaskSource], folder: str | Path | None, shots: int | None
) -> list[Task | HarnessTask]:
    """The tasks of an evaluation in their order, those of the harness too."""
    if list(sources) == ["all"]:
        return [*load_tasks(["all"], folder)]
    place = None if folder is None else Path(folder)
    tasks: list[Task | HarnessTask] = []
    for source in sources:
        if isinstance(source, str) and is_harness_task(source):
            tasks.append(load_harness_task(source, place, shots=shots))
        else:
            tasks.append(load_task(source, folder) if isinstance(source, (str, Path)) else source)
    return tasks


def _as_task(source: TaskSource) -> Task:
    return load_task(source) if isinstance(source, (str, Path)) else source


def _as_model(
    source: BaseSource,
    catalog: Catalog | Settings | None,
    device: str,
    dtype: BaseDtype | None,
    day: datetime.date | None,
    report: ProgressCallback,
) -> LoadedBase:
    if not isinstance(source, (str, Path)):
        return source
    places = settings_of(catalog)
    return open_base(str(source), settings=places, device=device, dtype=dtype, day=day, report=report)


@contextmanager
def _open_pool(
    source: MemberSource, catalog: Catalog | Settings | None, purpose: str, report: ProgressCallback
) -> Iterator[Sequence[MergeMember]]:
    """The members of a source, none for an empty one, for as long as the block runs."""
    if not isinstance(source, (str, Path)) and not source:
        yield ()
        return
    with open_members(
        source, settings=settings_of(catalog), report=report, purpose=purpose, peft_layers=True
    ) as opened:
        yield opened.members


def _stand_ins(
    members: Sequence[MergeMember], control: str, seed: int, base: str, catalog: Catalog | Settings | None
) -> Sequence[MergeMember]:
    """Stand-ins below the data folder, made once for the same members, kind and seed."""
    from merging.members import digest_of
    from merging.static import stand_ins

    settings = settings_of(catalog)
    if settings is None:
        raise UsageError("Stand-ins are kept in a data folder; give a `catalog`.")
    digests = " ".join(member.digest or digest_of(member.weights) for member in members)
    name = hashlib.sha256(digests.encode()).hexdigest()[:12]
    return stand_ins(
        members, control, settings.data / "controls" / f"{name}-{control}-{seed}", seed, base=base
    )


def _write_adaptation(
    adaptation: Adaptation | Continuation,
    out: Path | None,
    rank: int | None,
    base: str,
    overwrite: bool,
    portable: bool,
    engines: Sequence[Engine] | None,
) -> AdaptReport:
    """The report of an adaptation, which is written to `out` where that is given and possible."""
    losses = {"valid_before": adaptation.valid_before, "valid_loss": adaptation.valid_loss}
    report = AdaptReport(None, {**losses, **adaptation.record})
    if out is None:
        return report
    try:
        combined = adaptation.write(
            out, rank=rank, base=base, overwrite=overwrite, portable=portable, engines=engines
        )
    except MergeError as error:
        return dataclasses.replace(report, problem=str(error))
    return dataclasses.replace(report, folder=combined.folder, misread=combined.misread)


@contextmanager
def _apply(adaptation: Adaptation | Continuation, base: LoadedBase, folder: Path | None) -> Iterator[None]:
    """Inside the block the base model acts as what was written, or as what was learned where nothing was."""
    from merging.live import apply_member
    from merging.members import load_member

    written = None if folder is None else load_member(folder, peft_layers=True)
    with adaptation.apply() if written is None else apply_member(base.model, written):
        yield


def _check_ensemble(name: str, members: Sequence[str]) -> None:
    """Raises UsageError for a name that does not tell the ensemble from what it is compared with."""
    from merging.evaluation import BASE

    if not members:
        raise UsageError("An ensemble requires adapters; give `adapters` or a `pool`.")
    if not name.strip() or name in (BASE, *members):
        raise UsageError(f"An ensemble requires a name of its own, which {name!r} is not; give another.")


def _load_adapters(folders: Sequence[str | Path]) -> list[MergeMember]:
    """The adapters in folders, by the folder's name, or its whole path where two have the same name."""
    from merging.evaluation import BASE
    from merging.members import load_member

    if wrong := next((name for name in folders if not is_adapter_folder(Path(name))), None):
        raise UsageError(f"{wrong} is not a folder of an adapter; give a folder written by PEFT.")
    places = [Path(name).resolve() for name in folders]
    short = [place.name for place in places]
    names = [place.name if short.count(place.name) == 1 else str(place) for place in places]
    if BASE in names:
        raise UsageError(f"The name {BASE} is reserved for the base model; rename the adapter's folder.")
    return [
        load_member(place, name=name, purpose="evaluated", peft_layers=True)
        for place, name in zip(places, names, strict=True)
    ]


def _write_document(out: Path, document: Mapping[str, Any]) -> None:
    text = json.dumps(document, indent=2, sort_keys=True, ensure_ascii=False, allow_nan=False)
    with output_file(out) as new:
        new.write_text(f"{text}\n", encoding="utf-8")
