"""Pools of the new LoRAs that a study trains on its other tasks, and the data type of its base."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

pytest.importorskip("peft")

import loradex
from catalog.errors import UsageError
from merging.evaluation import measure
from merging.learning import train
from merging.live import LiveStack
from merging.members import load_member
from merging.model import budget, draw, load_base, read_task
from merging.static import carry_out, plan
from studies.design import Study
from studies.file import read_study
from studies.grid import GridCell, _GridBuilder
from studies.pricing import work_of
from studies.record import FACTS, RESULTS
from studies.run import run
from studies.steps import _load_once
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
  figures: [gains, relevance]
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


def _cells(**pool: Any) -> list[GridCell]:
    study = Study.model_validate(
        {
            "study": "s",
            "title": "T",
            "base": "org/base",
            "tasks": {},
            "seeds": [0, 1],
            "pools": {"others": {"by": "training", "method": "new", **pool}},
            "methods": {
                "new": {"use": "train", "learning_rates": [1e-4, 1e-3]},
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
    with pytest.raises(UsageError, match="requires new LoRAs of other tasks; name more than one task"):
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


def test_a_log_goes_on_with_the_trainings_that_a_missing_cell_needs(
    world: Path, out: Path, tmp_path: Path
) -> None:
    folder = tmp_path / "out"
    folder.mkdir()
    shutil.copy(out / LOG, folder)
    _, grid = make_study(world, folder)
    assert pending_steps(grid.place, grid.steps) == []
    cell = next(cell for cell in grid.cells if (cell.task, cell.label) == ("halves", "first | one"))
    lines = [json.loads(line) for line in (out / LOG).read_text().splitlines()]
    (folder / LOG).write_text(
        "".join(json.dumps(row) + "\n" for row in lines if row["step"] != cell.step.key)
    )
    [pool] = [step for step in cell.about if step.kind == "trainings"]
    [member] = next(line for line in lines if line["step"] == pool.key)["result"]["members"]
    pending = [step.key for step in pending_steps(grid.place, grid.steps)]
    assert pending == [member["adapter"].partition("/")[0], cell.step.key]
    outcome = run(*make_study(world, folder))
    assert (outcome.failed, outcome.missing) == (0, 0)
    assert (folder / RESULTS).read_bytes() == (out / RESULTS).read_bytes()


def test_the_report_has_the_pools_and_no_relevance(out: Path) -> None:
    report = loradex.report_study(out)
    text = Path(report.markdown).read_text()
    assert "recycling \\| others" in text or "recycling | others" in text
    assert "one" in text


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
