"""Pools of the new LoRAs that a study trains on its other tasks, and the data type of its base."""

from __future__ import annotations

import contextlib
import json
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

pytest.importorskip("peft")

import loradex
from catalog.errors import MemoryLimitError, UsageError
from merging.evaluation import measure
from merging.learning import train
from merging.live import LiveStack
from merging.members import load_member
from merging.model import budget, draw, load_base, read_task
from merging.static import carry_out, plan
from studies.design import Study
from studies.file import read_study
from studies.grid import Grid, GridCell, _GridBuilder
from studies.pricing import work_of
from studies.record import FACTS, RESULTS
from studies.run import Ray, run
from studies.steps import KINDS, Job, _load_once
from studies.store import LOG, Place, Step, pending_steps
from tests.merging.tiny import write_task
from tests.studies.grids import check_refusal, keys, make_study, rows_of
from tests.studies.small import ROWS, make_world

# PEFT 0.21 asks a model of transformers 5.23 for an attribute by its old name.
pytestmark = pytest.mark.filterwarnings("ignore:.is_gradient_checkpointing. is deprecated:FutureWarning")

TASKS = {name: SimpleNamespace(name=name, digest=name, group="g", metric="accuracy") for name in "abcdef"}
TEXT = """\
study: tiny
title: Recycling what the study trains
base: {base}
tasks: {{from: tasks, names: [halves, thirds, fourths], train: 4, valid: 2, test: 6}}
pools:
  others: {{by: training, method: new LoRA}}
  one: {{by: training, method: new LoRA, k: 1}}
  noise: {{by: training, method: new LoRA, control: random-each}}
methods:
  base: {{use: base}}
  new LoRA: {{use: train, rank: 2, steps: 2, batch: 2, learning_rates: [1e-3, 1e-2]}}
  average: {{use: merge, method: average, pools: [others, noise]}}
  first: {{use: single, pools: [one]}}
  both: {{use: ensemble, pools: [others]}}
  recycling: {{use: adapt, method: recycling, with: new LoRA, steps: 2, pools: [others, noise]}}
report:
  against: new LoRA
  figures: [gains]
  claims:
    - {{claim: it helps, compare: recycling | others, with: new LoRA}}
"""


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = make_world(tmp_path_factory.mktemp("world"))
    shutil.rmtree(path.parent / "adapters")
    write_task(path.parent / "tasks" / "fourths", [(text.upper(), target) for text, target in ROWS])
    path.write_text(TEXT.format(base=path.parent / "base"))
    return path


