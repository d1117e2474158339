"""The base models that a catalog knows, on both databases."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import pytest
from sqlalchemy import Engine, func, select, text
from sqlalchemy.orm import Session

from catalog.adapters import BaseSpelling, DocumentRecord
from catalog.database import BaseModelRow, DocumentRow, store
from catalog.errors import NotFoundError, UsageError
from catalog.query import parse
from catalog.search import browse
from tests.db.rows import fill

INSTRUCT = "meta-llama/Llama-3.1-8B-Instruct"


def test_a_base_model_is_known_by_its_names_and_by_its_adapters(engine: Engine) -> None:
    fill(engine)
    with Session(engine) as session:
        (only,) = store.base_names(session)
        assert store.has_adapters(session, only)
        # The row was written with a number of its own, which PostgreSQL's sequence does not know.
        session.add(BaseModelRow(id=2, canonical="left/over"))
        if engine.dialect.name == "postgresql":
            session.execute(text("SELECT setval(pg_get_serial_sequence('base_model', 'id'), 2)"))
        store.sync_bases(session)
        store.add_spelling(session, BaseSpelling("mine/base", "mine/copy", "mirror"))
        names = store.base_names(session)
        assert {only, INSTRUCT, "mine/base"} <= set(names)
        assert "left/over" not in names, "it has neither a name nor an adapter"
        assert not store.has_adapters(session, INSTRUCT)
        assert store.find_base(session, "mine/COPY") == "mine/base"
        assert store.find_base(session, "LLM-Research/Meta-Llama-3.1-8B-Instruct") == INSTRUCT
        assert store.find_base(session, only) == only
        with pytest.raises(NotFoundError, match="nearest known names are mine/base, "):
            store.find_base(session, "mine/bass")


@pytest.mark.parametrize(
    "write",
    [
        lambda session, name: store.add_spelling(session, BaseSpelling("mine/base", name, "mirror")),
        lambda session, _: store.save_documents(session, [DocumentRecord("d" * 64, b"{}")]),
    ],
    ids=["base", "document"],
)
def test_two_sessions_write_the_same_row_at_once(
    engine: Engine, write: Callable[[Session, str], None]
) -> None:
    """A user names a base model, or fetches a card, that a crawl at work is about to meet."""
    if engine.dialect.name == "sqlite":
        pytest.skip("SQLite has one writer")
    with Session(engine) as one, Session(engine) as two, ThreadPoolExecutor(1) as threads:
        write(one, "mine/copy")
        one.flush()
        pid = two.scalar(select(func.pg_backend_pid()))

        def write_the_second() -> None:
            write(two, "mine/mirror")
            two.commit()

        second = threads.submit(write_the_second)
        blocked = select(func.cardinality(func.pg_blocking_pids(pid)) > 0)
        with engine.connect().execution_options(isolation_level="AUTOCOMMIT") as observer:
            while not (second.done() or observer.scalar(blocked)):
                pass
        one.commit()
        second.result()
    with Session(engine) as session:
        names = [row.canonical for row in store.spellings(session)]
        documents = session.scalar(select(func.count()).select_from(DocumentRow))
    assert (names, documents) in ((["mine/base"] * 2, 0), ([], 1))


def test_a_filter_asks_for_base_models_that_are_known(engine: Engine) -> None:
    with Session(engine) as session:
        store.sync_bases(session)
        for where in (f"base:{INSTRUCT}", "base:META-LLAMA/*", "-base:no/body", "base:*", "rank:4 | word"):
            browse.refuse_unknown_bases(session, parse(where))
        for where in ("base:no/body", f"base:{INSTRUCT},no/body", "rank:4 (base:no/bod* | word)"):
            with pytest.raises(NotFoundError, match="No base model is known as no/bod"):
                browse.refuse_unknown_bases(session, parse(where))
        with pytest.raises(UsageError, match=f"is another name of {INSTRUCT}; write base:{INSTRUCT}"):
            browse.refuse_unknown_bases(session, parse("base:NousResearch/Meta-Llama-3.1-8B-Instruct"))
