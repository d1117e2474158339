"""The catalog as a database: the version of its schema, opening it, and the lock of its one crawl."""

from __future__ import annotations

import contextlib
import hashlib
import re
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from importlib.resources import files
from typing import TYPE_CHECKING, Any

import filelock
from sqlalchemy import Connection, Engine, column, func, inspect, select, table, update
from sqlalchemy.exc import DBAPIError, InvalidRequestError
from sqlalchemy.orm import Session as Session

from catalog.database import changes, views
from catalog.database.columns import TableBase
from catalog.database.engine import check_commits, for_writing, make_engine, parse_url, place, sqlite_file
from catalog.database.schema import Crawl, CrawlItem, ItemOutcome
from catalog.errors import CatalogBusyError, CatalogError, NoCatalogError, SchemaVersionError
from catalog.settings import Settings

if TYPE_CHECKING:
    from alembic.config import Config

VERSION_TABLE = "catalog_version"
# After these seconds the server asks whether the machine of a silent connection is still there, and ends its
# session after so many questions without an answer. A connection within one machine needs no question.
_KEEPALIVES = {
    "tcp_keepalives_idle": "30",
    "tcp_keepalives_interval": "10",
    "tcp_keepalives_count": "3",
}
# PostgreSQL's SQLSTATEs for what others made: it depends on what is changed, or has the name already.
_DEPENDENT = {"2BP01", "0A000"}
_TAKEN = {"42P07", "42710", "42723"}


@dataclass(frozen=True)
class CatalogInfo:
    """Where a catalog is, its schema, rows by table (none unless the schema is the newest), bytes on disk."""

    place: str
    dialect: str
    revision: str | None
    head: str
    rows: dict[str, int]
    bytes: int


def head() -> str:
    """The newest revision of the schema that this program knows."""
    return max(_revisions())


def current(engine: Engine) -> str | None:
    """The revision of the schema in the database; None where there is no catalog."""
    with engine.connect() as connection:
        return _revision(connection)


def check(engine: Engine) -> None:
    """Returns if the schema is the newest; else raises NoCatalogError or SchemaVersionError with the next
    step."""
    revision, where = current(engine), place(engine.url)
    if revision is None:
        raise _no_catalog(where)
    if revision != head():
        _refuse_unknown(revision, where)
        raise SchemaVersionError(f"the catalog {where} has an older schema: run `upgrade()`")
    with engine.connect() as connection:
        if missing := changes.missing_triggers(connection):
            raise SchemaVersionError(
                f"the catalog {where} lacks the trigger {missing[0]}, by which caches notice changes: "
                "run `upgrade()`"
            )


def check_views(engine: Engine) -> None:
    """Returns if the views for strangers' SQL are those of this version; else raises SchemaVersionError.

    Raises CatalogError where something of another has the name of a view.
    """
    with engine.connect() as connection:
        _refuse_foreign_names(connection)
        if missing := views.missing_views(connection):
            raise SchemaVersionError(
                f"the catalog {place(engine.url)} lacks the view {missing[0]}: run `upgrade()`"
            )


def upgrade(engine: Engine, revision: str = "head") -> None:
    """Brings the schema up to a revision in one transaction; the second of two processes finds it done.

    Raises SchemaVersionError for a catalog newer than this program, CatalogError for a database that holds
    something else, or where what others made in it stands in the way.
    """
    from alembic import command

    with _migrating(engine) as connection:
        current_revision = _revision(connection)
        if current_revision is None:
            _refuse_foreign(connection)
        else:
            _refuse_unknown(current_revision, place(engine.url))
        is_newest = current_revision == head()
        redo_views = not is_newest or bool(views.missing_views(connection))
        redo_triggers = not is_newest or bool(changes.missing_triggers(connection))
        if redo_views:
            _refuse_foreign_names(connection)
        with views.without_foreign_objects(connection):
            grants = views.drop_views(connection) if redo_views else []
            if redo_triggers:
                changes.drop_triggers(connection)
            if not is_newest:
                command.upgrade(config(connection), revision)
            if redo_triggers and _revision(connection) == head():
                changes.create_triggers(connection)
            if redo_views and _revision(connection) == head():
                views.create_views(connection, grants)


def downgrade(engine: Engine, revision: str) -> None:
    """Takes the schema back to a revision in one transaction; `base` drops every table with its rows."""
    from alembic import command

    with _migrating(engine) as connection, views.without_foreign_objects(connection):
        views.drop_views(connection)
        changes.drop_triggers(connection)
        command.downgrade(config(connection), revision)


def open_existing(settings: Settings) -> Engine:
    """An engine on an existing database of any schema; raises NoCatalogError for a missing file."""
    url = parse_url(settings.catalog_url)
    try:
        if url.get_backend_name() == "sqlite" and not sqlite_file(url).exists():
            raise _no_catalog(place(url))
    except OSError as error:
        raise CatalogError(f"the catalog {place(url)} cannot be opened: {error.strerror}") from error
    return make_engine(settings.catalog_url)


