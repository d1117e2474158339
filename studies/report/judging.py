"""What the claims of a study come to: a word for each by its numbers, and a mark by what it expects.

Verdicts are by t tests over tasks with Holm's adjustment over the claims of the study, equality by two
one-sided tests at the margin that the claim declares.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from catalog.scores import holm, left_out_means
from studies.report.comparing import FEW, Difference, summarise

# The level of words, for all claims of a study together.
LEVEL = 0.05
# Shares such as 0.81 - 0.79 are not exact in binary.
_EXACT = 1e-9
BETTER, WORSE, EQUAL, SAME = "better", "worse", "about the same", "the same"
LITTLE_BETTER, LITTLE_WORSE = "better, by less than the margin", "worse, by less than the margin"
UNTOLD, TOO_FEW, ONE, NOTHING = "cannot be told", "too few tasks", "one task", "nothing to compare"
_WITHIN = frozenset({EQUAL, SAME, LITTLE_BETTER, LITTLE_WORSE})
# Words of which another may take the place when a task is left out, without the first having fallen.
_STANDS = {
    BETTER: {BETTER, LITTLE_BETTER},
    WORSE: {WORSE, LITTLE_WORSE},
    EQUAL: _WITHIN,
    SAME: _WITHIN,
    LITTLE_BETTER: {LITTLE_BETTER},
    LITTLE_WORSE: {LITTLE_WORSE},
}
Mark = Literal["confirmed", "contradicted", "open"]


@dataclass(frozen=True, slots=True)
class Compared:
    """The difference that speaks for or against a claim, the margin of equality, and what is expected."""

    difference: Difference | None
    margin: float
    expects: str | None = None


@dataclass(frozen=True, slots=True)
class Judgement:
    """The word for a claim and its mark; `holm_p` is the adjusted p-value.

    `left_out` are the smallest and largest mean difference with any one task left out, and the word does not
    stand without each task of `rests_on`.
    """

    word: str
    mark: Mark
    holm_p: float | None = None
    left_out: tuple[float, float] | None = None
    rests_on: tuple[str, ...] = ()


def judge_claims(claims: Sequence[Compared]) -> list[Judgement]:
    """The judgement of each of a study's claims, all of them one family."""
    adjusted = _adjust(claims)
    words = [_word(claim, p, FEW) for claim, p in zip(claims, adjusted, strict=True)]
    tasks = dict.fromkeys(task for claim in claims for task in _tasks(claim))
    rests: list[list[str]] = [[] for _ in claims]
    for task in tasks if any(word in _STANDS for word in words) else ():
        fewer = [_without(claim, task) for claim in claims]
        for at, (claim, p) in enumerate(zip(fewer, _adjust(fewer), strict=True)):
            word = words[at]
            if task in _tasks(claims[at]) and word in _STANDS and _word(claim, p, 0) not in _STANDS[word]:
                rests[at].append(task)
    return [
        Judgement(word, _mark(claim, word), p, _left_out(claim.difference), tuple(names))
        for claim, word, p, names in zip(claims, words, adjusted, rests, strict=True)
    ]


def _adjust(claims: Sequence[Compared]) -> list[float | None]:
    """Holm's p-values, None without a test; a claim that has no task or one yet is in the family with 1, and
    one whose difference is exactly 0 is not."""
    ps = [claim.difference.p if claim.difference else None for claim in claims]
    few = sum(claim.difference is None or claim.difference.tasks < 2 for claim in claims)
    adjusted = iter(holm([*(p for p in ps if p is not None), *[1.0] * few]))
    return [None if p is None else next(adjusted) for p in ps]


def _word(claim: Compared, p: float | None, least: int) -> str:
    difference, margin = claim.difference, claim.margin + _EXACT
    if difference is None:
        return NOTHING
    if difference.inner_low is None or difference.inner_high is None:
        return ONE
    if difference.tasks < least:
        return TOO_FEW
    if difference.p is None:
        return SAME
    within = -margin <= difference.inner_low and difference.inner_high <= margin
    if p is not None and p <= LEVEL:
        better = difference.mean > 0
        if within:
            return LITTLE_BETTER if better else LITTLE_WORSE
        return BETTER if better else WORSE
    return EQUAL if within else UNTOLD


def _mark(claim: Compared, word: str) -> Mark:
    """Whether the word is what the claim expects, the opposite, or neither."""
    below, above = _beyond(claim)
    confirmed = {
        "better": word in (BETTER, LITTLE_BETTER),
        "worse": word in (WORSE, LITTLE_WORSE),
        "same": word in _WITHIN,
        "not better": word in (WORSE, LITTLE_WORSE, EQUAL, SAME),
        "not worse": word in (BETTER, LITTLE_BETTER, EQUAL, SAME),
    }
    contradicted = {
        "better": word in (WORSE, LITTLE_WORSE, EQUAL, SAME),
        "worse": word in (BETTER, LITTLE_BETTER, EQUAL, SAME),
        "same": (word == BETTER and above) or (word == WORSE and below),
        "not better": word == BETTER,
        "not worse": word == WORSE,
    }
    if claim.expects is None:
        return "open"
    if confirmed[claim.expects]:
        return "confirmed"
    return "contradicted" if contradicted[claim.expects] else "open"


def _beyond(claim: Compared) -> tuple[bool, bool]:
    """Whether the whole 95 % interval lies below or above the margin."""
    difference = claim.difference
    if difference is None or difference.low is None or difference.high is None:
        return False, False
    return difference.high < -claim.margin, difference.low > claim.margin


def _tasks(claim: Compared) -> tuple[str, ...]:
    return tuple(claim.difference.by_task) if claim.difference else ()


def _without(claim: Compared, task: str) -> Compared:
    gaps = dict(claim.difference.by_task) if claim.difference else {}
    gaps.pop(task, None)
    return Compared(summarise(gaps, {}, sign_flips=False) if gaps else None, claim.margin)


def _left_out(difference: Difference | None) -> tuple[float, float] | None:
    if difference is None or difference.tasks < 2:
        return None
    means = left_out_means(list(difference.by_task.values()))
    return min(means), max(means)
