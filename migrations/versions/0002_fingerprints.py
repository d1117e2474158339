"""Fingerprints of weights files; digests of their tensors; health of adapters.

Revision ID: 0002
Revises: 0001
"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0002"
down_revision = "0001"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Takes the schema one step up; what was read of values is read again by the next crawl."""
    op.add_column(
        "adapter",
        sa.Column(
            "health",
            sa.Text(),
            nullable=True,
            comment="healthy, or what is wrong with its values; null when unread",
        ),
    )
    op.add_column(
        "adapter",
        sa.Column(
            "scaling_pattern",
            sa.Text(),
            nullable=True,
            comment="how scaling differs between modules, empty where it does not; null when unread",
        ),
    )
    op.add_column(
        "weights_file",
        sa.Column(
            "tensor_digest",
            sa.Text(),
            nullable=True,
            comment="sha256 of names, types, shapes and bytes of all tensors; null when unread",
        ),
    )
    op.create_index("ix_weights_file_tensor_digest", "weights_file", ["tensor_digest"])
    op.drop_column("weights_file", "norms")
    op.drop_column("weights_file", "measured")
    op.drop_table("fingerprint")
    op.create_table(
        "fingerprint",
        sa.Column("weights_digest", sa.Text(), nullable=False),
        sa.Column("scaling_pattern", sa.Text(), nullable=False),
        sa.Column("version", sa.BigInteger(), nullable=False),
        sa.Column("spectrum", sa.LargeBinary(), nullable=False),
        sa.Column("delta", sa.LargeBinary(), nullable=False),
        sa.Column("output", sa.LargeBinary(), nullable=False),
        sa.ForeignKeyConstraint(
            ["weights_digest"],
            ["weights_file.digest"],
            name=op.f("fk_fingerprint_weights_digest"),
            ondelete="CASCADE",
        ),
        sa.PrimaryKeyConstraint("weights_digest", "scaling_pattern", "version", name=op.f("pk_fingerprint")),
    )


def downgrade() -> None:
    """Takes the schema one step down; the vectors are lost and can be made again from the weights."""
    op.drop_table("fingerprint")
    op.create_table(
        "fingerprint",
        sa.Column("weights_digest", sa.Text(), nullable=False),
        sa.Column("kind", sa.Text(), nullable=False, comment="delta or output"),
        sa.Column("version", sa.BigInteger(), nullable=False),
        sa.Column("vector", sa.LargeBinary(), nullable=False, comment="little-endian float32"),
        sa.ForeignKeyConstraint(
            ["weights_digest"],
            ["weights_file.digest"],
            name=op.f("fk_fingerprint_weights_digest"),
            ondelete="CASCADE",
        ),
        sa.PrimaryKeyConstraint("weights_digest", "kind", "version", name=op.f("pk_fingerprint")),
    )
    op.add_column(
        "weights_file",
        sa.Column(
            "measured",
            sa.BigInteger(),
            nullable=True,
            comment="version of the code that read the values; null when unread",
        ),
    )
    op.add_column(
        "weights_file",
        sa.Column(
            "norms",
            sa.JSON(none_as_null=True),
            nullable=True,
            comment="{module: ||B A||_F}, null for a non-finite one; the whole is null until it is read",
        ),
    )
    op.drop_index("ix_weights_file_tensor_digest", "weights_file")
    op.drop_column("weights_file", "tensor_digest")
    op.drop_column("adapter", "scaling_pattern")
    op.drop_column("adapter", "health")
