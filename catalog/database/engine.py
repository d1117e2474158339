"""The engine below the catalog, on SQLite and on PostgreSQL (through psycopg 3).

Both behave the same from here on: transactions begin when SQLAlchemy begins them, savepoints work, foreign
keys hold, JSON is written with sorted keys, and errors outside the program (a full disk, a refused
connection, a locked file) become a `CatalogError` with one sentence.
"""

from __future__ import annotations

import contextlib
import json
import sqlite3
import threading
from collections.abc import Callable, Iterator
from functools import cache, partial
from pathlib import Path
from typing import Any

from sqlalchemy import URL, Connection, Dialect, Engine, ExceptionContext, create_engine, event, make_url
from sqlalchemy.exc import ArgumentError
from sqlalchemy.util import LRUCache
from tenacity import Retrying, retry_if_exception_message, stop_after_delay, wait_random

from catalog.errors import CatalogBusyError, CatalogError, ReadOnlyCatalogError, UsageError
from catalog.extras import require_extra
from catalog.files import may_write, path_fault

BUSY_SECONDS = 30
CONNECT_SECONDS = 10
# Statements that stay compiled: the program has some hundreds, and filters of users make more.
_MOST_COMPILED = 500
_TAKES_WRITE_LOCK = "loradex_takes_write_lock"
_URL_ADVICE = "name the catalog as sqlite:///FILE or postgresql://USER@HOST/NAME"

# Messages of SQLite for errors outside the program.
_SQLITE_WORDS = {
    "unable to open database file": "cannot be opened: it must be a file in a folder that you may write to",
    "file is not a database": "is not a SQLite database",
    "database disk image is malformed": "is damaged: restore it from a copy, or move it away and crawl again",
    "database or disk is full": "cannot grow: the disk is full",
    "disk I/O error": "cannot be read or written: the disk reports an error",
}
_READ_ONLY = "attempt to write a readonly database"
# PostgreSQL's SQLSTATEs of the same kind that are not an OperationalError: privilege missing, read-only
# server.
_REFUSED = {"42501", "25006"}
_CHECKS = "loradex_commit_checks"


def make_engine(url: str) -> Engine:
    """An engine for the catalog at a URL; it is not connected yet, but SQLite's folder is created.

    Raises UsageError for a URL that is neither a SQLite file nor PostgreSQL, CatalogError where the folder or
    the driver is missing. A transaction that reads and then writes belongs on `for_writing(engine)`.
    """
    parsed = parse_url(url)
    options: dict[str, Any] = {
        "json_serializer": partial(json.dumps, sort_keys=True, allow_nan=False, ensure_ascii=False)
    }
    if parsed.get_backend_name() == "sqlite":
        _make_folder(sqlite_file(parsed))
        compiler = _find_compiler(None)
        engine = create_engine(parsed, execution_options=compiler.options, **options)
        event.listen(engine, "do_connect", _connect_read_only)
        event.listen(engine, "connect", _set_up_sqlite)
        event.listen(engine, "begin", _begin_sqlite)
        for moment in ("before_cursor_execute", "commit", "rollback"):
            event.listen(engine, moment, _refuse_changed)
    else:
        if "connect_timeout" not in parsed.query:
            parsed = parsed.update_query_dict({"connect_timeout": str(CONNECT_SECONDS)})
        require_extra("postgres", "A catalog in PostgreSQL", CatalogError)
        checks = _CommitChecks()
        compiler = _find_compiler(parsed.set(database=None))
        engine = create_engine(
            parsed, pool_pre_ping=True, execution_options={_CHECKS: checks, **compiler.options}, **options
        )
        event.listen(engine, "commit", checks.run)
    event.listen(engine, "handle_error", _translate)
    compiler.share(engine)
    return engine