@pytest.fixture(scope="module")
def out(world: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("trainings") / "out"
    outcome = run(*make_study(world, folder))
    assert (outcome.failed, outcome.missing) == (0, 0)
    return folder


def _cells(
    tasks: Sequence[str] = tuple(TASKS), *, method: Mapping[str, Any] | None = None, **pool: Any
) -> list[GridCell]:
    study = Study.model_validate(
        {
            "study": "s",
            "title": "T",
            "base": "org/base",
            "tasks": {},
            "seeds": [0, 1],
            "pools": {"others": {"by": "training", "method": "new", **pool}},
            "methods": {
                "new": {"use": "train", "learning_rates": [1e-4, 1e-3], **(method or {})},
                "average": {"use": "merge", "method": "average"},
            },
        }
    )
    some = {name: TASKS[name] for name in tasks}
    return list(_GridBuilder(study, some, {}, {"name": "org/base"}).cells())  # type: ignore[arg-type]


def _pools(cells: Sequence[GridCell]) -> dict[tuple[str, int], Step]:
    """The step that chooses the pool, by task and seed."""
    return {(cell.task, cell.seed): cell.about[0] for cell in cells if cell.pool}


def test_members_are_the_trainings_of_the_other_tasks_with_the_same_seed() -> None:
    cells = _cells()
    made = {(cell.task, cell.seed): cell.step.inputs["adapter"] for cell in cells if cell.method == "new"}
    for (task, seed), pool in _pools(cells).items():
        assert set(pool.inputs) == set(TASKS) - {task}
        assert all(step is made[other, seed] for other, step in pool.inputs.items())


def test_members_are_drawn_by_the_task_and_the_seed() -> None:
    drawn = _pools(_cells(k=2))
    for (task, _), pool in drawn.items():
        assert len(pool.params["tasks"]) == 2
        assert task not in pool.params["tasks"]
    assert len({tuple(pool.params["tasks"]) for pool in drawn.values()}) > 2
    again = _pools(_cells(k=2))
    assert {place: pool.key for place, pool in drawn.items()} == {p: pool.key for p, pool in again.items()}
    first = drawn["a", 0]
    reverse = Step("trainings", {"tasks": first.params["tasks"][::-1]}, first.inputs)
    assert reverse.key != first.key, "the first member is the first alone"


def test_trainings_are_of_the_tasks_that_the_method_is_asked_on() -> None:
    for (task, _), pool in _pools(_cells(method={"tasks": ["a", "c"]})).items():
        assert sorted(pool.params["tasks"]) == [name for name in "ac" if name != task]


@pytest.mark.parametrize("case", [{"tasks": ["a"]}, {"method": {"tasks": ["a"]}}])
def test_a_pool_without_other_tasks_is_refused(case: dict[str, Any]) -> None:
    with pytest.raises(UsageError, match="on a has no members, since new trains on no other task"):
        _cells(**case)


def test_a_k_that_takes_all_is_no_k() -> None:
    every, five, nine, four = (
        [pool.key for pool in _pools(_cells(**case)).values()] for case in ({}, {"k": 5}, {"k": 9}, {"k": 4})
    )
    assert every == five == nine != four


def test_scores_are_those_of_the_library_asked_directly(world: Path, out: Path, tmp_path: Path) -> None:
    rows = {(row["task"], row["method"], row["pool"]): row for row in rows_of(out)}
    base = load_base(str(world.parent / "base"))
    task = read_task(world.parent / "tasks" / "thirds")
    questions = draw(task, "test", 6)
    members = []
    order = rows["thirds", "average", "others"]["detail"]["members"]
    assert sorted(order) == ["fourths", "halves"]
    for name in order:
        other = read_task(world.parent / "tasks" / name)
        train(
            base,
            other,
            budget(other, 6, seed=0, valid=2 / 6),
            tmp_path / name,
            rank=2,
            alpha=2.0,
            targets="all-linear",
            steps=2,
            batch=2,
            learning_rates=[1e-3, 1e-2],
            seed=0,
        )
        members.append(load_member(tmp_path / name))
    carry_out(plan(members, "average", seed=0, dtype="float32"), tmp_path / "merged")
    live = LiveStack(base.model, [load_member(tmp_path / "merged")])
    with live.dense(live.scales_of([1.0])):
        result = measure(base, task, questions)
    row = rows["thirds", "average", "others"]
    assert (row["value"], row["loss"]) == (result.value, result.loss)
    one = rows["thirds", "first", "one"]
    chosen = one["detail"]["members"]
    assert len(chosen) == 1
    live = LiveStack(base.model, [members[order.index(chosen[0])]])
    with live.dense(live.scales_of([1.0])):
        assert one["loss"] == measure(base, task, questions).loss
    assert rows["thirds", "average", "noise"]["loss"] != row["loss"]


# One reads the LoRA of another task; the other reads those of two, and the best of two trainings of its own.
LABELS = pytest.mark.parametrize("label", ["first | one", "recycling | others"])


def _folder_without_a_cell(
    world: Path, out: Path, tmp_path: Path, label: str
) -> tuple[Path, Grid, GridCell, set[str]]:
    """A folder with the log of a whole run but for one cell, and the keys of the trainings that it needs."""
    folder = tmp_path / "out"
    folder.mkdir()
    _, grid = make_study(world, folder)
    cell = next(cell for cell in grid.cells if (cell.task, cell.label) == ("halves", label))
    lines = [line for line in (out / LOG).read_text().splitlines(keepends=True) if cell.step.key not in line]
    (folder / LOG).write_text("".join(lines))
    results = [grid.place.result(step) or {} for step in (cell.about[0], *cell.step.inputs.values())]
    return folder, grid, cell, {key for result in results for key in grid.place.absent_makers(result)}


@LABELS
def test_a_log_goes_on_with_the_trainings_that_a_missing_cell_needs(
    world: Path, out: Path, tmp_path: Path, label: str
) -> None:
    folder, grid, cell, makers = _folder_without_a_cell(world, out, tmp_path, label)
    *first, last = [step.key for step in pending_steps(grid.place, grid.steps)]
    assert (set(first), last) == (makers, cell.step.key)
    assert len(first) == {"first | one": 1, "recycling | others": 3}[label]
    outcome = run(*make_study(world, folder))
    assert (outcome.failed, outcome.missing) == (0, 0)
    assert (folder / RESULTS).read_bytes() == (out / RESULTS).read_bytes()


def test_the_report_has_a_row_for_each_pool(out: Path) -> None:
    text = Path(loradex.report_study(out).markdown).read_text()
    for row in ("average \\| others", "first \\| one", "recycling \\| noise"):
        assert f"| {row} |" in text
    assert "data type" not in text


def test_pools_that_are_smaller_than_asked_for_are_said(world: Path, tmp_path: Path) -> None:
    path = world.parent / "few.yaml"
    path.write_text(world.read_text().replace("k: 1}", "k: 3}"))
    plan_of_study = loradex.StudyRequest(path, tmp_path / "out").plan()
    assert {(pool.k, pool.members) for pool in plan_of_study.small_pools} == {(3, 2)}
    assert any("pools of 3 have 2 members on 3 tasks" in line for line in plan_of_study.sentences())


def test_an_ensemble_of_trainings_is_priced_by_its_members(world: Path, tmp_path: Path) -> None:
    tasks = {"pool": world.parent / "tasks" / "halves"}
    place = Place(tmp_path, "no/model", None, "cpu", 1, tasks, {})
    trained = {name: Step("train", {"n": name}) for name in ("pool", "more")}
    params = {"task": {"name": "pool"}, "test": 6}
    one = work_of(place, Step("score", params))
    assert one is not None
    pool = Step("trainings", {"tasks": list(trained)}, trained)
    for members in (pool, Step("stand-ins", {}, {"pool": pool})):
        assert work_of(place, Step("ensemble", params, {"pool": members})) == one.times(2)
    # A task that is called as an input is.
    prior = Step("pool", {"k": 3}, {"pool": Step("measured", {"adapters": []})})
    assert work_of(place, Step("ensemble", params, {"pool": prior})) == one.times(3)


@pytest.mark.parametrize(
    ("old", "new", "line", "words"),
    [
        ("k: 1}", "k: 0}", 7, "greater than or equal to 1"),
        (", method: new LoRA, k: 1}", "}", 7, "name it by method"),
        ("method: new LoRA, k: 1}", "method: base, k: 1}", 7, "must name a method that trains; there is new"),
        ("method: new LoRA, k: 1}", "method: more, k: 1}", 7, "must name a method that trains; there is new"),
        ("k: 1}", "k: 1, own: first}", 7, "has new LoRAs of the other tasks; remove own"),
        ("k: 1}", "k: 1, among: [halves]}", 7, "remove among"),
        ("k: 1}", "k: 1, samples: 3}", 7, "remove samples"),
        ("by: training, method: new LoRA, k: 1", "by: random, k: 1", 7, "give their folder by adapters"),
        (
            "by: training, method: new LoRA, k: 1",
            "by: random, method: new LoRA, k: 1",
            7,
            "remove it from one",
        ),
        ("batch: 2,", "batch: 2, over: {{rank: [1, 2]}},", 6, "name a method with one"),
        ("batch: 2,", "batch: 2, variant: dora,", 6, "new LoRA trains dora, which no merge holds"),
        ("figures: [gains]", "figures: [gains, relevance]", 18, "pools by training have no relevance"),
        ("pools:\n", "sets: {{size: 2}}\npools:\n", 5, "sets are drawn from adapters"),
        ("pools:\n", "adapters: {{from: a}}\nsets: {{size: 2}}\npools:\n", 8, "give one by set"),
        ("base: {base}", "base: {base}\ndtype: 4bit", 4, "'float32', 'bfloat16' or 'float16'"),
    ],
)
def test_what_makes_no_sense_is_said_with_its_line(
    tmp_path: Path, old: str, new: str, line: int, words: str
) -> None:
    assert TEXT.count(old) == 1
    check_refusal(tmp_path, TEXT.replace(old, new).format(base="some/base"), line, words)


def _in(dtype: str, world: Path) -> Path:
    """The study with a data type of its own."""
    path = world.parent / f"{dtype}.yaml"
    path.write_text(world.read_text().replace("tasks: {", f"dtype: {dtype}\ntasks: {{", 1))
    return path


def test_the_base_has_the_data_type_of_the_study(world: Path, out: Path, tmp_path: Path) -> None:
    path = _in("bfloat16", world)
    file, grid = make_study(path, tmp_path / "out")
    assert not set(keys(path, tmp_path / "out").values()) & set(keys(world, tmp_path / "out").values())
    place = grid.place
    assert str(_load_once(place.base, place.bases, place.device, place.dtype).dtype) == "torch.bfloat16"
    outcome = run(file, grid)
    assert (outcome.failed, outcome.missing) == (0, 0)
    facts = json.loads((tmp_path / "out" / FACTS).read_text())
    assert facts["base"]["dtype"] == facts["study"]["dtype"] == "bfloat16"
    text = Path(loradex.report_study(tmp_path / "out").markdown).read_text()
    assert "| data type | bfloat16 |" in text
    losses = [
        (row["loss"], whole["loss"])
        for row, whole in zip(rows_of(tmp_path / "out"), rows_of(out), strict=True)
    ]
    assert all(half != pytest.approx(whole, abs=1e-9) for half, whole in losses)
    assert all(half == pytest.approx(whole, rel=0.2) for half, whole in losses)


def test_a_record_of_a_study_without_them_stays_the_same(world: Path, tmp_path: Path) -> None:
    document = make_study(world, tmp_path / "out")[0].study.model_dump(mode="json", by_alias=True)
    assert "dtype" not in document
    (tmp_path / "chance.yaml").write_text(
        "study: s\ntitle: T\nbase: b\ntasks: {}\nadapters: {}\n"
        "pools: {chance: {by: random, k: 1}}\nmethods: {first: {use: single}}\n"
    )
    chance = read_study(str(tmp_path / "chance.yaml")).study
    assert "method" not in chance.model_dump(mode="json", by_alias=True)["pools"]["chance"]


class _Eager:
    """Ray, as far as a study uses it: a step is carried out when its reference is waited for, and those that
    it was given before it; later ones first, as where many workers are free."""

    def __init__(self) -> None:
        self.order: list[str] = []

    def remote(self, **_: Any) -> Any:
        return lambda function: SimpleNamespace(remote=lambda *words: _Reference(self, function, words))

    def cluster_resources(self) -> dict[str, float]:
        return {"CPU": 100.0}

    def wait(self, waiting: list[Any]) -> tuple[list[Any], list[Any]]:
        return [waiting[-1]], waiting[:-1]

    def get(self, reference: Any) -> str | None:
        outcome: str | None = reference.carry_out()
        return outcome


class _Reference:
    def __init__(self, ray: _Eager, function: Any, words: tuple[Any, ...]) -> None:
        self.ray, self.function, self.words = ray, function, words
        self.outcomes: list[str | None] = []

    def carry_out(self) -> str | None:
        if not self.outcomes:
            place, step, *needs = self.words
            outcomes = [need.carry_out() for need in needs]
            self.ray.order.append(step.key)
            self.outcomes.append(self.function(place, step, *outcomes))
        return self.outcomes[0]


@LABELS
def test_a_log_goes_on_with_ray_that_waits_for_the_trainings(
    world: Path, out: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, label: str
) -> None:
    ray = _Eager()
    monkeypatch.setattr("studies.run.connect_ray", lambda *_: contextlib.nullcontext(ray))
    monkeypatch.setattr("studies.run.require_extra", lambda *_: None)
    folder, grid, cell, makers = _folder_without_a_cell(world, out, tmp_path, label)
    outcome = run(read_study(str(world)), grid, executor=Ray(workers=2))
    assert (outcome.failed, outcome.missing) == (0, 0)
    assert (set(ray.order[:-1]), ray.order[-1]) == (makers, cell.step.key)
    assert (folder / RESULTS).read_bytes() == (out / RESULTS).read_bytes()


@LABELS
def test_a_training_that_fails_anew_is_why_a_cell_fails(
    world: Path, out: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, label: str
) -> None:
    def fail(_job: Job) -> dict[str, Any]:
        raise MemoryLimitError("A new LoRA does not fit into memory.")

    monkeypatch.setattr("studies.run.KINDS", {**KINDS, "train": fail})
    _, grid, _, _ = _folder_without_a_cell(world, out, tmp_path, label)
    outcome = run(read_study(str(world)), grid)
    assert (outcome.failed, outcome.errors) == (1, ("A new LoRA does not fit into memory.",))


def test_the_default_data_type_is_the_same_study(world: Path, tmp_path: Path) -> None:
    path = _in("float32", world)
    assert keys(path, tmp_path / "out") == keys(world, tmp_path / "out")


def test_how_to_estimate_a_study_names_its_data_type(world: Path, tmp_path: Path) -> None:
    path = _in("bfloat16", world)
    plan_of_study = loradex.StudyRequest(path, tmp_path / "out").plan()
    assert any(" --dtype bfloat16 --json" in line for line in plan_of_study.sentences())
