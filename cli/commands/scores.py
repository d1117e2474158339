"""`loradex scores`: measured task scores, as facts with their source."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path

import click

from catalog.scores import MOST_SAMPLES
from cli.app import App, pass_app
from cli.output import Column, label_lines, output_options

SUMMARY = (
    Column("source"),
    Column("split"),
    Column("metric"),
    Column("scores", right=True),
    Column("subjects", right=True),
    Column("tasks", right=True),
    Column("of_known_adapters", "of known adapters", True),
)
SCORES = (
    Column("value", right=True, show=lambda value: f"{value:.4f}"),
    Column("adapter"),
    Column("task"),
    Column("split"),
    Column("metric"),
    Column("n", right=True),
    Column("source"),
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
@output_options(lists=True)
@pass_app
def show(app: App, adapter: str | None, task: str | None) -> None:
    """The scores of one ADAPTER, or on one task; without either, how much each source measured."""
    if adapter is None and task is None:
        app.output.rows(app.catalog.score_sources(), SUMMARY)
    else:
        app.output.rows(app.catalog.scores(adapter, task=task), SCORES)


def _render_counts(counts: dict[str, int]) -> str:
    return label_lines((name.replace("_", " "), f"{count:,}") for name, count in counts.items())
