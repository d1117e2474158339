"""Best rates and curvature: parabolas by hand, slopes within tasks, and one measurement for all rates."""

from __future__ import annotations

import math
from types import SimpleNamespace

import pytest

from studies.design import Study
from studies.grid import _GridBuilder
from studies.report.comparing import Results, best_rate, relate_curvature
from studies.report.findings import Findings
from studies.report.grids import sections
from studies.report.page import TableSection

RATES = (1e-4, 1e-3, 1e-2)


def _losses(best: float) -> dict[float, float]:
    return {rate: (math.log10(rate) - math.log10(best)) ** 2 + 0.3 for rate in RATES}


def test_the_best_rate_is_the_vertex_of_the_parabola() -> None:
    assert best_rate(_losses(2e-3)) == (pytest.approx(2e-3), False)
    assert best_rate(_losses(1e-6)) == (1e-4, True)
    assert best_rate({1e-3: 0.1, 1e-2: 0.2}) is None


def _rows() -> list[dict[str, object]]:
    """Best rates that fall by the power -1 of the curvature on one task and -0.5 on the other."""
    return [
        {
            "task": task,
            "seed": 0,
            "method": "LoRA",
            "pool": None,
            "settings": {"rank": rank, "learning_rate": rate},
            "status": "done",
            "value": 0.5,
            "n": 100,
            "detail": {"curvature": 10.0 * rank, "valid_loss": loss},
        }
        for task, power in (("a", -1.0), ("b", -0.5))
        for rank in (1, 2, 4)
        for rate, loss in _losses(2e-3 * rank**power).items()
    ]


def test_slopes_are_within_tasks() -> None:
    found = relate_curvature(Results(_rows()), {})
    assert found is not None
    assert found.slope is not None
    assert found.slope.by_task == pytest.approx({"a": -1.0, "b": -0.5})
    assert found.edges == 0
    study = {"study": {"report": {"figures": ["curvature"]}}}
    table = next(part for part in sections(Findings(study, _rows())) if part.title == "Rates and curvature")
    assert isinstance(table, TableSection)
    assert [row[1] for row in table.rows] == ["10", "20", "40"]
    assert "within tasks: −0.75, 95 % t interval −3.93 to 2.43, 2 tasks; −1 is expected." in table.note
    assert "Left out, since a better one may lie outside: 0 of 6 best rates," in table.note


def test_best_rates_at_an_end_of_those_tried_are_left_out_of_slopes_and_counted() -> None:
    """Rank 8 wants a rate below all that were tried, so that its best one would flatten the slope."""
    beyond = [
        {
            **row,
            "settings": {"rank": 8, "learning_rate": rate},
            "detail": {"curvature": 80.0, "valid_loss": loss},
        }
        for row in _rows()[:1]
        for rate, loss in _losses(2e-3 / 64).items()
    ]
    found = relate_curvature(Results([*_rows(), *beyond]), {})
    assert found is not None
    assert found.slope is not None
    assert found.slope.by_task == pytest.approx({"a": -1.0, "b": -0.5})
    assert found.edges == 1
    assert [len(pairs) for pairs in found.points.values()] == [3, 3]
    study = {"study": {"report": {"figures": ["curvature"]}}}
    rows = [*_rows(), *beyond]
    table = next(part for part in sections(Findings(study, rows)) if part.title == "Rates and curvature")
    assert isinstance(table, TableSection)
    assert "1 of 7 best rates" in table.note
    # With two configurations left there is no slope on a task.
    few = [row for row in rows if row["task"] == "a" and row["settings"]["rank"] != 1]  # type: ignore[index]
    found = relate_curvature(Results(few), {})
    assert found is not None
    assert (found.slope, found.edges) == (None, 1)
    table = next(part for part in sections(Findings(study, few)) if part.title == "Rates and curvature")
    assert isinstance(table, TableSection)
    assert "within tasks: none, since no task has three configurations;" in table.note
    assert relate_curvature(Results([{**row, "detail": {}} for row in few]), {}) is None


def test_a_sweep_counts_where_no_training_is_missing_and_a_rate_where_no_seed_failed() -> None:
    """The second seed's losses are higher, so that without it a rate would look better than it is."""
    second = [
        {**row, "seed": 1, "detail": {"curvature": 10.0, "valid_loss": row["detail"]["valid_loss"] + 5}}  # type: ignore[index]
        for row in _rows()
    ]
    whole = relate_curvature(Results([*_rows(), *second]), {})
    assert whole is not None
    for row in second:
        if row["settings"]["learning_rate"] == 1e-4:  # type: ignore[index]
            row |= {"status": "failed", "value": None, "detail": {"curvature": 10.0}}
    failed = relate_curvature(Results([*_rows(), *second]), {})
    assert failed is None, "two rates have no parabola"
    rows = _rows()
    rows[0] |= {"status": "missing", "value": None, "detail": {"curvature": 10.0}}
    found = relate_curvature(Results(rows), {})
    assert found is not None
    assert found.slope is not None
    assert found.slope.by_task == pytest.approx({"b": -0.5})
    assert {task: len(pairs) for task, pairs in found.points.items()} == {"a": 2, "b": 3}


def test_curvatures_and_rates_are_written_as_people_write_them() -> None:
    rows = [{**row, "detail": {**row["detail"], "curvature": 1234.0}} for row in _rows()]  # type: ignore[dict-item]
    study = {"study": {"report": {"figures": ["curvature"]}}}
    table = next(part for part in sections(Findings(study, rows)) if part.title == "Rates and curvature")
    assert isinstance(table, TableSection)
    assert table.rows[0][1:] == ("1,230", "2e-3", "2")


def test_curvature_is_measured_once_for_all_rates() -> None:
    study = Study.model_validate(
        {
            "study": "s",
            "title": "T",
            "base": "org/base",
            "tasks": {},
            "methods": {
                "new": {"use": "train", "over": {"rank": [2, 4], "learning_rate": list(RATES)}},
                "tuned": {"use": "train", "rank": 2, "learning_rates": list(RATES)},
            },
            "report": {"figures": ["curvature"]},
        }
    )
    task = SimpleNamespace(name="a", digest="a", group="g", metric="accuracy")
    builder = _GridBuilder(study, {"a": task}, {}, {"name": "org/base"})  # type: ignore[dict-item]
    keys = [step.key for cell in builder.cells() for step in cell.about if step.kind == "curvature"]
    assert (len(keys), len(set(keys))) == (7, 2)
