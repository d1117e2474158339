"""Text and JSON that every database can store: without NUL, lone surrogates, NaN and very large integers."""

from __future__ import annotations

import math
import re
from typing import Any

# What no database stores in a text: NUL and halves of surrogate pairs.
UNSTORABLE = re.compile("[\x00\ud800-\udfff]")
_INT64 = 2**63 - 1


def clean_text(text: str) -> str:
    """The text with NUL and lone surrogates replaced, so that every database can store it."""
    return text.replace("\x00", "\ufffd").encode("utf-8", "replace").decode("utf-8")


def clean_json(value: Any) -> Any:
    """The value with clean texts, keys as texts, and null for numbers that JSON or 64 bits cannot hold."""
    if isinstance(value, str):
        return clean_text(value)
    if isinstance(value, dict):
        return {clean_text(str(key)): clean_json(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [clean_json(item) for item in value]
    if isinstance(value, bool) or value is None:
        return value
    if isinstance(value, int):
        return value if abs(value) <= _INT64 else None
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    return clean_text(str(value))
