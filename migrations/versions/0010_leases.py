"""Weights to be read by several processes.

Revision ID: 0010
Revises: 0009
"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0010"
down_revision = "0009"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Takes the schema one step up; no row changes."""
    op.create_table(
        "weights_item",
        sa.Column("crawl_id", sa.BigInteger().with_variant(sa.Integer(), "sqlite"), nullable=False),
        sa.Column("digest", sa.Text(), nullable=False, comment="sha256 of the file, which is read once"),
        sa.Column(
            "task", sa.JSON(none_as_null=True), nullable=False, comment="repository, commit, file and config"
        ),
        sa.Column("state", sa.Text(), nullable=False, comment="pending, leased, done or failed"),
        sa.Column("lease", sa.Text(), nullable=True, comment="the worker that reads it"),
        sa.Column(
            "until",
            sa.DateTime(timezone=True),
            nullable=True,
            comment="when another worker may take it, unless extended",
        ),
        sa.Column("tries", sa.BigInteger(), nullable=False, comment="workers that began to read it"),
        sa.Column(
            "result", sa.LargeBinary(), nullable=True, comment="zlib of JSON: what was read, or the error"
        ),
        sa.ForeignKeyConstraint(
            ["crawl_id"], ["crawl.id"], name=op.f("fk_weights_item_crawl_id"), ondelete="CASCADE"
        ),
        sa.PrimaryKeyConstraint("crawl_id", "digest", name=op.f("pk_weights_item")),
        sa.CheckConstraint(
            "state IN ('pending', 'leased', 'done', 'failed')", name=op.f("ck_weights_item_state")
        ),
    )
    op.create_index("ix_weights_item_state", "weights_item", ["crawl_id", "state"])


def downgrade() -> None:
    """Takes the schema one step down; what was not read is read again by the next crawl."""
    op.drop_table("weights_item")
