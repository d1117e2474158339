"""Row 27: a filter in another language is answered with the place and what would be right, everywhere."""

from __future__ import annotations

import pytest

from tests.cli.conftest import Program
from tests.edges.rows import row
from tests.shared_data import shared

RIGHT = {"license=mit": "license:mit", "rank>4": "rank:5.."}


@shared
def test_the_row(run: Program) -> None:
    for text in row("27-filters").joinpath("filters.txt").read_text().splitlines():
        refused = run("adapters", "--where", text)
        assert (refused.exit_code, refused.stdout) == (2, "")
        assert f"write {RIGHT[text]}" in refused.stderr
        assert " at character " in refused.stderr


@pytest.mark.parametrize(
    "words",
    [("adapters",), ("search", "text"), ("select", "name", "--by", "random")],
    ids=lambda words: words[0],
)
@pytest.mark.parametrize(
    ("text", "right"),
    [
        ("license == mit", "license:mit"),
        ("license = 'apache 2'", 'write license:"apache 2"'),
        ("license:mit and rank:8", "leave it out"),
        ("reason:licence_missing", "write license_missing; it is one of"),
    ],
)
def test_every_command_refuses_it_before_a_catalog_is_opened(
    words: tuple[str, ...], text: str, right: str, run: Program
) -> None:
    refused = run(*words, "--where", text)
    assert (refused.exit_code, refused.stdout) == (2, "")
    assert right in refused.stderr
    assert refused.stderr.count("\n") == 1
