"""Files of measured scores, read strictly: a JSON document of the project's own, or a CSV with one row an
adapter and one column a task, as the recycling paper publishes them (r-three/realistic-adaptive-merging).
"""

from __future__ import annotations

import csv
import io
import math
from pathlib import Path
from typing import Any

from catalog.errors import ConfigError, NotFoundError, UsageError
from catalog.score_store import BASE, Score
from catalog.strictjson import load_json

MOST_BYTES = 256 * 1024 * 1024
_FIELDS = {"adapter", "task", "split", "metric", "value", "n"}


def read_scores(path: Path, *, source: str, split: str, metric: str, n: int | None) -> list[Score]:
    """The scores in a .json or .csv file; split, metric and n are those of a CSV, which does not name them.

    A CSV whose second column is called zero_shot holds the base model's scores, one task a row. Raises
    NotFoundError, and UsageError that names the line for what is no score.
    """
    try:
        if path.stat().st_size > MOST_BYTES:
            raise UsageError(f"{path} is larger than any file of scores; it is not read.")
        data = path.read_bytes()
    except FileNotFoundError as error:
        raise NotFoundError(f"There is no {path}; name a .json or .csv file of scores.") from error
    except OSError as error:
        raise UsageError(f"{path} cannot be read: {error.strerror}.") from error
    if path.suffix == ".json":
        return _from_json(data, source)
    rows = _csv_rows(path, data)
    head = [cell.strip() for cell in rows[0][1]]
    if len(head) == 2 and head[1] == "zero_shot":
        cells = [(line, BASE, row[0], row[1]) for line, row in rows[1:]]
    else:
        if len(set(head)) < len(head) or not all(head):
            raise UsageError(f"{path} line 1: a column has no name, or two have the same.")
        cells = [
            (line, row[0], task, value)
            for line, row in rows[1:]
            for task, value in zip(head[1:], row[1:], strict=True)
        ]
    return _unique(
        path,
        [
            (
                line,
                Score(subject.strip(), task.strip(), split, metric, _fraction(path, line, value), n, source),
            )
            for line, subject, task, value in cells
            if value.strip()
        ],
    )


def _csv_rows(path: Path, data: bytes) -> list[tuple[int, list[str]]]:
    """The rows with their line numbers; raises UsageError for what is no rectangular CSV in UTF-8."""
    try:
        text = data.decode("utf-8-sig")
        reader = csv.reader(io.StringIO(text, newline=""), strict=True)
        rows = [(reader.line_num, row) for row in reader if any(cell.strip() for cell in row)]
    except (UnicodeDecodeError, csv.Error) as error:
        raise UsageError(f"{path} is no CSV in UTF-8: {error}.") from error
    if not rows or len(rows[0][1]) < 2:
        raise UsageError(f"{path} holds no table: the first line names the adapter's column and the tasks.")
    width = len(rows[0][1])
    wrong = next((line for line, row in rows if len(row) != width), None)
    if wrong is not None:
        raise UsageError(f"{path} line {wrong}: not {width} cells as in the first line.")
    return rows


def _fraction(path: Path, line: int, text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not 0 <= value <= 1:
        raise UsageError(f"{path} line {line}: {text.strip()[:40]!r} is no score from 0 to 1.")
    return value


def _unique(path: Path, scores: list[tuple[int, Score]]) -> list[Score]:
    seen: set[tuple[str, str]] = set()
    for line, score in scores:
        if (score.subject, score.task) in seen:
            raise UsageError(f"{path} line {line}: {score.subject} has two scores on {score.task}.")
        seen.add((score.subject, score.task))
    return [score for _, score in scores]


def _from_json(data: bytes, source: str) -> list[Score]:
    """The scores of a document {"scores": [{adapter, task, split, metric, value, n}]}."""
    try:
        document = load_json(data, max_bytes=MOST_BYTES)
    except ConfigError as error:
        raise UsageError(f"This is no file of scores: {error}.") from error
    rows = document.get("scores") if isinstance(document, dict) else None
    if not isinstance(rows, list):
        raise UsageError("This is no file of scores: it has no list called scores.")
    return [_score(row, number, source) for number, row in enumerate(rows, 1)]


def _score(row: Any, number: int, source: str) -> Score:
    if not isinstance(row, dict) or not set(row) >= _FIELDS:
        raise UsageError(f"Score {number} must have {', '.join(sorted(_FIELDS))}.")
    adapter, task, split, metric = (row[name] for name in ("adapter", "task", "split", "metric"))
    value, n = row["value"], row["n"]
    texts = all(isinstance(text, str) for text in (adapter, task, split, metric))
    if not texts or type(value) not in (int, float):
        raise UsageError(f"Score {number} has a field of another kind than a score has.")
    if n is not None and type(n) is not int:
        raise UsageError(f"Score {number}: n is no whole number.")
    return Score(adapter, task, split, metric, float(value), n, source)
