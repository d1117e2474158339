"""The report of a grid study: sums worked by hand, verdicts at their borders, and nothing left unsaid."""

from __future__ import annotations

import json
import math
import re
import statistics
from collections.abc import Iterator
from typing import Any

import pytest

from studies.report.comparing import (
    Related,
    Results,
    at_one_rate,
    compare,
    correlation,
    lines,
    mean_and_error,
    relate,
    tune_by_loss,
)
from studies.report.findings import Findings
from studies.report.grids import sections as sections_of
from studies.report.judging import Compared, Judgement, judge_claims
from studies.report.page import Figure, Section, TableSection, Text
from studies.report.wording import (
    duration,
    format_difference,
    interval,
    level,
    nats,
    p_value,
    points,
    rate,
    sentence,
)

Values = dict[str, dict[str, list[float | None]]]
ADAPTERS = {"a": "0" * 64, "b": "1" * 64}


def cell(task: str, seed: int, method: str, value: float | None, **more: Any) -> dict[str, Any]:
    """A line of results.jsonl, done unless the value is None."""
    status = more.pop("status", "done" if value is not None else "missing")
    row = {
        "cell": "0" * 16,
        "task": task,
        "group": "g",
        "seed": seed,
        "method": method,
        "pool": None,
        "settings": {},
        "status": status,
        "error": None,
        "value": value,
        "loss": None if value is None else 1 - value,
        "n": None if value is None else 100,
        "detail": {},
    }
    return {**row, **more}


def study(**report: Any) -> dict[str, Any]:
    """A study.json."""
    return {
        "study": {"study": "s", "title": "T", "question": "Q?", "seeds": [0, 1], "report": report},
        "file_sha256": "ab" * 32,
        "base": {"name": "org/Tiny-135M", "digest": "cd" * 32},
        "tasks": {"t1": {"digest": "ef" * 32, "license": "MIT", "group": "g", "metric": "accuracy"}},
        "adapters": ADAPTERS,
        "versions": {"torch": "2.9.1", "python": "3.11.2"},
        "device": "cpu",
        "threads": 1,
        "machine": "x86_64, 2 cores",
        "seconds": 7200.0,
        "steps": {"done": 8, "failed": 0, "missing": 0},
    }


def grid(values: Values) -> list[dict[str, Any]]:
    """Cells from method -> task -> values by seed; None is a failure."""
    return [
        cell(task, seed, method, value, **({} if value is not None else {"status": "failed", "error": "No."}))
        for method, tasks in values.items()
        for task, by_seed in tasks.items()
        for seed, value in enumerate(by_seed)
    ]


def sections(facts: dict[str, Any], cells: list[dict[str, Any]]) -> list[Section]:
    return sections_of(Findings(facts, cells))


def find_section(result: list[Section], title: str) -> Section:
    """The section of that title."""
    return next(item for item in result if item.title == title)


def table(result: list[Section], title: str) -> TableSection:
    """The table of that title."""
    item = find_section(result, title)
    assert isinstance(item, TableSection)
    return item


def sentences(result: list[Section]) -> str:
    """The sentences at the top."""
    assert isinstance(result[0], Text)
    return "\n".join(result[0].paragraphs)


PAIR: Values = {
    "new": {"t1": [0.5, 0.7], "t2": [0.8, 0.8], "t3": [0.4, 0.4]},
    "old": {"t1": [0.6, 0.7], "t2": [0.80, 0.81], "t3": [0.3, 0.3]},
}


def test_means_average_seeds_first_and_errors_are_over_tasks() -> None:
    row = Results(grid(PAIR)).row("new", None)
    assert row.value is not None
    assert row.value.mean == pytest.approx((0.6 + 0.8 + 0.4) / 3)
    assert row.value.error == pytest.approx(0.2 / math.sqrt(3))
    assert row.loss == pytest.approx(0.4)
    assert (row.tasks, row.expected, row.done, row.failed, row.missing) == (3, 3, 6, 0, 0)


def test_differences_are_paired_over_tasks_and_half_an_example_is_a_tie() -> None:
    difference = Results(grid(PAIR)).compare("old", "new")
    assert difference is not None
    assert difference.by_task == pytest.approx({"t1": 0.05, "t2": 0.005, "t3": -0.1})
    assert difference.mean == pytest.approx(-0.015)
    assert (difference.wins, difference.ties, difference.losses) == (1, 1, 1)
    half = 4.302653 * statistics.stdev([0.05, 0.005, -0.1]) / math.sqrt(3)
    assert difference.low == pytest.approx(-0.015 - half, abs=1e-6)
    assert difference.high == pytest.approx(-0.015 + half, abs=1e-6)


