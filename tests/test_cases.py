"""docs/cases.md names for each case the tests that show it, and these tests are there."""

from __future__ import annotations

import ast
import functools
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

TESTS = Path(__file__).parent
PAGE = (TESTS.parent / "docs/cases.md").read_text(encoding="utf-8")
ROW = re.compile(r"^\| (\d+) \| [^|]+ \| ((?:`[\w/]+\.py` ?)+) \|$", re.MULTILINE)
LEFT_OUT = re.compile(r"^\| (\d+(?:, \d+)*) \| [^|`]+ \|$", re.MULTILINE)
# A name of a test, or of its parameters; one test may show two cases: test_case_33_and_34_…
NAME = re.compile(r"(?:test_)?case[-_](\d+)(?:_and_(\d+))?(?=[-_])")
PROMISED = set(range(1, 95))


def names_in_file(file: Path) -> Iterator[str]:
    """The names of the tests in a file, and the texts that may name parameters of them."""
    for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
        if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)) and node.name.startswith("test_"):
            yield node.name
        elif isinstance(node, ast.Constant) and isinstance(node.value, str):
            yield node.value


@functools.cache
def cases(file: Path) -> set[int]:
    """The numbers of the cases that the tests of a file show."""
    if not (file.is_file() and "case" in file.read_text(encoding="utf-8")):
        return set()
    matches = (NAME.match(f"{name}-") for name in names_in_file(file))
    return {int(number) for match in matches if match for number in match.groups() if number}


NAMED = [(int(number), re.findall(r"`([^`]+)`", files)) for number, files in ROW.findall(PAGE)]
EXCUSED = {int(number) for numbers in LEFT_OUT.findall(PAGE) for number in numbers.split(", ")}


@pytest.mark.parametrize(
    ("number", "files"), NAMED, ids=lambda value: str(value) if isinstance(value, int) else ""
)
def test_a_case_is_shown_where_the_page_says(number: int, files: list[str]) -> None:
    missing = [file for file in files if number not in cases(TESTS / file)]
    assert not missing, f"no test of case {number} in {missing}"


def test_every_case_stands_on_the_page_once() -> None:
    numbers = [number for number, _ in NAMED]
    assert numbers == sorted(set(numbers))
    assert not EXCUSED & set(numbers)
    assert EXCUSED | set(numbers) == set(range(1, 95))


def test_every_promised_case_has_a_test() -> None:
    assert not PROMISED - {number for number, _ in NAMED}


def test_every_tested_case_is_named() -> None:
    output = set().union(*map(cases, TESTS.rglob("test_*.py")))
    assert output == {number for number, _ in NAMED}
