"""The examples in the docstrings run, each in a folder of its own with the sample's catalog."""

from __future__ import annotations

import doctest
import shutil
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

import loradex
from loradex import catalog as catalog_module
from loradex import comparison, pool, rows

SAMPLE = Path(__file__).parents[2] / "data" / "sample_hub"


def examples(*modules: ModuleType) -> list[doctest.DocTest]:
    finder = doctest.DocTestFinder(exclude_empty=True)
    return [test for module in modules for test in finder.find(module) if test.examples]


EXAMPLES = examples(catalog_module, comparison, pool, rows)


@pytest.fixture
def names(sample_data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """What the examples may use: `catalog` on the folder data, and a pool of it."""
    monkeypatch.chdir(tmp_path)
    data = Path("data")
    data.mkdir()
    shutil.copy(sample_data / "catalog.db", data)
    (data / "blobs").symlink_to(sample_data / "blobs", target_is_directory=True)
    shutil.copytree(SAMPLE / "zoo" / "banking77", "adapters/banking77")
    Path("ours.csv").write_text("adapter,banking77\nzoo/banking77,0.5\n")
    catalog = loradex.open(data)
    pool = catalog.select("two", by="rank", k=2, use="commercial", dry_run=True)
    return {"loradex": loradex, "catalog": catalog, "pool": pool}


@pytest.mark.parametrize("test", EXAMPLES, ids=[test.name for test in EXAMPLES])
def test_an_example_runs(test: doctest.DocTest, names: dict[str, Any]) -> None:
    report: list[str] = []
    test.globs.update(names)
    doctest.DocTestRunner().run(test, out=report.append)
    assert report == []


def test_what_people_call_first_has_an_example() -> None:
    tested = {test.name.rpartition(".")[2] for test in EXAMPLES}
    assert {"open", "adapters", "similar", "search", "select", "export", "fingerprint"} <= tested
