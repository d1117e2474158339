"""Results that are one document: what a catalog contains, what a call wrote."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class CatalogStatus:
    """What a catalog contains, judged by one set of rules.

    `reasons` counts the current adapters by reason. `measured` counts those with a fingerprint, `partial`
    those of them whose update is more than scaling * B A, `waiting` those whose weights a crawl would still
    read. `retries` are the repositories that could not be read, `crawls` the newest crawls.
    """

    repositories: int
    gone: int
    adapters: int
    accepted: int
    skipped: int
    reasons: Mapping[str, int]
    fingerprints: int
    measured: int
    partial: int
    waiting: int
    embeddings: int
    retries: Sequence[Mapping[str, Any]]
    crawls: Sequence[Mapping[str, Any]]


@dataclass(frozen=True)
class FilterField:
    """One field that a filter accepts: its name, the kind of its values, its other names, and a sentence."""

    field: str
    kind: str
    aliases: Sequence[str]
    help: str
