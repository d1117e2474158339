"""Records of studies from elsewhere: what is none is said with its place, and nothing ends in a traceback."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest

from catalog.errors import StorageError
from studies.record import FACTS, RESULTS, read_record
from studies.run import MARKDOWN, report
from tests.studies.test_report import cell
from tests.studies.test_report import study as facts_of


def write(folder: Path, facts: Any, rows: Any) -> None:
    (folder / FACTS).write_text(facts if isinstance(facts, str) else json.dumps(facts))
    lines = (row if isinstance(row, str) else json.dumps(row, ensure_ascii=False) for row in rows)
    (folder / RESULTS).write_text("".join(f"{line}\n" for line in lines), "utf-8")


@pytest.mark.parametrize("mark", ["\x85", "\u2028", "\x1c"])
def test_names_and_errors_may_hold_what_separates_lines_elsewhere(tmp_path: Path, mark: str) -> None:
    failed = cell(f"t{mark}1", 0, "new", None, status="failed", error=f"One{mark}two.")
    write(tmp_path, facts_of(), [failed, cell("t2", 0, "new", 0.5)])
    assert [row["task"] for row in read_record(tmp_path)[1]] == [f"t{mark}1", "t2"]
    report(tmp_path)
    text = (tmp_path / MARKDOWN).read_text("utf-8")
    assert mark not in text
    assert "| new | 1 | One" in text


@pytest.mark.parametrize(
    ("facts", "what"),
    [
        ("{", "cannot be read: this is not JSON"),
        ("[" * 100_000, "cannot be read: this is not JSON"),
        ([], "it is not an object"),
        ({}, "study is missing"),
        ({"study": "x"}, "study: it should be an object"),
        ({"study": {"question": "Q?"}}, "study.title is missing"),
        ({"study": {"title": 1}}, "study.title: it should be a valid string"),
        ({"study": {"title": "T", "methods": ["a"]}}, "study.methods: it should be an object"),
        ({"study": {"title": "T", "report": []}}, "study.report: it should be an object"),
        ({"study": {"title": "T", "report": {"claims": ["a"]}}}, "study.report.claims.0: it should be"),
        (facts_of(claims=[{"claim": "c", "compare": "a"}]), "study.report.claims.0.with is missing"),
        (
            facts_of(claims=[{"claim": "c", "compare": "a", "with": "b", "expects": "grand"}]),
            "study.report.claims.0.expects: it should be 'better'",
        ),
        (facts_of() | {"tasks": ["a"]}, "tasks: it should be an object"),
        (facts_of() | {"adapters": 3}, "adapters: it should be an object"),
        (facts_of() | {"base": "b"}, "base: it should be an object"),
        (facts_of() | {"versions": []}, "versions: it should be an object"),
        (facts_of() | {"steps": {"done": "1"}}, "steps.done: it should be a valid integer"),
        (facts_of() | {"seconds": "1"}, "seconds: it should be a valid number"),
        (facts_of() | {"seconds": math.inf}, "cannot be read: this is not JSON"),
        (facts_of() | {"threads": "a"}, "threads: it should be a valid integer"),
        (facts_of() | {"wild": {"learning_rate": 3}}, "wild.learning_rate: it should be a valid list"),
    ],
)
def test_other_facts_are_one_sentence(tmp_path: Path, facts: Any, what: str) -> None:
    write(tmp_path, facts, [])
    with pytest.raises(StorageError) as error:
        report(tmp_path)
    text = str(error.value)
    assert f"{FACTS} " in text
    assert what in text
    assert text.endswith("; run the study again.")
    assert "\n" not in text


@pytest.mark.parametrize(
    ("row", "what"),
    [
        ("", "cannot be read: this is not JSON"),
        ("{", "cannot be read: this is not JSON"),
        ("[" * 100_000, "cannot be read: this is not JSON"),
        ([], "it is not an object"),
        ({}, "task is missing"),
        (cell("t", 0, "new", 0.5) | {"seed": "x"}, "seed: it should be a valid integer"),
        (cell("t", 0, "new", 0.5, status="begun"), "status: it should be 'done', 'failed' or 'missing'"),
        (cell("t", 0, "new", 0.5, settings=[1]), "settings: it should be an object"),
        (cell("t", 0, "new", 0.5, detail="x"), "detail: it should be an object"),
        (cell("t", 0, "new", 5.0), "value: it should be less than or equal to 1"),
        (cell("t", 0, "new", 0.5) | {"value": "0.5"}, "value: it should be a valid number"),
        (cell("t", 0, "new", 0.5, loss=1e300), "loss: it should be less than"),
        (cell("t", 0, "new", 0.5, loss=math.nan), "cannot be read: this is not JSON"),
        (cell("t", 0, "new", 0.5, n=-1), "n: it should be greater than or equal to 0"),
        (cell("t", 0, "new", 0.5, n=10**400), "cannot be read: this is not JSON"),
        (cell("t", 0, "old", 0.5), "it has the cell of line 1 again"),
    ],
)
def test_a_line_that_is_no_cell_is_said_with_its_number(tmp_path: Path, row: Any, what: str) -> None:
    write(tmp_path, facts_of(), [cell("t", 0, "old", 0.5), row])
    with pytest.raises(StorageError) as error:
        report(tmp_path)
    text = str(error.value)
    assert f"{RESULTS} line 2 " in text
    assert what in text
    assert text.endswith("; run the study again.")
    assert "\n" not in text


def test_what_an_older_record_does_not_say_is_left_out(tmp_path: Path) -> None:
    write(tmp_path, {"study": {"title": "T"}}, [{"task": "t", "seed": 0, "method": "m", "status": "missing"}])
    says = report(tmp_path)["says"]
    assert says[0].startswith("No cell of this study is done (of 1)")
