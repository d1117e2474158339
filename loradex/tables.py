"""Tables in files, row by row as dictionaries: CSV, TSV, JSON, JSON lines and Parquet, read strictly."""

from __future__ import annotations

import csv
import io
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from catalog.errors import ConfigError, NotFoundError, UsageError
from catalog.extras import require_extra
from catalog.files import load_json, read_limited

SUFFIXES = (".csv", ".tsv", ".json", ".jsonl", ".parquet")
_MOST_BYTES = 512 * 1024 * 1024
_ADVICE = "give a .csv, .tsv, .json, .jsonl or .parquet file"


def read_table(path: Path) -> list[Mapping[str, Any]]:
    """The rows of a file; raises NotFoundError, and UsageError with the line for what is not a table."""
    if path.suffix.lower() not in SUFFIXES:
        raise UsageError(f"{path} is not a table; {_ADVICE}.")
    data = read_limited(path, _MOST_BYTES, kind="a table", advice=_ADVICE, error=UsageError)
    if path.suffix.lower() == ".parquet":
        return _parquet_rows(path, data)
    if path.suffix.lower() in (".csv", ".tsv"):
        return _csv_rows(path, data, "\t" if path.suffix.lower() == ".tsv" else ",")
    return _json_rows(path, data)


def table_files(source: Path) -> dict[str, Path]:
    """The files of a source by the name of their split: one file is "train", a folder has one a split.

    Raises NotFoundError if there is no table.
    """
    if not source.is_dir():
        return {"train": source}
    files: dict[str, Path] = {}
    for path in sorted(source.iterdir()):
        if path.suffix.lower() in SUFFIXES and path.is_file():
            if path.stem in files:
                raise UsageError(f"{source} has two files of the split {path.stem}; remove one.")
            files[path.stem] = path
    if not files:
        raise NotFoundError(f"{source} contains no table; {_ADVICE}, or a folder with one a split.")
    return files


def _csv_rows(path: Path, data: bytes, delimiter: str) -> list[Mapping[str, Any]]:
    csv.field_size_limit(_MOST_BYTES)
    try:
        reader = csv.reader(
            io.StringIO(data.decode("utf-8-sig"), newline=""), delimiter=delimiter, strict=True
        )
        head = next(reader, [])
        if len(set(head)) < len(head) or not all(head):
            raise UsageError(f"{path} line 1: a column has no name, or two have the same.")
        rows: list[Mapping[str, Any]] = []
        for row in reader:
            if len(row) != len(head):
                raise UsageError(f"{path} line {reader.line_num}: requires {len(head)} cells as in line 1.")
            rows.append(dict(zip(head, row, strict=True)))
    except (UnicodeDecodeError, csv.Error) as error:
        raise UsageError(f"{path} is not a table in UTF-8: {error}.") from error
    return rows


def _json_rows(path: Path, data: bytes) -> list[Mapping[str, Any]]:
    """A list of objects, an object with one such list, or an object a line."""
    text = data.lstrip()
    try:
        if text[:1] == b"[" or (path.suffix.lower() == ".json" and b"\n{" not in text.strip()):
            document = load_json(data, max_bytes=_MOST_BYTES)
            if isinstance(document, dict):
                lists = [value for value in document.values() if isinstance(value, list)]
                document = lists[0] if len(lists) == 1 else [document]
            numbered = list(enumerate(document if isinstance(document, list) else [document], 1))
            unit = "row"
        else:
            lines = data.split(b"\n")
            numbered = [
                (number, load_json(line, max_bytes=_MOST_BYTES))
                for number, line in enumerate(lines, 1)
                if line.strip()
            ]
            unit = "line"
    except ConfigError as error:
        raise UsageError(f"{path} is not JSON: {error}.") from error
    if wrong := next((number for number, row in numbered if not isinstance(row, dict)), None):
        raise UsageError(f"{path} {unit} {wrong} is not a JSON object.")
    return [row for _, row in numbered if isinstance(row, dict)]


def _parquet_rows(path: Path, data: bytes) -> list[Mapping[str, Any]]:
    require_extra("harness", "A Parquet file")
    import pyarrow
    import pyarrow.parquet

    try:
        rows: list[Mapping[str, Any]] = pyarrow.parquet.read_table(io.BytesIO(data)).to_pylist()
    except pyarrow.ArrowException as error:
        raise UsageError(
            f"{path} is not a Parquet file: {str(error).splitlines()[0].rstrip('.')}."
        ) from error
    return rows
