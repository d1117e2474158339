"""The 62 tasks of the recycling paper, read from a checkout of its code.

By facts of r-three/realistic-adaptive-merging (MIT) at cfc70df: `tasks.yaml` describes each task (data set of
the Hub or file, splits, instruction, columns), and `data/subset_idx_TASK_size100.json` holds the ids of its
examples by split, as SPLIT_NUMBER of the data set's own rows.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from catalog.errors import ConfigError, NotFoundError, UsageError
from catalog.files import load_json, read_limited
from loradex.columns import Row, cell_text, find_cell
from loradex.hubdata import SourceFacts
from loradex.tables import read_table
from merging.model import Example

REPOSITORY = "r-three/realistic-adaptive-merging"
# New tokens of an answer where the task's `answer_len` is long; 30 otherwise.
LONG_ANSWER = 500
_MOST_BYTES = 64 * 1024 * 1024
_LIST = re.compile(r"^export tasks=\(([^)]*)\)", re.MULTILINE)
_ID = re.compile(r"(\w+)_(\d{1,9})", re.ASCII)
_SEPARATOR = "[SEP]"
Splits = Mapping[str, Sequence[Row]]
ReadDataset = Callable[[str, str | None], tuple[Splits, SourceFacts]]


_TASK_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]*")


@dataclass(frozen=True)
class PaperTask:
    """A task as the paper's code describes it."""

    name: str
    entry: Mapping[str, Any]
    checkout: Path

    @property
    def instruction(self) -> str:
        """The system message."""
        return str(self.entry.get("instruction", ""))

    @property
    def max_new_tokens(self) -> int | None:
        """The new tokens of an answer where the task's are long."""
        return LONG_ANSWER if self.entry.get("answer_len") == "long" else None


def read_paper_tasks(checkout: Path, names: Sequence[str] = ()) -> list[PaperTask]:
    """The tasks of a checkout by name: by default those of its experiments, without that list all of them.

    Raises NotFoundError without tasks.yaml and for a name that is not in it, UsageError for an invalid file.
    """
    import yaml

    file = checkout / "tasks.yaml"
    advice = f"give a checkout of https://github.com/{REPOSITORY}"
    text = read_limited(file, _MOST_BYTES, kind="a list of tasks", advice=advice, error=UsageError)
    try:
        document = yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise UsageError(f"{file} is not YAML: {' '.join(str(error).split())}.") from error
    if not isinstance(document, dict) or not all(isinstance(entry, dict) for entry in document.values()):
        raise UsageError(f"{file} does not describe tasks; {advice}.")
    if unknown := next((name for name in names if name not in document), None):
        raise NotFoundError(f"{file} has no task {unknown}; it has {', '.join(map(str, document))}.")
    task_names = names or _experiment_names(checkout) or [str(name) for name in document]
    odd = next((name for name in task_names if not _TASK_NAME.fullmatch(str(name))), None)
    if odd is not None:
        raise UsageError(
            f"{file} has a task called {str(odd)[:40]!r}, which is not a name of a folder; {advice}."
        )
    return [PaperTask(name, document[name], checkout) for name in task_names if name in document]


def paper_splits(task: PaperTask, read_dataset: ReadDataset) -> tuple[dict[str, list[Example]], SourceFacts]:
    """The examples of a task by train, valid and test, by the stored ids; `read_dataset` reads the Hub.

    Raises NotFoundError without the ids or the file, and UsageError for what does not fit together.
    """
    ids = _read_ids(task)
    rows, facts = _rows(task, read_dataset)
    examples: dict[str, list[Example]] = {}
    for split, numbers in ids.items():
        examples[split] = []
        for source in dict.fromkeys(name for name, _ in numbers):
            if source not in rows:
                raise UsageError(
                    f"The ids of {task.name} name the split {source}, which its data do not have."
                )
            for number in sorted(at for name, at in numbers if name == source):
                if number >= len(rows[source]):
                    raise UsageError(
                        f"The ids of {task.name} name row {number} of {source}, but its data have only "
                        f"{len(rows[source])}: they have changed."
                    )
                examples[split].append(_example(task, rows[source][number], f"{source} row {number}"))
    return examples, facts


def _experiment_names(checkout: Path) -> list[str]:
    """The tasks of the paper's experiments: the last list that is not commented out."""
    file = checkout / "experiments" / "task_info.sh"
    if not file.is_file():
        return []
    text = read_limited(file, _MOST_BYTES, kind="a script", advice="", error=UsageError).decode(
        "utf-8", "replace"
    )
    lists = _LIST.findall(text)
    return lists[-1].split() if lists else []


