"""Tokens of what the page shows of adapters, scores and crawls.

Revision ID: 0014
Revises: 0013
"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0014"
down_revision = "0013"
branch_labels = None
depends_on = None

BEFORE, AFTER = (
    "texts, fingerprints or embeddings",
    "texts, fingerprints, embeddings, adapters, scores or crawls",
)


def upgrade() -> None:
    """Takes the schema one step up; the triggers are made and the tokens drawn at the end of all steps."""
    _describe(BEFORE, AFTER)


def downgrade() -> None:
    """Takes the schema one step down."""
    _describe(AFTER, BEFORE)


def _describe(old: str, new: str) -> None:
    # SQLite has no comments.
    if op.get_bind().dialect.name != "sqlite":
        op.alter_column(
            "change_token",
            "topic",
            existing_type=sa.Text(),
            existing_nullable=False,
            existing_comment=old,
            comment=new,
        )
