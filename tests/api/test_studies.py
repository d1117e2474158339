"""`loradex.run_study` and `report_study` on a study of a small model."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest

import loradex
from catalog.errors import NotFoundError, UsageError
from loradex import StudyPlan
from loradex.studies import SmallPool
from studies.pricing import LOCAL_MODEL, StudyPrice
from tests.studies.small import TEXT, make_world

ESTIMATE = (
    "to have it estimated before: `loradex doctor --base 'my models/tiny' --json > doctor.json` on the "
    "machine that is to do it, then count the study with --dry-run --doctor doctor.json"
)
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
    assert notes[1].startswith("to have it estimated before: ")
    assert len((out / "results.jsonl").read_text().splitlines()) == plan.cells
    report = loradex.report_study(out)
    assert Path(report.page).is_file()
    assert Path(report.markdown).is_file()
    assert json.loads((out / "summary.json").read_text())


@pytest.mark.parametrize(
    ("plan", "sentences"),
    [
        (
            StudyPlan(9, 9, 0, {}, unmeasured={"merge": 1, "train": 1_000}, base="my models/tiny"),
            [
                "time not known before a first step of each kind is done: 1 merge, 1,000 train",
                ESTIMATE,
            ],
        ),
        # A report of doctor would not tell what these take.
        (
            StudyPlan(9, 9, 0, {}, unmeasured={"cards": 1, "merge": 2, "pool": 3}, base="b"),
            ["time not known before a first step of each kind is done: 1 cards, 2 merge, 3 pool"],
        ),
        (
            StudyPlan(9, 9, 8, {}, seconds_left=60.0, measured=1, base="b"),
            ["about 60 s left here on one process, by 1 step done here"],
        ),
        (
            StudyPlan(9, 9, 0, {}, price=StudyPrice("A card", "b", {"train": 2.0}, {"merge": 1}), base="b"),
            ["about 2.0 h on A card with b, by its doctor report: train 2.0 h", "not priced: 1 merge"],
        ),
        (
            StudyPlan(9, 9, 0, {}, price=StudyPrice("A card", "small", {"train": 2.0}, {}), base="large"),
            [
                "about 2.0 h on A card with small, by its doctor report: train 2.0 h",
                "the study asks large, for which small may be too fast or too slow",
            ],
        ),
        (
            StudyPlan(
                9,
                9,
                0,
                {},
                price=StudyPrice("A card", "b", {"train": 2.0}, {}, "float32"),
                base="b",
                dtype="bfloat16",
            ),
            [
                "about 2.0 h on A card with b, by its doctor report: train 2.0 h",
                "the study asks b in bfloat16, for which float32 may be too fast or too slow",
            ],
        ),
        (
            StudyPlan(9, 9, 0, {}, price=StudyPrice("A card", LOCAL_MODEL, {"train": 2.0}, {}), base="large"),
            ["about 2.0 h on A card with a local folder, by its doctor report: train 2.0 h"],
        ),
        (
            StudyPlan(9, 9, 9, {}, price=StudyPrice("A card", "small", {}, {}), base="large"),
            ["no step is left that is priced by a doctor report"],
        ),
        (
            StudyPlan(
                9, 9, 9, {}, small_pools=(SmallPool("a", 3, 1), SmallPool("b", 3, 2), SmallPool("b", 20, 2))
            ),
            [
                "pools of 3 have 1 to 2 members on 2 tasks, since there are no more to choose from",
                "pools of 20 have 2 members on 1 task, since there are no more to choose from",
            ],
        ),
    ],
)
def test_a_plan_says_what_time_it_takes_or_how_to_know(plan: StudyPlan, sentences: list[str]) -> None:
    assert plan.sentences() == sentences


def test_a_plan_says_which_pools_will_be_smaller_than_their_k(tmp_path: Path) -> None:
    path = make_world(tmp_path / "world")
    path.write_text(path.read_text().replace("{by: random, k: 2}", "{by: random, k: 4}"))
    plan = loradex.StudyRequest(path, tmp_path / "out").plan()
    # One of the four adapters was trained on this task and is left out, with either seed.
    assert plan.small_pools == (SmallPool("thirds", 4, 3),) * 2
    sentence = "pools of 4 have 3 members on 1 task, since there are no more to choose from"
    assert plan.sentences()[-1] == sentence
    path.write_text(path.read_text().replace("{by: random, k: 4}", "{by: all, k: 4}"))
    assert loradex.StudyRequest(path, tmp_path / "out").plan().small_pools == ()


def test_folders_may_be_texts(file: Path, tmp_path: Path) -> None:
    study = loradex.StudyRequest(str(file), str(tmp_path / "out"), tasks=str(file.parent / "tasks"))
    assert study.plan() == loradex.StudyRequest(file, tmp_path / "out").plan()


def test_arguments_that_do_not_fit_are_refused(file: Path, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="`workers` and `gpu_share` belong to Ray"):
        loradex.run_study(file, tmp_path / "out", workers=2)
    for name, number in (("threads", 0), ("threads", 10**30), ("workers", 0), ("gpu_share", math.nan)):
        with pytest.raises(UsageError, match=f"`{name}` must be"):
            loradex.StudyRequest(file, tmp_path / "out", ray=True, **{name: number}).plan()  # type: ignore[arg-type]
    with pytest.raises(UsageError, match="A study is of one kind of `device`"):
        loradex.run_study(file, tmp_path / "out", device="auto")
    with pytest.raises(NotFoundError, match="Study nothing not found"):
        loradex.run_study("nothing", tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_the_studies_that_come_along_are_rows() -> None:
    rows = loradex.built_in_studies()
    assert "small" in [row.study for row in rows]
    assert all(row.title for row in rows)
