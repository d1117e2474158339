"""The documents of the page: what each has, and that the list has what the filter language asks for."""

from __future__ import annotations

import json
import re
import shutil
from importlib import resources
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from sqlalchemy import create_engine, text
from sqlalchemy.orm import Session

import loradex
from catalog.adapters import load_engines, verdict
from catalog.database import Adapter, reading
from catalog.errors import NotFoundError
from catalog.fingerprints import families
from catalog.query import FIELDS, fold, query_row, texts_in
from catalog.search import listing
from loradex.page import Documents
from loradex.page.documents import MOST_COPIES, Choice
from loradex.page.encoding import encode_column, encode_sketch
from loradex.page.points import NOWHERE
from tests.page.conftest import CARD, TINY, hostile_name
from tests.page.filters import FILE, written

STATIC = Path(loradex.__file__).parent / "page" / "static"


def load(documents: Documents, name: str) -> Any:
    return json.loads(documents.document(name))


def decode(column: dict[str, Any]) -> list[Any]:
    """The values of a column, as data.js reads them."""
    if "values" in column:
        return list(column["values"])
    words, codes = column["words"], column["codes"]
    if "sets" in column:
        return [[words[code] for code in column["sets"][place]] for place in codes]
    return [None if code < 0 else words[code] for code in codes]


def test_the_filters_for_the_browser_are_those_of_the_parser() -> None:
    assert FILE.read_text() == written(), "run python -m tests.page.filters"


def test_every_field_of_the_filter_language_is_in_the_list(documents: Documents) -> None:
    head = json.loads(documents.head())
    assert [field["name"] for field in head["fields"]] == list(FIELDS), head["unlisted"]
    assert head["adapters"] == 5
    assert head["measured"] == [5]


def test_columns_have_the_values_of_rows(documents: Documents, catalog: loradex.Catalog) -> None:
    columns = {}
    for name in ("list.json", "more.json", "own.json"):
        columns |= load(documents, name)["columns"]
    with reading(catalog.settings) as session:
        rows = _rows(session)
    names = decode(columns["adapter"])
    assert names == sorted(rows)
    for field in FIELDS.values():
        if field.key in listing.DERIVED:
            continue
        if field.kind == "engine":
            runs = True if field.name == "runs" else None
            expected = [
                [
                    fold(engine.name)
                    for engine in load_engines()
                    if verdict(engine, rows[name]["engine_facts"]).runs is runs
                ]
                for name in names
            ]
            assert decode(columns[field.name]) == expected, field.name
            continue
        expected = [rows[name][field.key] for name in names]
        if field.kind == "date":
            expected = [None if value is None else int(value.timestamp()) for value in expected]
        if field.many:
            expected = [list(texts_in(value)) for value in expected]
        assert decode(columns[field.key]) == expected, field.name


def _rows(session: Session) -> dict[str, dict[str, Any]]:
    return {row["adapter"]: row for row in (query_row(one, ()) for one in session.query(Adapter))}


@pytest.mark.parametrize(
    ("values", "kind", "many"),
    [
        ([1, None, 1, 1, 2], "whole", False),
        (["a", "b", None], "text", False),
        ([["a", "b"], [], ["b"], ["a", "b"]], "text", True),
        ([True, None, False], "flag", False),
        ([0.1, 0.2, 0.1 + 0.2], "number", False),
    ],
)
def test_a_column_is_what_it_was(values: list[Any], kind: str, many: bool) -> None:
    assert decode(json.loads(json.dumps(encode_column(values, kind, many=many)))) == values


def test_the_details_are_those_of_the_api(documents: Documents, catalog: loradex.Catalog) -> None:
    place = documents.names["bob/three"]
    detail, expected = load(documents, f"adapter/{place}.json"), catalog.details("bob/three")
    assert (detail["rank"], detail["license"], detail["norm"]) == (
        expected.rank,
        expected.license,
        expected.norm,
    )
    assert [use for use, objection in detail["uses"].items() if objection is None] == ["research", "publish"]
    assert "does not allow commercial use" in detail["uses"]["commercial"]
    assert [score["value"] for score in detail["scores"]] == [0.25, 0.5]
    assert len(detail["spectrum"]["norms"]) == 4
    assert np.hypot.reduce(detail["spectrum"]["norms"]) == pytest.approx(expected.norm, rel=1e-4)
    near = load(documents, f"nearest/{place}.json")["rows"]
    api = catalog.similar("bob/three", 12, verdict="any")
    assert [(row["adapter"], row["score"]) for row in near] == [
        (row.adapter, pytest.approx(row.score, rel=1e-4)) for row in api
    ]


