"""The page of a generated catalog: the first start, the next ones, and an export, against reading the rows.

Run as `python -m tools.bench.page [--data DIR | --count N] [--where FILTER | --browser]`; DIR is what
`tools.generated_catalog` made. Prints processor seconds of one thread, and each as a ratio of what
`Catalog.iterate_adapters` takes for the same adapters in the same run; then the size of an export. Duplicates
and families are found for all adapters, and read after a mark of the user hid a member of the largest family.
With `--browser` it opens the page in Chromium instead, and prints the processor time of its main thread
for the first list, for filters, for an order and for the other views, when the first paint was and when a row
or a view was complete.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, TypeVar

import loradex
from crawler.localhub import LocalServer
from loradex.page import Documents, create_app, export_page
from loradex.page.server import Site
from tools.generated_catalog import generate
from tools.page_pictures import addresses, open_browser

T = TypeVar("T")
# What `--browser` filters by; a word is looked for in the cards by the server.
FILTERS = ("rank:16..32", "license:mit -owner:owner1", "downloads:5.. verdict:accepted", "tusro")
# How often it measures, and the milliseconds until a view is surely drawn.
ROUNDS, SETTLED = 3, 2500
# The views that are opened after the list, and how.
VIEWS = ("adapter", "map", "compare", "pool", "scores", "task", "groups", "crawls", "crawl")
OPEN = """async (address) => {
  const began = performance.now();
  const shown = new Promise((done) => document.addEventListener("shown", done, {once: true}));
  history.pushState(null, "", address);
  dispatchEvent(new PopStateEvent("popstate"));
  await shown;
  return (performance.now() - began) / 1000;
}"""
ONE_THREAD = {"OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"}


def main(argv: Sequence[str] | None = None) -> int:
    """Measures and prints the table, in a child that has one thread."""
    parser = argparse.ArgumentParser(prog="python -m tools.bench.page", description=__doc__)
    parser.add_argument("--data", help="a data folder of tools.generated_catalog")
    parser.add_argument("--count", type=int, default=5000, help="adapters to generate without --data")
    parser.add_argument("--where", default="rank:64", help="the adapters of the export")
    parser.add_argument("--browser", action="store_true", help="measure the page in Chromium")
    options = parser.parse_args(argv)
    if "OMP_NUM_THREADS" not in os.environ:
        command = [sys.executable, "-m", "tools.bench.page", *(argv if argv is not None else sys.argv[1:])]
        return subprocess.run(command, env=os.environ | ONE_THREAD, check=False).returncode
    with tempfile.TemporaryDirectory() as place:
        data = Path(options.data or place)
        if options.data is None:
            generate(data, options.count, page=True)
        if options.browser:
            browse(loradex.open(data))
        else:
            measure(loradex.open(data), options.where, Path(place) / "export")
    return 0


def browse(catalog: loradex.Catalog) -> None:
    """Prints what the browser takes for the list of one catalog."""
    site = Site(catalog)
    site.warm()
    views, _ = addresses(catalog)
    with LocalServer(lambda: create_app(site)) as server, open_browser() as browser:
        for _ in range(ROUNDS):
            page = browser.new_context(viewport={"width": 1400, "height": 900}).new_page()
            session = page.context.new_cdp_session(page)
            session.send("Performance.enable", {"timeDomain": "threadTicks"})

            def busy(session: Any = session) -> float:
                metrics = session.send("Performance.getMetrics")["metrics"]
                return float(next(row["value"] for row in metrics if row["name"] == "TaskDuration"))

            page.goto(f"{server.url}/?p=list")
            page.wait_for_selector(".view .window .tr")
            drawn = page.evaluate("performance.now()")
            page.wait_for_timeout(SETTLED)
            paint = page.evaluate("performance.getEntriesByType('paint')[0].startTime")
            sys.stdout.write(f"{'list':32}{busy():9.2f} s, first paint after {paint / 1000:.2f} s, ")
            sys.stdout.write(f"rows after {drawn / 1000:.2f} s\n")
            for where in FILTERS:
                before = busy()
                page.fill("#where", where)
                page.wait_for_timeout(SETTLED)
                sys.stdout.write(f"{where:32}{busy() - before:9.2f} s\n")
            page.fill("#where", "")
            page.wait_for_timeout(SETTLED)
            before = busy()
            page.locator(".head button", has_text="downloads").click()
            page.wait_for_timeout(SETTLED)
            sys.stdout.write(f"{'by downloads':32}{busy() - before:9.2f} s\n")
            for view in (name for name in VIEWS if name in views):
                before, seconds = busy(), page.evaluate(OPEN, views[view])
                page.wait_for_timeout(SETTLED)
                sys.stdout.write(f"{view:32}{busy() - before:9.2f} s, shown after {seconds:.2f} s\n")
            page.context.close()


def measure(catalog: loradex.Catalog, where: str, folder: Path) -> None:
    """Prints the rows of one catalog."""
    shutil.rmtree(catalog.settings.index / "page", ignore_errors=True)
    count, rows = timed(lambda: sum(1 for _ in catalog.iterate_adapters(verdict="any")))
    sys.stdout.write(f"{count:,} adapters\n{'':32}{'cpu s':>9}{'ratio':>8}{'MB':>8}\n")

    def say(name: str, seconds: float, size: int | None = None) -> None:
        megabytes = "" if size is None else f"{size / 1e6:.1f}"
        sys.stdout.write(f"{name:32}{seconds:9.2f}{seconds / rows:8.2f}{megabytes:>8}\n")

    say("adapters, the rows", rows)
    for name in ("page, first start", "page, next start"):
        size, seconds = timed(lambda: start(catalog))
        say(name, seconds, size)
    groups, seconds = timed(lambda: Documents(catalog).document("groups.json"))
    say("duplicates and families", seconds, len(groups))
    families = json.loads(groups)["families"]
    if families:
        member = max(families, key=lambda row: int(row["size"]))["members"][0]
        catalog.hide(member)
        groups, seconds = timed(lambda: Documents(catalog).document("groups.json"))
        say("the same, one more is hidden", seconds, len(groups))
        catalog.hide(member, undo=True)
    report, seconds = timed(lambda: export_page(catalog, folder, where=where))
    say(f"export of {report.adapters:,}", seconds, report.bytes)


def start(catalog: loradex.Catalog) -> int:
    """Makes what the first view of a page needs; gives its size."""
    documents = Documents(catalog)
    return len(documents.head()) + len(documents.document("list.json"))


def timed(call: Callable[[], T]) -> tuple[T, float]:
    """What a call gives, and its processor seconds."""
    began = time.process_time()
    result = call()
    return result, time.process_time() - began


if __name__ == "__main__":
    sys.exit(main())