@pytest.mark.parametrize(
    ("mine", "other", "steps", "record"),
    [
        (0.81, 0.80, {"t": 0.01}, (1, 0, 0)),
        (0.29, 0.28, {"t": 0.01}, (1, 0, 0)),
        (0.80, 0.81, {"t": 0.01}, (0, 0, 1)),
        (0.809, 0.80, {"t": 0.01}, (0, 1, 0)),
        (0.8, 0.8, {}, (0, 1, 0)),
        (0.8001, 0.8, {}, (1, 0, 0)),
    ],
)
def test_a_whole_example_is_no_tie(
    mine: float, other: float, steps: dict[str, float], record: tuple[int, int, int]
) -> None:
    result = compare({"t": mine}, {"t": other}, steps)
    assert result is not None
    assert (result.wins, result.ties, result.losses) == record


def test_a_label_with_a_failed_cell_is_compared_where_both_are_complete() -> None:
    cells = grid({"new": PAIR["new"], "old": {**PAIR["old"], "t3": [0.3, None]}})
    result = sections(study(against="new"), cells)
    row = dict(zip(table(result, "Every method against new").columns, _row(result, "old"), strict=True))
    assert row["tasks"] == "2 of 3"
    assert row["cells"] == "5 done, 1 failed"
    assert row["mean\u00a0±\u00a0SE"] == "72.8 ± 7.8"
    assert row["difference\u00a0[95\u00a0%]"] == "+2.7 [−25.8, +31.3]"
    assert row["win/tie/loss"] == "1/1/0"
    note = table(result, "Every method against new").note
    assert "only the difference compares: old." in note
    assert "With 2 tasks nothing is called better, worse or the same." in note
    assert "The study is not complete: of 12 cells 1 failed." in sentences(result)


def test_cells_are_counted_only_where_the_tasks_do_not_tell() -> None:
    once = {name: {task: values[:1] for task, values in tasks.items()} for name, tasks in PAIR.items()}
    result = sections(study(against="new"), grid({**once, "old": {**once["old"], "t3": []}}))
    shown = table(result, "Every method against new")
    assert "cells" not in shown.columns
    assert dict(zip(shown.columns, _row(result, "old"), strict=True))["tasks"] == "2"
    assert "cells" in table(sections(study(against="new"), grid(PAIR)), "Every method against new").columns


def test_a_label_with_fewer_seeds_is_compared_on_these() -> None:
    cells = grid({"new": PAIR["new"], "old": {task: [values[0]] for task, values in PAIR["old"].items()}})
    results = Results(cells)
    difference = results.compare("old", "new")
    assert difference is not None
    assert difference.by_task == pytest.approx({"t1": 0.6 - 0.5, "t2": 0.0, "t3": -0.1})
    assert results.values("new")["t1"] == pytest.approx(0.6)
    row = results.row("old", "new")
    assert (row.tasks, row.expected, row.seeds, row.done) == (3, 3, 1, 3)
    output = table(sections(study(against="new"), cells), "Every method against new")
    assert "Asked with fewer seeds, and compared on these: old." in output.note


def _row(result: list[Section], label: str) -> tuple[str, ...]:
    return next(row for row in table(result, "Every method against new").rows if row[0] == label)


def test_failed_and_missing_cells_are_shown() -> None:
    cells = grid({"new": PAIR["new"], "old": {"t1": [0.5, None], "t2": [None, None]}})
    cells += [cell("t3", seed, "old", None) for seed in (0, 1)] + [cell("t3", 0, "new", 0.5)]
    result = sections(study(against="new"), cells)
    assert [row[2] for row in table(result, "Task by task").rows] == ["50.0 (1 failed)", "failed", "missing"]
    assert table(result, "What failed").rows == (("old", "3", "No.", "t1 1; t2 0, 1"),)
    assert _row(result, "old")[1:] == ("—", "—", "—", "—", "0 of 3", "1 done, 3 failed, 2 missing")


def test_tasks_that_are_not_begun_are_named_and_have_no_row() -> None:
    later = [cell(task, 0, method, None) for task in ("t8", "t9") for method in ("new", "old")]
    result = sections(study(against="new"), [*grid(PAIR), *later])
    by_task = table(result, "Task by task")
    assert [row[0] for row in by_task.rows] == ["t1", "t2", "t3"]
    assert by_task.note.endswith(" Not begun: t8, t9.")
    size = next(section for section in result if section.title == "How large this is")
    assert isinstance(size, Text)
    assert size.paragraphs[0].startswith("3 of 5 tasks of ")
    # The base alone, which sets share, is no beginning.
    document = study(against="new")
    document["study"]["methods"] = {name: {"use": use} for name, use in (("new", "base"), ("old", "single"))}
    shared = sections(document, [*grid(PAIR), cell("t9", 0, "new", 0.5), cell("t9", 0, "old", None)])
    assert [row[0] for row in table(shared, "Task by task").rows] == ["t1", "t2", "t3"]
    # Of a study that has not begun all are shown.
    nothing = sections(study(against="new"), later)
    assert [row[1:] for row in table(nothing, "Task by task").rows] == [("missing", "missing")] * 2


