"""`loradex crawl`: the Hub's adapters into the catalog."""

from __future__ import annotations

import re
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from itertools import zip_longest
from typing import Any

import click

from catalog.database import disposing, open_catalog, reading_if_any
from catalog.files import BlobStore
from cli.app import App, Exit, pass_app
from cli.output import NO_BREAK, fold, labelled, output_options, width
from crawler.crawl import DEFAULT_BASE, RULE_SETS, WEIGHTS, Crawler, CrawlOptions, preview_crawl, refusing
from crawler.hub import Hub, HubSettings
from loradex.progress import Step

# Between things of one line; a line may end after it.
DOT = f"{NO_BREAK}· "
# How a crawl can end that is not complete: its exit code, and what to do.
ENDS = {
    "partial": (
        Exit.PARTIAL,
        "Not everything could be read; the same command tries the rest again, and `loradex status` lists it.",
    ),
    "failed": (Exit.ERROR, "Nothing could be listed; the same command tries again."),
}


class Size(click.ParamType[int]):
    """A number of bytes as people write it: 800MB, 4GB, 2GiB, or digits alone."""

    name = "size"
    _FORM = re.compile(r"([0-9]{1,15}(?:\.[0-9]{1,6})?) ?([kmgt]?)(i?)b?", re.IGNORECASE)

    def convert(self, value: str | int, param: click.Parameter | None, ctx: click.Context | None) -> int:
        """The number of bytes; units are powers of 1000, with an i powers of 1024."""
        match = self._FORM.fullmatch(str(value).strip())
        if match is None or (match[3] and not match[2]):
            self.fail(f"{str(value)!r} is no size; write for instance 800MB, 4GB or 2GiB.", param, ctx)
        power = " kmgt".index(match[2].lower() or " ")
        return round(float(match[1]) * float(1024 if match[3] else 1000) ** power)


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
    help="Weights with LoRA factors are read whatever the rules say. keep: verified files of accepted "
    "adapters stay in the data folder. stream: each is verified, read and deleted. headers: weights are "
    "never downloaded.",
)
@click.option(
    "--rules",
    type=click.Choice(list(RULE_SETS)),
    default="ours",
    show_default=True,
    help="Which rules decide what is skipped, and so whose weights are not kept.",
)
@click.option(
    "--max-weights",
    metavar="SIZE",
    type=Size(),
    default="5GB",
    show_default=True,
    help="Leave weights files of more bytes alone: 800MB, 4GB, 2GiB.",
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
    settings = replace(HubSettings.from_environment(), connections=options.workers)
    with Hub(settings, stop=stop) as hub:
        found = _preview(app, hub, options) if dry_run else _crawl(app, hub, options, stop)
    app.output.document(found, partial(_render, rules=options.rules))
    if found["status"] in ENDS:
        code, advice = ENDS[found["status"]]
        app.output.say(advice)
        click.get_current_context().exit(code)


def _crawl(app: App, hub: Hub, options: CrawlOptions, stop: threading.Event) -> dict[str, Any]:
    blobs = BlobStore(app.settings.blobs)
    with (
        disposing(open_catalog(app.settings, create=True)) as engine,
        _watched(app, hub, options) as progress,
    ):
        return Crawler(engine, hub, blobs, options, progress, stop).crawl().as_json()


def _preview(app: App, hub: Hub, options: CrawlOptions) -> dict[str, Any]:
    with reading_if_any(app.settings) as session, _watched(app, hub, options) as progress:
        return preview_crawl(session, hub, options, progress).as_json()


@contextmanager
def _watched(app: App, hub: Hub, options: CrawlOptions) -> Iterator[Step]:
    """Says what is about to happen, and shows how far it is."""
    bases = ", ".join(options.bases or (DEFAULT_BASE,))
    of_what = "every base model" if options.any_base else bases
    app.output.say(f"Crawling {hub.settings.endpoint} for adapters of {of_what}")
    with app.output.progress("reading") as progress:
        yield progress


def _render(found: dict[str, Any], rules: str) -> str:
    """The counts as a few lines: what was listed, what became of it, why, what it cost."""
    states = ("new", "changed", "unchanged", "gone", "failed", "pending")
    outcomes = [f"{name} {found[name]:,}" for name in states if found.get(name)]
    first = [f"{found['status'].replace('_', ' ')}: {found['listed']:,} repositories listed", *outcomes]
    rows: list[tuple[str, str]] = []
    if "queries" in found:
        asked = [" + ".join(filters) for filters in found["queries"]]
        rows += zip_longest(["asked for"], asked, fillvalue="")
    else:
        rows += verdicts(found, rules)
        rows += [(name, counted(found[name])) for name in ("errors", "quarantined")]
        resting = f"{found['resting']:,} that failed before; `loradex status` says when they are tried again"
        rows.append(("resting", resting if found["resting"] else ""))
    lines = fold(DOT.join(first), width())
    return "\n".join([*lines, labelled([*rows, ("cost", cost(found))], indent="  ")])


def verdicts(found: Mapping[str, Any], rules: str) -> list[tuple[str, str]]:
    """How many adapters there are, how many the rules accept, and why not the others, as labelled lines."""
    refusals = refusing(rules)
    unread = f" ({found['unmeasured']:,} unmeasured)" if found.get("unmeasured") else ""
    accepted, skipped = (
        f"accepted {found['accepted']:,}{unread}",
        f"skipped {found['skipped']:,} (rules:{NO_BREAK}{rules})",
    )
    by_paper = "accepted_by_paper" in found and rules != "paper"
    return [
        ("adapters", DOT.join([f"{found['adapters']:,}", accepted, skipped])),
        ("paper's rules", f"accepted {found['accepted_by_paper']:,}" if by_paper else ""),
        ("skipped for", counted({name: n for name, n in found["reasons"].items() if name in refusals})),
        ("also noted", counted({name: n for name, n in found["reasons"].items() if name not in refusals})),
    ]


def cost(found: Mapping[str, Any]) -> str:
    """What a crawl took: requests, bytes and seconds, as far as they are known."""
    requests = found["requests"]
    parts = [f"{requests['api']:,} API and {requests['resolver']:,} resolver requests"]
    if "bytes" in found:
        small = found["bytes"] < 1e5
        amount = f"{found['bytes'] / 1e3:,.0f} kB" if small else f"{found['bytes'] / 1e6:,.1f} MB"
        parts += [amount, f"{found['seconds']:,.1f} s"]
    return DOT.join(part.replace(" ", NO_BREAK) for part in parts)


def counted(counts: Mapping[str, int]) -> str:
    """Counts by name, the largest first, to be wrapped between the pairs."""
    ordered = sorted(counts.items(), key=lambda pair: (-pair[1], pair[0]))
    return DOT.join(f"{name}{NO_BREAK}{n:,}" for name, n in ordered)
