"""`loradex crawl`: the Hub's adapters into the catalog."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import asdict
from functools import partial
from itertools import zip_longest
from typing import TYPE_CHECKING, Any, TypedDict, Unpack

import click
from click.core import ParameterSource

from catalog.errors import UsageError
from catalog.rules import RULE_SETS
from cli.app import App, Exit, pass_app
from cli.options import COUNT
from cli.output import fold, label_lines, output_options, width
from cli.tables import DOT, cost_text, counts_text, verdict_lines
from crawler.crawl import DEFAULT_BASE, WEIGHTS

if TYPE_CHECKING:
    from crawler.crawl import CrawlReport, Preview

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
            self.fail(f"{str(value)!r} is not a size; write for example 800MB, 4GB or 2GiB.", param, ctx)
        power = " kmgt".index(match[2].lower() or " ")
        return round(float(match[1]) * float(1024 if match[3] else 1000) ** power)


class CrawlKeywords(TypedDict):
    """The options that are keywords of `Catalog.crawl`."""

    base: tuple[str, ...]
    any_base: bool
    limit: int | None
    weights: str
    rules: str
    max_weights: int
    workers: int
    processes: int
    full: bool


@click.command()
@click.argument("role", metavar="[worker]", required=False, type=click.Choice(["worker"]))
@click.option(
    "--base",
    metavar="ID",
    multiple=True,
    help=f"Base model, under any of its names; may be given several times.  [default: {DEFAULT_BASE}]",
)
@click.option("--any-base", is_flag=True, help="Every adapter on the Hub, whatever its base model.")
@click.option("--limit", metavar="N", type=int, help="The maximum number of repositories.")
@click.option(
    "--weights",
    type=click.Choice(WEIGHTS),
    default="stream",
    help="Weights with LoRA factors are read whatever the rules say. keep: verified files of accepted "
    "adapters stay in the data folder. stream: each is verified, read and deleted. headers: weights are "
    "never downloaded.",
)
@click.option(
    "--rules",
    type=click.Choice(RULE_SETS),
    default="ours",
    help="Which rules decide what is skipped, and so whose weights are not kept.",
)
@click.option(
    "--max-weights",
    metavar="SIZE",
    type=Size(),
    default="5GB",
    help="Leave weights files of more bytes alone: 800MB, 4GB, 2GiB.",
)
@click.option("--workers", metavar="N", default=4, help="Requests in flight.")
@click.option("--processes", metavar="N", default=1, help="Processes that compute fingerprints.")
@click.option("--ray", metavar="N", type=COUNT, help="For `crawl worker`: start N of them by Ray.")
@click.option(
    "--address", metavar="URL", help="For --ray: the cluster to use.  [default: one on this machine]"
)
@click.option("--full", is_flag=True, help="List everything again, and look for what vanished.")
@click.option("--dry-run", is_flag=True, help="Ask for the listings only and write nothing.")
@output_options(lists=False)
@pass_app
def crawl(
    app: App,
    /,
    role: str | None,
    ray: int | None,
    address: str | None,
    dry_run: bool,
    **options: Unpack[CrawlKeywords],
) -> None:
    """List the Hub for adapters of a base model and bring the catalog up to date.

    An interrupted crawl goes on where it stopped when the same command runs again. A repository that did not
    change costs no request beyond the listing. `crawl worker` reads weights for the crawl at work in
    PostgreSQL; --workers and --processes are its own.
    """
    if role is not None:
        _refuse_other_options()
        _work(app, options["workers"], options["processes"], ray, address)
        return
    if ray is not None or address is not None:
        raise UsageError("`ray` and `address` belong to `loradex crawl worker`.")
    catalog = app.catalog
    call: Callable[..., CrawlReport | Preview] = catalog.preview if dry_run else catalog.crawl
    with app.output.show_progress() as progress:
        report = call(**options, progress=progress).as_json()
    app.output.document(report, partial(_render, rules=options["rules"]))
    if report["status"] in ENDS:
        code, advice = ENDS[report["status"]]
        app.output.say(advice)
        click.get_current_context().exit(code)


def _refuse_other_options() -> None:
    """Raises UsageError for options of a crawl that a worker takes from the crawl at work."""
    context = click.get_current_context()
    for parameter in context.command.params:
        name = parameter.name or ""
        given = context.get_parameter_source(name) is ParameterSource.COMMANDLINE
        if given and name in {*CrawlKeywords.__annotations__, "dry_run"} - {"workers", "processes"}:
            raise UsageError(f"A worker takes no {parameter.opts[0]}: it reads for the crawl at work.")


def _work(app: App, workers: int, processes: int, ray: int | None, address: str | None) -> None:
    """Reads weights for the crawl of another process, and says how many."""
    with app.output.show_progress() as progress:
        report = app.catalog.work_for_crawl(
            workers=workers, processes=processes, ray=ray, address=address, progress=progress
        )
    app.output.document(asdict(report), lambda report: f"{report['read']:,} weights files read")


def _render(report: dict[str, Any], rules: str) -> str:
    """The counts as a few lines: listed repositories, outcomes, reasons, costs."""
    states = ("new", "changed", "unchanged", "gone", "failed", "pending")
    outcomes = [f"{name} {report[name]:,}" for name in states if report.get(name)]
    first = [f"{report['status'].replace('_', ' ')}: {report['listed']:,} repositories listed", *outcomes]
    rows: list[tuple[str, str]] = []
    if "queries" in report:
        listings = [" + ".join(filters) for filters in report["queries"]]
        rows += zip_longest(["asked for"], listings, fillvalue="")
    else:
        rows += verdict_lines(report, rules)
        rows += [(name, counts_text(report[name])) for name in ("errors", "quarantined")]
        resting = f"{report['resting']:,} that failed before; `loradex status` says when they are tried again"
        rows.append(("resting", resting if report["resting"] else ""))
    lines = fold(DOT.join(first), width())
    return "\n".join([*lines, label_lines([*rows, ("cost", cost_text(report))], indent="  ")])
