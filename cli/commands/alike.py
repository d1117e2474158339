"""`loradex fingerprint`, `similar`, `duplicates`: adapters compared by their weights."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path

import click

from catalog.errors import LoradexError
from catalog.rules import reason_sentence
from cli.app import App, pass_app
from cli.options import COUNT, EXISTING_FOLDER, rules_option, verdict_option, where_option
from cli.output import Column, label_lines, output_options
from cli.tables import RANK, SIZE, TARGETS, score_column
from loradex.comparison import fingerprint as fingerprint_folder


@click.command()
@click.argument("folders", nargs=-1, metavar="[DIR]…", type=EXISTING_FOLDER)
@click.option("--processes", metavar="N", default=1, help="Processes that compute, without a folder.")
@output_options(lists=True)
@pass_app
def fingerprint(app: App, folders: tuple[Path, ...], processes: int) -> None:
    """What the weights of an adapter in each local folder DIR say: norm, health, rank in use.

    All of it is of the products scaling * B A. Where the update is more than these, as with DoRA or layers
    saved whole, `leaves out` names what is missing. What PEFT does not load of a folder is said beside.

    Without a folder: make the fingerprints that are missing of files kept in the data folder, as after an
    upgrade that changes their definition. A crawl makes those of all that it reads.
    """
    if folders:
        _fingerprint_folders(app, folders)
        return
    with app.output.show_progress() as progress:
        counts = app.catalog.remeasure(processes=processes, progress=progress)
    app.output.document(
        asdict(counts),
        lambda counts: label_lines((name.replace("_", " "), f"{n:,}") for name, n in counts.items()),
    )


def _fingerprint_folders(app: App, folders: Sequence[Path]) -> None:
    """Shows the folders that can be read, then raises the last error of one that cannot."""
    rows, errors = [], []
    for folder in folders:
        try:
            rows.append(fingerprint_folder(folder))
        except LoradexError as error:
            errors.append(error)
    if rows:
        partial = any(row.partial for row in rows)
        app.output.rows(rows, (*FOLDER_COLUMNS, LEAVES_OUT) if partial else FOLDER_COLUMNS)
    for row in rows:
        for reason, detail in row.partial.items():
            app.output.say(f"the numbers of {row.adapter} leave out {reason_sentence(reason, detail)}")
        for problem in row.load_problems:
            app.output.say(f"{row.adapter}: {problem}")
    for unreadable in errors[:-1]:
        app.output.say(str(unreadable))
    if errors:
        raise errors[-1]


LEAVES_OUT = Column("partial", "leaves out", show=", ".join)
FOLDER_COLUMNS = (
    Column("adapter"),
    RANK,
    TARGETS,
    SIZE,
    Column("norm", right=True),
    Column("stable_rank", "stable rank", True),
    Column("health"),
)


@click.command()
@click.argument("adapter", metavar="ADAPTER|DIR")
@click.option(
    "--by",
    type=click.Choice(["output", "delta"]),
    default="output",
    help="output: where updates write to, whatever they were initialised with. delta: the whole update.",
)
@click.option("-k", metavar="N", type=COUNT, default=10, help="So many.")
@click.option("--exact", is_flag=True, help="Compare the best by their weights, as far as files are kept.")
@where_option
@verdict_option
@rules_option
@output_options(lists=True)
@pass_app
def similar(
    app: App, /, adapter: str, by: str, k: int, exact: bool, where: str, verdict: str, rules: str
) -> None:
    """The adapters most like ADAPTER, or like the one in the local folder DIR, by their weights.

    Only adapters of the same base model are compared. `score` is a cosine: 1 for the same update, 0 for
    unrelated ones; sketched scores are off by about 0.03. It compares the products B A: where an update is
    more than these, `why` names what is left out.
    """
    rows = app.catalog.similar(adapter, k, by=by, exact=exact, where=where, verdict=verdict, rules=rules)
    app.output.say_all(rows.notes)
    app.output.rows(rows, (*NEIGHBOUR_COLUMNS, Column("verdict")) if verdict == "any" else NEIGHBOUR_COLUMNS)


NEIGHBOUR_COLUMNS = (
    score_column(),
    Column("adapter"),
    RANK,
    Column("license"),
    Column("why"),
)


@click.command()
@click.option(
    "--level",
    type=click.Choice(["file", "tensor", "delta", "family"]),
    default="delta",
    help="file: the same bytes. tensor: the same tensors. delta: the same update but for rounding or scale. "
    "family: one owner's series and one run's checkpoints. Each but family includes those before.",
)
@verdict_option
@rules_option
@output_options(lists=True)
@pass_app
def duplicates(app: App, level: str, verdict: str, rules: str) -> None:
    """Groups of adapters with the same or nearly the same weights, and the level that matched.

    Files are compared by the digests that the Hub names, whether they were read or not. Updates are the
    products B A; members of which these are a part only are marked.
    """
    if level == "family":
        app.output.rows(app.catalog.families(verdict=verdict, rules=rules), FAMILY_COLUMNS)
    else:
        app.output.rows(app.catalog.duplicates(level, verdict=verdict, rules=rules), GROUP_COLUMNS)


def _partial_text(partial: Mapping[str, Sequence[str]]) -> str:
    return "; ".join(f"{member} without {', '.join(reasons)}" for member, reasons in partial.items())


MARKS = (Column("skipped", show=" ".join), Column("partial", show=_partial_text))
GROUP_COLUMNS = (
    Column("level"),
    Column("size", right=True),
    Column("cosine", right=True),
    Column("members", show=" ".join),
    Column("note"),
    *MARKS,
)
FAMILY_COLUMNS = (
    Column("family"),
    Column("size", right=True),
    Column("why"),
    Column("members", show=" ".join),
    *MARKS,
)
