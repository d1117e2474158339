"""Values as the JSON of the page: plain documents, and columns whose repeated values are words and codes."""

from __future__ import annotations

import base64
import dataclasses
import json
import math
from collections.abc import Iterable, Mapping, Sequence
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

from catalog.query import texts_in

if TYPE_CHECKING:
    from numpy.typing import NDArray

_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
# Of a column with fewer different values than this part of its length, each is written once.
_REPEATED = 0.5
_DIGITS = 5


def encode_json(value: object) -> bytes:
    """The value as compact JSON in UTF-8; the same value gives the same bytes."""
    text = json.dumps(plain_value(value), separators=(",", ":"), ensure_ascii=False, allow_nan=False)
    return text.encode("utf-8", "replace")


def plain_value(value: Any) -> Any:
    """The value as JSON can have it: instants in UTC as text, numbers that are not finite as null."""
    if value is None or isinstance(value, (bool, int)):
        return value
    if isinstance(value, str):
        return str(value)
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, datetime):
        return value.astimezone(UTC).isoformat(timespec="seconds").replace("+00:00", "Z")
    if isinstance(value, Mapping):
        return {str(key): plain_value(item) for key, item in value.items()}
    if isinstance(value, Iterable):
        return [plain_value(item) for item in value]
    return {field.name: plain_value(getattr(value, field.name)) for field in dataclasses.fields(value)}


def rounded(value: float) -> float:
    """The number with five significant digits, for what is drawn."""
    return float(f"{value:.{_DIGITS}g}")


def encode_column(values: Sequence[Any], kind: str, *, many: bool) -> dict[str, Any]:
    """A column of the list, by the kind of its filter field; `kind` date stands for seconds since 1970.

    Returns:
        `values`, or `words` and the `codes` that index them, -1 for a missing value; of a column of lists
        `words`, `sets` of codes of words, and `codes` of sets.
    """
    if many:
        words: dict[str, int] = {}
        sets: dict[tuple[int, ...], int] = {}
        codes = []
        for value in values:
            entry = tuple(words.setdefault(text, len(words)) for text in texts_in(value))
            codes.append(sets.setdefault(entry, len(sets)))
        return {"words": list(words), "sets": [list(entry) for entry in sets], "codes": codes}
    if kind == "date":
        values = [None if value is None else (value - _EPOCH) // _SECOND for value in values]
    places: dict[Any, int] = {}
    codes = [-1 if value is None else places.setdefault(value, len(places)) for value in values]
    if len(places) > _REPEATED * len(values) and kind != "flag":
        return {"values": plain_value(values)}
    return {"words": plain_value(list(places)), "codes": codes}


def encode_sketch(vector: NDArray[Any]) -> str:
    """The direction of a sketch as base64, a signed byte a number: enough for two digits of a cosine."""
    import numpy as np

    largest = float(np.abs(vector).max(initial=0.0)) or 1.0
    return base64.b64encode(np.round(vector / largest * 127).astype(np.int8).tobytes()).decode()


_SECOND = datetime(1970, 1, 1, 0, 0, 1, tzinfo=UTC) - _EPOCH
