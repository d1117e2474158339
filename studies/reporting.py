"""The report of a study's folder: one page, the same in Markdown with pictures, and the numbers as JSON."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from merging.write import storage, write_json, write_text
from studies import published
from studies.report import grids, page
from studies.report.sections import Text
from studies.run import read

PAGE, MARKDOWN, SUMMARY, PICTURES = "report.html", "report.md", "summary.json", "pictures"


def report(folder: Path) -> dict[str, Any]:
    """Writes report.html, report.md, summary.json and pictures/ into a study's folder.

    The places of page and Markdown, and the sentences that the numbers allow. Reads only study.json and
    results.jsonl. Raises NotFoundError, StorageError.
    """
    facts, rows = read(folder)
    title, question = facts["study"]["title"], facts["study"]["question"]
    if "published" in facts["study"]:
        known: Any = [row for row in rows if row["status"] == "done"]
        sections = published.sections(known)
        told = {"rows": rows}
    else:
        sections, told = grids.sections(facts, rows), grids.summary(facts, rows)
    with storage(folder):
        (folder / PICTURES).mkdir(exist_ok=True)
        for name, picture in page.picture_files(sections).items():
            write_text(folder / PICTURES / name, picture)
        write_text(folder / PAGE, page.html(title, sections, question))
        write_text(folder / MARKDOWN, page.markdown(title, sections, PICTURES, question))
        write_json(folder / SUMMARY, told)
    says = next((one.paragraphs for one in sections if isinstance(one, Text)), ())
    return {"page": str(folder / PAGE), "markdown": str(folder / MARKDOWN), "says": list(says)}
