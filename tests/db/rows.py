"""One row for every table, so that no table is forgotten when a migration is tried on a full catalog."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

from sqlalchemy import Boolean, Engine, Enum, Integer, LargeBinary, Table, insert, select

from catalog.database import schema
from catalog.database.columns import CleanJSON, CleanText, Counter, Real, UTCDateTime

NOW = datetime(2026, 9, 1, 12, 30, 15, 250_000, tzinfo=UTC)
COMMIT = "c" * 40
SHA256 = "d" * 64

# Values that the type alone cannot tell.
SPECIAL: dict[str, Any] = {
    "adapter.commit": COMMIT,
    "document.digest": SHA256,
    "weights_file.digest": SHA256,
    "pool.digest": SHA256,
}


def value(column: Any) -> Any:
    """Some value that the column takes; a foreign key points at the one row of its table."""
    name = f"{column.table.name}.{column.name}"
    if name in SPECIAL:
        return SPECIAL[name]
    for key in column.foreign_keys:
        return value(key.column)
    if isinstance(column.type, Enum):
        return next(iter(column.type.enum_class or column.type.enums))
    by_type: dict[type[Any], Any] = {
        Counter: 1,
        Integer: 1,
        Boolean: True,
        Real: 0.5,
        CleanText: f"{name} \u00fc",
        UTCDateTime: NOW,
        CleanJSON: {"\u043a\u043b\u044e\u0447": [1, None, "x"]},
        LargeBinary: b"\x00\xff",
    }
    return next(some for kind, some in by_type.items() if isinstance(column.type, kind))


def tables() -> list[Table]:
    """All tables, those that are pointed at first."""
    return schema.TableBase.metadata.sorted_tables


def fill(engine: Engine) -> None:
    """Writes one row into every table."""
    with engine.begin() as connection:
        for table in tables():
            connection.execute(insert(table).values({column.name: value(column) for column in table.columns}))


def dump(engine: Engine) -> dict[str, list[tuple[Any, ...]]]:
    """All rows of all tables."""
    with engine.connect() as connection:
        return {table.name: [tuple(row) for row in connection.execute(select(table))] for table in tables()}
