"""The views for strangers' SQL, and the bulk table: one row an adapter, as `show` has it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import Engine, text

import loradex
from catalog.database import opening, views
from catalog.errors import SchemaVersionError
from catalog.search.table import KINDS
from tests.db import rows

ROOT = Path(__file__).parents[2]
VIEWS = ["adapters", "scores", "pool_members"]


def select_all(engine: Engine, view: str) -> list[dict[str, Any]]:
    with engine.connect() as connection:
        return [dict(row) for row in connection.execute(text(f"SELECT * FROM {view}")).mappings()]


def test_a_row_of_each_table_is_a_row_of_each_view(engine: Engine) -> None:
    rows.fill(engine)
    with engine.begin() as connection:
        connection.execute(text("UPDATE repository SET gone_at = NULL"))
        connection.execute(text("UPDATE annotation SET hub_id = (SELECT hub_id FROM repository)"))
        connection.execute(text("UPDATE annotation SET subfolder = (SELECT subfolder FROM adapter)"))
        connection.execute(text("UPDATE annotation_tag SET hub_id = (SELECT hub_id FROM repository)"))
        connection.execute(text("UPDATE annotation_tag SET subfolder = (SELECT subfolder FROM adapter)"))
    [adapter], [score], [member] = (select_all(engine, view) for view in VIEWS)
    assert adapter["adapter"] == member["adapter"] == "repository.name ü:adapter.subfolder ü"
    listed = [adapter[name] for name in ("reasons", "own_tags")]
    texts = [value if isinstance(value, list) else json.loads(value) for value in listed]
    assert texts == [["adapter_reason.reason ü"], ["annotation_tag.tag ü"]]
    assert (adapter["note"], bool(adapter["hidden"])) == ("annotation.note ü", True)
    assert (adapter["weights_bytes"], score["value"], member["pool"]) == (1, 0.5, "pool.name ü")


def test_columns_have_comments_in_the_database(engine: Engine) -> None:
    with engine.connect() as connection:
        if engine.dialect.name == "sqlite":
            [sql] = connection.execute(text("SELECT sql FROM sqlite_master WHERE name = 'adapters'")).one()
            assert "/* Frobenius norm of scaling * B A; null where not measured */" in sql
        else:
            query = "SELECT col_description('adapters'::regclass, ordinal_position) FROM information_schema"
            where = ".columns WHERE table_name = 'adapters' AND column_name = 'norm'"
            [comment] = connection.execute(text(query + where)).one()
            assert comment == "Frobenius norm of scaling * B A; null where not measured"


@pytest.mark.parametrize("what", ["dropped", "another"])
def test_a_view_that_is_missing_or_another_is_noticed_and_made_again(engine: Engine, what: str) -> None:
    rows.fill(engine)
    opening.check_views(engine)
    with engine.begin() as connection:
        connection.execute(text("DROP VIEW scores"))
        if what == "another":
            connection.execute(text("CREATE VIEW scores AS SELECT 1 AS value"))
    with pytest.raises(SchemaVersionError, match=r"lacks the view scores.*upgrade"):
        opening.check_views(engine)
    opening.upgrade(engine)
    opening.check_views(engine)
    assert [row["value"] for row in select_all(engine, "scores")] == [0.5]
    with engine.connect() as connection:
        assert views.missing_views(connection) == []


def test_the_table_has_what_show_has(sample_data: Path, tmp_path: Path) -> None:
    import pyarrow.parquet

    catalog = loradex.open(sample_data)
    file = tmp_path / "all.parquet"
    count = catalog.export_table(file)
    table = pyarrow.parquet.read_table(file)
    assert table.column_names == list(KINDS)
    written = table.to_pylist()
    assert count == len(written) == len(catalog.adapters())
    assert written == list(catalog.iterate_table())
    for row in written[::7]:
        shown = vars(catalog.details(row["adapter"]))
        names = KINDS.keys() & shown.keys() - {"verdict", "uses"}
        assert {name: row[name] for name in names} == {
            name: list(shown[name] or ()) if KINDS[name] == "list" else shown[name] for name in names
        }
        assert set(row["runs"]) == {v.engine.lower() for v in shown["runs_in"] if v.runs}, row["adapter"]
    by_sql = {row["adapter"]: row for row in select_all(opening.open_existing(catalog.settings), "adapters")}
    assert {row["adapter"]: row["norm"] for row in written} == {
        name: row["norm"] for name, row in by_sql.items()
    }
    again = tmp_path / "again.parquet"
    catalog.export_table(again)
    assert again.read_bytes() == file.read_bytes()


def test_the_columns_are_documented() -> None:
    section = (ROOT / "docs/reference/files.md").read_text().partition("## The bulk table")[2]
    assert [name for name in KINDS if f"`{name}`" not in section] == []


def test_the_table_as_csv_has_its_columns_in_order(sample_data: Path) -> None:
    from click.testing import CliRunner

    from cli.main import loradex as program

    words = ["--data", str(sample_data), "adapters", "--columns", "rank,adapter", "-k", "2", "--csv"]
    lines = CliRunner().invoke(program, words).stdout.splitlines()
    assert (lines[0], len(lines)) == ("rank,adapter", 3)
    wrong = CliRunner().invoke(program, [*words[:4], "rank,rang"])
    assert (wrong.exit_code, "'rang' is not a column; use all, or some of" in wrong.stderr) == (2, True)
