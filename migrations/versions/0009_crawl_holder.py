"""Which process a crawl is carried out by, since when, and what it is doing.

Revision ID: 0009
Revises: 0008
"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0009"
down_revision = "0008"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Takes the schema one step up; no earlier crawl is at work."""
    op.add_column(
        "crawl",
        sa.Column(
            "holder",
            sa.Text(),
            nullable=True,
            comment="user, machine and process at work on it; null once it has ended",
        ),
    )
    op.add_column(
        "crawl",
        sa.Column("held_since", sa.DateTime(timezone=True), nullable=True, comment="when the holder began"),
    )
    op.add_column(
        "crawl",
        sa.Column("phase", sa.Text(), nullable=True, comment="what the holder does: listing or reading"),
    )


def downgrade() -> None:
    """Takes the schema one step down."""
    for name in ("phase", "held_since", "holder"):
        op.drop_column("crawl", name)
