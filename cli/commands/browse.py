"""`loradex status`, `adapters`, `show`: what the catalog holds."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
from functools import partial
from itertools import zip_longest
from pathlib import Path
from typing import Any

import click

from catalog.adapters import AdapterReference
from catalog.database import reading, store
from catalog.query import FIELDS, parse
from catalog.rules import UNREADABLE
from catalog.search import browse, likeness
from cli.app import App, pass_app
from cli.commands.crawl import DOT, cost, verdicts
from cli.output import NO_BREAK, Column, cell, fold, labelled, output_options, width
from crawler.crawl import RULE_SETS, RULES, Reason, refusing
from loradex.text import plain

LLAMA_LINEAR = ("q", "k", "v", "o", "gate", "up", "down")
# What `show` tells people elsewhere or not at all; --json has everything.
HIDDEN = {"adapter", "reasons", "details", "card", "files", "training", "weights", "tags", "verdict"}
MOST_FILES = 20
MOST_RETRIES = 20
MOST_TARGETS = 40
LONGEST_CARD = 600

rules_option = click.option(
    "--rules",
    type=click.Choice(list(RULE_SETS)),
    default="ours",
    show_default=True,
    help="Judge by these rules.",
)


def _readable(_context: click.Context, _option: click.Parameter, text: str) -> str:
    """The filter as it is; raises UsageError for one that cannot be read, before a catalog is opened."""
    parse(text, {"reason": [reason.value for reason in Reason]})
    return text


verdict_option = click.option(
    "--verdict",
    type=click.Choice(["accepted", "any"]),
    default="accepted",
    show_default=True,
    help="any: also adapters that the rules refuse, marked as skipped.",
)
where_option = click.option(
    "--where",
    metavar="W",
    default="",
    callback=_readable,
    help="Only what this filter lets through, such as `rank:8..64 -owner:someone`.",
)


@click.command()
@output_options(lists=True)
@pass_app
def fields(app: App) -> None:
    """List what a filter can ask for: FIELD:VALUE, FIELD:A,B, FIELD:FROM..TO, FIELD:BEGIN*, FIELD:*.

    Terms side by side must all hold; | between them is or, - before one is not, parentheses group. A word
    without a field is looked for in names, tags and cards. For rank > 4 write rank:5.., for license = mit
    license:mit.
    """
    rows = [
        {"field": field.name, "kind": field.kind_in_words, "aliases": list(field.aliases), "help": field.help}
        for field in FIELDS.values()
    ]
    app.output.rows(rows, (Column("field"), Column("kind"), Column("help", "what it is")))


@click.command()
@rules_option
@output_options(lists=False)
@pass_app
def status(app: App, rules: str) -> None:
    """What the catalog holds, and the last crawls."""
    with reading(app.settings) as session:
        found = browse.totals(session, refusing(rules), [reason.value for reason in UNREADABLE])
    app.output.document(found, partial(_render_status, rules=rules))


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
@click.option("--sort", type=click.Choice(list(browse.SORTS)), default="adapter", show_default=True)
@click.option("-k", "count", metavar="N", type=click.IntRange(min=1), help="At most so many.")
@output_options(lists=True)
@pass_app
def adapters(app: App, /, rules: str, base: str | None, where: str, **given: Any) -> None:
    """List the adapters, one a line.

    Reasons in parentheses are noted only: the rules chosen do not refuse for them. `loradex fields` lists
    what a filter can ask for.
    """
    with reading(app.settings) as session:
        if base is not None:
            base = store.find_base(session, base)
        query = parse(where) if where else None
        if query is not None:
            browse.refuse_unknown_bases(session, query)
        listing = browse.Listing(base=base, where=query, **given)
        found = browse.adapters(session, listing, refusing(rules))
        shown = None if given["verdict"] == "any" else given["verdict"]
        app.output.rows(found, _columns(shown, refusing(rules)))


@click.command()
@click.argument("adapter")
@click.option(
    "--plot",
    metavar="FILE",
    type=click.Path(dir_okay=False, path_type=Path),
    help="Draw its norms by layer and its singular values into FILE (.svg or .png).",
)
@rules_option
@output_options(lists=False)
@pass_app
def show(app: App, adapter: str, plot: Path | None, rules: str) -> None:
    """Everything known of one ADAPTER: owner/name, owner/name@commit, owner/name:folder."""
    with reading(app.settings) as session:
        adapter_ = browse.find_adapter(session, AdapterReference.parse(adapter))
        found = browse.details(session, adapter_, refusing(rules))
        values = likeness.spectrum(session, adapter_) if plot else None
    if plot and values:
        from catalog.pictures import adapter_picture

        adapter_picture(found["adapter"], values.modules, values.spectrum, values.scalings, plot)
        app.output.say(f"drawn into {plot}")
    app.output.document(found, partial(_render_adapter, rules=rules))


def _columns(verdict: str | None, refusals: Collection[str]) -> tuple[Column, ...]:
    """What a list shows: of the skipped, little is known beyond why."""
    name, rank, size = (
        Column("adapter"),
        Column("rank", right=True),
        Column("parameters", "size", True, short_count),
    )
    targets, terms = Column("targets", show=short_targets), Column("license")
    told = partial(marked, refusals=refusals)
    if verdict == "skipped":
        return name, rank, terms, Column("reasons", show=told)
    if verdict == "accepted":
        return name, rank, targets, size, terms, Column("reasons", "noted")
    last = Column(
        "reasons",
        "noted" if verdict else "verdict",
        show=told if verdict else partial(ruled, refusals=refusals),
    )
    return name, rank, targets, size, terms, last


def marked(reasons: Sequence[str], refusals: Collection[str]) -> str:
    """The reasons that refuse, then in parentheses those that do not."""
    against = ", ".join(name for name in reasons if name in refusals)
    noted = ", ".join(name for name in reasons if name not in refusals)
    return f"{against} ({noted})".strip() if noted else against


def ruled(reasons: Sequence[str], refusals: Collection[str]) -> str:
    """The verdict with its reasons."""
    refused = any(name in refusals for name in reasons)
    told = marked(reasons, refusals)
    return f"skipped: {told}" if refused else f"accepted {told}".strip()


def short_targets(names: Sequence[str] | None) -> str:
    """Target modules in few letters: `q,v`, or `all-linear` for the seven of a Llama layer."""
    short = {name.removesuffix("_proj") for name in names or ()}
    others = several(sorted(short.difference(LLAMA_LINEAR)), 4)
    if short.issuperset(LLAMA_LINEAR):
        return ", ".join(["all-linear", *others])
    return ",".join([*(name for name in LLAMA_LINEAR if name in short), *others])


def several(texts: Sequence[str], most: int) -> list[str]:
    """The first of many texts, and how many there are more."""
    rest = len(texts) - most
    return [*texts[:most], f"and {rest:,} more"] if rest > 0 else list(texts)


def short_count(number: int | None) -> str:
    """A number of parameters as people say it: 41.9M."""
    if number is None:
        return ""
    for size, letter in ((10**9, "G"), (10**6, "M"), (10**3, "k")):
        if number >= size:
            return f"{number / size:.3g}{letter}"
    return str(number)


def _render_status(found: dict[str, Any], rules: str) -> str:
    gone = f" · gone {found['gone']:,}" if found["gone"] else ""
    rows = [("repositories", f"{found['repositories']:,}{gone}"), *verdicts(found, rules)]
    if found["measured"] or found["waiting"]:
        rows.append(("measured", DOT.join(_measured(found))))
    for crawl in found["crawls"]:
        when = f"{crawl['started']:%Y-%m-%d{NO_BREAK}%H:%M}"
        rows.append((f"crawl {crawl['id']}", f"{when}{DOT}{crawl['state']}{DOT}{cost(crawl)}"))
    return "\n".join([labelled(rows), *_retries(found["retries"])])


def _retries(rows: Sequence[dict[str, Any]]) -> list[str]:
    """The repositories that could not be read: when each is tried again, and why it failed."""
    if not rows:
        return []
    told = [
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
    return ["to be tried again by the next crawls", labelled(told, indent="  "), *more]


def _measured(found: dict[str, Any]) -> Iterator[str]:
    """How many adapters have fingerprints, for how many these are a part, and how many have none yet."""
    yield f"{found['measured']:,}"
    if found["partial"]:
        yield f"partial {found['partial']:,}"
    if found["waiting"]:
        yield f"{found['waiting']:,} adapters wait to be measured (crawl with --weights stream or keep)"


def _render_adapter(found: dict[str, Any], rules: str) -> str:
    """The adapter as lines: why it is accepted or not, what it is, where from, its files, its card."""
    refusals = refusing(rules)
    told = [
        (name if name in refusals else f"({name})", f"{RULES[Reason(name)].sentence} {_detail(found, name)}")
        for name in found["reasons"]
    ]
    rows = [(name, _number(value)) for name, value in _facts(found).items()]
    rows.append(("trained", DOT.join(f"{name} {cell(value)}" for name, value in found["training"].items())))
    files = [f"{file['name']}  {file['size']:,}  {cell(file['digest'])}" for file in found["files"]]
    rows += zip_longest(["files"], several(files, MOST_FILES), fillvalue="")
    lines = [f"{found['adapter']}  {found['verdict']} (rules: {rules})"]
    lines += [text for text in (labelled(told, indent="  "), labelled(rows)) if text]
    return "\n".join([*lines, *_excerpt(found["card"])])


def _facts(found: dict[str, Any]) -> dict[str, Any]:
    """What people want to know, without what goes without saying."""
    told = {name: value for name, value in found.items() if name not in HIDDEN}
    usual = {"base_raw": found["base"], "current": True, "main": True, "gated": "false"}
    told = {name: value for name, value in told.items() if name not in usual or value != usual[name]}
    weights = {"weights": found["weights"]["name"]}
    return told | weights | {"targets": several(found["targets"] or (), MOST_TARGETS)}


def _number(value: Any) -> str:
    return f"{value:,}" if type(value) is int else cell(value)


def _excerpt(card: str) -> list[str]:
    """The beginning of a card, indented."""
    if not card:
        return []
    lines = [part for line in map(plain, card[:LONGEST_CARD].split("\n")) for part in fold(line, width() - 2)]
    if len(card) > LONGEST_CARD:
        lines.append("…")
    return ["card", *(f"  {line}".rstrip() for line in lines)]


def _detail(found: dict[str, Any], name: str) -> str:
    detail = found["details"].get(name)
    return f"({detail})" if detail else ""
