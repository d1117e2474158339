"""What changed between two crawls, from the rows that they left; and which adapter a file is."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from dataclasses import replace
from datetime import UTC, date, datetime, timedelta, timezone
from itertools import pairwise
from pathlib import Path
from xml.etree import ElementTree

import pytest
from sqlalchemy import Engine, delete, select
from sqlalchemy.orm import Session

import loradex
from catalog.database import CrawlItem, ItemOutcome
from catalog.errors import StorageError, UsageError
from catalog.query import parse
from catalog.search import CatalogChange, changes
from loradex.news import ATOM, parse_since, write_feed
from tests.crawl.test_run import TINY, unlike
from tests.crawling import NOW, crawl
from tests.hubs import card, make_repo
from tests.localhub import FaultHub

LATER = NOW + timedelta(days=3)
NAMES = ("ann/changed", "bob/licensed", "cat/gated", "dan/gone", "eve/same")


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """A Hub's folder of five repositories."""
    for name in NAMES:
        make_repo(tmp_path / "hub", name, unlike(name))
    return tmp_path / "hub"


@pytest.fixture
def hub(root: Path) -> Iterator[FaultHub]:
    """That Hub, served."""
    with FaultHub(root) as running:
        yield running


def test_each_change_between_two_crawls_is_a_row(
    hub: FaultHub, root: Path, engine: Engine, tmp_path: Path
) -> None:
    crawl(hub.url, engine, tmp_path)
    make_repo(root, "ann/changed", {"README.md": card("Better.\n", base_model=TINY)})
    make_repo(root, "bob/licensed", {"README.md": card("Free.\n", base_model=TINY, license="mit")})
    make_repo(root, "cat/gated", {"README.md": card("Mine.\n", base_model=TINY)}, {"gated": "manual"})
    shutil.rmtree(root / "dan/gone")
    make_repo(root, "fay/new", unlike("fay/new"))
    crawl(hub.url, engine, tmp_path, now=LATER, full=True)
    with Session(engine) as session:
        rows = changes(session, NOW + timedelta(days=1))
        of_bob = changes(session, NOW + timedelta(days=1), where=parse("owner:bob", {}, ()))
        everything = changes(session, NOW)
        nothing = changes(session, LATER + timedelta(seconds=1))
    assert {(row.adapter, row.change) for row in rows} == {
        ("ann/changed", "changed"),
        ("bob/licensed", "changed"),
        ("bob/licensed", "license"),
        ("cat/gated", "changed"),
        ("cat/gated", "gated"),
        ("dan/gone", "gone"),
        ("fay/new", "new"),
    }
    assert {row.at for row in rows} == {LATER}
    [licensed] = [row for row in rows if row.change == "license"]
    [gated] = [row for row in rows if row.change == "gated"]
    assert (licensed.before, licensed.after, gated.after) == (None, "mit", "manual")
    assert all(row.before != row.after for row in rows)
    assert of_bob == [row for row in rows if row.adapter == "bob/licensed"]
    assert [row.adapter for row in everything if row.change == "new"] == ["fay/new", *NAMES]
    assert nothing == []


def edit(root: Path, name: str, text: str, modified: datetime) -> None:
    """Another commit of a repository, of a date of the Hub."""
    files = {"README.md": card(f"{text}\n", base_model=TINY)}
    make_repo(root, name, files, {"lastModified": modified.isoformat()})


def commits(engine: Engine, since: datetime) -> list[tuple[str, datetime]]:
    """The repositories with another commit since an instant, and when that was noticed."""
    with Session(engine) as session:
        return [(row.adapter, row.at) for row in changes(session, since) if row.change == "changed"]


def test_a_change_is_told_whatever_later_crawls_met(
    hub: FaultHub, root: Path, engine: Engine, tmp_path: Path
) -> None:
    crawl(hub.url, engine, tmp_path)
    # Old on the Hub, and yet new to the catalog.
    edit(root, "ann/changed", "Better.", NOW - timedelta(days=300))
    edit(root, "bob/licensed", "Better.", NOW - timedelta(days=300))
    crawl(hub.url, engine, tmp_path, now=LATER, full=True)
    both = [("ann/changed", LATER), ("bob/licensed", LATER)]
    assert commits(engine, LATER) == both
    for day in (1, 2):
        crawl(hub.url, engine, tmp_path, now=LATER + timedelta(days=day), full=True)
        assert commits(engine, NOW + timedelta(days=1)) == both
    assert commits(engine, LATER + timedelta(days=1)) == []
    # The newest change of a repository counts.
    edit(root, "ann/changed", "Best.", NOW - timedelta(days=200))
    newest = LATER + timedelta(days=3)
    crawl(hub.url, engine, tmp_path, now=newest, full=True)
    crawl(hub.url, engine, tmp_path, now=newest + timedelta(days=1), full=True)
    assert commits(engine, LATER) == [("ann/changed", newest), ("bob/licensed", LATER)]
    assert commits(engine, newest) == [("ann/changed", newest)]
    # Also of one that is gone since.
    shutil.rmtree(root / "bob" / "licensed")
    gone = newest + timedelta(days=20)
    crawl(hub.url, engine, tmp_path, now=gone, full=True)
    with Session(engine) as session:
        assert [(row.adapter, row.change) for row in changes(session, gone)] == [("bob/licensed", "gone")]
    assert commits(engine, LATER) == [("ann/changed", newest), ("bob/licensed", LATER)]


