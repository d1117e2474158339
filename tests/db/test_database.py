"""The engine, opening a catalog, the writer's lock, and what a user reads when the database refuses."""

from __future__ import annotations

import os
import sqlite3
import stat
import subprocess
import sys
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import Engine, event, insert, make_url, select, text
from sqlalchemy.engine.interfaces import CacheStats
from sqlalchemy.exc import IntegrityError
from sqlalchemy.orm import Session

from catalog.database import TableBase, opening
from catalog.database import engine as engines
from catalog.database.engine import for_writing, make_engine, place
from catalog.database.schema import DocumentRow, SavedPool
from catalog.errors import (
    CatalogBusyError,
    CatalogError,
    NoCatalogError,
    SchemaVersionError,
    UsageError,
)
from catalog.settings import Settings
from tests.crawling import end_lock_holders, wait_for_lock
from tests.db import rows

ROOT = Path(__file__).parents[2]
SECRET = "hunter2"


def documents(engine: Engine) -> int:
    with Session(engine) as session:
        return len(session.scalars(select(DocumentRow)).all())


def document(number: int) -> DocumentRow:
    return DocumentRow(digest=f"{number:040x}", content=b"x")


@pytest.mark.parametrize(
    ("pragma", "value"),
    [("journal_mode", "wal"), ("foreign_keys", 1), ("busy_timeout", 30_000), ("synchronous", 1)],
)
def test_every_sqlite_connection_is_set_up(tmp_path: Path, pragma: str, value: object) -> None:
    engine = make_engine(f"sqlite:///{tmp_path}/new/folders/catalog.db")
    with opening.disposing(engine), engine.connect() as item, engine.connect() as two:
        assert [connection.scalar(text(f"PRAGMA {pragma}")) for connection in (item, two)] == [value, value]


def test_engines_of_a_server_compile_a_statement_once(catalog_url: str, tmp_path: Path) -> None:
    label = f"of_{tmp_path.name}"
    compiled: list[bool] = []

    def note(*call: Any) -> None:
        if label in call[2]:
            compiled.append(call[4].cache_hit is not CacheStats.CACHE_HIT)

    for name in ("a", "b", "c"):
        with opening.disposing(make_engine(catalog_url)) as engine, Session(for_writing(engine)) as session:
            event.listen(engine, "before_cursor_execute", note)
            digest = DocumentRow.digest.label(label)
            assert session.scalars(select(digest).where(DocumentRow.digest == name)).all() == []
    assert compiled == [True, False, False]


def test_a_file_is_open_as_long_as_a_question_needs_it(tmp_path: Path) -> None:
    settings = Settings.make(data=tmp_path)
    opening.open_catalog(settings, create=True).dispose()

    def opened() -> int:
        links = [str(link.readlink()) for link in Path("/proc/self/fd").iterdir() if link.is_symlink()]
        return sum(link.startswith(str(tmp_path)) for link in links)

    assert opened() == 0
    with opening.reading(settings) as outer:
        assert outer.scalars(select(DocumentRow.digest)).all() == []
        with ThreadPoolExecutor(1) as thread, opening.reading(settings) as inner:
            assert inner.scalars(select(DocumentRow.digest)).all() == []
            assert thread.submit(lambda: documents(outer.get_bind().engine)).result(60) == 0
        assert outer.scalars(select(DocumentRow.digest)).all() == []
        assert opened() > 0
    assert opened() == 0


FORKED = """
import os, sys
from sqlalchemy import text
from catalog.database import disposing, make_engine
def ask():
    with disposing(make_engine(sys.argv[1])) as engine, engine.connect() as connection:
        return connection.execute(text("SELECT count(*) FROM document")).scalar()
with disposing(make_engine(sys.argv[1])) as engine, engine.connect() as connection:
    before = ask()
    child = os.fork()
    if not child:
        os._exit(ask() + 10)
    code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    print(before, code, ask(), connection.execute(text("SELECT count(*) FROM document")).scalar())
"""


def test_a_forked_child_asks_the_catalog_that_its_parent_asks(catalog_url: str) -> None:
    command = [sys.executable, "-c", FORKED, catalog_url]
    result = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=120, check=False)
    assert (result.returncode, result.stdout.split()) == (0, ["0", "10", "0", "0"]), result.stderr


