"""Candidates that are read as far as a selection needs them are those of reading all, on both databases."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from sqlalchemy import Engine, event, insert, text, update
from sqlalchemy import select as select_columns
from sqlalchemy.orm import Session

from catalog.adapters import objection
from catalog.database import (
    Adapter,
    AdapterReason,
    Annotation,
    BaseModelRow,
    Repository,
    has_reason,
)
from catalog.errors import LoradexError, UsageError
from catalog.files import BlobStore
from catalog.query import parse
from catalog.search import Subject, from_visible, of_base
from catalog.search.likeness import adapters_by_key, measured_keys
from catalog.search.vectors import SPACES
from catalog.selection import Question, Sources, candidates, select
from catalog.selection.limits import by_rank, random_order
from catalog.selection.pinning import CandidateRow
from catalog.selection.strategies import STRATEGIES
from tools.bench.search import Drawn
from tools.generated_catalog import fill

COUNT = 240
REFUSING = ("modules_to_save", "no_weights")
LAYERS = {5: ("lm_head",), 6: (), 7: ("embed_tokens", "lm_head"), 8: ("lm_head",)}
# Members of one repository, ranks and sizes that are level, no rank, and several owners.
CHANGES: dict[int, dict[str, Any]] = {
    **{number: {"rank": 64, "parameters": 7000} for number in range(20, 60)},
    **{number: {"rank": 64, "parameters": None} for number in range(60, 65)},
    **{number: {"rank": None} for number in range(65, 70)},
    **{number: {"subfolder": f"step-{number}"} for number in range(70, 80)},
    **{number: {"license": "cc-by-nd-4.0", "base_model_id": None} for number in range(80, 84)},
}
QUESTIONS: dict[str, dict[str, Any]] = {
    "plain": {},
    "another seed": {"seed": 3},
    "one of an owner": {"per_owner": 1},
    "one of a family": {"per_family": 1},
    "few parameters": {"parameters": 200_000},
    "without an owner, an adapter and a repository": {"exclude": ("owner1", "x/y-70:step-70", "x/y-20")},
    "without a name that is not there": {"exclude": ("x/y-20", "zebra", "nobody")},
    "a filter": {"where": "rank:16..64 -license:mit"},
    "hidden ones": {"where": "hidden:yes"},
    "another base model": {"base": "acme/small"},
    "layers": {"without": ("lm_head",)},
    "to publish": {"use": "publish"},
    "to sell, of others": {"use": "commercial", "exclude": ("owner1",), "per_owner": 2},
    "one of equal files": {"distinct": "file"},
    "one of equal weights": {"distinct": "delta"},
    "more than there are": {"count": 1000},
    "more owners than there are": {"count": 100, "per_owner": 1},
    "nothing left": {"where": "rank:16", "exclude": ("owner1",), "use": "commercial", "base": "acme/other"},
    "all": {"count": None, "per_owner": 3},
}
BY: dict[str, dict[str, Any]] = {
    "random": {},
    "rank": {},
    "text": {"text": "ba de"},
    "adapter": {"like": "one"},
}


@pytest.fixture
def sources(engine: Engine, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Sources]:
    """A catalog of four base models, some of whose adapters are refused, hidden, or alike."""
    fill(engine, COUNT, Drawn())
    with Session(engine) as session:
        for number, values in CHANGES.items():
            session.execute(update(Adapter).where(Adapter.id == number).values(values))
        for number in (20, *range(70, 80)):
            name = {"name": f"x/y-{number}", "owner": "x"}
            session.execute(update(Repository).where(Repository.id == number).values(name))
        copied = session.get_one(Adapter, 90)
        values = {"weights_digest": copied.weights_digest, "files": copied.files}
        session.execute(update(Adapter).where(Adapter.id.in_((91, 92))).values(values))
        reasons = {**dict.fromkeys(LAYERS, "modules_to_save"), 9: "no_weights", 10: "no_weights"}
        rows = [
            {"adapter_id": id_, "reason": reason, "position": 0, "detail": ""}
            for id_, reason in reasons.items()
        ]
        session.execute(insert(AdapterReason), rows)
        session.add(Annotation(hub_id=f"{11:024x}", subfolder="", note=None, hidden=True))
        session.commit()
        embedder = Drawn()
        monkeypatch.setattr("catalog.selection.pinning._layers_of", lambda *_: LAYERS)
        generator = np.random.default_rng(1)
        vectors = {kind: generator.normal(size=space.size).astype("<f4") for kind, space in SPACES.items()}
        yield Sources(
            session=session,
            refusing=REFUSING,
            index=tmp_path / "index",
            blobs=BlobStore(tmp_path),
            embedder=lambda: embedder,
            subject=lambda _: Subject("one", "meta-llama/Llama-3.1-8B-Instruct", vectors),
        )


def answer(question: Question, sources: Sources) -> object:
    """The pool's bytes and the counts of what was left out, or the sentence of the error."""
    try:
        selection = select(question, sources)
    except LoradexError as error:
        return type(error), str(error)
    return selection.pool.canonical(), dict(selection.left_out)


