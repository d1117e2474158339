"""Versions of the parts of fingerprints and of vectors of cards, by which indexes find what changed.

Revision ID: 0013
Revises: 0012
"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0013"
down_revision = "0012"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Takes the schema one step up; the triggers are made and the rows drawn at the end of all steps."""
    op.create_table(
        "vector_version",
        sa.Column("topic", sa.Text(), nullable=False, comment="fingerprints or embeddings"),
        sa.Column("part", sa.Text(), nullable=False, comment="first four characters of the digests"),
        sa.Column("version", sa.BigInteger(), nullable=False),
        sa.PrimaryKeyConstraint("topic", "part", name=op.f("pk_vector_version")),
    )


def downgrade() -> None:
    """Takes the schema one step down."""
    op.drop_table("vector_version")
