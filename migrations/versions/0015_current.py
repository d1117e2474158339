"""The index of current adapters begins with their repository.

Most adapters are current. SQLite takes a condition on the first column of an index for a rare one, and read
the whole index to look up a few adapters.

Revision ID: 0015
Revises: 0014
"""

from __future__ import annotations

from alembic import op

revision = "0015"
down_revision = "0014"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Takes the schema one step up."""
    _index("repository_id", "current")


def downgrade() -> None:
    """Takes the schema one step down."""
    _index("current", "repository_id")


def _index(*columns: str) -> None:
    op.drop_index("ix_adapter_current", "adapter")
    op.create_index("ix_adapter_current", "adapter", columns)
