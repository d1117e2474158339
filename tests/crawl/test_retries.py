"""What the Hub fails to show is tried again with growing pauses, and holds nobody else back."""

from __future__ import annotations

import json
from collections.abc import Iterator
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import Engine, select
from sqlalchemy.orm import Session

from catalog.database import retries
from catalog.database.retries import rest
from catalog.database.schema import Crawl, CrawlRetry
from crawler.crawl import stages
from tests.crawling import NOW, crawl, items
from tests.hubs import card, lora_files, lora_tensors, make_repo, safetensors_bytes
from tests.localhub import FaultHub
from tests.localhub.faults import Fault, Hang, Status, Truncate

TINY = "acme/tiny"
OLD, NEW = "2025-10-01T00:00:00.000Z", "2025-12-01T00:00:00.000Z"
BROKEN = "GET /api/models/bob/two/tree"
OTHERS = {"ann/one": "unchanged", "cat/three": "unchanged"}


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """The folder of a Hub of three repositories; bob/two changed last."""
    folder = tmp_path / "hub"
    for number, name in enumerate(("ann/one", "bob/two", "cat/three")):
        files = lora_files(TINY, lora_dropout=number / 100)
        files["README.md"] = card(f"Made by {name}.\n", base_model=TINY)
        files["adapter_model.safetensors"] = safetensors_bytes(lora_tensors(seed=number))
        make_repo(folder, name, files, {"lastModified": NEW if name == "bob/two" else OLD})
    return folder


@pytest.fixture
def hub(root: Path) -> Iterator[FaultHub]:
    """That Hub, whose file list of bob/two is out of order."""
    with FaultHub(root, faults=[Fault(BROKEN, Status(500))]) as running:
        yield running


def waiting(engine: Engine) -> list[dict[str, Any]]:
    """What `status` lists."""
    with Session(engine) as session:
        return retries.list_retries(session)


def watermarks(engine: Engine) -> list[datetime | None]:
    with Session(engine) as session:
        return list(session.scalars(select(Crawl.watermark).order_by(Crawl.id)))


def test_a_failure_does_not_hold_the_watermark_and_is_tried_again(
    hub: FaultHub, engine: Engine, tmp_path: Path
) -> None:
    first = crawl(hub.url, engine, tmp_path)
    assert (first["status"], first["new"], first["failed"], first["resting"]) == ("partial", 2, 1, 0)
    assert watermarks(engine) == [datetime.fromisoformat(OLD)]
    [row] = waiting(engine)
    assert (row["repository"], row["error"], row["attempts"]) == ("bob/two", "busy", 1)
    assert (row["first_failed"], row["next_try"]) == (NOW, NOW)
    assert "HTTP 500" in row["detail"]
    hub.faults.clear()
    hub.clear()
    second = crawl(hub.url, engine, tmp_path)
    assert (second["status"], second["new"], second["failed"]) == ("complete", 1, 0)
    assert all(
        "sort=lastModified" in requests.query for requests in hub.log if requests.path == "/api/models"
    )
    assert waiting(engine) == []
    assert watermarks(engine)[-1] == datetime.fromisoformat(NEW)


def test_it_is_worked_off_though_the_listing_no_longer_reaches_it(
    root: Path, engine: Engine, tmp_path: Path
) -> None:
    """The broken one is the oldest: the incremental listing ends before it."""
    old = {"lastModified": "2020-01-01T00:00:00.000Z"}
    (root / "bob/two/.hub.json").write_text(json.dumps(old))
    with FaultHub(root, faults=[Fault(BROKEN, Status(500))]) as hub:
        assert crawl(hub.url, engine, tmp_path)["failed"] == 1
        hub.faults.clear()
        later = NOW + timedelta(days=2)
        report = crawl(hub.url, engine, tmp_path, now=later)
        assert (report["status"], report["new"]) == ("complete", 1)
        assert dict(items(engine)) == OTHERS | {"bob/two": "new"}


def test_pauses_grow_and_nobody_is_asked_before_they_are_over(
    hub: FaultHub, engine: Engine, tmp_path: Path
) -> None:
    now = NOW
    for attempts in range(1, 5):
        hub.clear()
        report = crawl(hub.url, engine, tmp_path, now=now)
        assert (report["status"], report["failed"]) == ("partial", 1)
        [row] = waiting(engine)
        assert (row["attempts"], row["next_try"]) == (attempts, now + rest(attempts))
        assert row["first_failed"] == NOW
        if attempts > 1:
            hub.clear()
            soon = crawl(hub.url, engine, tmp_path, now=row["next_try"] - timedelta(seconds=1))
            assert (soon["status"], soon["failed"], soon["resting"]) == ("complete", 0, 1)
            assert [requests for requests in hub.log if "bob/two" in requests.path] == []
            assert dict(items(engine)) == OTHERS
        now = row["next_try"]
    assert waiting(engine)[0]["attempts"] == 4


