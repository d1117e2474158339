"""`loradex.run_study` and `report_study` on a study of a small model."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

import loradex
from catalog.errors import NotFoundError, UsageError
from tests.studies.small import TEXT, make_world

pytestmark = pytest.mark.filterwarnings("ignore:.is_gradient_checkpointing. is deprecated:FutureWarning")


@pytest.fixture
def file(tmp_path: Path) -> Path:
    """A study of one seed and one task whose rates all diverge, so that it is quick."""
    path = make_world(tmp_path / "world")
    text = TEXT.format(base=path.parent / "base").replace("seeds: [0, 1]", "seeds: [0]")
    text = text.replace("names: [halves, thirds]", "names: [halves]").replace("[1e-3, 1e-2]", "[1e30, 1e35]")
    path.write_text(text)
    return path


@pytest.mark.slow
def test_a_study_is_counted_run_and_reported(file: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    plan = loradex.StudyRequest(file, out).plan()
    assert (plan.done, sum(plan.kinds.values())) == (0, plan.steps)
    assert not out.exists()
    events: list[loradex.ProgressEvent] = []
    outcome = loradex.run_study(file, out, progress=events.append)
    assert outcome.done + outcome.failed + outcome.missing == plan.cells
    assert outcome.failed == 3
    notes = [event.note for event in events if event.note]
    assert [note for note in notes if note.startswith("failed: ")] == [f"failed: {e}" for e in outcome.errors]
    assert notes[0].startswith("time not known before a first step of each kind")
    assert len((out / "results.jsonl").read_text().splitlines()) == plan.cells
    report = loradex.report_study(out)
    assert Path(report.page).is_file()
    assert Path(report.markdown).is_file()
    assert json.loads((out / "summary.json").read_text())


def test_arguments_that_do_not_fit_are_refused(file: Path, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="`workers` and `gpu_share` belong to Ray"):
        loradex.run_study(file, tmp_path / "out", workers=2)
    with pytest.raises(NotFoundError, match="Study nothing not found"):
        loradex.run_study("nothing", tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_the_studies_that_come_along_are_rows() -> None:
    rows = loradex.built_in_studies()
    assert "small" in [row.study for row in rows]
    assert all(row.title for row in rows)
