"""Row 24: the path of a data folder is a path, whatever it would mean in an address."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest
from click.testing import CliRunner

from catalog.settings import sqlite_url
from cli.main import loradex
from tests.edges.rows import row
from tests.shared_data import shared

NAMES = [
    "r?s",
    "100%",
    "%41",
    "%2e%2e",
    "a#b",
    "with space",
    "naïve-日本",
    "a:b",
    "a@b:c",
    "file:x",
    ":memory:",
]
NAMES += ["a&b=c", "a;b", "[x]", "a+b", "it's", 'a"b', "a\\b", "?mode=ro", "a\nb", "~", "http:", "$HOME"]


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty folder that is the working folder."""
    monkeypatch.chdir(tmp_path)
    return tmp_path


def upgrade(here: Path, name: str) -> None:
    """Makes a catalog in the data folder of that name, and looks whether it is there and nothing else."""
    run = CliRunner()
    for words, environment in ((["--data", name], {}), ([], {"LORADEX_DATA": name})):
        for command in (["db", "upgrade"], ["db", "check"], ["adapters"], ["blobs", "gc"]):
            result = run.invoke(loradex, [*words, *command], env=environment)
            assert result.exit_code == 0, result.output
        document = json.loads(run.invoke(loradex, [*words, "db", "info", "--json"], env=environment).stdout)
        assert Path(document["place"]).samefile(here / name / "catalog.db")
        assert [path.name for path in here.iterdir()] == [name]


@pytest.mark.parametrize("name", NAMES)
def test_the_catalog_lies_in_the_folder_of_that_name(here: Path, name: str) -> None:
    upgrade(here, name)


@shared
def test_the_names_of_the_row(here: Path) -> None:
    for name in (row("24-data-folders") / "names.txt").read_text().splitlines():
        upgrade(here, name)


def test_an_absolute_path_is_taken_as_it_is(here: Path) -> None:
    result = CliRunner().invoke(loradex, ["--data", str(here / "100%?"), "db", "upgrade"])
    assert (result.exit_code, (here / "100%?" / "catalog.db").is_file()) == (0, True)


def test_a_path_that_is_not_unicode_is_one_sentence(here: Path) -> None:
    result = CliRunner().invoke(loradex, ["--data", os.fsdecode(b"caf\xe9"), "adapters"])
    assert (result.exit_code, result.stderr.count("\n")) == (2, 1)
    assert "not Unicode" in result.stderr


def test_a_plain_path_is_written_as_ever() -> None:
    assert sqlite_url(Path("data/catalog.db")) == "sqlite:///data/catalog.db"
    assert sqlite_url(Path("/var/lib/catalog.db")) == "sqlite:////var/lib/catalog.db"
