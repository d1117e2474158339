"""The grid of a study's file, the keys of its cells, and its results; imports no model."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest

from catalog.errors import UsageError
from studies.design import Study
from studies.file import StudyFile, read_study
from studies.grid import Grid, grid
from studies.record import RESULTS


def make_study(path: Path, out: Path) -> tuple[StudyFile, Grid]:
    """A study's file read, and its grid with the work in `out`."""
    file = read_study(str(path))
    assert isinstance(file.study, Study)
    return file, grid(file.study, file.folder, out)


def keys(path: Path, out: Path) -> dict[tuple[object, ...], str]:
    """The key of every cell by what it is called."""
    cells = make_study(path, out)[1].cells
    return {(cell.task, cell.seed, cell.label): cell.step.key for cell in cells}


def rows_of(out: Path) -> list[dict[str, Any]]:
    """The lines of the results in a study's folder."""
    return [json.loads(line) for line in (out / RESULTS).read_text().splitlines()]


def check_refusal(folder: Path, text: str, line: int, words: str) -> None:
    """A study with this text is refused in one sentence with its line and these words."""
    path = folder / "study.yaml"
    path.write_text(text)
    with pytest.raises(UsageError) as error:
        read_study(str(path))
    sentence = str(error.value)
    assert re.search(rf"study\.yaml line {line}(: | is not valid YAML: )", sentence)
    assert words in sentence
    assert "\n" not in sentence
    assert sentence.endswith(".")
