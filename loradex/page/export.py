"""The page as a folder of files, for any web server: the documents of a server, without what needs one."""

from __future__ import annotations

import gzip
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from catalog.database import Adapter, reading
from catalog.errors import StorageError, UsageError
from catalog.files import load_json, replace_folder, temporary_folder
from catalog.search import listing
from loradex.arguments import check_arguments
from loradex.catalog import Catalog
from loradex.page.documents import FORMAT, Choice, Documents
from loradex.page.server import static_files
from loradex.progress import ProgressOption, ProgressStep, reporting

# Adapters that share a file.
SHARED = 100
# The largest head.json that is read to see whether a folder is an export.
_MOST_HEAD = 10_000_000


@dataclass(frozen=True)
class PageExport:
    """An export of the page: its folder, what it has of the catalog, and what was left out.

    `files` and `bytes` are the totals of what was written; `private` and `gated` count adapters that were
    left out, as only accounts with access may read them.
    """

    folder: Path
    adapters: int
    files: int
    bytes: int
    private: int
    gated: int


@check_arguments
def export_page(
    catalog: Catalog,
    folder: str | Path,
    *,
    where: str = "",
    cards: bool = True,
    with_private: bool = False,
    with_notes: bool = False,
    overwrite: bool = False,
    progress: ProgressOption = False,
) -> PageExport:
    """Writes the page of a catalog as a folder that any web server, or a static Space, delivers.

    It is the page that `serve_page` serves, with neighbours and maps made beforehand. What a server answers
    is missing: search by meaning, words of cards, exact cosines, and saving. Private and gated repositories,
    with the pools, scores and crawl rows that name them, are left out.

    Args:
        catalog: The catalog.
        folder: The folder to write.
        where: Only adapters that this filter accepts.
        cards: Whether to write the cards.
        with_private: Whether to write private and gated repositories, too.
        with_notes: Whether to write the user's own tags and notes, too.
        overwrite: Whether to replace an earlier export.
        progress: See `loradex.progress`.

    Raises:
        UsageError: The folder is not empty, or `overwrite` is set and it is not an export; or the filter is
            not valid.
        StorageError: The disk refuses.

    Writes:
        The folder, in whole or not at all.

    Example:
        >>> from loradex.page import export_page
        >>> export_page(catalog, "page", where="rank:..8").adapters > 0
        True
    """
    target = Path(folder)
    catalog.check()
    _check_target(target, overwrite=overwrite)
    documents = Documents(catalog, Choice(where, not with_private, cards, with_notes))
    adapters = len(documents.names)
    with reading(catalog.settings) as session:
        left_out = listing.left_out_counts(session) if not with_private else {"private": 0, "gated": 0}
    count = size = 0
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        with reporting(progress) as report, temporary_folder(target.parent) as temporary:
            step = ProgressStep(report, "writing adapters")
            new = temporary / "page"
            for name, content in _written(documents, step):
                path = new / name
                path.parent.mkdir(parents=True, exist_ok=True)
                path.write_bytes(content)
                count, size = count + 1, size + len(content)
            if target.exists() and not any(target.iterdir()):
                target.rmdir()
            replace_folder(new, target, temporary)
    except OSError as error:
        raise StorageError(f"The page cannot be written to {target}: {error.strerror or error}.") from error
    return PageExport(target, adapters, count, size, **left_out)


def _written(documents: Documents, step: ProgressStep) -> Iterator[tuple[str, bytes]]:
    """The files of an export by their paths in the folder."""
    yield from static_files().items()
    yield "head.json", documents.head()
    below = f"d/{documents.stamp}"
    for name in documents.shared_names():
        yield f"{below}/{name}", documents.document(name)
    ids, names = documents.ids, list(documents.names)
    with reading(documents.settings) as session:
        nearest_of = documents.nearest_by(session)
        for start in range(0, len(ids), SHARED):
            step.working(start, len(ids))
            places = range(start, min(start + SHARED, len(ids)))
            rows = [session.get_one(Adapter, ids[place]) for place in places]
            details = [documents.adapter_of(session, row) for row in rows]
            yield f"{below}/adapters/{start // SHARED}.json.gz", _pack(details)
            near = [nearest_of(row) for row in rows]
            yield f"{below}/nearest/{start // SHARED}.json.gz", _pack(near)
            copies = [documents.copies_of(names[place]) for place in places]
            yield f"{below}/copies/{start // SHARED}.json.gz", _pack(copies)
            session.expunge_all()
    step.working(len(ids), len(ids))


def _pack(documents: list[bytes]) -> bytes:
    """Documents as one compressed JSON list, in which each stands as it is."""
    return gzip.compress(b"[" + b",".join(documents) + b"]", 6, mtime=0)


def _check_target(target: Path, *, overwrite: bool) -> None:
    if not target.exists() or (target.is_dir() and not any(target.iterdir())):
        return
    if not _is_export(target):
        raise UsageError(f"{target} is not empty and not an export of a page; choose another folder.")
    if not overwrite:
        raise UsageError(f"{target} is an export already; use `overwrite` to replace it.")


def _is_export(target: Path) -> bool:
    head = target / "head.json"
    if not target.is_dir() or not head.is_file() or head.stat().st_size > _MOST_HEAD:
        return False
    try:
        value = load_json(head.read_bytes())
    except ValueError:
        return False
    return isinstance(value, dict) and value.get("format") == FORMAT
