"""`loradex.open`: a catalog of adapters, and everything that can be done with it."""

from __future__ import annotations

import datetime
import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import nullcontext
from dataclasses import asdict
from dataclasses import replace as replace_fields
from functools import partial
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, cast, get_args

from catalog import database
from catalog.adapters import (
    USES,
    AdapterReference,
    BaseSpelling,
    BaseTable,
    EngineCount,
    SpellingKind,
    adapter_name,
    count_verdicts,
    initial_spellings,
    load_engines,
    table_with,
)
from catalog.database import CatalogInfo as CatalogInfo
from catalog.database import (
    Reread,
    annotation_store,
    disposing,
    kept,
    make_engine,
    open_catalog,
    parse_url,
    pool_store,
    reading,
    reading_if_any,
    reread,
    score_store,
    store,
    writer_lock,
    writing,
    writing_alone,
)
from catalog.errors import EncoderError, NotFoundError, UsageError
from catalog.files import BlobStore, Damage, at_work
from catalog.fingerprints import LEVELS, duplicates, families
from catalog.index import DEFAULT_MODEL, KINDS
from catalog.pools import read_manifest
from catalog.query import FIELDS, parse
from catalog.rules import UNREADABLE, Reason
from catalog.scores import read_scores, write_scores
from catalog.search import (
    SPACES,
    CatalogChange,
    Fingerprints,
    Neighbour,
    NeighbourSearch,
    SearchWeights,
    browse,
    changes,
    hidden_notes,
    indexes,
    likeness,
    listing,
    matching_ids,
    matrix,
    open_texts,
    search,
    table,
)
from catalog.settings import Settings
from crawler.crawl import (
    MAX_WEIGHTS,
    CrawlOptions,
    check_base_name,
    refusing,
)
from loradex.annotations import AnnotationImport, read_annotations, write_annotations
from loradex.arguments import check_arguments, check_choice, check_count
from loradex.bulk import choose_columns, write_parquet
from loradex.comparison import (
    COLOURS,
    compare_subjects,
    exactness_notes,
    family_rows,
    find_subject,
    group_rows,
    identify_file,
    subject_notes,
)
from loradex.encoding import embed_catalog
from loradex.members import find_pool
from loradex.news import parse_since, write_feed
from loradex.pool import Pool, save_pools
from loradex.progress import ProgressCallback, ProgressEvent, ProgressOption, ProgressStep, reporting
from loradex.results import (
    AddedSpelling,
    CatalogStatus,
    Comparison,
    FilterField,
    GarbageReport,
    MapReport,
    SchemaUpgrade,
    ScoreImport,
    WeightsCheck,
    WeightsRepair,
)
from loradex.rows import (
    AdapterDetails,
    AdapterNotes,
    AdapterRow,
    FamilyRow,
    GroupRow,
    IdentifiedRow,
    IndexRow,
    ItemRow,
    LeaderboardRow,
    OutcomeRow,
    PairedTestRow,
    PoolRow,
    Rows,
    ScoreRow,
    ScoreSourceRow,
    SearchRow,
)

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from catalog.index import IndexState
    from catalog.query import Query
    from catalog.search import Cache
    from catalog.snapshots import ImportCounts
    from crawler.crawl import CrawlReport, Preview, WorkReport
    from crawler.hub import Hub, HubSettings
    from loradex.snapshots import SnapshotExport
    from merging.evaluation import TooLong
    from merging.model import BaseDtype, Task

VERDICTS = ("accepted", "skipped", "any")
SORTS = tuple(browse.SORTS)
# How a further name of a base model may relate to the canonical one.
SPELLING_KINDS = tuple(kind for kind in get_args(SpellingKind) if kind != "canonical")
# With more points on a map their names would cover each other.
MOST_NAMES = 60
_MEGABYTE = 10**6


