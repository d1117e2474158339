"""Scores with the protocol by which a model was asked, and with the outcomes of single items.

Revision ID: 0006
Revises: 0005
"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0006"
down_revision = "0005"
branch_labels = None
depends_on = None

KEY = ("subject", "task", "split", "metric", "source")
NAME = "uq_evaluation_subject_task_split_metric_source"
CONDITIONS = {
    "n": "n IS NULL OR n > 0",
    "outcomes": "(outcomes IS NULL) = (items_sha IS NULL) "
    "AND (outcomes IS NULL OR (n IS NOT NULL AND length(outcomes) * 8 - n BETWEEN 0 AND 7))",
    "margins": "margins IS NULL OR (outcomes IS NOT NULL AND length(margins) - n = n)",
}


def conditions(*names: str) -> tuple[sa.CheckConstraint, ...]:
    """The conditions of these names: SQLite writes the table again, without those that it had."""
    return tuple(sa.CheckConstraint(CONDITIONS[name], name=op.f(f"ck_evaluation_{name}")) for name in names)


def upgrade() -> None:
    """Takes the schema one step up; scores stay as they are, of the project's own protocol and without
    outcomes.
    """
    op.create_table(
        "item_list",
        sa.Column("items_sha", sa.Text(), nullable=False, comment="sha256 of the hashes of its items"),
        sa.Column("n", sa.BigInteger(), nullable=False, comment="number of items"),
        sa.Column(
            "hashes",
            sa.LargeBinary(),
            nullable=True,
            comment="sha256 of the canonical JSON of each item, 32 bytes each; null where not listed",
        ),
        sa.CheckConstraint("length(items_sha) = 64", name=op.f("ck_item_list_items_sha")),
        sa.CheckConstraint("n > 0", name=op.f("ck_item_list_n")),
        sa.CheckConstraint("hashes IS NULL OR length(hashes) = 32 * n", name=op.f("ck_item_list_hashes")),
        sa.PrimaryKeyConstraint("items_sha", name=op.f("pk_item_list")),
    )
    columns = (
        sa.Column(
            "protocol",
            sa.Text(),
            server_default="",
            nullable=False,
            comment="how the model was asked; empty for the project's own protocol",
        ),
        sa.Column("items_sha", sa.Text(), nullable=True, comment="the items of the samples, if known"),
        sa.Column(
            "outcomes",
            sa.LargeBinary(),
            nullable=True,
            comment="a bit an item, 1 if answered right, the first in the highest bit of the first byte",
        ),
        sa.Column(
            "margins",
            sa.LargeBinary(),
            nullable=True,
            comment="log p of the best other choice minus the right one's, an item, little-endian float16",
        ),
    )
    with op.batch_alter_table("evaluation", table_args=conditions("n")) as batch_op:
        for column in columns:
            batch_op.add_column(column)
        batch_op.drop_constraint(batch_op.f(NAME), type_="unique")
        batch_op.create_unique_constraint(batch_op.f(f"{NAME}_protocol"), [*KEY, "protocol"])
        for name in ("outcomes", "margins"):
            batch_op.create_check_constraint(batch_op.f(f"ck_evaluation_{name}"), CONDITIONS[name])
        batch_op.create_foreign_key(
            batch_op.f("fk_evaluation_items_sha"), "item_list", ["items_sha"], ["items_sha"]
        )
        batch_op.create_index(batch_op.f("ix_evaluation_items_sha"), ["items_sha"], unique=False)
    # The default was for the rows that were there.
    with op.batch_alter_table("evaluation", table_args=conditions(*CONDITIONS)) as batch_op:
        batch_op.alter_column("protocol", existing_type=sa.Text(), server_default=None)


def downgrade() -> None:
    """Takes the schema one step down; scores by other protocols, which it cannot tell apart, are removed."""
    evaluation = sa.table("evaluation", sa.column("protocol"))
    op.execute(sa.delete(evaluation).where(evaluation.c.protocol != ""))
    with op.batch_alter_table("evaluation", table_args=conditions("n")) as batch_op:
        batch_op.drop_index(batch_op.f("ix_evaluation_items_sha"))
        batch_op.drop_constraint(batch_op.f("fk_evaluation_items_sha"), type_="foreignkey")
        batch_op.drop_constraint(batch_op.f("ck_evaluation_margins"), type_="check")
        batch_op.drop_constraint(batch_op.f("ck_evaluation_outcomes"), type_="check")
        batch_op.drop_constraint(batch_op.f(f"{NAME}_protocol"), type_="unique")
        batch_op.create_unique_constraint(batch_op.f(NAME), list(KEY))
        for name in ("margins", "outcomes", "items_sha", "protocol"):
            batch_op.drop_column(name)
    op.drop_table("item_list")
