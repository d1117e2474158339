"""A Hub on which some repositories are hostile and their neighbours are not, and what a crawl made of each.

A case of a hostile Hub is shown by a whole crawl: the bad repository has a reason or is counted as failed,
and the neighbours are accepted as if it were not there.
"""

from __future__ import annotations

import shutil
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import Engine, func, select
from sqlalchemy.orm import Session

from catalog.adapters import AdapterReference
from catalog.database import DocumentRow, make_engine
from catalog.files import BlobStore
from catalog.search import browse
from crawler.crawl import Crawler, CrawlOptions, refusing
from crawler.hub import Hub
from tests.crawling import NOW, hub_settings, items, silent
from tests.fakes import VirtualClock
from tests.hubs import card, lora_files, lora_tensors, make_repo, safetensors_bytes

# No known base model, so that small factors fit it.
TINY = "acme/tiny"
GOOD = ("ann/one", "bob/two", "cat/three")
LISTING = r"GET /api/models\?"
TAGGED = {"tags": ["peft", f"base_model:adapter:{TINY}"]}
STATES = ("new", "changed", "unchanged", "gone", "failed", "pending")


def own_files(name: str, **over: Any) -> dict[str, bytes | str]:
    """The files of an adapter that shares no byte with another's; `over` changes its configuration."""
    seed = sum(place * letter for place, letter in enumerate(name.encode(), start=1))
    files = lora_files(TINY, **({"lora_dropout": seed / 1e6} | over))
    files["README.md"] = card(f"# The adapter {name}\n", base_model=TINY)
    files["adapter_model.safetensors"] = safetensors_bytes(lora_tensors(seed=seed))
    return files


def repo(
    root: Path, name: str, files: Mapping[str, bytes | str | None] | None = None, **hub: Any
) -> dict[str, bytes | str]:
    """Writes an adapter of its own, listed whatever its files say, and gives its files.

    `files` are put over the usual ones (None takes one away), `hub` over what the Hub says of it.
    """
    remaining = {
        path: body for path, body in (own_files(name) | dict(files or {})).items() if body is not None
    }
    make_repo(root, name, remaining, TAGGED | hub)
    return remaining


def neighbours(root: Path) -> None:
    """Writes the three repositories that nothing is wrong with."""
    for name in GOOD:
        repo(root, name)


@contextmanager
def sqlite_catalog(request: pytest.FixtureRequest, folder: Path) -> Iterator[Engine]:
    """An engine on an empty SQLite catalog in a folder, for fixtures of a whole module."""
    folder.mkdir(parents=True, exist_ok=True)
    shutil.copy(request.getfixturevalue("sqlite_template"), folder / "catalog.db")
    engine = make_engine(f"sqlite:///{folder / 'catalog.db'}")
    yield engine
    engine.dispose()


def crawl_by(
    clock: VirtualClock,
    url: str,
    engine: Engine,
    data: Path,
    hub: dict[str, Any] | None = None,
    **options: Any,
) -> dict[str, Any]:
    """A crawl by a clock that the test holds; gives the report as JSON."""
    requests: dict[str, Any] = {"any_base": True, "weights": "headers", "workers": 2}
    arguments = CrawlOptions(**requests | options)
    stop = threading.Event()
    with Hub(hub_settings(url, **(hub or {})), clock=clock, stop=stop) as client:
        crawler = Crawler(engine, client, BlobStore(data / "blobs"), arguments, silent(), stop, lambda: NOW)
        return crawler.crawl().as_json()


def row(engine: Engine, name: str) -> dict[str, Any]:
    """An adapter as `show` tells it, judged by our rules."""
    with Session(engine) as session:
        adapter = browse.find_adapter(session, AdapterReference.parse(name))
        return asdict(browse.details(session, adapter, refusing("ours"), ()))


def verdicts(engine: Engine) -> dict[str, str]:
    """Adapter → accepted or skipped, by our rules."""
    with Session(engine) as session:
        rows = browse.adapters(session, browse.Listing(), refusing("ours"))
        return {row.adapter: row.verdict for row in rows}


def outcomes(engine: Engine) -> dict[str, str]:
    """Repository → what became of it in the newest crawl."""
    return {name: outcome for name, outcome in items(engine) if name is not None}


def all_counted(report: Mapping[str, Any]) -> bool:
    """Whether every listed repository is in exactly one state and every adapter has one verdict."""
    return (
        report["listed"] == sum(report[state] for state in STATES)
        and report["adapters"] == report["accepted"] + report["skipped"]
        and not any(kind.startswith("internal") for kind in report["errors"])
    )


def blobs(data: Path) -> set[str]:
    """The sha256 of every blob that is visible in a data folder, each with its bytes checked."""
    store = BlobStore(data / "blobs")
    paths = {file.parent.name + file.name for file in store.root.glob("[0-9a-f][0-9a-f]/*")}
    assert all(store.verify(sha256) for sha256 in paths), "a blob is not what its name says"
    return paths


def below(folder: Path) -> set[str]:
    """The paths of all files below a folder."""
    return {str(file.relative_to(folder)) for file in folder.rglob("*") if not file.is_dir()}


def has_document(engine: Engine, content: bytes) -> bool:
    """Whether the catalog keeps a small file with exactly these bytes."""
    with Session(engine) as session:
        query = select(func.count()).select_from(DocumentRow).where(DocumentRow.content == content)
        return bool(session.scalar(query))


def tree_entry(path: object, **over: Any) -> dict[str, Any]:
    """An entry of a file list as the Hub writes it for a small plain file."""
    return {"type": "file", "oid": "0" * 40, "size": 3, "path": path} | over
