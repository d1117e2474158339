"""Runs docs/tour.ipynb against the sample Hub: `python -m tools.tour` writes its outputs.

The notebook is run in a folder of its own that has data/tasks, as the root of a checkout has; HF_ENDPOINT
names the sample Hub. `tests/tools/test_tour.py` compares the outputs, but for the cells tagged "model" at the
end, which take minutes.
"""

from __future__ import annotations

import os
import tempfile
from contextlib import ExitStack
from pathlib import Path
from unittest import mock

import nbformat
from nbclient import NotebookClient

from crawler.localhub import LocalHub

ROOT = Path(__file__).parents[1]
TOUR = ROOT / "docs" / "tour.ipynb"
SECONDS = 600
MODEL = "model"


def run_tour(folder: Path, *, model: bool) -> nbformat.NotebookNode:
    """The notebook with the outputs of a run in this folder; without `model` up to the cells tagged so.

    Raises CellExecutionError where a cell fails.
    """
    (folder / "data").mkdir()
    (folder / "data" / "tasks").symlink_to(ROOT / "data" / "tasks")
    notebook = nbformat.read(TOUR, as_version=4)
    if not model:
        tagged = [MODEL in cell.metadata.get("tags", ()) for cell in notebook.cells]
        notebook.cells = notebook.cells[: tagged.index(True)]
    with ExitStack() as stack:
        hub = stack.enter_context(LocalHub(ROOT / "data" / "sample_hub"))
        paths = os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])
        stack.enter_context(mock.patch.dict(os.environ, {"HF_ENDPOINT": hub.url, "PYTHONPATH": paths}))
        client = NotebookClient(
            notebook,
            timeout=SECONDS,
            resources={"metadata": {"path": str(folder)}},
            record_timing=False,
            extra_arguments=["--log-level=ERROR"],
        )
        client.execute()
    for cell in notebook.cells:
        if cell.cell_type == "code":
            # Warnings name files of this machine.
            cell.outputs = [output for output in cell.outputs if output.get("name") != "stderr"]
    return notebook


def main() -> None:
    """Writes the notebook."""
    with tempfile.TemporaryDirectory() as folder:
        nbformat.write(run_tour(Path(folder), model=True), TOUR)


if __name__ == "__main__":
    main()
