"""The documents show what the results of the studies say, and the results are those of the files here."""

from __future__ import annotations

import hashlib
import json
from importlib.resources import files
from pathlib import Path

import pytest

from studies.run import MARKDOWN, PICTURES, report
from tools import published, study_pages

ANEW = "run `python -m tools.documents` to write it anew"
pytestmark = pytest.mark.slow
RESULTS = list(study_pages.studies())
STUDIES = [folder for folder in RESULTS if folder.name != published.NAME]


@pytest.mark.parametrize("folder", RESULTS, ids=lambda folder: folder.name)
def test_a_report_is_what_its_results_say(folder: Path) -> None:
    files = study_pages.report_files(folder)
    assert files[MARKDOWN] == (folder / MARKDOWN).read_text("utf-8"), ANEW
    pictures = sorted(f"{PICTURES}/{path.name}" for path in (folder / PICTURES).iterdir())
    assert sorted(files.keys() - {MARKDOWN}) == pictures, ANEW


def test_a_report_here_is_the_one_that_the_program_writes(tmp_path: Path) -> None:
    report(STUDIES[0], into=tmp_path)
    assert (tmp_path / MARKDOWN).read_text("utf-8") == (STUDIES[0] / MARKDOWN).read_text("utf-8"), ANEW


@pytest.mark.parametrize("folder", STUDIES, ids=lambda folder: folder.name)
def test_results_are_whole_and_those_of_the_study_as_it_stands(folder: Path) -> None:
    facts = json.loads((folder / "study.json").read_text("utf-8"))
    file = files("studies").joinpath(f"{folder.name}.yaml").read_bytes()
    assert facts["file_sha256"] == hashlib.sha256(file).hexdigest()
    rows = [json.loads(line) for line in (folder / "results.jsonl").read_text("utf-8").splitlines()]
    assert "missing" not in {row["status"] for row in rows}


def test_documents_quote_the_reports() -> None:
    quoting = list(study_pages.quoting())
    assert quoting
    for document in quoting:
        text = document.read_text("utf-8")
        assert study_pages.fill_places(text) == text, f"{document.name}: {ANEW}"


def test_a_section_that_no_report_has_is_not_passed_over() -> None:
    with pytest.raises(KeyError):
        study_pages.fill_places(f"<!-- results {STUDIES[0].name}: Nothing -->\n<!-- end of results -->\n")
