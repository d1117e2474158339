"""The documents show what the results of the studies say, and the results are those of the files here."""

from __future__ import annotations

import hashlib
import json
from importlib.resources import files
from pathlib import Path

import pytest

from studies.reporting import MARKDOWN, PICTURES, report
from tests import study_pages

ANEW = "run `python -m tests.study_pages` to write it anew"
pytestmark = pytest.mark.slow
STUDIES = list(study_pages.studies())


@pytest.mark.parametrize("folder", STUDIES, ids=lambda folder: folder.name)
def test_a_report_is_what_its_results_say(folder: Path, tmp_path: Path) -> None:
    report(folder, into=tmp_path)
    assert (tmp_path / MARKDOWN).read_text("utf-8") == (folder / MARKDOWN).read_text("utf-8"), ANEW
    names = sorted(one.name for one in (tmp_path / PICTURES).iterdir())
    assert names == sorted(one.name for one in (folder / PICTURES).iterdir()), ANEW


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
        assert study_pages.filled(text) == text, f"{document.name}: {ANEW}"


def test_a_section_that_no_report_has_is_not_passed_over() -> None:
    with pytest.raises(KeyError):
        study_pages.filled(f"<!-- results {STUDIES[0].name}: Nothing -->\n<!-- end of results -->\n")
