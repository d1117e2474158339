"""The progress and counts of a crawl: each listed repository has one outcome, each adapter one verdict."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Protocol

from sqlalchemy.orm import Session

from catalog.database import Crawl, CrawlState, ItemOutcome, frontier, retries
from catalog.errors import (
    CursorExpiredError,
    HubAccessError,
    HubBusyError,
    HubPayloadError,
    HubUnreachableError,
    IntegrityError,
    LoradexError,
    ProcessLostError,
    StorageError,
)
from crawler.crawl.screening import refusing

_REPOSITORIES = (
    ItemOutcome.NEW,
    ItemOutcome.CHANGED,
    ItemOutcome.UNCHANGED,
    ItemOutcome.GONE,
    ItemOutcome.FAILED,
)


class Progress(Protocol):
    """The methods by which a crawl reports its progress, always called from its main thread."""

    def watch_bytes(self, received: Callable[[], int]) -> None:
        """From now on `received` returns the number of bytes received; any thread may call it."""
        ...

    def report_listing(self, repositories: int) -> None:
        """The number of repositories listed so far."""
        ...

    def working(self, done: int, total: int) -> None:
        """The number of listed repositories that are settled."""
        ...

    def note(self, text: str) -> None:
        """A note for the user: a resumed crawl, a broken listing."""
        ...


# The fields that `as_json` gives under their own names.
_UNCHANGED = ("skipped", "reasons", "resting", "errors", "quarantined", "requests", "bytes")


@dataclass(frozen=True)
class CrawlReport:
    """The numbers of one crawl.

    `failed` as a status: its listings could not be read at all. `unmeasured` counts the accepted adapters
    whose weights were not read. `resting` counts the repositories that failed in earlier crawls and whose
    retry is not due.
    """

    status: str
    outcomes: Mapping[str, int]
    adapters: int
    skipped: int
    reasons: Mapping[str, int]
    skipped_by_paper: int
    unmeasured: int
    resting: int
    errors: Mapping[str, int]
    quarantined: Mapping[str, int]
    requests: Mapping[str, int]
    bytes: int
    seconds: float

    @property
    def repositories_seen(self) -> int:
        """The number of processed repositories: those listed, and those in earlier listings."""
        return sum(self.outcomes.values())

    def as_json(self) -> dict[str, Any]:
        """The fields that `loradex crawl --json` promises."""
        return {
            "status": self.status,
            "listed": self.repositories_seen,
            **self.outcomes,
            "adapters": self.adapters,
            "accepted": self.adapters - self.skipped,
            "accepted_by_paper": self.adapters - self.skipped_by_paper,
            "unmeasured": self.unmeasured,
            **{name: getattr(self, name) for name in _UNCHANGED},
            "seconds": round(self.seconds, 3),
        }


def report(session: Session, crawl: Crawl, listing_error: str | None = None) -> CrawlReport:
    """The report of a crawl from the catalog; `listing_error` is the kind of error that stopped its
    listing."""
    counts = frontier.outcomes(session, crawl.id)
    rules = crawl.asked["rules"]
    adapters, skipped, reasons = frontier.adapter_counts(session, crawl.id, refusing(rules))
    errors = frontier.errors(session, crawl.id, ItemOutcome.FAILED)
    if listing_error is not None:
        errors[listing_error] = errors.get(listing_error, 0) + 1
    return CrawlReport(
        status=_status(crawl, sum(counts.values()), listing_error),
        outcomes={outcome.value: counts[outcome.value] for outcome in (*_REPOSITORIES, ItemOutcome.PENDING)},
        adapters=adapters,
        skipped=skipped,
        reasons=reasons,
        unmeasured=frontier.count_unmeasured(session, crawl.id, refusing(rules)),
        skipped_by_paper=frontier.adapter_counts(session, crawl.id, refusing("paper"))[1],
        resting=retries.resting(session, crawl),
        errors=errors,
        quarantined=frontier.errors(session, crawl.id, ItemOutcome.QUARANTINED),
        requests={"api": crawl.api_requests, "resolver": crawl.resolver_requests},
        bytes=crawl.bytes,
        seconds=crawl.seconds,
    )


def _status(crawl: Crawl, items: int, listing_error: str | None) -> str:
    if crawl.state is CrawlState.COMPLETE:
        return "complete"
    return "failed" if listing_error is not None and items == 0 else "partial"


_KINDS: tuple[tuple[type[LoradexError], str], ...] = (
    (HubUnreachableError, "unreachable"),
    (HubBusyError, "busy"),
    (CursorExpiredError, "cursor_expired"),
    (HubPayloadError, "payload"),
    (IntegrityError, "integrity"),
    (StorageError, "storage"),
    (ProcessLostError, "process"),
)


def error_kind(error: Exception) -> str:
    """The machine-readable kind of an error; a bug in the program is `internal_` and its class."""
    if isinstance(error, HubAccessError):
        return error.status
    return next((kind for cls, kind in _KINDS if isinstance(error, cls)), f"internal_{type(error).__name__}")


@dataclass(frozen=True)
class Preview:
    """The preview of a crawl: the listings, the number of repositories in them, and the costs of listing."""

    queries: tuple[tuple[str, ...], ...]
    counts: Mapping[str, int]
    api_requests: int

    def as_json(self) -> dict[str, Any]:
        """The fields that `loradex crawl --dry-run --json` prints."""
        return {
            "status": "dry_run",
            "queries": [list(filters) for filters in self.queries],
            "listed": sum(self.counts.values()),
            **self.counts,
            "requests": {"api": self.api_requests, "resolver": 0},
        }
