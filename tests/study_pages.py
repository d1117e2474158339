"""Reports of the studies that were run, and what the documents quote of them, made from their results.

`python -m tests.study_pages` writes report.md and the pictures beside the results in docs/results, and fills
the places in docs/results/*.md that name a section of a report:

    <!-- results recycling: Task by task -->
    <!-- end of results -->

`tests/studies/test_results.py` compares.
"""

from __future__ import annotations

import re
import shutil
from collections.abc import Iterator
from functools import cache
from pathlib import Path

from studies.report import page
from studies.reporting import MARKDOWN, PICTURES, report, sections

RESULTS = Path(__file__).parents[1] / "docs" / "results"
_PLACE = re.compile(r"(<!-- results ([a-z_]+): ([^>]+) -->\n).*?(<!-- end of results -->)", re.DOTALL)


def studies() -> Iterator[Path]:
    """The folders of the studies that were run."""
    yield from sorted(one.parent for one in RESULTS.glob("*/results.jsonl"))


def quoting() -> Iterator[Path]:
    """The documents that quote results."""
    yield from (one for one in sorted(RESULTS.glob("*.md")) if _PLACE.search(one.read_text("utf-8")))


def filled(text: str) -> str:
    """The document with every place filled; raises KeyError for a section that no report has."""
    return _PLACE.sub(lambda found: f"{found[1]}\n{_parts(found[2])[found[3]]}\n\n{found[4]}", text)


@cache
def _parts(study: str) -> dict[str, str]:
    """The sections of a report by title, as Markdown for a document that stands in docs/results."""
    found = {}
    for one in sections(RESULTS / study):
        whole = page.markdown("", [one], f"{study}/{PICTURES}")
        found[one.title] = whole.split("\n\n", 2)[2].strip()
    return found


def main() -> None:
    """Writes all of it."""
    for folder in studies():
        shutil.rmtree(folder / PICTURES, ignore_errors=True)
        aside = folder / ".report"
        report(folder, into=aside)
        (aside / MARKDOWN).replace(folder / MARKDOWN)
        (aside / PICTURES).replace(folder / PICTURES)
        shutil.rmtree(aside)
    for document in quoting():
        document.write_text(filled(document.read_text("utf-8")), encoding="utf-8")


if __name__ == "__main__":
    main()
