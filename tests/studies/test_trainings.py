"""Pools of the new LoRAs that a study trains on its other tasks, and the data type of its base."""

from __future__ import annotations

import contextlib
import json
import shutil
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
from tests.studies.grids import keys, make_study
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
    folder = tmp_path_factory.mktemp("trained") / "out"
    outcome = run(*make_study(world, folder))
    assert (outcome.failed, outcome.missing) == (0, 0)
    return folder


def _rows(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / RESULTS).read_text().splitlines()]


def _cells(*, method: dict[str, Any] | None = None, **pool: Any) -> list[GridCell]:
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
    return list(_GridBuilder(study, TASKS, {}, {"name": "org/base"}).cells())  # type: ignore[arg-type]


def test_members_are_the_trainings_of_the_other_tasks_with_the_same_seed() -> None:
    cells = _cells()
    trained = {(cell.task, cell.seed): cell.step.inputs["adapter"] for cell in cells if cell.method == "new"}
    for cell in (cell for cell in cells if cell.pool):
        pool = cell.step.inputs["adapter"].inputs["pool"]
        assert set(pool.inputs) == set(TASKS) - {cell.task}
        assert all(step is trained[task, cell.seed] for task, step in pool.inputs.items())


def test_members_are_drawn_by_the_task_and_the_seed() -> None:
    drawn = {
        (cell.task, cell.seed): cell.step.inputs["adapter"].inputs["pool"]
        for cell in _cells(k=2)
        if cell.pool
    }
    for (task, _), pool in drawn.items():
        assert len(pool.params["tasks"]) == 2
        assert task not in pool.params["tasks"]
    assert len({tuple(pool.params["tasks"]) for pool in drawn.values()}) > 2
    again = {(c.task, c.seed): c.step.inputs["adapter"].inputs["pool"] for c in _cells(k=2) if c.pool}
    assert {place: pool.key for place, pool in drawn.items()} == {p: pool.key for p, pool in again.items()}
    first = drawn["a", 0].params
    other_order = Step("trainings", {**first, "tasks": first["tasks"][::-1]}, drawn["a", 0].inputs)
    assert other_order.key != drawn["a", 0].key, "the first member is the first alone"


def test_one_task_alone_has_no_others() -> None:
    study = Study.model_validate(
        {
            "study": "s",
            "title": "T",
            "base": "org/base",
            "tasks": {},
            "pools": {"others": {"by": "training", "method": "new"}},
            "methods": {"new": {"use": "train"}, "first": {"use": "single"}},
        }
    )
    builder = _GridBuilder(study, {"a": TASKS["a"]}, {}, {"name": "org/base"})  # type: ignore[dict-item]
    with pytest.raises(UsageError, match="on a has no members, since new trains on no other task"):
        list(builder.cells())


def test_scores_are_those_of_the_library_asked_directly(world: Path, out: Path, tmp_path: Path) -> None:
    rows = {(row["task"], row["method"], row["pool"]): row for row in _rows(out)}
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


def _folder_without_a_cell(world: Path, out: Path, tmp_path: Path) -> tuple[Path, Grid, GridCell]:
    """A folder with the log of a whole run but for one cell, which needs the LoRA of another task."""
    folder = tmp_path / "out"
    folder.mkdir()
    _, grid = make_study(world, folder)
    cell = next(cell for cell in grid.cells if (cell.task, cell.label) == ("halves", "first | one"))
    lines = [line for line in (out / LOG).read_text().splitlines(keepends=True) if cell.step.key not in line]
    (folder / LOG).write_text("".join(lines))
    return folder, grid, cell


def test_a_log_goes_on_with_the_trainings_that_a_missing_cell_needs(
    world: Path, out: Path, tmp_path: Path
) -> None:
    folder, grid, cell = _folder_without_a_cell(world, out, tmp_path)
    [pool] = [step for step in cell.about if step.kind == "trainings"]
    [member] = (grid.place.result(pool) or {})["members"]
    pending = [step.key for step in pending_steps(grid.place, grid.steps)]
    assert pending == [member["adapter"].partition("/")[0], cell.step.key]
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
        ("figures: [gains]", "figures: [gains, relevance]", 18, "only pools of adapters have a relevance"),
        ("pools:\n", "sets: {{size: 2}}\npools:\n", 5, "sets are drawn from adapters"),
        ("pools:\n", "adapters: {{from: a}}\nsets: {{size: 2}}\npools:\n", 8, "take one by set"),
        ("base: {base}", "base: {base}\ndtype: 4bit", 4, "'float32', 'bfloat16' or 'float16'"),
    ],
)
def test_what_makes_no_sense_is_said_with_its_line(
    tmp_path: Path, old: str, new: str, line: int, words: str
) -> None:
    path = tmp_path / "study.yaml"
    assert TEXT.count(old) == 1
    path.write_text(TEXT.replace(old, new).format(base="some/base"))
    with pytest.raises(UsageError, match=f"study.yaml line {line}: ") as error:
        read_study(str(path))
    assert words in str(error.value)
    assert "\n" not in str(error.value)


