"""`loradex blobs`: damage is found and mended, and only what nothing names is deleted."""

from __future__ import annotations

import contextlib
import hashlib
import json
import shutil
import sqlite3
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result

from catalog.database import disposing, open_catalog, pool_store, writer_lock
from catalog.files import BlobStore, temporary_folder
from catalog.settings import Settings
from cli.main import loradex
from tests.cli.conftest import TINY, Program
from tests.hubs import lora_files, lora_tensors, make_repo, safetensors_bytes
from tests.localhub import FaultHub

CRAWL = ("-q", "crawl", "--any-base", "--weights", "keep")


@pytest.fixture
def store(hub: FaultHub, run: Program, data: Path) -> BlobStore:
    """The kept files of a crawled catalog."""
    result = run(*CRAWL)
    assert result.exit_code == 0, result.output
    return BlobStore(data / "blobs")


def error_document(result: Result, code: int = 0) -> Any:
    """What a command that ended so says as JSON."""
    assert result.exit_code == code, result.output
    return json.loads(result.stdout)


def edit(path: Path) -> None:
    """Changes a byte of a file in place."""
    with path.open("r+b") as file:
        file.seek(-1, 2)
        last = file.read(1)
        file.seek(-1, 2)
        file.write(bytes([last[0] ^ 1]))


def orphan(store: BlobStore, data: bytes = b"nothing names it") -> str:
    """Puts a blob into the store that no row names."""
    sha256 = hashlib.sha256(data).hexdigest()
    with store.writer(sha256, len(data)) as blob:
        blob.write(data)
    return sha256


def begin_download(store: BlobStore, sha256: str, size: int, data: bytes) -> None:
    """Puts the first bytes of a blob into the store, as a connection that breaks leaves them."""
    with contextlib.suppress(ConnectionError), store.writer(sha256, size) as blob:
        blob.write(data)
        raise ConnectionError


def names(store: BlobStore) -> list[str]:
    """The names of all blobs."""
    return [blob.sha256 for blob in store.blobs()]


def test_verify_reads_all_and_names_what_has_other_bytes(run: Program, store: BlobStore) -> None:
    actual = error_document(run("blobs", "verify", "--json"))
    assert (actual["ok"], actual["files"], actual["damaged"]) == (True, 2, [])
    assert actual["bytes"] == sum(blob.size for blob in store.blobs())
    first, second = names(store)
    edit(store.path(second))
    actual = error_document(run("blobs", "verify", "--json"), 1)
    assert [item["sha256"] for item in actual["damaged"]] == [second]
    result = run("blobs", "verify")
    assert result.exit_code == 1
    assert second in result.stdout
    assert first not in result.stdout
    assert "loradex blobs repair" in result.stderr


def test_verify_lists_what_has_arrived_of_a_download(run: Program, store: BlobStore) -> None:
    begin_download(store, "0" * 64, 10, b"half")
    result = error_document(run("blobs", "verify", "--json"))
    assert result["partial"] == [{"sha256": "0" * 64, "size": 4}]


def test_repair_fetches_what_is_damaged_and_nothing_else(
    hub: FaultHub, run: Program, store: BlobStore
) -> None:
    first, second = names(store)
    untouched, before = store.path(first).stat().st_ino, len(hub.log)
    edit(store.path(second))
    result = error_document(run("blobs", "repair", "--json"))
    assert [item["sha256"] for item in result["repaired"]] == [second]
    assert len(hub.log) == before + 1
    assert store.verify(second)
    assert store.path(first).stat().st_ino == untouched
    assert error_document(run("blobs", "verify", "--json"))["ok"]
    assert error_document(run("blobs", "repair", "--json"))["repaired"] == []


def test_repair_leaves_the_only_copy_of_what_the_hub_lost(
    hub: FaultHub, run: Program, store: BlobStore
) -> None:
    lost = orphan(store)
    for sha256 in names(store):
        edit(store.path(sha256))
    for weights in hub.root.rglob("adapter_model.safetensors"):
        if "one" in str(weights):
            weights.write_bytes(weights.read_bytes() + b"changed")
    before = {sha256: store.path(sha256).read_bytes() for sha256 in names(store)}
    result = error_document(run("blobs", "repair", "--json"), 1)
    assert len(result["repaired"]) == 1
    assert len(result["left"]) == 2
    for item in result["left"]:
        assert store.path(item["sha256"]).read_bytes() == before[item["sha256"]]
        assert item["why"]
    assert lost in {item["sha256"] for item in result["left"]}


