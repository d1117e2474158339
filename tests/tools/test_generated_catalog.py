"""Generated catalogs: what is made from adapters that were drawn has texts, vectors and names of its own."""

from __future__ import annotations

import json
import re
import sqlite3
from contextlib import closing
from pathlib import Path

import numpy as np
import pytest

import loradex
from catalog.index import content_of
from loradex.page import Documents
from tools import generated_catalog
from tools.generated_catalog import generate
from tools.generated_details import POOLS


def test_copies_are_adapters_of_their_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(generated_catalog, "DRAWN", 12)
    generate(tmp_path, 30)
    with closing(sqlite3.connect(tmp_path / "catalog.db")) as connection:
        rows = connection.execute(
            "SELECT id, name, weights_digest, card_text, delta, license, base_model_id FROM adapter "
            "JOIN repository USING (id) JOIN fingerprint USING (weights_digest) ORDER BY id"
        ).fetchall()
        contents = dict(connection.execute("SELECT content, count(*) FROM embedding GROUP BY content"))
        assert connection.execute("PRAGMA foreign_key_check").fetchall() == []
    assert [row[0] for row in rows] == list(range(1, 31))
    for column in (1, 2, 3, 4):
        assert len({row[column] for row in rows}) == 30
    for row in rows:
        drawn = rows[(row[0] - 1) % 12]
        assert sorted(row[3].split()) == sorted(drawn[3].split())
        assert contents[content_of(row[3])] == contents[content_of(drawn[3])] > 0
        assert row[5:] == drawn[5:]
        turned, vector = (np.frombuffer(delta[4], dtype="<f4") for delta in (row, drawn))
        assert np.array_equal(turned, np.roll(vector, -16 * ((row[0] - 1) // 12)))
    with loradex.open(tmp_path) as catalog:
        found = catalog.search(rows[17][3][:200], words_only=True, k=3)
        assert {hit.adapter for hit in found} == {rows[number][1] for number in (5, 17, 29)}


def test_a_page_shows_what_is_added_to_the_same_rows(tmp_path: Path) -> None:
    for name in ("plain", "page", "again"):
        (tmp_path / name).mkdir()
        generate(tmp_path / name, 120, page=name != "plain")
    dumps = [dump(tmp_path / name) for name in ("page", "again")]
    assert dumps[0] == dumps[1]
    kept = (
        "SELECT a.id, r.name, owner, downloads, likes, rank, license, norm, card_text, delta, output, vector "
        "FROM adapter a JOIN repository r ON r.id = a.id JOIN fingerprint USING (weights_digest) "
        "JOIN embedding ON chunk = 0 WHERE r.id <= 120 ORDER BY a.id, content"
    )
    plain, page = (query(tmp_path / name, kept) for name in ("plain", "page"))
    assert plain == page != []
    assert query(tmp_path / "page", "PRAGMA foreign_key_check") == []
    assert query(tmp_path / "plain", "SELECT count(*) FROM crawl") == [(0,)]


def test_details_of_generated_adapters_fit_one_another(tmp_path: Path) -> None:
    generate(tmp_path, 120, page=True)
    with loradex.open(tmp_path) as catalog:
        documents = Documents(catalog)
        for place in range(0, 120, 7):
            detail = json.loads(documents.document(f"adapter/{place}.json"))
            spectrum = detail["spectrum"]
            assert len(spectrum["norms"]) == len(spectrum["values"]) == 64
            assert np.hypot.reduce(spectrum["norms"]) == pytest.approx(detail["norm"], rel=1e-3)
            squares = np.square(spectrum["values"]).sum(axis=1)
            assert (squares <= np.square(spectrum["norms"]) / detail["scaling"] ** 2 * 1.001).all()
            assert detail["card"].startswith("---\n")
            assert detail["training"]["learning_rate"] > 0
        crawls = json.loads(documents.document("crawls.json"))["rows"]
        assert sum(n for crawl in crawls for n in crawl["outcomes"].values()) == 120
        assert {pool.pool for pool in catalog.pools()} == set(POOLS)
        assert catalog.leaderboard("boolq", split="valid")[0].n == 500
        rows = catalog.changes("2025-12-10")
        assert {"new", "changed"} <= {row.change for row in rows}
        head = json.loads(documents.head())["own"]
        assert min(head.values()) > 0


def query(data: Path, statement: str) -> list[tuple[object, ...]]:
    with closing(sqlite3.connect(data / "catalog.db")) as connection:
        return connection.execute(statement).fetchall()


def dump(data: Path) -> dict[str, list[tuple[object, ...]]]:
    """All rows but those with random tokens."""
    names = [name for (name,) in query(data, "SELECT name FROM sqlite_master WHERE type = 'table'")]
    tables = [str(name) for name in names if not re.search("token|version|fts|sqlite", str(name))]
    return {name: query(data, f"SELECT * FROM {name}") for name in tables}
