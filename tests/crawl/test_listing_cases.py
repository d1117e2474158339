"""Listings that go wrong within a crawl: what was read is kept, and the next crawl goes on from there."""

from __future__ import annotations

import tracemalloc
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs

import pytest
from sqlalchemy import Engine, event, select
from sqlalchemy.orm import Session
from starlette.responses import JSONResponse
from starlette.types import ASGIApp

from catalog.database import Crawl, frontier
from crawler.crawl.options import Query
from crawler.crawl.pages import Walk, walk
from crawler.hub import Hub
from tests.crawling import NOW, crawl, dump, hub_settings, silent
from tests.fakes import VirtualClock
from tests.localhub import FaultHub
from tests.localhub.faults import (
    Callback,
    Drip,
    Fault,
    Gzip,
    Hang,
    Html,
    Json,
    NextLink,
    SeenRequest,
    Status,
    Truncate,
)
from tests.neighbours import (
    GOOD,
    LISTING,
    TAGGED,
    all_counted,
    crawl_by,
    neighbours,
    outcomes,
    repo,
    row,
    sqlite_catalog,
    verdicts,
)

# The second page of the first listing; pages hold one repository here.
SECOND = LISTING + ".*filter=peft.*cursor="
ONE_BY_ONE = {"page_limit": 1, "list_body": 1 << 20}
# Long enough for a busy machine to answer what is not broken.
SHORT = {"timeout": 3.0, "deadline": 4.0, "attempts": 1}


