"""Duplicates and families without what the user hid: what the page reads is what would be found anew."""

from __future__ import annotations

import json
import shutil
import sqlite3
from collections.abc import Iterator, Sequence
from contextlib import closing
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import loradex
from catalog.database import Adapter, reading
from catalog.fingerprints import DELTA_SIZE, families
from catalog.search import likeness, nearest
from loradex.page import Documents, export_page
from loradex.page.documents import Choice
from loradex.page.points import NOWHERE
from tools.generated_catalog import generate

# Owner, names, and the degrees between the updates of one and the next: neighbours are duplicates (a cosine
# of 0.999), or of one family (0.9), the others are not.
CHAINS: tuple[tuple[str, tuple[str, ...], float], ...] = (
    ("chain", ("a", "b", "c", "d", "e"), 2.2),
    ("walk", ("first", "second", "third", "fourth"), 25.0),
    ("series", ("run-1", "run-2", "run-3"), 89.0),
    ("pair", ("step-1", "step-2"), 50.0),
)


@pytest.fixture(scope="module")
def chained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A data folder of generated adapters, of which some are alike in chains."""
    data = tmp_path_factory.mktemp("chained")
    generate(data, 60)
    with closing(sqlite3.connect(data / "catalog.db")) as connection, connection:
        number = 0
        for place, (owner, names, degrees) in enumerate(CHAINS):
            for step, name in enumerate(names):
                number += 1
                vector = np.zeros(DELTA_SIZE, "<f4")
                angle = np.radians(step * degrees)
                vector[2 * place : 2 * place + 2] = np.cos(angle), np.sin(angle)
                own = "(SELECT weights_digest FROM adapter WHERE id = ?)"
                changes: dict[str, tuple[Any, ...]] = {
                    "UPDATE repository SET owner = ?, name = ? WHERE id = ?": (owner, f"{owner}/{name}"),
                    "UPDATE adapter SET base_model_id = ? WHERE id = ?": (1,),
                    f"UPDATE fingerprint SET delta = ? WHERE weights_digest = {own}": (vector.tobytes(),),
                }
                for statement, values in changes.items():
                    connection.execute(statement, (*values, number))
        # Two folders of one repository.
        connection.execute("UPDATE adapter SET repository_id = 20, subfolder = 'old', main = 0 WHERE id = 21")
    return data


def found(catalog: loradex.Catalog) -> dict[str, Any]:
    """The groups as the library finds them, which leaves out what is hidden before it compares."""
    rows: dict[str, Any] = {
        "duplicates": catalog.duplicates(verdict="any"),
        "families": catalog.families(verdict="any"),
    }
    left_out = ("skipped", "partial")
    plain = {
        kind: [{key: value for key, value in asdict(row).items() if key not in left_out} for row in of_kind]
        for kind, of_kind in rows.items()
    }
    return dict(json.loads(json.dumps(plain)))


def shown(catalog: loradex.Catalog, choice: Choice | None = None) -> Any:
    return json.loads(Documents(catalog, choice).document("groups.json"))


def hidden_sets(members: Sequence[str]) -> Iterator[tuple[str, ...]]:
    """No member, each, and some larger sets."""
    yield ()
    yield from ((name,) for name in members)
    generator = np.random.default_rng(0)
    for _ in range(30):
        yield tuple(generator.choice(members, int(generator.integers(2, len(members))), replace=False))


@pytest.mark.parametrize("block", [5000, 2])
def test_hidden_members_are_left_out_as_if_they_had_never_been(
    chained: Path, tmp_path: Path, block: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(likeness, "_BLOCK", block)
    shutil.copytree(chained, tmp_path / "data")
    catalog = loradex.open(tmp_path / "data")
    whole = found(catalog)
    assert [len(row["members"]) for row in whole["duplicates"]] == [5]
    assert {row["family"]: row["size"] for row in whole["families"]}.items() >= {
        "chain/a": 5, "walk/first": 4, "series/run-#": 3, "pair/step-#": 2,
    }.items()  # fmt: skip
    members = sorted({name for kind in whole.values() for row in kind for name in row["members"]})
    parts = set()
    for names in hidden_sets(members):
        if names:
            catalog.hide(*names)
        groups = shown(catalog)
        assert groups == found(catalog), names
        parts.add((len(groups["duplicates"]), len(groups["families"])))
        if names:
            catalog.hide(*names, undo=True)
    # Chains fell apart, groups of two disappeared.
    assert len({count for count, _ in parts}) == 3
    assert len({count for _, count in parts}) > 3


def test_hiding_compares_the_groups_concerned_alone(
    chained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shutil.copytree(chained, tmp_path / "data")
    catalog = loradex.open(tmp_path / "data")
    shown(catalog)
    compared: list[int] = []

    def count(rows: Any, **options: Any) -> Any:
        compared.append(len(rows))
        return families(rows, **options)

    monkeypatch.setattr("loradex.page.documents.families", count)
    shown(catalog)
    assert compared == []
    catalog.hide("walk/second")
    groups = shown(catalog)
    assert compared == [3]
    assert [row["members"] for row in groups["families"] if row["family"].startswith("walk")] == [
        ["walk/fourth", "walk/third"]
    ]
    # What is in no group concerns none.
    [alone] = [row.adapter for row in catalog.adapters("-owner:chain,walk,series,pair", limit=1)]
    catalog.hide(alone)
    shown(catalog)
    assert compared == [3, 3]


def test_a_hidden_adapter_leaves_the_map_as_it_is(
    chained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shutil.copytree(chained, tmp_path / "data")
    catalog = loradex.open(tmp_path / "data")

    def points() -> tuple[Any, int]:
        documents = Documents(catalog)
        base = documents.bases.index("meta-llama/Llama-3.1-8B-Instruct")
        table = np.frombuffer(documents.document(f"points/{base}-output.bin"), "<i2").reshape(-1, 2)
        return table, documents.names["walk/second"]

    before, place = points()
    catalog.hide("walk/second")
    monkeypatch.setattr("loradex.page.points.layout_blocks", None)
    after, _ = points()
    assert after[place].tolist() == [NOWHERE, NOWHERE] != before[place].tolist()
    rest = np.arange(len(before)) != place
    assert np.array_equal(before[rest], after[rest])
    catalog.hide("walk/second", undo=True)
    assert np.array_equal(points()[0], before)


@pytest.mark.parametrize("notes", [True, False])
def test_an_export_has_the_same_groups(chained: Path, tmp_path: Path, notes: bool) -> None:
    shutil.copytree(chained, tmp_path / "data")
    catalog = loradex.open(tmp_path / "data")
    catalog.hide("chain/c", "walk/second", "pair/step-2")
    report = export_page(catalog, tmp_path / "site", with_notes=notes)
    [file] = (tmp_path / "site").glob("d/*/groups.json")
    assert json.loads(file.read_bytes()) == found(catalog) == shown(catalog)
    assert report.adapters == (60 if notes else 57)


def test_rows_are_read_in_blocks(chained: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(likeness, "_BLOCK", 2)
    with loradex.open(chained) as catalog, reading(catalog.settings) as session:
        ids = [1, 2, 3, 21, 40]
        rows = list(likeness.with_weights(session, (), every=True, ids=ids))
        assert sorted(row.id for row in rows) == ids
        assert sorted(row.id for row in likeness.measured_copies(session, (), every=True, ids=ids)) == ids


def test_candidates_of_a_base_model_are_read_once_for_all_neighbours(
    chained: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of a small part of the catalog, whose neighbours are not among the nearest of all."""
    where = "owner:chain,walk,series,pair"
    with loradex.open(chained) as catalog:
        expected = [neighbours_of(Documents(catalog, Choice(where=where)), place) for place in range(14)]
        for name, value in {"_AHEAD": 2, "_LEAST_AHEAD": 2, "_MOST_AHEAD": 30}.items():
            monkeypatch.setattr(nearest, name, value)
        read: list[str | None] = []

        def keys(session: Any, refusing: Any, base: str | None = None, **options: Any) -> Any:
            read.append(base)
            return likeness.measured_keys(session, refusing, base, **options)

        monkeypatch.setattr(nearest, "measured_keys", keys)
        documents = Documents(catalog, Choice(where=where))
        assert len(documents.ids) == 14
        with reading(catalog.settings) as session:
            near = documents.nearest_by(session)
            rows = [json.loads(near(session.get_one(Adapter, id_)))["rows"] for id_ in documents.ids]
        assert rows == expected
        assert {len(of_one) for of_one in rows} == {12}
        assert read == ["meta-llama/Llama-3.1-8B-Instruct"]


def neighbours_of(documents: Documents, place: int) -> Any:
    return json.loads(documents.document(f"nearest/{place}.json"))["rows"]
