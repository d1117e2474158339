"""What a study says before it runs: the power of its tasks and seeds, and the time that is left."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from scipy import stats

from studies.power import (
    MERGE_SEED_SPREAD,
    MERGE_TASK_SPREAD,
    SEED_SPREAD,
    TASK_SPREAD,
    estimate_cost,
    power_of,
    study_powers,
)
from studies.store import LOG, TIME, Place, Step


@pytest.mark.parametrize(
    ("tasks", "seeds", "half_width", "alone", "of_six"),
    [
        (8, 3, 3.1, (10, 27, 51), (2, 7, 19)),
        (20, 3, 1.7, (21, 64, 93), (6, 34, 75)),
        (36, 1, 1.6, (25, 72, 97), (8, 44, 86)),
        (36, 3, 1.2, (36, 89, 100), (14, 68, 98)),
    ],
)
def test_power_is_that_of_the_reference(
    tasks: int, seeds: int, half_width: float, alone: tuple[int, ...], of_six: tuple[int, ...]
) -> None:
    power = power_of(tasks, seeds)
    assert round(power.half_width or 0, 1) == half_width
    assert tuple(power.found.values()) == alone
    assert tuple(power_of(tasks, seeds, 6).found.values()) == of_six


@pytest.mark.parametrize(("tasks", "set_size"), [(1_000, None), (10_000, None), (20, 1_000)])
def test_large_studies_find_everything(tasks: int, set_size: int | None) -> None:
    assert power_of(tasks, 1, 20, set_size).found == {"1": 100, "2": 100, "3": 100}


def test_power_is_that_of_simulated_studies() -> None:
    rng = np.random.default_rng(0)
    spread = np.hypot(TASK_SPREAD, SEED_SPREAD / np.sqrt(2))
    ps = stats.ttest_1samp(2 + spread * rng.normal(size=(20_000, 12)), 0, axis=1).pvalue
    assert power_of(12, 2).found["2"] == pytest.approx(100 * float((ps <= 0.05).mean()), abs=1.5)


def test_one_task_has_no_interval_and_cuts_are_named_once() -> None:
    assert power_of(1, 3).half_width is None
    from studies.file import read_study

    study = read_study("recycling").study
    cuts = [(power.tasks, power.seeds) for power in study_powers(study, 8)]
    assert cuts == [(8, 3), (8, 1), (4, 3), (4, 1)]
    assert [(p.tasks, p.seeds) for p in study_powers(read_study("lego").study, 1)] == [(1, 1)]
    sets = study_powers(read_study("lego_sets").study, 36)
    assert [(p.tasks, p.seeds, p.set_size) for p in sets] == [(20, 1, 7), (10, 1, 7)]


def test_a_set_counts_once_by_the_mean_over_its_tasks() -> None:
    rng = np.random.default_rng(0)
    spread = np.hypot(MERGE_TASK_SPREAD, MERGE_SEED_SPREAD)
    gaps = 2 + spread * rng.normal(size=(20_000, 10, 4)).mean(2)
    ps = stats.ttest_1samp(gaps, 0, axis=1).pvalue
    assert power_of(10, 1, set_size=4).found["2"] == pytest.approx(100 * float((ps <= 0.05).mean()), abs=1.5)


def test_time_is_by_the_steps_of_each_kind_that_were_done_here_before_those_of_a_log(tmp_path: Path) -> None:
    steps = [Step("score", {"n": n}) for n in range(4)]
    steps += [Step("merge", {"n": n}) for n in range(3)] + [Step("adapt", {})]
    results = {"score": {"score": {"value": 0.5, "loss": 1.0, "n": 2}}, "merge": {"adapter": f"{'0' * 32}/a"}}
    logged = [(steps[0], 100.0), (steps[1], 300.0), (steps[4], 7.0), (steps[5], 9.0)]
    lines = [
        {"step": step.key, "kind": step.kind, "seconds": seconds, "result": results[step.kind]}
        for step, seconds in logged
    ]
    (tmp_path / LOG).write_text("".join(json.dumps(line) + "\n" for line in lines))
    place = Place(tmp_path, "base", None, "cpu", 1, {}, {})
    pending = [*steps[2:4], steps[6], steps[7]]
    cost = estimate_cost(place, steps, pending)
    assert (cost.seconds, cost.measured, cost.unmeasured) == (0.0, 0, {"adapt": 1})
    assert (cost.seconds_elsewhere, cost.logged) == (2 * 200.0 + 8.0, 4)
    # One of the scores was done here, in a tenth of the time.
    here = tmp_path / "steps" / steps[1].key
    here.mkdir(parents=True)
    (here / TIME).write_text('{"seconds": 20.0}')
    cost = estimate_cost(place, steps, pending)
    assert (cost.seconds, cost.measured, cost.unmeasured) == (40.0, 1, {"adapt": 1})
    assert (cost.seconds_elsewhere, cost.logged) == (8.0, 2)
    # Steps of kinds of which none is left tell nothing.
    assert estimate_cost(place, steps, [steps[7]]).measured == 0
