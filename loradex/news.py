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
from catalog.files import replace_file
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


def parse_since(since: str | date, now: datetime) -> datetime:
    """The instant that a user means: a time before `now` (7d, 12h, 2w), a day or an instant, UTC by default.

    Raises UsageError.
    """
    if isinstance(since, datetime):
        return since if since.tzinfo else since.replace(tzinfo=UTC)
    text = since.isoformat() if isinstance(since, date) else since.strip()
    try:
        if match := re.fullmatch(r"(\d{1,6})([hdw])", text):
            return now - int(match[1]) * _UNITS[match[2]]
        instant = datetime.fromisoformat(text)
    except (ValueError, OverflowError):
        raise UsageError(
            f"`since` {text[:40]!r} is not a time; write 7d, 12h, 2w, or a day such as 2026-11-20."
        ) from None
    return instant if instant.tzinfo else instant.replace(tzinfo=UTC)


def write_feed(rows: Sequence[CatalogChange], path: Path, hub: str, since: datetime) -> None:
    """Writes changes as an Atom feed (RFC 4287), the newest first; links lead to the Hub `hub`."""
    ElementTree.register_namespace("", ATOM)
    feed = ElementTree.Element(f"{{{ATOM}}}feed")
    _add(feed, "id", f"urn:loradex:changes:{quote(hub, safe='')}")
    _add(feed, "title", f"Changes of LoRA adapters on {hub}")
    _add(feed, "updated", _instant(rows[0].at if rows else since))
    _add(_add(feed, "author"), "name", "loradex")
    for row in rows:
        entry = _add(feed, "entry")
        place = quote(row.adapter, safe="/")
        _add(entry, "id", f"urn:loradex:{row.change}:{place}:{quote(row.after or row.before or '', safe='')}")
        _add(entry, "title", f"{row.adapter} {_WORDS[row.change]}")
        _add(entry, "updated", _instant(row.at))
        _add(entry, "link", href=f"{hub}/{quote(row.adapter.partition(':')[0], safe='/')}")
        _add(entry, "summary", f"{row.before or 'none'} -> {row.after or 'none'}")
        _add(entry, "category", term=row.change)
    with replace_file(path) as new:
        new.write_bytes(ElementTree.tostring(feed, encoding="utf-8", xml_declaration=True))


def _add(parent: ElementTree.Element, tag: str, text: str = "", **attributes: str) -> ElementTree.Element:
    element = ElementTree.SubElement(parent, f"{{{ATOM}}}{tag}", attributes)
    element.text = plain(text) or None
    return element


def _instant(at: datetime) -> str:
    return at.astimezone(UTC).isoformat(timespec="seconds").replace("+00:00", "Z")
