<%!
def plain(commands):
    """The commands without Alembic's own remarks."""
    kept = [line for line in commands.splitlines() if not line.strip().startswith("# ###")]
    return "\n".join(kept).strip() or "pass"
%>"""${message}

Revision ID: ${up_revision}
Revises: ${down_revision or "nothing"}
"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op
${imports if imports else ""}
revision = ${repr(up_revision)}
down_revision = ${repr(down_revision)}
branch_labels = ${repr(branch_labels)}
depends_on = ${repr(depends_on)}


def upgrade() -> None:
    """Takes the schema one step up."""
    ${plain(upgrades or "")}


def downgrade() -> None:
    """Takes the schema one step down, with the rows of what it drops."""
    ${plain(downgrades or "")}
