"""The table of architectures is what was recorded, and a few of its rows come out again."""

from __future__ import annotations

import json
from importlib.metadata import version

import pytest

from tests.merging.architectures import KINDS
from tools.architectures import COLUMNS, PAGE, RECORD, cells, outcome_of, page, try_architecture

RECORDED = json.loads(RECORD.read_text(encoding="utf-8"))


def test_the_page_is_what_was_recorded_of_every_architecture() -> None:
    assert PAGE.read_text(encoding="utf-8") == page(RECORDED)
    assert tuple(RECORDED["rows"]) == KINDS
    assert {tuple(row) for row in RECORDED["rows"].values()} == {COLUMNS}
    assert not [kind for kind, row in RECORDED["rows"].items() if "fails" in " ".join(row.values())]


@pytest.mark.parametrize("kind", ["gpt2", "mixtral"])
def test_a_row_comes_out_again(kind: str) -> None:
    if RECORDED["transformers"] != version("transformers"):
        pytest.skip("the table is of another version of transformers")
    assert try_architecture(kind) == RECORDED["rows"][kind]


def test_what_is_more_than_a_yes_is_a_note_below() -> None:
    row = dict.fromkeys(COLUMNS, "yes") | {"train": "yes, without experts", "merge": "refused: No: not here"}
    notes: dict[str, int] = {}
    assert list(cells(row, notes)) == ["yes (1)", "yes", "yes", "yes", "refused (2)", "yes", "yes", "yes"]
    assert next(cells(row, notes)) == "yes (1)"
    assert notes == {"Without experts.": 1, "Refused: No: not here.": 2}


def test_a_fault_is_no_refusal() -> None:
    def fail() -> str:
        raise RuntimeError("first\nsecond")

    assert outcome_of(fail) == "fails: RuntimeError: first"