def test_one_item_of_a_repository_is_kept_beside_its_change(
    hub: FaultHub, root: Path, engine: Engine, tmp_path: Path
) -> None:
    for day in range(6):
        if day in (1, 3):
            edit(root, "ann/changed", "Better. " * day, NOW + timedelta(days=day))
        crawl(hub.url, engine, tmp_path, now=NOW + timedelta(days=day), full=True)
    with Session(engine) as session:
        query = select(CrawlItem.name, CrawlItem.crawl_id, CrawlItem.outcome).order_by(CrawlItem.name)
        rows = [tuple(row) for row in session.execute(query.order_by(CrawlItem.crawl_id))]
    newest = [(name, 6, ItemOutcome.UNCHANGED) for name in NAMES]
    assert rows == [("ann/changed", 4, ItemOutcome.CHANGED), *newest]


def test_a_change_without_its_crawl_has_the_date_of_the_hub(
    hub: FaultHub, root: Path, engine: Engine, tmp_path: Path
) -> None:
    """In a catalog whose earlier version forgot which crawl found it."""
    crawl(hub.url, engine, tmp_path)
    edited = NOW + timedelta(days=2)
    edit(root, "ann/changed", "Better.", edited)
    crawl(hub.url, engine, tmp_path, now=LATER, full=True)
    with Session(engine) as session:
        session.execute(delete(CrawlItem))
        session.commit()
    assert commits(engine, NOW + timedelta(days=1)) == [("ann/changed", edited)]


def test_times_are_spans_days_and_instants() -> None:
    now = datetime(2026, 11, 29, 12, tzinfo=UTC)
    assert parse_since("7d", now) == now - timedelta(days=7)
    assert parse_since("12h", now) == now - timedelta(hours=12)
    assert parse_since("2026-11-20", now) == parse_since(date(2026, 11, 20), now)
    assert parse_since("2026-11-20T10:00:00+02:00", now) == datetime(2026, 11, 20, 8, tzinfo=UTC)
    for text in ("soon", "7", "d", "999999w", "2026-13-01", ""):
        with pytest.raises(UsageError, match="is not a time; write 7d"):
            parse_since(text, now)
    east = timezone(timedelta(hours=23))
    for instant in ("0001-01-01T00:00:00+23:00", datetime(1, 1, 1, tzinfo=east), "9999-12-31T23:59:59-01:00"):
        with pytest.raises(UsageError, match="is not a time; write 7d"):
            parse_since(instant, now)


def test_a_feed_is_atom_whatever_the_names_hold(tmp_path: Path) -> None:
    row = CatalogChange("a/<b>&\x1b\x00:x", "license", NOW, None, "mit")
    rows = [row, replace(row, change="gone", before="c" * 40, after=None)]
    write_feed(rows, tmp_path / "feed.xml", "https://hub.test", NOW)
    feed = ElementTree.parse(tmp_path / "feed.xml").getroot()
    entries = feed.findall(f"{{{ATOM}}}entry")
    assert [entry.findtext(f"{{{ATOM}}}title") for entry in entries] == [
        "a/<b>&\\x1b\\x00:x has another license",
        "a/<b>&\\x1b\\x00:x is gone",
    ]
    assert len({entry.findtext(f"{{{ATOM}}}id") for entry in entries}) == 2
    assert feed.findtext(f"{{{ATOM}}}updated") == "2026-01-01T00:00:00Z"
    link = entries[0].find(f"{{{ATOM}}}link")
    assert link is not None
    assert link.get("href") == "https://hub.test/a/%3Cb%3E%26%1B%00"


@pytest.mark.parametrize("code", [0x0, 0x8, 0x1F, 0xD800, 0xDFFF, 0xFFFE, 0xFFFF])
def test_characters_that_xml_forbids_are_left_out_of_every_value(tmp_path: Path, code: int) -> None:
    odd = f"o{chr(code)}d"
    row = CatalogChange(f"a/{odd}", "license", NOW, odd, odd)
    write_feed([row], tmp_path / "feed.xml", f"https://hub.test/{odd}", NOW)
    [entry] = ElementTree.parse(tmp_path / "feed.xml").getroot().findall(f"{{{ATOM}}}entry")
    assert entry.findtext(f"{{{ATOM}}}summary", "").startswith("o")


