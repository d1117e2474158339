"""The pictures of docs/guides/page.md: the page over the sample Hub, by Playwright and Chromium.

`python -m tools.page_pictures [DIR]` writes page_list.png and page_map.png, by default into docs/pictures.
"""

from __future__ import annotations

import io
import os
import shutil
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import loradex
from catalog.samples import sample_data
from crawler.localhub import LocalHub, LocalServer
from loradex.page import create_app
from loradex.page.server import Site

PICTURES = Path(__file__).parents[1] / "docs" / "pictures"
VIEWS = {"page_list": "?p=list&where=-verdict:skipped", "page_map": "?p=map&colour=rank"}
WIDTH, HEIGHT = 1100, 640
# Colours that are kept, so that a picture is small.
COLOURS = 48


def main() -> None:
    """Crawls the sample Hub into a temporary folder and writes the pictures."""
    target = Path(sys.argv[1]) if len(sys.argv) > 1 else PICTURES
    with tempfile.TemporaryDirectory(prefix="page-") as folder:
        catalog = loradex.open(Path(folder) / "data")
        with LocalHub(sample_data() / "sample_hub") as hub:
            os.environ["HF_ENDPOINT"] = hub.url
            catalog.crawl(any_base=True, weights="keep")
        with LocalServer(lambda: create_app(Site(catalog))) as server:
            draw(server.url, target)


def draw(url: str, target: Path) -> None:
    """Writes a picture of each view."""
    from PIL import Image

    with open_browser() as browser:
        page = browser.new_context(viewport={"width": WIDTH, "height": HEIGHT}).new_page()
        for name, address in VIEWS.items():
            page.goto(f"{url}/{address}")
            page.wait_for_selector(".view")
            page.wait_for_timeout(800)
            picture = Image.open(io.BytesIO(page.screenshot())).convert("RGB")
            picture.quantize(COLOURS).save(target / f"{name}.png", optimize=True)


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
    main()