def test_the_head_of_a_ranking_makes_the_pool_that_the_whole_makes(
    sources: Sources, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = {
        (by, name): Question(**{"name": "pool", "by": by, "count": 6, **BY[by], **question})
        for by in BY
        for name, question in QUESTIONS.items()
    }
    heads = {key: answer(question, sources) for key, question in asked.items()}
    for by in BY:
        monkeypatch.setitem(STRATEGIES, by, replace(STRATEGIES[by], head=None))
    for key, question in asked.items():
        assert answer(question, sources) == heads[key], key
    sentences = {
        value[1] for value in heads.values() if isinstance(value, tuple) and isinstance(value[0], type)
    }
    assert "nobody is not among the adapters to select from; leave it out of `exclude`." in sentences


def test_candidates_are_narrowed_as_their_rows_would_be(sources: Sources) -> None:
    found = candidates(sources.session, REFUSING, without=("lm_head",))
    every = found.rows
    assert {5, 8} <= {row.id for row in every}
    assert {6, 7, 9, 10, 11}.isdisjoint(row.id for row in every)
    assert len(every) == COUNT - 5 == len(found)
    assert found.groups == Counter((row.base, row.license) for row in every)
    assert found.base == "meta-llama/Llama-3.1-8B-Instruct"
    of_base = found.of_base(found.base)
    rows = [row for row in every if row.base == found.base]
    assert of_base.rows == rows
    excluded = {"owner1", "x/y-70:step-70", "x/y-20"}
    excluded = {name for name in excluded if any(name in names_of(row) for row in rows)}
    assert len(excluded) > 1
    left = of_base.without(excluded)
    rows = [row for row in rows if excluded.isdisjoint(names_of(row))]
    assert (left.rows, len(left)) == (rows, len(rows))
    with pytest.raises(UsageError, match="nobody is not among"):
        of_base.without({*excluded, "zebra", "nobody"})
    for use in ("research", "publish", "commercial"):
        usable = left.usable_for(use)
        kept = [row for row in rows if objection(row.license, use) is None]
        assert (usable.rows, len(usable)) == (kept, len(kept))
        ids = {row.id for row in kept}
        assert usable.among() == ids
        assert usable.among(range(5, 100)) == ids.intersection(range(5, 100))
        for count in (1, 5, 30, len(kept), 1000):
            head = [ranked.candidate for ranked in random_order(kept, 7)[:count]]
            assert usable.random_head(7, count) == head
            assert by_rank(usable.rank_head(count), count) == by_rank(kept, count)
        assert list(usable.named([row.adapter for row in kept[:3]] + ["nobody"]).values()) == kept[:3]
    everybody = found.usable_for("publish")
    assert everybody.rows == [row for row in every if objection(row.license, "publish") is None]


def names_of(row: CandidateRow) -> set[str]:
    return {row.adapter, row.repository, row.owner}


def test_a_head_reads_the_rows_of_its_members_alone(
    sources: Sources, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And of others at hand, not those of all candidates."""
    read: list[int] = []
    make = CandidateRow._make
    monkeypatch.setattr(CandidateRow, "_make", classmethod(lambda _, values: read.append(1) or make(values)))
    for by in ("random", "rank"):
        read.clear()
        select(Question("pool", by, 2), sources)
        assert len(read) < COUNT / 3, by


def test_many_adapters_of_a_base_model_are_read_in_the_order_of_their_rows(sources: Sources) -> None:
    """The index of base models has them in the order of their digests; it finds those of a rare one."""
    session = sources.session
    everybody = from_visible(select_columns(Adapter.id))
    for base, indexed in (("meta-llama/Llama-3.1-8B-Instruct", False), ("acme/other", True)):
        statement = of_base(session, everybody, base)
        plain = session.scalars(everybody.where(BaseModelRow.canonical == base)).all()
        assert sorted(session.scalars(statement)) == sorted(plain) != []
        if session.get_bind().dialect.name == "sqlite":
            sql = str(statement.compile(session.connection(), compile_kwargs={"literal_binds": True}))
            plan = session.execute(text(f"EXPLAIN QUERY PLAN {sql}")).all()
            assert any("ix_adapter_vectors" in row[3] for row in plan) is indexed


def test_candidates_of_some_names_are_found_by_the_index_of_repositories(sources: Sources) -> None:
    found = candidates(sources.session, REFUSING)
    statements: list[tuple[str, Any]] = []
    connection = sources.session.connection()
    if connection.dialect.name != "sqlite":
        pytest.skip("PostgreSQL reads a small table without its index")
    event.listen(connection, "before_cursor_execute", lambda *call: statements.append(call[2:4]))
    names = [row.adapter for row in found.rows[:100]]
    statements.clear()
    assert list(found.named(names)) == names
    found.without(["owner1"])
    plans = [
        [row[3] for row in connection.exec_driver_sql(f"EXPLAIN QUERY PLAN {sql}", values)]
        for sql, values in list(statements)
    ]
    assert len(plans) == 2
    for plan, index in zip(plans, ("ix_repository_name", "ix_repository_owner"), strict=True):
        assert any(index in step for step in plan)
        assert any("ix_adapter_current (repository_id=? AND current=?)" in step for step in plan)


def test_few_adapters_are_looked_up_without_reading_all_that_are_current(sources: Sources) -> None:
    """Nor all of an index: most adapters are current."""
    session = sources.session
    if session.connection().dialect.name != "sqlite":
        pytest.skip("PostgreSQL reads a small table without its index")
    base = "meta-llama/Llama-3.1-8B-Instruct"
    session.add(Annotation(hub_id=f"{12:024x}", subfolder="", note=None, hidden=True))
    session.execute(update(Adapter).where(Adapter.id == 12).values(base_model_id=1))
    found = candidates(session, REFUSING).of_base(base)
    some = found.rows[:30]
    ids, keys = [row.id for row in some], [row.key for row in some]
    statements: list[tuple[str, Any]] = []
    connection = session.connection()
    event.listen(connection, "before_cursor_execute", lambda *call: statements.append(call[2:4]))
    assert found.with_ids(ids) == some
    assert found.among(ids) == set(ids)
    assert adapters_by_key(session, keys, REFUSING).keys() == set(keys)
    assert 12 in {id_ for id_, _ in measured_keys(session, REFUSING, base, hidden=True)} <= {11, 12}
    plans = [
        [row[3] for row in connection.exec_driver_sql(f"EXPLAIN QUERY PLAN {sql}", values)]
        for sql, values in list(statements)
    ]
    by_id, by_digest = "INTEGER PRIMARY KEY (rowid=?)", "INDEX ix_adapter_weights_digest (weights_digest=?)"
    by_repository = "INDEX ix_adapter_current (repository_id=? AND current=?)"
    for plan, index in zip(plans, (by_id, by_id, by_digest, by_repository), strict=True):
        assert [step for step in plan if " adapter " in step] == [f"SEARCH adapter USING {index}"]


def test_the_reasons_against_an_adapter_are_looked_up_at_once(sources: Sources) -> None:
    """Not each of the reasons that rules refuse by itself."""
    connection = sources.session.connection()
    if connection.dialect.name != "sqlite":
        pytest.skip("PostgreSQL reads a small table without its index")
    statements = [
        from_visible(select_columns(Adapter.id)).where(~has_reason(REFUSING)),
        from_visible(select_columns(Adapter.id)).where(parse("verdict:accepted").clause(REFUSING)),
    ]
    for statement in statements:
        assert sources.session.scalars(statement).all() == [
            id_ for id_ in range(1, COUNT + 1) if id_ not in (*LAYERS, 9, 10, 11)
        ]
        sql = str(statement.compile(connection, compile_kwargs={"literal_binds": True}))
        plan = [row[3] for row in connection.exec_driver_sql(f"EXPLAIN QUERY PLAN {sql}")]
        [step] = [step for step in plan if "adapter_reason" in step]
        assert step.endswith("(adapter_id=?)"), step


def test_a_random_order_of_few_candidates_is_that_of_all(sources: Sources) -> None:
    """Of few the statement of candidates is read, of many an index of all adapters."""
    for where in ("rank:8 license:mit", "hidden:no", "-license:mit"):
        found = candidates(sources.session, REFUSING, where=parse(where), without=("lm_head",))
        order = [ranked.candidate for ranked in random_order(found.rows, 3)]
        assert 0 < len(order) < COUNT
        for count in (1, 7, 400):
            assert found.random_head(3, count) == order[:count]
