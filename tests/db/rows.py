"""One row for every table, so that no table is forgotten when a migration is tried on a full catalog."""

from __future__ import annotations

import hashlib
import zlib
from datetime import UTC, datetime
from typing import Any

from sqlalchemy import Boolean, Engine, Enum, Integer, LargeBinary, Table, insert, inspect, select

from catalog.database import schema
from catalog.database.columns import CleanJSON, CleanText, Counter, Real, UTCDateTime
from catalog.search import SPACES

NOW = datetime(2026, 9, 1, 12, 30, 15, 250_000, tzinfo=UTC)
COMMIT = "c" * 40
SHA256 = "d" * 64
HUB_ID = "e" * 24

# Values that the type alone cannot tell.
SPECIAL: dict[str, Any] = {
    "repository.hub_id": HUB_ID,
    "repository.name": "owner/name",
    "repository.owner": "owner",
    "repository_alias.name": "owner/earlier",
    "annotation.hub_id": HUB_ID,
    "annotation_tag.hub_id": HUB_ID,
    "adapter.commit": COMMIT,
    "document.digest": hashlib.sha256(b"\x00\xff").hexdigest(),
    "weights_file.header": zlib.compress(b"{}"),
    "fingerprint.spectrum": bytes(32),
    "fingerprint.delta": bytes(4 * SPACES["delta"].size),
    "fingerprint.output": bytes(4 * SPACES["output"].size),
    "embedding.vector": bytes(8),
    "weights_file.digest": SHA256,
    "pool.digest": SHA256,
    "weights_item.digest": SHA256,
    "weights_item.state": "done",
    "item_list.items_sha": SHA256,
    "item_list.hashes": b"\x01" * 32,
    "evaluation.outcomes": b"\x80",
    # A downgrade removes scores by any other protocol.
    "evaluation.protocol": "",
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
    """All tables, those that are pointed at first, but for those that triggers write."""
    by_triggers = {row.__table__ for row in (schema.ChangeToken, schema.TextVersion, schema.VectorVersion)}
    return [table for table in schema.TableBase.metadata.sorted_tables if table not in by_triggers]


def fill(engine: Engine) -> None:
    """Writes one row into every table."""
    with engine.begin() as connection:
        for table in tables():
            connection.execute(insert(table).values({column.name: value(column) for column in table.columns}))


def dump(engine: Engine) -> dict[str, list[tuple[Any, ...]]]:
    """All rows of all tables and columns that are there."""
    inspector = inspect(engine)
    present = {name: {c["name"] for c in inspector.get_columns(name)} for name in inspector.get_table_names()}
    with engine.connect() as connection:
        return {
            table.name: [
                tuple(row)
                for row in connection.execute(
                    select(*(column for column in table.columns if column.name in present[table.name]))
                )
            ]
            for table in tables()
            if table.name in present
        }
