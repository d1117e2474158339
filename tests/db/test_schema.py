"""The schema holds what it promises, and gives the same values back on both databases."""

from __future__ import annotations

import math
from datetime import UTC, date, datetime, timedelta, timezone
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sqlalchemy import (
    Connection,
    Engine,
    Enum,
    ForeignKeyConstraint,
    Table,
    delete,
    insert,
    inspect,
    select,
    text,
    update,
)
from sqlalchemy.exc import IntegrityError, StatementError
from sqlalchemy.orm import Session

from catalog.database import schema
from catalog.database.schema import (
    Adapter,
    AdapterReason,
    BaseModelRow,
    Crawl,
    CrawlItem,
    CrawlState,
    Repository,
    SavedPool,
)
from catalog.files import clean_json, clean_text
from tests.db import rows

HUGE = 10**4999
TABLES = [pytest.param(table, id=table.name) for table in rows.tables()]
KEYS = [
    pytest.param(table, key, id=f"{table.name}.{key.column_keys[0]}")
    for table in rows.tables()
    for key in sorted(table.foreign_key_constraints, key=lambda key: tuple(key.column_keys))
]


@pytest.mark.parametrize("table", TABLES)
def test_every_table_says_what_a_row_means(table: Table) -> None:
    owner = next(mapper.class_ for mapper in schema.TableBase.registry.mappers if mapper.local_table is table)
    assert owner.__doc__
    assert owner.__doc__.split("\n")[0].rstrip().endswith((".", ":", ";"))


@pytest.mark.parametrize("table", TABLES)
def test_every_row_comes_back_as_it_was_written(engine: Engine, table: Table) -> None:
    rows.fill(engine)
    with engine.connect() as connection:
        result = connection.execute(select(table)).one()._mapping
    assert {column.name: result[column] for column in table.columns} == {
        column.name: rows.value(column) for column in table.columns
    }


@pytest.mark.parametrize(("table", "key"), KEYS)
def test_every_foreign_key_is_enforced(engine: Engine, table: Table, key: ForeignKeyConstraint) -> None:
    rows.fill(engine)
    column = table.columns[key.column_keys[0]]
    nowhere: Any = 99 if isinstance(rows.value(column), int) else "e" * 64
    with engine.connect() as connection, pytest.raises(IntegrityError, match=r"(?i)foreign key"):
        connection.execute(update(table).values({column.name: nowhere}))


def test_deleting_a_repository_takes_what_is_its_own(engine: Engine) -> None:
    rows.fill(engine)
    with engine.begin() as connection:
        connection.execute(delete(schema.PoolMember))
        connection.execute(delete(Repository))
    left = {name for name, result in rows.dump(engine).items() if result}
    assert {"repository", "repository_alias", "adapter", "adapter_reason"}.isdisjoint(left)
    assert {"document", "weights_file", "evaluation", "base_model"} <= left


def test_an_adapter_of_a_pool_cannot_vanish(engine: Engine) -> None:
    rows.fill(engine)
    with engine.connect() as connection, pytest.raises(IntegrityError, match=r"(?i)foreign key"):
        connection.execute(delete(Repository))


@pytest.mark.parametrize(
    ("table", "values"),
    [
        pytest.param("adapter", {"commit": "main"}, id="a-commit-is-a-sha1"),
        pytest.param("adapter", {"commit": "c" * 64}, id="a-commit-is-no-sha256"),
        pytest.param("document", {"digest": "short"}, id="a-digest-is-a-hash"),
        pytest.param("weights_file", {"digest": "d" * 63}, id="a-weights-digest-is-a-hash"),
        pytest.param("pool", {"digest": "d" * 40}, id="a-pool-digest-is-a-sha256"),
        pytest.param("evaluation", {"n": 0}, id="no-samples-is-no-score"),
    ],
)
def test_checks_are_enforced(engine: Engine, table: str, values: dict[str, Any]) -> None:
    result = schema.TableBase.metadata.tables[table]
    row = {column.name: rows.value(column) for column in result.columns} | values
    with engine.connect() as connection:
        without_foreign_keys(connection)
        with pytest.raises(IntegrityError, match=f"(?i)ck_{table}_"):
            connection.execute(insert(result).values(row))


