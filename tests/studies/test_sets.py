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
from studies.report.grids import sections as sections_of
from studies.report.page import TableSection
from studies.steps import Job, take_set
from studies.store import Step
from tests.studies.grids import check_refusal


def _task(name: str) -> SimpleNamespace:
    return SimpleNamespace(name=name, digest=name, group="g", metric="accuracy")


TASKS = {name: _task(name) for name in "abcdefgh"}
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


def test_the_best_of_a_set_are_chosen_on_its_own_tasks_and_judged_as_the_set(tmp_path: Path) -> None:
    study = _study(
        pools={"best": {"by": "set", "k": 1}, "set": {"by": "set"}}, methods={"alone": {"use": "single"}}
    )
    cells = [cell for cell in _cells(study) if cell.pool == "best" and cell.seed == 0]
    assert len(cells) == 5
    [chosen] = {cell.step.inputs["adapter"].inputs["pool"].key: cell for cell in cells}.values()
    step = chosen.step.inputs["adapter"].inputs["pool"]
    assert list(step.inputs) == ["a", "b", "c"]
    for measured in step.inputs.values():
        assert [row["name"] for row in measured.params["adapters"]] == ["a2", "b", "c"]
    values = {"a": (0.5, 0.5, 0.6), "b": (0.1, 0.6, 0.4), "c": (0.4, 0.2, 0.3)}
    found = {
        task: {"scores": {name: {"value": value} for name, value in zip(("a2", "b", "c"), row, strict=True)}}
        for task, row in values.items()
    }
    # Means 1/3, 13/30 and 13/30: of equals the first of the set.
    for k, members in ((1, ["b"]), (2, ["b", "c"]), (3, ["b", "c", "a2"])):
        place: Any = None
        job = Job(place, step.key, {**step.params, "k": k}, found, tmp_path)
        assert take_set(job)["members"] == [{"name": name} for name in members]
    [whole] = {
        cell.step.inputs["adapter"].inputs["pool"].key
        for cell in _cells(study)
        if cell.pool == "set" and cell.seed == 0
    }
    plain = _set_of(_study())
    assert whole == plain.key


def _set_of(study: Study) -> Step:
    cell = next(cell for cell in _cells(study) if cell.pool == "set")
    return cell.step.inputs["adapter"].inputs["pool"]


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


def test_sets_that_a_task_makes_impossible_are_said() -> None:
    with pytest.raises(UsageError, match="A set has two adapters of a; name one of each task"):
        _cells(_study(sets={"size": 3, "others": 2, "named": [["a", "a2", "b"]]}))
    with pytest.raises(UsageError, match="to be judged on 6 other tasks, and the study has 5"):
        _cells(_study(sets={"size": 3, "others": 6}))


def test_sets_without_others_are_judged_on_all_tasks_that_there_are() -> None:
    cells = _cells(_study(sets={"size": 3}))
    others = [cell for cell in cells if cell.settings["judged"] == "others" and cell.pool == "set"]
    for seed in (0, 1):
        own = {cell.task for cell in cells if cell.settings["judged"] == "own" and cell.seed == seed}
        of_seed = [cell.task for cell in others if cell.seed == seed]
        assert sorted(of_seed) == sorted(set(TASKS) - own)
    explicit = _cells(_study(sets={"size": 3, "others": 5}))
    assert {cell.step.key for cell in cells} == {cell.step.key for cell in explicit}


FILE = """study: s
title: T
base: org/base
tasks: {}
adapters: {}
seeds: [0, 1]
sets:
  size: 2
  others: 1
  named:
    - [a, b]
    - [c, d]
pools:
  set: {by: set}
methods:
  average:
    use: merge
    method: average
"""


@pytest.mark.parametrize(
    ("old", "new", "line", "words"),
    [
        (
            "seeds: [0, 1]",
            "seeds: [0]",
            12,
            "2 sets are named, and a set needs a seed of its own; there are 1",
        ),
        ("seeds: [0, 1]", "seeds: [0, 0]", 6, "the seed 0 is given twice"),
        ("- [c, d]", "- [c, d, e]", 12, "it names 3 adapters, and the size is 2"),
        ("- [c, d]", "- [c, c]", 12, "it names c twice"),
        ("{by: set}", "{by: set, k: 3}", 14, "a set has 2 members; lower k"),
        ("{by: set}", "{by: set, own: first}", 14, "has the members of the set; remove own"),
        ("method: average", "method: average\n    tasks: [a]", 19, "remove tasks"),
        (FILE[FILE.index("sets:") : FILE.index("pools:")], "", 8, "a pool by set requires sets"),
    ],
)
def test_what_a_study_of_sets_would_drop_is_said_with_its_line(
    old: str, new: str, line: int, words: str, tmp_path: Path
) -> None:
    from studies.file import read_study

    path = tmp_path / "study.yaml"
    path.write_text(FILE)
    assert read_study(str(path)).study.sets is not None
    assert FILE.count(old) == 1
    check_refusal(tmp_path, FILE.replace(old, new), line, words)


def _row(method: str, task: str, seed: int, value: float | None, judged: str) -> dict[str, Any]:
    return {
        "task": task,
        "seed": seed,
        "method": method,
        "pool": None if method == "base" else "set",
        "settings": {"judged": judged},
        "status": "done" if value is not None else "failed",
        "error": None if value is not None else "It diverged.",
        "value": value,
        "n": 50,
    }


