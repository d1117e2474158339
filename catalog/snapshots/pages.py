"""The sizes that the pages of a Parquet file have, read from their headers before a page is decompressed.

The footer of a file states the size of a column, but a reader allocates what the header of each page states:
https://parquet.apache.org/docs/file-format/data-pages/, in Thrift's compact protocol.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO

from catalog.errors import CatalogError

if TYPE_CHECKING:
    from pyarrow import parquet

_LONGEST_HEADER = 1 << 20
_DEEPEST_HEADER = 4
# The kinds of Thrift's compact protocol that headers of pages have.
_TRUE, _FALSE, _BYTE, _INTEGERS, _BINARY, _STRUCT = 1, 2, 3, (4, 5, 6), 8, 12
# The fields of a header: the sizes of a page, and the structs in which its kinds count their values.
_UNCOMPRESSED, _COMPRESSED, _KINDS = 2, 3, (5, 7, 8)


def group_sizes(path: Path, metadata: parquet.FileMetaData) -> Iterator[tuple[int, int]]:
    """The bytes that the pages of each group of rows have when decompressed, and their values.

    Raises CatalogError for a header that is not one.
    """
    with path.open("rb") as file:
        for number in range(metadata.num_row_groups):
            group, size, values = metadata.row_group(number), 0, 0
            for column in (group.column(place) for place in range(group.num_columns)):
                if not column.num_values:  # no page of it is read
                    continue
                start = column.data_page_offset
                if column.has_dictionary_page and 0 < column.dictionary_page_offset < start:
                    start = column.dictionary_page_offset
                for page_size, count in _pages(file, start, start + column.total_compressed_size):
                    size, values = size + page_size, values + count
            yield size, values


def _pages(file: BinaryIO, start: int, end: int) -> Iterator[tuple[int, int]]:
    """The bytes and the values of each page of a column."""
    while start < end:
        file.seek(start)
        try:
            header, length = _read_struct(file.read(min(_LONGEST_HEADER, end - start)), 0, 0)
            size, compressed = header[_UNCOMPRESSED], header[_COMPRESSED]
            values = sum(header[kind][1] for kind in _KINDS if kind in header)
        except (IndexError, KeyError, TypeError) as error:
            raise CatalogError(f"{file.name} has a page without a readable header") from error
        if size < 0 or compressed < 0 or values < 0:
            raise CatalogError(f"{file.name} has a page of a negative size")
        yield size, values
        start += length + compressed


def _read_struct(data: bytes, at: int, depth: int) -> tuple[dict[int, Any], int]:
    """The fields of a struct by their numbers, and where it ends; raises IndexError where it does not."""
    if depth > _DEEPEST_HEADER:
        raise IndexError
    fields: dict[int, Any] = {}
    number = 0
    while (byte := data[at]) != 0:
        at, kind = at + 1, byte & 15
        if byte >> 4:
            number += byte >> 4
        else:
            number, at = _read_integer(data, at)
        if kind in (_TRUE, _FALSE):
            continue
        if kind == _BYTE:
            at += 1
        elif kind in _INTEGERS:
            fields[number], at = _read_integer(data, at)
        elif kind == _BINARY:
            length, at = _read_unsigned(data, at)
            at += length
        elif kind == _STRUCT:
            fields[number], at = _read_struct(data, at, depth + 1)
        else:
            raise IndexError
    return fields, at + 1


def _read_unsigned(data: bytes, at: int) -> tuple[int, int]:
    value = 0
    for shift in range(0, 70, 7):
        value |= (data[at] & 127) << shift
        at += 1
        if data[at - 1] < 128:
            return value, at
    raise IndexError


def _read_integer(data: bytes, at: int) -> tuple[int, int]:
    value, at = _read_unsigned(data, at)
    return value >> 1 ^ -(value & 1), at
