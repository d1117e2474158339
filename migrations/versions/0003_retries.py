"""Repositories to be tried again; the git hash of weights files outside LFS.

Revision ID: 0003
Revises: 0002
"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0003"
down_revision = "0002"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Takes the schema one step up; no row changes."""
    op.create_table(
        "crawl_retry",
        sa.Column("scope", sa.Text(), nullable=False, comment="digest of what the crawl asked"),
        sa.Column("hub_id", sa.Text(), nullable=False),
        sa.Column("name", sa.Text(), nullable=False),
        sa.Column("commit", sa.Text(), nullable=True, comment="the commit that the listing named"),
        sa.Column("error", sa.Text(), nullable=False, comment="kind of the newest error"),
        sa.Column("detail", sa.Text(), nullable=False),
        sa.Column("attempts", sa.BigInteger(), nullable=False, comment="crawls that failed at it"),
        sa.Column("failed_at", sa.DateTime(timezone=True), nullable=False, comment="when it first failed"),
        sa.Column(
            "next_at", sa.DateTime(timezone=True), nullable=False, comment="when it may be tried again"
        ),
        sa.PrimaryKeyConstraint("scope", "hub_id", name=op.f("pk_crawl_retry")),
    )
    op.add_column(
        "weights_file",
        sa.Column(
            "git_oid",
            sa.Text(),
            nullable=True,
            comment="git's name of the bytes where the Hub keeps the file outside LFS",
        ),
    )
    op.create_index("ix_weights_file_git_oid", "weights_file", ["git_oid"])


def downgrade() -> None:
    """Takes the schema one step down; what waited is listed again by the next whole crawl."""
    op.drop_index("ix_weights_file_git_oid", "weights_file")
    op.drop_column("weights_file", "git_oid")
    op.drop_table("crawl_retry")