@pytest.mark.parametrize(
    "url",
    [
        pytest.param(f"mysql://joe:{SECRET}@host/name", id="another-database"),
        pytest.param(f"sqlite+aiosqlite:///{SECRET}", id="another-driver"),
        pytest.param(f"postgresql+psycopg2://joe:{SECRET}@host/x", id="another-postgres-driver"),
        pytest.param(f"postgresql://joe:{SECRET}@host:port/x", id="port-is-a-word"),
        pytest.param(SECRET, id="no-url"),
        pytest.param("", id="empty"),
        pytest.param("sqlite://", id="in-memory"),
        pytest.param("sqlite:///:memory:", id="in-memory-by-name"),
        pytest.param(f"sqlite:///file:{SECRET}?uri=true", id="sqlite-uri"),
        pytest.param(f"sqlite:///a.db?cache={SECRET}", id="sqlite-options"),
    ],
)
def test_a_url_that_is_no_catalog_is_refused(url: str) -> None:
    with pytest.raises(UsageError) as caught:
        make_engine(url)
    assert SECRET not in str(caught.value)
    assert "sqlite:///FILE" in str(caught.value)


@pytest.mark.parametrize("scheme", ["postgres", "postgresql", "postgresql+psycopg"])
def test_postgres_is_reached_through_psycopg_3(scheme: str) -> None:
    engine = make_engine(f"{scheme}://joe:{SECRET}@host:5/name?password={SECRET}")
    assert engine.dialect.driver == "psycopg"
    assert place(engine.url) == "postgresql://joe@host:5/name"


def test_a_missing_driver_names_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "psycopg", None)
    with pytest.raises(CatalogError, match=r"pip install 'loradex\[postgres\]'"):
        make_engine("postgresql://host/name")


def test_a_refused_connection_is_one_sentence_without_the_password() -> None:
    engine = make_engine(f"postgresql://joe:{SECRET}@127.0.0.1:9/name?password={SECRET}")
    with opening.disposing(engine), pytest.raises(CatalogError, match="does not respond") as caught:
        opening.current(engine)
    assert SECRET not in str(caught.value)
    assert "\n" not in str(caught.value)
    assert "postgresql://joe@127.0.0.1:9/name" in str(caught.value)


@pytest.mark.parametrize("content", [b"not a database" * 400, b"SQLite format 3\x00" + b"\xff" * 5000])
@pytest.mark.parametrize("create", [False, True])
def test_a_file_that_is_no_database_is_left_as_it_is(tmp_path: Path, content: bytes, create: bool) -> None:
    file = tmp_path / "catalog.db"
    file.write_bytes(content)
    with pytest.raises(CatalogError, match="is not a SQLite database") as caught:
        opening.open_catalog(Settings.make(data=tmp_path), create=create)
    assert str(file) in str(caught.value)
    assert file.read_bytes() == content


def test_another_programs_database_is_left_as_it_is(tmp_path: Path) -> None:
    connection = sqlite3.connect(tmp_path / "catalog.db")
    connection.execute("CREATE TABLE cookies (x)")
    connection.close()
    with pytest.raises(CatalogError, match=r"contains other tables \(cookies\)"):
        opening.open_catalog(Settings.make(data=tmp_path), create=True)


def test_a_folder_in_the_files_place(tmp_path: Path) -> None:
    (tmp_path / "catalog.db").mkdir()
    with pytest.raises(CatalogError, match="cannot be opened"):
        opening.open_catalog(Settings.make(data=tmp_path), create=True)


def test_a_file_in_the_folders_place(tmp_path: Path) -> None:
    (tmp_path / "data").write_text("")
    with pytest.raises(CatalogError, match=r"folder .* cannot be created: (Not a directory|File exists)"):
        opening.open_catalog(Settings.make(data=tmp_path / "data"), create=True)


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
def test_a_folder_that_may_not_be_written_to(tmp_path: Path) -> None:
    tmp_path.chmod(stat.S_IRUSR | stat.S_IXUSR)
    with pytest.raises(CatalogError, match="cannot be opened"):
        opening.open_catalog(Settings.make(data=tmp_path), create=True)


def test_a_full_disk_is_one_sentence(tmp_path: Path) -> None:
    engine = opening.open_catalog(Settings.make(data=tmp_path), create=True)
    with opening.disposing(engine), engine.connect() as connection:
        connection.execute(text("PRAGMA max_page_count = 1"))
        with pytest.raises(CatalogError, match="the disk is full"):
            connection.execute(insert(DocumentRow).values(digest="a" * 40, content=b"x" * 500_000))


def test_a_bug_stays_a_bug(engine: Engine) -> None:
    """Only what the world is to blame for becomes a CatalogError."""
    with engine.connect() as connection, pytest.raises(Exception, match="no_such_table") as caught:
        connection.execute(text("SELECT * FROM no_such_table"))
    assert not isinstance(caught.value, CatalogError)


