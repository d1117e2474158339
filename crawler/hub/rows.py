"""One raw row of a listing page → the repository it describes, or the reason why it is invalid.

The rows come from the Hub but their contents from its users, so no field is trusted. A row is bad only if it
does not identify a repository; any other invalid field is left out.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

from catalog.adapters import RepositoryRecord, valid_hub_id, valid_name
from catalog.errors import UnreadableError
from catalog.files import UNSTORABLE
from crawler.reading import reading

_SHA = re.compile(r"[0-9a-f]{40}")
_DATE = re.compile(
    r"([0-9]{4}-[0-9]{2}-[0-9]{2}T[0-9]{2}:[0-9]{2}:[0-9]{2})(\.[0-9]{1,9})?(Z|[+-][0-9]{2}:[0-9]{2})?"
)
_LONGEST_TEXT = 1024
_LARGEST_COUNT = 2**63 - 1
_MOST_TAGS = 2_000
_MOST_SIBLINGS = 100_000
_DEEPEST_ROW = 64
_EXCERPT = 500


# Fields of a row, in addition to its identity, that are kept unchanged.
KEPT = (
    *("createdAt", "disabled", "downloads", "downloadsAllTime", "gated", "lastModified", "library_name"),
    *("likes", "pipeline_tag", "private", "sha", "tags"),
)


@dataclass(frozen=True)
class ListedRepository(RepositoryRecord):
    """The facts about one repository on a listing page; `config_base` is the base model in its config."""

    siblings: tuple[str, ...] | None
    config_base: str | None


@dataclass(frozen=True)
class BadRow:
    """A row without a valid repository: the reason, and its beginning as ASCII JSON."""

    reason: str
    excerpt: str


def parse_row(raw: object) -> ListedRepository | BadRow:
    """The repository of one raw row, or a BadRow when its identity cannot be used; never raises."""
    try:
        with reading("the row"):
            return _parse(raw)
    except UnreadableError as error:
        return BadRow(str(error), "")


def _parse(raw: object) -> ListedRepository | BadRow:
    if not isinstance(raw, Mapping):
        return BadRow("the row is not an object", _excerpt(raw))
    if _too_deep(raw):
        return BadRow("the row is nested too deep", _excerpt(raw))
    hub_id, name, sha = raw.get("_id"), raw.get("id"), raw.get("sha")
    if not isinstance(hub_id, str) or not valid_hub_id(hub_id):
        return BadRow("the row has no usable _id", _excerpt(raw))
    if not isinstance(name, str) or not valid_name(name):
        return BadRow("the row has no usable id", _excerpt(raw))
    if sha is not None and not (isinstance(sha, str) and _SHA.fullmatch(sha)):
        return BadRow("the row's sha is not a commit", _excerpt(raw))
    return ListedRepository(
        hub_id=hub_id,
        name=name,
        commit=sha,
        last_modified=_date(raw.get("lastModified")),
        created_at=_date(raw.get("createdAt")),
        gated=_gate(raw.get("gated")),
        disabled=raw.get("disabled") is True,
        private=raw.get("private") is True,
        downloads=read_count(raw.get("downloads")),
        downloads_all_time=read_count(raw.get("downloadsAllTime")),
        likes=read_count(raw.get("likes")),
        tags=_texts(raw.get("tags"), _MOST_TAGS) or (),
        library=_text(raw.get("library_name")),
        pipeline_tag=_text(raw.get("pipeline_tag")),
        siblings=_file_names(raw.get("siblings")),
        config_base=_config_base(raw.get("config")),
    )


def reduce_row(raw: object) -> dict[str, object]:
    """The parts of a raw row that `parse_row` reads, without file names."""
    if not isinstance(raw, Mapping):
        return {}
    fields = {key: raw[key] for key in ("_id", "id", *KEPT) if key in raw}
    config = raw.get("config")
    if isinstance(config, Mapping):
        fields["config"] = {"peft": config.get("peft")}
    return fields


def _gate(value: object) -> str | None:
    if value is None or value is False:
        return None
    # An unknown value does not mean open.
    return "auto" if value == "auto" else "manual"


def read_count(value: object) -> int | None:
    """A number of things or bytes, None for any value that is none or that 64 bits cannot hold."""
    is_count = isinstance(value, int) and not isinstance(value, bool) and 0 <= value <= _LARGEST_COUNT
    return value if isinstance(value, int) and is_count else None


def _date(value: object) -> datetime | None:
    match = _DATE.fullmatch(value) if isinstance(value, str) else None
    if match is None:
        return None
    fraction = (match[2] or ".0")[1:7].ljust(6, "0")
    offset = "+00:00" if match[3] in (None, "Z") else match[3]
    try:
        return datetime.fromisoformat(f"{match[1]}.{fraction}{offset}").astimezone(UTC)
    except (ValueError, OverflowError):
        return None


def _texts(value: object, most: int) -> tuple[str, ...] | None:
    """The texts among the first entries of a list; None for any other value."""
    if not isinstance(value, list):
        return None
    return tuple(text for entry in value[:most] if (text := _text(entry)) is not None)


def _file_names(value: object) -> tuple[str, ...] | None:
    if not isinstance(value, list):
        return None
    return _texts([entry.get("rfilename") for entry in value if isinstance(entry, Mapping)], _MOST_SIBLINGS)


def _config_base(value: object) -> str | None:
    for key in ("peft", "base_model_name_or_path"):
        value = value.get(key) if isinstance(value, Mapping) else None
    return _text(value)


def _too_deep(row: object) -> bool:
    """Whether a row is nested too deep for recursion, including writing it as JSON."""
    level: list[Any] = [row]
    for _ in range(_DEEPEST_ROW):
        inner = (node.values() if isinstance(node, Mapping) else node for node in level)
        level = [value for values in inner for value in values if isinstance(value, (dict, list))]
        if not level:
            return False
    return True


def _text(value: object) -> str | None:
    """The text, if it is one of reasonable length that any database stores."""
    short = isinstance(value, str) and len(value) <= _LONGEST_TEXT and not UNSTORABLE.search(value)
    return value if isinstance(value, str) and short else None


def _excerpt(raw: object) -> str:
    try:
        return json.dumps(raw)[:_EXCERPT]
    except (TypeError, ValueError, RecursionError):
        return f"a {type(raw).__name__} that cannot be shown"
