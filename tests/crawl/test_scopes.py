"""Several crawls of one catalog: interrupted, late, of other questions. None undoes what another learned."""

from __future__ import annotations

import json
from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import Engine, func, select
from sqlalchemy.orm import Session

from catalog.adapters import BaseSpelling
from catalog.database import Crawl, CrawlItem, Repository, make_engine, store
from catalog.database.opening import upgrade
from catalog.files import BlobStore
from tests.crawl.test_run import LISTING, TINY, row, unlike
from tests.crawling import NOW, crawl
from tests.hubs import adapter_config, lora_tensors, make_repo, safetensors_bytes
from tests.localhub import FaultHub
from tests.localhub.faults import EditJson, Fault, Status

OTHER = {"bases": (TINY,)}


@pytest.fixture
def engine(tmp_path: Path) -> Iterator[Engine]:
    """A SQLite catalog: what is tested here knows no database."""
    engine = make_engine(f"sqlite:///{tmp_path / 'catalog.db'}")
    upgrade(engine)
    yield engine
    engine.dispose()


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """The folder of a Hub of three repositories."""
    folder = tmp_path / "hub"
    folder.mkdir()
    for name in ("ann/one", "bob/two", "cat/three"):
        make_repo(folder, name, unlike(name))
    return folder


@pytest.fixture
def hub(root: Path) -> Iterator[FaultHub]:
    """The Hub."""
    with FaultHub(root) as running:
        yield running


def edit(root: Path, name: str, alpha: int, modified: str | None = None) -> None:
    """A new commit of a repository: another alpha, and the date that the Hub would show for it."""
    config = adapter_config(base_model_name_or_path=TINY, lora_alpha=alpha)
    (root / name / "adapter_config.json").write_text(json.dumps(config))
    if modified:
        (root / name / ".hub.json").write_text(json.dumps({"lastModified": modified}))


def crawls(engine: Engine) -> list[Crawl]:
    """The rows of all crawls, oldest first."""
    with Session(engine, expire_on_commit=False) as session:
        return list(session.scalars(select(Crawl).order_by(Crawl.id)))


def test_a_watermark_is_no_later_than_the_crawl_began(
    hub: FaultHub, root: Path, engine: Engine, tmp_path: Path
) -> None:
    edit(root, "ann/one", 7, "2031-05-05T00:00:00.000Z")
    crawl(hub.url, engine, tmp_path)
    assert crawls(engine)[0].watermark == NOW


def test_a_change_between_the_pages_of_a_crawl_that_took_days_is_found(
    hub: FaultHub, root: Path, engine: Engine, tmp_path: Path
) -> None:
    for name, day in (("ann/one", 1), ("bob/two", 2), ("cat/three", 3)):
        edit(root, name, day, f"2025-12-0{day}T00:00:00.000Z")
    hub.faults.append(Fault(LISTING + ".*cursor", Status(503)))
    crawl(hub.url, engine, tmp_path, hub={"page_limit": 1})
    hub.faults.clear()
    edit(root, "cat/three", 64, "2026-01-01T06:00:00.000Z")
    edit(root, "ann/one", 65, "2026-01-01T18:00:00.000Z")
    late = NOW + timedelta(hours=20)
    assert crawl(hub.url, engine, tmp_path, hub={"page_limit": 1}, now=late)["status"] == "complete"
    crawl(hub.url, engine, tmp_path, now=late + timedelta(hours=1))
    assert [row(engine, name)["alpha"] for name in ("ann/one", "cat/three")] == [65, 64]


def test_a_resumed_crawl_does_not_roll_a_repository_back(
    hub: FaultHub, root: Path, engine: Engine, tmp_path: Path
) -> None:
    for name in ("ann/one", "bob/two", "cat/three"):
        edit(root, name, 8, "2025-12-01T00:00:00.000Z")
    hub.faults.append(Fault("/tree/", Status(503)))
    assert crawl(hub.url, engine, tmp_path)["status"] == "partial"
    hub.faults.clear()
    edit(root, "ann/one", 64, "2025-12-02T00:00:00.000Z")
    crawl(hub.url, engine, tmp_path, now=NOW + timedelta(hours=1), **OTHER)
    newer = row(engine, "ann/one")
    with Session(engine) as session, session.begin():
        session.get_one(Crawl, 1).state = type(session.get_one(Crawl, 1).state).RUNNING
    report = crawl(hub.url, engine, tmp_path, now=NOW + timedelta(hours=2))
    assert report["status"] == "complete"
    assert (row(engine, "ann/one")["alpha"], row(engine, "ann/one")["commit"]) == (64, newer["commit"])


def test_an_unfinished_crawl_of_long_ago_is_given_up(hub: FaultHub, engine: Engine, tmp_path: Path) -> None:
    hub.faults.append(Fault(LISTING + ".*cursor", Status(503)))
    crawl(hub.url, engine, tmp_path, hub={"page_limit": 1})
    hub.faults.clear()
    late = NOW + timedelta(days=3)
    report = crawl(hub.url, engine, tmp_path, hub={"page_limit": 1}, now=late)
    assert (report["status"], report["listed"]) == ("complete", 3)
    assert [result.started_at for result in crawls(engine)] == [NOW, late]


