"""Best rates and curvature: parabolas by hand, slopes within tasks, and one measurement for all rates."""

from __future__ import annotations

import json
import math
from types import SimpleNamespace

import numpy as np
import pytest

from studies.design import Study
from studies.grid import _GridBuilder
from studies.report.comparing import Results, best_rate, relate_curvature
from studies.report.findings import Findings
from studies.report.grids import sections
from studies.report.page import TableSection, Text

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
    claims = next(part for part in sections(Findings(study, _rows())) if part.title == "Claims and marks")
    assert isinstance(claims, TableSection)
    falls = "The best rate falls with the curvature"
    assert claims.rows == ((falls, "open", "too few tasks", "slope −0.75 [−3.93, 2.43]", ".2", ".2"),)
    assert claims.note.startswith("Points, but for slopes.")
    assert "Left out, since a better one may lie outside: 0 of 6 best rates," in table.note
    assert "With them" not in table.note


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
    # At 1e-4, the lowest rate: the last of four points a factor of two apart in curvature.
    rates = [2e-3, 1e-3, 5e-4, 1e-4]
    with_edge = np.polyfit(np.log10([10, 20, 40, 80]), np.log10(rates), 1)[0]
    assert found.slope_with_edges is not None
    assert found.slope_with_edges.by_task == pytest.approx({"a": with_edge, "b": -0.5})
    study = {"study": {"report": {"figures": ["curvature"]}}}
    rows = [*_rows(), *beyond]
    table = next(part for part in sections(Findings(study, rows)) if part.title == "Rates and curvature")
    assert isinstance(table, TableSection)
    assert "1 of 7 best rates" in table.note
    assert "With them at that rate: slope −0.95 [" in table.note
    # With two configurations left there is no slope on a task.
    few = [row for row in rows if row["task"] == "a" and row["settings"]["rank"] != 1]  # type: ignore[index]
    found = relate_curvature(Results(few), {})
    assert found is not None
    assert (found.slope, found.edges) == (None, 1)
    table = next(part for part in sections(Findings(study, few)) if part.title == "Rates and curvature")
    assert isinstance(table, TableSection)
    (claim,) = Findings(study, few).claims
    assert claim.sentence == "No task has a slope yet, so nothing can be said."
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


def _with_slopes(powers: list[float]) -> dict[str, object]:
    """A study and its cells, with a task for each power of the curvature by which its best rates go."""
    rows = [
        {**row, "task": f"t{number}", "settings": {"rank": rank, "learning_rate": rate}, "detail": detail}
        for number, power in enumerate(powers)
        for rank in (1, 2, 4)
        for row in _rows()[:1]
        for rate, loss in _losses((2e-3 if power < 0 else 8e-4) * rank**power).items()
        for detail in [{"curvature": 10.0 * rank, "valid_loss": loss}]
    ]
    return {"study": {"study": {"report": {"figures": ["curvature"]}}}, "cells": rows}


@pytest.mark.parametrize(
    ("powers", "word", "mark", "text"),
    [
        (
            [-1.0 - n / 50 for n in range(8)],
            "falls",
            "confirmed",
            "It does. Mean slope of the logarithms −1.07,",
        ),
        ([-0.3 - n / 50 for n in range(8)], "falls", "confirmed", "the −1 that is expected lies outside"),
        ([-1.1, *[-0.9, -1.1] * 4], "falls", "confirmed", "the −1 that is expected lies inside the interval"),
        ([0.5 + n / 50 for n in range(8)], "rises", "contradicted", "It rises with it. Mean slope"),
        ([-0.5, 0.5] * 4, "cannot be told", "open", "Whether it does cannot be told. Mean slope"),
        ([-1.0, -0.9], "too few tasks", "open", "With 2 tasks nothing is said. Mean slope"),
        (
            [-1.0],
            "one task",
            "open",
            "One task gives no interval. The slope of the logarithms is −1.00 there;",
        ),
    ],
)
def test_whether_rates_fall_with_curvature_is_a_claim(
    powers: list[float], word: str, mark: str, text: str
) -> None:
    findings = Findings(**_with_slopes(powers))  # type: ignore[arg-type]
    (claim,) = findings.claims
    assert (claim.verdict, claim.mark) == (word, mark)
    assert text in claim.sentence
    page_text = sections(findings)[0]
    assert isinstance(page_text, Text)
    assert page_text.paragraphs[0].startswith(
        f"{mark.capitalize()}: “The best rate falls with the curvature” — "
    )
    assert not any("A point is" in paragraph for paragraph in page_text.paragraphs)
    json.dumps(findings.summary(), allow_nan=False)


def test_the_slope_is_in_the_family_of_the_claims_of_its_study() -> None:
    document = _with_slopes([-1.0, -0.8, -0.6, -0.4, -0.2, 0.0, 0.2, -0.9])
    alone = Findings(**document).claims[-1]  # type: ignore[arg-type]
    claim = {"claim": "c", "compare": "no", "with": "such"}
    document["study"]["study"]["report"]["claims"] = [claim] * 2  # type: ignore[index]
    *others, slope = Findings(**document).claims  # type: ignore[arg-type]
    assert [claim.verdict for claim in others] == ["nothing to compare"] * 2
    assert alone.difference is not None
    assert alone.holm_p == alone.difference.p
    assert alone.holm_p is not None
    assert slope.holm_p == pytest.approx(3 * alone.holm_p)
