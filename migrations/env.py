"""Runs the migrations on the connection that `catalog.database` hands over, inside its transaction."""

from __future__ import annotations

from typing import Any, Literal

from alembic import context
from alembic.autogenerate.api import AutogenContext
from sqlalchemy import Connection
from sqlalchemy.types import TypeDecorator

from catalog.database import VERSION_TABLE, TableBase


def render_item(kind: str, item: Any, autogen: AutogenContext) -> str | Literal[False]:
    """The plain type below one of `catalog.database.columns`: a migration must not change when those do."""
    if kind == "type" and isinstance(item, TypeDecorator):
        return f"sa.{item.impl_instance!r}"
    return False


def run(connection: Connection) -> None:
    """Runs the migrations; writes, but does not commit."""
    context.configure(
        connection=connection,
        target_metadata=TableBase.metadata,
        version_table=VERSION_TABLE,
        render_as_batch=connection.dialect.name == "sqlite",
        render_item=render_item,
        transactional_ddl=True,
        compare_server_default=True,
    )
    with context.begin_transaction():
        context.run_migrations()


run(context.config.attributes["connection"])
