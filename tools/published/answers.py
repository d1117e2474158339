"""What the published tables say of the paper's four claims: sentences made of the rows, and no others."""

from __future__ import annotations

from collections.abc import Sequence

from catalog.pictures import count_noun
from studies.report.comparing import Difference
from studies.report.judging import (
    BETTER,
    EQUAL,
    LITTLE_BETTER,
    LITTLE_WORSE,
    ONE,
    SAME,
    TOO_FEW,
    UNTOLD,
    WORSE,
)
from studies.report.page import TableSection, Text
from studies.report.wording import p_value, resting
from tools.published.claims import (
    CHOICE,
    LITTLE,
    MARGIN,
    OWN,
    PAPER,
    TRANSFER,
    JudgedClaim,
    PublishedClaim,
    judge,
)
from tools.published.quoted import HEADLINE, Row, find_figure

_NOTHING = "—"
_CHOSEN = HEADLINE["adaptive merge of 30 chosen, own LoRA left out"]
_CHOSEN_OWN = HEADLINE["adaptive merge of 30 chosen, own LoRA among them"]
_RANDOM_OWN = HEADLINE["adaptive merge of 30 at random, own LoRA among them"]
_DRAWN = HEADLINE["adaptive merge of 30 with random parameters, own LoRA left out"]
_DRAWN_OWN = HEADLINE["adaptive merge of 30 with random parameters, own LoRA among them"]
_NEW = HEADLINE["new LoRA of 100 samples"]


class Book:
    """The rows by part, row and column, in their order."""

    def __init__(self, rows: Sequence[Row]) -> None:
        self.rows = rows
        self._at = {(row["part"], row["row"], row["column"]): row for row in rows}

    def get(self, part: str, name: str, column: str) -> Row | None:
        row = self._at.get((part, name, column))
        return None if row is None or row["value"] is None else row

    def names(self, part: str, column: str) -> list[str]:
        return [row["row"] for row in self.rows if (row["part"], row["column"]) == (part, column)]


def number(value: float | None, decimals: int = 3, *, signed: bool = False) -> str:
    """0.577, +0.033, 1,274; a dash where there is none."""
    if value is None:
        return _NOTHING
    text = f"{value:+,.{decimals}f}" if signed else f"{value:,.{decimals}f}"
    return text.replace("-", "−") if float(text.replace(",", "")) else f"{0:.{decimals}f}"


def format_row(row: Row) -> str:
    """The number with its interval; a difference has a sign."""
    value, low, high = row["value"], row["low"], row["high"]
    signed, figure = "less" in row["column"] or "gain" in row["column"], find_figure(row)
    decimals = 3 if figure is None else max(figure.decimals, 1)
    if value is not None and (abs(value) > 1 if low is not None else value.is_integer()):
        decimals = 0
    elif low is not None:
        decimals = 3
    if row["column"] == "samples":
        decimals = 0
    text = number(value, decimals, signed=signed)
    if low is None or high is None:
        return text
    return f"{text} [{number(low, decimals, signed=signed)}, {number(high, decimals, signed=signed)}]"


# By the word of `studies.report.judging`, between the two that a claim compares.
_VERBS = {
    BETTER: "is above",
    WORSE: "is below",
    LITTLE_BETTER: "is above, by less than the margin,",
    LITTLE_WORSE: "is below, by less than the margin,",
    EQUAL: "is about the same as",
    SAME: "is the same on every task as",
    UNTOLD: "cannot be told from",
    TOO_FEW: "is of too few tasks to be told from",
    ONE: "is of one task, too few to be told from",
}


def judge_book(book: Book, family: Sequence[PublishedClaim]) -> list[JudgedClaim]:
    """The claims of a family by the rows that are there."""
    rows = ((claim.key, book.get(*claim.key)) for claim in family)
    return judge(family, {key: row["by_task"] for key, row in rows if row and "by_task" in row})


def _sentences(judged: Sequence[JudgedClaim]) -> list[str]:
    """A sentence for each claim that has results: which way it goes, or that it cannot be told."""
    sentences = []
    for row in judged:
        difference, judgement, claim = row.difference, row.judgement, row.claim
        if difference is None:
            continue
        subject = f"{claim.subject[0].upper()}{claim.subject[1:]}"
        ps = f"p {p_value(difference.p)}, by Holm {p_value(judgement.holm_p)}"
        sentences.append(
            f"{subject} {_VERBS[judgement.word]} {claim.other}{resting(judgement.rests_on)}: "
            f"{format_gap(difference)} over {count_noun(difference.tasks, 'task')}, {ps}."
        )
    return sentences


def format_gap(difference: Difference) -> str:
    """A mean difference with its interval: +0.109 [+0.070, +0.149]."""
    text = number(difference.mean, signed=True)
    if difference.low is None or difference.high is None:
        return text
    return f"{text} [{number(difference.low, signed=True)}, {number(difference.high, signed=True)}]"


