"""All exceptions of the program, in one tree.

A skipped adapter is not an error: see `crawler.crawl.screening`.
"""

from __future__ import annotations

from typing import Any


class LoradexError(Exception):
    """The message is one sentence that says what to do."""

    def __reduce__(self) -> tuple[Any, ...]:
        """An error that another process raised keeps its class and attributes."""
        return _restore, (type(self), self.args, self.__dict__)


def _restore(kind: type[LoradexError], args: tuple[Any, ...], attributes: dict[str, Any]) -> LoradexError:
    error = kind.__new__(kind, *args)
    error.__dict__.update(attributes)
    return error


class UsageError(LoradexError):
    """The arguments are invalid or contradict each other."""


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
    """The catalog does not exist yet."""


class SchemaVersionError(CatalogError):
    """The catalog's schema is older or newer than this program."""


class CatalogBusyError(CatalogError):
    """Another process is writing to this catalog."""


class ReadOnlyCatalogError(CatalogError):
    """The catalog can be read but not written."""


class NotFoundError(LoradexError):
    """A name that is not in the catalog."""


class EncoderError(LoradexError):
    """A text encoder that is not installed, not reachable or damaged."""


class PoolError(LoradexError):
    """A pool's manifest or files cannot be used as they are."""


class StorageError(LoradexError):
    """A file cannot be stored: the disk is full, not writable or missing."""


class DamagedFileError(StorageError):
    """A kept file whose bytes no longer match its name."""


class ProcessLostError(LoradexError):
    """A process that computed for this one died, or was stopped before it had an answer."""


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
    """Bytes whose hash or size differs from the Hub's."""


class HubAccessError(HubError):
    """One repository or file cannot be read; `status` is the cause.

    `status` is one of gated, disabled, private_or_missing, revision_gone, entry_gone, refused, unauthorized.
    """

    def __init__(self, message: str, *, status: str, url: str = "") -> None:
        super().__init__(message, url=url)
        self.status = status


class MergeError(LoradexError):
    """Adapters that cannot be merged; the message names the adapter and the cause."""


class EvaluationError(LoradexError):
    """A model that cannot be evaluated or trained; the message says what to change."""


class DivergedError(EvaluationError):
    """A training whose loss became infinite at every learning rate."""


class MemoryLimitError(EvaluationError):
    """The smallest part of the work does not fit into the device's memory."""
