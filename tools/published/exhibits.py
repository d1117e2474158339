"""The report of the published tables: what they say, the tables beside the figures in print, and pictures."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from catalog.pictures import FAINT, MARKERS, PALETTE, extent, inches
from studies.report.drawing import WIDTH, sheet, style, svg
from studies.report.page import Figure, Section, TableSection
from tools.published.answers import Book, agreement, claims, claims_table, format_row, number
from tools.published.claims import CHOOSING, PAPER
from tools.published.quoted import Quoted, Row, find_figure

# From here on the base's two scores of a task are too far apart for chance.
_APART = 0.3
# Header and column of a table's cells; a column's own interval is shown with it.
Cells = Sequence[tuple[str, str]]
_MERGED: Cells = (
    ("score", "score"),
    ("less zero-shot", "less zero-shot"),
    ("less a new LoRA of 10 samples", "less new LoRA"),
    ("less the same without own LoRA", "less the same without it"),
)
_ALONE: Cells = (
    ("score", "score"),
    ("less the base", "less base"),
    ("less an adapter at random", "less random"),
    ("less a new LoRA of 10 samples", "less new LoRA"),
)
_RELEVANCE: Cells = (
    ("rank correlation", "rank correlation"),
    ("with the base's score held", "rank correlation, base held"),
    ("gain, more relevant half", "gain, more relevant half"),
    ("gain, less relevant half", "gain, less relevant half"),
)
_LEADERBOARD: Cells = (
    ("samples", "samples"),
    ("nDCG@30", "nDCG@30"),
    ("less prior", "nDCG@30 less prior"),
    ("less 100 samples of all, raw", "nDCG@30 less all x 100: raw"),
)
_FIRST: Cells = (
    ("nDCG@30", "nDCG@30"),
    ("base published", "nDCG@30, base by name"),
    ("less random", "nDCG@30 less random"),
    ("top-1", "top-1"),
    ("top-1 less random", "top-1 less random"),
    ("mean of 30", "mean@30"),
    ("best of 30", "best@30"),
    ("best of 30 less random", "best@30 less random"),
)


def sections(rows: Sequence[Row]) -> list[Section]:
    """The report's sections; what rests on a part without rows is left out."""
    book = Book(rows)
    candidates: list[Section | None] = [
        claims(book),
        claims_table(book, "Claims and marks", PAPER),
        _table(
            book,
            "merged",
            "Merges of the 30 adapters that are best on 100 samples",
            "score",
            _MERGED,
            _MERGED_NOTE,
        ),
        _merges_picture(book),
        _table(book, "alone", "What adapters do alone", "score", _ALONE, _ALONE_NOTE),
        _table(
            book,
            "alone",
            "Scores of 100 samples and of the test",
            "value",
            (("value", "value"),),
            _SAMPLES_NOTE,
        ),
        _table(
            book,
            "relevance",
            "Do merges gain where relevant adapters are?",
            "rank correlation",
            _RELEVANCE,
            _RELEVANCE_NOTE,
        ),
        _relevance_picture(book),
        _table(
            book,
            "leaderboard",
            "Choosing adapters, judged by test scores",
            "samples",
            _LEADERBOARD,
            _LEADERBOARD_NOTE,
            _RANKINGS,
        ),
        claims_table(book, "Claims on choosing", CHOOSING),
        _table(
            book,
            "leaderboard",
            "What comes first of what was chosen",
            "nDCG@30",
            _FIRST,
            _first_note(book),
            _RANKINGS,
        ),
        _leaderboard_picture(book),
        _table(book, "pool", "What the pool is made of", "value", (("value", "value"),)),
        _table(
            book,
            "headline",
            "The paper's means over its 62 tasks",
            "score",
            (("in these files", "score"),),
            _HEADLINE_NOTE,
        ),
        agreement(book),
    ]
    return [section for section in candidates if section is not None]