def without_foreign_keys(connection: Connection) -> None:
    """Lets a row in whose parents are missing, so that its CHECK is what refuses it."""
    if connection.dialect.name == "sqlite":
        connection.execute(text("PRAGMA defer_foreign_keys = ON"))
    else:
        connection.execute(text("SET session_replication_role = replica"))


ENUMS = [
    pytest.param(table, column, id=f"{table.name}.{column.name}")
    for table in rows.tables()
    for column in table.columns
    if isinstance(column.type, Enum)
]


@pytest.mark.parametrize(("table", "column"), ENUMS)
def test_enums_are_stored_by_value_and_checked(engine: Engine, table: Table, column: Any) -> None:
    rows.fill(engine)
    with engine.begin() as connection:
        for member in column.type.enum_class or column.type.enums:
            connection.execute(update(table).values({column.name: member}))
            assert connection.scalar(text(f"SELECT {column.name} FROM {table.name}")) == str(member)
            assert connection.scalar(select(column)) == member
    name = f"ck_{table.name}_{column.type.name}"
    with engine.connect() as connection, pytest.raises(IntegrityError, match=name):
        connection.execute(text(f"UPDATE {table.name} SET {column.name} = 'else'"))


TEXTS = [
    pytest.param("plain", "plain", id="plain"),
    pytest.param("", "", id="empty"),
    pytest.param("a\x00b", "a\ufffdb", id="nul"),
    pytest.param("a\ud800b\udfff", "a?b?", id="lone-surrogates"),
    pytest.param("日本 🤗 \u202e \x1b[31m", "日本 🤗 \u202e \x1b[31m", id="kept-as-it-is"),
    pytest.param("x" * 2_000_000, "x" * 2_000_000, id="two-megabytes"),
]


@pytest.mark.parametrize(("given_text", "stored"), TEXTS)
def test_texts(engine: Engine, given_text: str, stored: str) -> None:
    with Session(engine) as session:
        session.add(BaseModelRow(canonical="base", license=given_text))
        session.commit()
        session.expire_all()
        assert session.scalars(select(BaseModelRow.license)).one() == stored


DOCUMENTS = [
    pytest.param(None, None, id="null"),
    pytest.param({}, {}, id="empty"),
    pytest.param(
        {"a\x00": "b\x00", "\ud800": "\udfff"}, {"a\ufffd": "b\ufffd", "?": "?"}, id="nul-surrogates"
    ),
    pytest.param([math.nan, math.inf, -math.inf, 0.1], [None, None, None, 0.1], id="case-71-non-finite"),
    pytest.param([HUGE, -HUGE, 2**63 - 1, -(2**63)], [None, None, 2**63 - 1, None], id="case-71-5000-digits"),
    pytest.param({1: {2: (3, True, None)}}, {"1": {"2": [3, True, None]}}, id="keys-are-texts"),
    pytest.param({"when": date(2026, 1, 1)}, {"when": "2026-01-01"}, id="yaml-dates"),
    pytest.param("plain", "plain", id="a-text"),
]


@pytest.mark.parametrize(("value", "stored"), DOCUMENTS)
def test_json(engine: Engine, value: Any, stored: Any) -> None:
    rows.fill(engine)
    with Session(engine) as session:
        session.execute(update(CrawlItem).values(row=value))
        assert session.scalars(select(CrawlItem.row)).one() == stored
        if value is None:
            assert session.scalar(text('SELECT count(*) FROM crawl_item WHERE "row" IS NULL')) == 1


@pytest.mark.parametrize(
    ("value", "stored"),
    [
        pytest.param(2**63 - 1, 2**63 - 1, id="largest"),
        pytest.param(-(2**63) + 1, -(2**63) + 1, id="smallest"),
        pytest.param(2**63, None, id="one-more"),
        pytest.param(HUGE, None, id="case-67-5000-digits"),
        pytest.param(None, None, id="none"),
    ],
)
def test_counters(engine: Engine, value: int | None, stored: int | None) -> None:
    rows.fill(engine)
    with Session(engine) as session:
        session.execute(update(Repository).values(downloads=value))
        assert session.scalars(select(Repository.downloads)).one() == stored


