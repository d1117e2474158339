"""The documents show what the results of the studies say, and the results are those of the files here."""

from __future__ import annotations

import hashlib
import json
import re
from importlib.resources import files
from pathlib import Path

import pytest

from catalog.errors import UsageError
from studies.design import Study
from studies.file import read_study
from studies.log import read_log
from studies.record import FACTS
from studies.run import MARKDOWN, PICTURES, report
from studies.steps import KINDS
from studies.store import LOG
from tools import published, study_pages

ANEW = "run `python -m tools.documents` to write it anew"
pytestmark = pytest.mark.slow
RESULTS = list(study_pages.studies())
STUDIES = [folder for folder in RESULTS if folder.name != published.NAME]


@pytest.mark.parametrize("folder", RESULTS, ids=lambda folder: folder.name)
def test_a_report_is_what_its_results_say(folder: Path) -> None:
    files = study_pages.report_files(folder)
    assert files[MARKDOWN] == (folder / MARKDOWN).read_text("utf-8"), ANEW
    pictures = sorted(f"{PICTURES}/{path.name}" for path in (folder / PICTURES).glob("*"))
    assert sorted(files.keys() - {MARKDOWN}) == pictures, ANEW


def test_a_report_here_is_the_one_that_the_program_writes(tmp_path: Path) -> None:
    report(STUDIES[0], into=tmp_path)
    assert (tmp_path / MARKDOWN).read_text("utf-8") == (STUDIES[0] / MARKDOWN).read_text("utf-8"), ANEW


@pytest.mark.parametrize("folder", STUDIES, ids=lambda folder: folder.name)
def test_results_are_those_of_the_study_as_it_stands_and_whole_unless_it_can_be_gone_on_with(
    folder: Path,
) -> None:
    facts = json.loads((folder / "study.json").read_text("utf-8"))
    file = files("studies").joinpath(f"{folder.name}.yaml").read_bytes()
    assert facts["file_sha256"] == hashlib.sha256(file).hexdigest()
    assert Study.model_validate(facts["study"]) == read_study(folder.name).study
    rows = [json.loads(line) for line in (folder / "results.jsonl").read_text("utf-8").splitlines()]
    missing = [row for row in rows if row["status"] == "missing"]
    assert not missing or (folder / LOG).is_file()


def test_new_words_of_a_study_are_taken_over_and_nothing_else(tmp_path: Path) -> None:
    recorded = (study_pages.RESULTS / "recycling" / FACTS).read_text("utf-8")
    (tmp_path / "recycling").mkdir()
    file = tmp_path / "recycling" / FACTS
    facts = json.loads(recorded)
    facts["study"]["report"]["claims"][0]["claim"], facts["file_sha256"] = "Other words", "0"
    file.write_text(json.dumps(facts))
    study_pages.take_words(file.parent)
    assert json.loads(file.read_text("utf-8")) == json.loads(recorded)
    facts["study"]["methods"]["new LoRA"]["steps"] += 1
    file.write_text(json.dumps(facts))
    with pytest.raises(UsageError, match="The study recycling is another than that of its results"):
        study_pages.take_words(file.parent)
    assert json.loads(file.read_text("utf-8")) == facts


@pytest.mark.parametrize("log", sorted(study_pages.RESULTS.glob(f"*/{LOG}")), ids=lambda log: log.parent.name)
def test_the_log_of_a_study_that_has_begun_can_be_gone_on_from(log: Path) -> None:
    assert read_study(log.parent.name).study.title
    lines = read_log(log)
    assert len(lines) == len(log.read_text("utf-8").splitlines())
    assert {line["kind"] for line in lines.values()} <= KINDS.keys()


def test_documents_quote_the_reports() -> None:
    quoting = list(study_pages.quoting())
    assert quoting
    for document in quoting:
        text = document.read_text("utf-8")
        assert study_pages.fill_places(text) == text, f"{document.name}: {ANEW}"


def test_the_readme_quotes_the_page_of_the_claims() -> None:
    page = (study_pages.RESULTS / "recycling_claims.md").read_text("utf-8")
    readme = (study_pages.RESULTS.parents[1] / "README.md").read_text("utf-8")
    intervals = re.findall(r"\[\S+, \S+\d\]", readme)
    assert intervals
    assert [interval for interval in intervals if interval not in page] == []


def test_a_section_that_no_report_has_is_not_passed_over() -> None:
    with pytest.raises(KeyError):
        study_pages.fill_places(f"<!-- results {STUDIES[0].name}: Nothing -->\n<!-- end of results -->\n")