@pytest.mark.parametrize("command", ["similar", "merge"])
def test_a_command_that_reads_a_damaged_file_says_how_to_mend_it(
    run: Program, store: BlobStore, tmp_path: Path, command: str
) -> None:
    assert run("select", "both", "--by", "random", "-k", "2").exit_code == 0
    words = {
        "similar": ("similar", "ann/one", "--exact"),
        "merge": ("merge", "both", "--method", "average", "-o", str(tmp_path / "merged")),
    }[command]
    assert run(*words).exit_code == 0
    for sha256 in names(store):
        edit(store.path(sha256))
    result = run(*words, *(["--overwrite"] if command == "merge" else []))
    assert result.exit_code == 1
    assert "run `loradex blobs repair`" in result.stderr
    assert result.stderr.count("\n") == 1
    assert run("blobs", "repair").exit_code == 0
    assert run(*words, *(["--overwrite"] if command == "merge" else [])).exit_code == 0


def test_gc_lists_and_with_yes_deletes_what_nothing_names(run: Program, store: BlobStore) -> None:
    needed, unneeded = names(store), orphan(store)
    result = run("blobs", "gc")
    assert (result.exit_code, unneeded in result.stdout, "--yes" in result.stderr) == (0, True, True)
    assert store.has(unneeded)
    actual = error_document(run("blobs", "gc", "--yes", "--json"))
    assert [file["sha256"] for file in actual["files"]] == [unneeded]
    assert names(store) == needed
    assert error_document(run("blobs", "gc", "--json"))["files"] == []


def test_gc_keeps_what_an_older_commit_has(hub: FaultHub, run: Program, store: BlobStore) -> None:
    before = names(store)
    weights = safetensors_bytes(lora_tensors(seed=77))
    make_repo(hub.root, "ann/one", lora_files(TINY) | {"adapter_model.safetensors": weights}, mtime=None)
    assert run(*CRAWL).exit_code == 0
    assert set(names(store)) > set(before)
    assert error_document(run("blobs", "gc", "--yes", "--json"))["files"] == []
    assert set(before) < set(names(store))


@pytest.mark.parametrize("place", ["catalog", "folder"])
def test_gc_keeps_what_a_pool_alone_names(run: Program, store: BlobStore, data: Path, place: str) -> None:
    assert run("select", "both", "--by", "random", "-k", "2").exit_code == 0
    with sqlite3.connect(data / "catalog.db") as database:
        database.execute("UPDATE adapter SET weights_digest = NULL")
        if place == "folder":
            database.execute("DELETE FROM pool_member")
            database.execute("DELETE FROM pool")
        else:
            for manifest in (data / "pools").rglob("pool.json"):
                manifest.unlink()
    assert error_document(run("blobs", "gc", "--yes", "--json"))["files"] == []
    assert len(names(store)) == 2


def test_gc_refuses_where_another_catalog_uses_the_files(
    hub: FaultHub, run: Program, store: BlobStore, tmp_path: Path
) -> None:
    other = ("--catalog", f"sqlite:///{tmp_path / 'other.db'}")
    unneeded = orphan(store)
    assert run(*other, "db", "upgrade").exit_code == 0
    for words in ((*other, "blobs", "gc", "--yes"), (*other, "blobs", "gc", "--yes", "--only-catalog")):
        result = run(*words)
        assert (result.exit_code, "catalog.db" in result.stderr) == (1, True)
    assert store.has(unneeded)
    assert run(*other, *CRAWL).exit_code == 0
    result = run("blobs", "gc", "--yes", "--only-catalog")
    assert (result.exit_code, "other.db" in result.stderr) == (1, True)
    assert len(names(store)) == 3


def test_gc_refuses_where_nobody_wrote_down_who_uses_the_files(run: Program, store: BlobStore) -> None:
    unneeded = orphan(store)
    (store.root / "catalogs.json").unlink()
    assert [file["sha256"] for file in error_document(run("blobs", "gc", "--json"))["files"]] == [unneeded]
    assert run(*CRAWL).exit_code == 0
    result = run("blobs", "gc", "--yes")
    assert (result.exit_code, "--only-catalog" in result.stderr) == (1, True)
    assert store.has(unneeded)
    assert run("blobs", "gc", "--yes", "--only-catalog").exit_code == 0
    assert not store.has(unneeded)
    orphan(store)
    assert run("blobs", "gc", "--yes").exit_code == 0, "it was said once"


def _writing(data: Path) -> Any:
    engine = open_catalog(Settings.make(data=data), create=False)
    return disposing(engine), writer_lock(engine)


def _working(data: Path) -> Any:
    return (temporary_folder(data),)


