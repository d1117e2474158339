"""Tokens and versions by which caches notice changes, and an index of the vectors of each base model.

Revision ID: 0007
Revises: 0006
"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0007"
down_revision = "0006"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Takes the schema one step up; the triggers are made and the rows drawn at the end of all steps."""
    op.create_table(
        "change_token",
        sa.Column("topic", sa.Text(), nullable=False, comment="texts, fingerprints or embeddings"),
        sa.Column("token", sa.BigInteger(), nullable=False),
        sa.PrimaryKeyConstraint("topic", name=op.f("pk_change_token")),
    )
    op.create_table(
        "text_version",
        sa.Column(
            "adapter_id",
            sa.BigInteger().with_variant(sa.Integer(), "sqlite"),
            autoincrement=False,
            nullable=False,
        ),
        sa.Column("version", sa.BigInteger(), nullable=False),
        sa.PrimaryKeyConstraint("adapter_id", name=op.f("pk_text_version")),
    )
    op.create_index(
        op.f("ix_adapter_vectors"), "adapter", ["base_model_id", "weights_digest", "scaling_pattern"]
    )
    op.drop_index(op.f("ix_adapter_base_model_id"), "adapter")


def downgrade() -> None:
    """Takes the schema one step down."""
    op.create_index(op.f("ix_adapter_base_model_id"), "adapter", ["base_model_id"])
    op.drop_index(op.f("ix_adapter_vectors"), "adapter")
    op.drop_table("text_version")
    op.drop_table("change_token")
