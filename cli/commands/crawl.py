"""`loradex crawl`: the Hub's adapters into the catalog."""

from __future__ import annotations

import threading
from typing import Any

import click

from catalog.blobs import BlobStore
from catalog.database import disposing, open_catalog, reading_if_any
from cli.app import App, Exit, pass_app
from cli.output import cell, output_options
from crawler.hub import Hub, HubSettings
from crawler.plan import DEFAULT_BASE, WEIGHTS, CrawlOptions
from crawler.report import CrawlReport, Preview
from crawler.run import Crawler, preview_crawl
from crawler.screen import RULE_SETS


@click.command()
@click.option(
    "--base",
    "bases",
    metavar="ID",
    multiple=True,
    help=f"Base model, under any of its names; may be given several times.  [default: {DEFAULT_BASE}]",
)
@click.option("--any-base", is_flag=True, help="Every adapter on the Hub, whatever its base model.")
@click.option("--limit", metavar="N", type=int, help="At most so many repositories.")
@click.option(
    "--weights",
    type=click.Choice(WEIGHTS),
    default="stream",
    show_default=True,
    help="keep: verified files stay in the data folder. stream: each is verified, read and deleted. "
    "headers: weights are never downloaded.",
)
@click.option(
    "--rules",
    type=click.Choice(list(RULE_SETS)),
    default="ours",
    show_default=True,
    help="Which rules decide what is skipped, and so whose weights are not fetched.",
)
@click.option("--workers", metavar="N", type=int, default=4, show_default=True, help="Requests in flight.")
@click.option("--full", is_flag=True, help="List everything again, and look for what vanished.")
@click.option("--dry-run", is_flag=True, help="Ask for the listings only and write nothing.")
@output_options(lists=False)
@pass_app
def crawl(app: App, /, dry_run: bool, **given: Any) -> None:
    """List the Hub for adapters of a base model and bring the catalog up to date.

    An interrupted crawl goes on where it stopped when the same command runs again. A repository that did not
    change costs no request beyond the listing.
    """
    options = CrawlOptions(**given)
    stop = threading.Event()
    with (
        Hub(HubSettings.from_environment(), stop=stop) as hub,
        app.output.progress(_label(options)) as progress,
    ):
        if dry_run:
            with reading_if_any(app.settings) as session:
                found: Preview | CrawlReport = preview_crawl(session, hub, options, progress)
        else:
            with disposing(open_catalog(app.settings, create=True)) as engine:
                blobs = BlobStore(app.settings.blobs)
                found = Crawler(engine, hub, blobs, options, progress, stop).crawl()
    app.output.document(found.as_json(), _render)
    if found.as_json()["status"] == "partial":
        click.get_current_context().exit(Exit.PARTIAL)


def _label(options: CrawlOptions) -> str:
    return "every base" if options.any_base else ", ".join(options.bases or (DEFAULT_BASE,))


def _render(found: dict[str, Any]) -> str:
    """The counts as a few lines: what was listed, what became of it, why, what it cost."""
    if found["status"] == "dry_run":
        asked = [f"  {' + '.join(filters)}" for filters in found["queries"]]
        counts = ", ".join(f"{name} {found[name]}" for name in ("new", "changed", "unchanged"))
        return "\n".join([f"{found['listed']} repositories listed: {counts}", "asked for", *asked])
    states = ("new", "changed", "unchanged", "gone", "failed", "pending")
    outcome = " · ".join(f"{name} {found[name]}" for name in states if found[name])
    verdicts = f"accepted {found['accepted']} · skipped {found['skipped']}"
    lines = [
        f"{found['status']}: {found['listed']} repositories listed · {outcome or 'none'}",
        f"{found['adapters']} adapters: {verdicts} (the paper's rules accept {found['accepted_by_paper']})",
    ]
    if found["reasons"]:
        lines.append("reasons of the skipped, all of them: " + counted(found["reasons"]))
    lines += [f"{name}: {counted(found[name])}" for name in ("errors", "quarantined") if found[name]]
    requests = found["requests"]
    lines.append(
        f"{requests['api']} API and {requests['resolver']} resolver requests · "
        f"{found['bytes'] / 1e6:.1f} MB · {cell(found['seconds'])} s"
    )
    return "\n".join(lines)


def counted(counts: dict[str, int]) -> str:
    """Counts by name, the largest first."""
    ordered = sorted(counts.items(), key=lambda pair: (-pair[1], pair[0]))
    return " · ".join(f"{name} {n}" for name, n in ordered)
