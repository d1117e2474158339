"""`loradex status`, `adapters`, `fields`, `show`: what the catalog contains."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import asdict
from functools import partial
from itertools import zip_longest
from pathlib import Path
from typing import Any, TypedDict

import click

from catalog.rules import Reason
from cli.app import App, pass_app
from cli.options import COUNT, FILE, rules_option, where_option
from cli.output import NO_BREAK, Column, fold, label_lines, output_options, width
from cli.tables import (
    DOT,
    RANK,
    SIZE,
    TARGETS,
    cost_text,
    engine_lines,
    first_of,
    reasons_text,
    verdict_lines,
    verdict_text,
)
from crawler.crawl import refusing
from loradex.bulk import choose_columns
from loradex.catalog import SORTS
from loradex.results import CatalogStatus
from loradex.rows import AdapterDetails, cell_text
from loradex.text import plain

# What `show` shows elsewhere or not at all; --json has everything.
HIDDEN = {
    *(
        "adapter",
        "reasons",
        "details",
        "card",
        "card_left_out",
        "files",
        "training",
        "weights",
        "tags",
        "verdict",
    ),
    *("runs_in", "uses"),
}
MOST_FILES = 20
MOST_RETRIES = 20
MOST_TARGETS = 40
LONGEST_CARD = 600


class ListOptions(TypedDict):
    """Which adapters a list is to have, and in which order."""

    where: str
    verdict: str | None
    reason: str | None
    base: str | None
    rules: str
    sort: str
    limit: int | None


@click.command()
@output_options(lists=True)
@pass_app
def fields(app: App) -> None:
    """List what a filter can ask for: FIELD:VALUE, FIELD:A,B, FIELD:FROM..TO, FIELD:BEGIN*, FIELD:*.

    Terms side by side must all hold; | between them is or, - before one is not, parentheses group. A word
    without a field is looked for in names, tags and cards. For rank > 4 write rank:5.., for license = mit
    license:mit.
    """
    app.output.rows(app.catalog.fields(), (Column("field"), Column("kind"), Column("help", "what it is")))


@click.command()
@rules_option
@output_options(lists=False)
@pass_app
def status(app: App, rules: str) -> None:
    """What the catalog holds, and the last crawls."""
    app.output.document(app.catalog.status(rules=rules), partial(_render_status, rules=rules))


@click.command()
@rules_option
@click.option("--verdict", type=click.Choice(["accepted", "skipped", "any"]), help="Only these.")
@click.option(
    "--reason",
    metavar="REASON",
    type=click.Choice([reason.value for reason in Reason]),
    help="Only with this reason, such as zero_update.",
)
@click.option("--base", metavar="ID", help="Only of this base model, under any of its names.")
@where_option
@click.option("--sort", type=click.Choice(SORTS), default="adapter")
@click.option("-k", "limit", metavar="N", type=COUNT, help="The maximum number.")
@click.option("--columns", metavar="A,B", help="These columns of the bulk table, or all.")
@click.option("--parquet", metavar="FILE", type=FILE, help="Write the bulk table into FILE.")
@output_options(lists=True)
@pass_app
def adapters(
    app: App,
    /,
    rules: str,
    verdict: str | None,
    reason: str | None,
    base: str | None,
    where: str,
    sort: str,
    limit: int | None,
    columns: str | None,
    parquet: Path | None,
) -> None:
    """List the adapters, one a line.

    Reasons in parentheses are noted only: the rules chosen do not refuse for them. `loradex fields` lists
    what a filter can ask for.
    """
    listing: ListOptions = {
        "where": where,
        "verdict": verdict,
        "reason": reason,
        "base": base,
        "rules": rules,
        "sort": sort,
        "limit": limit,
    }
    if parquet is not None:
        count = app.catalog.export_table(parquet, columns=columns or "all", **listing)
        app.output.say(f"{count:,} rows written into {parquet}")
    elif columns is not None:
        names = choose_columns(columns)
        app.output.rows(app.catalog.iterate_table(columns=names, **listing), names, names)
    else:
        app.output.rows(app.catalog.iterate_adapters(**listing), _columns(verdict, refusing(rules)))
    app.output.say_all(app.catalog.hidden_notes(where))


@click.command()
@click.argument("adapter")
@click.option(
    "--plot",
    metavar="FILE",
    type=FILE,
    help="Draw its norms by layer and its singular values into FILE (.svg or .png).",
)
@click.option(
    "--card", is_flag=True, help="All of its card; one that a snapshot left out is fetched from the Hub."
)
@rules_option
@output_options(lists=False)
@pass_app
def show(app: App, adapter: str, plot: Path | None, card: bool, rules: str) -> None:
    """Everything known of one ADAPTER: owner/name, owner/name@commit, owner/name:folder."""
    if card:
        app.catalog.card(adapter)
    details = app.catalog.details(adapter, rules=rules)
    if plot:
        app.catalog.draw_adapter(adapter, plot)
        app.output.say(f"drawn into {plot}")
    app.output.document(
        details, partial(_render_adapter, rules=rules, longest=None if card else LONGEST_CARD)
    )


def _columns(verdict: str | None, refusals: Collection[str]) -> tuple[Column, ...]:
    """What a list shows: of the skipped, little is known beyond why."""
    name, license_column = Column("adapter"), Column("license")
    because = partial(reasons_text, refusals=refusals)
    if verdict == "skipped":
        return name, RANK, license_column, Column("reasons", show=because)
    columns = (name, RANK, TARGETS, SIZE, license_column)
    if verdict == "accepted":
        return *columns, Column("reasons", "noted")
    return *columns, Column("reasons", "verdict", show=partial(verdict_text, refusals=refusals))


def _render_status(status: CatalogStatus, rules: str) -> str:
    gone = f" · gone {status.gone:,}" if status.gone else ""
    rows = [("repositories", f"{status.repositories:,}{gone}"), *verdict_lines(asdict(status), rules)]
    if status.measured or status.waiting:
        rows.append(("measured", DOT.join(_measurement_texts(status))))
    for crawl in status.crawls:
        when = f"{crawl['started']:%Y-%m-%d{NO_BREAK}%H:%M}"
        rows.append((f"crawl {crawl['id']}", f"{when}{DOT}{crawl['state']}{DOT}{cost_text(crawl)}"))
    return "\n".join([label_lines(rows), *_retry_lines(status.retries)])


def _retry_lines(rows: Sequence[Mapping[str, Any]]) -> list[str]:
    """The repositories that could not be read: when each is tried again, and why it failed."""
    if not rows:
        return []
    lines = [
        (
            row["repository"],
            DOT.join(
                [
                    row["error"],
                    f"attempts{NO_BREAK}{row['attempts']}",
                    f"next{NO_BREAK}try{NO_BREAK}{row['next_try']:%Y-%m-%d{NO_BREAK}%H:%M}{NO_BREAK}UTC",
                    row["detail"],
                ]
            ),
        )
        for row in rows[:MOST_RETRIES]
    ]
    more = [f"  and {len(rows) - MOST_RETRIES:,} more; --json has all"] if len(rows) > MOST_RETRIES else []
    return ["to be tried again by the next crawls", label_lines(lines, indent="  "), *more]


def _measurement_texts(status: CatalogStatus) -> Iterator[str]:
    """How many adapters have fingerprints, for how many these are a part, and how many have none yet."""
    yield f"{status.measured:,}"
    if status.partial:
        yield f"partial {status.partial:,}"
    if status.waiting:
        yield f"{status.waiting:,} adapters wait to be measured (crawl with --weights stream or keep)"


def _render_adapter(adapter: AdapterDetails, rules: str, longest: int | None) -> str:
    """The adapter as lines: why it is accepted or not, what it is, where from, its files, its card."""
    refusals = refusing(rules)
    reasons = [
        (
            name if name in refusals else f"({name})",
            f"{Reason(name).sentence} {_detail(adapter, name)}",
        )
        for name in adapter.reasons
    ]
    rows = [(name, _number(value)) for name, value in _facts(adapter).items()]
    rows += zip_longest(["use"], _use_lines(adapter.uses), fillvalue="")
    rows.append(
        ("trained", DOT.join(f"{name} {cell_text(value)}" for name, value in adapter.training.items()))
    )
    files = [f"{file['name']}  {file['size']:,}  {cell_text(file['digest'])}" for file in adapter.files or ()]
    rows += zip_longest(["files"], first_of(files, MOST_FILES), fillvalue="")
    rows += engine_lines(adapter.runs_in)
    rows.append(("card", "not in snapshot; show --card fetches it" if adapter.card_left_out else ""))
    lines = [f"{adapter.adapter}  {adapter.verdict} (rules: {rules})"]
    lines += [text for text in (label_lines(reasons, indent="  "), label_lines(rows)) if text]
    return "\n".join([*lines, *_excerpt(adapter.card, longest)])


def _facts(adapter: AdapterDetails) -> dict[str, Any]:
    """What people want to know, without what goes without saying."""
    facts = {name: value for name, value in vars(adapter).items() if name not in HIDDEN}
    usual = {"base_raw": adapter.base, "current": True, "main": True, "gated": "false"}
    facts = {name: value for name, value in facts.items() if name not in usual or value != usual[name]}
    weights = {"weights": adapter.weights["name"]}
    return facts | weights | {"targets": first_of(adapter.targets or (), MOST_TARGETS)}


def _use_lines(uses: Mapping[str, str | None]) -> list[str]:
    """The uses that its license allows, and why it does not allow the others."""
    allowed = [use for use, problem in uses.items() if problem is None]
    denied: dict[str, list[str]] = {}
    for use, problem in uses.items():
        if problem is not None:
            denied.setdefault(problem, []).append(use)
    lines = [f"not {' or '.join(names)}: it {problem}" for problem, names in denied.items()]
    return [", ".join(allowed) or "none", *lines]


def _number(value: Any) -> str:
    return f"{value:,}" if type(value) is int else cell_text(value)


def _excerpt(card: str, longest: int | None) -> list[str]:
    """The beginning of a card, or all of it, indented."""
    if not card:
        return []
    lines = [part for line in map(plain, card[:longest].split("\n")) for part in fold(line, width() - 2)]
    if longest is not None and len(card) > longest:
        lines.append("…")
    return ["card", *(f"  {line}".rstrip() for line in lines)]


def _detail(adapter: AdapterDetails, name: str) -> str:
    detail = adapter.details.get(name)
    return f"({detail})" if detail else ""
