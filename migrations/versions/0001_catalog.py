"""The catalog as it was first released.

Revision ID: 0001
Revises: nothing
"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0001"
down_revision = None
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Takes the schema one step up."""
    op.create_table(
        "base_model",
        sa.Column("id", sa.BigInteger().with_variant(sa.Integer(), "sqlite"), nullable=False),
        sa.Column(
            "canonical",
            sa.Text(),
            nullable=False,
            comment="Hub id, for instance meta-llama/Llama-3.1-8B-Instruct",
        ),
        sa.Column(
            "license", sa.Text(), nullable=True, comment="licence id of the base model, for instance llama3.1"
        ),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_base_model")),
        sa.UniqueConstraint("canonical", name=op.f("uq_base_model_canonical")),
    )
    op.create_table(
        "crawl",
        sa.Column("id", sa.BigInteger().with_variant(sa.Integer(), "sqlite"), nullable=False),
        sa.Column(
            "listing",
            sa.Text(),
            nullable=False,
            comment="digest of the Hub and the queries alone",
        ),
        sa.Column(
            "scope",
            sa.Text(),
            nullable=False,
            comment="digest of what was asked; a crawl resumes one of its scope",
        ),
        sa.Column(
            "asked",
            sa.JSON(none_as_null=True),
            nullable=False,
            comment="the options, the queries and the time before which nothing is listed",
        ),
        sa.Column(
            "state",
            sa.Enum(
                "running",
                "complete",
                "partial",
                name="crawlstate",
                native_enum=False,
                create_constraint=True,
                length=16,
            ),
            nullable=False,
        ),
        sa.Column("started_at", sa.DateTime(timezone=True), nullable=False),
        sa.Column("finished_at", sa.DateTime(timezone=True), nullable=True),
        sa.Column(
            "watermark",
            sa.DateTime(timezone=True),
            nullable=True,
            comment="newest last-modified listed; set only without errors",
        ),
        sa.Column("api_requests", sa.BigInteger(), nullable=False),
        sa.Column("resolver_requests", sa.BigInteger(), nullable=False),
        sa.Column("bytes", sa.BigInteger(), nullable=False),
        sa.Column("seconds", sa.Float(precision=53), nullable=False),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_crawl")),
    )
    with op.batch_alter_table("crawl", schema=None) as batch_op:
        batch_op.create_index(batch_op.f("ix_crawl_listing"), ["listing"], unique=False)
        batch_op.create_index(batch_op.f("ix_crawl_scope"), ["scope"], unique=False)

    op.create_table(
        "document",
        sa.Column("digest", sa.Text(), nullable=False),
        sa.Column("content", sa.LargeBinary(), nullable=False),
        sa.CheckConstraint("length(digest) IN (40, 64)", name=op.f("ck_document_digest")),
        sa.PrimaryKeyConstraint("digest", name=op.f("pk_document")),
    )
    op.create_table(
        "embedding",
        sa.Column("content", sa.Text(), nullable=False, comment="sha256 of the text that was embedded"),
        sa.Column("model", sa.Text(), nullable=False, comment="Hub id and revision of the embedding model"),
        sa.Column("chunk", sa.BigInteger(), nullable=False),
        sa.Column("vector", sa.LargeBinary(), nullable=False, comment="little-endian float32"),
        sa.PrimaryKeyConstraint("content", "model", "chunk", name=op.f("pk_embedding")),
    )
    op.create_table(
        "pool",
        sa.Column("id", sa.BigInteger().with_variant(sa.Integer(), "sqlite"), nullable=False),
        sa.Column("name", sa.Text(), nullable=False),
        sa.Column("digest", sa.Text(), nullable=False, comment="sha256 of the canonical manifest"),
        sa.Column("manifest", sa.JSON(none_as_null=True), nullable=False),
        sa.Column("created_at", sa.DateTime(timezone=True), nullable=False),
        sa.CheckConstraint("length(digest) = 64", name=op.f("ck_pool_digest")),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_pool")),
        sa.UniqueConstraint("name", name=op.f("uq_pool_name")),
    )
    op.create_table(
        "repository",
        sa.Column("id", sa.BigInteger().with_variant(sa.Integer(), "sqlite"), nullable=False),
        sa.Column("hub_id", sa.Text(), nullable=False, comment="the Hub's _id"),
        sa.Column("name", sa.Text(), nullable=False, comment="owner/name, the newest one seen"),
        sa.Column("owner", sa.Text(), nullable=False),
        sa.Column(
            "commit",
            sa.Text(),
            nullable=True,
            comment="the commit its current adapters were read at; null when unread",
        ),
        sa.Column("created_at", sa.DateTime(timezone=True), nullable=True),
        sa.Column("last_modified", sa.DateTime(timezone=True), nullable=True),
        sa.Column("gated", sa.Text(), nullable=True, comment="auto, manual, or null"),
        sa.Column("disabled", sa.Boolean(), nullable=False),
        sa.Column("private", sa.Boolean(), nullable=False),
        sa.Column("downloads", sa.BigInteger(), nullable=True),
        sa.Column("downloads_all_time", sa.BigInteger(), nullable=True),
        sa.Column("likes", sa.BigInteger(), nullable=True),
        sa.Column("library", sa.Text(), nullable=True),
        sa.Column("pipeline_tag", sa.Text(), nullable=True),
        sa.Column("tags", sa.JSON(none_as_null=True), nullable=False),
        sa.Column("first_seen", sa.DateTime(timezone=True), nullable=False),
        sa.Column("last_seen", sa.DateTime(timezone=True), nullable=False),
        sa.Column(
            "gone_at",
            sa.DateTime(timezone=True),
            nullable=True,
            comment="tombstone: when the Hub said that it is no longer there",
        ),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_repository")),
        sa.UniqueConstraint("hub_id", name=op.f("uq_repository_hub_id")),
    )
    with op.batch_alter_table("repository", schema=None) as batch_op:
        batch_op.create_index(batch_op.f("ix_repository_name"), ["name"], unique=False)
        batch_op.create_index(batch_op.f("ix_repository_owner"), ["owner"], unique=False)

    op.create_table(
        "weights_file",
        sa.Column("digest", sa.Text(), nullable=False),
        sa.Column("size", sa.BigInteger(), nullable=False),
        sa.Column(
            "header",
            sa.LargeBinary(),
            nullable=True,
            comment="zlib of the safetensors header, 8 length bytes included",
        ),
        sa.Column(
            "norms",
            sa.JSON(none_as_null=True),
            nullable=True,
            comment="{module: ||B A||_F}, null for a non-finite one; the whole is null until it is read",
        ),
        sa.Column(
            "measured",
            sa.BigInteger(),
            nullable=True,
            comment="version of the code that read the values; null when unread",
        ),
        sa.CheckConstraint("length(digest) IN (40, 64)", name=op.f("ck_weights_file_digest")),
        sa.PrimaryKeyConstraint("digest", name=op.f("pk_weights_file")),
    )
    op.create_table(
        "adapter",
        sa.Column("id", sa.BigInteger().with_variant(sa.Integer(), "sqlite"), nullable=False),
        sa.Column("repository_id", sa.BigInteger().with_variant(sa.Integer(), "sqlite"), nullable=False),
        sa.Column("commit", sa.Text(), nullable=False),
        sa.Column(
            "subfolder",
            sa.Text(),
            nullable=False,
            comment="path below the repository's root, empty for the root",
        ),
        sa.Column(
            "main", sa.Boolean(), nullable=False, comment="the one adapter that stands for the repository"
        ),
        sa.Column(
            "current",
            sa.Boolean(),
            nullable=False,
            comment="at the commit last read; older commits stay as history",
        ),
        sa.Column("config_digest", sa.Text(), nullable=True),
        sa.Column("card_digest", sa.Text(), nullable=True),
        sa.Column("weights_digest", sa.Text(), nullable=True),
        sa.Column("weights_name", sa.Text(), nullable=True),
        sa.Column(
            "files",
            sa.JSON(none_as_null=True),
            nullable=False,
            comment="[{name, size, digest}] of the folder, pickles included",
        ),
        sa.Column("base_model_id", sa.BigInteger().with_variant(sa.Integer(), "sqlite"), nullable=True),
        sa.Column(
            "base_raw", sa.Text(), nullable=True, comment="the base model as the adapter's files spell it"
        ),
        sa.Column("base_kind", sa.Text(), nullable=True),
        sa.Column("base_evidence", sa.Text(), nullable=True),
        sa.Column("peft_type", sa.Text(), nullable=True),
        sa.Column("task_type", sa.Text(), nullable=True),
        sa.Column("rank", sa.BigInteger(), nullable=True, comment="r of the config"),
        sa.Column("alpha", sa.Float(precision=53), nullable=True),
        sa.Column(
            "scaling",
            sa.Float(precision=53),
            nullable=True,
            comment="alpha/r, or alpha/sqrt(r) with rslora; patterns may differ",
        ),
        sa.Column("use_rslora", sa.Boolean(), nullable=True),
        sa.Column(
            "targets",
            sa.JSON(none_as_null=True),
            nullable=False,
            comment="short names of the adapted modules, from the weights where read",
        ),
        sa.Column("modules", sa.BigInteger(), nullable=True, comment="number of LoRA modules in the weights"),
        sa.Column(
            "parameters", sa.BigInteger(), nullable=True, comment="number of LoRA parameters in the weights"
        ),
        sa.Column("dtypes", sa.JSON(none_as_null=True), nullable=False),
        sa.Column(
            "described_with",
            sa.Text(),
            nullable=False,
            comment="digest of rules and spellings it was judged with",
        ),
        sa.Column(
            "norm",
            sa.Float(precision=53),
            nullable=True,
            comment="Frobenius norm of the update, once its values are read",
        ),
        sa.Column("license", sa.Text(), nullable=True),
        sa.Column("card_quality", sa.Text(), nullable=False),
        sa.Column(
            "card_text",
            sa.Text(),
            nullable=False,
            comment="the card without front matter, mark-up and placeholders",
        ),
        sa.Column("card_front", sa.JSON(none_as_null=True), nullable=False),
        sa.Column(
            "training",
            sa.JSON(none_as_null=True),
            nullable=False,
            comment="learning rate, schedule, batch, steps… as the card tells them",
        ),
        sa.CheckConstraint('length("commit") = 40', name=op.f("ck_adapter_commit")),
        sa.ForeignKeyConstraint(["base_model_id"], ["base_model.id"], name=op.f("fk_adapter_base_model_id")),
        sa.ForeignKeyConstraint(["card_digest"], ["document.digest"], name=op.f("fk_adapter_card_digest")),
        sa.ForeignKeyConstraint(
            ["config_digest"], ["document.digest"], name=op.f("fk_adapter_config_digest")
        ),
        sa.ForeignKeyConstraint(
            ["repository_id"], ["repository.id"], name=op.f("fk_adapter_repository_id"), ondelete="CASCADE"
        ),
        sa.ForeignKeyConstraint(
            ["weights_digest"], ["weights_file.digest"], name=op.f("fk_adapter_weights_digest")
        ),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_adapter")),
        sa.UniqueConstraint(
            "repository_id", "commit", "subfolder", name=op.f("uq_adapter_repository_id_commit_subfolder")
        ),
    )
    with op.batch_alter_table("adapter", schema=None) as batch_op:
        batch_op.create_index(batch_op.f("ix_adapter_base_model_id"), ["base_model_id"], unique=False)
        batch_op.create_index("ix_adapter_current", ["current", "repository_id"], unique=False)
        batch_op.create_index(batch_op.f("ix_adapter_weights_digest"), ["weights_digest"], unique=False)

    op.create_table(
        "base_spelling",
        sa.Column("spelling", sa.Text(), nullable=False),
        sa.Column("base_model_id", sa.BigInteger().with_variant(sa.Integer(), "sqlite"), nullable=False),
        sa.Column(
            "kind",
            sa.Enum(
                "canonical",
                "renamed",
                "mirror",
                "quantised",
                "case",
                "local_path",
                name="spelling",
                native_enum=False,
                create_constraint=True,
                length=16,
            ),
            nullable=False,
        ),
        sa.Column("note", sa.Text(), nullable=False),
        sa.Column(
            "by_user",
            sa.Boolean(),
            nullable=False,
            comment="added by a user, never overwritten by the program",
        ),
        sa.ForeignKeyConstraint(
            ["base_model_id"],
            ["base_model.id"],
            name=op.f("fk_base_spelling_base_model_id"),
            ondelete="CASCADE",
        ),
        sa.PrimaryKeyConstraint("spelling", name=op.f("pk_base_spelling")),
    )
    with op.batch_alter_table("base_spelling", schema=None) as batch_op:
        batch_op.create_index(batch_op.f("ix_base_spelling_base_model_id"), ["base_model_id"], unique=False)

    op.create_table(
        "crawl_item",
        sa.Column("crawl_id", sa.BigInteger().with_variant(sa.Integer(), "sqlite"), nullable=False),
        sa.Column("position", sa.BigInteger(), nullable=False),
        sa.Column("hub_id", sa.Text(), nullable=True, comment="null for a row that has no usable identity"),
        sa.Column("name", sa.Text(), nullable=True),
        sa.Column(
            "outcome",
            sa.Enum(
                "pending",
                "new",
                "changed",
                "unchanged",
                "gone",
                "failed",
                "quarantined",
                name="outcome",
                native_enum=False,
                create_constraint=True,
                length=16,
            ),
            nullable=False,
        ),
        sa.Column(
            "row",
            sa.JSON(none_as_null=True),
            nullable=True,
            comment="the raw listing row until the item is settled, or why it was refused",
        ),
        sa.Column(
            "error", sa.Text(), nullable=True, comment="kind of the error, for a failed or quarantined item"
        ),
        sa.Column("detail", sa.Text(), nullable=True),
        sa.ForeignKeyConstraint(
            ["crawl_id"], ["crawl.id"], name=op.f("fk_crawl_item_crawl_id"), ondelete="CASCADE"
        ),
        sa.PrimaryKeyConstraint("crawl_id", "position", name=op.f("pk_crawl_item")),
        sa.UniqueConstraint("crawl_id", "hub_id", name=op.f("uq_crawl_item_crawl_id_hub_id")),
    )
    with op.batch_alter_table("crawl_item", schema=None) as batch_op:
        batch_op.create_index("ix_crawl_item_outcome", ["crawl_id", "outcome", "position"], unique=False)

    op.create_table(
        "crawl_page",
        sa.Column("crawl_id", sa.BigInteger().with_variant(sa.Integer(), "sqlite"), nullable=False),
        sa.Column("query", sa.BigInteger(), nullable=False, comment="index into the crawl's queries"),
        sa.Column("number", sa.BigInteger(), nullable=False),
        sa.Column("url", sa.Text(), nullable=False),
        sa.Column("next_url", sa.Text(), nullable=True),
        sa.Column(
            "rows", sa.BigInteger(), nullable=False, comment="rows that became items, repeated ones included"
        ),
        sa.Column(
            "passed_over",
            sa.BigInteger(),
            nullable=False,
            comment="rows without any adapter file, or older than what was asked for",
        ),
        sa.ForeignKeyConstraint(
            ["crawl_id"], ["crawl.id"], name=op.f("fk_crawl_page_crawl_id"), ondelete="CASCADE"
        ),
        sa.PrimaryKeyConstraint("crawl_id", "query", "number", name=op.f("pk_crawl_page")),
    )
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
    op.create_table(
        "repository_alias",
        sa.Column("repository_id", sa.BigInteger().with_variant(sa.Integer(), "sqlite"), nullable=False),
        sa.Column("name", sa.Text(), nullable=False),
        sa.ForeignKeyConstraint(
            ["repository_id"],
            ["repository.id"],
            name=op.f("fk_repository_alias_repository_id"),
            ondelete="CASCADE",
        ),
        sa.PrimaryKeyConstraint("repository_id", "name", name=op.f("pk_repository_alias")),
    )
    with op.batch_alter_table("repository_alias", schema=None) as batch_op:
        batch_op.create_index(batch_op.f("ix_repository_alias_name"), ["name"], unique=False)

    op.create_table(
        "adapter_reason",
        sa.Column("adapter_id", sa.BigInteger().with_variant(sa.Integer(), "sqlite"), nullable=False),
        sa.Column("reason", sa.Text(), nullable=False),
        sa.Column("position", sa.BigInteger(), nullable=False, comment="order of the rules"),
        sa.Column("detail", sa.Text(), nullable=False),
        sa.ForeignKeyConstraint(
            ["adapter_id"], ["adapter.id"], name=op.f("fk_adapter_reason_adapter_id"), ondelete="CASCADE"
        ),
        sa.PrimaryKeyConstraint("adapter_id", "reason", name=op.f("pk_adapter_reason")),
    )
    with op.batch_alter_table("adapter_reason", schema=None) as batch_op:
        batch_op.create_index(batch_op.f("ix_adapter_reason_reason"), ["reason"], unique=False)

    op.create_table(
        "evaluation",
        sa.Column("id", sa.BigInteger().with_variant(sa.Integer(), "sqlite"), nullable=False),
        sa.Column(
            "subject",
            sa.Text(),
            nullable=False,
            comment="owner/name[@commit][:subfolder], merge:<digest>, or base",
        ),
        sa.Column("adapter_id", sa.BigInteger().with_variant(sa.Integer(), "sqlite"), nullable=True),
        sa.Column("task", sa.Text(), nullable=False),
        sa.Column("split", sa.Text(), nullable=False),
        sa.Column("metric", sa.Text(), nullable=False),
        sa.Column("value", sa.Float(precision=53), nullable=False),
        sa.Column(
            "n",
            sa.BigInteger(),
            nullable=True,
            comment="number of samples measured; null when the source does not say",
        ),
        sa.Column("source", sa.Text(), nullable=False),
        sa.CheckConstraint("n IS NULL OR n > 0", name=op.f("ck_evaluation_n")),
        sa.ForeignKeyConstraint(
            ["adapter_id"], ["adapter.id"], name=op.f("fk_evaluation_adapter_id"), ondelete="SET NULL"
        ),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_evaluation")),
        sa.UniqueConstraint(
            "subject",
            "task",
            "split",
            "metric",
            "source",
            name=op.f("uq_evaluation_subject_task_split_metric_source"),
        ),
    )
    with op.batch_alter_table("evaluation", schema=None) as batch_op:
        batch_op.create_index(batch_op.f("ix_evaluation_adapter_id"), ["adapter_id"], unique=False)
        batch_op.create_index(batch_op.f("ix_evaluation_task"), ["task"], unique=False)

    op.create_table(
        "pool_member",
        sa.Column("pool_id", sa.BigInteger().with_variant(sa.Integer(), "sqlite"), nullable=False),
        sa.Column("position", sa.BigInteger(), nullable=False),
        sa.Column("adapter_id", sa.BigInteger().with_variant(sa.Integer(), "sqlite"), nullable=False),
        sa.ForeignKeyConstraint(["adapter_id"], ["adapter.id"], name=op.f("fk_pool_member_adapter_id")),
        sa.ForeignKeyConstraint(
            ["pool_id"], ["pool.id"], name=op.f("fk_pool_member_pool_id"), ondelete="CASCADE"
        ),
        sa.PrimaryKeyConstraint("pool_id", "position", name=op.f("pk_pool_member")),
    )
    with op.batch_alter_table("pool_member", schema=None) as batch_op:
        batch_op.create_index(batch_op.f("ix_pool_member_adapter_id"), ["adapter_id"], unique=False)