@pytest.mark.parametrize(
    ("value", "stored"),
    [
        pytest.param(0.1, 0.1, id="double"),
        pytest.param(5e-324, 5e-324, id="subnormal"),
        pytest.param(1.7976931348623157e308, 1.7976931348623157e308, id="largest"),
        pytest.param(math.nan, None, id="case-55-nan"),
        pytest.param(math.inf, None, id="case-55-inf"),
        pytest.param(HUGE, None, id="case-67-an-integer-beyond-doubles"),
        pytest.param(16, 16.0, id="an-integer"),
    ],
)
def test_reals(engine: Engine, value: float, stored: float | None) -> None:
    rows.fill(engine)
    with Session(engine) as session:
        session.execute(update(Adapter).values(norm=value))
        assert session.scalars(select(Adapter.norm)).one() == stored


@pytest.mark.parametrize(
    "value",
    [
        pytest.param(rows.NOW, id="utc"),
        pytest.param(datetime(2026, 3, 29, 2, 30, tzinfo=timezone(timedelta(hours=-8))), id="elsewhere"),
        pytest.param(datetime(1970, 1, 1, tzinfo=UTC), id="epoch"),
        pytest.param(datetime(2026, 9, 1, 1, 2, 3, 999_999, tzinfo=UTC), id="microseconds"),
    ],
)
def test_instants(engine: Engine, value: datetime) -> None:
    with Session(engine) as session:
        session.add(SavedPool(name="one", digest=rows.SHA256, manifest={}, created_at=value))
        session.commit()
        session.expire_all()
        result = session.scalars(select(SavedPool.created_at)).one()
        assert result == value
        assert result.utcoffset() == timedelta(0)
        assert session.scalars(select(SavedPool).where(SavedPool.created_at == value)).one().name == "one"


def test_a_naive_instant_is_refused(engine: Engine) -> None:
    with Session(engine) as session:
        session.add(
            SavedPool(name="one", digest=rows.SHA256, manifest={}, created_at=rows.NOW.replace(tzinfo=None))
        )
        with pytest.raises(StatementError, match="without time zone"):
            session.flush()


def test_reasons_come_in_the_order_of_the_rules(engine: Engine) -> None:
    rows.fill(engine)
    with Session(engine) as session:
        adapter = session.scalars(select(Adapter)).one()
        adapter.reasons = [
            AdapterReason(reason=reason, position=position, detail="")
            for reason, position in (("b", 2), ("a", 3), ("c", 1))
        ]
        session.commit()
        session.expire_all()
        assert [reason.reason for reason in adapter.reasons] == ["c", "b", "a"]


def test_a_crawl_begins_with_nothing_spent(engine: Engine) -> None:
    with Session(engine) as session:
        session.add(Crawl(listing="l", scope="s", asked={}, state=CrawlState.RUNNING, started_at=rows.NOW))
        session.commit()
        crawl = session.scalars(select(Crawl)).one()
        spent = (crawl.api_requests, crawl.resolver_requests, crawl.bytes, crawl.seconds)
        assert spent == (0, 0, 0, 0.0)


def test_every_key_of_a_child_has_an_index_or_leads_one(engine: Engine) -> None:
    """Deleting a parent looks for its children; without an index that is a scan of the table for each."""
    inspector = inspect(engine)
    for table in schema.TableBase.metadata.tables:
        leading = {tuple(index["column_names"][:1]) for index in inspector.get_indexes(table)}
        leading |= {tuple(unique["column_names"][:1]) for unique in inspector.get_unique_constraints(table)}
        leading.add(tuple(inspector.get_pk_constraint(table)["constrained_columns"][:1]))
        for key in inspector.get_foreign_keys(table):
            if key["options"].get("ondelete"):
                assert tuple(key["constrained_columns"]) in leading, (table, key["constrained_columns"])


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(st.characters(codec=None)),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(st.characters()), inner, max_size=4),
    max_leaves=12,
)


@settings(max_examples=200, deadline=None)
@given(value=json_values)
def test_cleaning_twice_changes_nothing(value: Any) -> None:
    assert clean_json(clean_json(value)) == clean_json(value)


@settings(max_examples=200, deadline=None)
@given(value=st.text(st.characters(exclude_categories=())))
def test_a_clean_text_can_be_stored_anywhere(value: str) -> None:
    assert "\x00" not in clean_text(value)
    assert clean_text(value).encode().decode() == clean_text(value)
    assert len(clean_text(value)) == len(value)
