"""Pools by calls: selected, saved, exported, verified and merged."""

from __future__ import annotations

import dataclasses
import shutil
from pathlib import Path

import pytest

import loradex
from catalog.pools import Member


@pytest.fixture
def catalog(sample_data: Path, tmp_path: Path) -> loradex.Catalog:
    """A copy of the sample's catalog, to be written to; its weights are shared."""
    data = tmp_path / "data"
    data.mkdir()
    shutil.copy(sample_data / "catalog.db", data)
    (data / "blobs").symlink_to(sample_data / "blobs", target_is_directory=True)
    return loradex.open(data)


def test_the_same_question_gives_the_same_pool(catalog: loradex.Catalog) -> None:
    pool = catalog.select("three", by="random", k=3, seed=1, controls=True)
    assert len(pool) == 3
    assert [row.name for row in pool.control_pools] == ["three-random", "three-matched", "three-shuffled"]
    assert catalog.pool("three").manifest == pool.manifest
    assert pool.path is not None
    assert catalog.pool(pool.path).digest == pool.digest
    assert [row.pool for row in catalog.pools()] == sorted(row.name for row in (pool, *pool.control_pools))
    again = catalog.select("three", by="random", k=3, seed=1, controls=True, dry_run=True)
    assert (again.digest, again.path) == (pool.digest, None)
    with pytest.raises(loradex.errors.PoolError, match="`replace=True`"):
        catalog.select("three", by="random", k=3, seed=2)
    assert catalog.remove_pools("three", "nobody") == 1
    with pytest.raises(loradex.NotFoundError, match="three"):
        catalog.pool("three")


def test_an_export_is_folders_that_merge(catalog: loradex.Catalog, tmp_path: Path) -> None:
    pool = catalog.select("two", by="rank", k=2, where="owner:zoo")
    folders = pool.export(tmp_path / "out")
    assert [folder.parent.parent for folder in folders] == [tmp_path / "out" / pool.manifest.folder_name] * 2
    assert folders.folders == (tmp_path / "out" / pool.manifest.folder_name,)
    assert pool.verify().ok
    from_folders = loradex.merge(folders, "sum", out=tmp_path / "first")
    from_pool = loradex.merge(pool, "sum", out=tmp_path / "second")
    first, second = (
        (report.folder / "adapter_model.safetensors").read_bytes() for report in (from_folders, from_pool)
    )
    assert first == second


def test_engines_run_members_by_the_catalog_and_by_the_files_of_an_export(
    catalog: loradex.Catalog, tmp_path: Path
) -> None:
    pool = catalog.select("two", by="rank", k=2, where="owner:zoo runs:vllm")
    rows = pool.runs_in()
    assert {row.adapter for row in rows} == {member.adapter for member in pool.members}
    assert all(row.runs for row in rows if row.engine == "vllm")
    assert {row.remedies for row in rows if row.engine == "ollama"} == {("gguf",)}
    exported = catalog.pool(pool.export(tmp_path / "out").folders[0])
    assert list(exported.runs_in()) == list(rows)
    shutil.rmtree(exported.folder / "adapters")  # type: ignore[operator]
    elsewhere = dataclasses.replace(exported, settings=None)
    assert {row.runs for row in elsewhere.runs_in() if row.engine != "ollama"} == {None}


def test_the_filter_on_engines_and_the_counts_agree(catalog: loradex.Catalog) -> None:
    for row in catalog.count_engines():
        assert row.runs == len(catalog.adapters(f"runs:{row.engine}"))
        assert row.unknown == len(catalog.adapters(f"runs_unknown:{row.engine}"))
        assert row.runs_not == len(catalog.adapters(f"-runs:{row.engine} -runs_unknown:{row.engine}"))
    (row,) = (row for row in catalog.count_engines("runs:vllm rank:..8") if row.engine == "vllm")
    assert (row.runs_not, row.unknown, row.reasons) == (0, 0, {})
    with pytest.raises(loradex.UsageError, match="write vllm"):
        catalog.count_engines("runs:vlm")


def test_what_is_wrong_with_an_export_is_named(catalog: loradex.Catalog, tmp_path: Path) -> None:
    folders = catalog.select("one", by="rank", k=1).export(tmp_path / "out")
    exported = catalog.pool(folders.folders[0])
    assert exported.verify().ok
    weights = folders[0] / "adapter_model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1] + b"?")
    check = exported.verify()
    assert not check.ok
    assert [problem.kind for problem in check.problems] == ["changed"]


def test_an_exported_pool_is_imported_elsewhere(catalog: loradex.Catalog, tmp_path: Path) -> None:
    pool = catalog.select("mine", by="random", k=2)
    assert pool.path is not None
    elsewhere = loradex.open(tmp_path / "elsewhere")
    assert elsewhere.import_pool(pool.path).digest == pool.digest
    assert [row.pool for row in elsewhere.pools()] == ["mine"]


def test_a_model_is_asked_only_with_a_base(catalog: loradex.Catalog) -> None:
    with pytest.raises(loradex.UsageError, match="give it by `base`"):
        catalog.select("raced", by="racing", task="banking77", budget=10)
    with pytest.raises(loradex.UsageError, match="`query`"):
        catalog.select("said", by="text")
    with pytest.raises(loradex.UsageError, match="`by` is 'beauty'"):
        catalog.select("pretty", by="beauty")


def test_a_pool_for_a_notebook_escapes_every_value(catalog: loradex.Catalog) -> None:
    pool = catalog.select("one", by="rank", k=1, dry_run=True)
    hostile: Member = dataclasses.replace(pool.members[0], repository="a/<img src=x>", why="<b>&")
    manifest = dataclasses.replace(pool.manifest, members=(hostile,), base="<i>")
    page = dataclasses.replace(pool, manifest=manifest)._repr_html_()
    assert [tag for tag in ("<img", "<b>", "<i>") if tag in page] == []
    assert "&lt;img src=x&gt;" in page


def test_scores_are_imported_with_their_source(catalog: loradex.Catalog, tmp_path: Path) -> None:
    file = tmp_path / "ours.csv"
    file.write_text("adapter,banking77\nzoo/banking77,0.5\nnobody/none,0.25\n")
    counts = catalog.import_scores(file, split="valid", n=40)
    assert (counts.rows, counts.new, counts.unknown_adapters) == (2, 2, 1)
    (source,) = catalog.score_sources()
    assert (source.source, source.split, source.scores) == ("ours.csv", "valid", 2)
    (score,) = catalog.scores("zoo/banking77")
    assert (score.task, score.value, score.n) == ("banking77", 0.5, 40)
    pool = catalog.select("best", by="score", task="banking77", k=1)
    assert [member.adapter for member in pool.members] == ["zoo/banking77"]


def test_parameters_that_a_strategy_does_not_use_are_named(catalog: loradex.Catalog) -> None:
    pool = catalog.select("any", by="random", k=2, query="banks", budget=8, dry_run=True)
    assert "Selecting by random does not use `query` and `budget`." in pool.notes
    assert not catalog.select("any", by="random", k=2, seed=3, dry_run=True).notes
    assert not catalog.select("any", by="adapter", k=2, like="zoo/banking77", dry_run=True).notes