def test_each_change_has_an_id_of_its_own_also_back_and_forth(tmp_path: Path) -> None:
    """A reader takes two entries with one id for one."""
    licenses = ["mit", "apache-2.0", "mit", "apache-2.0"]
    rows = [
        CatalogChange("a/b", "license", NOW + timedelta(days=day), before, after)
        for day, (before, after) in enumerate(pairwise(licenses))
    ]
    rows += [replace(rows[0], before="gpl"), replace(rows[0], before=None)]
    write_feed(rows, tmp_path / "feed.xml", "https://hub.test", NOW)
    first = (tmp_path / "feed.xml").read_bytes()
    feed = ElementTree.fromstring(first)
    assert len({entry.findtext(f"{{{ATOM}}}id") for entry in feed.iter(f"{{{ATOM}}}entry")}) == len(rows)
    write_feed(rows, tmp_path / "feed.xml", "https://hub.test", NOW)
    assert (tmp_path / "feed.xml").read_bytes() == first


@pytest.mark.parametrize("hub", ["javascript:alert(1)//", "file:///etc", "data:text/html,x", "hub.test", ""])
def test_only_addresses_of_the_web_are_links(tmp_path: Path, hub: str) -> None:
    """RFC 4287: an entry without a link has its content."""
    write_feed([CatalogChange("a/b", "new", NOW, None, "c" * 40)], tmp_path / "feed.xml", hub, NOW)
    feed = ElementTree.parse(tmp_path / "feed.xml").getroot()
    assert list(feed.iter(f"{{{ATOM}}}link")) == []
    assert [content.text for content in feed.iter(f"{{{ATOM}}}content")] == [f"none -> {'c' * 40}"]


def test_a_feed_makes_its_folder_and_names_what_is_in_the_way(tmp_path: Path) -> None:
    write_feed([], tmp_path / "new" / "feed.xml", "https://hub.test", NOW)
    with pytest.raises(StorageError, match=r"feed\.xml/feed\.xml cannot be written: "):
        write_feed([], tmp_path / "new" / "feed.xml" / "feed.xml", "https://hub.test", NOW)


def test_a_file_is_known_by_bytes_then_tensors_then_sketch(sample_data: Path, tmp_path: Path) -> None:
    from safetensors.torch import load_file, save

    catalog = loradex.open(sample_data)
    kept = Path(__file__).parents[2] / "data" / "sample_hub" / "zoo" / "banking77"
    by_file = catalog.identify(kept)
    assert [(row.adapter, row.by, row.cosine) for row in by_file] == [("zoo/banking77", "file", 1.0)]
    tensors = load_file(kept / "adapter_model.safetensors")
    moved = tmp_path / "moved.safetensors"
    moved.write_bytes(save(tensors, {"made": "again"}))
    assert [(row.adapter, row.by) for row in catalog.identify(moved)] == [("zoo/banking77", "tensors")]
    name = min(tensors)
    moved.write_bytes(save(tensors | {name: tensors[name] * 1.05}))
    nothing = catalog.identify(moved)
    assert (len(nothing), "require adapter_config.json" in nothing.notes[0]) == (0, True)
    moved.rename(tmp_path / "adapter_model.safetensors")
    shutil.copy(kept / "adapter_config.json", tmp_path)
    near = catalog.identify(tmp_path, k=2)
    assert [row.by for row in near] == ["sketch", "sketch"]
    assert near[0].adapter == "zoo/banking77"
    assert near[0].cosine > 0.99
    (tmp_path / "adapter_model.safetensors").write_bytes(b"\x80\x04broken")
    assert len(catalog.identify(tmp_path)) == 0
    with pytest.raises(loradex.NotFoundError, match="is not a weights file"):
        catalog.identify(tmp_path / "absent")


def test_a_pickle_is_known_by_its_listed_digest(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    files = {name: text for name, text in unlike("ann/pickle").items() if not name.endswith("safetensors")}
    make_repo(tmp_path / "hub", "ann/pickle", files | {"adapter_model.bin": b"\x80\x04 never opened"})
    with FaultHub(tmp_path / "hub") as hub, loradex.open(tmp_path / "data") as catalog:
        monkeypatch.setenv("HF_ENDPOINT", hub.url)
        catalog.crawl(any_base=True, weights="headers")
        rows = catalog.identify(tmp_path / "hub" / "ann" / "pickle" / "adapter_model.bin")
        feed = tmp_path / "feed.xml"
        assert [row.change for row in catalog.changes("1d", atom=feed)] == ["new"]
    assert [(row.adapter, row.by) for row in rows] == [("ann/pickle", "file")]
    assert hub.url in feed.read_text()
    assert json.dumps(rows.to_dicts())
