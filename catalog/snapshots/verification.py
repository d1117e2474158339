"""A snapshot, checked before a row of it is used: its manifest, digests, tables and sizes."""

from __future__ import annotations

import hashlib
import re
import zlib
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from catalog.database import frontier, head
from catalog.errors import CatalogError, ConfigError
from catalog.files import digest_of, load_json, read_limited
from catalog.fingerprints import FINGERPRINT_VERSION
from catalog.search import SPACES
from catalog.snapshots.layout import FORMAT, MANIFEST, TABLES, VECTORS, SnapshotTable

if TYPE_CHECKING:
    from pyarrow import parquet

_MOST_MANIFEST = 16_000_000
_MOST_FILE = 64_000_000_000
_MOST_ROWS = 50_000_000
# A group of rows is in memory at once, and none needs more than this.
_MOST_GROUP = 4_000_000_000
_BATCH = 1000
# The largest header of a weights file, its length included.
_MOST_HEADER = 25_000_008
_OPTIONAL = {"notes", "tags"}


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
class Manifest:
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
        """The rows of a table as the catalog holds them, a thousand at a time, checked one by one."""
        from pyarrow import ArrowException

        check = _CHECKS.get(table.name)

        try:
            for path in self.files.get(table.name, ()):
                with _open(path) as file:
                    for batch in file.iter_batches(_BATCH):
                        columns = {name: _values(batch, name, table) for name in table.columns}
                        rows = [
                            table.decode({name: values[row] for name, values in columns.items()})
                            for row in range(batch.num_rows)
                        ]
                        if check is not None:
                            for row in rows:
                                check(row)
                        yield rows
        except (ArrowException, OSError) as error:
            raise CatalogError(f"the snapshot's table {table.name} cannot be read: {error}") from error


def _values(batch: Any, name: str, table: SnapshotTable) -> Any:
    column = batch.column(name)
    if table.columns[name] != "vector":
        return column.to_pylist()
    return [None if not value.is_valid else value.values.to_numpy() for value in column]


def verify_snapshot(folder: Path) -> Manifest:
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
    with _misstated(str(folder)):
        tables = document["tables"]
        files = {name: _check_table(folder, TABLES[name], tables[name]) for name in tables}
        return Manifest(folder, files, tuple(map(_read_scope, document["crawls"])), document)


def verify_rows(manifest: Manifest, progress: Callable[[int, int], None]) -> None:
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
    with _misstated(place):
        schema = document["versions"]["schema"]
        if schema != head():
            raise CatalogError(
                f"the snapshot {place} has the schema {schema} and this program {head()}: "
                "export and import by the same version of loradex"
            )
        tables = document["tables"]
        if not set(TABLES) - _OPTIONAL <= set(tables) <= set(TABLES):
            raise CatalogError(f"the tables of the snapshot {place} are not those of format {FORMAT}")
        return document, tuple(_read_file(name, file) for name in tables for file in tables[name]["files"])


@contextmanager
def _misstated(place: str) -> Iterator[None]:
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
    groups = (file.metadata.row_group(number) for number in range(file.metadata.num_row_groups))
    if any(group.total_byte_size > _MOST_GROUP for group in groups):
        raise CatalogError(f"{path} has a group of rows of more than {_MOST_GROUP:,} bytes")
    return int(file.metadata.num_rows)


def _open(path: Path) -> parquet.ParquetFile:
    from pyarrow import parquet

    return parquet.ParquetFile(path)


def _read_scope(entry: Mapping[str, Any]) -> ListedScope:
    """A question of the manifest; raises CatalogError unless its digests are those of what was asked."""
    asked = dict(entry["asked"])
    question = {name: value for name, value in asked.items() if name != "since"}
    listing = {name: asked[name] for name in ("hub", "queries")}
    if frontier.digest(question) != entry["scope"] or frontier.digest(listing) != entry["listing"]:
        raise CatalogError("the manifest's digests of a crawl are not those of what it asked")
    if asked["since"] is not None or asked["limit"] is not None:
        raise CatalogError("the manifest names a crawl that did not list everything")
    started, mark = (datetime.fromisoformat(entry[name]) for name in ("started_at", "watermark"))
    if started.tzinfo is None or mark.tzinfo is None or mark > started:
        raise CatalogError("the manifest's times of a crawl are not in order")
    return ListedScope(entry["scope"], entry["listing"], asked, started, mark)


def _check_header(row: Mapping[str, Any]) -> None:
    """Raises CatalogError unless the header of a weights file is compressed, of a size that is allowed."""
    if row["header"] is None:
        return
    reader = zlib.decompressobj()
    try:
        reader.decompress(row["header"], _MOST_HEADER)
    except zlib.error as error:
        raise CatalogError(f"the snapshot's table weights: a header is not compressed: {error}") from error
    if not reader.eof:
        raise CatalogError("the snapshot's table weights: a header is too large or incomplete")


def _check_document(row: Mapping[str, Any]) -> None:
    """Raises CatalogError unless a small file has the digest, sha256 or git's, under which it is stored."""
    content, digest = row["content"] or b"", row["digest"]
    if len(digest) == 40:
        actual = hashlib.sha1(b"blob %d\0" % len(content) + content, usedforsecurity=False).hexdigest()
    else:
        actual = hashlib.sha256(content).hexdigest()
    if actual != digest:
        raise CatalogError(f"the snapshot's document {digest[:12]} has other bytes than its digest says")


def _check_vectors(row: Mapping[str, Any]) -> None:
    """Raises CatalogError for vectors that are not finite, or of another size than searches compare."""
    import numpy as np

    vectors = {name: np.frombuffer(row[name], "<f4") for name in VECTORS if row.get(name) is not None}
    sizes = {name: SPACES[name].size for name in ("delta", "output")}
    for name, vector in vectors.items():
        wrong = row.get("version") == FINGERPRINT_VERSION and len(vector) != sizes.get(name, len(vector))
        if wrong or (name != "spectrum" and not np.isfinite(vector).all()):
            raise CatalogError(f"the snapshot has a vector ({name}) of another size, or that is not finite")


_CHECKS: Mapping[str, Callable[[Mapping[str, Any]], None]] = {
    "documents": _check_document,
    "weights": _check_header,
    "fingerprints": _check_vectors,
    "embeddings": _check_vectors,
}
