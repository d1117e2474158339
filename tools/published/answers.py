"""What the published tables say of the paper's four claims: sentences made of the rows, and no others."""

from __future__ import annotations

from collections.abc import Sequence

from studies.report.page import Text
from tools.published.quoted import HEADLINE, Row, find_figure

_NOTHING = "—"
_OWN = ", own LoRA among them"
_RAW = "all x 100: raw"
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
    text = number(value, decimals, signed=signed)
    if low is None or high is None:
        return text
    return f"{text} [{number(low, decimals, signed=signed)}, {number(high, decimals, signed=signed)}]"


def _compare(book: Book, part: str, name: str, column: str, subject: str, other: str) -> list[str]:
    """A sentence on a difference: which way it goes, or that it cannot be told, and the numbers."""
    row = book.get(part, name, column)
    if row is None or row["low"] is None or row["high"] is None:
        return []
    way, zero = "cannot be told from", "the interval holds zero"
    if row["low"] > 0 or row["high"] < 0:
        way, zero = ("is above" if row["low"] > 0 else "is below"), "the interval excludes zero"
    return [f"{subject} {way} {other}: {format_row(row)} over {row['tasks']} tasks; {zero}."]


def claims(book: Book) -> Text | None:
    paragraphs = [
        " ".join([head, *sentences, tail])
        for head, sentences, tail in (
            (
                "1. Recycling gives little over a new LoRA: answered for merges without training alone.",
                _little(book),
                _REST[0],
            ),
            (
                "2. Which adapters are chosen hardly matters: answered for adapters alone, not for merges.",
                _choice(book),
                _REST[1],
            ),
            ("3. Random parameters do as well: not answered.", [], _REST[2]),
            ("4. Relevant adapters transfer: answered in part.", _transfer(book), _REST[3]),
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


def _little(book: Book) -> list[str]:
    new = "a new LoRA of 10 samples"
    sentences = [
        *_compare(
            book, "merged", "simple average", "less new LoRA", "The simple average of 30 adapters", new
        ),
        *_compare(
            book,
            "merged",
            f"simple average{_OWN}",
            "less new LoRA",
            "With the task's own LoRA of 100 samples among them it",
            new,
        ),
        *_compare(book, "merged", "TSV", "less new LoRA", "TSV", new),
        *_compare(book, "merged", "TIES", "less new LoRA", "TIES", new),
        *_compare(book, "merged", "TIES", "less zero-shot", "TIES", "the base model"),
        *_compare(
            book,
            "alone",
            "best of the 100 samples",
            "less new LoRA",
            "The one adapter that is best on 100 samples",
            new,
        ),
    ]
    row = book.get("merged", f"simple average{_OWN}", "score")
    if row is not None:
        sentences.append(
            f"The simple average with the own LoRA among them reaches {number(row['value'])}; in print, that "
            f"LoRA alone reaches {_NEW}."
        )
    return sentences


def _choice(book: Book) -> list[str]:
    first = "The first adapter by 100 samples"
    best = "The best of the first 30 by 100 samples"
    return [
        *_compare(book, "alone", "best of the 100 samples", "less random", first, "one at random"),
        *_compare(book, "leaderboard", _RAW, "best@30 less random", best, "that of 30 at random"),
        *_compare(
            book,
            "leaderboard",
            "prior",
            "top-1 less random",
            "The first adapter by scores on other tasks",
            "one at random",
        ),
        *_compare(
            book,
            "leaderboard",
            _RAW,
            "nDCG@30 less prior",
            "nDCG@30 by 100 samples",
            "that by scores on other tasks",
        ),
    ]


def _transfer(book: Book) -> list[str]:
    sentences = [
        *_compare(
            book,
            "alone",
            "best of the 100 samples",
            "less base",
            "The adapter that is best on 100 samples",
            "the base model",
        ),
        *_compare(
            book,
            "merged",
            "simple average",
            "less zero-shot",
            "The simple average of 30 adapters, the task's own LoRA left out,",
            "the base model",
        ),
    ]
    for name in ("simple average", "TSV", "TIES"):
        subject = f"{name[0].upper()}{name[1:]} with the task's own LoRA among the adapters"
        sentences += _compare(
            book, "merged", f"{name}{_OWN}", "less the same without it", subject, "the same without it"
        )
    row = book.get("relevance", "simple average", "rank correlation, base held")
    if row is not None and row["low"] is not None and row["high"] is not None:
        sure = "excludes" if row["low"] > 0 or row["high"] < 0 else "holds"
        sentences.append(
            "How much the 30 best adapters gain alone and how much their simple average gains go together by "
            f"a rank correlation of {format_row(row)} over {row['tasks']} tasks, with the base's score held; "
            f"the interval {sure} zero."
        )
    return sentences


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