@check_arguments
def open(  # noqa: A001
    data: str | Path = "data", *, url: str | None = None, engines: str | Path | None = None
) -> Catalog:
    """The catalog of a data folder, as a context manager; nothing is made until something is written.

    Args:
        data: The folder of the catalog's files: kept weights, indexes, pools.
        url: The database, `sqlite:///FILE` or `postgresql://USER@HOST/NAME`; `catalog.db` in the data folder
            by default.
        engines: A file of rules for engines (docs/reference/engines.md) in place of loradex's own; by default
            engines.toml in the data folder, if that exists.

    Raises:
        UsageError: The path is not Unicode, which no URL can contain.

    Examples:
        >>> with loradex.open("data") as catalog:
        ...     catalog.status().adapters
        43
    """
    rules_file = None if engines is None else Path(engines)
    return Catalog(Settings.make(data=Path(data), catalog_url=url, rules_file=rules_file))


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

    def __enter__(self) -> Catalog:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Nothing is open between calls."""

    def __repr__(self) -> str:
        return f"<Catalog of {self.settings.data}>"

    @check_arguments
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
        processes: int = 1,
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
            processes: The number of processes that compute fingerprints; with 1 this process does. They
                import the main module: a script calls this below `if __name__ == "__main__":`.
            full: Whether to list everything again, which also shows what vanished.
            progress: See `loradex.progress`.

        Returns:
            The counts of the crawl. Its `status` is "complete", "partial" (not everything could be read) or
            "failed" (nothing could be listed).

        Raises:
            UsageError: An argument is not valid.
            CatalogBusyError: Another process writes to the catalog.
        """
        from crawler.crawl import Crawler, share_budget

        options = CrawlOptions(
            _bases(base), any_base, limit, weights, workers, full, rules, max_weights, processes
        )
        stop = threading.Event()
        with (
            _open_hub(options, stop) as hub,
            reporting(progress) as report,
            disposing(open_catalog(self.settings, create=True)) as engine,
        ):
            step = ProgressStep(report, "reading")
            with share_budget(hub, engine):
                return Crawler(engine, hub, self._blobs, options, step, stop).crawl()

    @check_arguments
    def work_for_crawl(
        self,
        *,
        workers: int = 4,
        processes: int = 1,
        ray: int | None = None,
        address: str | None = None,
        progress: ProgressOption = False,
    ) -> WorkReport:
        """Reads weights for the crawl that another process carries out, on this machine or another.

        The catalog is in PostgreSQL, and the crawl streams weights. Each file is leased to one worker at a
        time; one that dies loses its leases after a minute, and others read the files. The rows are those of
        a crawl by one process.

        Args:
            workers: The number of downloads at the same time, 1 to 32.
            processes: The number of processes that compute fingerprints; see `crawl`.
            ray: Start so many such workers by Ray (extra `ray`), each with a core for each of its processes.
            address: The Ray cluster, whose machines have loradex and reach the database, the Hub and the data
                folder's path; one of this machine by default.
            progress: See `loradex.progress`.

        Returns:
            How many files were read, once the crawl is over.

        Raises:
            UsageError: The catalog is not in PostgreSQL, or the crawl keeps weights or is of another Hub; no
                Ray cluster is found.
            NotFoundError: No crawl is at work.
            ProcessLostError: All workers that Ray started died.
        """
        from crawler.crawl import WorkerSettings, work_by_ray, work_for_crawl

        if ray is None and address is not None:
            raise UsageError("`address` is that of a Ray cluster; say by `ray` how many workers it starts.")
        if ray is not None and ray < 1:
            raise UsageError("`ray` must be at least 1.")
        hub = _hub_settings(CrawlOptions(workers=workers, processes=processes))
        threads = workers + (processes if processes > 1 else 0)
        worker = WorkerSettings(self.settings, hub, threads, processes)
        with reporting(progress) as report:
            by = "" if ray is None else f" by {ray} workers"
            note = f"Reading weights of {hub.endpoint}{by}"
            begin = partial(ProgressStep(report, "reading").note, note)
            return work_for_crawl(worker, begin) if ray is None else work_by_ray(worker, ray, address, begin)

    @check_arguments
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
        processes: int = 1,
        full: bool = False,
        progress: ProgressOption = False,
    ) -> Preview:
        """What `crawl` with the same arguments would read; asks the Hub for listings only, writes nothing."""
        from crawler.crawl import preview_crawl

        options = CrawlOptions(
            _bases(base), any_base, limit, weights, workers, full, rules, max_weights, processes
        )
        with (
            _open_hub(options, threading.Event()) as hub,
            reporting(progress) as report,
            reading_if_any(self.settings) as session,
        ):
            return preview_crawl(session, hub, options, ProgressStep(report, "reading"))

    def _read_filter(self, where: str) -> Query | None:
        """The filter in a text, None for an empty one; raises UsageError with the place of the mistake."""
        choices = {"reason": [reason.value for reason in Reason]}
        query = parse(where, choices, load_engines(self.settings.engines))
        return query if where else None

    @property
    def _blobs(self) -> BlobStore:
        return BlobStore(self.settings.blobs)

    @check_arguments
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

    @check_arguments
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
        return Rows(list(rows), AdapterRow, self.hidden_notes(where))

    @check_arguments
    def hidden_notes(self, where: str = "") -> list[str]:
        """A sentence on the adapters that a list with this filter leaves out because they are hidden; none if
        there are none. See `hide`.
        """
        with reading(self.settings) as session:
            return hidden_notes(session, self._read_filter(where))

    @check_arguments
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
        check_count("limit", limit)
        query, refusals = self._read_filter(where), refusing(rules)
        with reading(self.settings) as session:
            canonical = None if base is None else store.find_base(session, base)
            if query is not None:
                browse.refuse_unknown_bases(session, query)
            listing = browse.Listing(verdict, reason, canonical, query, sort, limit)
            yield from browse.adapters(session, listing, refusals)

    @check_arguments
    def iterate_table(
        self,
        where: str = "",
        *,
        columns: str | Sequence[str] = "all",
        verdict: str | None = None,
        reason: str | None = None,
        base: str | None = None,
        rules: str = "ours",
        sort: str = "adapter",
        limit: int | None = None,
    ) -> Iterator[dict[str, Any]]:
        """The bulk table row by row, in bounded memory: every field of an adapter that is a scalar or a list.

        Args:
            where: Only adapters that this filter accepts.
            columns: "all", or the names of columns, in the order that the rows are to have.
            verdict: As for `adapters`.
            reason: As for `adapters`.
            base: As for `adapters`.
            rules: The rules of the verdict.
            sort: As for `adapters`.
            limit: The largest number of rows.

        Raises:
            UsageError: An argument is not valid; with the first row.

        Example:
            >>> next(catalog.iterate_table("rank:4", columns="base,rank"))
            {'base': 'HuggingFaceTB/SmolLM2-135M-Instruct', 'rank': 4}
        """
        check_choice("verdict", verdict, (None, *VERDICTS))
        check_choice("reason", reason, (None, *Reason))
        check_count("limit", limit)
        names, query = choose_columns(columns), self._read_filter(where)
        engines = load_engines(self.settings.engines)
        with reading(self.settings) as session:
            canonical = None if base is None else store.find_base(session, base)
            if query is not None:
                browse.refuse_unknown_bases(session, query)
            listing = browse.Listing(verdict, reason, canonical, query, sort, limit)
            for row in table.table_rows(session, listing, refusing(rules), engines):
                yield {name: row[name] for name in names}

    @check_arguments
    def export_table(
        self,
        path: str | Path,
        where: str = "",
        *,
        columns: str | Sequence[str] = "all",
        verdict: str | None = None,
        reason: str | None = None,
        base: str | None = None,
        rules: str = "ours",
        sort: str = "adapter",
        limit: int | None = None,
    ) -> int:
        """Writes the bulk table as a Parquet file, for pandas, DuckDB or `datasets`.

        Args:
            path: The file to write.
            where: As for `iterate_table`, as all that follow.
            columns: Its columns.
            verdict: Only "accepted" or "skipped" ones.
            reason: Only those with this reason.
            base: Only those of this base model.
            rules: The rules of the verdict.
            sort: The order of the rows.
            limit: The largest number of rows.

        Returns:
            The number of rows.

        Raises:
            UsageError: The extra "table" is not installed, or an argument is not valid.
            StorageError: The file cannot be written.
        """
        names = choose_columns(columns)
        rows = self.iterate_table(
            where,
            columns=names,
            verdict=verdict,
            reason=reason,
            base=base,
            rules=rules,
            sort=sort,
            limit=limit,
        )
        return write_parquet(rows, names, Path(path))

    def fields(self) -> Rows[FilterField]:
        """The fields that a filter (`where`) accepts; reads no catalog.

        Example:
            >>> [row.kind for row in catalog.fields() if row.field == "rank"]
            ['whole number']
        """
        fields = FIELDS.values()
        return Rows(
            (FilterField(row.name, row.kind_in_words, list(row.aliases), row.help) for row in fields),
            FilterField,
        )

    @check_arguments
    def details(self, adapter: str, *, rules: str = "ours") -> AdapterDetails:
        """Everything known of one adapter.

        Args:
            adapter: "owner/name", "owner/name@commit" or "owner/name:folder"; old names of a renamed
                repository are understood.
            rules: The rules of its verdict.

        Raises:
            NotFoundError: The catalog does not contain it.
            UsageError: The text is not a reference, or its commit is ambiguous.

        Example:
            >>> adapter = catalog.details("zoo/banking77", rules="ours")
            >>> adapter.verdict, adapter.weights["name"]
            ('accepted', 'adapter_model.safetensors')
        """
        reference = AdapterReference.parse(adapter)
        with reading(self.settings) as session:
            row = browse.find_adapter(session, reference)
            return browse.details(session, row, refusing(rules), load_engines(self.settings.engines))

    @check_arguments
    def card(self, adapter: str) -> str | None:
        """The model card of an adapter as its README.md has it, None without one.

        One that an imported snapshot left out is fetched from the Hub at the adapter's commit and compared
        with its digest: one request, or two where it lies in a folder above the adapter's.

        Args:
            adapter: "owner/name", "owner/name@commit" or "owner/name:folder".

        Raises:
            NotFoundError: The catalog does not contain the adapter.
            HubError: The Hub cannot be reached, or no longer has the card.

        Writes:
            A card that was fetched.

        Example:
            >>> catalog.card("zoo/banking77").startswith("---")
            True
        """
        from loradex.cards import read_card

        return read_card(self.settings, adapter)

    @check_arguments
    def changes(
        self,
        since: str | datetime.date = "7d",
        *,
        where: str = "",
        rules: str = "ours",
        atom: str | Path | None = None,
    ) -> Rows[CatalogChange]:
        """What is new, changed, gone, licensed otherwise or gated since a time, the newest first.

        The rows of the catalog tell it, so that it is as exact as the crawls were frequent; see the guide on
        crawls for what they do not tell.

        Args:
            since: A time before now such as "7d", "12h" or "2w", a day, or an instant, in UTC by default.
            where: Only repositories with an adapter that this filter accepts.
            rules: The rules of the filter's verdict.
            atom: A file to write the changes to as an Atom feed.

        Returns:
            A row a change: `change` is "new", "changed", "gone", "license" or "gated", `before` and `after`
            are the commits, licenses or gates.

        Raises:
            UsageError: The time or the filter is not valid.
            NotFoundError: The catalog does not know a base model of the filter.
            StorageError: The feed cannot be written.

        Writes:
            The feed, if requested.

        Examples:
            >>> {row.change for row in catalog.changes("1d", where="owner:zoo")}
            {'new'}
        """
        start = parse_since(since, datetime.datetime.now(datetime.UTC))
        query = self._read_filter(where)
        with reading(self.settings) as session:
            if query is not None:
                browse.refuse_unknown_bases(session, query)
            rows = changes(session, start, where=query, refusing=refusing(rules))
            hub = listing.crawled_hub(session)
        if atom is not None:
            write_feed(rows, Path(atom), hub or "https://huggingface.co", start)
        return Rows(rows, CatalogChange)

    @check_arguments
    def identify(self, file: str | Path, k: int = 5) -> Rows[IdentifiedRow]:
        """Which adapters of the catalog a weights file, or the folder of an adapter, is.

        By the sha256 of the file first, which needs no other file and finds pickles, too; then by the digest
        of the tensors; then by sketches of the update, for which the adapter_config.json beside it is needed.

        Args:
            file: The weights file, or the folder of an adapter.
            k: The largest number of neighbours by sketch.

        Returns:
            The adapters with the same file or tensors, current commits first, `cosine` 1; else the nearest by
            sketch, with their cosines. A note says what could not be compared.

        Raises:
            NotFoundError: There is no such file.

        Example:
            >>> [row.adapter for row in catalog.identify("adapters/banking77") if row.by == "file"]
            ['zoo/banking77']
        """
        check_count("k", k)
        with reading(self.settings) as session:
            return identify_file(session, Path(file), self._blobs, self.settings.index, k)

    @check_arguments
    def count_engines(self, where: str = "", *, rules: str = "ours") -> Rows[EngineCount]:
        """How many adapters each engine runs as PEFT does, and why not the others; by the rules in use.

        Args:
            where: Only those that this filter accepts.
            rules: The rules of the verdict, which a filter may ask for.

        Returns:
            A row an engine: `runs`, `runs_not`, `unknown`, and how often there is each reason.

        Raises:
            UsageError: The filter is not valid, or the file of rules is not a table of engines.
            NotFoundError: The catalog does not know a base model of the filter.

        Example:
            >>> [row.runs_not > 0 for row in catalog.count_engines() if row.engine == "vllm"]
            [True]
        """
        query, engines = self._read_filter(where), load_engines(self.settings.engines)
        with reading(self.settings) as session:
            if query is not None:
                browse.refuse_unknown_bases(session, query)
            facts = browse.stored_engine_facts(session, query, refusing(rules))
            return Rows(count_verdicts(facts, engines), EngineCount)

    @check_arguments
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

    @check_arguments
    def fingerprints(
        self,
        kind: str = "output",
        *,
        where: str = "",
        base: str | None = None,
        verdict: str = "accepted",
        rules: str = "ours",
    ) -> tuple[list[str], NDArray[np.float32]]:
        """The fingerprint vectors of the adapters whose weights were read, sorted by name.

        Args:
            kind: "output", the sketch of where updates write to, whatever they were initialised with, or
                "delta", the sketch of the whole update scaling * B A.
            where: Only those that this filter accepts.
            base: Only those of this base model. Vectors of different base models must not be compared.
            verdict: "accepted", or "any" for adapters that the rules refuse too.
            rules: The rules of the verdict.

        Returns:
            The n names, and a float32 array of shape (n, d).

        Examples:
            >>> names, vectors = catalog.fingerprints("output")
            >>> len(names) == len(vectors)
            True
        """
        import numpy as np

        check_choice("verdict", verdict, ("accepted", "any"))
        space, query = likeness.kind(kind), self._read_filter(where)
        with reading(self.settings) as session:
            canonical = None if base is None else store.find_base(session, base)
            if query is not None:
                browse.refuse_unknown_bases(session, query)
            rows = list(
                likeness.adapters_with_fingerprint(
                    session, refusing(rules), canonical, every=verdict == "any", where=query
                )
            )
            if not rows:
                return [], np.zeros((0, SPACES[space].size), np.float32)
            vectors = matrix(Fingerprints(session, space), [row.key for row in rows])
        return [row.adapter for row in rows], vectors

    @check_arguments
    def similar(
        self,
        adapter: str | Path,
        k: int = 10,
        *,
        by: str = "output",
        exact: bool = False,
        where: str = "",
        verdict: str = "accepted",
        rules: str = "ours",
    ) -> Rows[Neighbour]:
        """The adapters of the same base model that are most like one, by their weights, best first.

        Scores are cosines of the products B A: 1 for the same update, 0 for unrelated ones. Those of sketches
        are off by about 0.03.

        Args:
            adapter: A reference, as for `details`, or a local folder.
            k: The largest number of rows.
            by: "output" or "delta", as for `fingerprints`.
            exact: Whether to compare the best by their weights, as far as files are kept.
            where: Only those that this filter accepts.
            verdict: "accepted", or "any" for adapters that the rules refuse too.
            rules: The rules of the verdict.

        Raises:
            NotFoundError: The adapter is not in the catalog, has no fingerprint, or is the only one.

        Writes:
            The cache of the vectors, in the data folder.

        Example:
            >>> [row.adapter for row in catalog.similar("zoo/banking77", k=1)]
            ['zoo/banking77-seed104']
        """
        check_choice("verdict", verdict, ("accepted", "any"))
        space, query, every = likeness.kind(by), self._read_filter(where), verdict == "any"
        with reading(self.settings) as session:
            subject = find_subject(session, str(adapter), self._blobs)
            if query is not None:
                browse.refuse_unknown_bases(session, query)
            among = None
            if query is not None:
                among = partial(matching_ids, session, query, refusing(rules), every=every)
            others = NeighbourSearch(
                *(session, self.settings.index, self._blobs, refusing(rules)),
                among=among,
                where=query,
                every=every,
            )
            rows = others.neighbours(subject, by=space, count=k, exact=exact)
            hidden = others.hidden_notes(subject, rows, by=space, count=k)
            notes = [*subject_notes(str(adapter), subject), *hidden]
        if exact:
            notes += exactness_notes(rows)
        return Rows(rows, Neighbour, notes)

    @check_arguments
    def compare(self, left: str | Path, right: str | Path) -> Comparison:
        """The similarity of two adapters of one base model, exact if the files of both are available.

        Args:
            left: A reference, as for `details`, or a local folder.
            right: Another one.

        Raises:
            NotFoundError: One of them is not in the catalog, or its weights were never read.
            UsageError: They have different base models.

        Example:
            >>> pair = catalog.compare("zoo/banking77", "zoo/overruling")
            >>> pair.exact, abs(pair.output) < 0.5
            (True, True)
        """
        with reading(self.settings) as session:
            pair = [find_subject(session, str(adapter), self._blobs) for adapter in (left, right)]
        return compare_subjects(*pair)

    @check_arguments
    def search(
        self,
        text: str,
        k: int = 10,
        *,
        where: str = "",
        words_only: bool = False,
        weights: tuple[float, float] = (1.0, 1.0),
        model: str = DEFAULT_MODEL,
        rules: str = "ours",
        progress: ProgressOption = False,
    ) -> Rows[SearchRow]:
        """The adapters whose name, card, datasets, tags or base fit a text, by words and meaning, best first.

        Two rankings, BM25 and the cosines of card embeddings, are joined by reciprocal rank fusion (Cormack,
        Clarke and Büttcher, SIGIR 2009). Cards are embedded once, when they are first searched.

        Args:
            text: What to look for, up to 10,000 characters.
            k: The largest number of rows.
            where: Only those that this filter accepts.
            words_only: Whether words alone decide, so that no text encoder is loaded.
            weights: How much the ranking by words and the one by meaning count.
            model: The text encoder: an id on the Hub, or a local folder.
            rules: The rules of the filter's verdict.
            progress: See `loradex.progress`.

        Returns:
            The rows; their notes say where meaning could not be used.

        Raises:
            UsageError: An argument is not valid.
            EncoderError: The encoder cannot be loaded, and words do not count.

        Writes:
            The vectors of new cards, in the catalog; the caches of words and vectors, in the data folder.

        Example:
            >>> rows = catalog.search("banking", k=1, where="use:commercial", words_only=True)
            >>> rows[0].adapter.startswith("zoo/banking77")
            True
        """
        query, shares = self._read_filter(where), SearchWeights(*weights)
        if words_only and not shares.words:
            raise UsageError(
                "By words alone, words must count: leave out `words_only`, or give words a weight above 0."
            )
        notes: list[str] = []
        with reading(self.settings) as session, reporting(progress) as report:
            if query is not None:
                browse.refuse_unknown_bases(session, query)
            embedder = None
            if not words_only:
                try:
                    step = ProgressStep(report, "embedding cards")
                    embedder = embed_catalog(session, self.settings.index, model, step, notes)
                except EncoderError as error:
                    if not shares.words:
                        raise
                    notes.append(f"searching by words alone: {error}")
            with open_texts(session, self.settings.index, embedder) as texts:
                result = search(
                    session, texts, text, k, query=query, refusing=refusing(rules), weights=shares
                )
            rows = [
                SearchRow(hit.adapter, hit.score, hit.why, hit.commit, hit.rank, hit.license)
                for hit in result.hits
            ]
            notes += hidden_notes(session, query, " of the search")
        return Rows(rows, SearchRow, (*notes, *result.notes))

    @check_arguments
    def duplicates(
        self, level: str = "delta", *, verdict: str = "accepted", rules: str = "ours"
    ) -> Rows[GroupRow]:
        """Groups of adapters with the same or nearly the same weights.

        Args:
            level: "file" for the same bytes, "tensor" for the same tensors, "delta" for the same update but
                for rounding or scale; each includes those before.
            verdict: "accepted", or "any" for adapters that the rules refuse too.
            rules: The rules of the verdict.

        Example:
            >>> all(len(row.members) > 1 for row in catalog.duplicates(level="tensor"))
            True
        """
        check_choice("level", level, LEVELS)
        check_choice("verdict", verdict, ("accepted", "any"))
        with reading(self.settings) as session:
            rows = list(likeness.with_weights(session, refusing(rules), every=verdict == "any"))
            groups = duplicates(
                rows,
                level,
                likeness.exact_delta(session, rows, self._blobs),
                deltas=likeness.read_deltas(session),
                kept={blob.sha256 for blob in self._blobs.blobs()},
            )
            notes = hidden_notes(session, of=" of the comparison")
        return Rows(group_rows(groups, rows), GroupRow, notes)

    @check_arguments
    def families(self, *, verdict: str = "accepted", rules: str = "ours") -> Rows[FamilyRow]:
        """Families of adapters: one owner's series, and the checkpoints of one run."""
        check_choice("verdict", verdict, ("accepted", "any"))
        with reading(self.settings) as session:
            rows = list(likeness.measured_copies(session, refusing(rules), every=verdict == "any"))
            family_list = families(rows, deltas=likeness.read_deltas(session))
            return Rows(
                family_rows(family_list, rows), FamilyRow, hidden_notes(session, of=" of the comparison")
            )

    @check_arguments
    def map(
        self,
        path: str | Path,
        *,
        by: str = "output",
        colour: str = "owner",
        base: str | None = None,
        seed: int = 0,
        verdict: str = "accepted",
        rules: str = "ours",
        progress: ProgressOption = False,
    ) -> MapReport:
        """Draws the adapters of a base model in two dimensions, near each other where their weights are.

        Distances between groups mean nothing; who is near whom does.

        Args:
            path: The picture to write, .svg or .png.
            by: "output" or "delta", as for `fingerprints`.
            colour: "owner", "rank", "norm", "tool" (the library that the Hub names), "task" (the first
                dataset of the card), "health", "verdict" or "partial" (what B A leaves out).
            base: The base model, the most frequent one by default.
            seed: Of the layout.
            verdict: "accepted", or "any" for adapters that the rules refuse too.
            rules: The rules of the verdict.
            progress: See `loradex.progress`.

        Raises:
            NotFoundError: There are fewer than two fingerprints of the base model.
            UsageError: The extra "plot" is not installed, or the path has another suffix.

        Example:
            >>> catalog.map("map.svg", colour="rank").path.name
            'map.svg'
        """
        from catalog.pictures import layout_blocks, map_picture

        check_choice("verdict", verdict, ("accepted", "any"))
        check_choice("colour", colour, COLOURS)
        space, every = likeness.kind(by), verdict == "any"
        with reading(self.settings) as session:
            if base is not None:
                base = store.find_base(session, base)
            else:
                base = likeness.frequent_base(session, refusing(rules), every=every)
            rows = list(likeness.adapters_with_fingerprint(session, refusing(rules), base, every=every))
            if len(rows) < 2:
                raise NotFoundError(
                    f"A map takes two fingerprints of {base or 'one base model'}; crawl some."
                )
            points = layout_blocks(Fingerprints(session, space).vectors([row.key for row in rows]), seed)
        with reporting(progress) as report:
            report(ProgressEvent("drawing", 0, 1))
            map_picture(
                points,
                [row.adapter for row in rows],
                [COLOURS[colour](row) for row in rows],
                title=f"Adapters of {base or 'unknown base models'}, by {space} sketch",
                legend_title=colour,
                path=Path(path),
                labels=len(rows) <= MOST_NAMES,
            )
        skipped, partial = sum(row.is_refused for row in rows), sum(bool(row.partial) for row in rows)
        return MapReport(Path(path), len(rows), skipped, partial)

    @check_arguments
    def remeasure(self, *, processes: int = 1, progress: ProgressOption = False) -> Reread:
        """Makes the fingerprints that are missing of kept files, as after their definition changed.

        Args:
            processes: The number of processes that compute; with 1 this process does. See `crawl`.
            progress: See `loradex.progress`.

        Writes:
            Fingerprints, in the catalog; one transaction each.

        Raises:
            CatalogBusyError: Another process writes to the catalog.
        """
        check_count("processes", processes)
        with (
            reporting(progress) as report,
            disposing(open_catalog(self.settings, create=False)) as engine,
        ):
            working = ProgressStep(report, "reading").working
            return reread(engine, self._blobs, working, processes=processes)

    @check_arguments
    def tag(self, adapter: str, *tags: str, remove: bool = False) -> AdapterNotes:
        """What the user wrote about an adapter, after giving it tags.

        Tags, notes and hidden marks belong to an adapter at all its commits, and are never changed by a
        crawl.

        Args:
            adapter: A reference, as for `details`.
            tags: The tags, up to 100 characters each; without any, nothing changes.
            remove: Whether to remove these instead; without any tags, all.

        Raises:
            NotFoundError: The catalog does not contain the adapter.
            UsageError: A tag is empty, too long or not printable.

        Writes:
            One transaction, also while a crawl is at work.

        Example:
            >>> catalog.tag("zoo/banking77", "candidate").tags
            ('candidate',)
            >>> [row.adapter for row in catalog.adapters("mytag:candidate")]
            ['zoo/banking77']
        """
        names = [annotation_store.check_tag(tag) for tag in tags]

        def change(row: AdapterNotes) -> AdapterNotes:
            if remove:
                return replace_fields(row, tags=tuple(t for t in row.tags if names and t not in names))
            return replace_fields(row, tags=tuple(sorted({*row.tags, *names})))

        return self._annotate([adapter], change, write=bool(names) or remove)[0]

    @check_arguments
    def note(self, adapter: str, text: str | None = None, *, remove: bool = False) -> AdapterNotes:
        """What the user wrote about an adapter, after writing a note on it.

        Args:
            adapter: A reference, as for `details`.
            text: The note, up to 10,000 characters, in place of the one before; None leaves it.
            remove: Whether to remove it instead.

        Raises:
            NotFoundError: The catalog does not contain the adapter.
            UsageError: The note is empty or too long, or there is one to write and to remove.

        Example:
            >>> catalog.note("zoo/banking77", "the seed of the paper").note
            'the seed of the paper'
        """
        if text is not None and remove:
            raise UsageError("Give a note, or `remove`, not both.")
        note = None if text is None else annotation_store.check_note(text)

        def change(row: AdapterNotes) -> AdapterNotes:
            return replace_fields(row, note=note)

        return self._annotate([adapter], change, write=remove or note is not None)[0]

    @check_arguments
    def hide(self, *adapters: str, undo: bool = False) -> Rows[AdapterNotes]:
        """What the user wrote about adapters, after they were hidden.

        Lists, searches and selections leave them out, and say how many; the filter `hidden:yes` lists them.

        Args:
            adapters: References, as for `details`.
            undo: Whether to show them again.

        Raises:
            NotFoundError: The catalog does not contain one of them; then none is hidden.

        Example:
            >>> catalog.hide("zoo/banking77")[0].hidden, catalog.hide("zoo/banking77", undo=True)[0].hidden
            (True, False)
        """

        def change(row: AdapterNotes) -> AdapterNotes:
            return replace_fields(row, hidden=not undo)

        return Rows(self._annotate(adapters, change, write=True), AdapterNotes)

    @check_arguments
    def annotate(
        self,
        adapters: Sequence[str],
        *,
        tags: Sequence[str] = (),
        remove_tags: Sequence[str] = (),
        note: str | None = None,
        hidden: bool | None = None,
    ) -> Rows[AdapterNotes]:
        """What the user wrote about adapters, after writing the same about all of them.

        Args:
            adapters: References, as for `details`.
            tags: Tags that they are given, up to 100 characters each.
            remove_tags: Tags that are taken from those that have them.
            note: The note, up to 10,000 characters, in place of the one before; "" removes it.
            hidden: Whether lists leave them out.

        Raises:
            NotFoundError: The catalog does not contain one of them; then nothing is written.
            UsageError: A tag or the note is empty, too long or not printable.

        Writes:
            One transaction, also while a crawl is at work.

        Example:
            >>> [row.tags for row in catalog.annotate(["zoo/banking77"], tags=["seed"], note="of the paper")]
            [('seed',)]
            >>> catalog.annotate(["zoo/banking77"], remove_tags=["seed"], note="")[0].note
        """
        names = [annotation_store.check_tag(tag) for tag in tags]
        removed = [annotation_store.check_tag(tag) for tag in remove_tags]
        text = annotation_store.check_note(note) if note else None

        def change(row: AdapterNotes) -> AdapterNotes:
            return replace_fields(
                row,
                tags=tuple(sorted({*row.tags, *names} - set(removed))),
                note=row.note if note is None else text,
                hidden=row.hidden if hidden is None else hidden,
            )

        return Rows(self._annotate(adapters, change, write=True), AdapterNotes)

    def _annotate(
        self, adapters: Iterable[str], change: Callable[[AdapterNotes], AdapterNotes], *, write: bool
    ) -> list[AdapterNotes]:
        """The annotations of adapters after a change, in one transaction."""
        references = [AdapterReference.parse(adapter) for adapter in adapters]
        scope = writing(self.settings, create=False) if write else reading(self.settings)
        rows = []
        with scope as session:
            for reference in references:
                adapter = browse.find_adapter(session, reference)
                name = adapter_name(adapter.repository.name, adapter.subfolder)
                row = annotation_store.read_notes(session, adapter.repository.hub_id, adapter.subfolder, name)
                rows.append(change(row) if write else row)
                if write:
                    annotation_store.write_notes(session, rows[-1])
            session.commit()
        return rows

    def annotations(self) -> Rows[AdapterNotes]:
        """The adapters that have a tag or a note of the user, or are hidden, by name."""
        with reading(self.settings) as session:
            return Rows(annotation_store.all_notes(session), AdapterNotes)

    @check_arguments
    def export_annotations(self, file: str | Path) -> int:
        """Writes all tags, notes and hidden marks into a file, for `import_annotations`.

        Args:
            file: The JSON file to write.

        Returns:
            The number of adapters.

        Raises:
            StorageError: The file cannot be written.
        """
        rows = list(self.annotations())
        write_annotations(rows, Path(file))
        return len(rows)

    @check_arguments
    def import_annotations(self, file: str | Path, *, replace: bool = False) -> AnnotationImport:
        """Adds the tags, notes and hidden marks of a file to those of the catalog.

        Adapters are recognised by the `_id` of their repository and their folder; those that the catalog does
        not contain yet keep theirs until a crawl brings them.

        Args:
            file: A file of `export_annotations`.
            replace: Whether another note in the file replaces the one on record.

        Raises:
            UsageError: It is not such a file; nothing is written.
        """
        rows = read_annotations(Path(file))
        with writing(self.settings, create=False) as session:
            changed, kept_rows = annotation_store.merge_notes(session, rows, replace=replace)
            session.commit()
        names = [row.adapter or row.hub_id for row in kept_rows]
        return AnnotationImport(changed, len(rows) - changed, names)

    def check_indexes(self) -> Rows[IndexRow]:
        """The state of each index, by reading it and comparing it with the catalog; indexes are made by
        calls.

        Each base model has two indexes of vectors, which find all the nearest (`recall` 1) up to 300,000
        vectors.
        """
        with reading(self.settings) as session:
            states = [(cache, cache.check(self.settings.index)) for cache in indexes(session)]
        return _index_rows(states)

    @check_arguments
    def rebuild_indexes(self, *, type: str | None = None) -> Rows[IndexRow]:  # noqa: A002
        """Makes every index again from the catalog.

        Args:
            type: "flat" compares with every vector, "ivf" searches lists of them; by default "flat" up to
                300,000 vectors of a base model. What is given here stays until the next rebuilding.

        Raises:
            StorageError: The disk refuses.
        """
        kind = None if type is None else check_choice("type", type, KINDS)
        with reading(self.settings) as session:
            states = [(cache, cache.rebuild(self.settings.index, kind)) for cache in indexes(session)]
        return _index_rows(states)

    @check_arguments
    def select(
        self,
        name: str,
        *,
        by: str,
        k: int | None = 10,
        query: str | None = None,
        task: str | Path | Task | None = None,
        tasks: str | Path | None = None,
        texts: str | Path | None = None,
        samples: int | None = None,
        exact: bool = False,
        budget: int | None = None,
        like: str | Path | None = None,
        adapters: Sequence[str] = (),
        to: str | None = None,
        kind: str = "output",
        splits: Sequence[str] = (),
        where: str = "",
        base: str | None = None,
        seed: int = 0,
        per_owner: int | None = None,
        per_family: int | None = None,
        distinct: str | None = None,
        parameters: int | None = None,
        exclude: Sequence[str] = (),
        without: Sequence[str] = (),
        use: str = "research",
        controls: bool = False,
        replace: bool = False,
        dry_run: bool = False,
        device: str = "cpu",
        dtype: str | None = None,
        date: datetime.date | None = None,
        too_long: str = "error",
        model: str = DEFAULT_MODEL,
        rules: str = "ours",
        progress: ProgressOption = False,
    ) -> Pool:
        """Selects adapters and saves them as a pool, pinned to commits and hashes.

        The same catalog, arguments and seed give the same pool, byte for byte.

        Args:
            name: The name of the pool.
            by: The strategy, a key of `catalog.selection.STRATEGIES`: "text", "adapter", "score", "prior",
                "tasks", "completion", "racing", "gradient", "worst", "random", "matched", "rank" or "named".
            k: The number of members; None for every adapter that can be ranked, within the limits.
            query: What the adapters should be good for (text).
            task: The task whose scores decide (score, prior, tasks, completion, worst); its folder, its name
                in `tasks`, or what `loradex.load_task` returns, where a model reads it (gradient, racing).
            tasks: The folder of tasks. A gradient is compared with those of up to eight others in it.
            texts: A YAML or JSON file of task names and instructions (tasks, completion).
            samples: Training examples that a gradient reads, 100 by default.
            exact: Whether to read the weights of the best and order them exactly (gradient).
            budget: Examples to spend in all (racing).
            like: The adapter, or local folder, that members should resemble (adapter).
            adapters: The names of all members, in order (named); `k` does not count then.
            to: The pool to be matched (matched).
            kind: "output" or "delta", the vectors to compare by (adapter, gradient).
            splits: Scores of these splits alone; by default all but test, which is there to judge.
            where: Only adapters that this filter accepts.
            base: Only adapters of this base model, the most frequent one by default; the one to load
                (gradient, racing).
            seed: Of every random choice.
            per_owner, per_family: The largest number of members of one owner, of one family.
            distinct: "file", "tensor" or "delta", for one of each group of such duplicates.
            parameters: The largest number of LoRA parameters in all.
            exclude: Names of adapters, repositories or owners.
            without: Layers, so that adapters which are plain LoRA without these are candidates too.
            use: "research", "publish" or "commercial": adapters whose license forbids it are left out.
            controls: Whether to save the pools NAME-random, NAME-matched and NAME-shuffled, too.
            replace: Whether to replace another pool of this name.
            dry_run: Whether to save nothing.
            device, dtype: Where a model runs and in which data type, as for `loradex.load_base`.
            date: The day that chat templates name, 2024-07-26 by default.
            too_long: "error", or "skip" to leave out examples longer than the model reads.
            model: The text encoder (text).
            rules: The rules that decide which adapters are candidates.
            progress: See `loradex.progress`.

        Returns:
            The pool, with its control pools.

        Raises:
            UsageError: The arguments contradict each other, or too few adapters are left.
            NotFoundError: No adapter is left, or a name is not in the catalog.
            PoolError: Another pool has this name.

        Writes:
            The pools, in the catalog; pool.json of each below the pools of the data folder.

        Example:
            >>> pool = catalog.select("three", by="random", k=3, seed=1)
            >>> len(pool.members)
            3
        """
        from catalog.selection import STRATEGIES, Question
        from loradex.measuring import TaskOptions
        from loradex.selection import select_pool

        check_choice("kind", kind, ("output", "delta"))
        check_choice("distinct", distinct, (None, *LEVELS))
        check_count("samples", samples)
        check_count("budget", budget)
        if where:
            self._read_filter(where)
        question = Question(
            name=name,
            by=check_choice("by", by, STRATEGIES),
            count=len(set(adapters)) if by == "named" and adapters else k,
            seed=seed,
            base=base,
            rules=rules,
            where=where,
            text=query,
            samples=samples,
            exact=exact,
            budget=budget,
            like=None if like is None else str(like),
            adapters=tuple(adapters),
            to=to,
            kind=kind,
            use=check_choice("use", use, USES),
            per_owner=per_owner,
            per_family=per_family,
            parameters=parameters,
            distinct=distinct,
            exclude=tuple(exclude),
            without=tuple(without),
            splits=tuple(splits),
        )
        types: tuple[BaseDtype | None, ...] = (None, "bfloat16", "float16", "float32", "8bit", "4bit")
        skips: tuple[TooLong, ...] = ("error", "skip")
        dtype_of_base = check_choice("dtype", dtype, types)
        reads = check_choice("too_long", too_long, skips)
        options = TaskOptions(task, tasks, texts, device, dtype_of_base, date, reads)
        with reporting(progress) as report:
            return select_pool(
                question,
                options,
                self.settings,
                model=model,
                controls=controls,
                save=not dry_run,
                replace_others=replace,
                report=report,
            )

    def pools(self) -> Rows[PoolRow]:
        """The pools of the catalog, by name.

        Example:
            >>> pool = catalog.select("three", by="random", k=3)
            >>> [(row.pool, row.members) for row in catalog.pools()]
            [('three', 3)]
        """
        with reading(self.settings) as session:
            return Rows((PoolRow(**row) for row in pool_store.pools(session)), PoolRow)

    @check_arguments
    def pool(self, pool: str | Path) -> Pool:
        """The pool of this name, in this pool.json, or in this folder; a file of that name comes first.

        Raises:
            NotFoundError: There is none.
            PoolError: The manifest was edited, or cannot be read.
        """
        return find_pool(self.settings, str(pool))

    @check_arguments
    def save_pool(self, pool: Pool, *, replace: bool = False) -> Pool:
        """Saves a pool, in the catalog and below the pools of the data folder.

        Raises:
            PoolError: Another pool has its name, and `replace` is False.
        """
        return save_pools([pool], self.settings, replace_others=replace)[0]

    @check_arguments
    def import_pool(
        self,
        file: str | Path,
        *,
        weights: bool = False,
        replace: bool = False,
        progress: ProgressOption = False,
    ) -> Pool:
        """Saves a pool that somebody exported.

        Args:
            file: Its pool.json, or the folder of one.
            weights: Whether to fetch every file at its pinned commit now, and to check it.
            replace: Whether to replace another pool of this name.
            progress: See `loradex.progress`.

        Raises:
            NotFoundError: There is no such file.
            PoolError: It is not a manifest, or a file is not the pinned one.
        """
        pool = Pool(read_manifest(Path(file)), self.settings)
        # Fetched files must not be collected before the pool names them.
        with at_work(self.settings.data) if weights else nullcontext():
            if weights:
                pool.fetch_weights(progress=progress)
            return self.save_pool(pool, replace=replace)

    @check_arguments
    def remove_pools(self, *names: str) -> int:
        """Removes pools from the catalog, not their exports; returns how many there were."""
        with writing(self.settings, create=False) as session:
            count = pool_store.remove_pools(session, names)
            session.commit()
        return count

    @check_arguments
    def scores(self, adapter: str | None = None, *, task: str | None = None) -> Rows[ScoreRow]:
        """The measured scores of one adapter, on one task, or all of them, the highest first."""
        with reading(self.settings) as session:
            rows = score_store.scores_of(session, adapter, task)
        return Rows((ScoreRow(**row) for row in rows), ScoreRow)

    def score_sources(self) -> Rows[ScoreSourceRow]:
        """How much each source measured, by split and metric."""
        with reading(self.settings) as session:
            rows = score_store.summary(session)
        return Rows((ScoreSourceRow(**row) for row in rows), ScoreSourceRow)

    @check_arguments
    def score_outcomes(self, adapter: str, *, task: str | None = None) -> Rows[OutcomeRow]:
        """The scores of an adapter of which it is known which items were answered right, with these.

        Args:
            adapter: Its name as scores have it; "base" is the base model alone.
            task: Only on this task.

        Returns:
            One row a score; `outcomes` has 1 or 0 for each item, `margins` (nats) are negative for right
            answers.

        Example:
            >>> catalog.score_outcomes("zoo/banking77").columns[-2:]
            ('outcomes', 'margins')
        """
        from loradex.outcomes import outcome_rows

        with reading(self.settings) as session:
            scores = score_store.stored_scores(session, score_store.ScoreFilter(task), [adapter])
        return Rows(outcome_rows(scores), OutcomeRow)

    @check_arguments
    def score_items(self, task: str) -> Rows[ItemRow]:
        """The items of a task with the adapters that answered them right and wrong.

        Args:
            task: The name of the task.

        Returns:
            One row an item, in the order of each list of items; the lists of a split, metric and protocol
            follow one another.

        Example:
            >>> [row.position for row in catalog.score_items("anli")]
            []
        """
        from loradex.outcomes import item_rows

        with reading(self.settings) as session:
            scores = score_store.stored_scores(session, score_store.ScoreFilter(task))
        return Rows(item_rows(scores), ItemRow)

    @check_arguments
    def compare_scores(
        self,
        first: str,
        second: str,
        *,
        task: str,
        split: str | None = None,
        metric: str | None = None,
        protocol: str | None = None,
        source: str | None = None,
    ) -> Rows[PairedTestRow]:
        """Exact paired tests of two adapters on the same items of a task, with intervals of the difference.

        Args:
            first, second: Their names as scores have them; "base" is the base model alone.
            task: The name of the task.
            split, metric, protocol, source: Only such scores; by default each list of items that both
                answered under one split, metric and protocol. The protocol "" is the project's own.

        Returns:
            One row for each such list: counts of items, `difference` with the ends of its 95 % interval (see
            `catalog.scores.paired_test`), and `p`.

        Raises:
            NotFoundError: The two have no outcomes of the same items; the message says why.
            UsageError: The extra `study` is not installed.

        Example:
            >>> import json, pathlib
            >>> score = {"task": "t", "split": "test", "metric": "accuracy", "n": 2, "items_sha": "0" * 64}
            >>> first = {**score, "adapter": "zoo/a", "value": 1.0, "outcomes": "wA=="}
            >>> second = {**score, "adapter": "zoo/b", "value": 0.5, "outcomes": "gA=="}
            >>> text = json.dumps({"scores": [first, second]})
            >>> _ = pathlib.Path("two.json").write_text(text)
            >>> _ = catalog.import_scores("two.json")
            >>> [row] = catalog.compare_scores("zoo/a", "zoo/b", task="t")
            >>> row.both, row.only_first, row.only_second, row.neither, row.p
            (1, 1, 0, 0, 1.0)
        """
        from loradex.outcomes import paired_rows

        which = score_store.ScoreFilter(task, split, metric, protocol, source)
        with reading(self.settings) as session:
            scores = score_store.stored_scores(session, which, [first, second])
        return Rows(paired_rows(scores, first, second, task), PairedTestRow)

    @check_arguments
    def leaderboard(
        self,
        task: str,
        *,
        split: str | None = None,
        metric: str | None = None,
        protocol: str | None = None,
        source: str | None = None,
    ) -> Rows[LeaderboardRow]:
        """The adapters on a task, best first, with intervals and the test of each against the first.

        Args:
            task: The name of the task.
            split, metric, protocol, source: Only such scores. The protocol "" is the project's own.

        Returns:
            One row a score. Which adapter leads was seen in the same items: that one "differs" says that it
            does from this leader, not that the leader is the best.

        Raises:
            NotFoundError: The task has no scores.
            UsageError: Its scores are of several splits, metrics or protocols, or the extra `study` is not
                installed.

        Example:
            >>> _ = catalog.import_scores("ours.csv", n=40)
            >>> [row] = catalog.leaderboard("banking77")
            >>> round(row.low, 3), row.value, round(row.high, 3)
            (0.352, 0.5, 0.648)
        """
        from loradex.outcomes import leaderboard_rows

        which = score_store.ScoreFilter(task, split, metric, protocol, source)
        with reading(self.settings) as session:
            scores = score_store.stored_scores(session, which)
        return Rows(leaderboard_rows(scores, task), LeaderboardRow)

    @check_arguments
    def export_scores(self, file: str | Path, *, task: str | None = None, source: str | None = None) -> int:
        """Writes scores with their outcomes as a file that `import_scores` reads; returns how many.

        Args:
            file: The JSON file to write; one that is there is replaced.
            task: Only on this task.
            source: Only of this source, which a file does not state.

        Raises:
            NotFoundError: There are no such scores.
            UsageError: They are of several sources.
            StorageError: The disk refuses.

        Example:
            >>> _ = catalog.import_scores("ours.csv", n=40)
            >>> catalog.export_scores("all.json", source="ours.csv")
            1
        """
        with reading(self.settings) as session:
            scores = score_store.stored_scores(session, score_store.ScoreFilter(task, source=source))
        write_scores(scores, Path(file))
        return len(scores)

    @check_arguments
    def import_scores(
        self,
        file: str | Path,
        *,
        source: str | None = None,
        split: str = "test",
        metric: str = "accuracy",
        n: int | None = None,
    ) -> ScoreImport:
        """Brings the scores of a file into the catalog; those of the same source are replaced.

        Args:
            file: A CSV with one row an adapter and one column a task (with the columns task and zero_shot it
                holds the base model's), or the scores.json of an evaluation.
            source: Who measured, by default the name of the file.
            split: Of a CSV, on which samples.
            metric: Of a CSV, what the numbers are.
            n: Of a CSV, how many samples a score is of.

        Raises:
            UsageError: The file cannot be read, or a value is outside the range of its metric.

        Example:
            >>> catalog.import_scores("ours.csv", split="valid", n=40).rows
            1
            >>> catalog.scores("zoo/banking77")[0].value
            0.5
        """
        path = Path(file)
        scores = read_scores(path, source=source or path.name, split=split, metric=metric, n=n)
        with writing(self.settings) as session:
            saved = score_store.save_scores(session, scores)
            session.commit()
        return ScoreImport(len(scores), **asdict(saved))

    @check_arguments
    def verify_weights(self, *, progress: ProgressOption = False) -> WeightsCheck:
        """Reads every kept weights file and compares it with its digest.

        Example:
            >>> catalog.verify_weights().ok
            True
        """
        with reporting(progress) as report:
            damaged = _read_kept(self._blobs, report)
        partial = tuple(self._blobs.partial_files())
        return WeightsCheck(not damaged, tuple(damaged), partial, *_totals(self._blobs))

    @check_arguments
    def repair_weights(self, *, progress: ProgressOption = False) -> WeightsRepair:
        """Reads every kept weights file and fetches damaged ones again, from a commit that still has them.

        A damaged file is replaced once the new one is verified, and stays where none can be fetched. Files
        that an export of an earlier version shares as a hard link are copied.
        """
        from crawler.fetch import repair
        from crawler.hub import Hub, HubSettings

        blobs = self._blobs
        with reporting(progress) as report:
            damaged = _read_kept(blobs, report)
            separated = blobs.separate()
            with reading_if_any(self.settings) as session:
                places = {
                    blob.sha256: kept.origins(session, self.settings.pools, blob.sha256) for blob in damaged
                }
            with Hub(HubSettings.from_environment()) as hub:
                left = repair(blobs, places, hub, ProgressStep(report, "fetching").working)
        return WeightsRepair(
            not left,
            tuple(blob for blob in damaged if blob.sha256 not in left),
            tuple(replace_fields(blob, why=left[blob.sha256]) for blob in damaged if blob.sha256 in left),
            tuple(separated),
            *_totals(blobs),
        )

    @check_arguments
    def collect_garbage(self, *, delete: bool = False, only_catalog: bool = False) -> GarbageReport:
        """The kept files that no adapter, of an older commit either, and no pool of the catalog names.

        Args:
            delete: Whether to delete them, and what has arrived of unfinished downloads of such files.
            only_catalog: Asserts that no other catalog uses the data folder, where it is too old to tell.

        Raises:
            CatalogBusyError: Another process writes to the catalog.
            StorageError: Another process works in the data folder, or another catalog uses it.
        """
        blobs = self._blobs
        with writing_alone(self.settings) as session:
            url = parse_url(self.settings.catalog_url)
            kept.refuse_other_catalogs(url, blobs, only=only_catalog, deleting=delete)
            unneeded = kept.find_unneeded(session, self.settings, blobs)
            if delete:
                for name in sorted({blob.sha256 for blob in (*unneeded.files, *unneeded.partial)}):
                    blobs.remove(name)
        return GarbageReport(unneeded.files, unneeded.partial, unneeded.size, delete)

    @check_arguments
    def base_names(self, base: str | None = None) -> Rows[BaseSpelling]:
        """The names under which base models are known, by the program and by the catalog if there is one.

        Args:
            base: Only the names of this base model. A note says which names are near where it is not known.

        Example:
            >>> names = catalog.base_names("meta-llama/Llama-3.1-8B-Instruct")
            >>> "NousResearch/Meta-Llama-3.1-8B-Instruct" in [row.spelling for row in names]
            True
        """
        with reading_if_any(self.settings) as session:
            spellings = _spellings(store.spellings(session) if session is not None else ())
            names = store.base_names(session) if session is not None else ()
        notes = []
        if base is not None:
            table = BaseTable(spellings)
            canonical = table.known(base)
            spellings = [row for row in spellings if row.canonical == canonical]
            if canonical is None and base not in names:
                notes.append(f"No base model is known as {base}; {table.nearest(base, names)}.")
        return Rows(spellings, BaseSpelling, notes)

    @check_arguments
    def add_base_name(
        self, canonical: str, spelling: str, *, kind: str = "mirror", note: str = ""
    ) -> AddedSpelling:
        """Records another name of a base model; the next crawl asks for it too.

        Args:
            canonical: The base model, under any of its names.
            spelling: The further name.
            kind: How it relates to the base model: "renamed", "mirror", "quantised", "case" or "local_path".
            note: Where the name is from.

        Raises:
            UsageError: One of them cannot be the name of a model on the Hub, or both are the same model.
        """
        check_choice("kind", kind, SPELLING_KINDS)
        check_base_name(canonical)
        if kind != "local_path" or not spelling.strip() or not spelling.isprintable():
            check_base_name(spelling)
        with reading_if_any(self.settings) as session:
            table = table_with(store.spellings(session) if session is not None else ())
            names = store.base_names(session) if session is not None else ()
        known, advice = table.known(canonical), ""
        if known is None and canonical not in names:
            advice = f"{canonical} was not known before; {table.nearest(canonical, names)}."
        canonical = known or canonical
        if spelling == canonical:
            raise UsageError(f"{spelling} is the canonical name; give another name of the base model.")
        with writing(self.settings) as session:
            store.sync_bases(session)
            row = BaseSpelling(canonical, spelling, cast(SpellingKind, kind), note)
            store.add_spelling(session, row)
            session.commit()
        return AddedSpelling(canonical, spelling, kind, advice)

    @check_arguments
    def keep_base(self, name: str, file: str | Path, *, progress: ProgressOption = False) -> Path:
        """Keeps a base model in the data folder, from a GGUF file of Llama or Qwen2, to be found by its name.

        It is converted once, to float32; a model that was quantised stays as coarse.

        Args:
            name: The id of the base model, owner/name.
            file: The GGUF file.

        Returns:
            The folder of the model.
        """
        from merging.model import check_source, keep_base

        check_source(Path(file))
        with reporting(progress) as report:
            report(ProgressEvent("converting", note=f"converting {Path(file).name}"))
            return keep_base(name, Path(file), self.settings.bases)

    @check_arguments
    def export_snapshot(
        self,
        folder: str | Path,
        *,
        cards: bool = False,
        with_private: bool = False,
        with_notes: bool = False,
        overwrite: bool = False,
        progress: ProgressOption = False,
    ) -> SnapshotExport:
        """Writes the catalog as Parquet files that others import, or read by pandas, DuckDB or `datasets`.

        Equal catalogs have equal bytes. Weights and pools are never in a snapshot.

        Args:
            folder: The folder to write.
            cards: Whether to write the cards of adapters whose licenses allow it.
            with_private: Whether to write private repositories, and what was read behind a gate.
            with_notes: Whether to write the user's own tags, notes, hidden marks and names of base models.
            overwrite: Whether to replace an earlier snapshot.
            progress: See `loradex.progress`.

        Returns:
            The rows of each table, and how much was left out.

        Raises:
            UsageError: The folder is not empty, or the extra "table" is not installed.
            StorageError: The disk refuses.

        Writes:
            The folder, in whole or not at all.

        Example:
            >>> export = catalog.export_snapshot("snapshot")
            >>> export.tables["adapters"] == catalog.status().adapters
            True
        """
        from catalog.snapshots import SnapshotChoice
        from loradex.snapshots import export_to

        choice = SnapshotChoice(cards, with_private, with_notes)
        return export_to(self.settings, Path(folder), choice, overwrite=overwrite, progress=progress)

    @check_arguments
    def import_snapshot(self, source: str | Path, *, progress: ProgressOption = False) -> ImportCounts:
        """Brings a snapshot into the catalog, which is made if there is none.

        All files are compared with their sha256 and their columns first; then one transaction adds what is
        missing. A repository is replaced by the state of a later crawl of the same `_id` alone. Pools, tags,
        notes and scores that are there stay.

        Args:
            source: The folder of a snapshot, or a data set of the Hub: "owner/name", "owner/name@commit" or
                "hf://datasets/owner/name", which is fetched at one commit; the first form only where the
                working folder has no folder "owner". A `Path` is a folder.
            progress: See `loradex.progress`.

        Returns:
            How much was added, replaced and left as it was.

        Raises:
            CatalogError: The source is not a snapshot, or not as its manifest says.
            CatalogBusyError: Another process writes to the catalog.
            HubError: The Hub does not have the data set, or cannot be reached.

        Example:
            >>> _ = catalog.export_snapshot("snapshot")
            >>> other = loradex.open("other")
            >>> other.import_snapshot("snapshot").adapters_added == catalog.status().adapters
            True
        """
        from loradex.snapshots import import_from

        return import_from(self.settings, source, progress)

    def upgrade(self) -> SchemaUpgrade:
        """Brings the schema of the catalog up to date; creates the catalog if it does not exist.

        Raises:
            SchemaVersionError: The catalog was made by a newer version.
            CatalogBusyError: Another process writes to the catalog.
        """
        with disposing(make_engine(self.settings.catalog_url)) as engine, writer_lock(engine):
            before = database.current(engine)
            database.upgrade(engine)
            database.refresh_engine_features(engine)
        return SchemaUpgrade(before, database.head())

    def check(self) -> str:
        """The revision of the schema, with its triggers and views; raises SchemaVersionError unless it is the
        newest one.
        """
        with disposing(open_catalog(self.settings, create=False)) as engine:
            database.check_views(engine)
            return database.head()

    def info(self) -> CatalogInfo:
        """Where the catalog is, its schema, its size in bytes and the rows of each table.

        Example:
            >>> catalog.info().dialect
            'sqlite'
        """
        with disposing(database.open_existing(self.settings)) as engine:
            return database.info(engine)

    @check_arguments
    def __getitem__(self, adapter: str) -> AdapterDetails:
        """`details` by the usual rules.

        Examples:
            >>> catalog["zoo/banking77"].rank
            4
        """
        return self.details(adapter)

    def __contains__(self, adapter: object) -> bool:
        """Whether the catalog contains an adapter of this reference; False for what is not a reference."""
        if not isinstance(adapter, str):
            return False
        try:
            reference = AdapterReference.parse(adapter)
        except UsageError:
            return False
        try:
            with reading(self.settings) as session:
                browse.find_adapter(session, reference)
        except NotFoundError:
            return False
        return True

    # Else Python would ask for the adapters 0, 1, 2 and so on; `adapters` lists them.
    __iter__ = None