def open_catalog(settings: Settings, *, create: bool) -> Engine:
    """An engine on a catalog whose schema is the newest.

    With `create`, a missing catalog is created; an existing one is never changed. Raises NoCatalogError if
    there is none, SchemaVersionError if it is older or newer than the program. The caller disposes the
    engine.
    """
    engine = make_engine(settings.catalog_url) if create else open_existing(settings)
    try:
        if create and current(engine) is None:
            upgrade(engine)
        check(engine)
    except BaseException:
        engine.dispose()
        raise
    return engine


@contextlib.contextmanager
def disposing(engine: Engine) -> Iterator[Engine]:
    """The engine; its connections are closed at the end."""
    try:
        yield engine
    finally:
        engine.dispose()


@contextlib.contextmanager
def reading(settings: Settings) -> Iterator[Session]:
    """A session on the catalog, for one command that only reads; raises like `open_catalog`."""
    with disposing(open_catalog(settings, create=False)) as engine, Session(engine) as session:
        yield session


@contextlib.contextmanager
def reading_if_any(settings: Settings) -> Iterator[Session | None]:
    """The same, or None if there is no catalog yet; does not create it."""
    with contextlib.ExitStack() as stack:
        try:
            session = stack.enter_context(reading(settings))
        except NoCatalogError:
            session = None
        yield session


@contextlib.contextmanager
def writing(settings: Settings, *, create: bool = True) -> Iterator[Session]:
    """A session for one short command that writes, also while a crawl is at work; the caller commits.

    Creates the catalog if it does not exist and `create` allows it; raises like `open_catalog`. Sessions of
    several processes wait for each other; the schema does not change before the commit.
    """
    with (
        disposing(open_catalog(settings, create=create)) as engine,
        Session(for_writing(engine)) as session,
    ):
        take_turn(session)
        if _revision(session.connection()) != head():
            raise SchemaVersionError(f"the schema of {place(engine.url)} has just changed: try again")
        yield session


@contextlib.contextmanager
def writing_alone(settings: Settings) -> Iterator[Session]:
    """A session of the only process that writes; raises like `open_catalog` and `writer_lock`."""
    with (
        disposing(open_catalog(settings, create=False)) as engine,
        writer_lock(engine),
        Session(for_writing(engine)) as session,
    ):
        yield session


def take_turn(session: Session) -> None:
    """Waits for other sessions that write a row or two; until the commit, they wait for this one.

    On SQLite a transaction that writes does so anyway.
    """
    if session.get_bind().dialect.name != "sqlite":
        connection = session.connection()
        session.execute(select(func.pg_advisory_xact_lock(lock_key(connection, "turn"))))
        session.execute(select(func.pg_advisory_xact_lock_shared(lock_key(connection, "migration"))))


@contextlib.contextmanager
def writer_lock(engine: Engine) -> Iterator[str | None]:
    """Holds the lock of the one process that crawls, changes the schema or deletes kept files.

    The system releases it when the process dies. Yields what a crawl was doing whose process died, None if
    there was none; the catalog forgets it. Raises CatalogBusyError immediately if another process holds the
    lock, and says what a crawl is doing. It is a lock file next to a SQLite database, and an advisory lock on
    a separate connection on PostgreSQL: when that is lost, no transaction of the engine commits any longer,
    but raises CatalogError.
    """
    lock = _file_lock if engine.dialect.name == "sqlite" else _advisory_lock
    with lock(engine):
        yield _forget_holder(engine)


@contextlib.contextmanager
def _file_lock(engine: Engine) -> Iterator[None]:
    file = sqlite_file(engine.url)
    lock = filelock.FileLock(file.with_name(file.name + ".lock"), timeout=0)
    try:
        lock.acquire()
    except filelock.Timeout:
        raise _busy(engine) from None
    except OSError as error:
        raise CatalogError(f"the lock file {lock.lock_file} cannot be created: {error.strerror}") from error
    try:
        yield
    finally:
        lock.release()


@contextlib.contextmanager
def _advisory_lock(engine: Engine) -> Iterator[None]:
    with _lock_connection(engine) as connection:
        for name, value in _KEEPALIVES.items():
            connection.execute(select(func.set_config(name, value, False)))
        key = lock_key(connection, "writer")
        if not connection.scalar(select(func.pg_try_advisory_lock(key))):
            raise _busy(engine)
        try:
            with _checked_at_commit(engine, connection):
                yield
        finally:
            # The server would notice the closed connection a moment later.
            with contextlib.suppress(CatalogError, InvalidRequestError):
                connection.execute(select(func.pg_advisory_unlock(key)))


