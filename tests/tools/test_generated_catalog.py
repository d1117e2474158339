"""Generated catalogs: what is made from adapters that were drawn has texts, vectors and names of its own."""

from __future__ import annotations

import sqlite3
from contextlib import closing
from pathlib import Path

import numpy as np
import pytest

import loradex
from catalog.index import content_of
from tools import generated_catalog
from tools.generated_catalog import generate


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