class _Compiler:
    """The statements that were compiled for one server, or for SQLite, and the dialect that did it.

    Each question has an engine of its own, whose connections it closes. Compiling takes longer than most
    answers: a statement is compiled by the dialect of the first engine that connected, and then known to all.
    """

    def __init__(self) -> None:
        self.options = {"compiled_cache": LRUCache[Any, Any](_MOST_COMPILED)}
        self._dialect: Dialect | None = None

    def share(self, engine: Engine) -> None:
        """Gives an engine that has not connected yet the dialect; its own, until one has asked the server."""
        if self._dialect is not None:
            engine.dialect = self._dialect
            return

        def keep(*_: Any) -> None:
            self._dialect = self._dialect or engine.dialect

        # What an engine asks a server on the first connection comes before this.
        event.listen(engine, "connect", keep)


@cache
def _find_compiler(server: URL | None) -> _Compiler:
    """The one for the databases of a server, whose URL names none; None for all files of SQLite."""
    return _Compiler()


@contextlib.contextmanager
def check_commits(engine: Engine, check: Callable[[], None]) -> Iterator[None]:
    """Inside the block `check` is called before each commit in PostgreSQL, by the thread that commits.

    What it raises prevents the commit. A listener of the engine that comes and goes would not do: another
    thread that commits at that moment goes through the listeners.
    """
    checks: _CommitChecks = engine.get_execution_options()[_CHECKS]
    with checks.change:
        checks.calls = (*checks.calls, check)
    try:
        yield
    finally:
        with checks.change:
            checks.calls = tuple(call for call in checks.calls if call is not check)


class _CommitChecks:
    """What is called before each commit of an engine; `calls` is replaced, as a thread may go through it."""

    def __init__(self) -> None:
        self.change = threading.Lock()
        self.calls: tuple[Callable[[], None], ...] = ()

    def run(self, _: Connection) -> None:
        for call in self.calls:
            call()


def for_writing(engine: Engine) -> Engine:
    """The same engine, whose transactions take SQLite's write lock when they begin.

    A transaction that reads first and writes later would otherwise fail immediately if another one wrote in
    between. PostgreSQL needs none of this.
    """
    return engine.execution_options(**{_TAKES_WRITE_LOCK: True})


def place(url: URL) -> str:
    """Where a catalog is, for messages: a path, or a URL without password and options."""
    if url.get_backend_name() == "sqlite":
        return str(url.database)
    bare = url.set(drivername="postgresql", query={})._replace(password=None)
    return bare.render_as_string()


def parse_url(url: str) -> URL:
    """The URL as SQLAlchemy requires it; it is not part of any message, since it may contain a password."""
    if url.startswith("postgres://"):
        url = "postgresql" + url.removeprefix("postgres")
    try:
        parsed = make_url(url)
    except (ArgumentError, ValueError):
        raise UsageError(f"this is not a database URL: {_URL_ADVICE}") from None
    if parsed.drivername in ("sqlite", "sqlite+pysqlite"):
        if (
            parsed.database in (None, "", ":memory:")
            or parsed.query
            or str(parsed.database).startswith("file:")
        ):
            raise UsageError("a SQLite catalog is a plain file: name it as sqlite:///FILE")
        if fault := path_fault(f"{parsed.database}.lock"):
            raise UsageError(f"no catalog can be at the path of this URL: {fault}")
        return parsed
    if parsed.drivername in ("postgresql", "postgresql+psycopg"):
        return parsed.set(drivername="postgresql+psycopg")
    raise UsageError(f"a catalog cannot live in {parsed.drivername}: {_URL_ADVICE}")


def sqlite_file(url: URL) -> Path:
    """The file of a SQLite catalog."""
    return Path(str(url.database))


def _make_folder(file: Path) -> None:
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise CatalogError(
            f"the folder {file.parent} of the catalog cannot be created: {error.strerror}"
        ) from error


class _ReadOnly(sqlite3.Connection):
    """A connection to a file that this process may not write to, or in whose folder it may not create files.

    SQLite cannot take part in its locks there; `before` is what the file looked like when it was opened
    without them, None if locks are available.
    """

    file: Path
    before: tuple[int, int, int] | None = None


