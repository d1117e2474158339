"""Files of measured scores, read strictly: a JSON document in the project's format, or a CSV with one row per
adapter and one column per task, as the recycling paper publishes them (r-three/realistic-adaptive-merging).
"""

from __future__ import annotations

import csv
import io
import json
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

from catalog.errors import ConfigError, NotFoundError, UsageError
from catalog.files import load_json, output_file, read_limited
from catalog.scores.metrics import score_problem
from catalog.scores.outcomes import (
    HASH_BYTES,
    MOST_ITEMS,
    Outcomes,
    from_text,
    list_sha,
    read_outcomes,
    to_text,
)
from catalog.scores.record import BASE, Score

MOST_BYTES = 256 * 1024 * 1024
_FIELDS = {"adapter", "task", "split", "metric", "value", "n"}
_NUMBER = re.compile(r"[+-]?(\d+\.?\d*|\.\d+)([eE][+-]?\d+)?", re.ASCII)


def read_scores(path: Path, *, source: str, split: str, metric: str, n: int | None) -> list[Score]:
    """The scores in a .json or .csv file; split, metric and n apply to a CSV, which does not contain them.

    A CSV whose second column is called zero_shot contains the base model's scores, one task per row. Raises
    NotFoundError, and UsageError with the line of a CSV, or the number of the score in a document, for an
    invalid score.
    """
    advice = "give a .json or .csv file of scores"
    data = read_limited(path, MOST_BYTES, kind="a file of scores", advice=advice, error=UsageError)
    if path.suffix.lower() == ".json":
        return _from_json(data, source)
    return _from_csv(path, data, split=split, metric=metric, n=n, source=source)


def write_scores(scores: Sequence[Score], path: Path) -> None:
    """Writes scores as a document that `read_scores` reads, with their outcomes, in place of what is there.

    Raises NotFoundError for no scores, UsageError if they are of several sources, which a file does not
    state, and StorageError if the disk refuses.
    """
    if not scores:
        raise NotFoundError("No such scores found; `score_sources()` lists what each source measured.")
    if len(sources := sorted({score.source for score in scores})) > 1:
        raise UsageError(f"The scores are of several sources ({', '.join(sources)}); choose one by `source`.")
    outcomes = [score.outcomes for score in scores if score.outcomes]
    items = {row.items_sha: to_text(row.hashes) for row in outcomes if row.hashes}
    document = {"scores": [_document(score) for score in scores], **({"items": items} if items else {})}
    text = json.dumps(document, indent=2, sort_keys=True, ensure_ascii=False, allow_nan=False)
    with output_file(path) as new:
        new.write_text(f"{text}\n", encoding="utf-8")


def _document(score: Score) -> dict[str, Any]:
    """A score as a file has it; what is empty is left out."""
    names = ("task", "split", "metric", "value", "n")
    document = {"adapter": score.subject, **{name: getattr(score, name) for name in names}}
    outcomes = score.outcomes
    texts = {
        "protocol": score.protocol,
        "items_sha": outcomes.items_sha if outcomes else "",
        "outcomes": to_text(outcomes.bitmap) if outcomes else "",
        "margins": to_text(outcomes.margins) if outcomes else "",
    }
    return document | {name: text for name, text in texts.items() if text}


def _from_csv(path: Path, data: bytes, *, split: str, metric: str, n: int | None, source: str) -> list[Score]:
    """The scores of a table with a row per adapter and a column per task, or of the base model alone."""
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
    scores: dict[tuple[str, ...], Score] = {}
    for line, subject, task, text in cells:
        if text.strip():
            with _at(f"{path} line {line}"):
                value = _number(text.strip())
                _add(scores, Score(subject.strip(), task.strip(), split, metric, value, n, source))
    return list(scores.values())


