"""Data sets of the Hub: their commit and license by the Hub's client, their rows by `datasets`.

`datasets` runs no code of a repository; it reads Parquet, JSON, CSV and text files.
"""

from __future__ import annotations

import contextlib
import io
import logging
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from catalog.errors import LoradexError, UsageError
from catalog.extras import require_extra


@dataclass(frozen=True)
class SourceFacts:
    """What is recorded of a source: where it is, pinned, and its license; names of labels by column."""

    source: str
    license: str = "unknown"
    labels: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    instruction: str = ""
    max_new_tokens: int | None = None


def dataset_splits(
    name: str, config: str | None = None, revision: str | None = None
) -> tuple[dict[str, Sequence[Mapping[str, Any]]], SourceFacts]:
    """The rows of a data set by split, at the commit that a revision names now.

    Raises UsageError for a data set that cannot be read, with the reason, and the errors of the Hub.
    """
    require_extra("harness", "A data set of the Hub")
    import datasets

    from crawler.hub import Hub, HubSettings

    with Hub(HubSettings.from_environment()) as hub:
        row = hub.dataset(name, revision or "main")
    # Old names have no owner (super_glue), and the library takes none of them; the Hub says where they are.
    name, commit = str(row["id"]), str(row["sha"])
    with quiet_datasets():
        try:
            loaded = datasets.load_dataset(name, config, revision=commit)
        except Exception as error:
            raise UsageError(
                f"The data set {name} cannot be read: {first_line(error)}; check `config` and its files."
            ) from error
    splits = {str(split): rows for split, rows in loaded.items()}
    features = next(iter(splits.values())).features
    labels = {column: tuple(kind.names) for column, kind in features.items() if hasattr(kind, "names")}
    place = f"https://huggingface.co/datasets/{name} at {commit}" + (f" ({config})" if config else "")
    return splits, SourceFacts(place, _card_license(row), labels)


@contextlib.contextmanager
def quiet_datasets() -> Iterator[None]:
    """A block in which `datasets` and the Hub's library print nothing."""
    import datasets

    loggers = [logging.getLogger(name) for name in ("datasets", "huggingface_hub")]
    levels = [logger.level for logger in loggers]
    shown = not datasets.are_progress_bars_disabled()
    datasets.disable_progress_bars()
    for logger in loggers:
        logger.setLevel(logging.CRITICAL)
    try:
        # Some bars cannot be turned off.
        with contextlib.redirect_stderr(io.StringIO()):
            yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)
        if shown:
            datasets.enable_progress_bars()


def first_line(error: BaseException) -> str:
    """The first line of an error's message, or its class without one."""
    if isinstance(error, LoradexError):
        return str(error).rstrip(".")
    return next(iter(str(error).strip().splitlines()), type(error).__name__).rstrip(".:")


def _card_license(row: Mapping[str, object]) -> str:
    card = row.get("cardData")
    value = card.get("license") if isinstance(card, Mapping) else None
    names = value if isinstance(value, list) else [value]
    return ", ".join(str(name)[:80] for name in names if name) or "unknown"
