"""The notebook runs against the sample Hub, and shows what it prints."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import nbformat
import pytest

from tools.tour import TOUR, run_tour

RENEW = "run `python -m tools.tour` to write it"
pytestmark = pytest.mark.slow


def texts(notebook: nbformat.NotebookNode) -> Iterator[tuple[str, list[str]]]:
    """Each cell of code with its outputs as text."""
    for cell in notebook.cells:
        if cell.cell_type == "code":
            yield cell.source, [output.get("text") or output.data["text/plain"] for output in cell.outputs]


def test_the_notebook_shows_what_it_prints(tmp_path: Path) -> None:
    assert list(texts(run_tour(tmp_path))) == list(texts(nbformat.read(TOUR, as_version=4))), RENEW
