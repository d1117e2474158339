"""Results that are one document: what a catalog contains, what a call wrote."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from catalog.files import Blob, Damage


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


@dataclass(frozen=True)
class Comparison:
    """How alike two adapters are: cosines of their products scaling * B A.

    `delta` compares the whole updates, `output` where they write to. `exact` says that both files were
    compared; else the cosines are of sketches, off by about 0.03, and `norm_ratio` (left over right) is None.
    `left_partial` and `right_partial` are the reasons for which an update is more than these products.
    """

    left: str
    right: str
    delta: float
    output: float
    norm_ratio: float | None
    exact: bool
    same_tensors: bool
    left_partial: Sequence[str]
    right_partial: Sequence[str]


@dataclass(frozen=True)
class MapReport:
    """A map that was drawn: its path, its number of adapters, how many of them the rules refuse, and of how
    many B A is only a part.
    """

    path: Path
    adapters: int
    skipped: int
    partial: int


@dataclass(frozen=True)
class WeightsCheck:
    """The kept weights files whose bytes were read and compared with their digests.

    `damaged` have other bytes; `partial` are the parts of downloads that have arrived. `files` and `bytes`
    are the totals of what is kept.
    """

    ok: bool
    damaged: Sequence[Damage]
    partial: Sequence[Blob]
    files: int
    bytes: int


@dataclass(frozen=True)
class WeightsRepair:
    """The outcome for damaged weights files: `repaired` were fetched again, `left` (with why) could not be.

    `separated` are the digests of files that an export shared as a hard link and no longer does.
    """

    ok: bool
    repaired: Sequence[Damage]
    left: Sequence[Damage]
    separated: Sequence[str]
    files: int
    bytes: int


@dataclass(frozen=True)
class GarbageReport:
    """The kept files that no adapter and no pool names, and whether they were deleted."""

    files: Sequence[Blob]
    partial: Sequence[Blob]
    bytes: int
    deleted: bool


@dataclass(frozen=True)
class AddedSpelling:
    """A further name of a base model; `advice` is a sentence where the base model was not known before."""

    canonical: str
    spelling: str
    kind: str
    advice: str


@dataclass(frozen=True)
class SchemaUpgrade:
    """The revision of a catalog's schema before an upgrade (None where there was none) and after it."""

    before: str | None
    after: str


@dataclass(frozen=True)
class ScoreImport:
    """The scores of a file: how many it has, how many of them were new, changed and known.

    `unknown_adapters` counts the subjects that the catalog does not contain; a later crawl may find them.
    """

    rows: int
    new: int
    changed: int
    known: int
    unknown_adapters: int
