"""Paths that may name a file below a folder on any system; names from outside are untrusted."""

from __future__ import annotations

import re
import unicodedata

_DEVICE = re.compile(r"(con|prn|aux|nul|com[0-9]|lpt[0-9])(\..*)?", re.IGNORECASE)
_LONGEST_PATH = 1024
_LONGEST_NAME = 255


def unsafe_path(path: str) -> str | None:
    """Why this path may not name a file below a folder, on any system; None for a safe one."""
    try:
        encoded = path.encode("utf-8")
    except UnicodeEncodeError:
        return "is not Unicode"
    if len(encoded) > _LONGEST_PATH:
        return "is too long"
    if any(unicodedata.category(character) == "Cc" for character in path):
        return "contains a control character"
    if "\\" in path or re.match(r"[A-Za-z]:", path):
        return "is a Windows path"
    return next((reason for name in path.split("/") if (reason := _unsafe_name(name))), None)


def _unsafe_name(name: str) -> str | None:
    if not name:
        return "has an empty part"
    if name in (".", ".."):
        return "leaves its folder"
    if name[-1] in ". ":
        return "has a part that ends in a dot or a space"
    if len(name.encode("utf-8")) > _LONGEST_NAME:
        return "is too long"
    return "names a device" if _DEVICE.fullmatch(name) else None
