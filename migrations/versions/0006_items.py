"""Scores with the protocol by which a model was asked, and with the outcomes of single items.

Revision ID: 0006
Revises: 0005
"""

from __future__ import annotations

from typing import Any

import sqlalchemy as sa
from alembic import op

revision = "0006"
down_revision = "0005"
branch_labels = None
depends_on = None

KEY = ("subject", "task", "split", "metric", "source")
KEY_NAME = f"uq_evaluation_{'_'.join(KEY)}"
CONDITIONS = {
    "outcomes": "(outcomes IS NULL) = (items_sha IS NULL) "
    "AND (outcomes IS NULL OR (n IS NOT NULL AND length(outcomes) * 8 - n BETWEEN 0 AND 7))",
    "margins": "margins IS NULL OR (outcomes IS NOT NULL AND length(margins) - n = n)",
}


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
    if op.get_bind().dialect.name == "sqlite":
        key = sa.UniqueConstraint(*KEY, "protocol", name=op.f(f"{KEY_NAME}_protocol"))
        checks = [
            sa.CheckConstraint(condition, name=op.f(f"ck_evaluation_{name}"))
            for name, condition in CONDITIONS.items()
        ]
        items = sa.ForeignKeyConstraint(
            ["items_sha"], ["item_list.items_sha"], name=op.f("fk_evaluation_items_sha")
        )
        _rebuild(*_new_columns(), key, *checks, items, with_protocol=True)
    else:
        for column in _new_columns():
            op.add_column("evaluation", column)
        op.alter_column("evaluation", "protocol", server_default=None)
        op.drop_constraint(op.f(KEY_NAME), "evaluation", type_="unique")
        op.create_unique_constraint(op.f(f"{KEY_NAME}_protocol"), "evaluation", [*KEY, "protocol"])
        for name, condition in CONDITIONS.items():
            op.create_check_constraint(op.f(f"ck_evaluation_{name}"), "evaluation", condition)
        op.create_foreign_key(
            op.f("fk_evaluation_items_sha"), "evaluation", "item_list", ["items_sha"], ["items_sha"]
        )
    op.create_index(op.f("ix_evaluation_items_sha"), "evaluation", ["items_sha"], unique=False)


def downgrade() -> None:
    """Takes the schema one step down; scores by other protocols, which it cannot tell apart, are removed."""
    evaluation = sa.table("evaluation", sa.column("protocol"))
    op.execute(sa.delete(evaluation).where(evaluation.c.protocol != ""))
    op.drop_index(op.f("ix_evaluation_items_sha"), "evaluation")
    if op.get_bind().dialect.name == "sqlite":
        _rebuild(sa.UniqueConstraint(*KEY, name=op.f(KEY_NAME)), with_protocol=False)
    else:
        op.drop_constraint(op.f("fk_evaluation_items_sha"), "evaluation", type_="foreignkey")
        for name in CONDITIONS:
            op.drop_constraint(op.f(f"ck_evaluation_{name}"), "evaluation", type_="check")
        op.drop_constraint(op.f(f"{KEY_NAME}_protocol"), "evaluation", type_="unique")
        op.create_unique_constraint(op.f(KEY_NAME), "evaluation", list(KEY))
        for name in ("margins", "outcomes", "items_sha", "protocol"):
            op.drop_column("evaluation", name)
    op.drop_table("item_list")


def _new_columns() -> tuple[sa.Column[object], ...]:
    """The columns of this revision; the default of the protocol is for the rows that are there."""
    sqlite = op.get_bind().dialect.name == "sqlite"
    return (
        sa.Column(
            "protocol",
            sa.Text(),
            server_default=None if sqlite else "",
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


def _rebuild(*additions: sa.schema.SchemaItem, with_protocol: bool) -> None:
    """Writes the table again with these columns and constraints, and its rows.

    SQLite cannot change constraints; Alembic's batches would, in an order that differs from run to run.
    """
    columns = ("id", "subject", "adapter_id", "task", "split", "metric", "value", "n", "source")
    number = sa.BigInteger().with_variant(sa.Integer(), "sqlite")
    types: dict[str, sa.types.TypeEngine[Any]] = {
        "id": number,
        "adapter_id": number,
        "value": sa.Float(precision=53),
        "n": sa.BigInteger(),
    }
    op.create_table(
        "evaluation_rebuilt",
        *(
            sa.Column(name, types.get(name, sa.Text()), nullable=name in ("adapter_id", "n"))
            for name in columns
        ),
        sa.CheckConstraint("n IS NULL OR n > 0", name=op.f("ck_evaluation_n")),
        sa.ForeignKeyConstraint(
            ["adapter_id"], ["adapter.id"], name=op.f("fk_evaluation_adapter_id"), ondelete="SET NULL"
        ),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_evaluation")),
        *additions,
    )
    old, new = (sa.table(name, *map(sa.column, columns)) for name in ("evaluation", "evaluation_rebuilt"))
    rows = sa.select(*(old.c[name] for name in columns))
    if with_protocol:
        new.append_column(sa.column("protocol"))
        rows = rows.add_columns(sa.literal(""))
    op.execute(sa.insert(new).from_select([column.name for column in new.c], rows))
    op.drop_table("evaluation")
    op.rename_table("evaluation_rebuilt", "evaluation")
    for name in ("adapter_id", "task"):
        op.create_index(op.f(f"ix_evaluation_{name}"), "evaluation", [name], unique=False)