def test_a_card_is_as_it_was_written(documents: Documents) -> None:
    detail = load(documents, f"adapter/{documents.names[hostile_name()]}.json")
    assert detail["card"].endswith(CARD.replace("\x07", "\ufffd")) or CARD in detail["card"]


def test_a_sketch_keeps_the_direction() -> None:
    import base64

    vector = np.random.default_rng(0).normal(size=1035)
    copy = np.frombuffer(base64.b64decode(encode_sketch(vector)), np.int8).astype(float)
    assert copy @ vector / np.linalg.norm(copy) / np.linalg.norm(vector) > 0.9999
    assert np.frombuffer(base64.b64decode(encode_sketch(np.zeros(3))), np.int8).tolist() == [0, 0, 0]


def test_points_stand_at_the_places_of_the_list(documents: Documents, catalog: loradex.Catalog) -> None:
    points = np.frombuffer(documents.document("points/0-output.bin"), "<i2").reshape(-1, 2)
    assert points.shape == (5, 2)
    assert (points != NOWHERE).all()
    assert np.abs(points).max() == 32000
    assert list(catalog.settings.index.glob("points-output-*.bin"))
    assert Documents(catalog).document("points/0-output.bin") == points.tobytes()


def test_one_layout_of_a_base_model_is_kept(own_catalog: loradex.Catalog) -> None:
    index = own_catalog.settings.index

    def kept() -> list[str]:
        Documents(own_catalog).document("points/0-output.bin")
        return sorted(file.name for file in index.glob("points-*.bin"))

    shutil.rmtree(index, ignore_errors=True)
    index.mkdir()
    others = ["points-delta-0123456789abcdef.bin", f"points-output-{'0' * 16}-{'1' * 16}.bin"]
    for name in (*others, "points-output-0123456789abcdef.bin"):
        (index / name).write_bytes(b"")
    first = kept()
    assert len(first) == 3
    assert set(others) < set(first)
    write(own_catalog, "UPDATE adapter SET current = false WHERE id = (SELECT min(id) FROM adapter)")
    second = kept()
    assert len(second) == 3
    assert set(first) & set(second) == set(others)


def write(catalog: loradex.Catalog, statement: str) -> None:
    """Runs a statement on the database of a catalog, as another program does."""
    engine = create_engine(catalog.settings.catalog_url)
    with engine.begin() as connection:
        assert connection.execute(text(statement)).rowcount > 0
    engine.dispose()


def test_scores_leave_out_what_is_hidden_and_say_so(own_catalog: loradex.Catalog, tmp_path: Path) -> None:
    path = tmp_path / "scores.csv"
    path.write_text("adapter,anli,boolq\nnot/here,0.125,\nbase,0.375,\nbob/four,,0.5\n")
    own_catalog.import_scores(path, split="valid", n=40)

    def read(documents: Documents) -> tuple[set[str], int, dict[str, tuple[list[str], int]]]:
        scores = load(documents, "scores.json")
        boards = [load(documents, f"leaderboard/{at}.json") for at in range(len(scores["boards"]))]
        assert [board["board"] for board in boards] == scores["boards"]
        names = {
            board["board"]["task"]: ([row["adapter"] for row in board["rows"]], board["hidden"])
            for board in boards
        }
        return set(decode(scores["columns"]["adapter"])), scores["hidden"], names

    everything = {"ann/one", "base", "bob/three", "not/here"}
    subjects, hidden, boards = read(Documents(own_catalog))
    assert (subjects, hidden) == (everything | {"bob/four"}, 0)
    assert boards["anli"] == (["ann/one", "base", "bob/three", "not/here"], 0)
    assert boards["boolq"] == (["bob/four"], 0)
    own_catalog.hide("ann/one")
    own_catalog.hide("bob/four")
    documents = Documents(own_catalog)
    subjects, hidden, boards = read(documents)
    assert (subjects, hidden) == (everything - {"ann/one"}, 2)
    # Differences are from the first that is shown.
    assert boards["anli"] == (["base", "bob/three", "not/here"], 1)
    assert "boolq" not in boards
    sources = load(documents, "scores.json")["sources"]
    assert sum(source["subjects"] for source in sources) == 3
    own_catalog.hide("bob/four", undo=True)
    assert read(Documents(own_catalog))[1] == 1


