"""What names kept files, on both databases."""

from __future__ import annotations

from pathlib import Path

from sqlalchemy import Engine, update
from sqlalchemy.orm import Session

from catalog.database import Adapter, WeightsFile, make_engine, parse_url
from catalog.database.kept import (
    catalog_name,
    find_unneeded,
    origins,
    refuse_other_catalogs,
    register_catalog,
)
from catalog.files import BlobStore
from catalog.settings import Settings
from tests.crawling import crawl
from tests.hubs import lora_files, make_repo
from tests.localhub import FaultHub


def test_a_catalog_has_one_name_however_it_is_opened(catalog_url: str, tmp_path: Path) -> None:
    blobs = BlobStore(tmp_path / "data" / "blobs")
    engine = make_engine(catalog_url)
    register_catalog(engine.url, blobs)
    engine.dispose()
    refuse_other_catalogs(parse_url(catalog_url), blobs, only=False, deleting=True)


def test_schemas_of_one_server_are_several_catalogs_and_passwords_stay_out(tmp_path: Path) -> None:
    blobs = BlobStore(tmp_path / "blobs")
    names = {
        catalog_name(parse_url(f"postgresql://me:secret@host/loras{options}"), blobs)
        for options in ("", "?connect_timeout=3", "?options=-csearch_path%3Da", "?options=-csearch_path%3Db")
    }
    assert len(names) == 3
    assert not any("secret" in name for name in names)


def test_a_sqlite_catalog_moves_with_its_data_folder(tmp_path: Path) -> None:
    for data in (tmp_path / "before", tmp_path / "after"):
        inside = parse_url(Settings.make(data=data).catalog_url)
        assert catalog_name(inside, BlobStore(data / "blobs")) == "catalog.db"
    elsewhere = parse_url(f"sqlite:///{tmp_path / 'other.db'}")
    assert catalog_name(elsewhere, BlobStore(tmp_path / "after" / "blobs")) == str(tmp_path / "other.db")


def test_a_file_outside_lfs_is_named_by_what_git_calls_it(engine: Engine, tmp_path: Path) -> None:
    make_repo(tmp_path / "hub", "ann/one", lora_files("acme/tiny"))
    with FaultHub(tmp_path / "hub") as hub:
        crawl(hub.url, engine, tmp_path, weights="keep")
    settings = Settings.make(data=tmp_path)
    store = BlobStore(settings.blobs)
    (remaining,) = store.blobs()
    with Session(engine) as session:
        assert [origin.repository for origin in origins(session, settings.pools, remaining.sha256)] == [
            "ann/one"
        ]
        session.execute(update(WeightsFile).values(git_oid="a" * 40))
        session.add(WeightsFile(digest="a" * 40, size=remaining.size))
        session.execute(update(Adapter).values(weights_digest="a" * 40))
        assert [origin.repository for origin in origins(session, settings.pools, remaining.sha256)] == [
            "ann/one"
        ]
        assert find_unneeded(session, settings, store).files == ()
        session.execute(update(Adapter).values(weights_digest=None))
        assert find_unneeded(session, settings, store).files == (remaining,)
