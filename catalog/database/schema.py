"""The tables of the catalog: the first sentence of each class describes a row.

Content is stored once and by its digest (`document`, `weights_file`); `repository` and `adapter` record where
it was found; `adapter_reason` records the reasons against an adapter, from which the verdict of a rule set
follows (`crawler.crawl.screening`). Enums are stored by value; every constraint has a name.
"""

from __future__ import annotations

import enum
import re
from datetime import datetime
from typing import Any, get_args

from sqlalchemy import BigInteger, CheckConstraint, ForeignKey, Index, Integer, UniqueConstraint
from sqlalchemy.orm import Mapped, mapped_column, relationship

from catalog.adapters import SpellingKind
from catalog.database.columns import Key, TableBase, enum_column

SHA1 = "length({0}) = 40"
DIGEST = "length({0}) IN (40, 64)"
# Written so that the largest n does not overflow.
OUTCOMES = (
    "(outcomes IS NULL) = (items_sha IS NULL) "
    "AND (outcomes IS NULL OR (n IS NOT NULL AND length(outcomes) * 8 - n BETWEEN 0 AND 7))"
)
# What an adapter's front matter has in place of the card that a snapshot left out: the card's digest; None
# where the snapshot did not know it, and True in catalogs of earlier versions.
NOT_IN_SNAPSHOT = "_not_in_snapshot"
# A digest: git's of 40 digits, or a sha256.
_HASH = re.compile(r"[0-9a-f]{40}|[0-9a-f]{64}")
MARGINS = "margins IS NULL OR (outcomes IS NOT NULL AND length(margins) - n = n)"


class CrawlState(enum.StrEnum):
    """The state of a crawl; `running` also means an interrupted one."""

    RUNNING = "running"
    COMPLETE = "complete"
    PARTIAL = "partial"


class ItemOutcome(enum.StrEnum):
    """The outcome of one listed row; each ends in exactly one of them, `pending` is not an outcome."""

    PENDING = "pending"
    NEW = "new"
    CHANGED = "changed"
    UNCHANGED = "unchanged"
    GONE = "gone"
    FAILED = "failed"
    QUARANTINED = "quarantined"


class BaseModelRow(TableBase):
    """A base model under its canonical Hub id."""

    __tablename__ = "base_model"
    __table_args__ = (UniqueConstraint("canonical"),)

    id: Mapped[Key]
    canonical: Mapped[str] = mapped_column(comment="Hub id, for instance meta-llama/Llama-3.1-8B-Instruct")
    license: Mapped[str | None] = mapped_column(comment="licence id of the base model, for instance llama3.1")


class BaseSpellingRow(TableBase):
    """One name under which a base model is met in the wild."""

    __tablename__ = "base_spelling"

    spelling: Mapped[str] = mapped_column(primary_key=True)
    base_model_id: Mapped[int] = mapped_column(ForeignKey("base_model.id", ondelete="CASCADE"), index=True)
    kind: Mapped[SpellingKind] = mapped_column(enum_column(get_args(SpellingKind), "spelling"))
    note: Mapped[str] = mapped_column(default="")
    by_user: Mapped[bool] = mapped_column(
        default=False, comment="added by a user, never overwritten by the program"
    )

    base_model: Mapped[BaseModelRow] = relationship()


