"""The report of a study's folder: one page, the same in Markdown with pictures, and the numbers as JSON."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from merging.members import storage, write_json, write_text
from studies.report import grids, page
from studies.report.page import Text
from studies.run import read

PAGE, MARKDOWN, SUMMARY, PICTURES = "report.html", "report.md", "summary.json", "pictures"


def report(folder: Path, *, into: Path | None = None) -> dict[str, Any]:
    """Writes report.html, report.md, summary.json and pictures/ into a study's folder, or into another.

    The places of page and Markdown, and the sentences that the numbers allow. Reads only study.json and
    results.jsonl. Raises NotFoundError, StorageError.
    """
    facts, rows = read(folder)
    title, question = facts["study"]["title"], facts["study"]["question"]
    page_sections = grids.sections(facts, rows)
    into = into or folder
    with storage(into):
        (into / PICTURES).mkdir(parents=True, exist_ok=True)
        for name, picture in page.picture_files(page_sections).items():
            write_text(into / PICTURES / name, picture)
        write_text(into / PAGE, page.html(title, page_sections, question))
        write_text(into / MARKDOWN, page.markdown(title, page_sections, PICTURES, question))
        write_json(into / SUMMARY, grids.summary(facts, rows))
    says = next((section.paragraphs for section in page_sections if isinstance(section, Text)), ())
    return {"page": str(into / PAGE), "markdown": str(into / MARKDOWN), "says": list(says)}