@pytest.fixture
def backend() -> str:
    """One database is enough here: what is written is the same as in the tests of both."""
    return "sqlite"


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a Hub of three good repositories; nobody changes it."""
    folder = tmp_path_factory.mktemp("listing") / "hub"
    folder.mkdir()
    neighbours(folder)
    return folder


@pytest.fixture
def hub(root: Path) -> Iterator[FaultHub]:
    """The Hub, without faults yet."""
    with FaultHub(root) as running:
        yield running


@pytest.fixture(scope="module")
def undisturbed(
    root: Path, request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> dict[str, list[str]]:
    """The rows of a catalog after a crawl that nothing went wrong with."""
    folder = tmp_path_factory.mktemp("undisturbed")
    with FaultHub(root) as running, sqlite_catalog(request, folder) as engine:
        crawl(running.url, engine, folder)
        return dump(engine)


BROKEN = [
    pytest.param(NextLink("{self}"), "payload", id="case-02-self-loop"),
    pytest.param(NextLink("http://localhost:9{next_path}"), "payload", id="case-03-another-host"),
    pytest.param(NextLink("{next_path}"), "payload", id="case-04-relative"),
    pytest.param(Html(), "payload", id="case-06-html"),
    pytest.param(Json({"error": "later"}), "payload", id="case-07-object"),
    pytest.param(Json(None), "payload", id="case-07-null"),
    pytest.param(Status(429), "busy", id="case-09-429-forever"),
    pytest.param(Status(429, {"Retry-After": "86400"}), "busy", id="case-09-429-for-a-day"),
    pytest.param(Status(503), "busy", id="case-11-503-forever"),
    pytest.param(Status(400), "cursor_expired", id="case-13-cursor-never-taken-again"),
    pytest.param(Gzip(8, b'["', b"a", b'"]'), "payload", id="case-18-bomb"),
    pytest.param(Hang(), "unreachable", id="case-19-hang"),
    pytest.param(Drip(4, 0.2), "unreachable", id="case-20-drip"),
    pytest.param(Truncate(30), "unreachable", id="case-35-page-cut-short"),
]


@pytest.mark.parametrize(("fault", "error"), BROKEN)
def test_a_listing_that_breaks_off_is_partial_and_the_next_crawl_completes_it(
    fault: Any,
    error: str,
    hub: FaultHub,
    engine: Engine,
    tmp_path: Path,
    undisturbed: dict[str, list[str]],
) -> None:
    hub.faults.append(Fault(SECOND, fault))
    report = crawl(hub.url, engine, tmp_path, hub=ONE_BY_ONE | SHORT)
    assert (report["status"], report["errors"]) == ("partial", {error: 1})
    assert (report["listed"], report["new"], report["accepted"]) == (1, 1, 1), "the page before it was lost"
    hub.faults.clear()
    hub.clear()
    report = crawl(hub.url, engine, tmp_path, hub=ONE_BY_ONE)
    assert (report["status"], report["listed"], report["errors"]) == ("complete", 3, {})
    assert "cursor=" in hub.log[0].query, "the crawl did not go on where it stopped"
    assert dump(engine) == undisturbed
    with Session(engine) as session:
        assert len(session.scalars(select(Crawl)).all()) == 1


@pytest.mark.parametrize("back", [1, 2], ids=["case-02-back-to-the-page-before", "case-02-back-to-the-first"])
def test_a_listing_in_a_circle_ends(back: int, hub: FaultHub, engine: Engine, tmp_path: Path) -> None:
    with Hub(hub_settings(hub.url, page_limit=1)) as client:
        pages = [client.listing_url(("peft",), sort="createdAt")]
        while (url := client.page(pages[-1]).next_url) is not None:
            pages.append(url)
    assert len(pages) == 3
    hub.faults.append(Fault(SECOND, NextLink(pages[2 - back]), skip=1))
    report = crawl(hub.url, engine, tmp_path, hub=ONE_BY_ONE)
    assert (report["status"], report["errors"], report["new"]) == ("partial", {"payload": 1}, 2)
    hub.faults.clear()
    assert crawl(hub.url, engine, tmp_path, hub=ONE_BY_ONE)["status"] == "complete"
    assert set(verdicts(engine)) == set(GOOD)


def test_case_03_another_host_is_not_even_asked(
    hub: FaultHub, root: Path, engine: Engine, tmp_path: Path
) -> None:
    with FaultHub(root) as other:
        hub.faults.append(Fault(SECOND, NextLink(f"{other.url}{{next_path}}")))
        crawl(hub.url, engine, tmp_path, hub=ONE_BY_ONE | {"token": "hf_secret"})
        assert other.log == []
    assert hub.log[0].headers["authorization"] == "Bearer hf_secret", "no token could have been betrayed"


LIMITED = {"RateLimit": '"api";r=0;t=1', "RateLimit-Policy": '"fixed window";"api";q=500;w=300'}
WAITS = [
    pytest.param(Status(429, LIMITED), 1, 2.0, id="case-08-429-rate-limit"),
    pytest.param(Status(429, {"Retry-After": "7"}), 1, 7.0, id="case-08-429-retry-after"),
    pytest.param(Status(429), 2, 1.0 + 2.0, id="case-09-429-without-headers"),
    pytest.param(Status(503), 3, 1.0 + 2.0 + 4.0, id="case-10-503-three-times"),
]


@pytest.mark.parametrize(("fault", "times", "seconds"), WAITS)
def test_a_busy_hub_is_waited_for_and_the_crawl_goes_on(
    fault: Any, times: int, seconds: float, hub: FaultHub, engine: Engine, tmp_path: Path
) -> None:
    clock = VirtualClock()
    before = clock.now()
    hub.faults.append(Fault(SECOND, fault, times=times))
    report = crawl_by(clock, hub.url, engine, tmp_path, ONE_BY_ONE | {"attempts": 6})
    assert (report["status"], report["errors"], report["new"], report["accepted"]) == ("complete", {}, 3, 3)
    assert clock.now() - before >= seconds
    assert sum(request.status in (429, 503) for request in hub.log) == times


def test_case_13_an_expired_cursor_of_an_incremental_crawl_starts_again_from_the_watermark(
    tmp_path: Path, engine: Engine
) -> None:
    root = tmp_path / "hub"
    root.mkdir()
    for number in range(3):
        repo(root, f"o/r{number}", lastModified=f"2026-01-0{number + 2}T00:00:00.000Z")
    repo(root, "o/old", lastModified="2020-01-01T00:00:00.000Z")
    with FaultHub(root) as hub:
        assert crawl(hub.url, engine, tmp_path, hub=ONE_BY_ONE)["status"] == "complete"
        for number in range(3):
            repo(
                root, f"o/r{number}", {"new.txt": "more"}, lastModified=f"2026-01-0{number + 4}T00:00:00.000Z"
            )
        hub.faults.append(Fault(SECOND, Status(410), times=1))
        hub.clear()
        report = crawl(hub.url, engine, tmp_path, hub=ONE_BY_ONE)
        requests = [request.query for request in hub.log if "filter=peft" in request.query]
    assert (report["status"], report["listed"], report["changed"]) == ("complete", 3, 3)
    assert all("sort=lastModified" in query for query in requests)
    assert sum("cursor=" not in query for query in requests) == 2, "the listing did not start again"


@pytest.mark.parametrize(
    ("position", "listed", "outcome"),
    [
        pytest.param(0, 3, "gone", id="case-15-deleted-after-its-page"),
        pytest.param(2, 2, None, id="case-15-deleted-before-its-page"),
    ],
)
def test_a_repository_deleted_between_pages_costs_itself_only(
    position: int, listed: int, outcome: str | None, engine: Engine, tmp_path: Path
) -> None:
    root = tmp_path / "hub"
    root.mkdir()
    neighbours(root)
    with FaultHub(root) as hub:
        with Hub(hub_settings(hub.url)) as client:
            rows = client.page(client.listing_url(("peft",), sort="createdAt")).rows
        names = [item["id"] for item in rows if isinstance(item, dict)]

        def delete(_request: SeenRequest) -> None:
            (root / names[position]).rename(tmp_path / "away")

        hub.faults.append(Fault(SECOND, Callback(delete), times=1))
        report = crawl(hub.url, engine, tmp_path, hub=ONE_BY_ONE)
    assert (report["status"], report["listed"], report["accepted"]) == ("complete", listed, 2)
    assert outcomes(engine).get(names[position]) == outcome


SPOILT: dict[str, dict[str, Any]] = {
    "case-17-words-for-a-date": {"lastModified": "yesterday", "createdAt": "soon"},
    "case-17-number-for-a-date": {"lastModified": 1.5e300, "createdAt": 0},
    "case-17-no-such-day": {"lastModified": "2026-02-30T25:61:00.000Z"},
    "case-17-before-time": {"createdAt": "0000-00-00T00:00:00.000Z"},
    "case-17-index-without-url": {
        "cardData": {"model-index": [{"name": "x", "results": [{"source": {"name": "leaderboard"}}]}]},
    },
    "case-17-index-of-words": {"cardData": {"model-index": "good"}, "model-index": "better"},
    "case-28-counts-without-end": {"downloads": 10**300, "likes": -1, "downloadsAllTime": True},
    "case-28-tags-of-all-kinds": {"tags": ["peft", 7, None, ["x"], "nul\0", "half \ud800", "x" * 5000]},
}


@pytest.mark.parametrize("case", SPOILT)
def test_a_row_with_spoilt_fields_is_a_repository_like_any_other(
    case: str, spoilt: tuple[Engine, dict[str, Any]]
) -> None:
    engine, report = spoilt
    assert (report["status"], report["errors"], report["quarantined"]) == ("complete", {}, {})
    assert outcomes(engine)[f"o/{case}"] == "new"
    assert row(engine, f"o/{case}")["verdict"] == "accepted"


@pytest.fixture(scope="module")
def spoilt(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[tuple[Engine, dict[str, Any]]]:
    """The catalog and the report of one crawl of all repositories whose rows are spoilt, two to a page."""
    folder = tmp_path_factory.mktemp("spoilt")
    root = folder / "hub"
    root.mkdir()
    neighbours(root)
    for case, facts in SPOILT.items():
        repo(root, f"o/{case}", **facts)
    with FaultHub(root) as hub, sqlite_catalog(request, folder) as engine:
        yield engine, crawl(hub.url, engine, folder, hub={"page_limit": 2})


@pytest.mark.parametrize(
    ("match", "outcome"),
    [
        pytest.param(SECOND, "partial", id="case-18-listing"),
        pytest.param("GET /api/models/bob/two/tree", "partial", id="case-18-tree"),
        pytest.param("GET /bob/two/resolve/.*config", "complete", id="case-18-config"),
    ],
)
def test_a_bomb_takes_no_memory(
    match: str, outcome: str, hub: FaultHub, engine: Engine, tmp_path: Path
) -> None:
    hub.faults.append(Fault(match, Gzip(48)))
    caps = {"list_body": 1 << 20, "tree_body": 1 << 20, "attempts": 1}
    with Peak() as peak:
        report = crawl(hub.url, engine, tmp_path, hub=caps | {"page_limit": 1})
    assert report["status"] == outcome
    assert all_counted(report)
    assert 1 << 20 < peak.bytes < 12 << 20, "more than a few times the cap of one answer"


class Pages:
    """A listing of `pages` pages of 40 rows with large cards."""

    def __init__(self, pages: int) -> None:
        self.pages = pages

    def wrap(self, app: ASGIApp, requests: SeenRequest) -> ASGIApp:
        page = int(parse_qs(requests.query).get("cursor", ["0"])[0])
        facts = TAGGED | {"sha": "0" * 40, "cardData": {"text": "x" * 16_000}}
        rows = [facts | {"_id": f"{n:024x}", "id": f"o/r{n}"} for n in range(40 * page, 40 * page + 40)]
        following = f"http://{requests.headers['host']}/api/models?cursor={page + 1}"
        link = {"Link": f'<{following}>; rel="next"'} if page + 1 < self.pages else {}
        return JSONResponse(rows, headers=link)


@pytest.mark.slow
def test_case_21_memory_does_not_grow_with_the_number_of_pages(
    hub: FaultHub, request: pytest.FixtureRequest, tmp_path: Path
) -> None:
    peaks: list[int] = []
    for pages in (5, 5, 30):  # the first walk fills caches
        folder = tmp_path / str(len(peaks))
        hub.faults[:] = [Fault(LISTING, Pages(pages))]
        hub.clear()
        with sqlite_catalog(request, folder) as engine, Hub(hub_settings(hub.url)) as client:
            with Session(engine) as session, session.begin():
                opened = frontier.open_crawl(session, "0" * 64, "0" * 64, {"queries": [["peft", True]]}, NOW)
                plan = Walk(opened.id, (Query(("peft",), True),), None, None)
            with Peak() as peak:
                assert walk(engine, client, plan, silent()) is None
            peaks.append(peak.bytes)
            with Session(engine) as session:
                assert frontier.count_listed(session, plan.crawl_id) == 40 * pages
    page = 40 * 16_000
    assert peaks[2] - peaks[1] < 2 * page, f"25 more pages of {page:,} bytes: {peaks}"


def test_the_work_for_a_page_does_not_grow_with_the_number_of_pages(
    hub: FaultHub, request: pytest.FixtureRequest, tmp_path: Path
) -> None:
    """As SQLite's virtual machine counts it in steps: what was listed is not counted again with each page."""
    steps, after_page = [0], list[int]()

    def step() -> int:
        steps[0] += 1
        return 0

    progress: Any = silent()
    progress.report_listing.side_effect = lambda _listed: after_page.append(steps[0])
    hub.faults[:] = [Fault(LISTING, Pages(30))]
    with sqlite_catalog(request, tmp_path) as engine, Hub(hub_settings(hub.url)) as client:
        event.listen(engine, "connect", lambda connection, _: connection.set_progress_handler(step, 1))
        engine.dispose()  # the connections so far do not count
        with Session(engine) as session, session.begin():
            opened = frontier.open_crawl(session, "0" * 64, "0" * 64, {"queries": [["peft", True]]}, NOW)
            plan = Walk(opened.id, (Query(("peft",), True),), None, None)
        assert walk(engine, client, plan, progress) is None
    assert [call.args[0] for call in progress.report_listing.call_args_list] == [
        40 * pages for pages in range(1, 31)
    ]
    work = [after - before for before, after in pairwise(after_page)]
    assert work[1] > 1000
    assert work[-1] < 1.1 * work[1]


class Peak:
    """The most bytes that Python held at once in a `with` block, over what it held at its beginning."""

    bytes = -1

    def __enter__(self) -> Peak:
        tracemalloc.start()
        self._before = tracemalloc.get_traced_memory()[0]
        return self

    def __exit__(self, *_: object) -> None:
        self.bytes = tracemalloc.get_traced_memory()[1] - self._before
        tracemalloc.stop()