def test_the_whole_listing_is_read_again_after_a_week(hub: FaultHub, engine: Engine, tmp_path: Path) -> None:
    for days in (0, 1, 6, 8, 9):
        crawl(hub.url, engine, tmp_path, now=NOW + timedelta(days=days))
    complete = [result.asked["since"] is None for result in crawls(engine)]
    assert complete == [True, False, False, True, False]


def test_what_was_gated_is_asked_for_again_by_a_full_crawl(
    hub: FaultHub, root: Path, engine: Engine, tmp_path: Path
) -> None:
    facts = root / "bob/two/.hub.json"
    facts.write_text(json.dumps({"gated": "auto"}))
    assert crawl(hub.url, engine, tmp_path)["reasons"]["gated"] == 1
    facts.unlink()
    assert crawl(hub.url, engine, tmp_path, full=True)["accepted"] == 3


def test_the_same_weights_elsewhere_are_judged_there_too(
    hub: FaultHub, root: Path, engine: Engine, tmp_path: Path
) -> None:
    zero = {name: values * 0 for name, values in lora_tensors().items()}
    for name in ("o/first", "o/second"):
        make_repo(root, name, unlike(name) | {"adapter_model.safetensors": safetensors_bytes(zero)})
    assert crawl(hub.url, engine, tmp_path, weights="headers")["accepted"] == 5
    hub.clear()
    report = crawl(hub.url, engine, tmp_path, weights="stream")
    assert (report["accepted"], report["reasons"]["zero_update"]) == (3, 2)
    complete = [requests for requests in hub.log if requests.path.endswith(".safetensors")]
    assert len(complete) == 4, "the file that two of five share was not fetched exactly once"


def test_a_new_owner_of_a_name_does_not_bury_the_renamed_one(
    hub: FaultHub, root: Path, engine: Engine, tmp_path: Path
) -> None:
    crawl(hub.url, engine, tmp_path)
    old = row(engine, "ann/one")
    (root / "ann/one").rename(root / "ann/moved")
    facts = {"_id": old["hub_id"], "sha": old["commit"]}
    (root / "ann/moved/.hub.json").write_text(json.dumps(facts))
    make_repo(root, "ann/one", unlike("successor"), {"_id": "e" * 24})
    report = crawl(hub.url, engine, tmp_path, full=True)
    assert (report["new"], report["unchanged"], report["gone"]) == (1, 3, 0)
    with Session(engine) as session:
        names = session.execute(select(Repository.name, Repository.gone_at)).all()
    assert sorted(names) == [(name, None) for name in ("ann/moved", "ann/one", "bob/two", "cat/three")]


def test_a_ghost_in_the_listing_does_not_bury_the_living(
    hub: FaultHub, engine: Engine, tmp_path: Path
) -> None:
    def haunt(rows: Any) -> Any:
        return [
            *rows,
            *({**result, "_id": "9" * 24, "sha": "a" * 40} for result in rows if result["id"] == "bob/two"),
        ]

    crawl(hub.url, engine, tmp_path)
    hub.faults.append(Fault(LISTING + ".*filter=peft", EditJson(haunt)))
    report = crawl(hub.url, engine, tmp_path, full=True)
    assert (report["unchanged"], report["gone"]) == (3, 1)
    assert row(engine, "bob/two")["gone"] is None


def test_stream_leaves_what_keep_stored(hub: FaultHub, engine: Engine, tmp_path: Path) -> None:
    crawl(hub.url, engine, tmp_path, weights="keep")
    other = make_engine(f"sqlite:///{tmp_path / 'other.db'}")
    upgrade(other)
    crawl(hub.url, other, tmp_path, weights="stream")
    other.dispose()
    assert BlobStore(tmp_path / "blobs").verify(row(engine, "ann/one")["weights"]["digest"])


def test_one_broken_listing_does_not_keep_the_others_from_being_read(
    hub: FaultHub, root: Path, engine: Engine, tmp_path: Path
) -> None:
    hub.faults.append(Fault(LISTING + ".*filter=lora", Status(503)))
    report = crawl(hub.url, engine, tmp_path)
    assert (report["status"], report["new"], report["errors"]) == ("partial", 3, {"busy": 1})
    hub.faults.clear()
    assert crawl(hub.url, engine, tmp_path)["status"] == "complete"


def test_what_vanished_is_noticed_whatever_else_is_asked(
    hub: FaultHub, root: Path, engine: Engine, tmp_path: Path
) -> None:
    crawl(hub.url, engine, tmp_path, weights="headers")
    (root / "cat/three").rename(tmp_path / "away")
    assert crawl(hub.url, engine, tmp_path, weights="stream")["gone"] == 1
    assert row(engine, "cat/three")["gone"] is not None