def test_the_table_of_tasks_is_rather_long_than_wide() -> None:
    values = {"t1": [0.1, 0.3], "t2": [0.4, 0.6]}
    few = table(sections(study(), grid({"a": values})), "Task by task")
    assert (few.columns, few.rows) == (("task", "a"), (("t1", "20.0"), ("t2", "50.0")))
    many = table(sections(study(), grid(dict.fromkeys("abc", values))), "Task by task")
    assert many.columns == ("method", "t1", "t2")
    assert many.rows == tuple((name, "20.0", "50.0") for name in "abc")


def test_a_label_that_the_grid_does_not_ask_on_a_task_is_not_failed_there() -> None:
    result = sections(study(against="new"), grid({"new": PAIR["new"], "old": {"t1": [0.5, 0.5]}}))
    assert [row[2] for row in table(result, "Task by task").rows] == ["50.0", "—", "—"]
    assert _row(result, "old")[-2:] == ("1", "2 done")
    assert "Asked on some of the tasks only: old." in table(result, "Every method against new").note


def _claimed(gaps: list[float], margin: float = 0.02, expects: str | None = None) -> Compared:
    values = {f"t{i}": gap for i, gap in enumerate(gaps)}
    return Compared(compare(values, dict.fromkeys(values, 0.0), {}), margin, expects)


# Eight differences of mean zero and standard deviation 1/100: the error is .0035, t .01 / .0035 = 2.8 of 7.
NOISE = [sign * 0.01 * math.sqrt(7 / 8) for sign in (-1, 1) * 4]


def _one(mean: float, margin: float = 0.02, expects: str | None = None, spread: float = 1.0) -> Judgement:
    return judge_claims([_claimed([mean + spread * gap for gap in NOISE], margin, expects)])[0]


@pytest.mark.parametrize(
    ("mean", "margin", "word"),
    [
        (0.03, 0.02, "better"),
        (-0.03, 0.02, "worse"),
        # The 90 % half-width is 1.8946 x .003536 = .0067, the 95 % one 2.3646 x .003536 = .00836.
        (0.0132, 0.02, "better, by less than the margin"),
        (0.0134, 0.02, "better"),
        (-0.0132, 0.02, "worse, by less than the margin"),
        (0.0083, 0.02, "about the same"),
        (0.0084, 0.02, "better, by less than the margin"),
        (0.0083, 0.014, "cannot be told"),
        (0.0, 0.0068, "about the same"),
        (0.0, 0.0066, "cannot be told"),
    ],
)
def test_words_at_their_borders(mean: float, margin: float, word: str) -> None:
    assert _one(mean, margin).word == word


def test_words_without_enough_tasks() -> None:
    assert judge_claims([Compared(None, 0.02)])[0].word == "nothing to compare"
    assert judge_claims([_claimed([0.8])])[0].word == "one task"
    assert judge_claims([_claimed([0.1, 0.11] * 3 + [0.1])])[0].word == "too few tasks"
    assert judge_claims([_claimed([0.1, 0.11] * 4)])[0].word == "better"
    assert judge_claims([_claimed([0.0] * 8)])[0].word == "the same"


def test_words_are_of_all_claims_together() -> None:
    # p is .032 alone, as that of the recorded claim on adapters for the very task, and .19 among six.
    alone = _claimed([0.0187 + 2.05 * gap for gap in NOISE], 0.01)
    assert alone.difference is not None
    assert judge_claims([alone])[0].word == "better"
    among = judge_claims([alone, *[_claimed(NOISE, 0.001)] * 5])
    assert among[0].word == "cannot be told"
    assert among[0].holm_p == pytest.approx(6 * (alone.difference.p or 0))
    # What is zero everywhere has no p-value, and costs the others nothing.
    assert judge_claims([alone, *[_claimed([0.0] * 8)] * 5])[0].word == "better"
    # A claim that has no results yet is one of the family.
    # So is one that has a single task yet.
    for begun in (Compared(None, 0.02), _claimed([0.8])):
        waiting = judge_claims([alone, *[begun] * 5])
        assert waiting[0] == among[0]
        assert [item.holm_p for item in waiting[1:]] == [None] * 5


def test_a_word_that_falls_without_a_task_rests_on_it() -> None:
    steady = judge_claims([_claimed([0.03 + gap for gap in NOISE])])[0]
    assert steady.rests_on == ()
    assert steady.left_out == pytest.approx(
        (0.03 - 0.01 * math.sqrt(7 / 8) / 7, 0.03 + 0.01 * math.sqrt(7 / 8) / 7)
    )
    same = judge_claims([_claimed([0.001, -0.001] * 3 + [0.002, 0.0])])[0]
    assert (same.word, same.rests_on) == ("about the same", ())
    # p is .033, and .062, .062, .078 and .062 without one of these.
    resting = judge_claims([_claimed([0.01, 0.03, 0.0, 0.0, 0.01, 0.0, 0.02, 0.01], 0.0001)])[0]
    assert resting.word == "better"
    assert resting.rests_on == ("t0", "t4", "t6", "t7")


