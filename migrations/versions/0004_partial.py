"""What the factors of an adapter leave out of its update.

Revision ID: 0004
Revises: 0003
"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0004"
down_revision = "0003"
branch_labels = None
depends_on = None

# The reasons of revision 0003 for which B A is not the whole update.
PARTIAL = (
    *("use_dora", "has_bias", "lora_bias", "modules_to_save", "layer_replication", "alora"),
    *("trainable_tokens", "target_parameters", "lora_variant", "relative_init", "unpaired_factor"),
    *("rank_mismatch", "empty_tensor", "not_a_matrix", "duplicate_factor", "bad_dtype", "full_weights"),
    *("unknown_tensor", "non_finite"),
)
# So many rows are written at once.
BATCH = 1000


def upgrade() -> None:
    """Takes the schema one step up; the marks come from the reasons on record, and no weights are read."""
    op.add_column(
        "adapter",
        sa.Column(
            "partial",
            sa.JSON(none_as_null=True),
            nullable=True,
            comment="the reasons for which B A is not its whole update; null where no factors are known",
        ),
    )
    adapter = sa.table(
        "adapter",
        sa.column("id", sa.BigInteger()),
        sa.column("modules", sa.BigInteger()),
        sa.column("partial", sa.JSON(none_as_null=True)),
    )
    reason = sa.table(
        "adapter_reason",
        sa.column("adapter_id", sa.BigInteger()),
        sa.column("reason", sa.Text()),
        sa.column("position", sa.BigInteger()),
    )
    connection = op.get_bind()
    connection.execute(sa.update(adapter).where(adapter.c.modules > 0).values(partial=[]))
    marks: dict[int, list[str]] = {}
    query = (
        sa.select(reason.c.adapter_id, reason.c.reason)
        .join(adapter, adapter.c.id == reason.c.adapter_id)
        .where(adapter.c.modules > 0, reason.c.reason.in_(PARTIAL))
        .order_by(reason.c.adapter_id, reason.c.position)
    )
    for adapter_id, name in connection.execute(query):
        marks.setdefault(adapter_id, []).append(name)
    rows = [{"adapter": adapter_id, "reasons": names} for adapter_id, names in marks.items()]
    write = (
        sa.update(adapter)
        .where(adapter.c.id == sa.bindparam("adapter"))
        .values(partial=sa.bindparam("reasons", type_=sa.JSON(none_as_null=True)))
    )
    for start in range(0, len(rows), BATCH):
        connection.execute(write, rows[start : start + BATCH])


def downgrade() -> None:
    """Takes the schema one step down; the reasons that the marks came from stay."""
    op.drop_column("adapter", "partial")