@pytest.mark.parametrize("busy", [_writing, _working])
def test_gc_refuses_while_another_process_is_at_work(
    run: Program, store: BlobStore, data: Path, busy: Callable[[Path], Any]
) -> None:
    unneeded = orphan(store)
    with contextlib.ExitStack() as stack:
        for context in busy(data):
            stack.enter_context(context)
        result = run("blobs", "gc", "--yes")
    assert (result.exit_code, "wait until it has ended" in result.stderr) == (1, True)
    assert store.has(unneeded)
    assert run("blobs", "gc", "--yes").exit_code == 0


@pytest.mark.parametrize("command", ["verify", "repair"])
def test_no_catalog_and_no_file_is_nothing_wrong(tmp_path: Path, command: str) -> None:
    result = CliRunner().invoke(loradex, ["--data", str(tmp_path / "none"), "blobs", command, "--json"])
    assert error_document(result)["files"] == 0
    assert not (tmp_path / "none").exists()


def test_gc_without_a_catalog_deletes_nothing(run: Program, store: BlobStore, data: Path) -> None:
    (data / "catalog.db").unlink()
    result = run("blobs", "gc", "--yes")
    assert (result.exit_code, len(names(store))) == (1, 2)
    assert not (data / "catalog.db").exists()


def test_gc_deletes_what_has_arrived_of_unneeded_files_alone(run: Program, store: BlobStore) -> None:
    needed = names(store)[0]
    text = store.path(needed).read_bytes()
    store.remove(needed)
    for sha256, size in ((needed, len(text)), ("0" * 64, 10)):
        begin_download(store, sha256, size, text[:4])
    result = error_document(run("blobs", "gc", "--yes", "--json"))
    assert [item["sha256"] for item in result["partial"]] == ["0" * 64]
    assert [blob.sha256 for blob in store.partial_files()] == [needed]


@pytest.mark.parametrize("command", ["merge", "inspect-merge"])
def test_an_export_is_verified_before_it_is_merged(
    run: Program, store: BlobStore, tmp_path: Path, command: str
) -> None:
    assert run("select", "both", "--by", "random", "-k", "2").exit_code == 0
    exporting = ("pool", "export", "both", "--weights", "--to", str(tmp_path / "out"), "--json")
    folder = Path(error_document(run(*exporting))["folders"][0])
    more = ("--method", "average", "-o", str(tmp_path / "merged")) if command == "merge" else ()
    assert run(command, str(folder), *more).exit_code == 0
    edit(next(folder.rglob("adapter_model.safetensors")))
    result = run(command, str(folder), *more, *(["--overwrite"] if more else []))
    assert (result.exit_code, result.stderr.count("\n")) == (1, 1), result.output
    assert "Export the pool again" in result.stderr
    assert error_document(run("blobs", "verify", "--json"))["ok"], "the edit reached the kept files"
    assert run(*exporting).exit_code == 0
    assert run(command, str(folder), *more, *(["--overwrite"] if more else [])).exit_code == 0


def test_a_pool_that_is_being_imported_is_not_collected(
    hub: FaultHub,
    run: Program,
    store: BlobStore,
    data: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Its files are fetched before its name is written."""
    assert run("select", "both", "--by", "random", "-k", "2").exit_code == 0
    manifest = next((data / "pools").rglob("pool.json"))
    elsewhere = tmp_path / "pool.json"
    manifest.rename(elsewhere)
    shutil.rmtree(store.root)
    with sqlite3.connect(data / "catalog.db") as database:
        database.execute("UPDATE adapter SET weights_digest = NULL")
        database.execute("DELETE FROM pool_member")
        database.execute("DELETE FROM pool")
    collected: list[Result] = []
    save = pool_store.save_pool

    def saving(*arguments: Any, **options: Any) -> Any:
        collected.append(run("blobs", "gc", "--yes", "--only-catalog"))
        return save(*arguments, **options)

    monkeypatch.setattr(pool_store, "save_pool", saving)
    assert run("pool", "import", str(elsewhere), "--weights").exit_code == 0
    assert collected[0].exit_code == 1
    assert len(names(store)) == 2


def test_repair_parts_kept_files_from_exports_of_earlier_versions(
    run: Program, store: BlobStore, tmp_path: Path
) -> None:
    first, second = names(store)
    (tmp_path / "export").hardlink_to(store.path(first))
    before = store.path(second).stat().st_ino
    assert error_document(run("blobs", "repair", "--json"))["separated"] == [first]
    edit(tmp_path / "export")
    assert store.verify(first)
    assert store.path(second).stat().st_ino == before
    assert not list(store.root.glob(".loradex-*"))