@pytest.mark.parametrize(
    ("mean", "spread", "marks"),
    [
        # In the order better, worse, same, not better, not worse.
        (0.05, 1, ("confirmed", "contradicted", "contradicted", "contradicted", "confirmed")),
        (0.025, 1, ("confirmed", "contradicted", "open", "contradicted", "confirmed")),
        (0.01, 1, ("confirmed", "contradicted", "confirmed", "open", "confirmed")),
        (0.0, 1, ("contradicted", "contradicted", "confirmed", "confirmed", "confirmed")),
        (0.0, 9, ("open",) * 5),
        (-0.05, 1, ("contradicted", "confirmed", "contradicted", "confirmed", "contradicted")),
    ],
)
def test_marks(mean: float, spread: float, marks: tuple[str, ...]) -> None:
    expectations = ("better", "worse", "same", "not better", "not worse")
    assert tuple(_one(mean, expects=name, spread=spread).mark for name in expectations) == marks
    assert _one(mean, spread=spread).mark == "open"


@pytest.mark.parametrize(
    ("mean", "spread", "words"),
    [
        (
            0.05,
            1,
            "‘a’ is better than ‘b’. Mean difference +5.0 points, 95 % interval +4.2 to +5.8, p below .001",
        ),
        (0.01, 0.5, "‘a’ is better than ‘b’, by less than the margin of 2 points. Mean"),
        (0.0, 1, "‘a’ and ‘b’ are about the same, within the margin of 2 points. Mean difference 0.0 points"),
        (
            0.0,
            9,
            "Which of ‘a’ and ‘b’ is better cannot be told: the difference is between −7.5 and +7.5 points.",
        ),
        (-0.05, 1, "‘a’ is worse than ‘b’. Mean"),
    ],
)
def test_sentences(mean: float, spread: float, words: str) -> None:
    compared = _claimed([mean + spread * gap for gap in NOISE])
    document = sentence(judge_claims([compared])[0], "a", "b", compared)
    assert document.startswith(words)
    assert "with any one task left out" in document
    assert re.search(r"Over 8 tasks: won on \d, tied on \d, lost on \d\.$", document)


def test_p_values_have_two_digits() -> None:
    assert [p_value(p) for p in (None, 1.0, 0.19246, 0.0316, 0.0004)] == [
        "—",
        "1",
        ".19",
        ".032",
        "below .001",
    ]


def test_seven_tasks_are_too_few_and_eight_are_not() -> None:
    claim = {"claim": "It helps", "compare": "old", "with": "new", "margin": 0.02, "expects": "better"}
    for count, few in ((7, True), (8, False)):
        values: Values = {
            "new": {f"t{i}": [0.5] for i in range(count)},
            "old": {f"t{i}": [0.6 + 0.01 * i] for i in range(count)},
        }
        result = sections(study(against="new", claims=[claim]), grid(values))
        assert ("with 7 tasks nothing is called better" in sentences(result)) is few
        assert ("With 7 tasks nothing is called" in table(result, "Every method against new").note) is few
        assert f"{'Open' if few else 'Confirmed'}: “It helps” — " in sentences(result)
        assert ("‘old’ is better than ‘new’." in sentences(result)) is not few
        row = table(result, "Claims and marks").rows[0]
        assert row[:3] == (
            ("It helps", "open", "too few tasks") if few else ("It helps", "confirmed", "better")
        )


def test_too_few_tasks_without_a_difference_are_between_no_ends() -> None:
    claim = {"claim": "It helps", "compare": "old", "with": "new", "margin": 0.02, "expects": "better"}
    values: Values = {name: {"t1": [0.5], "t2": [0.7]} for name in ("new", "old")}
    result = sections(study(claims=[claim]), grid(values))
    words = (
        "‘old’ and ‘new’ do not differ on any task; with 2 tasks nothing is called better, worse or the same."
    )
    assert words in sentences(result)
    assert "is between" not in sentences(result)
    assert table(result, "Claims and marks").rows[0][1:3] == ("open", "too few tasks")


def test_a_table_without_differences_speaks_of_none() -> None:
    cells = grid({"new": {"t1": [0.5], "t2": [None]}, "old": {"t1": [0.5], "t2": [0.6]}})
    note = table(sections(study(), cells), "Every method").note
    assert "Not complete, so that the mean is over fewer tasks: new." in note
    assert "difference" not in note.lower()


def test_a_row_of_too_few_tasks_among_others_is_named() -> None:
    tasks = [f"t{i}" for i in range(9)]
    values: Values = {
        "new": {task: [0.5] for task in tasks},
        "old": {task: [0.6] for task in tasks},
        "odd": {task: [0.6 if task in tasks[:3] else None] for task in tasks},
    }
    note = table(sections(study(against="new"), grid(values)), "Every method against new").note
    assert "Of fewer than 8 tasks, so that nothing is called better, worse or the same: odd." in note