def _connect_read_only(
    _dialect: Any, _record: Any, arguments: Any, _options: Any
) -> sqlite3.Connection | None:
    """A connection to a SQLite file on a read-only disk or of another user; None for any other file.

    The write-ahead log needs a file of shared memory next to the database. An existing one is used for
    reading; if a killed writer left only a log, it is read without locks; without a log, the file is opened
    as immutable.
    """
    file = Path(arguments[0])
    if not file.is_file() or (may_write(file) and may_write(file.parent)):
        return None
    log_file = file.with_name(f"{file.name}-wal")
    try:
        return _open_read_only(file, "mode=ro")
    except sqlite3.OperationalError:
        before = _look(file)
    has_log = log_file.is_file() and log_file.stat().st_size > 0
    connection = _open_read_only(file, "mode=ro&vfs=unix-none" if has_log else "mode=ro&immutable=1")
    connection.before = before
    return connection


def _open_read_only(file: Path, how: str) -> _ReadOnly:
    """A connection after a test query; raises sqlite3.OperationalError if it fails."""
    connection = sqlite3.connect(
        f"{file.absolute().as_uri()}?{how}", uri=True, check_same_thread=False, factory=_ReadOnly
    )
    try:
        # Without locks the index of the log is kept in memory, not in a file.
        if "vfs" in how:
            connection.execute("PRAGMA locking_mode = EXCLUSIVE")
        connection.execute("SELECT count(*) FROM sqlite_master")
    except BaseException:
        connection.close()
        raise
    connection.file = file
    return connection


def _look(file: Path) -> tuple[int, int, int]:
    stat = file.stat()
    return stat.st_size, stat.st_mtime_ns, stat.st_ino


def _refuse_changed(connection: Connection, *_: Any) -> None:
    """Raises CatalogBusyError if another process wrote to a file that is read without locks."""
    driver = None if connection.invalidated else connection.connection.driver_connection
    if isinstance(driver, _ReadOnly) and driver.before not in (None, _look(driver.file)):
        connection.invalidate()
        raise CatalogBusyError(
            f"the catalog {place(connection.engine.url)} changed while it was read: run the command again"
        )


def _set_up_sqlite(connection: sqlite3.Connection, _record: Any) -> None:
    # Python's sqlite3 begins transactions late, not before SELECT or SAVEPOINT; SQLAlchemy begins them
    # instead.
    connection.isolation_level = None
    connection.execute(f"PRAGMA busy_timeout = {BUSY_SECONDS * 1000}")
    connection.execute("PRAGMA foreign_keys = ON")
    if isinstance(connection, _ReadOnly):
        return
    # Of several processes that open a new file, one enables the log; SQLite does not let the others wait.
    for attempt in Retrying(
        retry=retry_if_exception_message(match=".*is locked"),
        wait=wait_random(0.01, 0.1),
        stop=stop_after_delay(BUSY_SECONDS),
        reraise=True,
    ):
        with attempt:
            if connection.execute("PRAGMA journal_mode").fetchone() != ("wal",):
                connection.execute("PRAGMA journal_mode = WAL")
    connection.execute("PRAGMA synchronous = NORMAL")


def _begin_sqlite(connection: Connection) -> None:
    takes_lock = connection.get_execution_options().get(_TAKES_WRITE_LOCK, False)
    connection.exec_driver_sql("BEGIN IMMEDIATE" if takes_lock else "BEGIN")


def _translate(context: ExceptionContext) -> None:
    """Raises the CatalogError for a driver's error that is not a bug of the program; others are left
    unchanged."""
    error = context.original_exception
    where = f"the catalog {place(context.engine.url)}" if context.engine else "the catalog"
    message = " ".join(str(error).split("\n")[0].split())
    if isinstance(error, sqlite3.Error):
        if "is locked" in message:
            raise CatalogBusyError(
                f"{where} was locked for {BUSY_SECONDS} s: another process is writing"
            ) from error
        if message == _READ_ONLY:
            raise ReadOnlyCatalogError(f"{where} cannot be written to") from error
        if message in _SQLITE_WORDS:
            raise CatalogError(f"{where} {_SQLITE_WORDS[message]}") from error
    elif type(context.sqlalchemy_exception).__name__ == "OperationalError":
        raise CatalogError(f"{where} does not respond: {message}") from error
    elif getattr(error, "sqlstate", None) in _REFUSED:
        raise ReadOnlyCatalogError(f"{where} reported an error: {message}") from error