def _csv_rows(path: Path, data: bytes) -> list[tuple[int, list[str]]]:
    """The rows with their line numbers; raises UsageError unless it is a rectangular CSV in UTF-8."""
    try:
        text = data.decode("utf-8-sig")
        reader = csv.reader(io.StringIO(text, newline=""), strict=True)
        rows = [(reader.line_num, row) for row in reader if any(cell.strip() for cell in row)]
    except (UnicodeDecodeError, csv.Error) as error:
        raise UsageError(f"{path} is not a CSV in UTF-8: {error}.") from error
    if not rows or len(rows[0][1]) < 2:
        raise UsageError(
            f"{path} contains no table: the first line names the adapter's column and the tasks."
        )
    width = len(rows[0][1])
    wrong = next((line for line, row in rows if len(row) != width), None)
    if wrong is not None:
        raise UsageError(f"{path} line {wrong}: requires {width} cells as in the first line.")
    return rows


def _number(text: str) -> float:
    if not _NUMBER.fullmatch(text):
        raise UsageError(f"{text[:40]!r} is not a number.")
    return float(text)


@contextmanager
def _at(place: str) -> Iterator[None]:
    """Adds the line or the number of a score to the message of its error."""
    try:
        yield
    except UsageError as error:
        raise UsageError(f"{place}: {error}") from error


def _add(scores: dict[tuple[str, ...], Score], score: Score) -> None:
    """Adds a score under its identity; raises UsageError if it is already there."""
    key = (score.subject, score.task, score.split, score.metric, score.protocol)
    if key in scores:
        raise UsageError(f"{score.subject} has two scores on {score.task}.")
    scores[key] = score


def _from_json(data: bytes, source: str) -> list[Score]:
    """The scores of a document {"scores": [{adapter, task, split, metric, value, n}]}.

    A score may have `protocol`, and `items_sha`, `outcomes` and `margins`; the hashes of these items are then
    in `items` beside `scores`.
    """
    try:
        document = load_json(data, max_bytes=MOST_BYTES, finite=False)
    except ConfigError as error:
        raise UsageError(f"This is not a file of scores: {error}.") from error
    if not isinstance(document, dict) or not isinstance(rows := document.get("scores"), list):
        raise UsageError("This is not a file of scores: it does not contain a list called scores.")
    hashes = _item_hashes(document.get("items", {}))
    scores: dict[tuple[str, ...], Score] = {}
    for number, row in enumerate(rows, 1):
        with _at(f"Score {number}"):
            _add(scores, _score(row, source, hashes))
    item_lists = {score.outcomes.items_sha for score in scores.values() if score.outcomes}
    if unnamed := hashes.keys() - item_lists:
        raise UsageError(f"No score has the items {min(unnamed)}; remove this list from items.")
    return list(scores.values())


def _item_hashes(lists: object) -> dict[str, bytes]:
    """The hashes of items, by items_sha."""
    if not isinstance(lists, dict):
        raise UsageError("This is not a file of scores: its items are not an object of base64 texts.")
    hashes = {}
    for sha, text in lists.items():
        with _at(f"The items {sha[:64]!a}"):
            hashes[sha] = from_text(text, "list of hashes", HASH_BYTES * MOST_ITEMS)
            if list_sha(hashes[sha]) != sha:
                raise UsageError("they are not the sha256 of their hashes.")
    return hashes


def _outcomes(row: Mapping[str, Any], hashes: Mapping[str, bytes]) -> Outcomes | None:
    """The outcomes that a score has, with the hashes of its items."""
    if not row.keys() & {"items_sha", "outcomes", "margins"}:
        return None
    outcomes = read_outcomes(row.get("items_sha"), row.get("outcomes"), row.get("margins", ""), row["n"])
    return replace(outcomes, hashes=hashes.get(outcomes.items_sha, b""))


def _score(row: Any, source: str, hashes: Mapping[str, bytes]) -> Score:
    if not isinstance(row, dict) or not set(row) >= _FIELDS:
        raise UsageError(f"it must have {', '.join(sorted(_FIELDS))}.")
    texts = [*(row[name] for name in ("adapter", "task", "split", "metric")), row.get("protocol", "")]
    if not all(isinstance(text, str) for text in texts):
        raise UsageError("adapter, task, split, metric and protocol must be strings.")
    adapter, task, split, metric, protocol = (text.strip() for text in texts)
    if problem := score_problem(metric, row["value"], row["n"]):
        raise UsageError(f"{problem}.")
    value, outcomes = float(row["value"]), _outcomes(row, hashes)
    return Score(adapter, task, split, metric, value, row["n"], source, protocol, outcomes)
