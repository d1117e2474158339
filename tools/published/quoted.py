"""Figures that are in print about the published tables, and the rows that stand beside them.

`complete` figures were computed from files that the folder holds in full, and must come out to their last
digit. The others are of more tasks than the folder has test scores of, or of runs that were not published by
task.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import NotRequired, TypedDict

from tools.published.claims import CHOOSING, PAPER


class Row(TypedDict):
    """One number of the study: its interval of 95 % over `tasks` tasks, and the figure in print, if any.

    The rows that claims rest on have their numbers by task as well.
    """

    part: str
    row: str
    column: str
    value: float | None
    low: float | None
    high: float | None
    published: float | None
    tasks: int | None
    by_task: NotRequired[dict[str, float]]


@dataclass(frozen=True, slots=True)
class Quoted:
    """A figure as printed, so that its digits count, the number of its tasks, and why it may differ here."""

    text: str
    tasks: int | None = None
    complete: bool = True
    why: str = ""

    @property
    def decimals(self) -> int:
        """How many digits stand behind the point."""
        return len(self.text.partition(".")[2])

    def agrees(self, value: float) -> bool:
        """Whether the value, rounded as the figure is, is the figure."""
        return f"{value:.{self.decimals}f}" == self.text


def find_figure(row: Row) -> Quoted | None:
    """The figure in print for a row's number."""
    return QUOTED.get((row["part"], row["row"], row["column"]))


def make_row(
    part: str,
    row: str,
    column: str,
    value: float | None = None,
    *,
    ends: tuple[float, float] | None = None,
    tasks: int | None = None,
    by_task: Mapping[str, float] | None = None,
) -> Row:
    """The row with what is in print beside it; a value that is no number is None.

    `by_task` is kept where a claim rests on the row.
    """
    figure = QUOTED.get((part, row, column))
    low, high = (None, None) if ends is None or value is None or value != value else ends
    made = Row(
        part=part,
        row=row,
        column=column,
        value=None if value is None or value != value else float(value),
        low=None if low is None or low != low else float(low),
        high=None if high is None or high != high else float(high),
        published=None if figure is None else float(figure.text),
        tasks=tasks,
    )
    if by_task and (part, row, column) in _CLAIMED:
        made["by_task"] = dict(by_task)
    return made


_CLAIMED = frozenset(claim.key for claim in (*PAPER, *CHOOSING))
_POOL = {
    "adapters": "960",
    "with a known configuration": "955",
    "owners": "295",
    "owners of adapters with a known configuration": "292",
    "a UUID in the name": "190",
    "different UUIDs in names": "180",
    "named by a UUID, configuration known": "186",
    "owners of those": "68",
    "copies of llama381binstruct_summarize": "32",
    "owner clembench-playpen": "99",
    "owner GaetanMichelet": "98",
    "owner chchen": "61",
    "owner gotzmann": "23",
    "owner barc0": "23",
    "owner LangAGI-Lab": "21",
    "owner CounterNarratives": "20",
    "owner CharlesLi": "18",
    "rank 8": "274",
    "rank 16": "285",
    "rank 32": "136",
    "rank 64": "199",
    "rank 96": "5",
    "rank 128": "24",
    "rank 256": "29",
    "rank 4": "1",
    "rank 25": "1",
    "rank 512": "1",
    "rank, mean": "37",
    "rank, sum": "35357",
    "alpha 8": "14",
    "alpha 16": "511",
    "alpha 32": "245",
    "alpha 64": "81",
    "alpha 128": "71",
    "alpha 256": "10",
    "alpha 512": "20",
    "alpha / rank 2": "497",
    "alpha / rank 1": "260",
    "alpha / rank 0.5": "115",
    "alpha / rank 0.25": "55",
    "alpha / rank 4": "19",
    "dropout 0.05": "487",
    "dropout 0": "320",
    "dropout 0.1": "131",
    "end of sequence <|eot_id|>": "859",
    "sets of target modules": "14",
    "pairs of rank and target modules": "41",
    "targets all 7 linear": "765",
    "targets q, v": "90",
    "targets all 7 linear, lm_head": "39",
    "targets q, k, v": "22",
    "targets q, k, v, o": "14",
    "targets q, k, v, o, gate": "10",
    "targets with lm_head or embed_tokens": "41",
    "parameters, 10⁹": "77.5",
    "bytes in bfloat16, 10⁹": "155",
    "parameters, mean, 10⁶": "81",
    "parameters, median, 10⁶": "41.9",
    "parameters, largest, 10⁶": "738",
    "ranks of 30 at random, mean of the sum": "1112",
    "ranks of 30 at random, 5 % of sums below": "728",
    "ranks of 30 at random, 95 % of sums below": "1592",
    "adapters scored on the 100 samples": "1187",
    "adapters scored on test": "1274",
    "adapters scored on test, not in the pool": "314",
}
# Over all the tasks with test scores that were published.
_NOT_WHOLE_POOL = {"no-op adapters": "66", "no-op adapters in the pool": "3"}
_WHY = {
    "ranks of 30 at random, mean of the sum": (
        "the figure in print is a mean of draws; here it is 30 times the mean rank"
    ),
}

