"""What engines look at in an adapter.

Revision ID: 0008
Revises: 0007
"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0008"
down_revision = "0007"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Takes the schema one step up; features are filled in afterwards, from the stored files."""
    op.add_column(
        "adapter",
        sa.Column(
            "engine_features",
            sa.JSON(none_as_null=True),
            nullable=True,
            comment="what engines look at in its files (catalog.adapters.FEATURES); null where not known",
        ),
    )
    op.add_column(
        "adapter",
        sa.Column("engine_rank", sa.BigInteger(), nullable=True, comment="largest rank of its modules"),
    )
    op.add_column(
        "adapter",
        sa.Column(
            "engine_whole",
            sa.Boolean(),
            nullable=True,
            comment="whether its weights header was read for the features, not its config alone",
        ),
    )
    op.add_column(
        "adapter",
        sa.Column(
            "engine_version",
            sa.BigInteger(),
            nullable=True,
            comment="version of the features' definition; null where they were not looked for",
        ),
    )


def downgrade() -> None:
    """Takes the schema one step down; configurations and headers stay."""
    for name in ("engine_version", "engine_whole", "engine_rank", "engine_features"):
        op.drop_column("adapter", name)
