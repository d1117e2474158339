"""The metrics of scores: range, direction and source of each, and the valid values of a score.

One row is one metric, for `scores import`, for task.json and for rankings. Libraries are only named here;
`merging.evaluation` imports them.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Mapping
from dataclasses import dataclass

MOST_SAMPLES = 2**63 - 1
# Answers compared as the recycling paper's code does. By "exact_match" itself the first versions meant a rule
# that deleted every full stop and all white space, so that 12.5 was 125; scores by the two never mix.
EXACT_MATCH = "exact_match_stripped"
SUCCESSORS = {"exact_match": EXACT_MATCH}


@dataclass(frozen=True, slots=True)
class ScoreMetric:
    """A metric: its values lie from `low` to `high`, and higher ones are better unless stated.

    `library` is the package that computes it, "" for own code. `task` is its name in task.json, "" if no task
    can have it. An answer is right or wrong unless the metric is `graded`; `whole` says that it is computed
    on all examples together and is not a mean over them.
    """

    name: str
    summary: str
    low: float = 0.0
    high: float = 1.0
    higher_is_better: bool = True
    library: str = ""
    task: str = ""
    graded: bool = False
    whole: bool = False

    @property
    def is_share(self) -> bool:
        """Whether it can rank adapters over several tasks: from 0 to 1, the higher the better."""
        return (self.low, self.high, self.higher_is_better) == (0.0, 1.0, True)


_ROWS = (
    ScoreMetric("accuracy", "Share of examples whose choice is the right one.", task="accuracy"),
    ScoreMetric("exact_match", "Share of equal texts by the rule of the first versions."),
    ScoreMetric(
        EXACT_MATCH,
        "Share of texts that are equal without case, blanks, and full stops and line ends at their ends.",
        task="exact_match",
    ),
    ScoreMetric("f1", "Mean F1 of the words of answer and target, as in SQuAD.", task="f1", graded=True),
    ScoreMetric(
        "math_verify",
        "Share of answers that equal the target as numbers or formulas.",
        library="math-verify",
        task="math_verify",
    ),
    *(
        ScoreMetric(
            name, f"Mean F1 of {unit}, without stemming.", library="rouge-score", task=name, graded=True
        )
        for name, unit in {
            "rouge1": "common words",
            "rouge2": "common pairs of words",
            "rougeL": "the longest common subsequence of words",
        }.items()
    ),
    *(
        ScoreMetric(
            name.lower(),
            f"{name} of all answers, divided by 100.",
            library="sacrebleu",
            task=name.lower(),
            graded=True,
            whole=True,
        )
        for name in ("BLEU", "chrF")
    ),
    *(
        ScoreMetric(name, "A correlation.", low=-1.0)
        for name in ("kendall", "matthews_correlation", "mcc", "pearson", "spearman")
    ),
    *(
        ScoreMetric(name, "A loss: the lower, the better.", high=math.inf, higher_is_better=False)
        for name in ("loss", "nll", "perplexity")
    ),
    *(
        ScoreMetric(name, f"{text} of lm-evaluation-harness.", high=high, higher_is_better=False)
        for name, text, high in (
            ("word_perplexity", "Perplexity by words", math.inf),
            ("byte_perplexity", "Perplexity by bytes", math.inf),
            ("bits_per_byte", "Bits a byte", math.inf),
            ("ter", "Edits a hundred words", math.inf),
            ("brier_score", "Sum of squared errors of probabilities", 2.0),
        )
    ),
)
SCORE_METRICS: Mapping[str, ScoreMetric] = {row.name: row for row in _ROWS}
TASK_METRICS: Mapping[str, ScoreMetric] = {row.task: row for row in _ROWS if row.task}
"""The metrics of task.json by their names there."""
OTHER_METRICS = frozenset(row.name for row in _ROWS if not row.is_share)
"""Metrics that are not shares: stored, but not used for rankings."""


def metric_of(name: str) -> ScoreMetric:
    """The metric of this name; one that is not listed is a share, from 0 to 1, the higher the better."""
    return SCORE_METRICS.get(name) or ScoreMetric(name, "A share.")


def score_problem(metric: str, value: object, n: object) -> str | None:
    """Why this is not a valid score by a metric on `n` samples (None: unknown); None if it is valid."""
    row = metric_of(metric)
    if not _is_value(value, row.low, min(row.high, sys.float_info.max)):
        return f"its {metric} is {_short(value)}, not a number {_range(row.low, row.high)}"
    if n is not None and not _is_count(n):
        return f"its number of samples is {_short(n)}, not a whole number from 1 to {MOST_SAMPLES:,}"
    return None


def _is_value(value: object, low: float, high: float) -> bool:
    """Whether it is a number in the range; integers are compared exactly, and NaN is in none."""
    return isinstance(value, (int, float)) and not isinstance(value, bool) and low <= value <= high


def _is_count(n: object) -> bool:
    return isinstance(n, int) and not isinstance(n, bool) and 1 <= n <= MOST_SAMPLES


def _range(low: float, high: float) -> str:
    return f"from {low:g} to {high:g}" if math.isfinite(high) else f"from {low:g} up"


def _short(value: object) -> str:
    text = repr(value)
    return text if len(text) <= 40 else f"{text[:40]}…"