def _read_ids(task: PaperTask) -> dict[str, list[tuple[str, int]]]:
    """By split the (split of the data, number) of each example."""
    file = task.checkout / "data" / f"subset_idx_{task.name}_size100.json"
    advice = "extract data.tar.gz in the checkout"
    data = read_limited(file, _MOST_BYTES, kind="a list of examples", advice=advice, error=UsageError)
    try:
        document = load_json(data, max_bytes=_MOST_BYTES)
    except ConfigError as error:
        raise UsageError(f"{file} is not JSON: {error}.") from error
    if not isinstance(document, dict) or not set(document) >= {"train", "valid", "test"}:
        raise UsageError(f"{file} does not contain ids of train, valid and test.")
    ids: dict[str, list[tuple[str, int]]] = {}
    for split in ("train", "valid", "test"):
        matches = [_ID.fullmatch(str(entry)) for entry in document[split]]
        if not matches or not all(matches):
            raise UsageError(f"{file}: the {split} ids are not a list such as train_12.")
        ids[split] = [(match[1], int(match[2])) for match in matches if match]
    return ids


def _rows(task: PaperTask, read_dataset: ReadDataset) -> tuple[Splits, SourceFacts]:
    """The data of a task by the names of splits that its ids use."""
    entry = task.entry
    if "json_file" in entry:
        file = task.checkout / str(entry["json_file"])
        if not file.resolve().is_relative_to(task.checkout.resolve()):
            raise UsageError(
                f"The file of the task {task.name} is not in the checkout: {entry['json_file']}."
            )
        license_file = task.checkout / "LICENSE"
        is_mit = license_file.is_file() and license_file.read_text("utf-8", "replace").startswith("MIT")
        facts = SourceFacts(f"{REPOSITORY} {entry['json_file']}", "MIT" if is_mit else "unknown")
        return {"train": read_table(file)}, facts
    path = [str(part) for part in entry.get("path") or ()]
    if not path:
        raise UsageError(f"The task {task.name} names neither a data set nor a file.")
    if subsets := entry.get("combine_subsets"):
        parts = [(str(subset), *read_dataset(path[0], str(subset))) for subset in subsets]
        joined: dict[str, list[Row]] = {}
        for subset, rows, _ in parts:
            for split, own in _rename_splits(entry, rows).items():
                joined.setdefault(split, []).extend({**row, "category": subset} for row in own)
        return joined, parts[0][2]
    rows, facts = read_dataset(path[0], path[1] if len(path) > 1 else None)
    return _rename_splits(entry, rows), facts


def _rename_splits(entry: Mapping[str, Any], rows: Splits) -> Splits:
    """The splits under the names of the entry, where it gives some."""
    names = entry.get("split")
    if not isinstance(names, Mapping):
        return rows
    if missing := next((name for name in names.values() if name not in rows), None):
        raise UsageError(f"The data have no split {missing}; they have {', '.join(rows)}.")
    return {str(split): rows[name] for split, name in names.items()}


def _example(task: PaperTask, row: Row, place: str) -> Example:
    """The example as `create_prompt` of the paper's code has it."""
    columns = task.entry.get("user_input")
    place = f"{task.name}, {place}"
    target = str(find_cell(row, str(task.entry.get("assistant_output")), place))
    if not isinstance(columns, Mapping):
        return Example(cell_text(row, str(columns), place), target)
    text = "".join(_part(str(name), column, row, place) for name, column in columns.items())
    # Their code takes the last characters for a separator, whether they are one or not.
    return Example(text.strip().strip("\n")[: -len(_SEPARATOR)].strip(), target)


def _part(name: str, column: object, row: Row, place: str) -> str:
    if not isinstance(column, Mapping):
        return f"{name} - {find_cell(row, str(column), place)} {_SEPARATOR} \n"
    lists = find_cell(row, str(column["key_name"]), place)
    fields, sign = list(column["fields"]), column.get("concat_symbol")
    if not isinstance(lists, Mapping) or any(key not in lists for key in fields):
        raise UsageError(f"{place}: the column {column['key_name']} does not have {', '.join(fields)}.")
    if not sign:
        return f"\n{name} - {lists[fields[0]]}"
    pairs = zip(lists[fields[0]], lists[fields[1]], strict=True)
    return f"\n{name} - \n" + "".join(f"{first} {sign} {second}\n" for first, second in pairs)
