"""`loradex status`, `adapters`, `show`: what the catalog holds."""

from __future__ import annotations

from typing import Any

import click

from catalog import browse
from catalog.database import reading
from catalog.reference import AdapterReference
from cli.app import App, pass_app
from cli.commands.crawl import counted
from cli.output import Column, cell, output_options
from crawler.screen import RULE_SETS, RULES, Reason, refusing

LLAMA_LINEAR = {"q", "k", "v", "o", "gate", "up", "down"}

_rules = click.option(
    "--rules",
    type=click.Choice(list(RULE_SETS)),
    default="ours",
    show_default=True,
    help="Judge by these rules.",
)


@click.command()
@_rules
@output_options(lists=False)
@pass_app
def status(app: App, rules: str) -> None:
    """What the catalog holds, and the last crawls."""
    with reading(app.settings) as session:
        app.output.document(browse.totals(session, refusing(rules)), _render_status)


@click.command()
@_rules
@click.option("--verdict", type=click.Choice(["accepted", "skipped"]), help="Only these.")
@click.option(
    "--reason", type=click.Choice([reason.value for reason in Reason]), help="Only with this reason."
)
@click.option("--base", metavar="ID", help="Only of this base model, under its canonical name.")
@click.option("--sort", type=click.Choice(list(browse.SORTS)), default="adapter", show_default=True)
@click.option("-k", "count", metavar="N", type=click.IntRange(min=1), help="At most so many.")
@output_options(lists=True)
@pass_app
def adapters(app: App, /, rules: str, **given: Any) -> None:
    """List the adapters, one a line."""
    columns = (
        "adapter",
        Column("rank", right=True),
        Column("targets", show=short_targets),
        Column("parameters", "size", right=True, show=short_count),
        "license",
        *(() if given["verdict"] else ("verdict",)),
        "reasons",
    )
    with reading(app.settings) as session:
        app.output.rows(browse.adapters(session, browse.Listing(**given), refusing(rules)), columns)


@click.command()
@click.argument("adapter")
@_rules
@output_options(lists=False)
@pass_app
def show(app: App, adapter: str, rules: str) -> None:
    """Everything known of one ADAPTER: owner/name, owner/name@commit, owner/name:folder."""
    with reading(app.settings) as session:
        found = browse.find_adapter(session, AdapterReference.parse(adapter))
        app.output.document(browse.details(session, found, refusing(rules)), _render_adapter)


def short_targets(names: list[str] | None) -> str:
    """Target modules in few letters: `q,v`, or `all linear` for the seven of a Llama layer."""
    short = [name.removesuffix("_proj") for name in names or ()]
    if set(short) >= LLAMA_LINEAR:
        return ", ".join(["all linear", *(name for name in short if name not in LLAMA_LINEAR)])
    return ",".join(short)


def short_count(number: int | None) -> str:
    """A number of parameters as people say it: 41.9M."""
    if number is None:
        return ""
    for size, letter in ((10**9, "G"), (10**6, "M"), (10**3, "k")):
        if number >= size:
            return f"{number / size:.3g}{letter}"
    return str(number)


def _render_status(found: dict[str, Any]) -> str:
    gone = f" · gone {found['gone']}" if found["gone"] else ""
    adapters = f"{found['adapters']} adapters · accepted {found['accepted']} · skipped {found['skipped']}"
    lines = [f"{found['repositories']} repositories{gone} · {adapters}"]
    if found["reasons"]:
        lines.append("reasons of the skipped, all of them: " + counted(found["reasons"]))
    for crawl in found["crawls"]:
        requests = crawl["requests"]
        lines.append(
            f"crawl {crawl['id']}  {crawl['started']:%Y-%m-%d %H:%M}  {crawl['state']}  "
            f"{requests['api']} API, {requests['resolver']} resolver requests, {crawl['bytes'] / 1e6:.1f} MB"
        )
    return "\n".join(lines)


def _render_adapter(found: dict[str, Any]) -> str:
    """The adapter as aligned lines, with a sentence for each reason and the beginning of its card."""
    hidden = {"adapter", "reasons", "details", "card", "files", "training", "weights", "tags", "verdict"}
    lines = [f"{found['adapter']}  {found['verdict']}"]
    lines += [f"  {name}: {RULES[Reason(name)].sentence} {_detail(found, name)}" for name in found["reasons"]]
    rows = [(name, cell(value)) for name, value in found.items() if name not in hidden]
    rows += [(f"trained, {name}", cell(value)) for name, value in found["training"].items()]
    rows.append(("weights", f"{cell(found['weights']['name'])}  {cell(found['weights']['digest'])}"))
    rows += [("file", f"{file['name']}  {file['size']:,}  {cell(file['digest'])}") for file in found["files"]]
    lines += [f"{name:<23}{value}" for name, value in rows if value.strip()]
    if found["card"]:
        lines += ["card", *(f"  {line}" for line in found["card"][:600].splitlines())]
    return "\n".join(lines)


def _detail(found: dict[str, Any], name: str) -> str:
    detail = found["details"].get(name)
    return f"({detail})" if detail else ""
