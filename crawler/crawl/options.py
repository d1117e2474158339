"""The options of a crawl → the listing queries for them."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from typing import Any

from catalog.adapters import BaseTable, initial_table, valid_name
from catalog.errors import UsageError
from catalog.fingerprints import FINGERPRINT_VERSION, MOST_PROCESSES

DEFAULT_BASE = "meta-llama/Llama-3.1-8B-Instruct"
WEIGHTS = ("keep", "stream", "headers")
# All linear layers of an 8B model at rank 256 are 671 million numbers: 2.7 GB of float32.
MAX_WEIGHTS = 5 * 10**9

# Uploads of these tools often carry no `peft` tag; rows without an adapter file are skipped.
ANY_BASE_TAGS = ("peft", "lora", "unsloth", "trl", "axolotl", "llama-factory")
# An adapter whose card names another library is filed by the Hub as a finetune of its base.
RELATIONS = ("adapter", "finetune")


def check_base_name(name: str) -> None:
    """Raises UsageError unless this is a valid name of a model on the Hub."""
    if not valid_name(name):
        canonical = initial_table().known(name)
        right = canonical or f"owner/name, as {DEFAULT_BASE}"
        raise UsageError(f"{name[:80]!r} is not a base model; write {right}.")


@dataclass(frozen=True)
class CrawlOptions:
    """The options of a crawl; `rules` decide whose weights are kept, and none above `max_weights` are
    read. Fingerprints are made in `processes` of their own where these are several.
    """

    bases: tuple[str, ...] = ()
    any_base: bool = False
    limit: int | None = None
    weights: str = "stream"
    workers: int = 4
    full: bool = False
    rules: str = "ours"
    max_weights: int = MAX_WEIGHTS
    processes: int = 1

    def __post_init__(self) -> None:
        if self.any_base and self.bases:
            raise UsageError("`any_base` requests every adapter; leave out `base`, or `any_base`.")
        for base in self.bases:
            check_base_name(base)
        if self.limit is not None and self.limit < 1:
            raise UsageError("`limit` must be at least 1.")
        if not 1 <= self.workers <= 32:
            raise UsageError("`workers` must be between 1 and 32.")
        if not 1 <= self.processes <= MOST_PROCESSES:
            raise UsageError(f"`processes` must be between 1 and {MOST_PROCESSES}.")
        if self.max_weights < 1:
            raise UsageError("`max_weights` must be at least one byte.")
        if self.weights not in WEIGHTS:
            raise UsageError(f"`weights` must be one of {', '.join(WEIGHTS)}.")


@dataclass(frozen=True)
class Query:
    """One listing: all `filters` hold; `adapters_only` if the Hub guarantees an adapter in every row."""

    filters: tuple[str, ...]
    adapters_only: bool


def bases_of(options: CrawlOptions) -> tuple[str, ...]:
    """The base models that are requested by name; empty if every adapter is."""
    return () if options.any_base else options.bases or (DEFAULT_BASE,)


def explain_no_listing(base: str, bases: BaseTable, base_names: Collection[str]) -> str:
    """A note on a base model that no repository names; `base_names` are known in addition to the table."""
    canonical = bases.known(base)
    if canonical is not None:
        count = len(bases.spellings(base))
        return f"No repository lists an adapter of {canonical}, under any of its {count} names."
    advice = (
        ""
        if base in base_names
        else f", and no base model is known as {base}; {bases.nearest(base, base_names)}"
    )
    return f"No repository lists an adapter of {base}{advice}."


def queries(options: CrawlOptions, bases: BaseTable) -> tuple[Query, ...]:
    """The listings whose union by `_id` is what the options request, in a fixed order."""
    if options.any_base:
        return tuple(Query((tag,), tag == "peft") for tag in ANY_BASE_TAGS)
    unique: dict[Query, None] = {}
    for base in bases_of(options):
        for relation in RELATIONS:
            for spelling in bases.spellings(base):
                unique[Query((f"base_model:{relation}:{spelling}",), relation == "adapter")] = None
    return tuple(unique)


def listing(endpoint: str, planned: tuple[Query, ...]) -> dict[str, Any]:
    """The Hub and the selection of rows, as plain JSON."""
    return {"hub": endpoint, "queries": [[list(query.filters), query.adapters_only] for query in planned]}


def question_document(
    options: CrawlOptions, endpoint: str, planned: tuple[Query, ...], described_with: str
) -> dict[str, Any]:
    """The query as plain JSON, which is stored with a crawl and determines the digest of its scope.

    `workers`, `processes` and `full` change how it is processed, not its content. The default of
    `max_weights` is left out: older crawls without this option had the same query.
    """
    cap = {} if options.max_weights == MAX_WEIGHTS else {"max_weights": options.max_weights}
    return (
        listing(endpoint, planned)
        | cap
        | {
            "limit": options.limit,
            "weights": options.weights,
            "rules": options.rules,
            "described_with": described_with,
            "fingerprint_version": FINGERPRINT_VERSION,
        }
    )