class Repository(TableBase):
    """A model repository of the Hub; its identity is the Hub's `_id`, never its name."""

    __tablename__ = "repository"
    __table_args__ = (UniqueConstraint("hub_id"),)

    id: Mapped[Key]
    hub_id: Mapped[str] = mapped_column(comment="the Hub's _id")
    name: Mapped[str] = mapped_column(index=True, comment="owner/name, the newest one seen")
    owner: Mapped[str] = mapped_column(index=True)
    commit: Mapped[str | None] = mapped_column(
        comment="the commit its current adapters were read at; null when unread"
    )
    created_at: Mapped[datetime | None]
    last_modified: Mapped[datetime | None]
    gated: Mapped[str | None] = mapped_column(comment="auto, manual, or null")
    disabled: Mapped[bool]
    private: Mapped[bool]
    downloads: Mapped[int | None]
    downloads_all_time: Mapped[int | None]
    likes: Mapped[int | None]
    library: Mapped[str | None]
    pipeline_tag: Mapped[str | None]
    tags: Mapped[Any]
    first_seen: Mapped[datetime]
    last_seen: Mapped[datetime]
    gone_at: Mapped[datetime | None] = mapped_column(
        comment="tombstone: when the Hub said that it is no longer there"
    )

    adapters: Mapped[list[Adapter]] = relationship(back_populates="repository", passive_deletes=True)
    aliases: Mapped[list[RepositoryAlias]] = relationship(
        passive_deletes=True, order_by="RepositoryAlias.name"
    )
    annotations: Mapped[list[Annotation]] = relationship(
        primaryjoin="foreign(Annotation.hub_id) == Repository.hub_id", viewonly=True
    )
    annotation_tags: Mapped[list[AnnotationTag]] = relationship(
        primaryjoin="foreign(AnnotationTag.hub_id) == Repository.hub_id",
        viewonly=True,
        order_by="AnnotationTag.tag",
    )


class RepositoryAlias(TableBase):
    """A name that a repository had before it was renamed."""

    __tablename__ = "repository_alias"

    repository_id: Mapped[int] = mapped_column(
        ForeignKey("repository.id", ondelete="CASCADE"), primary_key=True
    )
    name: Mapped[str] = mapped_column(primary_key=True, index=True)


class DocumentRow(TableBase):
    """A small file (adapter_config.json, README.md) as fetched and verified, under its git or LFS hash."""

    __tablename__ = "document"
    __table_args__ = (CheckConstraint(DIGEST.format("digest"), name="digest"),)

    digest: Mapped[str] = mapped_column(primary_key=True)
    content: Mapped[bytes]


class WeightsFile(TableBase):
    """A safetensors file under its sha256; one outside LFS that was not read under its git blob id."""

    __tablename__ = "weights_file"
    __table_args__ = (CheckConstraint(DIGEST.format("digest"), name="digest"),)

    digest: Mapped[str] = mapped_column(primary_key=True)
    size: Mapped[int]
    header: Mapped[bytes | None] = mapped_column(
        comment="zlib of the safetensors header, 8 length bytes included"
    )
    tensor_digest: Mapped[str | None] = mapped_column(
        index=True, comment="sha256 of names, types, shapes and bytes of all tensors; null when unread"
    )
    git_oid: Mapped[str | None] = mapped_column(
        index=True, comment="git's name of the bytes where the Hub keeps the file outside LFS"
    )


