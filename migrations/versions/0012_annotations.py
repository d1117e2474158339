"""Tags, notes and hidden marks that users give adapters.

Revision ID: 0012
Revises: 0011
"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0012"
down_revision = "0011"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Takes the schema one step up; the views are made at the end of all steps."""
    op.create_table(
        "annotation",
        sa.Column("hub_id", sa.Text(), nullable=False, comment="the _id of its repository on the Hub"),
        sa.Column("subfolder", sa.Text(), nullable=False, comment="empty for the root"),
        sa.Column("note", sa.Text(), nullable=True),
        sa.Column("hidden", sa.Boolean(), nullable=False, comment="left out of lists and selections"),
        sa.CheckConstraint("note IS NOT NULL OR hidden", name=op.f("ck_annotation_content")),
        sa.PrimaryKeyConstraint("hub_id", "subfolder", name=op.f("pk_annotation")),
    )
    op.create_table(
        "annotation_tag",
        sa.Column("hub_id", sa.Text(), nullable=False, comment="the _id of its repository on the Hub"),
        sa.Column("subfolder", sa.Text(), nullable=False, comment="empty for the root"),
        sa.Column("tag", sa.Text(), nullable=False),
        sa.PrimaryKeyConstraint("hub_id", "subfolder", "tag", name=op.f("pk_annotation_tag")),
    )
    op.create_index(op.f("ix_annotation_tag_tag"), "annotation_tag", ["tag"])


def downgrade() -> None:
    """Takes the schema one step down; tags, notes and hidden marks are lost."""
    op.drop_table("annotation_tag")
    op.drop_table("annotation")
