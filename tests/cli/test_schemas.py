"""The JSON Schemas in docs/reference/schemas describe the files that the program writes, and nothing else."""

from __future__ import annotations

import copy
import json
from collections.abc import Iterator
from dataclasses import fields
from pathlib import Path
from typing import Any

import pytest
from jsonschema import Draft202012Validator

from catalog.selection import Question
from loradex.models import TaskScores
from merging.evaluation.scores import TaskScore, evaluate
from merging.members import load_member
from merging.model import read_task
from tests.cli.conftest import Program
from tests.localhub import FaultHub
from tests.merging.adapters import adapter
from tests.merging.test_evaluate import ROWS
from tests.merging.tiny import tiny_base, write_task
from tools.documents import DOCS

Path_ = tuple[str | int, ...]
# What a file may have or lack.
OPTIONAL = {"form", "source", "base_model", "distinct", "where", "control", "of", "items", "margins"}


def validator(name: str) -> Draft202012Validator:
    """The schema of this file, itself valid."""
    schema = json.loads((DOCS / "reference" / "schemas" / f"{name}.schema.json").read_text(encoding="utf-8"))
    Draft202012Validator.check_schema(schema)
    return Draft202012Validator(schema, format_checker=Draft202012Validator.FORMAT_CHECKER)


@pytest.fixture
def written(hub: FaultHub, run: Program, tmp_path: Path) -> dict[str, list[Any]]:
    """The documents that the program writes, by the name of their schema."""
    folders = [adapter(tmp_path / name, seed=seed) for seed, name in enumerate(("a", "b"))]
    task = read_task(write_task(tmp_path / "task", ROWS))
    scores = list(evaluate(tiny_base(), [load_member(adapter(tmp_path / "c"))], [task], limit=2))
    for words in (
        ("crawl", "--any-base", "--weights", "keep"),
        ("select", "mine", "--by", "random", "-k", "1", "--controls"),
        ("select", "all", "--by", "rank", "-k", "all", "--where", "rank:1..", "--distinct", "file"),
        ("pool", "export", "all", "--to", str(tmp_path / "out"), "--weights"),
        ("merge", "all", "--method", "svd", "--rank", "2", "-o", str(tmp_path / "of-a-pool")),
        ("merge", *map(str, folders), "--method", "ties", "-o", str(tmp_path / "of-folders")),
    ):
        result = run(*words)
        assert result.exit_code == 0, result.output
    return {
        "pool": [json.loads(file.read_bytes()) for file in sorted(tmp_path.rglob("pool.json"))],
        "merge": [json.loads(file.read_bytes()) for file in sorted(tmp_path.rglob("merge.json"))],
        "scores": [
            TaskScores([score for score in scores if isinstance(score, TaskScore)], (), ()).document(),
        ],
    }


def alterations(document: Any) -> Iterator[tuple[str, Any]]:
    """The document with a field less or a field more, at every place where the format does not allow it."""
    for path, value in _places(document):
        if isinstance(value, dict) and path[-1:] != ("parameters",):
            if path != ("modules",):
                yield f"{path} with another field", _replace_value(document, path, "surplus")
            for key in value.keys() - OPTIONAL if path not in (("modules",), ("items",)) else ():
                yield f"{path} without {key}", _replace_value(document, path, key)
        elif not isinstance(value, (dict, list)):
            yield f"{path} is a list", _replace_value(document, path[:-1], path[-1], [value])


def _places(value: Any, path: Path_ = ()) -> Iterator[tuple[Path_, Any]]:
    yield path, value
    parts = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, part in parts:
        yield from _places(part, (*path, key))


def _replace_value(document: Any, path: Path_, key: str | int, value: Any = None) -> Any:
    """A copy with another value at a place; without one, its key taken out, or put in where it was not."""
    copied = copy.deepcopy(document)
    place = copied
    for step in path:
        place = place[step]
    if value is None and key in place:
        del place[key]
    else:
        place[key] = value
    return copied


def test_a_file_of_the_program_is_valid_and_an_altered_one_is_not(written: dict[str, list[Any]]) -> None:
    for name, documents in written.items():
        check = validator(name)
        assert documents, name
        for document in documents:
            assert [error.message for error in check.iter_errors(document)] == [], name
            missed = [about for about, altered in alterations(document) if check.is_valid(altered)]
            assert missed == [], name
    earlier = written["merge"][0]
    for member in earlier["members"]:
        member["licence"] = member.pop("license", None) or member.get("licence")
    assert validator("merge").is_valid(earlier)


def test_the_schema_has_every_option_of_a_selection() -> None:
    options = {field.name for field in fields(Question)} - {"name", "use"}
    selected = validator("pool").schema["properties"]["chosen"]["properties"]
    assert set(selected) == options | {"control", "of"}