class Adapter(TableBase):
    """One adapter folder of a repository at one commit."""

    __tablename__ = "adapter"
    __table_args__ = (
        UniqueConstraint("repository_id", "commit", "subfolder"),
        CheckConstraint(SHA1.format('"commit"'), name="commit"),
        # Not the other way round: SQLite would read all that are current to look up a few.
        Index("ix_adapter_current", "repository_id", "current"),
        Index("ix_adapter_vectors", "base_model_id", "weights_digest", "scaling_pattern"),
    )

    id: Mapped[Key]
    repository_id: Mapped[int] = mapped_column(ForeignKey("repository.id", ondelete="CASCADE"))
    commit: Mapped[str]
    subfolder: Mapped[str] = mapped_column(comment="path below the repository's root, empty for the root")
    main: Mapped[bool] = mapped_column(comment="the one adapter that stands for the repository")
    current: Mapped[bool] = mapped_column(comment="at the commit last read; older commits stay as history")
    config_digest: Mapped[str | None] = mapped_column(ForeignKey("document.digest"))
    card_digest: Mapped[str | None] = mapped_column(ForeignKey("document.digest"))
    weights_digest: Mapped[str | None] = mapped_column(ForeignKey("weights_file.digest"), index=True)
    weights_name: Mapped[str | None]
    files: Mapped[Any] = mapped_column(comment="[{name, size, digest}] of the folder, pickles included")
    base_model_id: Mapped[int | None] = mapped_column(ForeignKey("base_model.id"))
    base_raw: Mapped[str | None] = mapped_column(comment="the base model as the adapter's files spell it")
    base_kind: Mapped[str | None]
    base_evidence: Mapped[str | None]
    peft_type: Mapped[str | None]
    task_type: Mapped[str | None]
    rank: Mapped[int | None] = mapped_column(comment="r of the config")
    alpha: Mapped[float | None]
    scaling: Mapped[float | None] = mapped_column(
        comment="alpha/r, or alpha/sqrt(r) with rslora; patterns may differ"
    )
    use_rslora: Mapped[bool | None]
    targets: Mapped[Any] = mapped_column(
        comment="short names of the adapted modules, from the weights where read"
    )
    modules: Mapped[int | None] = mapped_column(comment="number of LoRA modules in the weights")
    parameters: Mapped[int | None] = mapped_column(comment="number of LoRA parameters in the weights")
    dtypes: Mapped[Any]
    described_with: Mapped[str] = mapped_column(comment="digest of rules and spellings it was judged with")
    norm: Mapped[float | None] = mapped_column(
        comment="Frobenius norm of the update, once its values are read"
    )
    health: Mapped[str | None] = mapped_column(
        comment="healthy, or what is wrong with its values; null when unread"
    )
    scaling_pattern: Mapped[str | None] = mapped_column(
        comment="how scaling differs between modules, empty where it does not; null when unread"
    )
    partial: Mapped[Any] = mapped_column(
        nullable=True,
        comment="the reasons for which B A is not its whole update; null where no factors are known",
    )
    engine_features: Mapped[Any] = mapped_column(
        nullable=True,
        comment="what engines look at in its files (catalog.adapters.FEATURES); null where not known",
    )
    engine_rank: Mapped[int | None] = mapped_column(comment="largest rank of its modules")
    engine_whole: Mapped[bool | None] = mapped_column(
        comment="whether its weights header was read for the features, not its config alone"
    )
    engine_version: Mapped[int | None] = mapped_column(
        comment="version of the features' definition; null where they were not looked for"
    )
    license: Mapped[str | None]
    card_quality: Mapped[str]
    card_text: Mapped[str] = mapped_column(comment="the card without front matter, mark-up and placeholders")
    card_front: Mapped[Any]
    training: Mapped[Any] = mapped_column(
        comment="learning rate, schedule, batch, steps… as the card tells them"
    )

    repository: Mapped[Repository] = relationship(back_populates="adapters")
    base_model: Mapped[BaseModelRow | None] = relationship()
    reasons: Mapped[list[AdapterReason]] = relationship(
        passive_deletes=True, order_by="AdapterReason.position", cascade="all, delete-orphan"
    )

    @property
    def card_left_out(self) -> bool:
        """Whether a snapshot left its card out."""
        if self.card_digest is not None or not isinstance(self.card_front, dict):
            return False
        mark = self.card_front.get(NOT_IN_SNAPSHOT, False)
        return mark is True or mark is None or (isinstance(mark, str) and bool(_HASH.fullmatch(mark)))

    @property
    def left_out_card(self) -> str | None:
        """The digest of its card where a snapshot left it out: that which the snapshot named, else that of
        the README.md of its folder, None where a card of a folder above is its card.
        """
        if not self.card_left_out:
            return None
        mark = self.card_front[NOT_IN_SNAPSHOT]
        own = (file.get("digest") for file in self.files or () if file.get("name") == "README.md")
        return mark if isinstance(mark, str) else next(own, None)

    @property
    def annotation(self) -> Annotation | None:
        """The note and the hidden mark of a user, None without either."""
        return next((row for row in self.repository.annotations if row.subfolder == self.subfolder), None)

    @property
    def own_tags(self) -> list[str]:
        """The tags of a user."""
        return [row.tag for row in self.repository.annotation_tags if row.subfolder == self.subfolder]