@contextlib.contextmanager
def _lock_connection(engine: Engine) -> Iterator[Connection]:
    """A connection whose end is the end of the locks that it takes."""
    with engine.connect().execution_options(isolation_level="AUTOCOMMIT") as connection:
        connection.detach()
        yield connection


@contextlib.contextmanager
def _checked_at_commit(engine: Engine, connection: Connection) -> Iterator[None]:
    """Inside the block no transaction of the engine commits after the connection, and its lock, was lost.

    Raises CatalogError there.
    """
    one_at_a_time, is_over = threading.Lock(), False

    def check_connection() -> None:
        with one_at_a_time:
            if is_over:
                return
            # Once invalidated, it would be replaced by another one, which has no lock.
            if not connection.invalidated:
                with contextlib.suppress(CatalogError):
                    connection.execute(select(1))
            if connection.invalidated:
                raise CatalogError(
                    f"the connection to {place(engine.url)} that held the lock of the catalog was lost, so "
                    "that another process may write now: nothing more was written, run the command again"
                )

    with check_commits(engine, check_connection):
        try:
            yield
        finally:
            # A thread that commits now has no lock to ask for.
            with one_at_a_time:
                is_over = True


def _forget_holder(engine: Engine) -> str | None:
    """Removes the marks that dead processes left at their crawls; returns what the last of them was doing."""
    with Session(engine) as session:
        crawl = _held_crawl(session)
        if crawl is None:
            return None
        text = f"the crawl by {_describe_crawl(session, crawl)}, did not end: its process died"
    with Session(for_writing(engine)) as session, session.begin():
        session.execute(update(Crawl).where(Crawl.holder.is_not(None)).values(holder=None, phase=None))
    return text


def _held_crawl(session: Session) -> Crawl | None:
    """The newest crawl that names a process as its holder; None in a catalog of another schema."""
    if _revision(session.connection()) != head():
        return None
    held = select(Crawl).where(Crawl.holder.is_not(None)).order_by(Crawl.held_since.desc())
    return session.scalar(held.limit(1))


def is_crawled(session: Session) -> bool:
    """Whether a process holds the lock of `writer_lock` on PostgreSQL; it is not tried, but looked up."""
    key = lock_key(session.connection(), "writer")
    locks = (column("locktype") == "advisory", column("classid") == (key >> 32 & 0xFFFFFFFF))
    here = (
        column("database")
        == select(column("oid"))
        .select_from(table("pg_database"))
        .where(column("datname") == func.current_database())
        .scalar_subquery()
    )
    query = select(func.count()).select_from(table("pg_locks"))
    return bool(session.scalar(query.where(*locks, column("objid") == (key & 0xFFFFFFFF), here)))


@contextlib.contextmanager
def same_schema(engine: Engine) -> Iterator[None]:
    """Inside the block no other process changes the schema in PostgreSQL.

    Raises the errors of `check`, and CatalogError at a commit after the connection with the lock was lost.
    """
    with _lock_connection(engine) as connection:
        connection.execute(select(func.pg_advisory_lock_shared(lock_key(connection, "migration"))))
        check(engine)
        with _checked_at_commit(engine, connection):
            yield


def _busy(engine: Engine) -> CatalogBusyError:
    """The error for a catalog whose lock another process holds, with what it does where that is a crawl."""
    where = place(engine.url)
    with Session(engine) as session:
        crawl = _held_crawl(session)
        if crawl is None:
            return CatalogBusyError(
                f"another process is writing to the catalog {where}: wait until it has ended"
            )
        shared = engine.dialect.name != "sqlite" and crawl.asked.get("weights") == "stream"
        join = ", or run `loradex crawl worker` to take part in it" if shared else ""
        work = _describe_crawl(session, crawl)
        return CatalogBusyError(f"the catalog {where} is crawled by {work}: wait until it has ended{join}")


def _describe_crawl(session: Session, crawl: Crawl) -> str:
    """Who carries out a crawl, since when, and how far it is."""
    items = select(func.count()).where(CrawlItem.crawl_id == crawl.id)
    total = session.scalar(items) or 0
    done = total - (session.scalar(items.where(CrawlItem.outcome == ItemOutcome.PENDING)) or 0)
    progress = f"{done:,} of {total:,}" if crawl.phase == "reading" else f"{total:,}"
    began = f"{crawl.held_since:%Y-%m-%d %H:%M} UTC"
    return f"{crawl.holder} since {began}, {crawl.phase}, {progress} repositories"


