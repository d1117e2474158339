"""Rows of a data set as examples of a task: which columns hold the input, the answer and the choices.

Rows come from files, data sets of the Hub or tasks of lm-evaluation-harness. Splits that are missing are
drawn from the training rows by a seed.
"""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import NoReturn

from catalog.errors import UsageError
from merging.model import Example

Row = Mapping[str, object]
# A target with at most so many values, each so many times on average, is one of choices.
MOST_CHOICES = 50
_LEAST_REPEATS = 3
_LETTERS = "ABCDEFGHIJKLMNOPQRSTUVWXYZ"
# The names of splits in data sets, in the order in which they are looked for.
SPLIT_NAMES: Mapping[str, tuple[str, ...]] = {
    "train": ("train", "training"),
    "valid": ("valid", "validation", "dev", "val"),
    "test": ("test", "eval"),
}


@dataclass(frozen=True)
class ExampleColumns:
    """The columns of an example.

    `input` are one column, or several that are joined as lines "column: value". `choices` is the column that
    holds a list of choices; then a target that is not one of them is their number from 0, or their letter.
    `labels` are names of the target's whole numbers from 0.
    """

    input: tuple[str, ...]
    target: str
    choices: str | None = None
    labels: tuple[str, ...] = field(default=())

    def example(self, row: Row, place: str) -> Example:
        """The example of a row; raises UsageError, with the place, for a missing or empty cell."""
        parts = [(name, cell_text(row, name, place)) for name in self.input]
        text = parts[0][1] if len(parts) == 1 else "\n".join(f"{name}: {value}" for name, value in parts)
        if self.choices is None:
            return Example(text, self._label(cell_text(row, self.target, place), place))
        choices, names = _choice_list(find_cell(row, self.choices, place), f"{place}, {self.choices}")
        target = cell_text(row, self.target, place)
        number = find_cell(row, self.target, place)
        counted = isinstance(number, int) and not isinstance(number, bool)
        return Example(text, _find_choice(target, counted, choices, names, place), choices)

    def _label(self, value: str, place: str) -> str:
        if not self.labels:
            return value
        if not value.isdecimal() or int(value) >= len(self.labels):
            raise UsageError(
                f"{place}: the target {value[:40]!r} is not the number of one of {len(self.labels)} labels."
            )
        return self.labels[int(value)]


def find_cell(row: Row, name: str, place: str) -> object:
    """The value of a column, or of a field of a column ("answers.text"); raises UsageError without one."""
    value: object = row
    if name in row:
        value = row[name]
    else:
        for part in name.split("."):
            if not isinstance(value, Mapping) or part not in value:
                columns = ", ".join(sorted(map(str, row)))
                raise UsageError(f"{place} has no column {name}; its columns are {columns}.")
            value = value[part]
    return value


def cell_text(row: Row, name: str, place: str) -> str:
    """The text of a cell: a text, a number, True or False; raises UsageError for anything else."""
    value = find_cell(row, name, place)
    if isinstance(value, (str, int, float)) and str(value).strip():
        return str(value)
    kind = "is empty" if value is None or isinstance(value, str) else "is not a text or a number"
    raise UsageError(f"{place}: the column {name} {kind}; name another column.")


def _choice_list(value: object, place: str) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """The choices of a cell and their names: a list of texts, or lists called text and label."""
    names: tuple[str, ...] = ()
    if isinstance(value, Mapping) and isinstance(value.get("text"), Sequence):
        names, value = tuple(map(str, value.get("label") or ())), value["text"]
    if (
        not isinstance(value, Sequence)
        or isinstance(value, str)
        or not all(isinstance(v, str) for v in value)
    ):
        raise UsageError(f"{place} is not a list of choices; name another column.")
    return tuple(value), names


