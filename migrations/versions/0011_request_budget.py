"""The requests that all processes of one account may send to the Hub.

Revision ID: 0011
Revises: 0010
"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0011"
down_revision = "0010"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Takes the schema one step up; no row changes."""
    op.create_table(
        "request_budget",
        sa.Column("account", sa.Text(), nullable=False, comment="digest of Hub and token"),
        sa.Column("kind", sa.Text(), nullable=False, comment="class of requests: api or resolver"),
        sa.Column(
            "state",
            sa.JSON(none_as_null=True),
            nullable=False,
            comment="limit, requests of its window",
        ),
        sa.PrimaryKeyConstraint("account", "kind", name=op.f("pk_request_budget")),
    )


def downgrade() -> None:
    """Takes the schema one step down; each process then has a budget of its own."""
    op.drop_table("request_budget")