@pytest.mark.postgres
def test_a_missing_privilege_is_one_sentence(request: pytest.FixtureRequest) -> None:
    databases = request.getfixturevalue("postgres_database")("template0")
    url = make_url(next(databases))
    admin = make_engine(url.render_as_string(hide_password=False))
    with opening.disposing(admin), admin.begin() as connection:
        connection.execute(text("CREATE ROLE visitor LOGIN"))
    guest = make_engine(url.set(username="visitor", password=None).render_as_string())
    with opening.disposing(guest), pytest.raises(CatalogError, match="permission denied for schema public"):
        opening.upgrade(guest)
    with opening.disposing(admin), admin.begin() as connection:
        connection.execute(text("DROP ROLE visitor"))
    databases.close()


def test_reading_where_there_is_no_catalog(empty_url: str, tmp_path: Path) -> None:
    settings = Settings.make(data=tmp_path, catalog_url=empty_url)
    with pytest.raises(NoCatalogError, match=r"run `crawl\(\)` first"):
        opening.open_catalog(settings, create=False)
    with pytest.raises(NoCatalogError), opening.reading(settings):
        pass
    assert not list(tmp_path.iterdir())


def test_writing_makes_the_catalog_and_reading_finds_it(empty_url: str, tmp_path: Path) -> None:
    settings = Settings.make(data=tmp_path, catalog_url=empty_url)
    with opening.writing(settings) as session:
        session.add(document(1))
        session.commit()
    with opening.reading(settings) as session:
        assert session.scalars(select(DocumentRow.digest)).all() == [f"{1:040x}"]


