"""Pictures of the page by Playwright and Chromium, over the sample Hub or the catalog of `--data DIR`.

`python -m tools.page_pictures [DIR]` writes page_list.png and page_map.png of docs/guides/page.md, by default
into docs/pictures. `--all` writes every view instead, at 1400 and 390 pixels, light and dark, and a line for
each: when the first paint was, how much wider than the window the view is, what the console and the policy
of the page reported, and what axe-core finds where it is installed. The exit status is then 1 if anything is
wrong.
"""

from __future__ import annotations

import argparse
import importlib.util
import io
import os
import shutil
import sys
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from urllib.parse import urlencode

import loradex
from catalog.errors import LoradexError
from catalog.samples import sample_data
from crawler.localhub import LocalHub, LocalServer
from loradex.page import create_app
from loradex.page.server import Site

PICTURES = Path(__file__).parents[1] / "docs" / "pictures"
VIEWS = {"page_list": "?p=list&where=-verdict:skipped", "page_map": "?p=map&colour=rank"}
WIDTH, HEIGHT = 1100, 640
# Colours that are kept, so that a picture of the documents is small.
COLOURS = 48
SIZES = {"desk": {"width": 1400, "height": 900}, "phone": {"width": 390, "height": 844}}
# Of a longer view its beginning is drawn. The first view of a large catalog takes minutes to make.
MOST_HEIGHT, PATIENCE = 4000, 300_000
AXE = "axe_playwright_python"
# What a browser logs of an answer that an address of nothing gets.
NOT_THERE = "status of 404"
# Notes what the policy refuses, and marks adapters as if the user had.
ON_START = """(names) => {
  window.refused = [];
  const note = (event) => window.refused.push(event.violatedDirective);
  document.addEventListener("securitypolicyviolation", note);
  sessionStorage.setItem("selection", JSON.stringify(names));
}"""


def main(argv: Sequence[str] | None = None) -> int:
    """Writes the pictures."""
    parser = argparse.ArgumentParser(prog="python -m tools.page_pictures", description=__doc__)
    parser.add_argument("folder", type=Path, nargs="?", default=PICTURES, metavar="DIR")
    parser.add_argument("--all", action="store_true", help="every view, see above")
    parser.add_argument("--data", type=Path, help="the data folder of a catalog, instead of the sample Hub")
    parser.add_argument("--only", nargs="+", metavar="VIEW", help="with --all, these views alone")
    options = parser.parse_args(argv)
    options.folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix="page-") as place:
        catalog = loradex.open(options.data) if options.data else sample_catalog(Path(place))
        if options.all and not options.data:
            add_knowledge(catalog)
        try:
            known = addresses(catalog)[0]
        except LoradexError as error:
            parser.error(str(error))
        if unknown := sorted(set(options.only or ()) - known.keys()):
            parser.error(f"this catalog has no view {', '.join(unknown)}; it has {', '.join(known)}")
        site = Site(catalog)
        site.warm()
        with LocalServer(lambda: create_app(site)) as server, open_browser() as browser:
            if options.all:
                return draw_all(browser, server.url, catalog, options.folder, options.only)
            draw(browser, server.url, options.folder)
    return 0


def sample_catalog(folder: Path) -> loradex.Catalog:
    """The catalog of the sample Hub, with weights."""
    catalog = loradex.open(folder / "data")
    with LocalHub(sample_data() / "sample_hub") as hub:
        os.environ["HF_ENDPOINT"] = hub.url
        catalog.crawl(any_base=True, weights="keep")
    return catalog


def add_knowledge(catalog: loradex.Catalog) -> None:
    """Adds to the catalog of the sample Hub what no crawl finds: a pool, scores and notes."""
    names = [row.adapter for row in catalog.adapters("norm:*", limit=8)]
    catalog.select("sample", by="named", adapters=names[:3], controls=True)
    with tempfile.TemporaryDirectory() as folder:
        scores = Path(folder) / "scores.csv"
        lines = [
            f"{name},{0.4 + place / 20},{0.7 - place / 40}" for place, name in enumerate(["base", *names])
        ]
        scores.write_text("\n".join(["adapter,banking77,boolq", *lines, ""]))
        catalog.import_scores(scores, split="valid", n=200)
    catalog.annotate(names[:2], tags=["to try"], note="Compare it again.")
    catalog.hide(names[-1])


def draw(browser: Any, url: str, target: Path) -> None:
    """Writes the pictures of the documents."""
    from PIL import Image

    page = browser.new_context(viewport={"width": WIDTH, "height": HEIGHT}).new_page()
    for name, address in VIEWS.items():
        open_view(page, f"{url}/{address}")
        picture = Image.open(io.BytesIO(page.screenshot())).convert("RGB")
        picture.quantize(COLOURS).save(target / f"{name}.png", optimize=True)