class AdapterReason(TableBase):
    """A reason against an adapter; all reasons are recorded, not only the first."""

    __tablename__ = "adapter_reason"

    adapter_id: Mapped[int] = mapped_column(ForeignKey("adapter.id", ondelete="CASCADE"), primary_key=True)
    reason: Mapped[str] = mapped_column(primary_key=True, index=True)
    position: Mapped[int] = mapped_column(comment="order of the rules")
    detail: Mapped[str]


class Crawl(TableBase):
    """One crawl: its query, progress and costs; totals continue when it is resumed."""

    __tablename__ = "crawl"

    id: Mapped[Key]
    listing: Mapped[str] = mapped_column(index=True, comment="digest of the Hub and the queries alone")
    scope: Mapped[str] = mapped_column(
        index=True, comment="digest of what was asked; a crawl resumes one of its scope"
    )
    asked: Mapped[Any] = mapped_column(
        comment="the options, the queries and the time before which nothing is listed"
    )
    state: Mapped[CrawlState] = mapped_column(enum_column(CrawlState, "crawlstate"))
    started_at: Mapped[datetime]
    finished_at: Mapped[datetime | None]
    watermark: Mapped[datetime | None] = mapped_column(
        comment="newest last-modified listed; set only without errors"
    )
    api_requests: Mapped[int] = mapped_column(default=0)
    resolver_requests: Mapped[int] = mapped_column(default=0)
    bytes: Mapped[int] = mapped_column(default=0)
    seconds: Mapped[float] = mapped_column(default=0.0)
    holder: Mapped[str | None] = mapped_column(
        comment="user, machine and process at work on it; null once it has ended"
    )
    held_since: Mapped[datetime | None] = mapped_column(comment="when the holder began")
    phase: Mapped[str | None] = mapped_column(comment="what the holder does: listing or reading")


class CrawlPage(TableBase):
    """One listing page, written together with its rows: `next_url` of the newest page is the frontier."""

    __tablename__ = "crawl_page"

    crawl_id: Mapped[int] = mapped_column(ForeignKey("crawl.id", ondelete="CASCADE"), primary_key=True)
    query: Mapped[int] = mapped_column(primary_key=True, comment="index into the crawl's queries")
    number: Mapped[int] = mapped_column(primary_key=True)
    url: Mapped[str]
    next_url: Mapped[str | None]
    rows: Mapped[int] = mapped_column(comment="rows that became items, repeated ones included")
    passed_over: Mapped[int] = mapped_column(
        comment="rows without any adapter file, or older than what was asked for"
    )


class CrawlItem(TableBase):
    """One row of a listing and its outcome."""

    __tablename__ = "crawl_item"
    __table_args__ = (
        UniqueConstraint("crawl_id", "hub_id"),
        Index("ix_crawl_item_outcome", "crawl_id", "outcome", "position"),
    )

    crawl_id: Mapped[int] = mapped_column(ForeignKey("crawl.id", ondelete="CASCADE"), primary_key=True)
    position: Mapped[int] = mapped_column(primary_key=True)
    hub_id: Mapped[str | None] = mapped_column(comment="null for a row that has no usable identity")
    name: Mapped[str | None]
    outcome: Mapped[ItemOutcome] = mapped_column(enum_column(ItemOutcome, "outcome"))
    row: Mapped[Any] = mapped_column(
        nullable=True, comment="the raw listing row until the item is settled, or why it was refused"
    )
    error: Mapped[str | None] = mapped_column(comment="kind of the error, for a failed or quarantined item")
    detail: Mapped[str | None]


class WeightsItem(TableBase):
    """A weights file that a crawl has one of several processes read; gone when the crawl has ended."""

    __tablename__ = "weights_item"
    __table_args__ = (
        CheckConstraint("state IN ('pending', 'leased', 'done', 'failed')", name="state"),
        Index("ix_weights_item_state", "crawl_id", "state"),
    )

    crawl_id: Mapped[int] = mapped_column(ForeignKey("crawl.id", ondelete="CASCADE"), primary_key=True)
    digest: Mapped[str] = mapped_column(primary_key=True, comment="sha256 of the file, which is read once")
    task: Mapped[Any] = mapped_column(comment="repository, commit, file and config")
    state: Mapped[str] = mapped_column(comment="pending, leased, done or failed")
    lease: Mapped[str | None] = mapped_column(comment="the worker that reads it")
    until: Mapped[datetime | None] = mapped_column(comment="when another worker may take it, unless extended")
    tries: Mapped[int] = mapped_column(comment="workers that began to read it")
    result: Mapped[bytes | None] = mapped_column(comment="zlib of JSON: what was read, or the error")