def _find_choice(target: str, counted: bool, choices: Sequence[str], names: Sequence[str], place: str) -> str:
    """The choice that a target names: by its name where the choices have some, else by its text, its number
    from 0, or its letter.

    A target that is `counted`, a number in the data, is a number from 0 unless it is a name. Raises
    UsageError if none fits, or if the target is the text of one choice and the number or letter of another.
    """
    if target in names:
        return (
            choices[list(names).index(target)]
            if len(names) == len(choices)
            else _no_choice(target, choices, place)
        )
    numbers = [str(n) for n in range(len(choices))]
    if counted:
        return choices[int(target)] if target in numbers else _no_choice(target, choices, place)
    readings = {row.index(target) for row in (list(choices), numbers, list(_LETTERS)) if target in row}
    readings = {at for at in readings if at < len(choices)}
    if len({choices[at] for at in readings}) > 1:
        raise UsageError(
            f"{place}: the target {target[:40]!r} is the text of one choice and the number or letter of "
            "another; give numbers as numbers, or the text of the choice."
        )
    return choices[readings.pop()] if readings else _no_choice(target, choices, place)


def _no_choice(target: str, choices: Sequence[str], place: str) -> NoReturn:
    raise UsageError(f"{place}: the target {target[:40]!r} is none of its {len(choices)} choices.")


def shared_choices(examples: Sequence[Example]) -> tuple[str, ...]:
    """The choices of a task in order, from its targets or from lists that are all the same.

    Empty if examples have lists of their own, or their targets are too many different texts.
    """
    lists = {example.choices for example in examples}
    if lists != {()}:
        return next(iter(lists)) if len(lists) == 1 else ()
    values = {example.target for example in examples}
    if not 2 <= len(values) <= MOST_CHOICES or len(examples) < _LEAST_REPEATS * len(values):
        return ()
    numbers = all(value.isdecimal() for value in values)
    return tuple(sorted(values, key=int if numbers else str))


def choose_splits(names: Sequence[str], splits: Mapping[str, str]) -> dict[str, str]:
    """By split of a task the name in the data set: of `splits`, else of the usual names.

    Raises UsageError for a name that does not exist, and if there is none to train with.
    """
    source_splits = {}
    for split, usual in SPLIT_NAMES.items():
        if split in splits:
            if splits[split] not in names:
                raise UsageError(f"There is no split {splits[split]}; there are {', '.join(names)}.")
            source_splits[split] = splits[split]
        elif found := next((name for name in usual if name in names and name not in splits.values()), None):
            source_splits[split] = found
    if "train" not in source_splits:
        if len(names) != 1 or source_splits:
            raise UsageError(f"There is no split to train with; name one of {', '.join(names)} (`splits`).")
        source_splits["train"] = names[0]
    if wrong := sorted(set(splits) - set(SPLIT_NAMES)):
        raise UsageError(f"{wrong[0]} is not a split of a task; use train, valid or test.")
    return source_splits


def draw_splits(
    rows: Mapping[str, Sequence[Row]], name: str, *, valid: float, test: float, seed: int
) -> dict[str, list[Row]]:
    """The rows of train, valid and test; missing ones are shares of the training rows, drawn by the seed.

    The draw depends on the task's name, the seed and the number of rows. Raises UsageError for shares that
    leave a split empty.
    """
    train = list(rows["train"])
    order = random.Random(f"{name}:import:{seed}").sample(range(len(train)), len(train))  # noqa: S311
    splits: dict[str, list[Row]] = {}
    for split, share in (("test", test), ("valid", valid)):
        if split in rows:
            splits[split] = list(rows[split])
            continue
        count = round(share * len(train))
        taken, order = order[:count], order[count:]
        splits[split] = [train[at] for at in sorted(taken)]
    splits["train"] = [train[at] for at in sorted(order)]
    if empty := next((split for split in ("train", "valid", "test") if not splits[split]), None):
        raise UsageError(
            f"{len(train)} training rows with shares of {valid:g} (valid) and {test:g} (test) leave {empty} "
            "empty; use other shares, or name splits."
        )
    return splits


def limit_rows(rows: Sequence[Row], name: str, limit: int | None, seed: int) -> list[Row]:
    """At most `limit` rows in their order, drawn by the seed and the name."""
    if limit is None or limit >= len(rows):
        return list(rows)
    return [rows[at] for at in sorted(random.Random(f"{name}:{seed}").sample(range(len(rows)), limit))]  # noqa: S311
