"""The views for strangers' SQL, and the bulk table: one row an adapter, as `show` has it."""

from __future__ import annotations

import json
import uuid
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import Connection, Engine, text, update

import loradex
from catalog.database import Adapter, Repository, opening, views
from catalog.errors import CatalogError, SchemaVersionError
from catalog.search.table import KINDS
from tests.db import rows

ROOT = Path(__file__).parents[2]
VIEWS = ["adapters", "scores", "pool_members"]


def select_all(engine: Engine, view: str) -> list[dict[str, Any]]:
    with engine.connect() as connection:
        return [dict(row) for row in connection.execute(text(f"SELECT * FROM {view}")).mappings()]


def outdate(connection: Connection) -> None:
    """Makes the view `scores` one that another version of the program defined."""
    if connection.dialect.name == "sqlite":
        [sql] = connection.exec_driver_sql("SELECT sql FROM sqlite_master WHERE name = 'scores'").one()
        connection.exec_driver_sql("DROP VIEW scores")
        connection.exec_driver_sql(sql.replace("the score", "the value"))
    else:
        connection.exec_driver_sql("COMMENT ON VIEW scores IS 'Scores. [loradex view 0123 4567]'")


def test_a_row_of_each_table_is_a_row_of_each_view(engine: Engine) -> None:
    rows.fill(engine)
    with engine.begin() as connection:
        connection.execute(text("UPDATE repository SET gone_at = NULL"))
        connection.execute(text("UPDATE annotation SET hub_id = (SELECT hub_id FROM repository)"))
        connection.execute(text("UPDATE annotation SET subfolder = (SELECT subfolder FROM adapter)"))
        connection.execute(text("UPDATE annotation_tag SET hub_id = (SELECT hub_id FROM repository)"))
        connection.execute(text("UPDATE annotation_tag SET subfolder = (SELECT subfolder FROM adapter)"))
    [adapter], [score], [member] = (select_all(engine, view) for view in VIEWS)
    assert adapter["adapter"] == member["adapter"] == "owner/name:adapter.subfolder ü"
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
        outdate(connection) if what == "another" else connection.execute(text("DROP VIEW scores"))
    with pytest.raises(SchemaVersionError, match=r"lacks the view scores.*upgrade"):
        opening.check_views(engine)
    opening.upgrade(engine)
    opening.check_views(engine)
    assert [row["value"] for row in select_all(engine, "scores")] == [0.5]
    with engine.connect() as connection:
        assert views.missing_views(connection) == []


def test_views_and_triggers_of_others_outlive_a_change_of_the_schema(engine: Engine) -> None:
    """SQLite changes no table while any view does not fit, and drops the triggers of one that is rebuilt."""
    if engine.dialect.name != "sqlite":
        pytest.skip("PostgreSQL says what depends on a view")
    rows.fill(engine)
    opening.downgrade(engine, "0005")
    for statement in (
        "CREATE VIEW above AS SELECT mine.value, evaluation.task FROM mine, evaluation",
        "CREATE VIEW mine AS SELECT 'ü%:?' AS a, value FROM scores",
        "CREATE VIEW broken AS SELECT * FROM absent",
        "CREATE TABLE log (value)",
        "CREATE TRIGGER own AFTER DELETE ON evaluation BEGIN INSERT INTO log VALUES (OLD.value); END",
        "CREATE TRIGGER on_view INSTEAD OF DELETE ON mine BEGIN DELETE FROM evaluation; END",
    ):
        run(engine, statement)
    query = (
        "(SELECT name, sql FROM sqlite_master WHERE name IN ('above', 'mine', 'broken', 'own', 'on_view'))"
    )
    before = select_all(engine, query)
    opening.upgrade(engine)
    assert (len(before), select_all(engine, query)) == (5, before)
    assert select_all(engine, "mine") == [{"a": "ü%:?", "value": 0.5}]
    run(engine, "DELETE FROM mine")
    assert select_all(engine, "log") == [{"value": 0.5}]


def run(engine: Engine, statement: str) -> None:
    with engine.begin() as connection:
        connection.exec_driver_sql(statement)


@pytest.mark.parametrize(
    "statement",
    [
        "CREATE VIEW mine AS SELECT own_tags, hidden FROM adapters",
        "CREATE VIEW mine AS SELECT note FROM annotation",
    ],
)
def test_a_view_of_others_that_the_new_schema_does_not_fit_is_named(engine: Engine, statement: str) -> None:
    rows.fill(engine)
    run(engine, statement)
    before = select_all(engine, "mine")
    with pytest.raises(CatalogError, match=r"view mine .*: drop it, run the command again"):
        opening.downgrade(engine, "0011")
    assert select_all(engine, "mine") == before
    opening.check(engine)
    opening.check_views(engine)