def test_a_list_without_rows_has_all_columns(own_catalog: loradex.Catalog, tmp_path: Path) -> None:
    full = {name: load(Documents(own_catalog), name) for name in ("list.json", "more.json")}
    empty = loradex.open(tmp_path / "empty")
    empty.import_scores(_scores(tmp_path))
    for documents in (Documents(empty), Documents(own_catalog, Choice(where="rank:9999"))):
        assert json.loads(documents.head())["adapters"] == 0
        for name, document in full.items():
            columns = load(documents, name)["columns"]
            assert columns.keys() == document["columns"].keys()
            assert {name: decode(column) for name, column in columns.items() if decode(column)} == {}


def _scores(folder: Path) -> Path:
    path = folder / "scores.csv"
    path.write_text("adapter,anli\nbase,0.5\n")
    return path


def test_pools_scores_groups_and_crawls(documents: Documents, catalog: loradex.Catalog) -> None:
    assert [row["pool"] for row in load(documents, "pools.json")["rows"]] == ["both"]
    pool = load(documents, "pool/both.json")
    assert [member["repository"] for member in pool["members"]] == ["ann/two", "ann/one"]
    assert pool["digest"] == catalog.pool("both").digest
    scores = load(documents, "scores.json")
    assert scores["n"] == 4
    boards = [board["task"] for board in scores["boards"]]
    assert boards == ["anli", "fig_qa"]
    board = load(documents, "leaderboard/0.json")
    assert [row["adapter"] for row in board["rows"]] == ["ann/one", "bob/three"]
    assert board["rows"][0]["low"] == pytest.approx(catalog.leaderboard("anli")[0].low)
    assert load(documents, "groups.json")["duplicates"] == []
    [crawl] = load(documents, "crawls.json")["rows"]
    news = load(documents, f"crawl/{crawl['id']}.json")
    assert len(news["rows"]) == crawl["outcomes"]["new"] == 5
    assert news["counts"] == {"new": 5}


