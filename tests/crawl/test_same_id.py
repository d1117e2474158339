"""Repositories with one `_id`: one of them is read, always the same, and the others are named."""

from __future__ import annotations

import json
from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import Engine, select
from sqlalchemy.orm import Session

from catalog.database import CrawlItem, Repository
from tests.crawling import NOW, crawl
from tests.hubs import card, lora_files, lora_tensors, make_repo, safetensors_bytes
from tests.localhub import FaultHub
from tests.localhub.faults import EditJson, Fault, Status

TINY = "acme/tiny"
ID = "5" * 24
REASON = {"another repository has the same _id": 1}


def make_dated_repo(root: Path, name: str, day: int, **hub: Any) -> None:
    """A repository with an adapter of its own, changed and made on that day of May 2025."""
    seed = sum(name.encode())
    files = lora_files(TINY, lora_dropout=seed / 1e5)
    files["README.md"] = card(f"Made by {name}.\n", base_model=TINY)
    files["adapter_model.safetensors"] = safetensors_bytes(lora_tensors(seed=seed))
    date = f"2025-05-{day:02}T00:00:00.000Z"
    make_repo(root, name, files, {"lastModified": date, "createdAt": date} | hub)


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """A Hub's folder: ann/new and bob/old have one `_id`, cat/else another."""
    folder = tmp_path / "hub"
    make_dated_repo(folder, "ann/new", 20, _id=ID)
    make_dated_repo(folder, "bob/old", 10, _id=ID)
    make_dated_repo(folder, "cat/else", 15)
    return folder


@pytest.fixture
def hub(root: Path) -> Iterator[FaultHub]:
    with FaultHub(root) as running:
        yield running


def names(engine: Engine) -> dict[str, bool]:
    """The repositories of the catalog, and whether each is still there."""
    with Session(engine) as session:
        return {row.name: row.gone_at is None for row in session.scalars(select(Repository))}


def left_out(engine: Engine) -> list[str]:
    """The names that the newest crawl left out."""
    with Session(engine) as session:
        newest = select(CrawlItem.crawl_id).order_by(CrawlItem.crawl_id.desc()).limit(1).scalar_subquery()
        query = select(CrawlItem.name).where(CrawlItem.crawl_id == newest, CrawlItem.error.is_not(None))
        return [name or "" for name in session.scalars(query)]


@pytest.mark.parametrize("page", [1000, 1])
def test_one_is_read_and_the_other_is_named(
    page: int, hub: FaultHub, engine: Engine, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    for number, day in enumerate((0, 1, 9, 20)):
        report = crawl(hub.url, engine, tmp_path, now=NOW + timedelta(days=day), hub={"page_limit": page})
        assert report["status"] == "complete"
        assert report["new"] == (2 if number == 0 else 0)
        assert (report["failed"], report["gone"], report["changed"]) == (0, 0, 0)
        assert names(engine) == {"ann/new": True, "cat/else": True}
    assert "bob/old: left out, ann/new has the same _id" in caplog.text


def test_the_one_that_was_left_out_does_not_take_its_place_when_it_changes(
    hub: FaultHub, root: Path, engine: Engine, tmp_path: Path
) -> None:
    assert crawl(hub.url, engine, tmp_path)["quarantined"] == REASON
    make_dated_repo(root, "bob/old", 25, _id=ID)
    report = crawl(hub.url, engine, tmp_path, now=NOW + timedelta(days=1))
    assert (report["status"], report["quarantined"]) == ("complete", REASON)
    assert left_out(engine) == ["bob/old"]
    assert names(engine) == {"ann/new": True, "cat/else": True}
    make_dated_repo(root, "ann/new", 26, _id=ID, downloads=5)
    (root / "ann/new/more.txt").write_text("more")
    report = crawl(hub.url, engine, tmp_path, now=NOW + timedelta(days=2))
    assert (report["status"], report["changed"]) == ("complete", 1)


def test_it_takes_its_place_when_the_first_is_gone(
    hub: FaultHub, root: Path, engine: Engine, tmp_path: Path
) -> None:
    crawl(hub.url, engine, tmp_path)
    (root / "ann/new").rename(tmp_path / "away")
    report = crawl(hub.url, engine, tmp_path, full=True)
    assert (report["status"], report["quarantined"], report["changed"]) == ("complete", {}, 1)
    assert names(engine) == {"bob/old": True, "cat/else": True}


def test_a_repository_that_is_renamed_between_two_pages_is_nobody_elses(
    root: Path, engine: Engine, tmp_path: Path
) -> None:
    """Both names of it are listed; the Hub answers for the old one with the new one."""
    hidden = json.dumps({"_id": ID, "private": True})
    (root / "bob/old/.hub.json").write_text(hidden)
    facts = {"_id": ID, "lastModified": "2025-05-20T00:00:00.000Z", "createdAt": "2025-05-20T00:00:00.000Z"}

    def rename(rows: Any) -> None:
        rows += [{**row, "id": "ann/newer"} for row in rows if row["id"] == "ann/new"]
        if (root / "ann/new").exists():
            (root / "ann/new").rename(root / "ann/newer")
            (root / "ann/newer/.hub.json").write_text(json.dumps(facts | {"previous_names": ["ann/new"]}))

    with FaultHub(root, faults=[Fault(r"GET /api/models\?", EditJson(rename), times=1)]) as hub:
        report = crawl(hub.url, engine, tmp_path)
    assert (report["status"], report["new"], report["quarantined"]) == ("complete", 2, {})
    assert names(engine) == {"ann/newer": True, "cat/else": True}


def test_a_listing_that_is_taken_up_again_loses_no_name(
    hub: FaultHub, engine: Engine, tmp_path: Path
) -> None:
    """The first of the two is settled when the page of the second is read."""
    hub.faults.append(Fault("cursor=", Status(500)))
    assert crawl(hub.url, engine, tmp_path, hub={"page_limit": 1})["status"] == "partial"
    hub.faults.clear()
    report = crawl(hub.url, engine, tmp_path, hub={"page_limit": 1})
    assert (report["status"], report["quarantined"]) == ("complete", REASON)
    assert left_out(engine) == ["bob/old"]