def downgrade() -> None:
    """Takes the schema one step down, with the rows of what it drops."""
    with op.batch_alter_table("pool_member", schema=None) as batch_op:
        batch_op.drop_index(batch_op.f("ix_pool_member_adapter_id"))

    op.drop_table("pool_member")
    with op.batch_alter_table("evaluation", schema=None) as batch_op:
        batch_op.drop_index(batch_op.f("ix_evaluation_task"))
        batch_op.drop_index(batch_op.f("ix_evaluation_adapter_id"))

    op.drop_table("evaluation")
    with op.batch_alter_table("adapter_reason", schema=None) as batch_op:
        batch_op.drop_index(batch_op.f("ix_adapter_reason_reason"))

    op.drop_table("adapter_reason")
    with op.batch_alter_table("repository_alias", schema=None) as batch_op:
        batch_op.drop_index(batch_op.f("ix_repository_alias_name"))

    op.drop_table("repository_alias")
    op.drop_table("fingerprint")
    op.drop_table("crawl_page")
    with op.batch_alter_table("crawl_item", schema=None) as batch_op:
        batch_op.drop_index("ix_crawl_item_outcome")

    op.drop_table("crawl_item")
    with op.batch_alter_table("base_spelling", schema=None) as batch_op:
        batch_op.drop_index(batch_op.f("ix_base_spelling_base_model_id"))

    op.drop_table("base_spelling")
    with op.batch_alter_table("adapter", schema=None) as batch_op:
        batch_op.drop_index(batch_op.f("ix_adapter_weights_digest"))
        batch_op.drop_index("ix_adapter_current")
        batch_op.drop_index(batch_op.f("ix_adapter_base_model_id"))

    op.drop_table("adapter")
    op.drop_table("weights_file")
    with op.batch_alter_table("repository", schema=None) as batch_op:
        batch_op.drop_index(batch_op.f("ix_repository_owner"))
        batch_op.drop_index(batch_op.f("ix_repository_name"))

    op.drop_table("repository")
    op.drop_table("pool")
    op.drop_table("embedding")
    op.drop_table("document")
    with op.batch_alter_table("crawl", schema=None) as batch_op:
        batch_op.drop_index(batch_op.f("ix_crawl_scope"))
        batch_op.drop_index(batch_op.f("ix_crawl_listing"))

    op.drop_table("crawl")
    op.drop_table("base_model")
