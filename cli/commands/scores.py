"""`loradex scores`: measured task scores, as facts with their source."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any, TypedDict, Unpack

import click

from catalog.scores import MOST_SAMPLES
from cli.app import App, pass_app
from cli.options import combine
from cli.output import Column, label_lines, output_options
from loradex import Rows

SUMMARY = (
    Column("source"),
    Column("split"),
    Column("metric"),
    Column("scores", right=True),
    Column("subjects", right=True),
    Column("tasks", right=True),
    Column("of_known_adapters", "of known adapters", True),
    Column("with_outcomes", "with outcomes", True, in_table=False),
)
SCORES = (
    Column("value", right=True, show=lambda value: f"{value:.4f}"),
    Column("adapter"),
    Column("task"),
    Column("split"),
    Column("metric"),
    Column("n", right=True),
    Column("source"),
    Column("items_sha", in_table=False),
)
OUTCOMES = (
    *SCORES[:5],
    Column("source"),
    Column("n", right=True),
    Column("outcomes", show=lambda text: " ".join(text[at : at + 10] for at in range(0, len(text), 10))),
    Column("items_sha", in_table=False),
    Column("margins", in_table=False),
)
ITEMS = (
    Column("task"),
    Column("split"),
    Column("metric"),
    Column("position", "item", right=True),
    Column("right", right=True),
    Column("n", right=True),
    Column("right_adapters", "right were", show=", ".join),
    Column("wrong_adapters", in_table=False),
    Column("items_sha", in_table=False),
    Column("item", in_table=False),
)
POINTS = "{:+.3f}".format
PAIRED = (
    Column("split"),
    Column("metric"),
    Column("first_source", "source"),
    Column("second_source", in_table=False),
    Column("n", right=True),
    Column("both", right=True),
    Column("only_first", "only first", right=True),
    Column("only_second", "only second", right=True),
    Column("neither", right=True),
    Column("difference", right=True, show=POINTS),
    Column("low", "95 % from", right=True, show=POINTS),
    Column("high", "to", right=True, show=POINTS),
    Column("p", right=True, show=lambda p: f"{p:.3g}"),
)
LEADERS = (
    Column("place", right=True),
    Column("value", right=True, show=lambda value: f"{value:.4f}"),
    Column("low", "95 % from", right=True, show=lambda value: "" if value is None else f"{value:.3f}"),
    Column("high", "to", right=True, show=lambda value: "" if value is None else f"{value:.3f}"),
    Column("n", right=True),
    Column("adapter"),
    Column("source"),
    Column("difference", right=True, show=lambda value: "" if value is None else POINTS(value)),
    Column("p", in_table=False),
    Column("p_holm", "p (Holm)", right=True, show=lambda p: "" if p is None else f"{p:.3g}"),
    Column("differs", show=lambda differs: {None: "", True: "yes", False: "cannot be told"}[differs]),
)
source_option = click.option("--source", metavar="S", help="Only scores of this source.")


class ScoreOptions(TypedDict):
    """The options that choose scores."""

    split: str | None
    metric: str | None
    protocol: str | None
    source: str | None


score_options = combine(
    click.option("--task", metavar="T", required=True, help="The task."),
    click.option("--split", metavar="S", help="Only scores on this split."),
    click.option("--metric", metavar="M", help="Only scores by this metric."),
    click.option("--protocol", metavar="P", help="Only by this protocol; '' for loradex's own."),
    source_option,
)


@click.group()
def scores() -> None:
    """Measured task scores: of adapters, merges and the base model alone."""


@scores.command("import")
@click.argument("file", type=click.Path(path_type=Path))
@click.option("--source", metavar="S", help="Who measured.  [default: the file's name]")
@click.option("--split", default="test", help="Of a CSV: on which samples.")
@click.option("--metric", default="accuracy", help="Of a CSV: what the numbers are.")
@click.option(
    "-n",
    "n",
    metavar="N",
    type=click.IntRange(1, MOST_SAMPLES),
    help="Of a CSV: how many samples a score took.",
)
@output_options(lists=False)
@pass_app
def import_(app: App, file: Path, source: str | None, split: str, metric: str, n: int | None) -> None:
    """Bring the scores in FILE into the catalog; those of the same source are replaced.

    A CSV has one row an adapter and one column a task; one with the columns task and zero_shot holds the base
    model's. A JSON file is the scores.json that evaluating writes. A value outside the metric's range is
    refused with its line or number: -1 to 1 for correlations (mcc, matthews_correlation, pearson, spearman,
    kendall), 0 up for loss, nll and perplexity, 0 to 1 for any other metric.
    """
    counts = app.catalog.import_scores(file, source=source, split=split, metric=metric, n=n)
    app.output.document(asdict(counts), _render_counts)


@scores.command()
@click.argument("adapter", required=False)
@click.option("--task", metavar="T", help="Only on this task.")
@click.option("--items", is_flag=True, help="Which items were answered right: of an adapter, or by whom.")
@output_options(lists=True)
@pass_app
def show(app: App, adapter: str | None, task: str | None, items: bool) -> None:
    """The scores of one ADAPTER, or on one task; without either, how much each source measured."""
    if items and adapter is None and task is None:
        raise click.UsageError("--items requires ADAPTER or --task T.")
    if adapter is None and task is None:
        _write_rows(app, app.catalog.score_sources(), SUMMARY)
    elif items and adapter is not None:
        _write_rows(app, app.catalog.score_outcomes(adapter, task=task), OUTCOMES)
    elif items and task is not None:
        _write_rows(app, app.catalog.score_items(task), ITEMS)
    else:
        _write_rows(app, app.catalog.scores(adapter, task=task), SCORES)


@scores.command()
@click.argument("first")
@click.argument("second")
@score_options
@output_options(lists=True)
@pass_app
def compare(app: App, /, first: str, second: str, task: str, **which: Unpack[ScoreOptions]) -> None:
    """Compare adapters FIRST and SECOND on the same items of a task.

    p is that of the exact McNemar test, the interval of FIRST minus SECOND that of Bonett and Price (2012).
    """
    _write_rows(app, app.catalog.compare_scores(first, second, task=task, **which), PAIRED)


@scores.command()
@score_options
@output_options(lists=True)
@pass_app
def leaderboard(app: App, /, task: str, **which: Unpack[ScoreOptions]) -> None:
    """The adapters on a task, best first, with 95 % intervals (Wilson).

    Where items are shared, each is tested against the first (exact McNemar), adjusted by Holm for all tests.
    """
    _write_rows(app, app.catalog.leaderboard(task, **which), LEADERS)


@scores.command()
@click.argument("file", type=click.Path(dir_okay=False, path_type=Path))
@click.option("--task", metavar="T", help="Only on this task.")
@source_option
@output_options(lists=False)
@pass_app
def export(app: App, file: Path, task: str | None, source: str | None) -> None:
    """Write scores with the outcomes of their items to FILE, which `scores import` reads."""
    count = app.catalog.export_scores(file, task=task, source=source)
    app.output.document({"rows": count}, _render_counts)


def _write_rows(app: App, rows: Rows[Any], columns: Sequence[Column]) -> None:
    """Writes rows as a list; the protocol is a column of the table if one is not the project's own."""
    in_table = any(getattr(row, "protocol", "") for row in rows)
    has_protocol = "protocol" in rows.columns
    protocol = [Column("protocol", in_table=in_table)] if has_protocol else []
    app.output.rows(rows, (*columns, *protocol))


def _render_counts(counts: dict[str, int]) -> str:
    return label_lines((name.replace("_", " "), f"{count:,}") for name, count in counts.items())