def _read_kept(blobs: BlobStore, report: ProgressCallback) -> list[Damage]:
    step = ProgressStep(report, "reading MB")
    return blobs.find_damage(lambda done, total: step.working(done // _MEGABYTE, total // _MEGABYTE))


def _totals(blobs: BlobStore) -> tuple[int, int]:
    sizes = [blob.size for blob in blobs.blobs()]
    return len(sizes), sum(sizes)


def _spellings(of_catalog: Iterable[BaseSpelling]) -> list[BaseSpelling]:
    """What the program knows from the start and what the catalog adds or replaces, by base model."""
    rows = {row.spelling: row for row in (*initial_spellings(), *of_catalog)}
    return sorted(rows.values(), key=lambda row: (row.canonical, row.kind != "canonical", row.spelling))


def _index_rows(states: Iterable[tuple[Cache, IndexState]]) -> Rows[IndexRow]:
    rows = (
        IndexRow(
            cache.name, state.state, state.vectors, str(state.path), cache.base, state.kind, state.recall
        )
        for cache, state in states
    )
    return Rows(rows, IndexRow)


def _bases(base: str | Sequence[str]) -> tuple[str, ...]:
    return (base,) if isinstance(base, str) else tuple(base)


def _open_hub(options: CrawlOptions, stop: threading.Event) -> Hub:
    from crawler.hub import Hub

    refusing(options.rules)
    return Hub(_hub_settings(options), stop=stop)


def _hub_settings(options: CrawlOptions) -> HubSettings:
    from crawler.hub import HubSettings

    return replace_fields(HubSettings.from_environment(), connections=options.workers)
