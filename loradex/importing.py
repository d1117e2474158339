"""Task folders from tables, data sets of the Hub, lm-evaluation-harness, and the recycling paper's code."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from catalog.errors import LoradexError, NotFoundError, StorageError, UsageError
from loradex.arguments import check_arguments
from loradex.columns import (
    ExampleColumns,
    Row,
    choose_splits,
    draw_splits,
    limit_rows,
    shared_choices,
)
from loradex.harness import harness_splits, is_harness_task, load_harness_task
from loradex.hubdata import SourceFacts, dataset_splits
from loradex.papertasks import paper_splits, read_paper_tasks
from loradex.progress import ProgressOption, ProgressStep, reporting
from loradex.rows import Rows
from loradex.tables import read_table, table_files

if TYPE_CHECKING:
    from merging.model import Example, Split, Task

HUB = "hf:"


@dataclass(frozen=True)
class TaskRow:
    """A task in a folder: its metric, the number of its choices (0: each example has its own, or none), the
    numbers of its examples (None: no such file), and its license.
    """

    task: str
    metric: str
    choices: int
    train: int | None
    valid: int | None
    test: int | None
    license: str
    source: str
    folder: str


@check_arguments
def import_task(
    source: str | Path,
    out: str | Path,
    *,
    instruction: str = "",
    inputs: str | Sequence[str] = (),
    target: str | None = None,
    choices: str | None = None,
    choice: Sequence[str] = (),
    labels: Sequence[str] = (),
    metric: str | None = None,
    name: str | None = None,
    splits: Mapping[str, str] | None = None,
    valid: float = 0.1,
    test: float = 0.1,
    limit: int | None = None,
    seed: int = 0,
    config: str | None = None,
    revision: str | None = None,
    license: str | None = None,
    max_new_tokens: int | None = None,
    tasks: str | Path | None = None,
    overwrite: bool = False,
) -> Task:
    """A task folder made from a table, a data set of the Hub, or a task of lm-evaluation-harness.

    Args:
        source: A file (.csv, .tsv, .json, .jsonl, .parquet), a folder with one file a split, "hf:OWNER/NAME"
            for a data set of the Hub, or "harness:NAME".
        out: The folder to write. It appears complete or not at all.
        instruction: What the model is told before each input. A task of the harness has it in its prompts;
            there it may be the description of the task.
        inputs: The column of the input; several are joined as lines "column: value". Required, and `target`
            too, unless the source is a task of the harness.
        target: The column of the right answer.
        choices: The column with a list of choices for each example; the target is then one of them, their
            number from 0, or their letter.
        choice: The choices of all examples, in order; by default the targets, where these are few.
        labels: Names for the target's whole numbers from 0; by default those that the data set states.
        metric: "accuracy", "exact_match" or another metric of tasks; by default accuracy where there are
            choices: a column of them, or targets that are few different texts.
        name: The task's name; by default that of the folder.
        splits: Which split of the source is "train", "valid" and "test"; by default those of the usual names.
        valid, test: Shares of the training rows for splits that the source does not have.
        limit: The largest number of examples of each split, drawn by `seed`.
        seed: Of all draws.
        config: The configuration of a data set of the Hub.
        revision: Its commit, tag or branch; the commit is recorded in `source` of task.json.
        license: The license of the data; by default that of the data set's card, else "unknown".
        max_new_tokens: The largest number of tokens of a generated answer.
        tasks: A folder with files of the harness's tasks.
        overwrite: Replace the task that is in `out`.

    Returns:
        The task, read from its folder.

    Raises:
        UsageError: A column or split is missing, a row is not valid, or the source cannot be read.
        NotFoundError: The source does not exist.
        HubError: The Hub cannot be reached or refuses.
        StorageError: The disk refuses.

    Writes:
        task.json, train.jsonl, valid.jsonl and test.jsonl.

    Example:
        >>> task = loradex.import_task(
        ...     "reviews.csv", "tasks/reviews", instruction="Is it good?", inputs="text", target="label"
        ... )
        >>> task.choices
        ('no', 'yes')
    """
    from merging.members import refuse_existing
    from merging.model import TASK_NAME

    folder = Path(out)
    title = name or folder.name
    refuse_existing(folder, overwrite, TASK_NAME)
    names = (inputs,) if isinstance(inputs, str) else tuple(inputs)
    rows, facts, columns = _open_source(
        source, names, target, choices, tuple(labels), config, revision, tasks
    )
    source_splits = choose_splits(list(rows), splits or {})
    split_rows = draw_splits(
        {split: rows[own] for split, own in source_splits.items()}, title, valid=valid, test=test, seed=seed
    )
    examples = {
        split: _examples(
            limit_rows(part, f"{title}:{split}", limit, seed), columns, source_splits.get(split, "train")
        )
        for split, part in split_rows.items()
    }
    if not (instruction := instruction or facts.instruction):
        raise UsageError(
            "A task requires an instruction; give the text that the model is told (`instruction`)."
        )
    facts = replace(facts, license=license or facts.license)
    most = max_new_tokens or facts.max_new_tokens
    return _write_task(
        folder,
        title,
        instruction,
        metric,
        examples,
        facts,
        most,
        named_choices=tuple(choice),
        overwrite=overwrite,
    )


class ImportedTasks(Rows[TaskRow]):
    """Tasks that were imported; `failures` are the errors of those that could not be."""

    def __init__(self, rows: Sequence[TaskRow], failures: Sequence[LoradexError]) -> None:
        super().__init__(rows, TaskRow, [f"left out: {failure}" for failure in failures])
        self.failures = tuple(failures)


@check_arguments
def import_paper_tasks(
    checkout: str | Path,
    out: str | Path,
    *,
    tasks: Sequence[str] = (),
    metric: Literal["accuracy", "exact_match"] = "exact_match",
    progress: ProgressOption = False,
) -> ImportedTasks:
    """The tasks of the recycling paper, one folder each, from a checkout of its code with its data extracted.

    The examples are those whose ids are stored there (`data/subset_idx_TASK_size100.json` of data.tar.gz):
    100 for training and validation, at most 5,000 for tests. Data sets of the Hub are read from there.

    Args:
        checkout: A checkout of https://github.com/r-three/realistic-adaptive-merging (MIT).
        out: The folder that gets one folder a task. A task that is there is left alone.
        tasks: Names in tasks.yaml; by default the 62 of the experiments.
        metric: "exact_match" as the paper judges all tasks, or "accuracy" for those with few answers.
        progress: See `loradex.progress`.

    Returns:
        One row a task; tasks whose data cannot be reached are in `failures`.

    Raises:
        NotFoundError: There is no tasks.yaml, or it has no such task.
        StorageError: The disk refuses.

    Writes:
        For each task task.json, train.jsonl, valid.jsonl and test.jsonl.
    """
    from merging.model import TASK_NAME

    rows: list[TaskRow] = []
    failures: list[LoradexError] = []
    paper_tasks = read_paper_tasks(Path(checkout), tasks)
    with reporting(progress) as report:
        step = ProgressStep(report, "importing")
        for number, task in enumerate(paper_tasks, 1):
            folder = Path(out) / task.name
            try:
                if not (folder / TASK_NAME).is_file():
                    examples, facts = paper_splits(task, dataset_splits)
                    _write_task(
                        folder,
                        task.name,
                        task.instruction,
                        metric,
                        examples,
                        facts,
                        task.max_new_tokens,
                        role="system",
                        group="recycling-paper",
                    )
                rows.append(_task_row(folder))
            except StorageError:
                raise
            except LoradexError as error:
                failures.append(error)
            step.working(number, len(paper_tasks))
    return ImportedTasks(rows, failures)


@check_arguments
def list_tasks(folder: str | Path) -> Rows[TaskRow]:
    """The tasks in a folder, or the one that it is, by name; `notes` name those that cannot be read.

    Raises:
        NotFoundError: The folder contains no task.

    Example:
        >>> [(row.task, row.metric, row.test) for row in loradex.list_tasks("tasks")]
        [('mine', 'accuracy', 100)]
    """
    from merging.model import TASK_NAME

    place = Path(folder)
    files = [place / TASK_NAME] if (place / TASK_NAME).is_file() else sorted(place.glob(f"*/{TASK_NAME}"))
    if not files:
        raise NotFoundError(f"{place} contains no task; a task is a folder with {TASK_NAME}.")
    rows, notes = [], []
    for file in files:
        try:
            rows.append(_task_row(file.parent))
        except LoradexError as error:
            notes.append(f"left out: {error}")
    return Rows(rows, TaskRow, notes)


def _open_source(
    source: str | Path,
    inputs: tuple[str, ...],
    target: str | None,
    choices: str | None,
    labels: tuple[str, ...],
    config: str | None,
    revision: str | None,
    tasks: str | Path | None,
) -> tuple[Mapping[str, Sequence[Row]], SourceFacts, ExampleColumns]:
    """The rows of a source by split, what is recorded of it, and the columns of its examples."""
    if is_harness_task(source):
        documents, facts = harness_splits(
            load_harness_task(str(source), None if tasks is None else Path(tasks))
        )
        has_choices = any(row["choices"] for rows in documents.values() for row in rows)
        return documents, facts, ExampleColumns(("input",), "target", "choices" if has_choices else None)
    if not inputs or target is None:
        raise UsageError("Name the columns of the input and of the right answer (`inputs`, `target`).")
    if str(source).startswith(HUB):
        rows, facts = dataset_splits(str(source).removeprefix(HUB), config, revision)
        own_labels = labels or (() if choices else facts.labels.get(target, ()))
        return rows, facts, ExampleColumns(inputs, target, choices, own_labels)
    files = table_files(Path(source))
    tables = {split: read_table(file) for split, file in files.items()}
    digest = hashlib.sha256(b"".join(file.read_bytes() for file in files.values())).hexdigest()
    return (
        tables,
        SourceFacts(f"{Path(source).name} (sha256 {digest})"),
        ExampleColumns(inputs, target, choices, labels),
    )


def _examples(rows: Sequence[Row], columns: ExampleColumns, split: str) -> list[Example]:
    return [columns.example(row, f"{split} row {number}") for number, row in enumerate(rows, 1)]


def _write_task(
    folder: Path,
    name: str,
    instruction: str,
    metric: str | None,
    examples: Mapping[str, Sequence[Example]],
    facts: SourceFacts,
    max_new_tokens: int | None,
    *,
    named_choices: tuple[str, ...] = (),
    role: str = "",
    group: str = "",
    overwrite: bool = False,
) -> Task:
    """Writes a task's folder, which appears complete or not at all, and reads it."""
    from merging.members import new_folder
    from merging.model import SPLITS, TASK_NAME, read_task
    from merging.model import examples as read_examples

    choices = named_choices or shared_choices([example for part in examples.values() for example in part])
    listed = any(example.choices for part in examples.values() for example in part)
    if metric == "accuracy" and not choices and not listed:
        raise UsageError(
            "Accuracy requires choices: a column of them (`choices`), or targets of few different texts; "
            "use `metric` exact_match."
        )
    judged = metric or ("accuracy" if choices or listed else "exact_match")
    document: dict[str, object] = {
        "name": name,
        "group": group,
        "instruction": instruction,
        "metric": judged,
        "choices": list(choices) if choices and judged == "accuracy" else None,
        "source": facts.source,
        "license": facts.license,
    }
    document |= {"max_new_tokens": max_new_tokens} if max_new_tokens else {}
    document |= {"instruction_role": role} if role else {}
    with new_folder(folder, overwrite, TASK_NAME) as new:
        _write_lines(new / TASK_NAME, [document], indent=2)
        for split, part in examples.items():
            own = not document["choices"]
            lines = [
                {"input": row.input, "target": row.target}
                | ({"choices": row.choices} if own and row.choices else {})
                for row in part
            ]
            _write_lines(new / f"{split}.jsonl", lines)
        # What a reader of the folder would refuse never appears.
        for split in SPLITS:
            read_examples(read_task(new), split)
    return read_task(folder)


def _write_lines(file: Path, documents: Sequence[object], indent: int | None = None) -> None:
    from merging.members import storage

    lines = [json.dumps(document, ensure_ascii=False, indent=indent) for document in documents]
    with storage(file):
        file.write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")


def _task_row(folder: Path) -> TaskRow:
    """The row of the task in a folder; raises the errors of reading it."""
    from merging.model import examples, read_task

    task = read_task(folder)
    counts: dict[Split, int | None] = {
        split: len(examples(task, split)) if (folder / f"{split}.jsonl").is_file() else None
        for split in ("train", "valid", "test")
    }
    return TaskRow(
        task=task.name,
        metric=task.metric,
        choices=len(task.choices),
        **counts,
        license=task.license,
        source=task.source,
        folder=str(folder),
    )
