"""`loradex.open`: what a catalog contains, without the command line."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

import loradex
from loradex.rows import PoolRow


def test_nothing_is_made_before_something_is_written(tmp_path: Path) -> None:
    with loradex.open(tmp_path / "data") as catalog, pytest.raises(loradex.errors.NoCatalogError):
        catalog.status()
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("code", "absent"),
    [
        ("loradex.Rows", {"sqlalchemy", "torch", "huggingface_hub", "numpy", "click", "rich"}),
        ("loradex.Catalog", {"torch", "huggingface_hub", "numpy", "faiss", "click", "rich"}),
    ],
)
def test_a_name_loads_what_it_needs_alone(code: str, absent: set[str]) -> None:
    program = f"import json, sys, loradex; {code}; print(json.dumps(sorted(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    modules = {name.partition(".")[0] for name in json.loads(done.stdout)}
    assert "loradex" in modules
    assert modules & absent == set()


@pytest.mark.parametrize("command", ["status", "adapters", "pools"])
def test_a_command_that_reads_loads_no_client_and_no_arithmetic(command: str, sample_data: Path) -> None:
    program = (
        "import json, sys\nfrom cli.main import loradex\n"
        f"loradex([{command!r}, '--json', '--data', {str(sample_data)!r}], standalone_mode=False)\n"
        "print(json.dumps(sorted(sys.modules)), file=sys.stderr)"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    modules = {name.partition(".")[0] for name in json.loads(done.stderr)}
    assert "sqlalchemy" in modules
    assert modules & {"huggingface_hub", "httpx", "numpy", "faiss", "torch", "transformers"} == set()


def test_status_counts_every_adapter_once(catalog: loradex.Catalog) -> None:
    status = catalog.status()
    assert status.adapters == status.accepted + status.skipped == len(catalog.adapters())
    assert catalog.status(rules="paper").skipped != status.skipped


def test_a_filter_sorts_and_limits_what_is_listed(catalog: loradex.Catalog) -> None:
    rows = catalog.adapters("rank:16..", sort="parameters", limit=3)
    assert [row.rank for row in rows if row.rank is None or row.rank < 16] == []
    sizes = [row.parameters or 0 for row in rows]
    assert len(sizes) == 3
    assert sizes == sorted(sizes, reverse=True)
    assert rows[:2].columns == rows.columns
    assert list(catalog.iterate_adapters("rank:16..", sort="parameters", limit=3)) == list(rows)


def test_an_adapter_is_found_by_its_reference(catalog: loradex.Catalog) -> None:
    adapter = catalog["zoo/banking77"]
    assert adapter.adapter == "zoo/banking77"
    assert adapter.verdict == "accepted"
    assert "zoo/banking77" in catalog
    assert "zoo/nobody" not in catalog
    assert "not a reference" not in catalog
    assert 5 not in catalog
    with pytest.raises(TypeError, match="not iterable"):
        list(catalog)  # type: ignore[call-overload]
    with pytest.raises(loradex.NotFoundError, match="zoo/nobody"):
        catalog["zoo/nobody"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"verdict": "good"}, "`verdict` is 'good'; use one of 'accepted', 'skipped', 'any'."),
        ({"reason": "ugly"}, "`reason` is 'ugly'"),
        ({"where": "rank>4"}, "rank:5.."),
        ({"where": "reason:ugly"}, "ugly"),
        ({"sort": "beauty"}, "beauty"),
        ({"rules": "theirs"}, "theirs"),
    ],
)
def test_arguments_that_are_not_valid_are_one_sentence(
    catalog: loradex.Catalog, arguments: dict[str, str], message: str
) -> None:
    with pytest.raises(loradex.UsageError) as caught:
        catalog.adapters(**arguments)
    assert message in str(caught.value)


def test_fields_are_listed_without_a_catalog(tmp_path: Path) -> None:
    fields = loradex.open(tmp_path / "nowhere").fields()
    assert "license" in [row.field for row in fields]


def test_a_table_for_a_notebook_escapes_every_value() -> None:
    row = PoolRow("<script>alert(1)</script>", 3, "a&b", None, "research", ["<b>"], "0" * 64)
    page = loradex.Rows([row], PoolRow)._repr_html_()
    assert [tag for tag in ("<script>", "<b>", "a&b") if tag in page] == []
    assert "&lt;script&gt;alert(1)" in page


@pytest.mark.parametrize(("method", "package"), [("to_pandas", "pandas"), ("to_arrow", "pyarrow")])
def test_a_missing_package_is_one_sentence(
    method: str, package: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(loradex.UsageError, match=f"pip install {package}"):
        getattr(loradex.Rows([], PoolRow), method)()


def test_rows_become_a_data_frame(catalog: loradex.Catalog) -> None:
    pandas = pytest.importorskip("pandas")
    frame = catalog.adapters().to_pandas()
    assert isinstance(frame, pandas.DataFrame)
    assert len(frame) == len(catalog.adapters())
    assert list(loradex.Rows([], PoolRow).to_pandas().columns)[:2] == ["pool", "members"]


def test_rows_become_an_arrow_table(catalog: loradex.Catalog) -> None:
    pytest.importorskip("pyarrow")
    rows = catalog.adapters()
    assert rows.to_arrow().to_pylist() == rows.to_dicts()


def test_vectors_come_with_their_names(catalog: loradex.Catalog) -> None:
    names, vectors = catalog.fingerprints("delta", where="owner:zoo")
    assert names == sorted(names)
    assert all(name.startswith("zoo/") for name in names)
    assert vectors.shape == (len(names), vectors.shape[1])
    assert str(vectors.dtype) == "float32"
    nobody, empty = catalog.fingerprints("delta", where="owner:nobody")
    assert (nobody, empty.shape) == ([], (0, vectors.shape[1]))


def test_the_nearest_adapter_agrees_with_the_comparison(catalog: loradex.Catalog) -> None:
    rows = catalog.similar("zoo/banking77", k=2, exact=True)
    pair = catalog.compare("zoo/banking77", rows[0].adapter)
    assert pair.exact
    assert pair.output == pytest.approx(rows[0].score)
    assert catalog.compare("zoo/banking77", "zoo/banking77").delta == pytest.approx(1)


def test_a_search_by_words_states_why(catalog: loradex.Catalog) -> None:
    rows = catalog.search("banking", k=3, words_only=True)
    assert rows[0].adapter.startswith("zoo/banking77")
    assert "banking" in rows[0].why
    with pytest.raises(loradex.UsageError, match="words must count"):
        catalog.search("banking", words_only=True, weights=(0, 1))


def test_duplicates_and_families_name_their_members(catalog: loradex.Catalog) -> None:
    for rows in (catalog.duplicates(), catalog.families()):
        assert all(row.size == len(row.members) for row in rows)
    with pytest.raises(loradex.UsageError, match="`level` is 'near'"):
        catalog.duplicates("near")


def test_a_map_is_drawn_to_a_file(catalog: loradex.Catalog, tmp_path: Path) -> None:
    report = catalog.map(tmp_path / "map.svg", colour="rank")
    assert report.adapters == len(catalog.fingerprints()[0])
    assert (tmp_path / "map.svg").read_text().startswith("<?xml")
    with pytest.raises(loradex.UsageError, match="`colour` is 'red'"):
        catalog.map(tmp_path / "map.svg", colour="red")


def test_the_fingerprint_of_a_folder_needs_no_catalog(sample_data: Path) -> None:
    folder = Path(__file__).parents[2] / "data" / "sample_hub" / "zoo" / "banking77"
    numbers = loradex.fingerprint(folder)
    adapter = loradex.open(sample_data)["zoo/banking77"]
    assert numbers.norm == pytest.approx(adapter.norm)
    assert (numbers.rank, numbers.health, numbers.partial) == (adapter.rank, adapter.health, {})


def test_the_indexes_are_caches(sample_data: Path, tmp_path: Path) -> None:
    shutil.copy(sample_data / "catalog.db", tmp_path)
    catalog = loradex.open(tmp_path)
    assert {row.state for row in catalog.check_indexes()} == {"missing"}
    assert {row.state for row in catalog.rebuild_indexes()} == {"current"}


def test_a_catalog_is_a_database_anywhere(empty_url: str, tmp_path: Path) -> None:
    catalog = loradex.open(tmp_path / "data", url=empty_url)
    assert catalog.upgrade().before is None
    assert catalog.check() == catalog.upgrade().after
    assert catalog.info().rows["adapter"] == len(catalog.adapters("use:commercial")) == 0
