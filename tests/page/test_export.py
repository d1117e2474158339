"""The page as a folder: the bytes of the server, and nothing that only an account may read."""

from __future__ import annotations

import gzip
import json
import shutil
from pathlib import Path

import pytest
from click.testing import CliRunner
from sqlalchemy import create_engine, text

import loradex
from catalog.database import Adapter, reading
from catalog.errors import UsageError
from cli.main import loradex as program
from loradex.page import Documents, export_page
from loradex.page.documents import Choice
from loradex.page.server import Site, static_files


@pytest.fixture(scope="module")
def exported(page_data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("export") / "site"
    report = export_page(loradex.open(page_data), folder)
    assert report.adapters == 5
    assert report.files == sum(1 for file in folder.rglob("*") if file.is_file())
    assert report.bytes == sum(file.stat().st_size for file in folder.rglob("*") if file.is_file())
    return folder


def test_an_export_has_the_bytes_of_the_server(exported: Path, catalog: loradex.Catalog) -> None:
    site = Site(catalog)
    live = json.loads(site.head())
    head = json.loads((exported / "head.json").read_bytes())
    # The page of a server has what the user wrote too, so that its documents have other addresses.
    own = ("host", "left_out", "totals", "retries", "stamp")
    assert head["stamp"] != live["stamp"]
    assert {key: value for key, value in head.items() if key not in own} == {
        key: value for key, value in live.items() if key not in own
    }
    assert head["host"] is None
    assert {name: (exported / name).read_bytes() for name in static_files()} == static_files()
    below, documents = exported / "d" / head["stamp"], site.newest
    names = [str(file.relative_to(below)) for file in below.rglob("*.json") if file.is_file()]
    assert {"list.json", "more.json", "scores.json", "pool/both.json"} <= set(names)
    for name in [*names, "points/0-output.bin", "points/0-delta.bin"]:
        assert (below / name).read_bytes() == documents.document(name), name
    for folder, kind in (("adapters", "adapter"), ("nearest", "nearest"), ("copies", "copies")):
        packed = gzip.decompress((below / folder / "0.json.gz").read_bytes())
        assert packed == b"[" + b",".join(documents.document(f"{kind}/{n}.json") for n in range(5)) + b"]"


def test_neighbours_of_many_are_read_once(catalog: loradex.Catalog, monkeypatch: pytest.MonkeyPatch) -> None:
    from catalog.search import nearest

    documents = Documents(catalog, Choice(public=True, notes=False))
    asked: dict[str, list[object]] = {"adapters_by_key": [], "open_base_index": []}

    def record(name: str) -> None:
        original = getattr(nearest, name)

        def call(session: object, what: object, *rest: object, **options: object) -> object:
            asked[name].append((what, rest) if name == "open_base_index" else what)
            return original(session, what, *rest, **options)

        monkeypatch.setattr(nearest, name, call)

    for name in asked:
        record(name)
    with reading(catalog.settings) as session:
        nearest_of = documents.nearest_by(session)
        found = [nearest_of(session.get_one(Adapter, id_)) for id_ in documents.ids]
    keys = [key for block in asked["adapters_by_key"] for key in block]  # type: ignore[attr-defined]
    assert len(keys) == len(set(keys)) == 5
    assert len(asked["open_base_index"]) == 1
    assert found == [documents.document(f"nearest/{place}.json") for place in range(5)]


def test_two_exports_are_equal(exported: Path, catalog: loradex.Catalog, tmp_path: Path) -> None:
    export_page(catalog, tmp_path / "again")
    files = sorted(file.relative_to(exported) for file in exported.rglob("*") if file.is_file())
    assert files == sorted(
        f.relative_to(tmp_path / "again") for f in (tmp_path / "again").rglob("*") if f.is_file()
    )
    assert all((exported / file).read_bytes() == (tmp_path / "again" / file).read_bytes() for file in files)


SECRET = {
    "private": (b"bob/four", b"bob/oldname", b"unread/private", b"refused/new"),
    "gated": (b"bob/three",),
    "notes": (b"ann/two", b"mine-alone", b"words-of-mine", b"base-of-mine"),
}


@pytest.fixture(scope="module")
def telling(page_data: Path, tmp_path_factory: pytest.TempPathFactory) -> loradex.Catalog:
    """A catalog, to be read, whose pools, scores and notes name a private, a gated and a hidden adapter."""
    data = shutil.copytree(page_data, tmp_path_factory.mktemp("telling") / "data")
    catalog, reference = loradex.open(data), "ann/one"
    catalog.add_base_name("acme/tiny", "mine/base-of-mine")
    catalog.annotate([reference], tags=["mine-alone"], note="words-of-mine")
    catalog.hide("ann/two")
    for name, members, options in (
        ("p-private", ["bob/four", reference], {}),
        ("p-gated", ["bob/three"], {}),
        ("p-where", [reference], {"where": "-adapter:bob/four"}),
        ("p-tag", [reference], {"where": "mytag:mine-alone"}),
        ("p-open", [reference], {"where": "rank:4..8"}),
    ):
        catalog.select(name, by="named", adapters=members, **options)
    catalog.select("p-like", by="adapter", like="bob/four", where="adapter:ann/one", k=1)
    scores = Path(catalog.settings.data) / "scores.csv"
    scores.write_text("adapter,anli\nbob/four,0.5\nbob/oldname,0.4\nbob/three,0.3\nann/two,0.2\nann/one,1\n")
    catalog.import_scores(scores, split="test", n=40, source="lab")
    engine = create_engine(catalog.settings.catalog_url)
    with engine.begin() as connection:
        for statement in (
            "UPDATE repository SET private = true WHERE name = 'bob/four'",
            "UPDATE repository SET gated = 'auto' WHERE name = 'bob/three'",
            "INSERT INTO repository_alias SELECT id, 'bob/oldname' FROM repository WHERE name = 'bob/four'",
            "UPDATE crawl_item SET name = 'refused/new', detail = 'unread/private' WHERE name = 'bob/four'",
            # A hidden folder of a repository whose root is shown.
            "INSERT INTO annotation SELECT hub_id, 'ann/two', NULL, 1 FROM repository WHERE name = 'ann/one'",
        ):
            connection.execute(text(statement))
        names = [row[1] for row in connection.execute(text("PRAGMA table_info(adapter)"))]
        changed = {"id": "1000 + id", "subfolder": "'ann/two'", "main": "false"}
        values = ", ".join(changed.get(name, f'"{name}"') for name in names)
        columns = ", ".join(f'"{name}"' for name in names)
        connection.execute(
            text(
                f"INSERT INTO adapter ({columns}) SELECT {values} FROM adapter WHERE repository_id ="
                " (SELECT id FROM repository WHERE name = 'ann/one')"
            )
        )
    engine.dispose()
    return catalog


@pytest.mark.parametrize("with_private", [False, True])
@pytest.mark.parametrize("with_notes", [False, True])
@pytest.mark.parametrize("where", ["", "owner:ann,bob", "mytag:mine-alone | owner:bob,ann"])
def test_an_export_names_nothing_that_it_leaves_out(
    telling: loradex.Catalog, tmp_path: Path, with_private: bool, with_notes: bool, where: str
) -> None:
    report = export_page(
        telling, tmp_path / "site", where=where, with_private=with_private, with_notes=with_notes
    )
    assert (report.private, report.gated) == ((0, 0) if with_private else (1, 1))
    words = read_all(tmp_path / "site")
    for kind, names in SECRET.items():
        if with_notes if kind == "notes" else with_private:
            continue
        assert [name for name in names if name in words] == []
    # What may be told is there, so that the words are looked for where they would stand.
    assert b"ann/one" in words
    assert b"p-open" in words
    assert (b"p-private" in words, b"p-gated" in words) == (with_private, with_private)
    assert (b"p-like" in words, b"p-where" in words) == (with_private, with_private)
    assert (b"p-tag" in words, b"mine-alone" in words, b"ann/two" in words) == (with_notes,) * 3


def test_an_export_of_a_filter_names_no_other_adapter(catalog: loradex.Catalog, tmp_path: Path) -> None:
    export_page(catalog, tmp_path / "site", where="adapter:ann/two")
    words = read_all(tmp_path / "site")
    assert b"ann/two" in words
    assert [name for name in (b"ann/one", b"bob/three", b"bob/four", b"cat/") if name in words] == []
    head = json.loads((tmp_path / "site" / "head.json").read_bytes())
    below = tmp_path / "site" / "d" / head["stamp"]
    assert json.loads((below / "pools.json").read_bytes()) == {"rows": [], "left_out": 1}
    assert json.loads((below / "scores.json").read_bytes())["sources"] == []


def read_all(folder: Path) -> bytes:
    """The bytes of all documents of an export, unpacked, in letters of one case."""
    contents = [file.read_bytes() for file in folder.glob("d/**/*") if file.is_file()]
    unpacked = [gzip.decompress(content) if content[:2] == b"\x1f\x8b" else content for content in contents]
    return b"\n".join([(folder / "head.json").read_bytes(), *unpacked]).lower()


def test_an_export_of_no_adapter_is_a_page(catalog: loradex.Catalog, tmp_path: Path) -> None:
    report = export_page(catalog, tmp_path / "site", where="rank:9999")
    head = json.loads((tmp_path / "site" / "head.json").read_bytes())
    assert (report.adapters, head["adapters"], head["measured"]) == (0, 0, [])


def test_a_folder_that_is_no_export_is_left_alone(
    exported: Path, catalog: loradex.Catalog, tmp_path: Path
) -> None:
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "head.json").write_text('{"format": "other"}')
    with pytest.raises(UsageError, match="not an export"):
        export_page(catalog, tmp_path / "mine", overwrite=True)
    shutil.copytree(exported, tmp_path / "site")
    with pytest.raises(UsageError, match="an export already"):
        export_page(catalog, tmp_path / "site")
    export_page(catalog, tmp_path / "site", where="owner:ann", cards=False, overwrite=True)
    head = json.loads((tmp_path / "site" / "head.json").read_bytes())
    assert (head["adapters"], head["where"], head["cards"]) == (2, "owner:ann", False)
    assert len(list((tmp_path / "site" / "d").iterdir())) == 1
    assert list(tmp_path.glob(".loradex-*")) == []


