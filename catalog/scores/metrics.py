"""The valid values of a score: the range of each metric, and the limit of the number of samples."""

from __future__ import annotations

import math
import sys

MOST_SAMPLES = 2**63 - 1
# Answers compared as the recycling paper's code does. By "exact_match" itself the first versions meant a rule
# that deleted every full stop and all white space, so that 12.5 was 125; scores by the two never mix.
EXACT_MATCH = "exact_match_stripped"
SUCCESSORS = {"exact_match": EXACT_MATCH}
# Any other metric is a share, from 0 to 1, the higher the better.
_RANGES: dict[str, tuple[float, float]] = {
    **dict.fromkeys(("kendall", "matthews_correlation", "mcc", "pearson", "spearman"), (-1.0, 1.0)),
    **dict.fromkeys(("loss", "nll", "perplexity"), (0.0, math.inf)),
}
OTHER_METRICS = frozenset(_RANGES)
"""Metrics that are not shares: stored, but not used for rankings."""


def score_problem(metric: str, value: object, n: object) -> str | None:
    """Why this is not a valid score by a metric on `n` samples (None: unknown); None if it is valid."""
    low, high = _RANGES.get(metric, (0.0, 1.0))
    if not _is_value(value, low, min(high, sys.float_info.max)):
        return f"its {metric} is {_short(value)}, not a number {_range(low, high)}"
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
