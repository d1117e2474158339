"""The program prints and writes what it did when `recorded/` was made."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.golden.__main__ import RECORDED
from tests.golden.compare import MACHINE, differences, outline
from tests.golden.normalise import compact, normalise, without_wording

ROOT = Path(__file__).parents[2]


@pytest.mark.slow
def test_every_output_is_what_was_recorded(tmp_path: Path) -> None:
    environment = dict(os.environ, OMP_NUM_THREADS="1")
    words = [sys.executable, "-m", "tests.golden", str(tmp_path / "now")]
    result = subprocess.run(words, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr[-4000:]
    actual = differences(RECORDED, tmp_path / "now")
    bugs = f"\n\n{result.stderr[-4000:]}" if "Traceback" in result.stderr else ""
    assert not actual, f"{len(actual)} outputs differ from the records:\n\n" + "\n\n".join(actual) + bugs


@pytest.fixture
def copy(tmp_path: Path) -> Path:
    """The records, to be changed."""
    return Path(shutil.copytree(RECORDED, tmp_path / "copy"))


def test_a_renamed_key_is_a_difference(copy: Path) -> None:
    assert differences(RECORDED, copy) == []
    path = copy / "merge-sum.txt"
    path.write_text(path.read_text().replace('"method":', '"way":'))
    (report,) = differences(RECORDED, copy)
    assert report.startswith("merge-sum.txt")
    assert '+  "way":' in report


def test_a_digit_counts_where_the_arithmetic_is_the_same(copy: Path) -> None:
    path = copy / "similar.json.txt"
    path.write_text(path.read_text().replace('"score": 0.', '"score": 0.1'))
    assert len(differences(RECORDED, copy)) == 1
    (copy / MACHINE).write_text("{}")
    assert differences(RECORDED, copy) == []
    path.write_text(path.read_text().replace('"score":', '"points":'))
    assert len(differences(RECORDED, copy)) == 1


def test_a_missing_record_is_a_difference(copy: Path) -> None:
    (copy / "status.txt").unlink()
    assert [report.splitlines()[0] for report in differences(RECORDED, copy)] == ["status.txt"]


def test_of_an_error_the_code_counts_and_the_wording_does_not(copy: Path) -> None:
    path = copy / "errors.json"
    rows = json.loads(path.read_text())
    rows[0]["text"] = ["Error: in other words."]
    path.write_text(json.dumps(rows))
    assert differences(RECORDED, copy) == []
    rows[0]["code"] += 1
    path.write_text(json.dumps(rows))
    assert len(differences(RECORDED, copy)) == 1


def test_what_is_replaced_is_narrow() -> None:
    text = '{"created": "2026-01-02T12:00:00.000Z", "seconds": 1.5, "torch": "2.9.1", "torches": "2.9.1"}'
    assert normalise(text, {}) == text.replace("1.5", "SECONDS").replace(
        '"torch": "2.9.1"', '"torch": "VERSION"'
    )
    assert normalise("at 2026-11-28T19:01:53.447606Z from /tmp/x/data", {"/tmp/x": "FOLDER"}) == (
        "at TIME from FOLDER/data"
    )
    assert without_wording('{"help": "a \\"b\\"", "kind": "c"}', ("help",)) == '{"help": "TEXT", "kind": "c"}'


def test_a_long_record_names_its_keys_and_not_its_numbers() -> None:
    timed = json.dumps({"seconds": 1.5, "name": "x" * 5000})
    assert compact(normalise(timed, {})).splitlines()[1] == "keys: name, seconds"
    text = json.dumps([{"first": {"second": [{"third": "x" * 5000}]}}])
    assert compact(text).splitlines()[1] == "keys: first, second, third"
    assert "third" in outline(compact(text)).splitlines()
    assert compact(text) != compact(text.replace("first", "1st"))
    assert outline(compact(text)) == outline(compact(text.replace("x", "y")))
