"""The bulk table as a Parquet file."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from itertools import islice
from pathlib import Path
from typing import Any

from catalog.errors import UsageError
from catalog.extras import require_extra
from catalog.files import output_file
from catalog.search import table

_GROUP = 10_000


def choose_columns(columns: str | Sequence[str]) -> tuple[str, ...]:
    """The names of columns of the bulk table: "all", names with commas between, or a sequence of names.

    Raises UsageError for a name that is not one.
    """
    names = [name.strip() for name in columns.split(",")] if isinstance(columns, str) else list(columns)
    if names == ["all"]:
        return tuple(table.KINDS)
    for name in names:
        if name not in table.KINDS:
            raise UsageError(f"{name!r} is not a column; use all, or some of {', '.join(table.KINDS)}.")
    return tuple(dict.fromkeys(names))


def write_parquet(rows: Iterable[Mapping[str, Any]], columns: Sequence[str], path: Path) -> int:
    """Writes rows of the bulk table as a Parquet file (zstd), in place of what is there; returns how many.

    Raises UsageError without pyarrow, and StorageError if the disk refuses; then nothing is replaced.
    """
    require_extra("table", "A Parquet file")
    import pyarrow
    import pyarrow.parquet

    types = {
        "text": pyarrow.string(),
        "whole": pyarrow.int64(),
        "number": pyarrow.float64(),
        "flag": pyarrow.bool_(),
        "list": pyarrow.list_(pyarrow.string()),
        "date": pyarrow.timestamp("us", tz="UTC"),
    }
    schema = pyarrow.schema([(name, types[table.KINDS[name]]) for name in columns])
    count = 0
    with (
        output_file(path) as new,
        pyarrow.parquet.ParquetWriter(new, schema, compression="zstd") as writer,
    ):
        remaining_rows = iter(rows)
        while group := list(islice(remaining_rows, _GROUP)):
            writer.write_table(pyarrow.Table.from_pylist(group, schema=schema))
            count += len(group)
    return count
