"""A score is in the range of its metric, on samples that a database can count, or its row is named."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from tests.cli.conftest import Program
from tests.edges.rows import row
from tests.shared_data import shared


def list_scores(run: Program) -> list[Any]:
    """What `scores show` lists."""
    return list(json.loads(run("scores", "show", "--json").stdout))


@shared
@pytest.mark.parametrize(("name", "value"), [("percent", "55"), ("negative", "-3"), ("huge", "1e+308")])
def test_the_number_of_the_score_is_named_and_nothing_is_stored(run: Program, name: str, value: str) -> None:
    assert run("db", "upgrade").exit_code == 0
    refused = run("scores", "import", str(row("23-scores") / f"{name}.json"))
    assert refused.exit_code == 2
    assert f"Score 1: its accuracy is {value}, not a number from 0 to 1." in " ".join(refused.stderr.split())
    assert list_scores(run) == []


@pytest.mark.parametrize(
    ("file", "text", "place"),
    [
        ("s.json", {"value": 0.5, "n": 2**63}, "Score 2"),
        ("s.json", {"value": 1.0001, "n": None}, "Score 2"),
        ("s.csv", "adapter,cola\nann/one,0.5\nbob/two,50\n", "s.csv line 3"),
        ("s.csv", "task,zero_shot\ncola,nan\n", "s.csv line 2"),
    ],
)
def test_good_rows_beside_a_bad_one_are_not_stored(
    run: Program, tmp_path: Path, file: str, text: dict[str, Any] | str, place: str
) -> None:
    fixed = {"adapter": "ann/one", "task": "cola", "split": "test", "metric": "accuracy"}
    rows = [
        {**fixed, "value": 1, "n": 1},
        {**fixed, "adapter": "bob/two", **(text if file == "s.json" else {})},
    ]  # type: ignore[dict-item]
    (tmp_path / file).write_text(text if isinstance(text, str) else json.dumps({"scores": rows}), "utf-8")
    assert run("db", "upgrade").exit_code == 0
    refused = run("scores", "import", str(tmp_path / file))
    assert refused.exit_code == 2
    assert f"{place}:" in " ".join(refused.stderr.split())
    assert list_scores(run) == []


def test_a_number_of_samples_beyond_63_bits_is_refused_on_the_command_line(
    run: Program, tmp_path: Path
) -> None:
    file = tmp_path / "s.csv"
    file.write_text("adapter,cola\nann/one,0.5\n", encoding="utf-8")
    assert run("scores", "import", str(file), "-n", str(2**63)).exit_code == 2
    assert run("scores", "import", str(file), "-n", str(2**63 - 1)).exit_code == 0
    assert list_scores(run)[0]["scores"] == 1
