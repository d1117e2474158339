"""What single steps find: pools by measured scores, variants beside plain LoRA, the cards of the wild."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

pytest.importorskip("peft")

from merging.evaluation import measure
from merging.live import LiveStack
from merging.members import load_member, read_module
from merging.model import budget, draw, load_base, read_task
from studies.record import RESULTS
from studies.run import report, run
from studies.steps import hyperparameters
from tests.studies.grids import make_study
from tests.studies.small import make_world

# PEFT 0.21 asks a model of transformers 5.23 for an attribute by its old name.
pytestmark = pytest.mark.filterwarnings("ignore:.is_gradient_checkpointing. is deprecated:FutureWarning")

TEXT = """\
study: tiny
title: Steps
base: {base}
tasks: {{from: tasks, names: [halves, thirds], train: 4, valid: 2, test: 6}}
adapters: {{from: adapters, measure: 4}}
cards: adapters
pools:
  measured: {{by: measured, k: 2}}
  prior: {{by: prior, k: 2, own: allow}}
  mine: {{by: all, own: only}}
methods:
  base: {{use: base}}
  first: {{use: single}}
  heavy: {{use: merge, method: sum, weight: 2.0, pools: [measured]}}
  LEGO: {{use: merge, method: lora-lego, pools: [prior], over: {{rank: [1, 2, 3]}}}}
  dora: {{use: train, rank: 2, steps: 1, batch: 2, learning_rate: 1e-2, variant: dora}}
report: {{against: base, figures: [relevance, energy, wild]}}
"""


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = make_world(tmp_path_factory.mktemp("world"))
    path.write_text(TEXT.format(base=path.parent / "base"))
    card = "---\nlibrary_name: peft\n---\n### Training hyperparameters\n\n- learning_rate: 0.0002\n"
    (path.parent / "adapters" / "a1" / "README.md").write_text(card)
    return path


@pytest.fixture(scope="module")
def out(world: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("steps") / "out"
    run(*make_study(world, folder))
    return folder


def unit_vectors(folder: Path) -> Iterator[tuple[str, torch.Tensor]]:
    """Every module's name with each of its units [a_j; b_j], the scaling split between both sides."""
    member = load_member(folder)
    for module in member.spec.modules:
        a, b = read_module(member, module.name)
        for row, column in zip(a, b.T, strict=True):
            yield module.name, torch.cat([row, column]).double() * abs(module.scaling) ** 0.5


def rows_of(out: Path) -> dict[tuple[str, str, str | None], dict[str, Any]]:
    rows = [json.loads(line) for line in (out / RESULTS).read_text().splitlines()]
    return {(row["task"], row["method"], row["pool"]): row for row in rows}


def scores(world: Path, name: str) -> dict[str, tuple[float, float]]:
    """Value and loss of the base and of every adapter on four examples of a task's budget, asked directly."""
    base, task = load_base(str(world.parent / "base")), read_task(world.parent / "tasks" / name)
    requests = budget(task, 6, seed=0, valid=2 / 6).all[:4]
    alone = measure(base, task, requests)
    result = {"base": (alone.value, alone.loss)}
    for number in range(4):
        live = LiveStack(base.model, [load_member(world.parent / "adapters" / f"a{number}")])
        with live.dense(live.scales_of([1.0])):
            item = measure(base, task, requests)
        result[f"a{number}"] = (item.value, item.loss)
    return result


def test_pools_by_measured_scores_and_by_those_on_other_tasks(world: Path, out: Path) -> None:
    rows, mine, other = rows_of(out), scores(world, "thirds"), scores(world, "halves")
    # a0 was trained on thirds and is left out there.
    order = sorted(("a1", "a2", "a3"), key=lambda name: (-mine[name][0], mine[name][1], name))
    row = rows["thirds", "first", "measured"]
    assert row["detail"]["members"] == order[:2]
    gains = [mine["base"][1] - mine[name][1] for name in order[:2]]
    assert row["detail"]["relevance"] == pytest.approx(sum(gains) / 2)
    order = sorted(("a0", "a1", "a2", "a3"), key=lambda name: (-other[name][0], name))
    assert rows["thirds", "first", "prior"]["detail"]["members"] == order[:2]
    assert rows["thirds", "first", "mine"]["detail"]["members"] == ["a0"]
    failed = rows["halves", "first", "mine"]
    assert failed["status"] == "failed"
    assert "No adapter is left" in failed["error"]


def test_lego_says_how_much_of_the_units_its_centroids_hold(world: Path, out: Path) -> None:
    rows = [json.loads(line) for line in (out / RESULTS).read_text().splitlines()]
    lego = {
        row["settings"]["rank"]: row for row in rows if (row["method"], row["task"]) == ("LEGO", "halves")
    }
    members = [world.parent / "adapters" / name for name in lego[1]["detail"]["members"]]
    units = [unit for member in members for unit in unit_vectors(member)]
    # One centroid a module: the mean of its units.
    complete = sum(float(unit.square().sum()) for _, unit in units)
    means = {name: torch.stack([unit for other, unit in units if other == name]) for name, _ in units}
    held = sum(len(rows) * float(rows.mean(0).square().sum()) for rows in means.values())
    assert lego[1]["detail"]["energy"] == pytest.approx(held / complete, rel=1e-4)
    assert held / complete < lego[2]["detail"]["energy"] < lego[3]["detail"]["energy"] == pytest.approx(1)


def test_a_variant_that_cannot_be_merged_is_scored_all_the_same(out: Path) -> None:
    row = rows_of(out)["halves", "dora", None]
    assert row["status"] == "done"
    assert row["loss"] != rows_of(out)["halves", "base", None]["loss"]


def test_the_weight_is_that_of_every_member(world: Path, out: Path) -> None:
    row = rows_of(out)["halves", "heavy", "measured"]
    base, task = load_base(str(world.parent / "base")), read_task(world.parent / "tasks" / "halves")
    members = [load_member(world.parent / "adapters" / name) for name in row["detail"]["members"]]
    live = LiveStack(base.model, members)
    with live.dense(live.scales_of([2.0, 2.0])):
        result = measure(base, task, draw(task, "test", 6))
    assert row["loss"] == pytest.approx(result.loss, abs=1e-4)


def test_what_cards_and_configurations_of_the_wild_say(world: Path, out: Path) -> None:
    (world.parent / "adapters" / "broken").mkdir(exist_ok=True)
    (world.parent / "adapters" / "broken" / "adapter_config.json").write_text("{")
    result = hyperparameters(world.parent / "adapters")
    assert result == {"cards": 4, "learning_rate": [0.0002], "rank": [1, 1, 2, 2]}
    document = report(out)
    page = Path(document["page"]).read_text()
    assert "in the wild" in page
    assert "relevance" in page
