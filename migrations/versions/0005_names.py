"""Fingerprints are found under the names that their modules have now.

Revision ID: 0005
Revises: 0004
"""

from __future__ import annotations

import zlib
from typing import Any

import sqlalchemy as sa
from alembic import op

from catalog.adapters import fingerprint_pattern, header_modules, parse_config, parse_header, scaling_pattern
from catalog.errors import ConfigError, WeightsError

revision = "0005"
down_revision = "0004"
branch_labels = None
depends_on = None

# So many adapters are looked at at once.
BATCH = 500


def upgrade() -> None:
    """Takes the schema one step up; fingerprints stay, and those made with names that are read otherwise now
    are no longer found, so that their files are read again. No weights are read here.

    How names are read is asked of the program itself: the catalog must agree with what reads it next. A later
    change of the reading brings a migration of its own.
    """
    connection = op.get_bind()
    columns = ("id", "scaling_pattern", "weights_digest", "config_digest", "norm", "health")
    adapter = sa.table("adapter", *map(sa.column, columns))
    weights = sa.table("weights_file", *map(sa.column, ("digest", "size", "header")))
    document = sa.table("document", sa.column("digest"), sa.column("content"))
    query = (
        sa.select(
            adapter.c.id, adapter.c.scaling_pattern, weights.c.header, weights.c.size, document.c.content
        )
        .join(weights, weights.c.digest == adapter.c.weights_digest)
        .join(document, document.c.digest == adapter.c.config_digest)
        .where(adapter.c.scaling_pattern.is_not(None), weights.c.header.is_not(None))
        .order_by(adapter.c.id)
        .limit(BATCH)
    )
    last = -1
    while rows := connection.execute(query.where(adapter.c.id > last)).all():
        last = rows[-1].id
        for row in rows:
            reading = _reading(row)
            if reading is None or reading[0] == row.scaling_pattern:
                continue
            values: dict[str, Any] = {"scaling_pattern": reading[0]}
            if row.scaling_pattern or not reading[1]:
                # The scalings of its modules are others, and so is its norm.
                values |= {"norm": None, "health": None}
            connection.execute(sa.update(adapter).where(adapter.c.id == row.id).values(values))


def downgrade() -> None:
    """Takes the schema one step down; adapters whose names are read otherwise have no fingerprint there."""


def _reading(row: Any) -> tuple[str, bool] | None:
    """The key of a fingerprint as it is now, and whether one scaling holds for all modules.

    None where the header or the configuration cannot be read.
    """
    try:
        header, config = parse_header(zlib.decompress(row.header), row.size), parse_config(row.content)
        uniform = not scaling_pattern(header_modules(header, config), config)
        return fingerprint_pattern(header, config), uniform
    except (ConfigError, WeightsError, zlib.error):
        return None
