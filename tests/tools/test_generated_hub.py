"""The generated Hub: a crawl reads what follows from the numbers, and a second one finds it unchanged."""

from __future__ import annotations

from pathlib import Path

import pytest
from sqlalchemy import Engine, select
from sqlalchemy.orm import Session

from catalog.database import Adapter
from crawler.localhub import LocalServer
from tests.crawling import crawl
from tools.generated_hub import GeneratedHub


@pytest.fixture
def backend() -> str:
    """One database is enough."""
    return "sqlite"


def test_a_crawl_of_generated_repositories(engine: Engine, tmp_path: Path) -> None:
    with LocalServer(GeneratedHub(7, layers=1).app) as hub:
        report = crawl(hub.url, engine, tmp_path, weights="stream", hub={"page_limit": 3})
        assert (report["status"], report["new"], report["accepted"]) == ("complete", 7, 7)
        again = crawl(hub.url, engine, tmp_path, weights="stream", full=True)
        assert (again["unchanged"], again["requests"]["resolver"]) == (7, 0)
    with Session(engine) as session:
        assert len(set(session.scalars(select(Adapter.weights_digest)))) == 7