def test_one_task_has_no_error_and_no_interval() -> None:
    claim = {"claim": "It helps", "compare": "old", "with": "new", "margin": 0.02}
    result = sections(study(against="new", claims=[claim]), grid({"new": {"t": [0.5]}, "old": {"t": [0.7]}}))
    assert _row(result, "old")[1:4] == ("70.0", "+20.0", "1/0/0")
    assert "differs from ‘new’ by +20.0 points; one task gives no interval." in sentences(result)


def test_a_claim_about_what_has_no_results_says_so() -> None:
    claim = {"claim": "It helps", "compare": "gone", "with": "new", "margin": 0.02}
    result = sections(study(against="gone", claims=[claim]), grid({"new": {"t": [0.5]}}))
    assert "No task has complete results for both ‘gone’ and ‘new’, so nothing can be said." in sentences(
        result
    )
    assert table(result, "Every method").columns[:2] == ("method", "mean\u00a0±\u00a0SE")


def test_a_study_of_which_nothing_is_done_says_so() -> None:
    claim = {"claim": "It helps", "compare": "old", "with": "new", "margin": 0.02}
    requests = ["gains", "relevance", "tuning", "curve", "energy", "wild"]
    rows = [cell("t", 0, method, None, settings={"k": k}) for method in ("new", "old") for k in (1, 2)]
    for cells in (rows, []):
        result = sections(study(against="new, k=1", claims=[claim], figures=requests), cells)
        assert f"No cell of this study is done (of {len(cells)})" in sentences(result)
        assert not [item for item in result if isinstance(item, Figure)]
        assert "nan" not in "".join(_texts(result)).lower().split()


def test_a_value_that_is_no_finite_number_is_a_failure() -> None:
    cells = [cell("t", 0, "new", math.nan), cell("t", 0, "old", math.inf)]
    result = sections(study(against="new"), cells)
    assert [row[2] for row in table(result, "What failed").rows] == ["The value is not a finite number."] * 2
    json.dumps(Findings(study(against="new"), cells).summary(), allow_nan=False)


@pytest.mark.parametrize("huge", [1e308, 10**400])
def test_numbers_of_which_a_sum_overflows_are_none(huge: float) -> None:
    cells = grid({"new": {"t1": [0.5], "t2": [0.5]}})
    for item in cells:
        item |= {"loss": huge, "detail": {"relevance": huge, "valid_loss": huge}, "settings": {"k": huge}}
    requests = ["gains", "relevance", "tuning", "curve", "energy"]
    summary = Findings(study(figures=requests), cells).summary()
    json.dumps(summary, allow_nan=False)
    assert [row["loss"] for row in summary["rows"]] == [None]


RATES = (1e-4, 1e-3)


def _tuning(pissa_high: float | None = 0.8) -> list[dict[str, Any]]:
    """Two variants at two rates on two tasks; lora is best at 1e-3 by loss, pissa at 1e-4 on t1 alone."""
    values = {("lora", 1e-4): 0.5, ("lora", 1e-3): 0.6, ("pissa", 1e-4): 0.7, ("pissa", 1e-3): pissa_high}
    losses = {("lora", 1e-4): 2.0, ("lora", 1e-3): 1.0}
    cells = []
    for (variant, item), value in values.items():
        for task in ("t1", "t2"):
            low = item == (1e-4 if task == "t1" else 1e-3)
            loss = losses.get((variant, item), 1.0 if low else 2.0)
            document = {"valid_loss": loss} if value is not None else {}
            settings = {"learning_rate": item, "variant": variant}
            failed = {} if value is not None else {"status": "failed", "error": "The loss is infinite."}
            cells.append(cell(task, 0, "new", value, settings=settings, detail=document, **failed))
    return cells


METHODS = {"new": {"use": "train", "rank": 8}}


def test_a_variant_is_compared_with_plain_lora_of_the_same_other_settings() -> None:
    values = {("lora", 20): 0.3, ("rslora", 20): 0.31, ("lora", 100): 0.6, ("rslora", 100): 0.61}
    cells = [
        cell(
            task,
            0,
            "new",
            value,
            settings={"learning_rate": item, "variant": variant, "steps": steps},
            detail={"valid_loss": item},
        )
        for (variant, steps), value in values.items()
        for item in RATES
        for task in ("t1", "t2")
    ]
    for rows in (tune_by_loss(Results(cells), METHODS), at_one_rate(Results(cells), METHODS)):
        document = {row.label: row.difference.mean for row in rows if row.difference}
        assert document == {
            "new, steps=20, variant=rslora": pytest.approx(0.01),
            "new, steps=100, variant=rslora": pytest.approx(0.01),
        }


def test_every_variant_is_tuned_by_its_validation_loss() -> None:
    plain, other = tune_by_loss(Results(_tuning()), METHODS)
    assert (plain.variant, plain.rank, plain.against, plain.difference) == ("lora", 8, None, None)
    assert plain.value is not None
    assert plain.value.mean == pytest.approx(0.6)
    assert other.value is not None
    assert other.value.mean == pytest.approx((0.7 + 0.8) / 2)
    assert other.against == "new, variant=lora"
    assert other.difference is not None
    assert other.difference.by_task == pytest.approx({"t1": 0.1, "t2": 0.2})
    assert (other.rates, other.edges) == ({1e-4: 1, 1e-3: 1}, 2)


