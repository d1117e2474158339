"""A snapshot, checked before a row of it is used: its manifest, digests, tables and sizes."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any

from catalog.database import frontier, head
from catalog.errors import CatalogError, ConfigError
from catalog.files import digest_of, load_json, read_limited
from catalog.snapshots.checks import check_row
from catalog.snapshots.layout import FORMAT, MANIFEST, MOST_VALUE, TABLES, SnapshotTable
from catalog.snapshots.pages import group_sizes

if TYPE_CHECKING:
    import numpy as np
    import pyarrow
    from numpy.typing import NDArray
    from pyarrow import parquet

_MOST_MANIFEST = 16_000_000
_MOST_FILE = 64_000_000_000
_MOST_ROWS = 50_000_000
# A group of rows, as the file has it and decoded; an export writes less.
_MOST_GROUP = 500_000_000
# Rows that are decoded at once, and their bytes unless it is one row.
_BATCH = 1000
_MOST_DECODED = 64_000_000
# How far the clock of the machine that wrote a snapshot may be ahead.
_SKEW = timedelta(days=1)
_OPTIONAL = {"notes", "tags"}
# What the writer of a snapshot chose, each a truth value: the fields of `SnapshotChoice`.
_CHOICES = ("cards", "with_private", "with_notes")
# Kinds of columns whose values are of any length.
_VARIABLE = ("text", "json", "bytes")


@dataclass(frozen=True)
class ListedScope:
    """A question that the snapshot answers completely, and up to when."""

    scope: str
    listing: str
    asked: Mapping[str, Any]
    started_at: datetime
    watermark: datetime


@dataclass(frozen=True)
class SnapshotFile:
    """A file that a manifest names: its path in the folder, its size and its digest."""

    path: str
    bytes: int
    sha256: str


@dataclass(frozen=True)
class SnapshotManifest:
    """A checked snapshot: its files by table, and the questions that it answers."""

    folder: Path
    files: Mapping[str, tuple[Path, ...]]
    crawls: tuple[ListedScope, ...]
    document: Mapping[str, Any]

    @property
    def paths(self) -> list[Path]:
        """The files of all tables."""
        return [path for paths in self.files.values() for path in paths]

    @property
    def rows_of_tables(self) -> dict[str, int]:
        """The number of rows of each table."""
        return {name: int(entry["rows"]) for name, entry in self.document["tables"].items()}

    def rows(self, table: SnapshotTable) -> Iterator[list[dict[str, Any]]]:
        """The rows of a table as the catalog holds them, at most a thousand at a time, checked one by one.

        Raises CatalogError, which names the file and the row, for a value that the catalog cannot hold.
        """
        from pyarrow import ArrowException

        latest = datetime.now(UTC) + _SKEW
        for path in self.files.get(table.name, ()):
            place, number = f"the snapshot's {path.parent.name}/{path.name}", 0
            try:
                for part in _parts(path, table, place):
                    columns = {name: _values(part, name, table) for name in table.columns}
                    rows = []
                    for at in range(part.num_rows):
                        number += 1
                        values = {name: column[at] for name, column in columns.items()}
                        rows.append(_read_row(values, table, latest, f"{place}, row {number:,}"))
                    yield rows
            except (ArrowException, OSError, ValueError, OverflowError) as error:
                raise CatalogError(f"{place} cannot be read: {error}") from error


def _parts(path: Path, table: SnapshotTable, place: str) -> Iterator[pyarrow.RecordBatch]:
    """The rows of a file, in parts whose values have at most `_MOST_DECODED` bytes, or that are one row.

    What a file repeats it stores once: the sizes are those of the values in every row, and are known before
    the rows are made.
    """
    import numpy as np

    with _open(path, [name for name, kind in table.columns.items() if kind in _VARIABLE]) as file:
        for group in range(file.metadata.num_row_groups):
            total = 0
            for batch in file.iter_batches(_BATCH, row_groups=[group]):
                sizes = _decoded_sizes(batch, table, place)
                total += int(sizes.sum())
                if total > _MOST_GROUP:
                    raise CatalogError(f"{place} has more than {_MOST_GROUP:,} bytes in one group of rows")
                start = 0
                while start < batch.num_rows:
                    count = int(np.searchsorted(np.cumsum(sizes[start:]), _MOST_DECODED, "right"))
                    yield batch.slice(start, max(1, count))
                    start += max(1, count)


def _decoded_sizes(batch: pyarrow.RecordBatch, table: SnapshotTable, place: str) -> NDArray[np.int64]:
    """The bytes of the values of each row, (rows,); raises CatalogError for a value that is too large."""
    import numpy as np
    from pyarrow import compute

    sizes = np.zeros(batch.num_rows, np.int64)
    for name, kind in table.columns.items():
        column = batch.column(name)
        if kind in _VARIABLE:
            lengths = compute.binary_length(column.dictionary).take(column.indices)
        elif kind == "vector":
            lengths = compute.multiply(compute.list_value_length(column), 4)
        else:
            continue
        own = compute.fill_null(lengths, 0).to_numpy(zero_copy_only=False).astype(np.int64)
        if own.size and own.max() > MOST_VALUE:
            raise CatalogError(
                f"{place} has a {name} of {own.max():,} bytes; at most {MOST_VALUE:,} are read"
            )
        sizes += own
    return sizes


def _values(batch: pyarrow.RecordBatch, name: str, table: SnapshotTable) -> Any:
    column = batch.column(name)
    if table.columns[name] == "vector":
        return [None if not value.is_valid else value.values.to_numpy() for value in column]
    return (column.dictionary_decode() if table.columns[name] in _VARIABLE else column).to_pylist()


def _read_row(
    values: Mapping[str, Any], table: SnapshotTable, latest: datetime, place: str
) -> dict[str, Any]:
    """A row as the catalog holds it; raises CatalogError, which names the place."""
    try:
        row = table.decode(values)
        for name, kind in table.columns.items():
            if kind == "time" and row[name] is not None and row[name] > latest:
                raise CatalogError(f"its {name}, {row[name]:%Y-%m-%d}, is later than now")
        check_row(table.name, row)
    except CatalogError as error:
        raise CatalogError(f"{place}: {error}") from error
    return row


def verify_snapshot(folder: Path) -> SnapshotManifest:
    """The manifest of a snapshot whose files have the digests, columns and rows that it names.

    Raises CatalogError, which says what does not agree.
    """
    content = read_limited(
        folder / MANIFEST,
        _MOST_MANIFEST,
        kind="a manifest",
        advice="give the folder of a snapshot",
        error=CatalogError,
    )
    document, _ = read_manifest(content, str(folder))
    with _translate_misstatements(str(folder)):
        tables = document["tables"]
        files = {name: _check_table(folder, TABLES[name], tables[name]) for name in tables}
        return SnapshotManifest(folder, files, tuple(map(_read_scope, document["crawls"])), document)


def verify_rows(manifest: SnapshotManifest, progress: Callable[[int, int], None]) -> None:
    """Reads every row of a checked snapshot; `progress` gets the rows read, and all.

    Raises CatalogError for a value that the catalog cannot hold, and for small files, headers and vectors
    that are not what they must be.
    """
    done, total = 0, sum(manifest.rows_of_tables.values())
    for name in manifest.files:
        for batch in manifest.rows(TABLES[name]):
            progress(done, total)
            done += len(batch)
    progress(total, total)


def read_manifest(content: bytes, place: str) -> tuple[Mapping[str, Any], tuple[SnapshotFile, ...]]:
    """A manifest of this version of loradex, and the files of all tables that it names.

    Raises CatalogError, which names the place.
    """
    try:
        document = load_json(content, max_bytes=_MOST_MANIFEST, unique_keys=True)
    except ConfigError as error:
        raise CatalogError(f"the manifest.json of {place} is not a manifest: {error}") from error
    if not isinstance(document, dict) or document.get("format") != FORMAT:
        raise CatalogError(f"{place} is not a snapshot of format {FORMAT}; export it by this loradex.")
    with _translate_misstatements(place):
        schema = document["versions"]["schema"]
        if schema != head():
            raise CatalogError(
                f"the snapshot {place} has the schema {schema} and this program {head()}: "
                "export and import by the same version of loradex"
            )
        tables = document["tables"]
        if not set(TABLES) - _OPTIONAL <= set(tables) <= set(TABLES):
            raise CatalogError(f"the tables of the snapshot {place} are not those of format {FORMAT}")
        if {name: type(value) for name, value in document["choice"].items()} != dict.fromkeys(_CHOICES, bool):
            raise ValueError("choice")
        if any(type(count) is not int or count < 0 for count in document["left_out"].values()):
            raise ValueError("left_out")
        return document, tuple(_read_file(name, file) for name in tables for file in tables[name]["files"])


@contextmanager
def _translate_misstatements(place: str) -> Iterator[None]:
    """Inside the block an entry that is missing or of another type becomes a CatalogError."""
    try:
        yield
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise CatalogError(f"the manifest of the snapshot {place} lacks or misstates {error}") from error


def _read_file(table: str, file: Mapping[str, Any]) -> SnapshotFile:
    name, size, digest = file["path"], file["bytes"], file["sha256"]
    if not re.fullmatch(rf"{table}/train-[0-9]{{5}}\.parquet", str(name)):
        raise CatalogError(f"the snapshot names a file outside its folder, or of another name: {name[:80]!r}")
    if type(size) is not int or not 0 <= size <= _MOST_FILE or not re.fullmatch("[0-9a-f]{64}", str(digest)):
        raise ValueError(f"the size or the sha256 of {name}")
    return SnapshotFile(name, size, digest)


def _check_table(folder: Path, table: SnapshotTable, entry: Mapping[str, Any]) -> tuple[Path, ...]:
    from pyarrow import ArrowException

    if dict(entry["columns"]) != table.columns:
        raise CatalogError(f"the snapshot's table {table.name} has other columns than format {FORMAT}")
    paths, rows = [], 0
    for file in (_read_file(table.name, file) for file in entry["files"]):
        path = folder / file.path
        try:
            if not path.is_file() or path.stat().st_size != file.bytes:
                raise CatalogError(f"{path} is missing, or does not have the size that the manifest names")
            if digest_of(path) != file.sha256:
                raise CatalogError(f"{path} does not have the sha256 that the manifest names; copy it again")
            with _open(path) as parquet_file:
                rows += _check_file(parquet_file, table, path)
        except (ArrowException, OSError) as error:
            raise CatalogError(f"{path} cannot be read: {error}") from error
        paths.append(path)
    if rows != entry["rows"] or rows > _MOST_ROWS:
        raise CatalogError(f"the snapshot's table {table.name} does not have {entry['rows']} rows")
    return tuple(paths)


def _check_file(file: parquet.ParquetFile, table: SnapshotTable, path: Path) -> int:
    if not file.schema_arrow.equals(table.schema(), check_metadata=False):
        raise CatalogError(f"{path} has other columns or types than format {FORMAT}")
    for size, values in group_sizes(path, file.metadata):
        # A value of a list is stored as one of a few bits, and has eight bytes at most in memory.
        if max(size, 8 * values) > _MOST_GROUP:
            raise CatalogError(f"{path} has a group of rows of more than {_MOST_GROUP:,} bytes")
    return int(file.metadata.num_rows)


def _open(path: Path, read_dictionary: Sequence[str] = ()) -> parquet.ParquetFile:
    from pyarrow import parquet

    return parquet.ParquetFile(path, read_dictionary=list(read_dictionary))


def _read_scope(entry: Mapping[str, Any]) -> ListedScope:
    """A question of the manifest; raises CatalogError unless its digests are those of what was asked."""
    asked = dict(entry["asked"])
    question = {name: value for name, value in asked.items() if name != "since"}
    listing = {name: asked[name] for name in ("hub", "queries")}
    hub = asked["hub"]
    if not isinstance(hub, str) or not re.fullmatch(r"https?://[^\s/?#@]+(/[^\s?#@]*)?", hub):
        raise CatalogError(f"the manifest names a crawl of {str(hub)[:80]!r}, which is no http or https URL")
    if frontier.digest(question) != entry["scope"] or frontier.digest(listing) != entry["listing"]:
        raise CatalogError("the manifest's digests of a crawl are not those of what it asked")
    if asked["since"] is not None or asked["limit"] is not None:
        raise CatalogError("the manifest names a crawl that did not list everything")
    started, mark = (datetime.fromisoformat(entry[name]) for name in ("started_at", "watermark"))
    if started.tzinfo is None or mark.tzinfo is None or mark > started:
        raise CatalogError("the manifest's times of a crawl are not in order")
    if started > datetime.now(UTC) + _SKEW:
        raise CatalogError(f"the manifest names a crawl of {started:%Y-%m-%d}, which is later than now")
    return ListedScope(entry["scope"], entry["listing"], asked, started, mark)
