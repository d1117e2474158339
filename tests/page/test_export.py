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
    own = ("host", "left_out", "totals", "retries")
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
    for folder, kind in (("adapters", "adapter"), ("nearest", "nearest")):
        packed = gzip.decompress((below / folder / "0.json.gz").read_bytes())
        assert packed == b"[" + b",".join(documents.document(f"{kind}/{n}.json") for n in range(5)) + b"]"


def test_two_exports_are_equal(exported: Path, catalog: loradex.Catalog, tmp_path: Path) -> None:
    export_page(catalog, tmp_path / "again")
    files = sorted(file.relative_to(exported) for file in exported.rglob("*") if file.is_file())
    assert files == sorted(
        f.relative_to(tmp_path / "again") for f in (tmp_path / "again").rglob("*") if f.is_file()
    )
    assert all((exported / file).read_bytes() == (tmp_path / "again" / file).read_bytes() for file in files)


def test_private_and_gated_repositories_are_left_out(own_catalog: loradex.Catalog, tmp_path: Path) -> None:
    own_catalog.select("secret", by="named", adapters=["bob/four", "ann/two"])
    engine = create_engine(own_catalog.settings.catalog_url)
    with engine.begin() as connection:
        connection.execute(text("UPDATE repository SET private = true WHERE name = 'bob/four'"))
        connection.execute(text("UPDATE repository SET gated = 'auto' WHERE name = 'bob/three'"))
    engine.dispose()
    report = export_page(own_catalog, tmp_path / "site")
    assert (report.adapters, report.private, report.gated) == (3, 1, 1)
    for file in (tmp_path / "site").rglob("*"):
        content = file.read_bytes() if file.is_file() else b""
        content = gzip.decompress(content) if file.suffix == ".gz" else content
        assert b"bob" not in content, file
        assert b"secret" not in content or file.suffix == ".js", file
    whole = export_page(own_catalog, tmp_path / "whole", with_private=True)
    assert (whole.adapters, whole.private, whole.gated) == (5, 0, 0)


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
