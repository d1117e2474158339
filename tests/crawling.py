"""One crawl of a local Hub, and the rows of a catalog as comparable values."""

from __future__ import annotations

import json
import threading
from datetime import UTC, datetime
from pathlib import Path
from typing import Any
from unittest.mock import create_autospec

from sqlalchemy import Engine, select, text
from sqlalchemy.orm import Session

from catalog.database import TableBase
from catalog.database.opening import lock_key
from catalog.files import BlobStore
from crawler.crawl import Crawler, CrawlOptions
from crawler.crawl.outcomes import Progress
from crawler.hub import Hub, HubSettings
from tests.fakes import VirtualClock

NOW = datetime(2026, 1, 1, tzinfo=UTC)
# What may differ between two crawls that saw the same: when and how, row numbers, and the crawls themselves.
PASSING = {"id", "first_seen", "last_seen", "gone_at"}
RECORDS = (
    *("base_model", "base_spelling", "repository", "repository_alias", "document", "weights_file"),
    "fingerprint",
    *("adapter", "adapter_reason"),
)


def silent() -> Progress:
    """A progress that tells nobody."""
    return create_autospec(Progress, instance=True)  # type: ignore[no-any-return]


def hub_settings(url: str, **arguments: Any) -> HubSettings:
    """Settings for the local Hub: two attempts and short deadlines, so that a fault is soon over."""
    return HubSettings(**({"endpoint": url, "timeout": 2.0, "deadline": 5.0, "attempts": 2} | arguments))


def crawl(
    url: str,
    engine: Engine,
    data: Path,
    *,
    hub: dict[str, Any] | None = None,
    now: datetime = NOW,
    progress: Progress | None = None,
    **options: Any,
) -> dict[str, Any]:
    """Crawls and gives the report as JSON; waits for the Hub pass on a virtual clock."""
    arguments = CrawlOptions(
        **({"any_base": "bases" not in options, "weights": "headers", "workers": 2} | options)
    )
    stop = threading.Event()
    with Hub(hub_settings(url, **(hub or {})), clock=VirtualClock(), stop=stop) as client:
        blobs, steps = BlobStore(data / "blobs"), progress or silent()
        crawler = Crawler(engine, client, blobs, arguments, steps, stop, lambda: now)
        return crawler.crawl().as_json()


def wait_for_lock(engine: Engine) -> None:
    """Returns when no process crawls: PostgreSQL ends the session of a dead one a moment later."""
    if engine.dialect.name != "sqlite":
        with engine.connect() as connection:
            key = lock_key(connection, "writer")
            connection.execute(text("SET LOCAL lock_timeout = '20s'"))
            connection.execute(text("SELECT pg_advisory_xact_lock(:key)"), {"key": key})


def end_lock_holders(engine: Engine) -> None:
    """Ends the sessions of PostgreSQL that hold a lock of the catalog."""
    ended = (
        "SELECT pg_terminate_backend(pid, 10000) FROM pg_locks JOIN pg_database ON oid = database "
        "WHERE locktype = 'advisory' AND datname = current_database() AND pid <> pg_backend_pid()"
    )
    with engine.connect() as connection:
        assert list(connection.scalars(text(ended))) == [True]


def dump(engine: Engine) -> dict[str, list[str]]:
    """Every record of the catalog as text, sorted, foreign keys spelled out by what they stand for."""
    names: dict[tuple[str, int], str] = {}
    result: dict[str, list[str]] = {}
    with Session(engine) as session:
        for table in RECORDS:
            columns = TableBase.metadata.tables[table].columns
            rows = [dict(row) for row in session.execute(select(*columns)).mappings()]
            for row in rows:
                for key in list(row):
                    if key.endswith("_id") and isinstance(row[key], int):
                        row[key] = names[key.removesuffix("_id"), row[key]]
                if "id" in row:
                    names[table, row["id"]] = _name(table, row)
            result[table] = sorted(_text(row) for row in rows)
    return result


def items(engine: Engine) -> list[tuple[str | None, str]]:
    """What became of each item of the newest crawl, in its order."""
    item, crawl_ = TableBase.metadata.tables["crawl_item"], TableBase.metadata.tables["crawl"]
    with Session(engine) as session:
        newest = select(crawl_.c.id).order_by(crawl_.c.id.desc()).limit(1).scalar_subquery()
        query = select(item.c.name, item.c.outcome).where(item.c.crawl_id == newest).order_by(item.c.position)
        return [(name, outcome.value) for name, outcome in session.execute(query)]


def _name(table: str, row: dict[str, Any]) -> str:
    if table == "adapter":
        return f"{row['repository_id']}@{row['commit']}:{row['subfolder']}"
    return str(row.get("canonical") or row.get("hub_id"))


def _text(row: dict[str, Any]) -> str:
    remaining = {key: value for key, value in row.items() if key not in PASSING}
    return json.dumps(
        remaining,
        sort_keys=True,
        default=lambda value: value.hex() if isinstance(value, bytes) else str(value),
    )
