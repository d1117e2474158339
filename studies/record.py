"""The record of a study that was run, read for its report: study.json, and the lines of results.jsonl.

A record may come from elsewhere or from another version: its size is bounded, and what the report relies on
is checked.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from catalog.errors import ConfigError, NotFoundError, StorageError, UsageError
from catalog.files import load_json, read_limited
from studies.design import StudyClaim, Value

RESULTS, FACTS = "results.jsonl", "study.json"
# The answer to a study of published tables, which a study could be once.
PUBLISHED = "Published tables are not a study; use `python -m tools.published DIR` in a checkout of loradex."
_MOST_BYTES = 512 * 1024 * 1024
_ADVICE = "run the study again"
# Sums of larger numbers overflow.
_Number = Annotated[float, Field(ge=-1e100, le=1e100)]
_Words = Mapping[str, Any]
_OBJECT = re.compile(r"a valid dictionary( or instance of \w+)?")


class _Recorded(BaseModel):
    model_config = ConfigDict(strict=True)


class _Report(_Recorded):
    against: str | None = None
    claims: list[StudyClaim] = []
    figures: list[str] = []


class _RecordedStudy(_Recorded):
    title: str
    question: str = ""
    seeds: list[int] = []
    methods: Mapping[str, _Words] = {}
    report: _Report = _Report()


class _Wild(_Recorded):
    cards: int = 0
    learning_rate: list[Any] = []
    rank: list[Any] = []


class _Facts(_Recorded):
    study: _RecordedStudy
    base: _Words = {}
    tasks: Mapping[str, _Words] = {}
    adapters: _Words = {}
    versions: _Words = {}
    steps: Mapping[str, int] = {}
    seconds: _Number | None = None
    threads: int | None = None
    wild: _Wild | None = None


class _RecordedCell(_Recorded):
    task: str
    seed: int
    method: str
    status: Literal["done", "failed", "missing"]
    pool: str | None = None
    settings: Mapping[str, Value] = {}
    error: str | None = None
    value: Annotated[float, Field(ge=0, le=1 + 1e-9)] | None = None
    loss: _Number | None = None
    n: Annotated[int, Field(ge=0)] | None = None
    detail: _Words = {}


def read_record(folder: Path) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """study.json and the lines of results.jsonl in a study's folder.

    Raises NotFoundError where there is none, UsageError for published tables, and StorageError, with the
    line, for what is not the record of a study.
    """
    try:
        facts = _read_json(folder / FACTS, _read(folder / FACTS))
        lines = _read(folder / RESULTS).split(b"\n")
    except NotFoundError as error:
        raise NotFoundError(
            f"{folder} does not contain a study; run one with `run_study(FILE, {folder})`."
        ) from error
    if isinstance(facts, dict) and isinstance(facts.get("study"), dict) and "published" in facts["study"]:
        raise UsageError(f"{folder}: {PUBLISHED}")
    if not isinstance(facts, dict) or (problem := _problem(facts, _Facts)):
        what = problem if isinstance(facts, dict) else "it is not an object"
        raise StorageError(f"{folder / FACTS} is not the record of a study: {what}; {_ADVICE}.")
    return facts, _read_rows(folder / RESULTS, lines if lines[-1] else lines[:-1])


def _read_rows(file: Path, lines: Sequence[bytes]) -> list[dict[str, Any]]:
    rows, at = [], dict[tuple[str, ...], int]()
    for number, line in enumerate(lines, 1):
        row = _read_json(f"{file} line {number}", line)
        what = _problem(row, _RecordedCell) if isinstance(row, dict) else "it is not an object"
        if what is None:
            # The same numbers twice would count twice.
            cell = tuple(str(row.get(name)) for name in ("task", "seed", "method", "pool", "settings"))
            what = f"it has the cell of line {at[cell]} again" if cell in at else None
            at[cell] = number
        if what:
            raise StorageError(f"{file} line {number} is not a result of a study: {what}; {_ADVICE}.")
        rows.append(row)
    return rows


def _read(file: Path) -> bytes:
    return read_limited(file, _MOST_BYTES, kind="a study's record", advice=_ADVICE, error=StorageError)


def _read_json(place: Path | str, data: bytes) -> Any:
    try:
        return load_json(data, max_bytes=_MOST_BYTES)
    except ConfigError as error:
        raise StorageError(f"{place} cannot be read: {error}; {_ADVICE}.") from error


def _problem(document: Mapping[str, Any], kind: type[BaseModel]) -> str | None:
    """What is wrong with a part of a record, in words; None for a sound one. A null is as nothing said."""
    try:
        kind.model_validate({name: value for name, value in document.items() if value is not None})
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        place = ".".join(map(str, first["loc"]))
        if first["type"] == "missing":
            return f"{place} is missing"
        words = _OBJECT.sub("an object", first["msg"]).replace("Input should be", "it should be")
        return f"{place}: {words}"
    return None
