"""The tags, notes and hidden marks of a user: one row an adapter, and their file."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from catalog.adapters import AdapterNotes
from catalog.database import annotation_store
from catalog.errors import ConfigError, UsageError
from catalog.files import load_json, output_file, read_limited

FORMAT = "loradex-annotations/1"
_MOST_BYTES = 256 * 1024 * 1024
# The name of an adapter in the deepest folder that a crawl reads has 1,218 characters.
_LONGEST_NAME = 1500


@dataclass(frozen=True)
class AnnotationImport:
    """What an import of annotations did: the adapters that it changed, those that had the same already, and
    those whose note was left as it was.
    """

    changed: int
    same: int
    kept_notes: Sequence[str]


def write_annotations(rows: Sequence[AdapterNotes], path: Path) -> None:
    """Writes annotations as a document that `read_annotations` reads; raises StorageError."""
    document = {"format": FORMAT, "annotations": [asdict(row) for row in rows]}
    text = json.dumps(document, indent=2, sort_keys=True, ensure_ascii=False)
    with output_file(path) as new:
        new.write_text(f"{text}\n", encoding="utf-8")


def read_annotations(path: Path) -> list[AdapterNotes]:
    """The annotations of a file; raises UsageError with the place of what is not valid."""
    advice = "give a file that `export_annotations()` wrote"
    data = read_limited(path, _MOST_BYTES, kind="annotations", advice=advice, error=UsageError)
    try:
        document = load_json(data, max_bytes=_MOST_BYTES)
    except ConfigError as error:
        raise UsageError(f"{path} is not a file of annotations: {error}.") from error
    if not isinstance(document, dict) or document.get("format") != FORMAT:
        raise UsageError(f"{path} is not a file of annotations: its format is not {FORMAT}.")
    rows = document.get("annotations")
    if not isinstance(rows, list):
        raise UsageError(f"{path} has no list of annotations.")
    return [_read_row(row, f"{path}, annotation {place}") for place, row in enumerate(rows, 1)]


def _read_row(row: Any, place: str) -> AdapterNotes:
    values = row if isinstance(row, dict) else {}
    names = [values.get(name) for name in ("adapter", "hub_id", "subfolder")]
    texts = [name for name in names if isinstance(name, str) and len(name) <= _LONGEST_NAME]
    tags, note, hidden = values.get("tags", []), values.get("note"), values.get("hidden", False)
    if (
        len(texts) != len(names)
        or not texts[1]
        or not isinstance(tags, list)
        or not all(isinstance(tag, str) for tag in tags)
        or not (note is None or isinstance(note, str))
        or not isinstance(hidden, bool)
    ):
        raise UsageError(f"{place}: it needs adapter, hub_id and subfolder, and may have tags, note, hidden.")
    try:
        tags = tuple(sorted({annotation_store.check_tag(tag) for tag in tags}))
        note = None if note is None else annotation_store.check_note(note)
    except UsageError as error:
        raise UsageError(f"{place}: {error}") from error
    return AdapterNotes(texts[0], texts[1], texts[2], tags, note, hidden)
