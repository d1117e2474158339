"""A filled catalog of each earlier revision, upgraded: every row is there, and what is new is empty."""

from __future__ import annotations

from typing import Any

import pytest
from sqlalchemy import Engine, MetaData, insert, select

from catalog.database import opening
from tests.db import rows

# What triggers write, and no user.
TRIGGERED = ("change_token", "text_version", "vector_version")


def contents(engine: Engine) -> dict[str, list[dict[str, Any]]]:
    """Every row of every table that is there, by table."""
    target = MetaData()
    target.reflect(engine)
    with engine.connect() as connection:
        return {
            name: [dict(row) for row in connection.execute(select(table)).mappings()]
            for name, table in target.tables.items()
            if name != opening.VERSION_TABLE
        }


@pytest.mark.parametrize("revision", ["0002", "0005", "0006", "0008", "0011", "0012", "0013", "0014"])
def test_the_rows_of_an_earlier_catalog_stay(revision: str, empty_engine: Engine) -> None:
    opening.upgrade(empty_engine, revision)
    target = MetaData()
    target.reflect(empty_engine)
    with empty_engine.begin() as connection:
        for table in rows.tables():
            if table.name in target.tables:
                names = target.tables[table.name].columns.keys()
                arguments = {c.name: rows.value(c) for c in table.columns if c.name in names}
                connection.execute(insert(table).values(arguments))
    before = contents(empty_engine)
    for name in TRIGGERED:
        before.pop(name, None)
    opening.upgrade(empty_engine)
    opening.check(empty_engine)
    after = contents(empty_engine)
    assert {name: len(result) for name, result in before.items()} == dict.fromkeys(before, 1)
    if revision < "0006":
        [score] = after["evaluation"]
        assert [score[name] for name in ("protocol", "items_sha", "outcomes", "margins")] == [
            "",
            None,
            None,
            None,
        ]
    for name, [row] in before.items():
        [now] = after[name]
        assert {column: now[column] for column in row} == row, name
    # What triggers write has a token for each topic, and versions for the text of the one adapter, its
    # fingerprint and the vector of its card.
    drawn = {name: len(after.pop(name)) for name in TRIGGERED}
    assert drawn == {"change_token": 6, "text_version": 1, "vector_version": 2}
    assert [name for name in after if name not in before and after[name]] == []
