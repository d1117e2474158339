"""Row 30 b: a catalog that this user may not write to, or on a read-only disk, is read by every command."""

from __future__ import annotations

import contextlib
import os
import re
import shutil
import sqlite3
import subprocess
import tempfile
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from pathlib import Path

import pytest
from click.testing import CliRunner, Result
from sqlalchemy.orm import Session

from catalog.database import Repository, disposing, open_catalog
from catalog.errors import CatalogBusyError
from catalog.settings import Settings
from cli.main import loradex
from tests.cli.conftest import Program
from tests.db.test_search import Thesaurus
from tests.localhub import FaultHub

Lock = Callable[[Path], AbstractContextManager[None]]
NOBODY = 65534
ROOT = Path(__file__).parents[2]
READING = [
    ["status"],
    ["adapters"],
    ["adapters", "--where", "owner:ann"],
    ["fields"],
    ["show", "ann/one"],
    ["search", "--words", "made by ann"],
    ["similar", "ann/one"],
    ["similar", "ann/one", "--exact"],
    ["duplicates"],
    ["scores", "show"],
    ["select", "more", "--by", "random", "-k", "2", "--dry-run"],
    ["pools"],
    ["pool", "show", "both"],
    ["pool", "verify", "both"],
    ["base", "list"],
    ["db", "info"],
    ["db", "check"],
    ["blobs", "verify"],
    ["methods"],
]
WRITING = [
    ["crawl", "--any-base"],
    ["base", "add", "acme/tiny", "acme/small"],
    ["select", "more", "--by", "random", "-k", "1"],
    ["index", "rebuild"],
    ["blobs", "gc", "--yes"],
    ["fingerprint"],
]


@contextlib.contextmanager
def of_another_user(data: Path) -> Iterator[None]:
    """The folder takes no writing from this process, which is another user where it was root."""
    if os.geteuid() != 0:
        for path in (data, *data.rglob("*")):
            path.chmod(path.stat().st_mode & ~0o222)
        try:
            yield
        finally:
            for path in (data, *data.rglob("*")):
                path.chmod(path.stat().st_mode | 0o200)
        return
    for path in (data.parent, data, *data.rglob("*")):
        path.chmod(0o755 if path.is_dir() else 0o644)
    os.seteuid(NOBODY)
    try:
        if not os.access(ROOT / "catalog", os.R_OK | os.X_OK, effective_ids=True):
            pytest.skip("another user cannot read the program")
        yield
    finally:
        os.seteuid(0)


@contextlib.contextmanager
def on_a_read_only_disk(data: Path) -> Iterator[None]:
    """The folder is mounted over itself, to be read only."""
    if os.geteuid() != 0 or shutil.which("mount") is None:
        pytest.skip("only root may mount a folder")
    if subprocess.run(["mount", "--bind", data, data], capture_output=True, check=False).returncode:
        pytest.skip("this machine does not let a folder be mounted")
    try:
        if subprocess.run(
            ["mount", "-o", "remount,ro,bind", data], capture_output=True, check=False
        ).returncode:
            pytest.skip("this machine does not let a folder be mounted read-only")
        yield
    finally:
        subprocess.run(["umount", data], check=True)


DESCRIBED = "Made by ann to tell apart what customers of a bank ask for, from ten thousand questions. " * 3
locks = pytest.mark.parametrize("lock", [of_another_user, on_a_read_only_disk])