class RequestBudgetRow(TableBase):
    """The requests of one class that the processes of an account have sent, and may send, to the Hub."""

    __tablename__ = "request_budget"

    account: Mapped[str] = mapped_column(primary_key=True, comment="digest of Hub and token")
    kind: Mapped[str] = mapped_column(primary_key=True, comment="class of requests: api or resolver")
    state: Mapped[Any] = mapped_column(comment="limit, requests of its window")


class CrawlRetry(TableBase):
    """A repository that could not be read: later crawls of the scope retry it, with growing pauses."""

    __tablename__ = "crawl_retry"

    scope: Mapped[str] = mapped_column(primary_key=True, comment="digest of what the crawl asked")
    hub_id: Mapped[str] = mapped_column(primary_key=True)
    name: Mapped[str]
    commit: Mapped[str | None] = mapped_column(comment="the commit that the listing named")
    error: Mapped[str] = mapped_column(comment="kind of the newest error")
    detail: Mapped[str]
    attempts: Mapped[int] = mapped_column(comment="crawls that failed at it")
    failed_at: Mapped[datetime] = mapped_column(comment="when it first failed")
    next_at: Mapped[datetime] = mapped_column(comment="when it may be tried again")


class FingerprintRow(TableBase):
    """The fingerprint of a weights file under one pattern of scalings, by one version of the definition.

    Vectors are little-endian float32, as `catalog.fingerprints.Fingerprint` describes them; the rows of
    `spectrum` are the complete modules of the file by name.
    """

    __tablename__ = "fingerprint"

    weights_digest: Mapped[str] = mapped_column(
        ForeignKey("weights_file.digest", ondelete="CASCADE"), primary_key=True
    )
    scaling_pattern: Mapped[str] = mapped_column(primary_key=True)
    version: Mapped[int] = mapped_column(primary_key=True)
    spectrum: Mapped[bytes]
    delta: Mapped[bytes]
    output: Mapped[bytes]


class Embedding(TableBase):
    """A vector of one chunk of a text, made by one model."""

    __tablename__ = "embedding"

    content: Mapped[str] = mapped_column(primary_key=True, comment="sha256 of the text that was embedded")
    model: Mapped[str] = mapped_column(primary_key=True, comment="Hub id and revision of the embedding model")
    chunk: Mapped[int] = mapped_column(primary_key=True)
    vector: Mapped[bytes] = mapped_column(comment="little-endian float32")


class Annotation(TableBase):
    """What a user wrote about an adapter at all its commits; crawls never touch it."""

    __tablename__ = "annotation"
    __table_args__ = (CheckConstraint("note IS NOT NULL OR hidden", name="content"),)

    hub_id: Mapped[str] = mapped_column(primary_key=True, comment="the _id of its repository on the Hub")
    subfolder: Mapped[str] = mapped_column(primary_key=True, comment="empty for the root")
    note: Mapped[str | None]
    hidden: Mapped[bool] = mapped_column(comment="left out of lists and selections")


class AnnotationTag(TableBase):
    """A tag that a user gave an adapter, at all its commits."""

    __tablename__ = "annotation_tag"

    hub_id: Mapped[str] = mapped_column(primary_key=True, comment="the _id of its repository on the Hub")
    subfolder: Mapped[str] = mapped_column(primary_key=True, comment="empty for the root")
    tag: Mapped[str] = mapped_column(primary_key=True, index=True)


class ChangeToken(TableBase):
    """The random token of a topic: triggers draw another one with each change of what belongs to it."""

    __tablename__ = "change_token"

    topic: Mapped[str] = mapped_column(
        primary_key=True, comment="texts, fingerprints, embeddings, adapters, scores or crawls"
    )
    token: Mapped[int]


