"""The grid of a study's file, and the keys of its cells; imports no model."""

from __future__ import annotations

from pathlib import Path

from studies.design import Study
from studies.file import StudyFile, read_study
from studies.grid import Grid, grid


def make_study(path: Path, out: Path) -> tuple[StudyFile, Grid]:
    """A study's file read, and its grid with the work in `out`."""
    file = read_study(str(path))
    assert isinstance(file.study, Study)
    return file, grid(file.study, file.folder, out)


def keys(path: Path, out: Path) -> dict[tuple[object, ...], str]:
    """The key of every cell by what it is called."""
    cells = make_study(path, out)[1].cells
    return {(cell.task, cell.seed, cell.label): cell.step.key for cell in cells}
