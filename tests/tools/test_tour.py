"""The notebook runs against the sample Hub, and shows what it prints."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import nbformat
import pytest

from tools.documents import README
from tools.tour import TOUR, run_tour

RENEW = "run `python -m tools.tour` to write it"
pytestmark = pytest.mark.slow


def texts(notebook: nbformat.NotebookNode) -> Iterator[tuple[str, list[str]]]:
    """Each cell of code with its outputs as text."""
    for cell in notebook.cells:
        if cell.cell_type == "code":
            yield cell.source, [output.get("text") or output.data["text/plain"] for output in cell.outputs]


def test_the_notebook_shows_what_it_prints(tmp_path: Path) -> None:
    shown = list(texts(nbformat.read(TOUR, as_version=4)))
    printed = list(texts(run_tour(tmp_path, model=False)))
    assert len(printed) > 5
    assert printed == shown[: len(printed)], RENEW


def test_the_lines_of_the_readme_are_those_of_the_notebook() -> None:
    [block] = README.read_text(encoding="utf-8").split("```python\n")[1:]
    code = "\n".join(cell.source for cell in nbformat.read(TOUR, as_version=4).cells)
    lines = [line.split("  #")[0].strip() for line in block.split("```")[0].splitlines() if line.strip()]
    assert len(lines) >= 10
    assert [line for line in lines if line not in code] == []