def info(engine: Engine) -> CatalogInfo:
    """The state and content of the catalog, for an older, newer or absent schema too. Reads only."""
    newest = head()
    with engine.connect() as connection:
        revision = _revision(connection)
        names = sorted(TableBase.metadata.tables) if revision == newest else []
        rows = {name: connection.scalar(select(func.count()).select_from(table(name))) or 0 for name in names}
        if engine.dialect.name == "sqlite":
            file = sqlite_file(engine.url)
            parts = (file.with_name(file.name + end) for end in ("", "-wal"))
            size = sum(part.stat().st_size for part in parts if part.exists())
        else:
            size = sum(connection.scalar(select(func.pg_total_relation_size(name))) or 0 for name in names)
    return CatalogInfo(place(engine.url), engine.dialect.name, revision, newest, rows, size)


def config(connection: Connection | None = None) -> Config:
    """Alembic's configuration for the migrations of this package, on a connection within a transaction."""
    from alembic.config import Config

    alembic_config = Config()
    alembic_config.set_main_option("script_location", str(files("migrations")).replace("%", "%%"))
    alembic_config.attributes["connection"] = connection
    return alembic_config


def _revisions() -> set[str]:
    """The revisions of the schema by the names of their files, which begin with them; without alembic."""
    names = (file.name for file in files("migrations").joinpath("versions").iterdir())
    return {name[:4] for name in names if name[:4].isdigit()}


def _no_catalog(where: str) -> NoCatalogError:
    return NoCatalogError(f"no catalog at {where}: run `crawl()` first")


def _revision(connection: Connection) -> str | None:
    if not inspect(connection).has_table(VERSION_TABLE):
        return None
    revision: str | None = connection.scalar(select(column("version_num")).select_from(table(VERSION_TABLE)))
    return revision


def _refuse_unknown(revision: str, where: str) -> None:
    if revision not in _revisions():
        raise SchemaVersionError(
            f"the catalog {where} was made by a newer loradex: upgrade the program (pip install -U loradex)"
        )


def _refuse_foreign(connection: Connection) -> None:
    """Raises CatalogError if the database contains other tables; a PostgreSQL schema may be shared."""
    tables = set(inspect(connection).get_table_names()) - {VERSION_TABLE}
    if connection.dialect.name != "sqlite":
        tables &= set(TableBase.metadata.tables)
    if tables:
        raise CatalogError(
            f"{place(connection.engine.url)} contains other tables ({min(tables)}): use another database"
        )


def _refuse_foreign_names(connection: Connection) -> None:
    """Raises CatalogError if something that this program did not make has the name of one of its views."""
    if names := views.foreign_names(connection):
        raise CatalogError(
            f"the catalog {place(connection.engine.url)} contains {names[0]}, which loradex did not make: "
            "rename it, since a view of loradex has that name, and run `upgrade()`"
        )


@contextlib.contextmanager
def _naming_obstacles(engine: Engine) -> Iterator[None]:
    """Raises CatalogError where what others made in the database stands in the way of another schema."""
    try:
        yield
    except DBAPIError as error:
        cause: Any = error.orig
        state = getattr(cause, "sqlstate", "")
        schema = f"the schema of the catalog {place(engine.url)} cannot change"
        if state in _DEPENDENT and (detail := cause.diag.message_detail):
            what = "; ".join(detail.splitlines())
            raise CatalogError(
                f"{schema}, because {what}: drop it, run the command again, and make it again after that"
            ) from error
        if state in _TAKEN or re.search("already (exists|a table|an index)", str(cause)):
            what = str(cause).splitlines()[0]
            raise CatalogError(
                f"{schema}, because {what}: rename what is not loradex's, and run the command again"
            ) from error
        raise


def lock_key(connection: Connection, purpose: str) -> int:
    """A 64-bit key, the same for every process on this schema; the server separates databases itself."""
    schema = connection.scalar(select(func.current_schema()))
    digest = hashlib.sha256(f"loradex {purpose} {schema}".encode()).digest()
    return int.from_bytes(digest[:8], "big", signed=True)


@contextlib.contextmanager
def _migrating(engine: Engine) -> Iterator[Connection]:
    """One transaction, alone among all that migrate; SQLite's foreign keys are checked at its end only."""
    if engine.dialect.name != "sqlite":
        with _naming_obstacles(engine), engine.begin() as connection:
            connection.execute(select(func.pg_advisory_xact_lock(lock_key(connection, "migration"))))
            yield connection
        return
    with _naming_obstacles(engine), for_writing(engine).connect() as connection:
        driver: Any = connection.connection.driver_connection
        # Rebuilding a table drops it; with foreign keys on, that would delete the rows that point to it.
        driver.execute("PRAGMA foreign_keys = OFF")
        try:
            with connection.begin():
                yield connection
                if connection.exec_driver_sql("PRAGMA foreign_key_check").first() is not None:
                    raise CatalogError(
                        f"the rows of {place(engine.url)} contradict each other: nothing was changed"
                    )
        finally:
            driver.execute("PRAGMA foreign_keys = ON")
