"""`loradex.open`: a catalog of adapters, and everything that can be done with it."""

from __future__ import annotations

import threading
from collections.abc import Collection, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING

from catalog.adapters import AdapterReference, adapter_name
from catalog.database import disposing, open_catalog, reading, reading_if_any, store
from catalog.errors import NotFoundError, UsageError
from catalog.files import BlobStore
from catalog.query import FIELDS, parse
from catalog.rules import UNREADABLE, Reason
from catalog.search import browse, likeness
from catalog.settings import Settings
from crawler.crawl import (
    DEFAULT_BASE,
    MAX_WEIGHTS,
    Crawler,
    CrawlOptions,
    CrawlReport,
    Preview,
    preview_crawl,
    refusing,
)
from crawler.hub import Hub, HubSettings
from loradex.progress import ProgressOption, Step, reporting
from loradex.results import CatalogStatus, FilterField
from loradex.rows import AdapterDetails, AdapterRow, Rows

if TYPE_CHECKING:
    from catalog.query import Query

VERDICTS = ("accepted", "skipped", "any")
SORTS = tuple(browse.SORTS)


def open(data: str | Path = "data", *, url: str | None = None) -> Catalog:  # noqa: A001
    """The catalog of a data folder, as a context manager; nothing is made until something is written.

    Args:
        data: The folder of the catalog's files: kept weights, indexes, pools.
        url: The database, `sqlite:///FILE` or `postgresql://USER@HOST/NAME`; `catalog.db` in the data folder
            by default.

    Raises:
        UsageError: The path is not Unicode, which no URL can contain.

    Examples:
        >>> with loradex.open("data") as catalog:
        ...     catalog.status().adapters
        12
    """
    return Catalog(Settings.make(data=Path(data), catalog_url=url))


