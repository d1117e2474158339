"""Every error a user can meet, in one tree.

LoradexError
├── UsageError            what was asked for makes no sense; say it differently
├── ConfigError           an adapter_config.json cannot be used (kind: unreadable, lfs_pointer, too_large, …)
├── WeightsError          a safetensors file cannot be used (kind: truncated, header, too_large, …)
├── UnreadableError       foreign bytes at which a parser failed; a crawl makes it a reason
├── CatalogError          the catalog cannot be used as it is
│   ├── NoCatalogError        there is none yet
│   ├── SchemaVersionError    its schema is older or newer than this program
│   ├── CatalogBusyError      another crawl holds the writer lock
│   └── ReadOnlyCatalogError  it can be read and not written to
├── NotFoundError         a name that the catalog does not know
├── EncoderError          a text encoder that cannot be loaded
├── PoolError             a pool's manifest or files cannot be used as they are
├── StorageError          the disk refused (full, not writable)
│   └── DamagedFileError      a kept file has other bytes than it had when it was verified
├── MergeError            adapters that cannot be merged, by name and reason
├── EvaluationError       a model that cannot be asked or trained as wanted (loss not finite, unfit examples)
│   ├── DivergedError         a training of which the loss became infinite at every learning rate
│   └── MemoryLimitError      the device's memory does not suffice for the smallest piece of the work
└── HubError              the Hub, or the way to it
    ├── HubUnreachableError   no connection, timeout, deadline
    ├── HubBusyError          429 or 5xx after all retries
    ├── HubPayloadError       an answer that breaks the protocol or a size cap
    ├── CursorExpiredError    a listing that the Hub no longer continues from here
    ├── IntegrityError        bytes whose hash or size is not the promised one
    └── HubAccessError        one repository or file cannot be read (status: gated, disabled, …)

A skipped adapter is not an error: see `crawler.crawl.screening`.
"""

from __future__ import annotations


class LoradexError(Exception):
    """The message is one sentence that says what to do."""


class UsageError(LoradexError):
    """What was asked for makes no sense."""


class ConfigError(LoradexError):
    """An adapter_config.json that cannot be used; `kind` is machine-readable."""

    def __init__(self, kind: str, message: str) -> None:
        super().__init__(message)
        self.kind = kind


class WeightsError(LoradexError):
    """A safetensors file that cannot be used; `kind` is machine-readable."""

    def __init__(self, kind: str, message: str) -> None:
        super().__init__(message)
        self.kind = kind


class UnreadableError(LoradexError):
    """Foreign bytes at which a parser failed; `fault` is the class of what it raised."""

    def __init__(self, message: str, *, fault: str = "") -> None:
        super().__init__(message)
        self.fault = fault


class CatalogError(LoradexError):
    """The catalog cannot be used as it is."""


class NoCatalogError(CatalogError):
    """There is no catalog yet where one is to be read."""


class SchemaVersionError(CatalogError):
    """The catalog's schema is older or newer than this program."""


class CatalogBusyError(CatalogError):
    """Another process is writing to this catalog."""


class ReadOnlyCatalogError(CatalogError):
    """The catalog can be read and not written to."""


class NotFoundError(LoradexError):
    """A name that the catalog does not know."""


class EncoderError(LoradexError):
    """A text encoder that is not installed, not reachable or damaged."""


class PoolError(LoradexError):
    """A pool's manifest or files cannot be used as they are."""


class StorageError(LoradexError):
    """The disk refused: full, not writable, not there."""


class DamagedFileError(StorageError):
    """A kept file whose bytes are no longer those of its name."""


class HubError(LoradexError):
    """The Hub, or the way to it; `url` carries no query and no token."""

    def __init__(self, message: str, *, url: str = "") -> None:
        super().__init__(message)
        self.url = url


class HubUnreachableError(HubError):
    """No connection, a timeout, or a deadline passed."""


class HubBusyError(HubError):
    """429 or 5xx after all retries; `status` is the HTTP status, `retry_after` the seconds asked for."""

    def __init__(
        self, message: str, *, url: str = "", status: int = 0, retry_after: float | None = None
    ) -> None:
        super().__init__(message, url=url)
        self.status = status
        self.retry_after = retry_after


class HubPayloadError(HubError):
    """An answer that breaks the protocol or a size cap."""


class CursorExpiredError(HubError):
    """A listing page whose cursor the Hub no longer accepts; list again from the watermark."""


class IntegrityError(HubError):
    """Bytes whose hash or size is not the one the Hub promised."""


class HubAccessError(HubError):
    """One repository or file cannot be read; `status` says why.

    `status` is one of gated, disabled, private_or_missing, revision_gone, entry_gone, refused, unauthorized.
    """

    def __init__(self, message: str, *, status: str, url: str = "") -> None:
        super().__init__(message, url=url)
        self.status = status


class MergeError(LoradexError):
    """Adapters that cannot be merged as asked; the sentence names the adapter and what it holds."""


class EvaluationError(LoradexError):
    """A model that cannot be asked, or trained, as wanted; the sentence says what to change."""


class DivergedError(EvaluationError):
    """A training of which the loss became infinite at every learning rate."""


class MemoryLimitError(EvaluationError):
    """A piece of work that cannot be made smaller and does not fit into the device's memory."""
