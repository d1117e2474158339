"""Frozen values that are passed to `catalog.database.store`: the results of a crawl, without SQL."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any

_HUB_ID = re.compile(r"[A-Za-z0-9_.-]{1,64}")
_NAME_PART = re.compile(r"[A-Za-z0-9_](?:[A-Za-z0-9_.-]{0,94}[A-Za-z0-9_])?")


def valid_hub_id(hub_id: object) -> bool:
    """Whether this can be the Hub's `_id` of a repository."""
    return isinstance(hub_id, str) and _HUB_ID.fullmatch(hub_id) is not None


def valid_name(name: object) -> bool:
    """Whether the Hub allows this repository name: `owner/name`, or one part for the oldest models.

    The Hub counts 96 characters for each part: of 960 real adapters 13 have longer names in all.
    """
    if not isinstance(name, str) or "--" in name or ".." in name:
        return False
    parts = name.split("/")
    return len(parts) <= 2 and all(map(_NAME_PART.fullmatch, parts)) and not name.endswith(".git")


@dataclass(frozen=True)
class RepositoryRecord:
    """A repository as the listing showed it; `hub_id` is its identity, `commit` the head of `main`.

    `gated` is None, "auto" or "manual"; dates are in UTC.
    """

    hub_id: str
    name: str
    commit: str | None
    created_at: datetime | None
    last_modified: datetime | None
    gated: str | None
    disabled: bool
    private: bool
    downloads: int | None
    downloads_all_time: int | None
    likes: int | None
    library: str | None
    pipeline_tag: str | None
    tags: tuple[str, ...]

    @property
    def owner(self) -> str:
        """The part of the name before the slash; empty for the Hub's oldest, ownerless names."""
        return self.name.rpartition("/")[0]


@dataclass(frozen=True)
class DocumentRecord:
    """A small file as fetched; `digest` (git blob id or sha256) was checked against its content."""

    digest: str
    content: bytes


@dataclass(frozen=True)
class FingerprintRecord:
    """The vectors of a weights file under one pattern of scalings, as `schema.Fingerprint` stores them."""

    scaling_pattern: str
    version: int
    spectrum: bytes
    delta: bytes
    output: bytes


@dataclass(frozen=True)
class WeightsRecord:
    """The facts about one safetensors file.

    `digest` is its sha256, or git's blob id until a file outside LFS has been read; `git_oid` is that
    id where the sha256 is known. `fingerprints` are those of the newest version, one for each pattern of
    scalings that it was met with. They and the `tensor_digest` come from its values, the rest does not.
    """

    digest: str
    size: int
    header: bytes | None = None
    tensor_digest: str | None = None
    fingerprints: tuple[FingerprintRecord, ...] = ()
    git_oid: str | None = None

    def fingerprint(self, scaling_pattern: str) -> FingerprintRecord | None:
        """The one for this pattern of scalings."""
        return next((f for f in self.fingerprints if f.scaling_pattern == scaling_pattern), None)


@dataclass(frozen=True, slots=True)
class Finding:
    """A reason against an adapter (`catalog.rules.Reason`) with a detail, empty if the reason needs none."""

    reason: str
    detail: str = ""


@dataclass(frozen=True)
class CardFacts:
    """What the catalog has of a card that a snapshot left out: `front` are the entries of its front matter
    that the other columns follow from, with the mark, and `problems` those of `card_unreadable`.
    """

    front: Mapping[str, Any]
    quality: str
    training: Mapping[str, Any]
    problems: tuple[str, ...] = ()


@dataclass(frozen=True)
class AdapterRecord:
    """One adapter folder at one commit; fields are named as the columns of `schema.Adapter`."""

    commit: str
    subfolder: str
    main: bool
    files: tuple[Mapping[str, Any], ...] = ()
    weights_name: str | None = None
    base_canonical: str | None = None
    base_raw: str | None = None
    base_kind: str | None = None
    base_evidence: str | None = None
    peft_type: str | None = None
    task_type: str | None = None
    rank: int | None = None
    alpha: float | None = None
    scaling: float | None = None
    use_rslora: bool | None = None
    targets: tuple[str, ...] = ()
    modules: int | None = None
    parameters: int | None = None
    dtypes: tuple[str, ...] = ()
    described_with: str = ""
    norm: float | None = None
    health: str | None = None
    scaling_pattern: str | None = None
    partial: tuple[str, ...] | None = None
    engine_features: tuple[str, ...] | None = None
    engine_rank: int | None = None
    engine_whole: bool | None = None
    engine_version: int | None = None
    license: str | None = None
    card_quality: str = "absent"
    card_text: str = ""
    card_front: Mapping[str, Any] = field(default_factory=dict)
    training: Mapping[str, Any] = field(default_factory=dict)
    config: DocumentRecord | None = None
    card: DocumentRecord | None = None
    weights: WeightsRecord | None = None
    reasons: tuple[Finding, ...] = ()