class Catalog:
    """A catalog of adapters. Each call opens the database for itself and closes it; use `loradex.open`.

    Where a call reads, it raises NoCatalogError if there is no catalog yet, and SchemaVersionError if its
    schema is not the one of this version. Parameters that several calls share:

    * `where`: a filter such as `"rank:8..64 license:mit,apache-2.0 -owner:someone"`; `fields()` lists the
      fields.
    * `rules`: the set of rules that decides what is skipped: "ours", "paper" or "licensed".
    * `verdict`: "accepted" for the adapters that these rules accept, "skipped" for the others, "any" for
      both.
    """

    def __init__(self, settings: Settings) -> None:
        self.settings = settings
        self._resources = ExitStack()

    def __enter__(self) -> Catalog:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def __repr__(self) -> str:
        return f"<Catalog of {self.settings.data}>"

    def close(self) -> None:
        """Removes the temporary files that calls made; the catalog can be used again."""
        self._resources.close()

    def crawl(
        self,
        *,
        base: str | Sequence[str] = (),
        any_base: bool = False,
        limit: int | None = None,
        weights: str = "stream",
        rules: str = "ours",
        max_weights: int = MAX_WEIGHTS,
        workers: int = 4,
        full: bool = False,
        progress: ProgressOption = False,
    ) -> CrawlReport:
        """Lists the Hub for adapters of a base model and brings the catalog up to date.

        An interrupted crawl continues with the next call of the same arguments; a repository that did not
        change costs no request beyond the listing. The Hub is the one of HF_ENDPOINT.

        Args:
            base: The base model, or several, under any of their names; meta-llama/Llama-3.1-8B-Instruct by
                default.
            any_base: Every adapter on the Hub, whatever its base model.
            limit: The largest number of repositories.
            weights: "keep" stores verified weights of accepted adapters in the data folder, "stream" reads
                and deletes them, "headers" does not download any.
            rules: The rules that decide whose weights are kept.
            max_weights: The largest weights file to read, in bytes.
            workers: The number of requests at the same time, 1 to 32.
            full: Whether to list everything again, which also shows what vanished.
            progress: See `loradex.progress`.

        Returns:
            The counts of the crawl. Its `status` is "complete", "partial" (not everything could be read) or
            "failed" (nothing could be listed).

        Raises:
            UsageError: An argument is not valid.
            CatalogBusyError: Another process writes to the catalog.
        """
        options = _crawl_options(base, any_base, limit, weights, rules, max_weights, workers, full)
        stop = threading.Event()
        with (
            _open_hub(options, stop) as hub,
            reporting(progress) as report,
            disposing(open_catalog(self.settings, create=True)) as engine,
        ):
            step = _announced(Step(report, "reading"), hub, options)
            return Crawler(engine, hub, self._blobs, options, step, stop).crawl()

    def preview(
        self,
        *,
        base: str | Sequence[str] = (),
        any_base: bool = False,
        limit: int | None = None,
        weights: str = "stream",
        rules: str = "ours",
        max_weights: int = MAX_WEIGHTS,
        workers: int = 4,
        full: bool = False,
        progress: ProgressOption = False,
    ) -> Preview:
        """What `crawl` with the same arguments would read; asks the Hub for listings only, writes nothing."""
        options = _crawl_options(base, any_base, limit, weights, rules, max_weights, workers, full)
        with (
            _open_hub(options, threading.Event()) as hub,
            reporting(progress) as report,
            reading_if_any(self.settings) as session,
        ):
            step = _announced(Step(report, "reading"), hub, options)
            return preview_crawl(session, hub, options, step)

    @property
    def _blobs(self) -> BlobStore:
        return BlobStore(self.settings.blobs)

    def status(self, *, rules: str = "ours") -> CatalogStatus:
        """What the catalog contains, and its newest crawls.

        Examples:
            >>> status = catalog.status()
            >>> status.adapters == status.accepted + status.skipped
            True
        """
        with reading(self.settings) as session:
            totals = browse.totals(session, refusing(rules), [reason.value for reason in UNREADABLE])
        return CatalogStatus(**totals)

    def adapters(
        self,
        where: str = "",
        *,
        verdict: str | None = None,
        reason: str | None = None,
        base: str | None = None,
        rules: str = "ours",
        sort: str = "adapter",
        limit: int | None = None,
    ) -> Rows[AdapterRow]:
        """The adapters at their current commits, of repositories that still exist.

        Args:
            where: Only those that this filter accepts.
            verdict: Only "accepted" or "skipped" ones.
            reason: Only those with this reason, such as "zero_update".
            base: Only those of this base model, under any of its names.
            rules: The rules of the verdict.
            sort: "adapter" (by name), or the largest first by "downloads", "likes", "modified", "created",
                "rank", "parameters" or "norm".
            limit: The largest number of rows.

        Raises:
            UsageError: The filter, or another argument, is not valid.
            NotFoundError: The catalog does not know the base model.

        Examples:
            >>> rows = catalog.adapters("rank:..64", sort="downloads", limit=2)
            >>> [row.rank <= 64 for row in rows]
            [True, True]
        """
        rows = self.iterate_adapters(
            where, verdict=verdict, reason=reason, base=base, rules=rules, sort=sort, limit=limit
        )
        return Rows(rows, AdapterRow)

    def iterate_adapters(
        self,
        where: str = "",
        *,
        verdict: str | None = None,
        reason: str | None = None,
        base: str | None = None,
        rules: str = "ours",
        sort: str = "adapter",
        limit: int | None = None,
    ) -> Iterator[AdapterRow]:
        """The rows of `adapters` one by one, in bounded memory; errors are raised with the first row."""
        check_choice("verdict", verdict, (None, *VERDICTS))
        check_choice("reason", reason, (None, *Reason))
        query, refusals = read_filter(where), refusing(rules)
        with reading(self.settings) as session:
            canonical = None if base is None else store.find_base(session, base)
            if query is not None:
                browse.refuse_unknown_bases(session, query)
            listing = browse.Listing(verdict, reason, canonical, query, sort, limit)
            for row in browse.adapters(session, listing, refusals):
                yield AdapterRow(**row)

    def fields(self) -> Rows[FilterField]:
        """The fields that a filter (`where`) accepts; reads no catalog."""
        fields = FIELDS.values()
        return Rows(
            (FilterField(row.name, row.kind_in_words, list(row.aliases), row.help) for row in fields),
            FilterField,
        )

    def details(self, adapter: str, *, rules: str = "ours") -> AdapterDetails:
        """Everything known of one adapter.

        Args:
            adapter: "owner/name", "owner/name@commit" or "owner/name:folder"; old names of a renamed
                repository are understood.
            rules: The rules of its verdict.

        Raises:
            NotFoundError: The catalog does not contain it.
            UsageError: The text is not a reference, or its commit is ambiguous.
        """
        reference = AdapterReference.parse(adapter)
        with reading(self.settings) as session:
            row = browse.find_adapter(session, reference)
            return AdapterDetails(**browse.details(session, row, refusing(rules)))

    def draw_adapter(self, adapter: str, path: str | Path) -> Path:
        """Draws the norms of an adapter by layer and its singular values.

        Args:
            adapter: A reference, as for `details`.
            path: The picture to write, .svg or .png.

        Returns:
            The path of the picture.

        Raises:
            NotFoundError: The catalog does not contain the adapter, or its weights were never read.
            UsageError: The extra "plot" is not installed, or the path has another suffix.
        """
        from catalog.pictures import adapter_picture

        with reading(self.settings) as session:
            row = browse.find_adapter(session, AdapterReference.parse(adapter))
            name = adapter_name(row.repository.name, row.subfolder)
            spectrum = likeness.spectrum(session, row)
        adapter_picture(name, spectrum.modules, spectrum.spectrum, spectrum.scalings, Path(path))
        return Path(path)

    def __getitem__(self, adapter: str) -> AdapterDetails:
        """`details` by the usual rules.

        Examples:
            >>> catalog["zoo/banking77"].rank
            16
        """
        return self.details(adapter)

    def __contains__(self, adapter: object) -> bool:
        """Whether the catalog contains an adapter of this reference."""
        try:
            return isinstance(adapter, str) and bool(self.details(adapter))
        except NotFoundError:
            return False


def _crawl_options(
    base: str | Sequence[str],
    any_base: bool,
    limit: int | None,
    weights: str,
    rules: str,
    max_weights: int,
    workers: int,
    full: bool,
) -> CrawlOptions:
    bases = (base,) if isinstance(base, str) else tuple(base)
    refusing(rules)
    return CrawlOptions(bases, any_base, limit, weights, workers, full, rules, max_weights)


def _open_hub(options: CrawlOptions, stop: threading.Event) -> Hub:
    return Hub(replace(HubSettings.from_environment(), connections=options.workers), stop=stop)


def _announced(step: Step, hub: Hub, options: CrawlOptions) -> Step:
    """The step, after a note on what is crawled."""
    bases = "every base model" if options.any_base else ", ".join(options.bases or (DEFAULT_BASE,))
    step.note(f"Crawling {hub.settings.endpoint} for adapters of {bases}")
    return step


def read_filter(where: str) -> Query | None:
    """The filter in a text, None for an empty one; raises UsageError with the place of the mistake."""
    query = parse(where, {"reason": [reason.value for reason in Reason]})
    return query if where else None


def check_choice(parameter: str, value: str | None, choices: Collection[str | None]) -> None:
    """Raises UsageError unless the value is one of the choices."""
    if value not in choices:
        names = ", ".join(repr(choice) for choice in choices if choice is not None)
        raise UsageError(f"{parameter}={value!r} is not valid; use one of {names}.")