def test_the_report_of_sets_counts_sets_and_tasks_as_they_are() -> None:
    """Ten sets of three tasks and two others of eight; one cell failed."""
    study = _study(
        seeds=list(range(10)),
        report={
            "against": "base, judged=own",
            "claims": [
                {
                    "claim": "Averages help",
                    "compare": "average | set, judged=own",
                    "with": "base, judged=own",
                    "expects": "better",
                },
                {
                    "claim": "Elsewhere too",
                    "compare": "average | set, judged=others",
                    "with": "base, judged=others",
                    "expects": "better",
                },
            ],
        },
    )
    tasks = {name: {"digest": name, "group": "g", "license": "mit", "metric": "accuracy"} for name in TASKS}
    facts = {"study": study.model_dump(mode="json", by_alias=True), "tasks": tasks, "base": {"name": "b"}}
    cells = []
    for seed in range(10):
        for judged, places in (("own", range(3)), ("others", range(3, 5))):
            for place in places:
                task = "abcdefgh"[(seed + place) % 8]
                cells.append(_row("base", task, seed, 0.5, judged))
                gain = 0.1 + 0.01 * seed if judged == "own" else (0.02 if place == 3 and seed else 0.0)
                failed = (seed, judged, place) == (9, "others", 4)
                cells.append(_row("average", task, seed, None if failed else 0.5 + gain, judged))
    findings = Findings(facts, cells)
    sections = {section.title: section for section in sections_of(findings)}
    text = "\n".join(sections["What the numbers say"].paragraphs)  # type: ignore[union-attr]
    assert "with any one set left out" in text
    assert "Over 10 sets: won on 10, tied on 0, lost on 0." in text
    # A hundredth on a set is one of its two other tasks' fifty examples: no tie.
    assert "Over 9 sets: won on 8, tied on 1, lost on 0." in text
    assert "paired over sets, tasks averaged in each set first; intervals are t intervals over sets" in text
    main = sections["Every method against base, judged=own"]
    assert isinstance(main, TableSection)
    assert main.columns[-2:] == ("sets", "cells")
    assert "fewer seeds" not in main.note
    assert [row[-2] for row in main.rows] == ["10", "10", "10", "9 of 10"]
    failed = sections["What failed"]
    assert isinstance(failed, TableSection)
    assert failed.columns[-1] == "tasks and sets"
    assert failed.rows[0][-1] == "f 9"
    size = sections["How large this is"].paragraphs[0]  # type: ignore[union-attr]
    assert size.startswith("8 tasks of 50 test examples, 10 sets, ")
    run = dict(row for row in sections["What was run"].rows)  # type: ignore[union-attr]
    assert (run["tasks"], run["sets"]) == ("8 tasks", "10 sets")
    assert [row[3] for row in sections["The tasks"].rows] == ["50"] * 8  # type: ignore[union-attr]
    assert "Set by set" in sections
    # The base, which all sets share, begins none of them.
    begun = [cell for cell in cells if cell["method"] == "base" or cell["seed"] < 4]
    begun += [cell | {"status": "missing", "score": None} for cell in cells if cell not in begun]
    size = {section.title: section for section in sections_of(Findings(facts, begun))}["How large this is"]
    assert ", 4 of 10 sets, " in size.paragraphs[0]  # type: ignore[union-attr]
    document = findings.summary()
    assert {row["seeds"] for row in document["rows"]} == {1}
    assert document["examples"] == dict.fromkeys(document["examples"], 50)
    assert set(document["examples"]) == set(TASKS)
    assert document["failures"][0]["cells"] == {"f": [9]}


def test_too_few_sets_are_called_sets() -> None:
    study = _study(
        report={
            "claims": [
                {"claim": "C", "compare": "average | set, judged=own", "with": "base, judged=own"},
            ]
        }
    )
    cells = [
        _row(method, task, seed, 0.5 + 0.1 * seed * (method != "base"), "own")
        for method in ("base", "average")
        for seed in (0, 1)
        for task in "abc"
    ]
    facts = {"study": study.model_dump(mode="json", by_alias=True)}
    sections = {section.title: section for section in sections_of(Findings(facts, cells))}
    assert "with 2 sets nothing is called" in sections["What the numbers say"].paragraphs[0]  # type: ignore[union-attr]
    assert sections["Claims and marks"].rows[0][2] == "too few sets"  # type: ignore[union-attr]


def test_the_study_that_comes_along_is_of_twenty_sets() -> None:
    from studies.file import read_study

    file = read_study("lego_sets")
    assert file.folder == Path(file.folder)
    assert file.study.sets is not None
    assert len(file.study.seeds) == 20


@pytest.mark.parametrize("by", ["gradient", "measured", "prior"])
def test_a_task_may_be_called_as_an_input_of_a_pool(by: str) -> None:
    """With `own` among the other tasks, the scores on the task itself are still its own."""
    study = _study(sets=None, pools={"some": {"by": by, "k": 1}}, methods={"first": {"use": "single"}})
    tasks = {name: _task(name) for name in ("a", "b", "own")}
    builder = _GridBuilder(study, tasks, ADAPTERS, {"name": "org/base"})  # type: ignore[arg-type]
    for cell in builder.cells():
        inputs = cell.about[0].inputs
        asked = {place: step.params["task"]["name"] for place, step in inputs.items()}
        assert (
            sorted(asked.values())
            == {
                "gradient": ["a", "b", "own"],
                "measured": [cell.task],
                "prior": sorted(set(tasks) - {cell.task}),
            }[by]
        )
        if by != "prior":
            assert asked["own"] == cell.task