def claims_table(book: Book, title: str, family: Sequence[PublishedClaim]) -> TableSection | None:
    """The claims of a family with marks and numbers; None where none has results."""
    judged = judge_book(book, family)
    if not any(row.difference for row in judged):
        return None
    rows = []
    for row in judged:
        difference = row.difference
        rows.append(
            (
                row.claim.statement,
                row.judgement.mark,
                f"{row.judgement.word}{resting(row.judgement.rests_on)}",
                _NOTHING if difference is None else format_gap(difference),
                _NOTHING if difference is None else str(difference.tasks),
                p_value(difference.p if difference else None),
                p_value(row.judgement.holm_p),
            )
        )
    columns = ("claim", "mark", "word", "difference [95 %]", "tasks", "p", "Holm")
    return TableSection(title, columns, tuple(rows), _CLAIMS_NOTE)


_CLAIMS_NOTE = (
    "Differences are paired over tasks, with 95 % t intervals. Better and worse need p ≤ .05 of the t test "
    "after Holm's adjustment over the claims of this table, about the same a 90 % t interval inside "
    f"±{MARGIN:g}. Mark: whether the word is what the claim says."
)


def claims(book: Book) -> Text | None:
    judged = {row.claim: row for row in judge_book(book, PAPER)}
    little, choice, transfer = (
        _sentences([judged[claim] for claim in family]) for family in (LITTLE, CHOICE, TRANSFER)
    )
    paragraphs = [
        " ".join([head, *sentences, tail])
        for head, sentences, tail in (
            (
                "1. Recycling gives little over a new LoRA: answered for merges without training alone.",
                [*little, *_new_lora_sentences(book)],
                _REST[0],
            ),
            (
                "2. Which adapters are chosen hardly matters: answered for adapters alone, not for merges.",
                choice,
                _REST[1],
            ),
            ("3. Random parameters do as well: not answered.", [], _REST[2]),
            (
                "4. Relevant adapters transfer: answered in part.",
                [*transfer, *_correlation_sentences(book)],
                _REST[3],
            ),
        )
    ]
    return (
        Text("What the published tables say", ("Scores are shares of right answers.", *paragraphs))
        if book.rows
        else None
    )


_REST = (
    (
        "The 30 adapters were chosen by ten times as many samples as that LoRA had. The claim itself, an "
        "adaptive merge against a new LoRA of the same 100 samples, cannot be judged: in print are the means "
        f"{_CHOSEN_OWN} and {_NEW}, no score of a task."
    ),
    (
        "Whether any of it is left in an adaptive merge cannot be told: the merges in the folder are all of "
        f"one choice. In print, with the own LoRA among them, are {_CHOSEN_OWN} for chosen adapters and "
        f"{_RANDOM_OWN} for random ones."
    ),
    (
        "No file in the folder has a run with random parameters. In print are "
        f"{_DRAWN_OWN} against {_CHOSEN_OWN} with the own LoRA among them, and {_DRAWN} against {_CHOSEN} "
        "without it; neither difference has an interval."
    ),
    "The paper's own test, a pool of LoRAs trained for the other tasks by one recipe, is not in the folder.",
)


def _new_lora_sentences(book: Book) -> list[str]:
    row = book.get("merged", f"simple average{OWN}", "score")
    if row is None:
        return []
    value = number(row["value"])
    return [
        f"The average with the own LoRA among them reaches {value}; in print, that LoRA alone has {_NEW}."
    ]


def _correlation_sentences(book: Book) -> list[str]:
    row = book.get("relevance", "simple average", "rank correlation, base held")
    if row is None or row["low"] is None:
        return []
    text = (
        "How much the 30 best adapters gain alone and how much their simple average gains have a rank "
        f"correlation of {format_row(row)} over {row['tasks']} tasks, with the base's score held; it is none "
        "of the claims."
    )
    return [text]


def agreement(book: Book) -> Text | None:
    """How many of the figures in print come out to their last digit, and which do not."""
    checked = [
        (row, figure, row["value"])
        for row in book.rows
        if (figure := find_figure(row)) and figure.complete and row["value"] is not None
    ]
    if not checked:
        return None
    wrong = [(row, figure, value) for row, figure, value in checked if not figure.agrees(value)]
    right = len(checked) - len(wrong)
    of = f"{right} of {len(checked)} figures in print that rest on files which are here in full"
    paragraphs = [f"{of} come out to their last digit."]
    for row, figure, value in wrong:
        why = f": {figure.why}" if figure.why else "; why is not known"
        here = number(value, max(figure.decimals, 1))
        paragraphs.append(f"{row['part']}, {row['row']}: {here}, in print {figure.text}{why}.")
    partial = [
        row
        for row in book.rows
        if (figure := find_figure(row)) and not figure.complete and row["value"] is not None
    ]
    if partial:
        paragraphs.append(
            f"{len(partial)} other figures in print are of more tasks than the folder has test scores of; "
            "they stand beside these for comparison and need not agree."
        )
    return Text("Agreement with the figures in print", tuple(paragraphs))
