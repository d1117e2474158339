"""Metrics of generated text against values worked by hand, and formulas compared in a separate process."""

from __future__ import annotations

import io
import json
import math
import sys
from pathlib import Path

import pytest

from catalog import extras
from catalog.errors import EvaluationError, UsageError
from catalog.scores import OTHER_METRICS, SCORE_METRICS, TASK_METRICS, metric_of, score_problem
from merging.evaluation import compare_texts, measure, measurement, word_f1
from merging.evaluation.formulas import serve
from merging.evaluation.metrics import FormulaComparer
from merging.model import METRICS, examples, read_task
from tests.merging.tiny import tiny_base, write_task


@pytest.mark.parametrize(
    ("answer", "target", "f1"),
    [
        # Words without articles: cat sat / cat sat down; two are common.
        ("The cat sat.", "a cat sat down", 2 * 2 / 5),
        ("yes", "no", 0.0),
        ("Denver, Broncos!", "denver broncos", 1.0),
        # A word counts as often as it is in both.
        ("no no no", "no", 2 * 1 / 4),
        ("the", "a", 1.0),
        ("the", "cat", 0.0),
        ("12.5", "125", 1.0),
    ],
)
def test_f1_of_words(answer: str, target: str, f1: float) -> None:
    assert word_f1(answer, target) == pytest.approx(f1)


def test_rouge_is_that_of_common_words_pairs_and_subsequences() -> None:
    # Words: the cat sat on mat / the cat lay on the mat.
    answer, target = ["the cat sat on mat"], ["the cat lay on the mat"]
    by_hand = {
        "rouge1": 2 * 4 / (5 + 6),  # the, cat, on, mat
        "rouge2": 2 * 1 / (4 + 5),  # the cat
        "rougeL": 2 * 4 / (5 + 6),
    }
    assert {name: compare_texts(name, answer, target) for name in by_hand} == {
        name: (pytest.approx(value), (pytest.approx(value),)) for name, value in by_hand.items()
    }


def test_bleu_is_that_of_all_answers_together() -> None:
    answers = ["the cat sat on the mat today", "a dog"]
    targets = ["the cat sat on the mat now", "a dog"]
    # Of all answers 8 of 9 words, 6 of 7 pairs, 4 of 5 triples, 3 of 4 of four words; as long as the targets.
    by_hand = (8 / 9 * 6 / 7 * 4 / 5 * 3 / 4) ** 0.25
    assert compare_texts("bleu", answers, targets) == (pytest.approx(by_hand), ())
    assert compare_texts("bleu", targets, targets)[0] == pytest.approx(1.0)


def test_chrf_is_the_f_score_of_characters_with_beta_two() -> None:
    # n-grams of 1 to 6 characters of abcd and abce: 3/4, 2/3, 1/2, 0; longer ones are in neither.
    mean = (3 / 4 + 2 / 3 + 1 / 2 + 0) / 4
    value, each = compare_texts("chrf", ["abcd"], ["abce"])
    assert each == ()
    assert value == pytest.approx(mean)


def test_formulas_are_compared_as_numbers_and_terms() -> None:
    pairs = {
        ("1,000", "1000"): True,
        (r"$\frac12$", "0.5"): True,
        ("The answer is 5.", "5"): True,
        ("12.5", "125"): False,
        ("6", "5"): False,
        ("$x^2+2x+1$", "$(x+1)^2$"): True,
        ("x^2+2x+1", "(x+1)^2"): True,
        (r"2 \pi", "2"): False,
        (r"\sqrt{2}", r"\sqrt{2}"): True,
        (r"so it is \boxed{\sqrt{5}}", r"\sqrt{5}"): True,
        ("", "5"): False,
    }
    out = io.StringIO()
    serve([json.dumps(pair) for pair in pairs], out)
    assert out.getvalue().splitlines() == ["ready", *(json.dumps(value) for value in pairs.values())]


def test_an_answer_that_takes_too_long_is_wrong_and_the_next_is_compared() -> None:
    # Says nothing to the first line, ends at the second, and answers another.
    script = (
        "import sys\nprint('ready', flush=True)\nfor line in sys.stdin:\n"
        "    if 'end' in line: break\n    if 'long' not in line: print('true', flush=True)"
    )
    with FormulaComparer([sys.executable, "-S", "-c", script]) as comparer:
        answers = [
            comparer.compare(answer, "5", patience)
            for answer, patience in (("long", 0.01), ("5", 60), ("end", 60), ("5", 60))
        ]
    assert answers == [False, True, False, True]
    with FormulaComparer([sys.executable, "-S", "-c", ""]) as comparer, pytest.raises(EvaluationError):
        comparer.compare("5", "5")


def test_each_metric_of_a_task_is_measured_on_its_texts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(measurement, "generate", lambda _base, prompts, **_: ["the cat"] * len(prompts))
    for name in ("exact_match", "f1", "rouge1", "chrf"):
        folder = write_task(tmp_path / name, [("a", "a cat"), ("b", "no")], choices=None, metric=name)
        task = read_task(folder)
        measured = measure(tiny_base(), task, examples(task, "test"))
        # Only where answers are right or wrong is there an outcome of each.
        assert measured.outcomes == ((False, False) if name == "exact_match" else ())
        value = measured.value
        assert value == pytest.approx(compare_texts(name, ["the cat"] * 2, ["a cat", "no"])[0])
        assert (name == "exact_match") is (value == 0)


def test_a_library_that_is_not_installed_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(extras, "find_spec", lambda _name: None)
    with pytest.raises(UsageError, match=r"The metric bleu requires the extra metrics .*loradex\[metrics\]"):
        compare_texts("bleu", ["a"], ["a"])
    assert compare_texts("f1", ["b"], ["b"]) == (1.0, (1.0,))


def test_the_table_of_metrics_has_ranges_and_directions() -> None:
    assert {name: row.name for name, row in TASK_METRICS.items()} == METRICS
    assert METRICS["exact_match"] == "exact_match_stripped"
    assert {name for name, row in SCORE_METRICS.items() if not row.higher_is_better} == {
        "bits_per_byte",
        "brier_score",
        "byte_perplexity",
        "loss",
        "nll",
        "perplexity",
        "ter",
        "word_perplexity",
    }
    assert "perplexity" in OTHER_METRICS
    assert "bleu" not in OTHER_METRICS
    assert (metric_of("mcc").low, metric_of("perplexity").high) == (-1.0, math.inf)
    assert metric_of("acc_of_somebody").is_share
    assert score_problem("chrf", 40.2, 100) == "its chrf is 40.2, not a number from 0 to 1"
    assert score_problem("chrf", 0.402, 100) is None
    assert score_problem("mcc", -0.2, 100) is None