def test_a_wrong_filter_is_a_sentence(catalog: loradex.Catalog, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="No field is called"):
        export_page(catalog, tmp_path / "site", where="rnk:4")
    assert not (tmp_path / "site").exists()


def test_own_words_are_exported_where_they_are_asked_for(
    own_catalog: loradex.Catalog, tmp_path: Path
) -> None:
    own_catalog.annotate(["ann/one", "bob/four"], tags=["mine-alone"], note="words-of-mine")
    own_catalog.hide("bob/four")
    plain = export_page(own_catalog, tmp_path / "plain")
    whole = export_page(own_catalog, tmp_path / "whole", with_notes=True)
    # What is hidden is in the export with notes, and marked.
    assert (plain.adapters, whole.adapters) == (4, 5)
    found = {}
    for name in ("plain", "whole"):
        contents = [file.read_bytes() for file in (tmp_path / name).rglob("*") if file.is_file()]
        contents += [gzip.decompress(content) for content in contents if content[:2] == b"\x1f\x8b"]
        words = (b"mine-alone", b"words-of-mine")
        found[name] = [sum(word in content for content in contents) for word in words]
    assert found == {"plain": [0, 0], "whole": [2, 2]}
    head = json.loads((tmp_path / "whole" / "head.json").read_bytes())
    assert head["own"] == {"own_tags": 2, "note": 2, "hidden": 1}
    document = json.loads(Documents(own_catalog, Choice(notes=False)).document("adapter/0.json"))
    assert [document[name] for name in ("own_tags", "note", "hidden")] == [[], None, False]


def test_the_command_says_what_it_wrote(page_data: Path, tmp_path: Path) -> None:
    words = ["--data", str(page_data), "page", "export", str(tmp_path / "site")]
    result = CliRunner().invoke(program, [*words, "--where", "owner:ann", "--json"])
    report = json.loads(result.stdout)
    assert (report["adapters"], report["private"], report["gated"]) == (2, 0, 0)
    again = CliRunner().invoke(program, words)
    assert again.exit_code == 2
    assert "--overwrite" in again.stderr
