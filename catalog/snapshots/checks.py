"""What a row of a snapshot must be beyond its types: words, names and numbers that a crawl writes."""

from __future__ import annotations

import hashlib
import zlib
from collections.abc import Callable, Mapping
from typing import Any

from catalog.adapters import valid_hub_id, valid_name
from catalog.database import annotation_store
from catalog.errors import CatalogError, UsageError
from catalog.files import unsafe_path
from catalog.fingerprints import FINGERPRINT_VERSION
from catalog.search import SPACES, table
from catalog.snapshots.layout import VECTORS

# The largest header of a weights file, its length included.
_MOST_HEADER = 25_000_008


def check_row(name: str, row: Mapping[str, Any]) -> None:
    """Raises CatalogError, which says what is wrong, for a row of this table that no crawl or user wrote."""
    if not valid_hub_id(row.get("hub_id", "_")):
        raise CatalogError("its hub_id is not the `_id` of a repository")
    if row.get("subfolder") and (reason := unsafe_path(row["subfolder"])):
        raise CatalogError(f"its subfolder {reason}")
    if (check := _CHECKS.get(name)) is not None:
        check(row)


def _check_repository(row: Mapping[str, Any]) -> None:
    _check_alias(row)
    if row["owner"] != row["name"].rpartition("/")[0]:
        raise CatalogError(f"its owner is not that of {row['name']}")


def _check_alias(row: Mapping[str, Any]) -> None:
    if not valid_name(row["name"]):
        raise CatalogError(f"{str(row['name'])[:80]!r} is not the name of a repository, owner/name")


def _check_file(row: Mapping[str, Any]) -> None:
    file = row["file"]
    if (
        not isinstance(file, dict)
        or not isinstance(file.get("name"), str)
        or unsafe_path(file["name"])
        or type(file.get("size")) is not int
        or not isinstance(file.get("digest"), str | None)
    ):
        raise CatalogError("its file is not a name, a size and a digest")


def _check_training(row: Mapping[str, Any]) -> None:
    facts = row["training"]
    if not isinstance(facts, dict):
        raise CatalogError("its training facts are not an object")
    for name, kind in table.TRAINING.items():
        value = facts.get(name)
        if value is None or kind not in ("whole", "number"):
            continue
        if (
            type(value) not in (int, float)
            or abs(value) > table.LARGEST[kind]
            or (kind == "whole" and value % 1)
        ):
            raise CatalogError(f"its {name} is not a {kind} number that 64 bits hold")


def _check_note(row: Mapping[str, Any]) -> None:
    if row["note"] is not None:
        _check_words(row["note"], annotation_store.check_note)


def _check_tag(row: Mapping[str, Any]) -> None:
    _check_words(row["tag"], annotation_store.check_tag)


def _check_words(words: Any, check: Callable[[str], str]) -> None:
    try:
        checked = check(str(words))
    except UsageError as error:
        raise CatalogError(str(error).rstrip(".")) from error
    if checked != words:
        raise CatalogError(f"{str(words)[:40]!r} has spaces around it")


def _check_header(row: Mapping[str, Any]) -> None:
    """Raises CatalogError unless the header of a weights file is compressed, of a size that is allowed."""
    if row["header"] is None:
        return
    reader = zlib.decompressobj()
    try:
        reader.decompress(row["header"], _MOST_HEADER)
    except zlib.error as error:
        raise CatalogError(f"its header is not compressed: {error}") from error
    if not reader.eof:
        raise CatalogError("its header is too large or incomplete")


def _check_document(row: Mapping[str, Any]) -> None:
    """Raises CatalogError unless a small file has the digest, sha256 or git's, under which it is stored."""
    content, digest = row["content"] or b"", row["digest"]
    if len(digest) == 40:
        actual = hashlib.sha1(b"blob %d\0" % len(content) + content, usedforsecurity=False).hexdigest()
    else:
        actual = hashlib.sha256(content).hexdigest()
    if actual != digest:
        raise CatalogError(f"the document {digest[:12]} has other bytes than its digest says")


def _check_vectors(row: Mapping[str, Any]) -> None:
    """Raises CatalogError for vectors that are not finite, or of another size than searches compare."""
    import numpy as np

    vectors = {name: np.frombuffer(row[name], "<f4") for name in VECTORS if row.get(name) is not None}
    sizes = {name: SPACES[name].size for name in ("delta", "output")}
    for name, vector in vectors.items():
        wrong = row.get("version") == FINGERPRINT_VERSION and len(vector) != sizes.get(name, len(vector))
        if wrong or (name != "spectrum" and not np.isfinite(vector).all()):
            raise CatalogError(f"its vector ({name}) is of another size, or not finite")


_CHECKS: Mapping[str, Callable[[Mapping[str, Any]], None]] = {
    "repositories": _check_repository,
    "aliases": _check_alias,
    "files": _check_file,
    "training": _check_training,
    "documents": _check_document,
    "weights": _check_header,
    "fingerprints": _check_vectors,
    "embeddings": _check_vectors,
    "notes": _check_note,
    "tags": _check_tag,
}