@pytest.mark.parametrize("create", [False, True])
def test_an_old_catalog_is_never_changed_on_the_way(
    catalog_url: str, tmp_path: Path, create: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(opening, "head", lambda: "9999")
    with pytest.raises(SchemaVersionError, match="upgrade"):
        opening.open_catalog(Settings.make(data=tmp_path, catalog_url=catalog_url), create=create)


def test_info_counts_rows(engine: Engine) -> None:
    with Session(engine) as session:
        session.add_all([document(1), document(2)])
        session.commit()
    result = opening.info(engine)
    assert (result.revision, result.rows["document"], result.rows["adapter"]) == (opening.head(), 2, 0)
    assert result.bytes > 10_000
    assert set(result.rows) == set(TableBase.metadata.tables)


def test_info_of_a_database_with_nothing_in_it(empty_engine: Engine) -> None:
    result = opening.info(empty_engine)
    assert (result.revision, result.rows) == (None, {})


def test_savepoints_undo_their_part_only(engine: Engine) -> None:
    with Session(engine) as session:
        session.add(document(1))
        session.flush()
        savepoint = session.begin_nested()
        session.add(DocumentRow(digest="short", content=b""))
        with pytest.raises(IntegrityError):
            session.flush()
        savepoint.rollback()
        session.commit()
    assert documents(engine) == 1


def test_a_reader_sees_one_state_however_often_it_looks(engine: Engine) -> None:
    """On SQLite a transaction that only reads is a snapshot; PostgreSQL reads what is committed."""
    with Session(engine) as reader, Session(engine) as writer:
        reader.scalars(select(DocumentRow)).all()
        writer.add(document(1))
        writer.commit()
        requests = len(reader.scalars(select(DocumentRow)).all())
    assert requests == (0 if engine.dialect.name == "sqlite" else 1)


def test_case_82_a_reader_is_not_held_up_by_a_writer(engine: Engine) -> None:
    with Session(for_writing(engine)) as writer:
        writer.add(document(1))
        writer.flush()
        assert documents(engine) == 0
        writer.commit()
    assert documents(engine) == 1


def test_case_82_two_writers_wait_for_each_other(engine: Engine) -> None:
    """Each reads before it writes; without the lock at BEGIN, SQLite would refuse one of them at once."""
    started = threading.Barrier(4)

    def add(number: int) -> None:
        started.wait()
        for step in range(5):
            with Session(for_writing(engine)) as session:
                session.scalars(select(DocumentRow)).all()
                session.add(document(number * 100 + step))
                session.commit()

    threads = [threading.Thread(target=add, args=(number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert documents(engine) == 20


def test_case_82_a_lock_held_too_long_is_one_sentence(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(engines, "BUSY_SECONDS", 0)
    engine = opening.open_catalog(Settings.make(data=tmp_path), create=True)
    with (
        opening.disposing(engine),
        for_writing(engine).begin(),
        pytest.raises(CatalogBusyError, match="another process is writing"),
        for_writing(engine).begin(),
    ):
        pass


def test_case_92_one_writer_a_catalog(engine: Engine) -> None:
    with opening.writer_lock(engine):
        with pytest.raises(CatalogBusyError, match="wait until it has ended"), opening.writer_lock(engine):
            pass
        assert documents(engine) == 0
    with opening.writer_lock(engine):
        pass


def test_case_92_the_lock_is_free_after_an_error(engine: Engine) -> None:
    with pytest.raises(ZeroDivisionError), opening.writer_lock(engine):
        raise ZeroDivisionError
    with opening.writer_lock(engine):
        pass


@pytest.mark.parametrize("lock", [opening.writer_lock, opening.same_schema])
def test_nothing_is_committed_after_the_connection_of_the_lock_was_lost(
    engine: Engine, lock: Callable[[Engine], AbstractContextManager[object]]
) -> None:
    if engine.dialect.name == "sqlite":
        pytest.skip("the lock of a file cannot be lost")
    with lock(engine):
        add_document(engine, 1)
        end_lock_holders(engine)
        for number in (2, 3):  # another connection in its place would hold no lock
            with pytest.raises(CatalogError, match=r"held the lock .* was lost.*: nothing more was written"):
                add_document(engine, number)
        url = engine.url.render_as_string(hide_password=False)
        with opening.disposing(make_engine(url)) as other, opening.writer_lock(other):
            add_document(other, 4)
    assert documents(engine) == 2
    with lock(engine):
        add_document(engine, 9)
    assert documents(engine) == 3


@pytest.mark.parametrize("lock", [opening.writer_lock, opening.same_schema])
def test_a_lock_begins_and_ends_while_another_thread_commits(
    engine: Engine, lock: Callable[[Engine], AbstractContextManager[object]]
) -> None:
    if engine.dialect.name == "sqlite":
        pytest.skip("the lock of a file is not asked for at a commit")
    committing, taken = threading.Event(), threading.Event()

    def take_and_end() -> None:
        with lock(engine):
            taken.set()

    def meet(_: object) -> None:
        # The one commit at which another thread takes the lock and ends it.
        if not committing.is_set():
            committing.set()
            with ThreadPoolExecutor(1) as thread:
                thread.submit(take_and_end).result(60)

    event.listen(engine, "commit", meet)
    event.listen(engine, "commit", lambda _: None)
    before = documents(engine)
    add_document(engine, 1)
    assert taken.is_set()
    assert documents(engine) == before + 1
    with lock(engine):
        add_document(engine, 2)
        end_lock_holders(engine)
        with pytest.raises(CatalogError, match=r"held the lock .* was lost"):
            add_document(engine, 3)


def add_document(engine: Engine, number: int) -> None:
    with Session(for_writing(engine)) as session, session.begin():
        session.add(document(number))


def test_a_lock_file_that_cannot_be_made(tmp_path: Path) -> None:
    engine = opening.open_catalog(Settings.make(data=tmp_path), create=True)
    (tmp_path / "catalog.db.lock").mkdir()
    with (
        opening.disposing(engine),
        pytest.raises(CatalogError, match=r"lock file .* cannot be created"),
        opening.writer_lock(engine),
    ):
        pass


@pytest.mark.slow
def test_case_92_the_lock_dies_with_its_process(catalog_url: str, engine: Engine) -> None:
    code = (
        "import sys; from catalog.database import engine, opening\n"
        "with opening.writer_lock(engine.make_engine(sys.argv[1])):\n"
        "    print('held', flush=True); sys.stdin.read()"
    )
    with subprocess.Popen(
        [sys.executable, "-c", code, catalog_url],
        cwd=ROOT,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    ) as holder:
        assert holder.stdout is not None
        assert holder.stdout.readline() == "held\n"
        with pytest.raises(CatalogBusyError), opening.writer_lock(engine):
            pass
        holder.kill()
    wait_for_lock(engine)
    with opening.writer_lock(engine):
        pass


def test_json_is_written_with_sorted_keys(engine: Engine) -> None:
    with Session(engine) as session:
        manifest = {"b": 1, "ä": [None, {"y": 0, "x": 1}]}
        session.add(SavedPool(name="one", digest="d" * 64, manifest=manifest, created_at=rows.NOW))
        session.commit()
        stored = session.scalar(text("SELECT CAST(manifest AS TEXT) FROM pool"))
    assert stored == '{"b": 1, "ä": [null, {"x": 1, "y": 0}]}'