def test_a_failed_training_is_never_chosen_and_a_missing_one_makes_the_task_not_count() -> None:
    other = tune_by_loss(Results(_tuning(pissa_high=None)), METHODS)[1]
    assert (other.rates, other.failed) == ({1e-4: 2}, 2)
    assert other.value is not None
    assert other.value.tasks == 2
    cells = _tuning()
    gone = next(
        item
        for item in cells
        if item["task"] == "t2" and item["settings"] == {"learning_rate": 1e-4, "variant": "pissa"}
    )
    gone.update(status="missing", value=None)
    other = tune_by_loss(Results(cells), METHODS)[1]
    assert other.value is not None
    assert other.value.tasks == 1


def test_one_rate_for_all_is_the_best_of_plain_lora() -> None:
    plain, other = at_one_rate(Results(_tuning()), METHODS)
    assert (plain.rates, other.rates) == ({1e-3: 2}, {1e-3: 2})
    assert other.difference is not None
    assert other.difference.mean == pytest.approx(0.2)


def test_variants_are_compared_over_the_seeds_that_both_have() -> None:
    cells = [
        cell(task, seed, method, value, settings={"learning_rate": 1e-4}, detail={"valid_loss": 1.0})
        for task in ("t1", "t2")
        for method, seed, value in (("plain", 0, 0.5), ("plain", 1, 0.9), ("other", 0, 0.6))
    ]
    methods = {"other": {"variant": "pissa"}}
    for rows in (tune_by_loss(Results(cells), methods), at_one_rate(Results(cells), methods)):
        plain, other = rows
        assert plain.value is not None
        assert plain.value.mean == pytest.approx(0.7)
        assert other.difference is not None
        assert other.difference.by_task == pytest.approx({"t1": 0.1, "t2": 0.1})


def test_variants_are_compared_at_their_rank_wherever_it_is_told() -> None:
    cells = []
    for method, rank, value in (("L8", 8, 0.5), ("L64", 64, 0.6), ("P64", 64, 0.8)):
        document = {"learning_rate": 1e-4, "rank": rank, "valid_loss": 1.0}
        cells.append(cell("t", 0, method, value, settings={"learning_rate": 1e-4}, detail=document))
    rows = tune_by_loss(Results(cells), {"P64": {"variant": "pissa"}})
    assert [(row.rank, row.against) for row in rows] == [(8, None), (64, None), (64, "L64")]


def test_a_tuning_study_says_what_tuning_changes() -> None:
    document = study(figures=["tuning"])
    document["study"]["methods"] = METHODS
    result = sections(document, _tuning())
    assert (
        "With the learning rate tuned, variants differ from plain LoRA of the same rank by +15.0 to +15.0"
        in sentences(result)
    )
    assert "With 2 tasks nothing is called better, worse or the same." in sentences(result)
    rows = table(result, "With the learning rate tuned").rows
    assert rows[1] == (
        "new, variant=pissa",
        "75.0 ± 5.0",
        "+15.0 [−48.5, +78.5]",
        "2/0/0",
        "0.250",
        "1e-4 × 1, 1e-3 × 1",
        "2 of 2",
        "0",
    )
    assert table(result, "At one learning rate").rows[1][-2:] == ("1e-3", "0")


def test_a_tuning_study_of_plain_lora_alone_says_that_it_claims_nothing() -> None:
    document = study(figures=["tuning"])
    document["study"]["methods"] = METHODS
    plain = [item for item in _tuning() if item["settings"]["variant"] == "lora"]
    assert sentences(sections(document, plain)) == (
        "The study states no claim to judge; the tables say what was measured."
    )


@pytest.mark.parametrize(("worst", "ticks"), [(1.5, set()), (40.0, {"1", "2", "5", "10", "20"})])
def test_losses_far_apart_stand_on_a_logarithmic_axis(worst: float, ticks: set[str]) -> None:
    document, cells = study(figures=["tuning"]), _tuning()
    document["study"]["methods"] = METHODS
    for item in cells:
        if item["detail"]["valid_loss"] == 2.0:
            item["detail"]["valid_loss"] = worst
    figure = find_section(sections(document, cells), "Learning rates")
    assert isinstance(figure, Figure)
    output = set(re.findall(r">([\d.]+)</text>", figure.svg))
    assert ticks <= output
    assert ("20" in output) is bool(ticks)


