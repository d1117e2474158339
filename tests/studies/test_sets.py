"""Studies of sets: what is merged once, what judges it, and that a set counts once."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from catalog.errors import UsageError
from studies.design import Study, all_labels
from studies.grid import GridCell, _GridBuilder
from studies.report.findings import Findings

TASKS = {name: SimpleNamespace(name=name, digest=name, group="g", metric="accuracy") for name in "abcdefgh"}
ADAPTERS = {
    name: {"name": name, "sha256": name, "trained_on": name[0]} for name in ("a", "a2", "b", "c", "d", "e")
}


def _study(**more: Any) -> Study:
    return Study.model_validate(
        {
            "study": "s",
            "title": "T",
            "base": "org/base",
            "tasks": {},
            "adapters": {},
            "seeds": [0, 1],
            "sets": {"size": 3, "others": 2, "named": [["a2", "b", "c"]]},
            "pools": {"set": {"by": "set"}, "noise": {"by": "set", "control": "random-each"}},
            "methods": {"base": {"use": "base"}, "average": {"use": "merge", "method": "average"}},
            **more,
        }
    )


def _cells(study: Study) -> list[GridCell]:
    builder = _GridBuilder(study, TASKS, ADAPTERS, {"name": "org/base"})  # type: ignore[arg-type]
    return list(builder.cells())


def test_a_set_is_merged_once_and_judged_on_its_tasks_and_on_others() -> None:
    cells = _cells(_study())
    # Two sets; the base and two pools of the average, each on three tasks and two others.
    assert len(cells) == 2 * 3 * 5
    merged = [cell for cell in cells if cell.pool == "set"]
    for seed in (0, 1):
        of_set = [cell for cell in merged if cell.seed == seed]
        assert len({cell.step.inputs["adapter"].key for cell in of_set}) == 1
        members = of_set[0].step.inputs["adapter"].inputs["pool"].params["adapters"]
        own = [cell.task for cell in of_set if cell.settings["judged"] == "own"]
        others = {cell.task for cell in of_set if cell.settings["judged"] == "others"}
        assert own == [ADAPTERS[row["name"]]["trained_on"] for row in members]
        assert len(others) == 2
        assert not others & set(own)
    assert [cell.task for cell in merged if cell.seed == 0][:3] == ["a", "b", "c"]
    labels = {cell.label for cell in cells}
    assert labels == set(all_labels(_study()))
    assert "average | set, judged=own" in labels


def test_sets_that_cannot_be_drawn_are_said() -> None:
    with pytest.raises(
        UsageError, match="A set of 6 requires adapters of as many tasks of the study; there are"
    ):
        _cells(_study(sets={"size": 6}))
    with pytest.raises(UsageError, match="A set names z, which is not one of the adapters"):
        _cells(_study(sets={"size": 3, "named": [["a", "b", "z"]]}))
    with pytest.raises(UsageError, match="A pool by set requires a study of sets"):
        _cells(_study(sets=None))


def test_a_set_counts_once_however_many_tasks_judge_it() -> None:
    study = _study(report={"against": "base, judged=own"})
    record = {"study": study.model_dump(mode="json", by_alias=True)}
    cells = [
        {
            "task": task,
            "seed": seed,
            "method": method,
            "pool": None if method == "base" else "set",
            "settings": {"judged": "own"},
            "status": "done",
            "value": 0.5 + (method != "base") * (0.1 * seed + 0.01 * place),
            "n": 100,
        }
        for method in ("base", "average")
        for seed in (0, 1)
        for place, task in enumerate("abc"[: 2 + seed])
    ]
    findings = Findings(record, cells)
    row = next(row for row in findings.rows if row.label == "average | set, judged=own")
    assert row.difference is not None
    assert row.difference.by_task == pytest.approx({"set 0": 0.005, "set 1": 0.11})


def test_the_study_that_comes_along_is_of_twenty_sets() -> None:
    from studies.file import read_study

    file = read_study("lego_sets")
    assert file.folder == Path(file.folder)
    assert file.study.sets is not None
    assert len(file.study.seeds) == 20
