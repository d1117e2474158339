"""The tables of a snapshot: columns of the catalog's tables, with names in place of row numbers.

A repository is named by its `hub_id`, an adapter by that, its commit and folder, a base model by its
canonical id. Vectors are lists of float32, and other JSON is text.
"""

from __future__ import annotations

import enum
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING, Any, cast

from sqlalchemy import Boolean, Enum, Integer, LargeBinary, Table

from catalog.database import (
    Adapter,
    AdapterReason,
    Annotation,
    AnnotationTag,
    BaseModelRow,
    BaseSpellingRow,
    CleanJSON,
    Counter,
    DocumentRow,
    Embedding,
    Evaluation,
    FingerprintRow,
    ItemList,
    Real,
    Repository,
    RepositoryAlias,
    UTCDateTime,
    WeightsFile,
)
from catalog.errors import CatalogError, LoradexError
from catalog.files import load_json

if TYPE_CHECKING:
    import pyarrow

FORMAT = 1
MANIFEST = "manifest.json"
# The entries of a card's front matter that filters ask for, or that other facts of an adapter follow from: a
# snapshot without the card has them.
CARD_FACTS = ("base_model", "datasets", "language", "licence", "license", "license_name")
ADAPTER_KEY = ("hub_id", "commit", "subfolder")
AdapterKey = tuple[str, str, str]
_OF_CARDS = ("card_digest", "card_text", "card_front")
VECTORS = ("spectrum", "delta", "output", "vector")
# The bytes of one value.
MOST_VALUE = 64 * 1024 * 1024


@dataclass(frozen=True)
class SnapshotTable:
    """A table: the catalog's table that it has the columns of, but for those `without`, after the columns
    `keys` and before the columns `added`, with their kinds.
    """

    name: str
    source: type[Any] | None
    keys: Mapping[str, str] = field(default_factory=dict)
    without: tuple[str, ...] = ()
    added: Mapping[str, str] = field(default_factory=dict)
    only: tuple[str, ...] = ()

    @property
    def table(self) -> Table:
        """The catalog's table."""
        return cast("Table", cast("Any", self.source).__table__)

    @cached_property
    def own(self) -> dict[str, str]:
        """The kinds of the columns of the catalog's table, by name."""
        columns = () if self.source is None else self.table.columns
        return {
            column.name: _kind(column)
            for column in columns
            if column.name not in self.without and (not self.only or column.name in self.only)
        }

    @cached_property
    def columns(self) -> dict[str, str]:
        """The kinds of all columns, by name, in order."""
        return {**self.keys, **self.own, **self.added}

    @cached_property
    def _enums(self) -> dict[str, type[enum.Enum]]:
        types = {name: self.table.columns[name].type for name in self.own}
        return {
            name: kind.enum_class
            for name, kind in types.items()
            if isinstance(kind, Enum) and kind.enum_class is not None
        }

    def schema(self) -> pyarrow.Schema:
        """The columns for Arrow."""
        import pyarrow

        types = {
            "text": pyarrow.string(),
            "json": pyarrow.string(),
            "whole": pyarrow.int64(),
            "number": pyarrow.float64(),
            "flag": pyarrow.bool_(),
            "time": pyarrow.timestamp("us", tz="UTC"),
            "bytes": pyarrow.binary(),
            "vector": pyarrow.list_(pyarrow.float32()),
        }
        return pyarrow.schema([(name, types[kind]) for name, kind in self.columns.items()])

    def encode(self, row: Mapping[str, Any]) -> dict[str, Any]:
        """A row as Parquet holds it."""
        return {name: _encode(kind, row[name]) for name, kind in self.columns.items()}

    def decode(self, row: Mapping[str, Any]) -> dict[str, Any]:
        """A row of a snapshot as the catalog holds it; raises CatalogError for a value that it cannot."""
        try:
            values = {name: _decode(kind, row[name]) for name, kind in self.columns.items()}
            for name, members in self._enums.items():
                if values[name] is not None:
                    values[name] = members(values[name])
        except (ValueError, TypeError, LoradexError) as error:
            raise CatalogError(f"it contains an invalid value: {error}") from error
        return values