def test_a_hub_that_lists_nothing_buries_nobody(hub: FaultHub, engine: Engine, tmp_path: Path) -> None:
    crawl(hub.url, engine, tmp_path)
    hub.faults.append(Fault(LISTING, EditJson(lambda rows: [])))
    report = crawl(hub.url, engine, tmp_path, full=True)
    assert (report["listed"], report["gone"]) == (0, 0)
    assert row(engine, "ann/one")["gone"] is None


def test_a_new_spelling_reaches_adapters_that_are_known(
    hub: FaultHub, engine: Engine, tmp_path: Path
) -> None:
    crawl(hub.url, engine, tmp_path)
    assert row(engine, "ann/one")["base"] == TINY
    with Session(engine) as session, session.begin():
        store.add_spelling(session, BaseSpelling("acme/Tiny-1B", TINY, "renamed"))
    hub.clear()
    crawl(hub.url, engine, tmp_path)
    assert {row(engine, name)["base"] for name in ("ann/one", "bob/two", "cat/three")} == {"acme/Tiny-1B"}
    assert hub.count("resolver") == 0


def test_a_limit_counts_repositories_not_rows(root: Path, engine: Engine, tmp_path: Path) -> None:
    def spoil(rows: Any) -> Any:
        return [rows[0], {"id": "no/identity"}, *rows] if rows else rows

    with FaultHub(root) as hub:
        hub.faults.append(Fault(LISTING, EditJson(spoil)))
        report = crawl(hub.url, engine, tmp_path, limit=3)
    assert (report["listed"], report["new"], sum(report["quarantined"].values())) == (3, 3, 1)


def test_items_of_superseded_crawls_are_pruned(hub: FaultHub, engine: Engine, tmp_path: Path) -> None:
    for _ in range(3):
        crawl(hub.url, engine, tmp_path, full=True)
    with Session(engine) as session:
        assert session.scalar(select(func.count()).select_from(CrawlItem)) == 3


def test_an_interrupted_crawl_is_not_pruned_by_another_of_the_same_listing(
    hub: FaultHub, engine: Engine, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupted(*_: Any) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(store, "save_repositories", interrupted)
        with pytest.raises(KeyboardInterrupt):
            crawl(hub.url, engine, tmp_path, weights="stream")
    crawl(hub.url, engine, tmp_path, weights="headers")
    report = crawl(hub.url, engine, tmp_path, weights="stream")
    assert (report["status"], report["listed"], report["unmeasured"]) == ("complete", 3, 0)


def test_what_the_hub_took_down_is_a_tombstone_and_not_a_failure(
    hub: FaultHub, root: Path, engine: Engine, tmp_path: Path
) -> None:
    crawl(hub.url, engine, tmp_path)
    (root / "cat/three").rename(tmp_path / "away")
    hub.faults.append(Fault("GET /api/models/cat/three", Status(451)))
    report = crawl(hub.url, engine, tmp_path, full=True)
    assert (report["status"], report["gone"], report["failed"]) == ("complete", 1, 0)


def test_many_broken_repositories_do_not_keep_the_others_from_being_read(
    root: Path, engine: Engine, tmp_path: Path
) -> None:
    for number in range(20):
        make_repo(root, f"broken/r{number:02}", unlike(f"broken{number}"))
    with FaultHub(root) as hub:
        hub.faults.append(Fault("GET /api/models/broken/.*tree", Status(500)))
        report = crawl(hub.url, engine, tmp_path, hub={"attempts": 1})
    assert (report["status"], report["failed"], report["new"], report["pending"]) == ("partial", 20, 3, 0)


def test_a_hub_that_is_gone_leaves_the_rest_pending(
    hub: FaultHub, root: Path, engine: Engine, tmp_path: Path
) -> None:
    for number in range(20):
        make_repo(root, f"more/r{number:02}", unlike(f"more{number}"))
    hub.faults.append(Fault("/tree/", Status(500)))
    hub.faults.append(Fault(LISTING + ".*filter=peft", Status(500), skip=1))
    report = crawl(hub.url, engine, tmp_path, hub={"attempts": 1}, workers=1)
    assert report["status"] == "partial"
    assert report["failed"] + report["pending"] == 23
    assert 8 <= report["failed"] < 16, "it went on asking a Hub that answers nothing"


def test_a_date_that_goes_back_freezes_nothing(
    hub: FaultHub, root: Path, engine: Engine, tmp_path: Path
) -> None:
    edit(root, "ann/one", 7, "2031-01-01T00:00:00.000Z")
    crawl(hub.url, engine, tmp_path)
    edit(root, "ann/one", 9, "2025-06-01T00:00:00.000Z")
    assert crawl(hub.url, engine, tmp_path, full=True, now=NOW + timedelta(days=1))["changed"] == 1
    assert row(engine, "ann/one")["alpha"] == 9


def test_an_empty_first_listing_sets_no_watermark(hub: FaultHub, engine: Engine, tmp_path: Path) -> None:
    hub.faults.append(Fault(LISTING, EditJson(lambda rows: [])))
    assert crawl(hub.url, engine, tmp_path)["listed"] == 0
    hub.faults.clear()
    assert crawl(hub.url, engine, tmp_path, now=NOW + timedelta(days=2))["new"] == 3
