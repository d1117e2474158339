"""A crawl in a process of its own, to be killed: `python -m tests.crawl_process URL DATA PAGE_LIMIT`."""

from __future__ import annotations

import sys
from pathlib import Path

from catalog.database import make_engine
from tests.crawling import crawl


def main(url: str, data: str, page_limit: str) -> None:
    """Crawls everything into the catalog of the folder."""
    engine = make_engine(f"sqlite:///{Path(data) / 'catalog.db'}")
    crawl(url, engine, Path(data), hub={"page_limit": int(page_limit)})
    engine.dispose()


if __name__ == "__main__":
    main(*sys.argv[1:])