def test_points_of_a_curve_are_hollow_or_left_out_where_cells_are_not_done() -> None:
    cells = grid({"m": {"t1": [0.5], "t2": [0.7]}})
    cells = [{**item, "settings": {"k": 1}} for item in cells]
    cells += [cell("t1", 0, "m", 0.9, settings={"k": 2}), cell("t2", 0, "m", None, settings={"k": 2})]
    cells += [cell("t1", 0, "m", None, settings={"k": 3})]
    (line,) = lines(Results(cells).cells, "k", lambda item: item.value)
    assert [(item.x, item.tasks, item.whole) for item in line.points] == [(1, 2, True), (2, 1, False)]
    assert line.points[0].mean == pytest.approx(0.6)
    assert line.points[0].error == pytest.approx(0.1)
    assert line.left_out == (3,)
    (figure,) = [item for item in sections(study(figures=["curve"]), cells) if isinstance(item, Figure)]
    assert "Hollow points" in figure.note
    assert "Left out, since no task is complete there: m at 3." in figure.note


def _pools(relevances: list[float], more: float = 0.2) -> list[dict[str, Any]]:
    """A task for each relevance of its pool p; q is more relevant by so much, and gains a point more."""
    cells = []
    for i, relevance in enumerate(relevances):
        cells.append(cell(f"t{i}", 0, "new", 0.5))
        for pool, extra in (("p", 0.0), ("q", 1.0)):
            document = {"relevance": relevance + more * extra, "own": i == 0 and pool == "q"}
            value = 0.5 - relevance / 2 + 0.01 * extra
            cells.append(cell(f"t{i}", 0, "merge", value, pool=pool, detail=document))
        cells.append(cell(f"t{i}", 0, "other", 0.3, pool="p", detail={"relevance": relevance}))
    return cells


def test_relevance_and_gain_are_compared_within_a_task_and_a_method() -> None:
    # Over all cells, relevance and gain are opposed: tasks whose pools are more relevant gain less.
    result = relate(Results(_pools([0.1, 0.5])), "new")
    assert [(item.task, item.label, item.own) for item in result] == [
        ("t0", "merge | p", False),
        ("t0", "merge | q", True),
        ("t1", "merge | p", False),
        ("t1", "merge | q", False),
    ]
    assert [item.relevance for item in result] == pytest.approx([-0.1, 0.1, -0.1, 0.1])
    assert [item.gain for item in result] == pytest.approx([-0.005, 0.005, -0.005, 0.005])


def test_the_correlation_is_of_ranks() -> None:
    def points(gains: list[float]) -> list[Related]:
        return [
            Related(f"t{i}", "m", "p", False, x, y) for i, (x, y) in enumerate(zip(at, gains, strict=True))
        ]

    at = [0.1, 0.2, 0.7, 0.9]
    requests = correlation(points([0.0, 0.01, 0.04, 0.5]))
    assert requests is not None
    assert requests.rho == pytest.approx(1)
    assert (requests.points, requests.tasks) == (4, 4)
    swapped = correlation(points([0.0, 0.04, 0.01, 0.5]))
    assert swapped is not None
    assert swapped.rho == pytest.approx(0.8)
    assert correlation(points([0.5] * 4)) is None


def test_a_pool_of_which_relevance_is_not_known_is_no_point() -> None:
    cells = _pools([0.1, 0.2])
    cells[1]["detail"]["relevance"] = None
    assert {item.task for item in relate(Results(cells), "new")} == {"t1"}


def test_figures_are_those_asked_for_where_their_data_is_there() -> None:
    cells = _tuning() + _pools([0.1, 0.2, 0.7])
    cells += [
        cell("t1", 0, "lego", 0.4 + k / 100, settings={"k": k}, detail={"energy": k / 10}) for k in (1, 8)
    ]
    requests = ["gains", "relevance", "tuning", "curve", "energy", "wild"]
    document = {
        **study(against="new", figures=requests),
        "wild": {"learning_rate": [1e-4], "rank": [8, 16], "cards": 3},
    }
    names = [section.name for section in sections(document, cells) if isinstance(section, Figure)]
    assert names == ["gains", "relevance", "tuning", "curve-k", "energy-k", "wild"]
    document["study"]["report"]["figures"] = ["energy"]
    assert [section.name for section in sections(document, cells) if isinstance(section, Figure)] == [
        "energy-k"
    ]


def test_rates_of_the_wild_that_make_no_sense_are_left_out_and_counted() -> None:
    wild = {"learning_rate": [1e-4, 5000.0, 0, None, "x", math.nan], "rank": [8, True], "cards": 6}
    document = {**study(figures=["wild"]), "wild": wild}
    result = Findings(document, _tuning()).wild
    assert result is not None
    assert (result.rates, result.ranks, result.left_out) == ((1e-4,), (8,), 2)
    note = next(section.note for section in sections(document, _tuning()) if isinstance(section, Figure))
    assert "Left out: 2 rates outside 1e-8 to 10." in note


def test_rare_ranks_of_the_wild_share_a_bar() -> None:
    ranks = [8.0] * 5 + [16.0] * 4 + [float(rank) for rank in range(100, 150)]
    document = {**study(figures=["wild"]), "wild": {"rank": ranks, "cards": 59}}
    (figure,) = [section for section in sections(document, grid(PAIR)) if isinstance(section, Figure)]
    texts = re.findall(r">([^<>]+)</text>", figure.svg)
    bars = texts[texts.index("adapters") + 1 : texts.index("rank")]
    assert bars == ["8", "16", *(str(rank) for rank in range(100, 109)), "41 others"]


