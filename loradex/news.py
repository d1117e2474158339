"""Changes of the catalog for people: since when, and as an Atom feed."""

from __future__ import annotations

import re
from collections.abc import Sequence
from datetime import UTC, date, datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import quote
from xml.etree import ElementTree

from catalog.errors import UsageError
from catalog.files import output_file
from loradex.text import plain

if TYPE_CHECKING:
    from catalog.search import CatalogChange

ATOM = "http://www.w3.org/2005/Atom"
_UNITS = {"h": timedelta(hours=1), "d": timedelta(days=1), "w": timedelta(weeks=1)}
_WORDS = {
    "new": "is new",
    "changed": "has another commit",
    "gone": "is gone",
    "license": "has another license",
    "gated": "is gated",
}
# XML 1.0, section 2.2: what no document may contain, not even as a reference.
_NOT_XML = re.compile("[^\t\n\r\x20-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")


def parse_since(since: str | date, now: datetime) -> datetime:
    """The instant that a user means: a time before `now` (7d, 12h, 2w), a day or an instant, UTC by default.

    Raises UsageError.
    """
    text = since.isoformat() if isinstance(since, date) else since.strip()
    try:
        if match := re.fullmatch(r"(\d{1,6})([hdw])", text):
            return now - int(match[1]) * _UNITS[match[2]]
        instant = datetime.fromisoformat(text)
        return (instant if instant.tzinfo else instant.replace(tzinfo=UTC)).astimezone(UTC)
    except (ValueError, OverflowError):
        raise UsageError(
            f"`since` {text[:40]!r} is not a time; write 7d, 12h, 2w, or a day such as 2026-11-20."
        ) from None


def write_feed(rows: Sequence[CatalogChange], path: Path, hub: str, since: datetime) -> None:
    """Writes changes as an Atom feed (RFC 4287), the newest first; links lead to the Hub `hub`.

    Raises StorageError.
    """
    ElementTree.register_namespace("", ATOM)
    feed = ElementTree.Element(f"{{{ATOM}}}feed")
    _add(feed, "id", f"urn:loradex:changes:{_quote(hub)}")
    _add(feed, "title", f"Changes of LoRA adapters on {hub}")
    _add(feed, "updated", _instant(rows[0].at if rows else since))
    _add(_add(feed, "author"), "name", "loradex")
    is_web = hub.lower().startswith(("https://", "http://"))
    for row in rows:
        entry = _add(feed, "entry")
        values = (_instant(row.at), row.before or "", row.after or "")
        _add(entry, "id", ":".join(["urn:loradex", row.change, _quote(row.adapter), *map(_quote, values)]))
        _add(entry, "title", f"{row.adapter} {_WORDS[row.change]}")
        _add(entry, "updated", _instant(row.at))
        if is_web:
            _add(entry, "link", href=f"{hub}/{_quote(row.adapter.partition(':')[0])}")
        text = f"{row.before or 'none'} -> {row.after or 'none'}"
        _add(entry, "summary" if is_web else "content", text)
        _add(entry, "category", term=row.change)
    with output_file(path) as new:
        new.write_bytes(ElementTree.tostring(feed, encoding="utf-8", xml_declaration=True))


def _add(parent: ElementTree.Element, tag: str, text: str = "", **attributes: str) -> ElementTree.Element:
    allowed = {name: _NOT_XML.sub("", value) for name, value in attributes.items()}
    element = ElementTree.SubElement(parent, f"{{{ATOM}}}{tag}", allowed)
    element.text = _NOT_XML.sub("", plain(text)) or None
    return element


def _quote(text: str) -> str:
    return quote(text, safe="/", errors="replace")


def _instant(at: datetime) -> str:
    return at.astimezone(UTC).isoformat(timespec="seconds").replace("+00:00", "Z")
