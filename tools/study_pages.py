"""Reports of the studies that were run, and what the documents quote of them, made from their results.

`python -m tools.documents` writes report.md and the pictures beside the results in docs/results, and fills
the places in docs/results/*.md that name a section of a report:

    <!-- results recycling: Task by task -->
    <!-- end of results -->

`tests/studies/test_results.py` compares. Words of a study file, those of its claims among them, are taken
into the record of its results; what decides a result is not.
"""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Iterator, Mapping
from functools import cache
from pathlib import Path
from typing import Any

from catalog.errors import UsageError
from merging.members import write_json
from studies.design import Report, Study
from studies.file import read_study
from studies.record import FACTS, read_record
from studies.record import RESULTS as RESULTS_NAME
from studies.report import grids, page
from studies.report.findings import Findings
from studies.report.page import Section
from studies.run import MARKDOWN, PICTURES
from tools import published

RESULTS = Path(__file__).parents[1] / "docs" / "results"
_PLACE = re.compile(r"(<!-- results ([a-z_]+): ([^>]+) -->\n).*?(<!-- end of results -->)", re.DOTALL)


def studies() -> Iterator[Path]:
    """The folders of results, those of the published tables among them."""
    yield from sorted(path.parent for path in RESULTS.glob("*/results.jsonl"))


def quoting() -> Iterator[Path]:
    """The documents that quote results."""
    yield from (path for path in sorted(RESULTS.glob("*.md")) if _PLACE.search(path.read_text("utf-8")))


def take_words(folder: Path) -> None:
    """Writes title, question and report of a study's file into the record of its results.

    Raises UsageError where the file has changed in what decides results.
    """
    file = read_study(folder.name)
    facts = json.loads((folder / FACTS).read_text("utf-8"))
    if facts["file_sha256"] == file.sha256:
        return
    if _without_words(Study.model_validate(facts["study"])) != _without_words(file.study):
        raise UsageError(f"The study {folder.name} is another than that of its results; run it again.")
    facts["study"] = file.study.model_dump(mode="json", by_alias=True)
    facts["file_sha256"] = file.sha256
    write_json(folder / FACTS, facts)


def _without_words(study: Study) -> Study:
    return study.model_copy(update={"title": "", "question": "", "report": Report()})


def fill_places(text: str) -> str:
    """The document with every place filled; raises KeyError for a section that no report has."""
    return _PLACE.sub(lambda match: f"{match[1]}\n{_parts(match[2])[match[3]]}\n\n{match[4]}", text)


def report_files(folder: Path) -> Mapping[str, str]:
    """The Markdown and the pictures of a report, by their paths in the folder of its results."""
    facts, sections = _sections(folder)
    study = facts["study"]
    pictures = {f"{PICTURES}/{name}": svg for name, svg in page.picture_files(sections).items()}
    return {MARKDOWN: page.markdown(study["title"], sections, PICTURES, study["question"]), **pictures}


def write_report(folder: Path) -> None:
    """Writes the report's files into the folder of its results, in place of those of before."""
    shutil.rmtree(folder / PICTURES, ignore_errors=True)
    (folder / PICTURES).mkdir()
    for name, text in report_files(folder).items():
        (folder / name).write_text(text, encoding="utf-8")


def _sections(folder: Path) -> tuple[dict[str, Any], list[Section]]:
    if folder.name == published.NAME:
        rows = [json.loads(line) for line in (folder / RESULTS_NAME).read_text("utf-8").split("\n")[:-1]]
        return json.loads((folder / FACTS).read_text("utf-8")), published.sections(rows)
    facts, cells = read_record(folder)
    return facts, grids.sections(Findings(facts, cells))


@cache
def _parts(study: str) -> dict[str, str]:
    """The sections of a report by title, as Markdown for a document that stands in docs/results."""
    by_title = {}
    for section in _sections(RESULTS / study)[1]:
        text = page.markdown("", [section], f"{study}/{PICTURES}")
        by_title[section.title] = text.split("\n\n", 2)[2].strip()
    return by_title


def main() -> None:
    """Writes all of it."""
    for folder in studies():
        if folder.name != published.NAME:
            take_words(folder)
        write_report(folder)
    for document in quoting():
        document.write_text(fill_places(document.read_text("utf-8")), encoding="utf-8")