def test_the_size_is_said_and_small_is_called_small() -> None:
    result = find_section(sections(study(), grid(PAIR)), "How large this is")
    assert isinstance(result, Text)
    assert "".join(result.paragraphs) == (
        "3 tasks of 100 test examples, 2 seeds, 2 adapters, base model org/Tiny-135M: a small model "
        "(135 million parameters, by its name) and small tasks. What holds here need not hold for larger "
        "ones."
    )
    document = {**study(), "adapters": {}, "base": {"name": "meta/Llama-3.1-8B-Instruct", "digest": "0"}}
    large = find_section(sections(document, [cell("t", 0, "m", 0.5, n=5000)]), "How large this is")
    assert isinstance(large, Text)
    assert "a model (8 billion parameters, by its name) and tasks of different sizes." in large.paragraphs[0]
    assert "small" not in large.paragraphs[0]
    assert "adapters" not in large.paragraphs[0]


def test_what_was_run_is_said() -> None:
    rows = {row[0]: row[1] for row in table(sections(study(), grid(PAIR)), "What was run").rows}
    assert rows["base model"] == f"org/Tiny-135M ({'cd' * 6})"
    assert rows["time"] == "2.0 h, summed over steps"
    assert rows["versions"] == "python 3.11.2, torch 2.9.1"
    assert rows["device"] == "cpu, 1 thread, x86_64, 2 cores"
    assert rows["cells"] == "12 done"
    tasks = table(sections(study(), grid(PAIR)), "The tasks").rows
    assert tasks[0] == ("t1", "g", "accuracy", "100", "MIT", "ef" * 6)
    assert tasks[1] == ("t2", "—", "—", "100", "—", "—")


@pytest.mark.parametrize(
    ("text", "words"),
    [
        (points(0.8125), "81.2"),
        (points(-0.0004), "0.0"),
        (format_difference(0.0176), "+1.8"),
        (format_difference(-0.0004), "0.0"),
        (format_difference(-0.004), "−0.4"),
        (nats(-0.0), "0.000"),
        (nats(-0.0004), "0.000"),
        (level(0.07), "7 points"),
        (level(0.01), "1 point"),
        (interval(None), "—"),
        (rate(3.56e-4), "3.6e-4"),
        (rate(1e-4), "1e-4"),
        (rate(0.05), "0.05"),
        (duration(45), "45 s"),
        (duration(720), "12 min"),
    ],
)
def test_numbers_as_they_are_read(text: str, words: str) -> None:
    assert text == words


def test_no_tasks_have_no_mean() -> None:
    assert mean_and_error({}) is None


def _texts(result: list[Section]) -> Iterator[str]:
    for item in result:
        if isinstance(item, TableSection):
            yield from (text for row in item.rows for text in row)
            yield item.note
        elif isinstance(item, Text):
            yield from item.paragraphs
        else:
            yield item.note


def _numbers(value: Any) -> Iterator[float]:
    """Every number in a summary, and those inside its texts."""
    if isinstance(value, dict):
        for key, item in value.items():
            yield from _numbers(key)
            yield from _numbers(item)
    elif isinstance(value, (list, tuple)):
        for item in value:
            yield from _numbers(item)
    elif isinstance(value, str):
        yield from (float(item) for item in re.findall(r"\d+(?:\.\d+)?(?:e-?\d+)?", value))
    elif isinstance(value, (int, float)) and not isinstance(value, bool):
        yield abs(float(value))


def test_every_number_of_the_tables_is_in_the_summary() -> None:
    cells = _tuning() + _pools([0.1, 0.2, 0.7]) + grid({"old": {"t0": [0.31, None], "t1": [0.77, 0.78]}})
    document = study(against="new", figures=["gains", "relevance", "tuning"])
    names = set()
    for value in _numbers(json.loads(json.dumps(Findings(document, cells).summary(), allow_nan=False))):
        names |= {f"{100 * value:.1f}", f"{value:.3f}", f"{value:g}", rate(value), f"{value:.2f}"}
    result = sections(document, cells)
    requests = 0
    for title in (
        "Every method against new",
        "Task by task",
        "With the learning rate tuned",
        "At one learning rate",
    ):
        for row in table(result, title).rows:
            for text in row[1:]:
                for number in re.findall(r"\d+(?:\.\d+)?(?:e-?\d+)?", text):
                    assert number in names, (title, row, number)
                    requests += 1
    assert requests > 80


def test_the_same_results_give_the_same_sections() -> None:
    document = study(against="new", figures=["gains", "relevance", "tuning", "curve"])
    cells = _tuning() + _pools([0.1, 0.2, 0.7])
    assert sections(document, cells) == sections(document, cells)