def test_a_view_of_others_on_an_outdated_view_is_kept_or_named(engine: Engine) -> None:
    rows.fill(engine)
    run(engine, "CREATE VIEW mine AS SELECT value FROM scores")
    with engine.begin() as connection:
        outdate(connection)
    if engine.dialect.name == "sqlite":
        run(engine, "CREATE TRIGGER own INSTEAD OF DELETE ON scores BEGIN DELETE FROM evaluation; END")
        opening.upgrade(engine)
        assert select_all(engine, "mine") == [{"value": 0.5}]
        run(engine, "DELETE FROM scores")
        assert select_all(engine, "mine") == []
    else:
        with pytest.raises(CatalogError, match=r"view mine depends on view scores: drop it, .* again"):
            opening.upgrade(engine)
        run(engine, "DROP VIEW mine")
        opening.upgrade(engine)
    opening.check_views(engine)


OTHERS = {
    "view": "CREATE VIEW scores AS SELECT 1 AS mine",
    "table": "CREATE TABLE scores (mine integer)",
    "index": "CREATE INDEX scores ON pool (name)",
    "materialized view": "CREATE MATERIALIZED VIEW scores AS SELECT 1 AS mine",
    "sequence": "CREATE SEQUENCE scores",
    "type": "CREATE TYPE scores AS ENUM ('mine')",
}


@pytest.mark.parametrize("kind", OTHERS)
def test_what_others_made_under_the_name_of_a_view_is_refused(engine: Engine, kind: str) -> None:
    if engine.dialect.name == "sqlite" and kind not in ("view", "table", "index"):
        pytest.skip("SQLite has none")
    run(engine, "DROP VIEW scores")
    run(engine, OTHERS[kind])
    for call in (opening.check_views, opening.upgrade):
        with pytest.raises(CatalogError, match=r"contains scores, which loradex did not make: rename it"):
            call(engine)
    run(engine, f"DROP {kind} scores")
    opening.upgrade(engine)
    opening.check_views(engine)


def test_a_new_catalog_leaves_the_views_of_others_alone(empty_engine: Engine) -> None:
    run(empty_engine, OTHERS["view"])
    with pytest.raises(CatalogError, match="contains scores, which loradex did not make"):
        opening.upgrade(empty_engine)
    assert select_all(empty_engine, "scores") == [{"mine": 1}]
    assert opening.current(empty_engine) is None


def test_a_table_of_others_under_a_name_that_a_migration_needs_is_named(empty_engine: Engine) -> None:
    opening.upgrade(empty_engine, "0011")
    run(empty_engine, "CREATE TABLE annotation (mine integer)")
    with pytest.raises(CatalogError, match=r"annotation.* already exists.*: rename what is not loradex's"):
        opening.upgrade(empty_engine)
    run(empty_engine, "DROP TABLE annotation")
    opening.upgrade(empty_engine)
    opening.check_views(empty_engine)


def test_privileges_on_the_views_are_kept(engine: Engine) -> None:
    if engine.dialect.name == "sqlite":
        pytest.skip("SQLite has no privileges")
    role = f'"loradex {uuid.uuid4().hex}"'
    run(engine, f"CREATE ROLE {role}")
    try:
        run(engine, f"GRANT SELECT, UPDATE ON adapters TO {role} WITH GRANT OPTION")
        run(engine, f"GRANT SELECT (task, value) ON scores TO {role}")
        run(engine, "GRANT SELECT ON scores TO PUBLIC")
        run(engine, f"ALTER DEFAULT PRIVILEGES GRANT SELECT ON TABLES TO {role}, PUBLIC")
        before = privileges(engine)
        assert len(before) > 3
        with engine.begin() as connection:
            outdate(connection)
        opening.upgrade(engine)
        opening.check_views(engine)
        assert privileges(engine) == before
    finally:
        run(engine, f"DROP OWNED BY {role}")
        run(engine, "ALTER DEFAULT PRIVILEGES REVOKE SELECT ON TABLES FROM PUBLIC")
        run(engine, f"DROP ROLE {role}")


def privileges(engine: Engine) -> set[Any]:
    query = (
        "SELECT relname, attname, acl.* FROM pg_class JOIN pg_attribute ON attrelid = pg_class.oid, "
        "LATERAL (SELECT * FROM aclexplode(coalesce(relacl, acldefault('r', relowner))) "
        "UNION ALL SELECT * FROM aclexplode(attacl)) acl "
        "WHERE relname IN ('adapters', 'scores', 'pool_members')"
    )
    with engine.connect() as connection:
        return {tuple(row) for row in connection.execute(text(query))}


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


def test_a_number_that_its_column_cannot_hold_is_none(
    engine: Engine, catalog_url: str, tmp_path: Path
) -> None:
    import pyarrow.parquet

    rows.fill(engine)
    training = {"steps": 1e300, "seed": -(2**70), "batch_size": 4.0, "epochs": 10**309, "warmup_ratio": 1e300}
    with engine.begin() as connection:
        connection.execute(update(Adapter).values(training=training, current=True, card_front={}))
        connection.execute(update(Repository).values(gone_at=None))
    file = tmp_path / "all.parquet"
    with loradex.open(tmp_path, url=catalog_url) as catalog:
        assert catalog.export_table(file) == 1
    (row,) = pyarrow.parquet.read_table(file).to_pylist()
    expected = {"steps": None, "seed": None, "batch_size": 4, "epochs": None, "warmup_ratio": 1e300}
    assert {name: row[f"training_{name}"] for name in training} == expected


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