def test_the_pause_has_an_end() -> None:
    assert [rest(n) for n in (1, 2, 3)] == [timedelta(0), timedelta(minutes=10), timedelta(minutes=20)]
    assert rest(10) == rest(10_000) == timedelta(days=1)


def test_full_and_another_commit_end_the_pause(
    hub: FaultHub, root: Path, engine: Engine, tmp_path: Path
) -> None:
    for _ in range(2):
        crawl(hub.url, engine, tmp_path)
    assert crawl(hub.url, engine, tmp_path)["resting"] == 1
    assert crawl(hub.url, engine, tmp_path, full=True)["failed"] == 1
    assert waiting(engine)[0]["attempts"] == 3
    make_repo(root, "bob/two", {"more.txt": "words"}, {"lastModified": NEW})
    assert crawl(hub.url, engine, tmp_path)["failed"] == 1
    hub.faults.clear()
    make_repo(root, "bob/two", {"more.txt": "more words"}, {"lastModified": NEW})
    assert crawl(hub.url, engine, tmp_path)["new"] == 1
    assert waiting(engine) == []


def test_a_repository_that_vanished_meanwhile_leaves_the_list(
    hub: FaultHub, root: Path, engine: Engine, tmp_path: Path
) -> None:
    crawl(hub.url, engine, tmp_path)
    (root / "bob/two").rename(tmp_path / "elsewhere")
    report = crawl(hub.url, engine, tmp_path, now=NOW + timedelta(hours=1))
    assert (report["status"], report["gone"], report["failed"]) == ("complete", 1, 0)
    assert waiting(engine) == []


@pytest.mark.parametrize(
    ("fault", "kind"), [(Truncate(500), "unreachable"), (Hang(), "unreachable"), (Status(503), "busy")]
)
def test_a_broken_transfer_is_tried_again(
    fault: Any, kind: str, hub: FaultHub, engine: Engine, tmp_path: Path
) -> None:
    hub.faults[:] = [Fault("GET /bob/two/resolve/.*safetensors", fault)]
    options: dict[str, Any] = {"weights": "keep", "hub": {"attempts": 1}}
    assert crawl(hub.url, engine, tmp_path, **options)["errors"] == {kind: 1}
    assert waiting(engine)[0]["error"] == kind
    hub.faults.clear()
    report = crawl(hub.url, engine, tmp_path, **options)
    assert (report["status"], report["new"], report["unmeasured"]) == ("complete", 1, 0)


def test_a_fault_of_our_own_is_recorded_and_holds_nobody(
    hub: FaultHub, engine: Engine, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    describe = stages.describe

    def fall(listed: Any, *arguments: Any) -> Any:
        if listed.name == "bob/two":
            raise ZeroDivisionError("of ours")
        return describe(listed, *arguments)

    hub.faults.clear()
    with monkeypatch.context() as patched:
        patched.setattr(stages, "describe", fall)
        report = crawl(hub.url, engine, tmp_path)
        assert (report["status"], report["errors"]) == ("partial", {"internal_ZeroDivisionError": 1})
    assert watermarks(engine) == [datetime.fromisoformat(OLD)]
    [row] = waiting(engine)
    assert (row["error"], row["detail"]) == ("internal_ZeroDivisionError", "ZeroDivisionError: of ours")
    assert crawl(hub.url, engine, tmp_path)["new"] == 1


def test_a_listing_that_breaks_off_still_keeps_the_watermark(
    hub: FaultHub, engine: Engine, tmp_path: Path
) -> None:
    hub.faults[:] = [Fault(r"GET /api/models\?.*filter=lora", Status(500))]
    assert crawl(hub.url, engine, tmp_path)["status"] == "partial"
    assert watermarks(engine) == [None]


def test_a_question_of_its_own_has_a_list_of_its_own(hub: FaultHub, engine: Engine, tmp_path: Path) -> None:
    crawl(hub.url, engine, tmp_path)
    crawl(hub.url, engine, tmp_path, weights="keep")
    assert [row["attempts"] for row in waiting(engine)] == [1, 1]
    hub.faults.clear()
    crawl(hub.url, engine, tmp_path)
    assert [row["attempts"] for row in waiting(engine)] == [1]


def test_the_list_of_a_question_that_is_asked_with_newer_spellings_is_dropped(
    hub: FaultHub, engine: Engine, tmp_path: Path
) -> None:
    crawl(hub.url, engine, tmp_path)
    with Session(engine) as session, session.begin():
        old = session.scalars(select(Crawl)).one()
        row = session.scalars(select(CrawlRetry)).one()
        old.scope = "0" * 64
        old.asked = {**old.asked, "described_with": "older"}
        session.add(CrawlRetry(**{c: getattr(row, c) for c in COLUMNS} | {"scope": old.scope}))
        session.delete(row)
    hub.faults.clear()
    assert crawl(hub.url, engine, tmp_path)["status"] == "complete"
    assert waiting(engine) == []


COLUMNS = tuple(CrawlRetry.__table__.columns.keys())