def draw_all(
    browser: Any, url: str, catalog: loradex.Catalog, target: Path, only: Sequence[str] | None = None
) -> int:
    """Writes a picture of every view in each size and scheme and prints what was noticed; gives 1 where
    anything is wrong, else 0.
    """
    views, names = addresses(catalog)
    is_wrong = False
    for size, viewport in SIZES.items():
        for scheme in ("light", "dark"):
            for view, address in views.items():
                if only and view not in only:
                    continue
                context = browser.new_context(viewport=viewport, color_scheme=scheme)
                marked = names[:3] if view in ("selection", "new-pool") else []
                context.add_init_script(f"({ON_START})({marked!r})")
                page = context.new_page()
                notes = messages_of(page, expected=NOT_THERE if view == "missing" else "")
                open_view(page, f"{url}/{address}")
                found = [*notes, *problems(page)]
                page.screenshot(
                    path=target / f"{view}-{size}-{scheme}.png", full_page=True, clip=visible_part(page)
                )
                paint = page.evaluate("performance.getEntriesByType('paint')[0]?.startTime ?? 0")
                say = "; ".join(found) or "nothing wrong"
                sys.stdout.write(f"{view:12}{size:7}{scheme:7}first paint {paint:5.0f} ms  {say}\n")
                sys.stdout.flush()
                is_wrong |= bool(found)
                context.close()
    return int(is_wrong)


def addresses(catalog: loradex.Catalog) -> tuple[dict[str, str], list[str]]:
    """The address of each view that a catalog has by a name, and adapters to mark."""
    names = [row.adapter for row in catalog.adapters("norm:*", limit=4)]
    skipped = [row.adapter for row in catalog.adapters(verdict="skipped", limit=1)]
    pools = [row.pool for row in catalog.pools()]
    tasks = sorted({row.task for row in catalog.scores()})
    views: dict[str, dict[str, Any]] = {
        "list": {"p": "list"},
        "filtered": {"p": "list", "where": "rank:8 -license:mit", "sort": "-downloads"},
        "nothing": {"p": "list", "where": "rank:999999"},
        "search": {"p": "list", "q": "questions about banking"},
        "selection": {"p": "list"},
        "adapter": {"p": "adapter", "a": names[0]} if names else {},
        "skipped": {"p": "adapter", "a": skipped[0]} if skipped else {},
        "missing": {"p": "adapter", "a": "no/such-adapter"},
        "map": {"p": "map"},
        "map-rank": {"p": "map", "colour": "rank", "by": "delta"},
        "compare": {"p": "compare", "a": names} if names else {},
        "pools": {"p": "pools"},
        "new-pool": {"p": "pools", "new": 1},
        "pool": {"p": "pool", "n": pools[0]} if pools else {},
        "scores": {"p": "scores"},
        "task": {"p": "scores", "task": tasks[0]} if tasks else {},
        "groups": {"p": "groups"},
        "crawls": {"p": "crawls"},
        "crawl": {"p": "crawl", "id": 1},
    }
    return {name: f"?{urlencode(view, doseq=True)}" for name, view in views.items() if view}, names


def open_view(page: Any, address: str) -> None:
    """Opens an address and waits until the view is complete and its documents are read."""
    page.set_default_timeout(PATIENCE)
    page.goto(address)
    page.wait_for_selector(".view")
    page.wait_for_load_state("networkidle")
    # A frame that was drawn after that.
    page.evaluate("() => new Promise((done) => requestAnimationFrame(() => requestAnimationFrame(done)))")


def visible_part(page: Any) -> dict[str, int]:
    """The part of a view that is drawn: all of its width, and not too much of its height."""
    root = "document.documentElement"
    width, height = page.evaluate(f"[{root}.scrollWidth, {root}.scrollHeight]")
    return {"x": 0, "y": 0, "width": width, "height": min(height, MOST_HEIGHT)}


def messages_of(page: Any, expected: str = "") -> list[str]:
    """A list that gets the errors of a page, and what its console reports beside an expected text."""
    notes: list[str] = []

    def log(line: Any) -> None:
        if line.type in ("error", "warning") and not (expected and expected in line.text):
            notes.append(f"console: {line.text}")

    page.on("console", log)
    page.on("pageerror", lambda error: notes.append(f"error: {error}"))
    return notes


def problems(page: Any) -> list[str]:
    """What is wrong with the view that is open: its width, its policy, and what axe-core finds."""
    found = [f"policy: {name}" for name in page.evaluate("window.refused")]
    wider = page.evaluate("document.documentElement.scrollWidth - innerWidth")
    if wider > 0:
        found.append(f"{wider} pixels wider than the window")
    if importlib.util.find_spec(AXE) is not None:
        load_axe(page)
        result = page.evaluate("axe.run(document, {resultTypes: ['violations']})")
        found += [f"axe: {row['id']} ({len(row['nodes'])})" for row in result["violations"]]
    return found


def load_axe(page: Any) -> None:
    """Loads axe-core into the page that is open."""
    script = Path(importlib.import_module(AXE).__path__[0]) / "axe.min.js"
    # The debugger's way in, which the policy of the page does not concern.
    page.evaluate(script.read_text() + "\n;undefined")


@contextmanager
def open_browser() -> Iterator[Any]:
    """Chromium of the path, else of Playwright, for as long as the block lasts."""
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        path = shutil.which("chromium") or shutil.which("google-chrome")
        browser = playwright.chromium.launch(executable_path=path, args=["--no-sandbox"])
        yield browser
        browser.close()


if __name__ == "__main__":
    sys.exit(main())
