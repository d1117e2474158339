"""Texts that are safe on a terminal, and numbers as people read them."""

from __future__ import annotations

import re

_UNSAFE = re.compile("[\x00-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069\ufeff\ud800-\udfff]")


def plain(text: str) -> str:
    """The text on one line, with everything that could steer a terminal shown as an escape."""
    return _UNSAFE.sub(_escape, text)


def format_bytes(count: float) -> str:
    """A number of bytes in a unit of three digits: 820 kB, 33.4 MB, 1.2 GB."""
    for size, unit in ((1e9, "GB"), (1e6, "MB"), (1e3, "kB")):
        if count >= size:
            return f"{count / size:.{0 if unit == 'kB' else 1}f} {unit}"
    return f"{count:.0f} B"


def format_duration(seconds: float) -> str:
    """A time in a unit of two digits: 40 s, 12 min, 3.5 h."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"


def _escape(match: re.Match[str]) -> str:
    code = ord(match.group())
    return f"\\x{code:02x}" if code < 0x100 else f"\\u{code:04x}"