def _kind(column: Any) -> str:
    if isinstance(column.type, LargeBinary):
        return "vector" if column.name in VECTORS else "bytes"
    kinds: dict[type[Any], str] = {
        Counter: "whole",
        Integer: "whole",
        Boolean: "flag",
        Real: "number",
        UTCDateTime: "time",
        CleanJSON: "json",
    }
    return next((kind for type_, kind in kinds.items() if isinstance(column.type, type_)), "text")


def _encode(kind: str, value: Any) -> Any:
    if value is None:
        return None
    if kind == "json":
        return json.dumps(value, sort_keys=True, allow_nan=False, ensure_ascii=False)
    if kind == "vector":
        import numpy as np

        return np.frombuffer(value, "<f4")
    return getattr(value, "value", value)


def _decode(kind: str, value: Any) -> Any:
    if value is None:
        return None
    if kind == "json":
        return load_json(value.encode(), max_bytes=MOST_VALUE)
    if kind == "vector":
        import numpy as np

        return np.asarray(value, "<f4").tobytes()
    return value


_ADAPTER = dict.fromkeys(ADAPTER_KEY, "text")
_NUMBERS = ("id", "repository_id", "adapter_id", "base_model_id")
REPOSITORIES = SnapshotTable("repositories", Repository, without=("id",))
ALIASES = SnapshotTable("aliases", RepositoryAlias, {"hub_id": "text"}, ("repository_id",))
ADAPTERS = SnapshotTable(
    "adapters",
    Adapter,
    {"repository": "text", "hub_id": "text"},
    (*_NUMBERS, *_OF_CARDS, "files", "training"),
    {"base": "text", "card_digest": "text", "card_facts": "json"},
)
REASONS = SnapshotTable("reasons", AdapterReason, _ADAPTER, ("adapter_id",))
FILES = SnapshotTable("files", None, _ADAPTER, added={"position": "whole", "file": "json"})
TRAINING = SnapshotTable("training", Adapter, _ADAPTER, only=("training",))
CARDS = SnapshotTable("cards", Adapter, _ADAPTER, only=_OF_CARDS)
WEIGHTS = SnapshotTable("weights", WeightsFile)
DOCUMENTS = SnapshotTable("documents", DocumentRow)
FINGERPRINTS = SnapshotTable("fingerprints", FingerprintRow)
EMBEDDINGS = SnapshotTable("embeddings", Embedding)
SCORES = SnapshotTable(
    "scores",
    Evaluation,
    without=("id", "adapter_id"),
    added={f"adapter_{name}": "text" for name in ADAPTER_KEY},
)
ITEMS = SnapshotTable("items", ItemList)
BASES = SnapshotTable("bases", BaseModelRow, without=("id",))
SPELLINGS = SnapshotTable("spellings", BaseSpellingRow, {"base": "text"}, ("base_model_id",))
LISTED = SnapshotTable("listed", None, {"listing": "text", "hub_id": "text"})
NOTES = SnapshotTable("notes", Annotation)
TAGS = SnapshotTable("tags", AnnotationTag)
TABLES = {
    table.name: table
    for table in (
        *(ADAPTERS, REPOSITORIES, ALIASES, REASONS, FILES, TRAINING, CARDS, WEIGHTS, DOCUMENTS),
        *(FINGERPRINTS, EMBEDDINGS, SCORES, ITEMS, BASES, SPELLINGS, LISTED, NOTES, TAGS),
    )
}


def adapter_key(row: Mapping[str, Any]) -> AdapterKey:
    """The id of the repository, the commit and the folder of a row."""
    return row["hub_id"], row["commit"], row["subfolder"]
