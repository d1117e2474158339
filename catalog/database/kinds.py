"""The states and kinds that rows name, stored by value."""

from __future__ import annotations

import enum


class SpellingKind(enum.StrEnum):
    """How a base model's name in the wild relates to the canonical one."""

    CANONICAL = "canonical"
    RENAMED = "renamed"
    MIRROR = "mirror"
    QUANTISED = "quantised"
    CASE = "case"
    LOCAL_PATH = "local_path"


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
