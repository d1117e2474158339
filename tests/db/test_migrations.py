"""Up, down and up again, from empty and from full, on both databases; the migrations and the schema agree."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from alembic import command
from alembic.autogenerate import compare_metadata
from alembic.runtime.migration import MigrationContext
from sqlalchemy import Engine, delete, func, inspect, select, text, update
from sqlalchemy.exc import IntegrityError
from sqlalchemy.orm import Session

from catalog.database import opening, schema
from catalog.database.score_store import Saved, ScoreFilter, save_scores, stored_scores
from catalog.errors import CatalogError, SchemaVersionError
from catalog.scores import Outcomes, Score, item_hash, list_sha, pack_bitmap, pack_margins
from tests.crawl_process import upgrade_catalog
from tests.db import rows
from tests.processes import start_process, wait_for


def test_a_fresh_database_has_no_revision(empty_engine: Engine) -> None:
    assert opening.current(empty_engine) is None


@pytest.mark.parametrize("times", [1, 2], ids=["case-81-up-from-empty", "case-81-up-twice"])
def test_up(empty_engine: Engine, times: int) -> None:
    for _ in range(times):
        opening.upgrade(empty_engine)
    assert opening.current(empty_engine) == opening.head()
    opening.check(empty_engine)
    assert set(inspect(empty_engine).get_table_names()) == {
        *schema.TableBase.metadata.tables,
        opening.VERSION_TABLE,
    }


@pytest.mark.parametrize("full", [False, True], ids=["case-81-empty", "case-81-populated"])
def test_down_drops_everything_and_up_makes_it_again(empty_engine: Engine, full: bool) -> None:
    opening.upgrade(empty_engine)
    if full:
        rows.fill(empty_engine)
    opening.downgrade(empty_engine, "base")
    assert set(inspect(empty_engine).get_table_names()) == {opening.VERSION_TABLE}
    assert opening.current(empty_engine) is None
    opening.upgrade(empty_engine)
    assert not any(rows.dump(empty_engine).values())
    rows.fill(empty_engine)


def test_case_81_up_on_a_full_catalog_keeps_every_row(engine: Engine) -> None:
    rows.fill(engine)
    before = rows.dump(engine)
    assert all(len(result) == 1 for result in before.values())
    opening.upgrade(engine)
    assert rows.dump(engine) == before


def test_marks_of_partial_updates_come_from_the_reasons_and_no_row_is_lost(engine: Engine) -> None:
    rows.fill(engine)
    reasons = {
        1: ["license_missing"],
        2: ["full_weights", "not_causal_lm", "use_dora"],
        3: ["use_dora"],
        4: [],
    }
    with Session(engine) as session, session.begin():
        (first,) = session.scalars(select(schema.Adapter)).all()
        for number in reasons:
            other = schema.Adapter(
                **{c.key: getattr(first, c.key) for c in inspect(schema.Adapter).mapper.column_attrs}
            )
            other.id, other.commit, other.modules = (
                first.id + number,
                f"{number:040x}",
                0 if number == 3 else 7,
            )
            other.reasons = [
                schema.AdapterReason(reason=name, position=place, detail="")
                for place, name in enumerate(reasons[number])
            ]
            session.add(other)
    with engine.begin() as connection:
        # Revision 0003 has no place for the outcomes of items, nor for the process that crawls.
        connection.execute(update(schema.Crawl).values(holder=None, held_since=None, phase=None))
        connection.execute(update(schema.Evaluation).values(items_sha=None, outcomes=None, margins=None))
        connection.execute(delete(schema.ItemList))
        connection.execute(delete(schema.WeightsItem))
        connection.execute(delete(schema.RequestBudgetRow))
        # Nor for what users write.
        connection.execute(delete(schema.Annotation))
        connection.execute(delete(schema.AnnotationTag))
    before = rows.dump(engine)
    opening.downgrade(engine, "0003")
    opening.upgrade(engine)
    after = rows.dump(engine)
    partial = list(schema.Adapter.__table__.columns.keys()).index("partial")
    assert {name: len(result) for name, result in after.items()} == {
        name: len(result) for name, result in before.items()
    }
    assert {name: result for name, result in after.items() if name != "adapter"} == {
        name: result for name, result in before.items() if name != "adapter"
    }
    marks = [row[partial] for row in sorted(after["adapter"], key=lambda row: int(row[0]))]
    assert marks == [[], [], ["full_weights", "use_dora"], None, []]


def test_case_81_autogenerate_finds_nothing(engine: Engine) -> None:
    with engine.connect() as connection:
        context = MigrationContext.configure(
            connection,
            opts={
                "compare_type": True,
                "compare_server_default": True,
                "version_table": opening.VERSION_TABLE,
            },
        )
        assert compare_metadata(context, schema.TableBase.metadata) == []


def test_every_constraint_has_the_name_of_the_schema(engine: Engine) -> None:
    """Autogenerate does not see CHECKs; a schema made by SQLAlchemy itself is the other witness."""
    expected = _constraints(schema.TableBase.metadata)
    result: set[str] = set()
    inspector = inspect(engine)
    for table in schema.TableBase.metadata.tables:
        result.add(str(inspector.get_pk_constraint(table)["name"]))
        for listed in (
            inspector.get_unique_constraints(table),
            inspector.get_foreign_keys(table),
            inspector.get_check_constraints(table),
            [index for index in inspector.get_indexes(table) if not index.get("duplicates_constraint")],
        ):
            result.update(str(constraint["name"]) for constraint in listed)
    assert result == expected
    assert "None" not in result


def test_comments_reach_postgres(engine: Engine) -> None:
    if engine.dialect.name == "sqlite":
        assert not engine.dialect.supports_comments
        return
    columns = inspect(engine).get_columns("repository")
    expected = {column.name: column.comment for column in schema.Repository.__table__.columns}
    assert {column["name"]: column["comment"] for column in columns} == expected


@pytest.mark.parametrize(
    ("revision", "advice"),
    [
        pytest.param("0000", "made by a newer loradex", id="case-81-newer"),
        pytest.param(None, "no catalog at", id="case-81-none"),
    ],
)
def test_check_says_what_to_type(engine: Engine, revision: str | None, advice: str) -> None:
    with engine.begin() as connection:
        connection.execute(text(f"DELETE FROM {opening.VERSION_TABLE}"))
        if revision is not None:
            statement = text(f"INSERT INTO {opening.VERSION_TABLE} VALUES (:revision)")
            connection.execute(statement, {"revision": revision})
    with pytest.raises(CatalogError, match=advice):
        opening.check(engine)


def test_an_older_schema_is_told_to_upgrade(engine: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(opening, "head", lambda: "9999")
    with pytest.raises(SchemaVersionError, match=r"run `upgrade\(\)`"):
        opening.check(engine)


def test_a_newer_catalog_is_not_upgraded(engine: Engine) -> None:
    with engine.begin() as connection:
        connection.execute(text(f"UPDATE {opening.VERSION_TABLE} SET version_num = 'future'"))
    with pytest.raises(SchemaVersionError, match="newer"):
        opening.upgrade(engine)
    assert opening.current(engine) == "future"


def test_a_strangers_table_is_left_alone(empty_engine: Engine) -> None:
    with empty_engine.begin() as connection:
        connection.execute(text("CREATE TABLE adapter (what TEXT)"))
    with pytest.raises(CatalogError, match=r"contains other tables \(adapter\)"):
        opening.upgrade(empty_engine)
    assert inspect(empty_engine).get_table_names() == ["adapter"]


def test_a_failed_migration_leaves_nothing(empty_engine: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    """All of a migration is one transaction, on SQLite too."""

    def run_and_fail(config: Any, revision: str) -> None:
        upgrade(config, revision)
        raise KeyboardInterrupt

    upgrade = command.upgrade
    monkeypatch.setattr(command, "upgrade", run_and_fail)
    with pytest.raises(KeyboardInterrupt):
        opening.upgrade(empty_engine)
    assert inspect(empty_engine).get_table_names() == []


@pytest.mark.slow
def test_processes_that_upgrade_at_once_all_succeed(empty_url: str, tmp_path: Path) -> None:
    started = [start_process(upgrade_catalog, empty_url, output=tmp_path / "output") for _ in range(4)]
    assert [wait_for(process) for process in started] == [0] * 4
    assert (tmp_path / "output").read_text() == ""


def test_foreign_keys_are_back_on_after_a_migration(empty_engine: Engine) -> None:
    opening.upgrade(empty_engine)
    if empty_engine.dialect.name == "sqlite":
        with empty_engine.connect() as connection:
            assert connection.scalar(text("PRAGMA foreign_keys")) == 1
    with empty_engine.connect() as connection:
        assert connection.scalar(select(1)) == 1


def _constraints(metadata: Any) -> set[str]:
    names: set[str] = set()
    for table in metadata.tables.values():
        names.update(str(constraint.name) for constraint in table.constraints)
        names.update(str(index.name) for index in table.indexes)
    return names


def test_scores_of_0005_stay_and_those_of_other_protocols_go_on_the_way_down(engine: Engine) -> None:
    hashes = item_hash("question", "yes", ("yes", "no"))
    outcomes = Outcomes(list_sha(hashes), pack_bitmap([True]), pack_margins([-1.0]), hashes)
    score = Score("ann/one", "anli", "test", "accuracy", 1.0, 1, "us", outcomes=outcomes)
    scores = [score, replace(score, task="rte", outcomes=None), replace(score, protocol="paper")]
    with Session(engine) as session, session.begin():
        save_scores(session, scores)
    opening.downgrade(engine, "0005")
    row = text(
        "INSERT INTO evaluation (subject, task, split, metric, value, n, source) "
        "VALUES ('b', 't', 's', 'm', :value, :n, 'us')"
    )
    with engine.begin() as connection:
        assert connection.scalar(text("SELECT count(*) FROM evaluation")) == 2
        connection.execute(row, {"value": 0.5, "n": 2})
    with pytest.raises(IntegrityError), engine.begin() as connection:
        connection.execute(row, {"value": 0.25, "n": 4})
    opening.upgrade(engine)
    opening.check(engine)
    with Session(engine) as session:
        assert session.scalar(select(func.count()).select_from(schema.ItemList)) == 0
        assert stored_scores(session, ScoreFilter()) == [
            replace(score, outcomes=None),
            replace(score, task="rte", outcomes=None),
            Score("b", "t", "s", "m", 0.5, 2, "us"),
        ]
        assert save_scores(session, scores) == Saved(1, 1, 1, 1)
