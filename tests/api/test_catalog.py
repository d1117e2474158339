"""`loradex.open`: what a catalog contains, without the command line."""

from __future__ import annotations

import json
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


def test_the_import_loads_neither_the_database_nor_torch() -> None:
    code = "import json, sys, loradex; loradex.Rows; print(json.dumps(sorted(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    modules = {name.partition(".")[0] for name in json.loads(done.stdout)}
    assert "loradex" in modules
    assert modules & {"sqlalchemy", "torch", "huggingface_hub", "numpy", "click", "rich"} == set()


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
    with pytest.raises(loradex.NotFoundError, match="zoo/nobody"):
        catalog["zoo/nobody"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"verdict": "good"}, "verdict='good' is not valid; use one of 'accepted', 'skipped', 'any'"),
        ({"reason": "ugly"}, "reason='ugly' is not valid"),
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