def test_the_base_has_the_data_type_of_the_study(world: Path, out: Path, tmp_path: Path) -> None:
    path = world.parent / "half.yaml"
    path.write_text(world.read_text().replace("tasks: {", "dtype: bfloat16\ntasks: {", 1))
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
        (row["loss"], whole["loss"]) for row, whole in zip(_rows(tmp_path / "out"), _rows(out), strict=True)
    ]
    assert all(half != pytest.approx(whole, abs=1e-9) for half, whole in losses)
    assert all(half == pytest.approx(whole, rel=0.2) for half, whole in losses)


def test_a_record_of_a_study_without_them_stays_the_same(world: Path, tmp_path: Path) -> None:
    document = make_study(world, tmp_path / "out")[0].study.model_dump(mode="json", by_alias=True)
    assert "dtype" not in document
    chance = Study.model_validate(
        {
            "study": "s",
            "title": "T",
            "base": "b",
            "tasks": {},
            "adapters": {},
            "pools": {"chance": {"by": "random", "k": 1}},
            "methods": {"first": {"use": "single"}},
        }
    )
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


def test_a_log_goes_on_with_ray_that_waits_for_the_trainings(
    world: Path, out: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ray = _Eager()
    monkeypatch.setattr("studies.run.connect_ray", lambda *_: contextlib.nullcontext(ray))
    monkeypatch.setattr("studies.run.require_extra", lambda *_: None)
    folder, grid, cell = _folder_without_a_cell(world, out, tmp_path)
    outcome = run(read_study(str(world)), grid, executor=Ray(workers=2))
    assert (outcome.failed, outcome.missing) == (0, 0)
    assert ray.order[-1] == cell.step.key
    assert len(ray.order) > 1
    assert (folder / RESULTS).read_bytes() == (out / RESULTS).read_bytes()


def test_a_training_that_fails_anew_is_why_a_cell_fails(
    world: Path, out: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(_job: Job) -> dict[str, Any]:
        raise MemoryLimitError("A new LoRA does not fit into memory.")

    monkeypatch.setattr("studies.run.KINDS", {**KINDS, "train": fail})
    _, grid, _ = _folder_without_a_cell(world, out, tmp_path)
    outcome = run(read_study(str(world)), grid)
    assert (outcome.failed, outcome.errors) == (1, ("A new LoRA does not fit into memory.",))


def test_trainings_are_of_the_tasks_that_the_method_is_asked_on() -> None:
    def members(**method: Any) -> dict[str, list[str]]:
        cells = _cells(method=method)
        return {
            cell.task: cell.step.inputs["adapter"].inputs["pool"].params["tasks"]
            for cell in cells
            if cell.pool and cell.seed == 0
        }

    assert {task: sorted(names) for task, names in members(tasks=["a", "c"]).items()} == {
        task: [name for name in "ac" if name != task] for task in TASKS
    }
    with pytest.raises(UsageError, match="on a has no members, since new trains on no other task"):
        members(tasks=["a"])


def test_a_k_that_takes_all_is_no_k() -> None:
    keys_of = [
        [cell.step.key for cell in _cells(**pool) if cell.pool] for pool in ({}, {"k": 5}, {"k": 9}, {"k": 4})
    ]
    assert keys_of[0] == keys_of[1] == keys_of[2] != keys_of[3]


def test_the_default_data_type_is_the_same_study(world: Path, tmp_path: Path) -> None:
    path = world.parent / "whole.yaml"
    path.write_text(world.read_text().replace("tasks: {", "dtype: float32\ntasks: {", 1))
    assert keys(path, tmp_path / "out") == keys(world, tmp_path / "out")


def test_how_to_estimate_a_study_names_its_data_type(world: Path, tmp_path: Path) -> None:
    path = world.parent / "half.yaml"
    path.write_text(world.read_text().replace("tasks: {", "dtype: bfloat16\ntasks: {", 1))
    plan_of_study = loradex.StudyRequest(path, tmp_path / "out").plan()
    assert any(" --dtype bfloat16 --json" in line for line in plan_of_study.sentences())
