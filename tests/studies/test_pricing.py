"""Hours of a study on another machine: tokens counted by hand, and what is not priced is named."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

import loradex
from catalog.errors import UsageError
from studies.pricing import Speed, Work, price, read_speed, work_of
from studies.store import Place, Step
from tests.merging.tiny import write_task

DOCTOR = {
    "format": "loradex-doctor/1",
    "machine": {"name": "A card", "processor": "x86_64", "threads": 4},
    "model": {"name": "org/model"},
    "measures": {
        "read_tokens_per_second": 1000.0,
        "generated_tokens_per_second": 100.0,
        "step_tokens": 800,
        "step_seconds": 2.0,
    },
}
# Four bytes of an instruction and eight of a question are 1 + 2 tokens, with 24 of the template; answers
# of three and two bytes, with their end, 1.75 and 1.5.
QUESTION = 27.0


@pytest.fixture
def place(tmp_path: Path) -> Place:
    """One task whose examples are all alike, and nothing else."""
    write_task(tmp_path / "tasks" / "halves", [("item 123", "yes")] * 24, instruction="Say.")
    tasks = {"halves": tmp_path / "tasks" / "halves"}
    return Place(tmp_path / "out", "no/model", None, "cpu", 1, tasks, {})


@pytest.fixture
def doctor(tmp_path: Path) -> Path:
    """A report of another machine."""
    path = tmp_path / "doctor.json"
    path.write_text(json.dumps(DOCTOR))
    return path


def _step(kind: str, **params: object) -> Step:
    return Step(kind, {"task": {"name": "halves"}, **params}, {})


def _chosen(place: Place) -> float:
    """Tokens of all choices of a question."""
    work = work_of(place, _step("score", test=1))
    assert work is not None
    return work.read - QUESTION


def test_a_score_reads_its_questions_and_generates_its_answers(place: Place) -> None:
    read = work_of(place, _step("score", test=6))
    assert read == Work(read=6 * (QUESTION + 1.75 + 1.5)), "the choices are yes and no"
    assert work_of(place, _step("score", test=6, protocol="recycling-paper")) == Work(
        read=6 * QUESTION, generated=6 * 1.75
    )


def test_every_adapter_and_the_base_are_measured(place: Place) -> None:
    budget = {"train": 4, "valid": 2, "seed": 0}
    adapters = [{"name": "a"}, {"name": "b"}]
    work = work_of(place, _step("measured", budget=budget, adapters=adapters))
    assert work == Work(read=3 * 6 * (QUESTION + _chosen(place)))
    fewer = work_of(place, _step("measured", budget=budget, adapters=adapters, samples=2))
    assert fewer == Work(read=3 * 2 * (QUESTION + _chosen(place)))


def test_a_training_learns_from_its_batches_and_reads_the_validation(place: Place) -> None:
    budget = {"train": 4, "valid": 2, "seed": 0}
    settings = {"steps": 20, "batch": 8}
    work = work_of(place, _step("train", budget=budget, settings=settings, learning_rate=1e-3))
    # Before it, and after ten and twenty steps.
    assert work == Work(read=3 * 2 * 28.75, learned=20 * 8 * 28.75)


def test_an_adaptive_merge_learns_or_tries_or_only_answers(place: Place) -> None:
    budget = {"train": 4, "valid": 2, "seed": 0}

    def of(method: str) -> Work:
        work = work_of(place, _step("adapt", budget=budget, method=method, settings={"steps": 10}, test=6))
        assert work is not None
        return work

    test = 6 * (QUESTION + _chosen(place))
    assert of("recycling") == Work(read=test + 2 * 2 * 28.75, learned=10 * 8 * 28.75)
    assert of("lorahub") == Work(read=test + 10 * 6 * 28.75)
    plain = work_of(place, _step("adapt", budget=budget, method="average", settings={}, test=6))
    assert plain == Work(read=test), "an average learns nothing"


def test_an_ensemble_asks_every_member_of_its_pool(place: Place) -> None:
    pool = Step("pool", {"k": 3, "adapters": [{}] * 5}, {})
    stands = Step("stand-ins", {}, {"pool": pool})
    one = work_of(place, _step("score", test=6))
    assert one is not None
    for members in (pool, stands):
        params = {"task": {"name": "halves"}, "test": 6}
        assert work_of(place, Step("ensemble", params, {"pool": members})) == one.times(3)


def test_steps_become_hours_and_others_are_named(place: Place, doctor: Path) -> None:
    speed = read_speed(doctor)
    assert speed == Speed("A card", "org/model", 1000.0, 100.0, 400.0)
    steps = [
        _step("score", test=6, protocol="recycling-paper"),
        Step("merge", {}, {}),
        Step("pick", {}, {}),
    ]
    found = price(place, steps, speed)
    assert found.hours == {"score": pytest.approx((6 * QUESTION / 1000 + 6 * 1.75 / 100) / 3600)}
    assert found.unpriced == {"merge": 1}


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"format": "other"}, "is not a report of doctor"),
        ({"measures": {}}, "has no read_tokens_per_second; run `loradex doctor` again"),
        ({"measures": {**DOCTOR["measures"], "step_seconds": 0}}, "has no step_seconds"),
        ({"measures": {**DOCTOR["measures"], "step_seconds": True}}, "has no step_seconds"),
        ({"measures": [1]}, "has no read_tokens_per_second"),
    ],
)
def test_other_files_are_refused(doctor: Path, change: dict[str, object], sentence: str) -> None:
    doctor.write_text(json.dumps({**DOCTOR, **change}))
    with pytest.raises(UsageError, match=sentence):
        read_speed(doctor)


@pytest.mark.parametrize("text", ["", "{", "[]", "1" * 5000])
def test_files_that_are_no_report_are_refused(doctor: Path, text: str) -> None:
    doctor.write_text(text)
    with pytest.raises(UsageError):
        read_speed(doctor)


@pytest.mark.parametrize("name", [row.study for row in loradex.built_in_studies()])
def test_every_study_that_comes_along_is_found_by_its_name(name: str) -> None:
    from studies.file import read_study

    assert read_study(name).study.title