@pytest.fixture
def data(monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A data folder that another user can reach, which pytest's own folders are not."""
    with tempfile.TemporaryDirectory() as folder:
        monkeypatch.setattr("huggingface_hub.constants.HF_TOKEN_PATH", f"{folder}/token")
        yield Path(folder) / "data"


@pytest.fixture
def filled(hub: FaultHub, run: Program, data: Path) -> Path:
    """The data folder after a crawl, with a pool; no index was made yet."""
    assert run("-q", "crawl", "--any-base", "--weights", "keep").exit_code == 0
    assert run("select", "both", "--by", "random", "-k", "2").exit_code == 0
    assert sorted(path.name for path in data.glob("catalog.db*")) == ["catalog.db", "catalog.db.lock"]
    return data


def states(data: Path) -> Iterator[str]:
    """The same rows with and without a log and its shared memory beside the file, by name."""
    yield "closed"
    file, parts = data / "catalog.db", {end: data / f"catalog.db{end}" for end in ("", "-wal", "-shm")}
    writer = sqlite3.connect(file, isolation_level=None)
    writer.execute("UPDATE pool SET created_at = created_at")
    copies = {end: path.read_bytes() for end, path in parts.items()}
    writer.close()
    for name, ends in (("killed", ("", "-wal", "-shm")), ("log alone", ("", "-wal"))):
        for end, path in parts.items():
            path.unlink(missing_ok=True)
            if end in ends:
                path.write_bytes(copies[end])
        yield name


def listing(data: Path) -> set[str]:
    """The names of all that is in the folder."""
    return {str(path.relative_to(data)) for path in data.rglob("*")}


@pytest.mark.slow
@locks
def test_every_reading_command_says_the_same_as_where_it_may_write(filled: Path, lock: Lock) -> None:
    def answers(data: Path) -> dict[str, tuple[int, str, str]]:
        actual = {}
        for words in READING:
            result = CliRunner().invoke(loradex, ["--data", str(data), *words])
            document = result.stdout.replace(str(data), "DATA")
            # A log beside the file counts as a part of it.
            document = re.sub(r"(?m)^size .*", "", document)
            actual[" ".join(words)] = result.exit_code, document, result.stderr
        return actual

    spare = filled.with_name("spare")
    shutil.copytree(filled, spare)
    expected = answers(spare)
    assert {code for code, _, _ in expected.values()} == {0}
    for state in states(filled):
        before = listing(filled)
        with lock(filled):
            assert answers(filled) == expected, state
        assert listing(filled) == before, state


@locks
def test_pictures_merges_and_exports_go_elsewhere(filled: Path, lock: Lock) -> None:
    def make(data: Path, out: Path) -> None:
        out.mkdir()
        out.chmod(0o777)
        with lock(data) if data == filled else contextlib.nullcontext():
            for words in (
                ["map", str(out / "map.svg")],
                ["pool", "export", "both", "--to", str(out), "--weights"],
                ["merge", "both", "--method", "average", "-o", str(out / "merged")],
                ["inspect-merge", "both"],
            ):
                result = CliRunner().invoke(loradex, ["--data", str(data), *words])
                assert result.exit_code == 0, result.output

    # Once where it may write, so that everything is imported before this process becomes somebody else.
    make(Path(shutil.copytree(filled, filled.with_name("spare"))), filled.with_name("first"))
    out = filled.with_name("out")
    make(filled, out)
    assert (out / "merged" / "adapter_model.safetensors").is_file()


@locks
def test_every_writing_command_is_refused_in_one_sentence(filled: Path, lock: Lock) -> None:
    before = {path: path.read_bytes() for path in filled.rglob("*") if path.is_file()}
    with lock(filled):
        for words in WRITING:
            result = CliRunner().invoke(loradex, ["--data", str(filled), "-q", *words])
            assert (result.exit_code, result.stderr.count("\n")) == (1, 1), (words, result)
            assert result.stderr.startswith("Error: ")
    assert {path: path.read_bytes() for path in filled.rglob("*") if path.is_file()} == before


@locks
def test_a_cache_that_cannot_be_written_is_told_with_v_alone(filled: Path, lock: Lock) -> None:
    def similar(*talk: str) -> Result:
        return CliRunner().invoke(loradex, ["--data", str(filled), *talk, "similar", "ann/one"])

    with lock(filled):
        assert similar().stderr == ""
        assert "cannot be written" in similar("-v").stderr


def test_a_writer_elsewhere_is_noticed(filled: Path) -> None:
    """Without locks a reader sees what is being written; it has to say so, whatever it read."""
    settings = Settings.make(data=filled)
    with of_another_user(filled), disposing(open_catalog(settings, create=False)) as engine:
        session = Session(engine)
        assert session.query(Repository).count() == 3
        if os.getuid() == 0:
            os.seteuid(0)
        else:
            for path in (filled, filled / "catalog.db"):
                path.chmod(0o755)
        with contextlib.closing(sqlite3.connect(filled / "catalog.db")) as writer, writer:
            writer.execute("UPDATE repository SET downloads = 77")
        if os.getuid() == 0:
            os.seteuid(NOBODY)
        with pytest.raises(CatalogBusyError, match="run the command again"):
            session.query(Repository).count()
        with contextlib.suppress(CatalogBusyError):
            session.close()


def test_a_token_that_cannot_be_read_is_one_sentence(
    run: Program, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_TOKEN_PATH", str(tmp_path))
    result = run("crawl")
    assert (result.exit_code, result.stderr.count("\n")) == (2, 1), result.output
    assert "HF_TOKEN" in result.stderr


def test_a_folder_that_nobody_may_enter_is_one_sentence(filled: Path) -> None:
    with of_another_user(filled):
        if os.getuid() == 0:
            os.seteuid(0)
        filled.chmod(0)
        if os.getuid() == 0:
            os.seteuid(NOBODY)
        result = CliRunner().invoke(loradex, ["--data", str(filled), "adapters"])
    assert (result.exit_code, result.stderr.count("\n")) == (1, 1), result


@locks
def test_cards_that_no_vector_can_be_written_of_go_by_words_and_are_counted(
    filled: Path, lock: Lock, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("loradex.encoding.load_embedder", lambda _model: Thesaurus())
    with contextlib.closing(sqlite3.connect(filled / "catalog.db")) as writer, writer:
        writer.execute("UPDATE adapter SET card_quality = 'informative', card_text = ?", (DESCRIBED,))
    with lock(filled):
        for words in (
            ["search", "made by ann"],
            ["select", "x", "--by", "text", "--query", "made by ann", "-k", "1", "--dry-run"],
        ):
            result = CliRunner().invoke(loradex, ["--data", str(filled), *words])
            assert result.exit_code == 0, result.output
            assert "cards go by words alone" in result.stderr
            assert "ann/one" in result.stdout