def test_a_crawl_is_counted_in_whole(documents: Documents, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("loradex.page.documents.MOST_NEWS", 2)
    news = load(documents, "crawl/1.json")
    assert (len(news["rows"]), news["counts"]) == (2, {"new": 5})


def test_adapters_whose_modules_are_not_known_can_be_compared(
    documents: Documents, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object) -> None:
        raise NotFoundError("the header is not known")

    name = f"adapter/{documents.names['bob/three']}.json"
    sketch = load(documents, name)["sketch"]
    monkeypatch.setattr("catalog.search.likeness.spectrum", fail)
    detail = load(documents, name)
    assert (detail["spectrum"], detail["unmeasured"]) == (None, "the header is not known")
    assert detail["sketch"] == sketch is not None


@pytest.mark.parametrize(
    "name",
    [
        "../catalog.db",
        "adapter/99.json",
        "adapter/-1.json",
        "adapter/1-output.json",
        "points/7-output.bin",
        "points/0.bin",
        "pool/none.json",
        "pool/../both.json",
        "leaderboard/9.json",
        "other.json",
        "",
    ],
)
def test_other_names_are_refused(documents: Documents, name: str) -> None:
    with pytest.raises(NotFoundError):
        documents.document(name)


def test_the_stamp_follows_the_catalog(own_catalog: loradex.Catalog) -> None:
    before = Documents(own_catalog)
    assert before.is_current()
    own_catalog.select("again", by="random", k=2)
    assert not before.is_current()
    stamp = Documents(own_catalog).stamp
    own_catalog.remove_pools("again")
    assert Documents(own_catalog).stamp == before.stamp != stamp


CHANGES = (
    "UPDATE evaluation SET n = 41 WHERE task = 'anli' AND subject = 'ann/one'",
    "UPDATE evaluation SET value = 0.75 - value WHERE task = 'anli'",
    "UPDATE evaluation SET task = 'boolq' WHERE task = 'anli'",
    f"UPDATE evaluation SET items_sha = '{'0' * 64}', outcomes = x'80', n = 1 WHERE task = 'boolq'",
    "UPDATE evaluation SET outcomes = x'00' WHERE task = 'boolq'",
    "UPDATE adapter SET license = 'apache-2.0' WHERE license = 'mit'",
    "UPDATE adapter SET rank = 16",
    "UPDATE adapter SET norm = norm / 2",
    "UPDATE adapter SET training = '{\"epochs\": 2}'",
    "INSERT INTO adapter_reason SELECT id, 'gated', 9, '' FROM adapter",
    "UPDATE adapter_reason SET reason = 'private' WHERE position = 9",
    "UPDATE repository SET private = true WHERE name = 'ann/one'",
    "UPDATE repository SET private = NOT private WHERE name IN ('ann/one', 'ann/two')",
    "UPDATE repository SET gated = 'auto' WHERE name = 'ann/one'",
    "UPDATE repository SET gated = 'manual' WHERE name = 'ann/one'",
    "UPDATE repository SET likes = CASE name WHEN 'ann/one' THEN 3 ELSE -3 END WHERE owner = 'ann'",
    "UPDATE crawl_item SET outcome = 'failed', error = 'x' WHERE name = 'ann/one'",
    "UPDATE crawl SET seconds = seconds + 1",
    "UPDATE base_model SET license = 'other'",
)


def test_the_stamp_follows_every_write(own_catalog: loradex.Catalog, tmp_path: Path) -> None:
    write(own_catalog, f"INSERT INTO item_list (items_sha, n) VALUES ('{'0' * 64}', 1)")
    stamps = [Documents(own_catalog).stamp]
    for statement in CHANGES:
        before = Documents(own_catalog)
        write(own_catalog, statement)
        assert not before.is_current(), statement
        stamps.append(Documents(own_catalog).stamp)
    (tmp_path / "scores.csv").write_text("adapter,fig_qa\nann/one,0.75\nbob/three,0.5\n")
    own_catalog.import_scores(tmp_path / "scores.csv", split="valid", n=80)
    stamps.append(Documents(own_catalog).stamp)
    assert len(set(stamps)) == len(stamps)


def test_the_stamp_holds_what_describes_the_catalog(
    own_catalog: loradex.Catalog, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Documents of one address may be kept by a browser for a year."""
    choices = [
        Choice(),
        Choice(where="rank:8"),
        Choice(public=True),
        Choice(cards=False),
        Choice(notes=False),
    ]
    stamps = [Documents(own_catalog, choice).stamp for choice in choices]
    with monkeypatch.context() as patched:
        patched.setattr("loradex.page.documents.version", lambda _: "999")
        stamps.append(Documents(own_catalog).stamp)
    with monkeypatch.context() as patched:
        patched.setattr("loradex.page.documents.FORMAT", "loradex-page/999")
        stamps.append(Documents(own_catalog).stamp)
    before = Documents(own_catalog)
    rules = resources.files("catalog.adapters") / "engines.toml"
    (own_catalog.settings.data / "engines.toml").write_text(
        rules.read_text().replace('name = "sglang"', 'name = "other"')
    )
    assert not before.is_current()
    stamps.append(Documents(own_catalog).stamp)
    assert len(set(stamps)) == len(stamps)
    assert Documents(own_catalog).stamp == stamps[-1]


def test_a_choice_leaves_out_the_other_adapters(catalog: loradex.Catalog) -> None:
    chosen = Documents(catalog, Choice(where="owner:ann", cards=False))
    assert sorted(chosen.names) == ["ann/one", "ann/two"]
    near = load(chosen, "nearest/0.json")["rows"]
    assert [row["adapter"] for row in near] == ["ann/two"]
    assert load(chosen, "adapter/0.json")["card"] is None
    assert json.loads(chosen.head())["totals"] == {}
    assert chosen.bases == [TINY]


def test_documents_of_the_adapters_are_kept(
    own_catalog: loradex.Catalog, monkeypatch: pytest.MonkeyPatch
) -> None:
    names = ("list.json", "more.json", "groups.json", "adapter/1.json", "nearest/1.json")

    def documents() -> dict[str, bytes]:
        made = Documents(own_catalog)
        made.keep()
        return {name: made.document(name) for name in names} | {"head.json": made.head()}

    first = documents()
    files = sorted(own_catalog.settings.index.glob("page/*"))
    assert sorted(file.name.partition("-")[2] for file in files) == [
        *("groups.json.gz", "list.json.gz", "more.json.gz", "rows.json.gz", "totals.json.gz")
    ]

    def refuse(*_: object, **__: object) -> None:
        raise AssertionError("the columns are read again")

    with monkeypatch.context() as patched:
        patched.setattr(listing, "adapter_columns", refuse)
        assert documents() == first
        # Notes, pools and scores of the user are not of the adapters.
        own_catalog.annotate(["ann/one"], tags=["mine"], note="a note")
        own_catalog.hide("bob/four")
        changed = Documents(own_catalog)
        assert changed.document("list.json") == first["list.json"]
        own = {key: decode(column) for key, column in load(changed, "own.json")["columns"].items()}
        place = changed.names["ann/one"]
        assert (own["own_tags"][place], own["note"][place]) == (["mine"], "a note")
        assert [name for name, row in changed.names.items() if own["hidden"][row]] == ["bob/four"]
        assert json.loads(changed.head())["own"] == {"own_tags": 1, "note": 1, "hidden": 1}
    # What was damaged, or is of other adapters, is made again.
    for file in files:
        file.write_bytes(file.read_bytes()[:-9])
    damaged = documents()
    assert all(damaged[name] == first[name] for name in ("list.json", "more.json", "adapter/1.json"))
    engine = create_engine(own_catalog.settings.catalog_url)
    with engine.begin() as connection:
        connection.execute(text("UPDATE repository SET likes = 7 WHERE name = 'ann/one'"))
    engine.dispose()
    assert documents()["list.json"] != first["list.json"]
    assert len(list(own_catalog.settings.index.glob("page/*"))) == len(files)


def test_the_copies_of_an_adapter_are_those_of_the_groups(alike_data: Path) -> None:
    catalog = loradex.open(alike_data)
    documents = Documents(catalog)
    groups = load(documents, "groups.json")
    assert [tuple(row["members"]) for row in groups["duplicates"]] == [
        row.members for row in catalog.duplicates(verdict="any")
    ]
    assert {row["family"]: row["size"] for row in groups["families"]} == {
        row.family: row.size for row in catalog.families(verdict="any")
    }
    found = {"duplicates": set[str](), "families": set[str]()}
    for name, place in documents.names.items():
        copies = load(documents, f"copies/{place}.json")
        assert set(copies) == {"duplicates", "families"}
        for kind, group in copies.items():
            expected = [row for row in groups[kind] if name in row["members"]]
            if group is None:
                assert expected == [], name
                continue
            [row] = expected
            others = [member for member in row["members"] if member != name]
            assert group == row | {"members": others[:MOST_COPIES]}
            found[kind].add(name)
    assert found["duplicates"] == {"ann/one", "bob/same", "dan/large", "dan/larger"}
    assert len(found["families"]) == 42
    assert max(row["size"] for row in groups["families"]) == 40 > MOST_COPIES + 1


def test_groups_are_kept_for_the_files_they_follow_from(
    alike_data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shutil.copytree(alike_data, tmp_path / "data")
    catalog = loradex.open(tmp_path / "data")
    shutil.rmtree(catalog.settings.index, ignore_errors=True)
    made: list[str] = []
    monkeypatch.setattr(
        "loradex.page.documents.families",
        lambda *rows, **options: made.append("") or families(*rows, **options),
    )

    def groups() -> Any:
        return load(Documents(catalog), "groups.json")

    Documents(catalog).keep()
    first = groups()
    assert groups() == first
    catalog.annotate(["ann/one"], tags=["mine"])
    assert groups() == first
    assert len(made) == 1
    # Without its file, an adapter is compared by its sketch.
    assert {group["exact"] for group in first["duplicates"]} == {True}
    for file in catalog.settings.blobs.rglob("*"):
        if file.is_file():
            file.unlink()
    sketched = groups()
    assert [group["members"] for group in sketched["duplicates"]] == [
        group["members"] for group in first["duplicates"]
    ]
    assert [group["exact"] for group in sketched["duplicates"] if group["level"] == "delta"] == [False]
    assert len(made) == 2
    assert len(list(catalog.settings.index.glob("page/*-groups.json.gz"))) == 1


def test_a_part_of_the_catalog_is_not_kept(own_catalog: loradex.Catalog) -> None:
    shutil.rmtree(own_catalog.settings.index, ignore_errors=True)
    chosen = Documents(own_catalog, Choice(public=True, notes=False))
    chosen.keep()
    assert list(own_catalog.settings.index.glob("page/*")) == []


IMPORT = re.compile(r'^import [^;]*?"\./(\w+\.js)";', re.MULTILINE)
LOADED = re.compile(r'import\("\./(\w+\.js)"\)')


def modules_of(name: str) -> set[str]:
    """A module of the page with all that it loads at once."""
    found, new = {name}, {name}
    while new:
        new = {one for file in new for one in IMPORT.findall((STATIC / file).read_text())} - found
        found |= new
    return found


def test_a_view_takes_little_script() -> None:
    views = set(LOADED.findall((STATIC / "app.js").read_text()))
    assert {"list.js", "map.js", "compare.js"} <= views
    sizes = {
        view: sum((STATIC / name).stat().st_size for name in modules_of("app.js") | modules_of(view))
        for view in views
    }
    assert {view: size for view, size in sizes.items() if size > 80_000} == {}


def test_scripts_of_the_page_write_text_as_text() -> None:
    for file in STATIC.glob("*.js"):
        source = file.read_text()
        for word in (
            "innerHTML",
            "outerHTML",
            "insertAdjacentHTML",
            "document.write",
            "eval(",
            "new Function",
        ):
            assert word not in source, file.name