class TextVersion(TableBase):
    """The random version of an adapter's text: triggers draw another one with each change of it."""

    __tablename__ = "text_version"

    adapter_id: Mapped[int] = mapped_column(
        BigInteger().with_variant(Integer, "sqlite"), primary_key=True, autoincrement=False
    )
    version: Mapped[int]


class VectorVersion(TableBase):
    """The random version of the fingerprints, or of the vectors of cards, whose digests begin alike: triggers
    draw another one with each change of them.
    """

    __tablename__ = "vector_version"

    topic: Mapped[str] = mapped_column(primary_key=True, comment="fingerprints or embeddings")
    part: Mapped[str] = mapped_column(primary_key=True, comment="first four characters of the digests")
    version: Mapped[int]


class ItemList(TableBase):
    """An ordered list of a task's items; scores on the same list can be compared item by item."""

    __tablename__ = "item_list"
    __table_args__ = (
        CheckConstraint("length(items_sha) = 64", name="items_sha"),
        CheckConstraint("n > 0", name="n"),
        CheckConstraint("hashes IS NULL OR length(hashes) = 32 * n", name="hashes"),
    )

    items_sha: Mapped[str] = mapped_column(primary_key=True, comment="sha256 of the hashes of its items")
    n: Mapped[int] = mapped_column(comment="number of items")
    hashes: Mapped[bytes | None] = mapped_column(
        comment="sha256 of the canonical JSON of each item, 32 bytes each; null where not listed"
    )


class Evaluation(TableBase):
    """A measured score: adapter or merge, on a task's split, by a metric, with n and its source."""

    __tablename__ = "evaluation"
    __table_args__ = (
        UniqueConstraint("subject", "task", "split", "metric", "source", "protocol"),
        CheckConstraint("n IS NULL OR n > 0", name="n"),
        CheckConstraint(OUTCOMES, name="outcomes"),
        CheckConstraint(MARGINS, name="margins"),
    )

    id: Mapped[Key]
    subject: Mapped[str] = mapped_column(comment="owner/name[@commit][:subfolder], merge:<digest>, or base")
    adapter_id: Mapped[int | None] = mapped_column(ForeignKey("adapter.id", ondelete="SET NULL"), index=True)
    task: Mapped[str] = mapped_column(index=True)
    split: Mapped[str]
    metric: Mapped[str]
    value: Mapped[float]
    n: Mapped[int | None] = mapped_column(
        comment="number of samples measured; null when the source does not say"
    )
    source: Mapped[str]
    protocol: Mapped[str] = mapped_column(
        comment="how the model was asked; empty for the project's own protocol"
    )
    items_sha: Mapped[str | None] = mapped_column(
        ForeignKey("item_list.items_sha"), index=True, comment="the items of the samples, if known"
    )
    outcomes: Mapped[bytes | None] = mapped_column(
        comment="a bit an item, 1 if answered right, the first in the highest bit of the first byte"
    )
    margins: Mapped[bytes | None] = mapped_column(
        comment="log p of the best other choice minus the right one's, an item, little-endian float16"
    )


class SavedPool(TableBase):
    """A pinned selection of adapters under a name."""

    __tablename__ = "pool"
    __table_args__ = (UniqueConstraint("name"), CheckConstraint("length(digest) = 64", name="digest"))

    id: Mapped[Key]
    name: Mapped[str]
    digest: Mapped[str] = mapped_column(comment="sha256 of the canonical manifest")
    manifest: Mapped[Any]
    created_at: Mapped[datetime]


class PoolMember(TableBase):
    """One adapter of a pool, at its place."""

    __tablename__ = "pool_member"

    pool_id: Mapped[int] = mapped_column(ForeignKey("pool.id", ondelete="CASCADE"), primary_key=True)
    position: Mapped[int] = mapped_column(primary_key=True)
    adapter_id: Mapped[int] = mapped_column(ForeignKey("adapter.id"), index=True)