_MERGED_NOTE = (
    "Means over tasks with 95 % t intervals over tasks, each for itself. Own LoRA: the one trained on the "
    "task's 100 samples, by which the 30 were chosen too. The new LoRA had 10 samples. The base's score is "
    "taken from the zero-shot file by the task's name, else by that of its data set, else from adapters that "
    "do nothing; of one merged task it is nowhere. The mean of every row of the zero-shot file is of other "
    "tasks too and no measure to compare merges with."
)
_ALONE_NOTE = (
    "Means with 95 % t intervals, each for itself, over the tasks with test scores in the folder; the "
    "figures in print are of all 54, so that they are no check. The best of the test itself is chosen by "
    "what it is judged by: an upper bound, too high by luck."
)
_RELEVANCE_NOTE = (
    "Relevance of the pool to a task: what its 30 best adapters gain alone over the base, on average, on the "
    "100 samples that chose them. Gain of a merge: test score less zero-shot. Spearman's correlation over "
    "tasks with the 95 % interval of a percentile bootstrap over them, of gains the t interval; with the "
    "base's score held, since where the base is weak both have more to gain. Nothing was assigned at random: "
    "a correlation is no proof of a cause."
)
_SAMPLES_NOTE = (
    "Means with 95 % t intervals over tasks, each for itself; medians, and numbers of the whole pool, with "
    "those of a percentile bootstrap over tasks."
)
# What the rankings are called in the tables.
_RANKINGS = {
    "random": "chance",
    "prior": "prior: other tasks' scores",
    "like tasks": "tasks: weighted by how like they read",
    "completion, no texts": "completion, without texts",
    "completion": "completion",
    "completion, nearest task out": "the same, nearest task taken out",
    "completion, 3 nearest out": "the same, three nearest taken out",
    "50 of prior x 100: raw": "first 50 of prior, 100 samples each",
    "all x 5: raw": "all, 5 samples each, raw",
    "all x 5: completion": "all, 5 samples each, completion",
    "all x 100: raw": "all, 100 samples each, score",
    "all x 100: completion": "all, 100 samples each, completion",
    "oracle": "the test scores themselves",
}
_LEADERBOARD_NOTE = (
    "nDCG@30 of max(test score − base, 0), ideal from all judged adapters. Means over tasks with 95 % t "
    "intervals, each for itself. Races and columns of few samples are means of three draws."
)
_HEADLINE_NOTE = (
    "Scores by task of the new LoRA of 100 samples, of adaptive merges and of random parameters are not in "
    "the folder, so that no interval can be given for them. Why the mean of zero-shot in print is another "
    "than that of the file cannot be found out from the files."
)


def _first_note(book: Book) -> str:
    row = book.get("leaderboard", "prior", "nDCG@30, base by name")
    tasks = "tasks" if row is None else f"{row['tasks']} tasks"
    return (
        "Means over tasks with 95 % t intervals, each for itself; best of 30: the best test score among the "
        f"first 30. Base published: nDCG@30 on the {tasks} whose base score is published, and not read off "
        "adapters that do nothing. Figures in print are of 48 tasks."
    )


def _table(
    book: Book,
    part: str,
    title: str,
    lead: str,
    cells: Cells,
    note: str = "",
    called: Mapping[str, str] | None = None,
) -> TableSection | None:
    """The rows of a part that have the leading column; figures in print stand beside it, and rows may be
    `called` otherwise."""
    names = book.names(part, lead)
    leading = [
        next(r for r in book.rows if (r["part"], r["row"], r["column"]) == (part, name, lead))
        for name in names
    ]
    if not names:
        return None
    printed, counted = any(find_figure(row) for row in leading), any(row["tasks"] for row in leading)
    (head, _), *more_cells = cells
    columns = (
        "",
        *(["tasks"] if counted else []),
        head,
        *(["in print"] if printed else []),
        *(h for h, _ in more_cells),
    )
    rows = []
    for name, row in zip(names, leading, strict=True):
        more_rows = [book.get(part, name, column) for _, column in more_cells]
        rows.append(
            (
                (called or {}).get(name, name),
                *([number(row["tasks"], 0)] if counted else []),
                format_row(row),
                *([_format_figure(find_figure(row), row)] if printed else []),
                *(format_row(more_row) if more_row else "" for more_row in more_rows),
            )
        )
    return TableSection(title, columns, tuple(rows), note)


def _format_figure(figure: Quoted | None, row: Row) -> str:
    if figure is None:
        return ""
    if figure.tasks is None:
        return figure.text if figure.complete else f"{figure.text} (all tasks)"
    return figure.text if figure.tasks == row["tasks"] else f"{figure.text} ({figure.tasks} tasks)"


