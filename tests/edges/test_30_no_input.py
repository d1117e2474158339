"""Row 30 d: a standard output that is full or closed is one sentence, whatever was to be written."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from catalog.errors import StorageError
from cli.app import Exit
from cli.streams import _ClosedResults, _Results, _stream, _Talk

ROOT = Path(__file__).parents[2]
FULL = Path("/dev/full")
full = pytest.mark.skipif(not FULL.exists(), reason="the system has no /dev/full")


def shell(line: str) -> subprocess.CompletedProcess[str]:
    """Runs a line of shell, in which `loradex` is the program."""
    program = f'loradex() {{ "{sys.executable}" -m cli "$@"; }}; {line}'
    return subprocess.run(["sh", "-c", program], cwd=ROOT, capture_output=True, text=True, check=False)


@pytest.mark.slow
@pytest.mark.parametrize("command", ["methods", "methods --json", "methods --jsonl", "--help", "db", ""])
@pytest.mark.parametrize(
    ("to", "why"),
    [
        pytest.param("/dev/full", "No space left", marks=full, id="full"),
        pytest.param("&-", "closed", id="closed"),
    ],
)
def test_a_standard_output_that_takes_nothing_is_one_sentence(command: str, to: str, why: str) -> None:
    done = shell(f"loradex {command} >{to}")
    assert (done.returncode, done.stdout) == (Exit.ERROR, "")
    assert done.stderr.startswith("Error: The results cannot be written")
    assert why in done.stderr
    assert done.stderr.count("\n") == 1


@pytest.mark.slow
@pytest.mark.parametrize(
    ("line", "code"),
    [
        ("loradex methods 2>&-", Exit.DONE),
        ("loradex db check --data /nonexistent 2>&-", Exit.ERROR),
        ("loradex adapters --where rank: 2>&- >&- <&-", Exit.USAGE),
        pytest.param("loradex db check --data /nonexistent 2>/dev/full", Exit.ERROR, marks=full),
        pytest.param("loradex methods >/dev/full 2>/dev/full", Exit.ERROR, marks=full),
    ],
)
def test_talk_that_nobody_takes_changes_no_exit_code(line: str, code: Exit) -> None:
    done = shell(line)
    assert (done.returncode, done.stderr) == (code, "")


@pytest.mark.slow
def test_a_command_that_writes_no_result_needs_no_standard_output(tmp_path: Path) -> None:
    done = shell(f"loradex db upgrade --data '{tmp_path}' >&-")
    assert (done.returncode, done.stderr.count("\n")) == (Exit.DONE, 1)
    # The catalog did not get the number of the closed descriptor, and nothing was written into it.
    assert shell(f"loradex db check --data '{tmp_path}'").returncode == Exit.DONE


@full
def test_what_is_refused_once_is_not_tried_again() -> None:
    stream = _stream(_Results(os.open(FULL, os.O_WRONLY), "wb"), None)
    stream.write("result")
    with pytest.raises(StorageError, match="No space left"):
        stream.flush()
    stream.close()


def test_a_closed_output_takes_nothing_but_an_empty_text() -> None:
    stream = _stream(_ClosedResults(os.open(os.devnull, os.O_WRONLY), "wb"), None)
    stream.flush()
    stream.write("result")
    with pytest.raises(StorageError, match="closed"):
        stream.flush()
    stream.close()


@full
def test_talk_that_is_refused_is_lost_in_silence() -> None:
    stream = _stream(_Talk(os.open(FULL, os.O_WRONLY), "wb"), None)
    stream.write("talk")
    stream.close()
