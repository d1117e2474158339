"""The claims that the published tables can answer, declared before they are judged, and their judgements.

Claims of one page are one family: verdicts are those of the studies (`studies.report.judging`), by t tests
over tasks with Holm's adjustment over the page's claims.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from studies.report.comparing import Difference, summarise
from studies.report.judging import Compared, Judgement, judge_claims

# Differences of scores, and of nDCG, below which two are about the same.
MARGIN = 0.02
OWN = ", own LoRA among them"
RAW = "all x 100: raw"
Expected = Literal["better", "not better", "same"]
_VERBS = {"better": "is above", "not better": "is not above", "same": "is about the same as"}


@dataclass(frozen=True, slots=True)
class PublishedClaim:
    """A statement on the difference in `column` of a row: `subject` beside `other`, and what is expected."""

    part: str
    row: str
    column: str
    subject: str
    other: str
    expects: Expected

    @property
    def key(self) -> tuple[str, str, str]:
        """Where its row is."""
        return self.part, self.row, self.column

    @property
    def statement(self) -> str:
        """The claim as a sentence without its full stop."""
        return f"{self.subject} {_VERBS[self.expects]} {self.other}"


@dataclass(frozen=True, slots=True)
class JudgedClaim:
    """A claim, its difference over tasks (None without one) and what that allows to say."""

    claim: PublishedClaim
    difference: Difference | None
    judgement: Judgement


def judge(
    family: Sequence[PublishedClaim], gaps: Mapping[tuple[str, str, str], Mapping[str, float]]
) -> list[JudgedClaim]:
    """The judgements of one family; `gaps` are the differences by task at the keys of the claims.

    Tasks whose difference is NaN are left out; a claim without differences counts in the family.
    """
    differences = []
    for claim in family:
        values = {task: gap for task, gap in gaps.get(claim.key, {}).items() if not math.isnan(gap)}
        differences.append(summarise(values, {}) if values else None)
    compared = [
        Compared(difference, MARGIN, claim.expects)
        for claim, difference in zip(family, differences, strict=True)
    ]
    return [JudgedClaim(*row) for row in zip(family, differences, judge_claims(compared), strict=True)]


_NEW, _BASE = "a new LoRA of 10 samples", "the base model"
_BEST = "best of the 100 samples"
LITTLE = tuple(
    PublishedClaim(part, row, "less new LoRA", subject, _NEW, "not better")
    for part, row, subject in (
        ("merged", "simple average", "the simple average of 30 adapters"),
        (
            "merged",
            f"simple average{OWN}",
            "the simple average with the task's own LoRA of 100 samples among them",
        ),
        ("merged", "TSV", "TSV of 30 adapters"),
        ("merged", "TIES", "TIES of 30 adapters"),
        ("alone", _BEST, "the one adapter that is best on 100 samples"),
    )
)
_CHOICE: tuple[tuple[str, str, str, str, str, Expected], ...] = (
    ("alone", _BEST, "less random", "the first adapter by 100 samples", "one at random", "same"),
    (
        "leaderboard",
        RAW,
        "best@30 less random",
        "the best of the first 30 by 100 samples",
        "that of 30 at random",
        "same",
    ),
    (
        "leaderboard",
        "prior",
        "top-1 less random",
        "the first adapter by scores on other tasks",
        "one at random",
        "same",
    ),
    ("alone", "adapter at random", "less base", "an adapter taken at random", _BASE, "not better"),
)
CHOICE = tuple(PublishedClaim(*row) for row in _CHOICE)
TRANSFER = (
    PublishedClaim("alone", _BEST, "less base", "the adapter that is best on 100 samples", _BASE, "better"),
    *(
        PublishedClaim(
            "merged",
            name,
            "less zero-shot",
            f"{subject} of 30 adapters, the task's own LoRA left out,",
            _BASE,
            "better",
        )
        for name, subject in (("simple average", "the simple average"), ("TIES", "TIES"))
    ),
    *(
        PublishedClaim(
            "merged",
            f"{name}{OWN}",
            "less the same without it",
            f"{subject} with the task's own LoRA among the adapters",
            "the same without it",
            "better",
        )
        for name, subject in (("simple average", "the simple average"), ("TSV", "TSV"), ("TIES", "TIES"))
    ),
)
PAPER = (*LITTLE, *CHOICE, *TRANSFER)
# Those of the page on choosing by scores.
_PRIOR, _ALL = "nDCG@30 less prior", f"nDCG@30 less {RAW}"
_RACE, _LARGE_RACE, _MEASURED = (
    "a race of 5,000 samples",
    "a race of 10,000 samples",
    "ranking by raw scores of 100 samples each",
)
_CHOOSING: tuple[tuple[str, str, str, str, Expected], ...] = (
    ("like tasks", _PRIOR, "tasks without samples", "prior", "better"),
    ("completion", _PRIOR, "completion without samples", "prior", "better"),
    ("race 5,000", _PRIOR, _RACE, "prior", "better"),
    (RAW, _PRIOR, _MEASURED, "prior", "better"),
    ("race 5,000", _ALL, _RACE, _MEASURED, "same"),
    ("race 10,000", _ALL, _LARGE_RACE, _MEASURED, "same"),
    (
        "all x 100: completion",
        _ALL,
        "completion of scores of 100 samples each",
        "ranking by them raw",
        "better",
    ),
)
CHOOSING = tuple(PublishedClaim("leaderboard", *row) for row in _CHOOSING)