def _merges_picture(book: Book) -> Figure | None:
    names = book.names("merged", "less zero-shot")
    series = {
        "less zero-shot": [book.get("merged", name, "less zero-shot") for name in names],
        "less a new LoRA of 10 samples": [book.get("merged", name, "less new LoRA") for name in names],
    }
    title = "Merges against the base and a new LoRA"
    if not names:
        return None
    picture = _intervals(names, series, "difference in score, 95 % intervals over tasks", title, zero=True)
    return Figure(title, picture, "Paired over tasks; left of the line is worse.", "merges")


def _leaderboard_picture(book: Book) -> Figure | None:
    names = book.names("leaderboard", "nDCG@30")
    if not names:
        return None
    title = "Choosing adapters"
    series = {"nDCG@30": [book.get("leaderboard", name, "nDCG@30") for name in names]}
    picture = _intervals(names, series, "nDCG@30 of the gain over the base, 95 % intervals over tasks", title)
    return Figure(title, picture, "", "leaderboard")


def _intervals(
    names: Sequence[str],
    series: Mapping[str, Sequence[Row | None]],
    label: str,
    title: str,
    *,
    zero: bool = False,
) -> str:
    """Means with their intervals, a line a name, the series of a name below one another."""
    left = max(extent(name, 8)[0] for name in names) / 72 + 0.25
    tall = (0.12 + 0.13 * len(series)) * len(names)
    above = 0.3 if len(series) > 1 else 0.1
    with style():
        figure = sheet(tall + 0.5 + above)
        axes = figure.add_axes(inches(figure, left, 0.45, WIDTH - left - 0.15, tall))
        axes.grid(axis="x")
        if zero:
            axes.axvline(0, color=FAINT, linewidth=0.8)
        for at, (name, rows) in enumerate(series.items()):
            shift = 0.3 * (at - (len(series) - 1) / 2)
            for y, row in enumerate(rows):
                if row is None or row["value"] is None or row["low"] is None or row["high"] is None:
                    continue
                ends = [row["low"], row["high"]]
                axes.plot(ends, [y + shift] * 2, color=PALETTE[at], linewidth=2, solid_capstyle="butt")
                axes.plot([row["value"]], [y + shift], MARKERS[at], color=PALETTE[at], markersize=5)
            axes.plot([], [], MARKERS[at], color=PALETTE[at], label=name)
        axes.set_yticks(range(len(names)), list(names), fontsize=8)
        axes.tick_params(axis="y", length=0)
        axes.spines["left"].set_visible(False)
        axes.set_ylim(len(names) - 0.4, -0.6)
        axes.set_xlabel(label)
        if len(series) > 1:
            figure.legend(loc="upper left", ncols=len(series), borderaxespad=0.2)
        return svg(figure, title)


def _relevance_picture(book: Book) -> Figure | None:
    pairs = [
        (alone["value"], merged["value"])
        for name in book.names("relevance", "gain alone")
        if (alone := book.get("relevance", name, "gain alone"))
        and (merged := book.get("relevance", name, "gain merged"))
    ]
    if not pairs:
        return None
    apart = [row for row in book.rows if row["column"] == "base on test less on 100 samples"]
    odd = "".join(
        f" On {row['row']} the base's score on the test less that on the 100 samples is {format_row(row)}, "
        "so that the place of its point says little."
        for row in apart
        if abs(row["value"] or 0.0) > _APART
    )
    title = "Gain of the simple average by the relevance of the pool"
    places = np.array(pairs, dtype=np.float64)
    with style():
        figure = sheet(2.9)
        axes = figure.add_axes(inches(figure, 0.6, 0.45, WIDTH - 0.75, 2.35))
        axes.grid()
        axes.axhline(0, color=FAINT, linewidth=0.8)
        axes.axvline(0, color=FAINT, linewidth=0.8)
        axes.plot(*places.T, "o", color=PALETTE[0], markersize=5, alpha=0.8, markeredgewidth=0)
        axes.set_xlabel("mean gain over the base of the 30 best adapters alone, on the 100 samples")
        axes.set_ylabel("gain of their simple average, test")
        return Figure(title, svg(figure, title), f"A point for each of {len(pairs)} tasks.{odd}", "relevance")