_MERGED = {
    "simple average, own LoRA among them": ("0.577", "0.579"),
    "simple average": ("0.543", "0.544"),
    "TSV, own LoRA among them": ("0.502", "0.500"),
    "TSV": ("0.504", "0.502"),
    "TIES, own LoRA among them": ("0.463", "0.459"),
    "TIES": ("0.466", "0.462"),
    "new LoRA of 10 samples": ("0.546", "0.552"),
}

# Of 54 tasks, 23 of which have test scores in the folder.
_ALONE = {
    ("base model", "score"): "0.499",
    ("adapter at random", "score"): "0.432",
    ("best of the 100 samples", "score"): "0.567",
    ("30 best of the 100 samples, mean", "score"): "0.554",
    ("best of the test itself", "score"): "0.622",
    ("correlation of 100 samples and test, median task", "value"): "0.89",
    ("share of the pool above the base, median task", "value"): "0.31",
}

# Of 48 tasks.
_LEADERBOARD = {
    "random": {
        "nDCG@30": "0.118",
        "top-1": "0.41",
        "mean@30": "0.424",
        "recall@30": "0.028",
        "P(>base)@30": "0.32",
        "best@5": "0.527",
        "best@30": "0.566",
    },
    "prior": {
        "nDCG@30": "0.329",
        "top-1": "0.510",
        "mean@30": "0.503",
        "recall@30": "0.131",
        "P(>base)@30": "0.61",
        "best@5": "0.545",
        "best@30": "0.571",
    },
    "all x 100: raw": {
        "nDCG@30": "0.552",
        "top-1": "0.539",
        "mean@30": "0.544",
        "recall@30": "0.314",
        "P(>base)@30": "0.76",
        "best@5": "0.596",
        "best@30": "0.603",
    },
    "oracle": {"top-1": "0.611", "mean@30": "0.575", "P(>base)@30": "0.96", "best@30": "0.611"},
}

# The paper's own means over its 62 tasks.
HEADLINE = {
    "zero-shot": "0.467",
    "new LoRA of 100 samples": "0.657",
    "the same with dropout 0.5": "0.659",
    "adaptive merge of 30 chosen, own LoRA left out": "0.652",
    "adaptive merge of 30 chosen, own LoRA among them": "0.675",
    "adaptive merge of 30 at random, own LoRA among them": "0.675",
    "adaptive merge of 30 with random parameters, own LoRA among them": "0.672",
    "adaptive merge of 30 with random parameters, own LoRA left out": "0.609",
    "new LoRA of 10 samples": "0.546",
    "adaptive merge by 10 samples, own LoRA left out": "0.578",
    "adaptive merge by 10 samples, own LoRA among them": "0.587",
}


def _figures() -> Iterator[tuple[tuple[str, str, str], Quoted]]:
    for name, text in _POOL.items():
        yield ("pool", name, "value"), Quoted(text, why=_WHY.get(name, ""))
    for name, text in _NOT_WHOLE_POOL.items():
        yield ("pool", name, "value"), Quoted(text, complete=False)
    for name, (all_of_them, by_name) in _MERGED.items():
        yield ("merged", name, "score"), Quoted(all_of_them, tasks=62)
        yield ("merged", name, "score, zero-shot by name"), Quoted(by_name, tasks=55)
    yield ("merged", "zero-shot", "score, zero-shot by name"), Quoted("0.475", tasks=55)
    yield ("merged", "zero-shot, every row of its file", "score"), Quoted("0.470")
    for (name, column), text in _ALONE.items():
        yield ("alone", name, column), Quoted(text, tasks=54, complete=False)
    yield ("alone", "pool adapter's mean over tasks, mean", "value"), Quoted("0.430", complete=False)
    yield ("alone", "pool adapter's mean over tasks, median", "value"), Quoted("0.464", complete=False)
    yield ("alone", "adapters above the base on average", "value"), Quoted("182", complete=False)
    yield (
        ("alone", "rank correlation of 100 samples and test, median task", "value"),
        Quoted("0.80", tasks=48, complete=False),
    )
    for strategy, cells in _LEADERBOARD.items():
        for column, text in cells.items():
            yield ("leaderboard", strategy, column), Quoted(text, tasks=48, complete=False)
    for name, text in HEADLINE.items():
        complete = name == "new LoRA of 10 samples"
        yield ("headline", name, "score"), Quoted(text, tasks=62, complete=complete)


QUOTED: Mapping[tuple[str, str, str], Quoted] = dict(_figures())
