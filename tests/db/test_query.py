"""A filter selects the same adapters in SQL as row by row, on both databases."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from datetime import UTC, date, datetime, timedelta
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from sqlalchemy import Engine as Database
from sqlalchemy import select
from sqlalchemy.orm import Session

from catalog.adapters import FACTS_VERSION, FEATURES, Engine, load_engines, verdict
from catalog.adapters.engine_rules import Rule
from catalog.database import (
    Adapter,
    AdapterReason,
    Annotation,
    AnnotationTag,
    BaseModelRow,
    Repository,
)
from catalog.query.fields import FIELDS, fold, query_row
from catalog.query.parser import MAX_DEPTH, MAX_LENGTH, MAX_TERMS, parse, to_text
from catalog.query.terms import (
    And,
    Between,
    Equals,
    Flag,
    Not,
    Or,
    Period,
    Prefix,
    Present,
    Query,
    Runs,
    Word,
)

REFUSING = {"zero_update", "licence_conflict"}
LETTERS = "Aa\u00c4\u00e4\u0130i\u212aK\u017fs%_/\\'*:"
NAMES = [
    *(
        "jo/Tweet-Emotion",
        "Jo/tweet_emotion",
        "jo/100%",
        "jo/a_b",
        "jo/axb",
        "jo/a/b",
        "jo/a\\b",
        "old-model",
    ),
    *("\u00c4rger/\u0130stanbul", "\u00e4rger/istanbul", "jo/\u212aelvin", "jo/kelvin", "jo/it's", "x-y/a*"),
]
TEXTS: list[str | None] = [
    None,
    "",
    "Apache-2.0",
    "apache-2.0",
    "mit",
    "100%",
    "a_b",
    "axb",
    "\u00c4",
    "\u00e4",
]
CARDS = ["", "Detects joy,\nand 100% of anger.", "\u00c4RGER about JOY", "a_b a/b a\\b", "LoRA" * 200]
# Whatever a front matter may hold where a list of texts belongs.
LISTS: list[Any] = [
    *(
        None,
        [],
        "alpha",
        ["alpha", "Beta"],
        ["a_b", "axb", ""],
        [None, 1, 2.5, True, False, "x"],
        False,
        True,
        0,
    ),
    *(
        {"alpha": "Beta"},
        {"a": {"b": "alpha"}},
        [["alpha"], {"x": "alpha"}],
        "",
        ["100%"],
        [LETTERS],
        "no",
        ["NO"],
    ),
]
FRONTS: list[Any] = [[], ["datasets"], "datasets", 1, {}, {"datasets": None}]
FRONTS += [{"datasets": one, "language": other} for one, other in zip(LISTS, reversed(LISTS), strict=True)]
LICENSES = ["MIT", "cc-by-nc-4.0", "CC-BY-ND-4.0", "Unknown"]
DAYS = [(2024, 1, 1), (2024, 9, 1), (1, 1, 1), (2023, 12, 31)]
TIMES = [(2024, 8, 31, 23, 59, 59, 999_999), (9999, 12, 31, 23), (2024, 2, 29, 12, 30)]
INSTANTS = [None, *(datetime(*parts, tzinfo=UTC) for parts in (*DAYS, *TIMES))]
WHOLES = [None, 0, 1, 8, 16, 64, 2**53, 2**53 + 1, 2**63 - 1, -(2**63) + 1]
FEATURE_LISTS: list[Any] = [
    None,
    [],
    ["use_dora"],
    ["mixed_ranks", "saved_weights"],
    ["no such"],
    [*FEATURES],
]
ENGINES = (
    *load_engines(),
    Engine("never", "Never", "1", "x", (Rule("any", "refuses", "no"),)),
    Engine("tiny", "Tiny", "1", "x", (), rank_limit=16),
)
REALS = [None, 0.0, 0.1, 0.1 + 0.2, 0.3, 1.0, -1.5, 1e-300, 1.7e308, 16.0]


def fill(session: Session) -> None:
    """Adapters in which every odd value occurs, and odd values meet in changing company."""
    bases = [BaseModelRow(canonical=name) for name in ("meta-llama/Llama-3.1-8B-Instruct", "acme/a_b")]
    session.add_all(bases)
    every = zip(
        range(60),
        *(
            itertools.cycle(values)
            for values in (NAMES, TEXTS, CARDS, LISTS, FRONTS, INSTANTS, WHOLES, REALS)
        ),
        strict=False,
    )
    now = datetime(2026, 1, 1, tzinfo=UTC)
    for n, name, text, card, entries, front, instant, complete, real in every:
        repository = Repository(
            hub_id=f"id{n}", name=f"{name}{n if n >= len(NAMES) else ''}", owner=name.rpartition("/")[0],
            commit=f"{n:040x}", created_at=instant, last_modified=INSTANTS[-n % len(INSTANTS)],
            gated=[None, "auto", "manual"][n % 3], disabled=False, private=False, downloads=complete,
            likes=n, library=text, tags=LISTS[-n % len(LISTS)] or [], first_seen=now, last_seen=now,
        )  # fmt: skip
        adapter = Adapter(
            repository=repository, commit=f"{n:040x}", subfolder=["", "", "v1", "deep/er"][n % 4],
            main=n % 4 < 2, current=True, files=[], base_model=[None, *bases][n % 3], peft_type=text,
            task_type=TEXTS[-n % len(TEXTS)],
            rank=complete, alpha=real, scaling=REALS[-n % len(REALS)], use_rslora=[None, True, False][n % 3],
            targets=entries or [], modules=n, parameters=WHOLES[-n % len(WHOLES)], dtypes=["BF16"] * (n % 2),
            described_with="", norm=real, health=text, partial=entries, license=[text, *LICENSES][n % 5],
            engine_features=FEATURE_LISTS[n % 6], engine_rank=[None, 8, 16, 600][n % 4],
            engine_whole=[None, True, False][n % 3 if n < 18 else 1],
            engine_version=[FACTS_VERSION, FACTS_VERSION, None, 0, FACTS_VERSION][n % 5],
            training={},
            card_quality=FIELDS["quality"].choices[n % 5], card_text=card, card_front=front,
        )  # fmt: skip
        reasons = ["no_card", "zero_update", "Licence_Conflict", "licence_conflict"][: n % 5]
        adapter.reasons = [AdapterReason(reason=r, position=i, detail="") for i, r in enumerate(reasons)]
        session.add(adapter)
        place = {"hub_id": f"id{n}", "subfolder": adapter.subfolder}
        session.add_all(AnnotationTag(tag=tag, **place) for tag in ["Seed run", "a_b"][: n % 3])
        if n % 4:
            session.add(Annotation(note=["ask", None, "Ask 100%"][n % 4 - 1], hidden=n % 4 != 1, **place))
    session.commit()


def by_sql(session: Session, query: Query) -> set[int]:
    selected = select(Adapter.id).join(Adapter.repository).where(query.clause(REFUSING))
    return set(session.scalars(selected))


def rows(session: Session) -> dict[int, dict[str, Any]]:
    return {adapter.id: query_row(adapter, REFUSING) for adapter in session.scalars(select(Adapter))}


def by_rows(result: dict[int, dict[str, Any]], query: Query) -> set[int]:
    return {key for key, row in result.items() if query.match(row)}


def some(values: Sequence[Any]) -> st.SearchStrategy[Any]:
    return st.sampled_from([value for value in values if value is not None])


PIECES = st.one_of(
    some(
        [text for text in TEXTS if text]
        + NAMES
        + ["alpha", "beta", "no", "bf16", "zero_update", "v1", "deep/er"]
    ),
    st.text(LETTERS, min_size=1, max_size=3),
    some(
        [
            "acme/",
            "meta-llama/llama-3.1-8b-instruct",
            "jo/tweet-emotion",
            "jo/100%:v1",
            "tweet-emotion",
            "joy",
        ]
    ),
).map(fold)
MOMENTS = st.one_of(some(INSTANTS), st.dates(date(2023, 1, 1), date(2025, 1, 1))).flatmap(
    lambda d: some([Period(d.year), Period(d.year, d.month), Period(d.year, d.month, d.day)])
)


def ends(kind: str) -> st.SearchStrategy[Any]:
    if kind == "date":
        return MOMENTS
    if kind == "whole":
        return some([*WHOLES, 2**53 - 1, 9, 63])
    return st.one_of(some(REALS), st.floats(-2, 2))


def terms(name: str) -> st.SearchStrategy[Query]:
    field = FIELDS[name]
    if field.kind == "engine":
        return st.builds(Runs, st.just(name), some(ENGINES))
    present = st.builds(Present, st.just(name))
    if field.kind == "flag":
        return st.one_of(present, st.builds(Flag, st.just(name), st.booleans()))
    if field.kind == "text":
        texts = st.one_of(some(field.choices), PIECES) if field.choices else PIECES
        return st.one_of(present, *(st.builds(kind, st.just(name), texts) for kind in (Equals, Prefix)))
    low_or_none = st.one_of(st.none(), ends(field.kind))
    bounded = st.tuples(low_or_none, low_or_none).filter(lambda pair: pair != (None, None))
    return st.one_of(present, bounded.map(lambda pair: Between(name, *pair)))


def joined(parts: st.SearchStrategy[Query]) -> st.SearchStrategy[Query]:
    several = st.lists(parts, min_size=2, max_size=3).map(tuple)
    return st.one_of(st.builds(Not, parts), st.builds(And, several), st.builds(Or, several))


LEAVES = st.one_of(some(sorted(FIELDS)).flatmap(terms), st.builds(Word, PIECES))
QUERIES = st.recursive(LEAVES, joined, max_leaves=6)
MANY = settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.too_slow])


@pytest.mark.slow
def test_both_faces_select_the_same(engine: Database) -> None:
    with Session(engine) as session:
        fill(session)
        result = rows(session)

        @MANY
        @given(QUERIES)
        def agree(query: Query) -> None:
            assert by_sql(session, query) == by_rows(result, query), to_text(query)

        agree()


def value_query(name: str, value: Any) -> Query:
    """The term that asks for one value of a field."""
    kind = FIELDS[name].kind
    if kind == "text":
        return Equals(name, fold(value))
    if kind == "flag":
        return Flag(name, value)
    end = Period(value.year, value.month, value.day) if kind == "date" else value
    return Between(name, end, end)


def test_every_field_has_the_same_values_in_both_faces(engine: Database) -> None:
    """Every value that occurs is asked for by itself: rows have it in both faces or in none."""
    with Session(engine) as session:
        fill(session)
        result = rows(session)
        for name, field in FIELDS.items():
            if field.kind == "engine":
                continue
            by_value: dict[Query, set[int]] = {}
            for key, row in result.items():
                for value in field.values(row):
                    if value != "":
                        by_value.setdefault(value_query(name, value), set()).add(key)
            assert by_value, name
            for query, having in list(by_value.items())[:12]:
                assert by_sql(session, query) == having, to_text(query)
                assert by_sql(session, Not(query)) == set(result) - having, to_text(query)
            having = set().union(*by_value.values())
            assert by_sql(session, Not(Present(name))) == set(result) - having, name


def test_engines_are_asked_by_their_rules_in_both_faces(engine: Database) -> None:
    """Of each adapter an engine runs it, does not, or that is not known, as `verdict` says of its facts."""
    with Session(engine) as session:
        fill(session)
        result = rows(session)
        answers = set()
        for one in ENGINES:
            by_state = {state: by_rows(result, Runs(state, one)) for state in ("runs", "runs_unknown")}
            for state, keys in by_state.items():
                assert by_sql(session, Runs(state, one)) == keys, (state, one.name)
                assert by_sql(session, Not(Runs(state, one))) == set(result) - keys
            for key, row in result.items():
                answer = verdict(one, row["engine_facts"]).runs
                answers.add((one.name, answer))
                assert (key in by_state["runs"], key in by_state["runs_unknown"]) == (
                    answer is True,
                    answer is None,
                )
        assert {("never", False), ("vllm", True), ("vllm", False), ("vllm", None), ("tiny", False)} <= answers
        text = "runs:v*,tiny -runs_unknown:vllm"
        assert by_sql(session, parse(text, engines=ENGINES)) == by_rows(result, parse(text, engines=ENGINES))


@pytest.mark.parametrize(
    ("text", "names"),
    [
        ("rank:8..64", {"b", "c"}),
        ("-rank:8..64", {"a", "d"}),
        ("-rank:*", {"a"}),
        ("rank:16 | license:mit", {"b", "d"}),
        ("target:q_proj", {"b", "c"}),
        ("target:qxproj", set()),
        ("target:q_*", {"b", "c"}),
        ("target:_*", set()),
        ("license:m_t*", set()),
        ("license:%*", set()),
        ("license:mi*", {"d"}),
        ("dataset:tweet_eval", {"b"}),
        ("language:no", {"c"}),
        ("verdict:skipped", {"d"}),
        ("verdict:accepted reason:*", {"c"}),
        ("base:acme/*", {"b"}),
        ("-base:*", {"a", "c", "d"}),
        ("created:2024-08", {"b"}),
        ("created:2024-09..", {"c"}),
        ("-created:*", {"a", "d"}),
        ("gated:yes", {"c"}),
        ("50%", {"d"}),
        ("5_%", set()),
        ("JOY", {"b", "d"}),
        ("adapter:jo/d:sub", {"d"}),
        ("name:D:SUB", {"d"}),
        ("-owner:jo", set()),
        ("parameters:1M..", {"c"}),
        ("main:no", {"d"}),
        ("use:research", {"a", "b", "c", "d"}),
        ("use:publish", {"c", "d"}),
        ("use:COMMERCIAL", {"d"}),
        ("-use:commercial use:publish,commercial", {"c"}),
    ],
)
def test_what_a_filter_selects(engine: Database, text: str, names: set[str]) -> None:
    now = datetime(2024, 8, 31, 23, 59, 59, 999_999, tzinfo=UTC)
    by_name: dict[str, dict[str, Any]] = {
        "a": {},
        "b": {
            "rank": 16,
            "targets": ["q_proj"],
            "card_front": {"datasets": "tweet_eval"},
            "card_text": "joy",
        },
        "c": {
            "rank": 64,
            "targets": ["Q_PROJ"],
            "card_front": {"language": False},
            "parameters": 1_000_000,
            "license": "cc-by-nc-4.0",
        },
        "d": {"rank": 128, "license": "MIT", "card_text": "50% off", "subfolder": "sub", "main": False},
    }
    of_repository: dict[str, dict[str, Any]] = {
        "b": {"created_at": now},
        "c": {"created_at": now + timedelta(microseconds=1), "gated": "manual"},
        "d": {"tags": ["Enjoy"]},
    }
    with Session(engine) as session:
        for name, given_ in by_name.items():
            default = {
                "hub_id": name,
                "name": f"jo/{name}",
                "owner": "jo",
                "disabled": False,
                "private": False,
            }
            requests = {"first_seen": now, "last_seen": now, "tags": []}
            repository = Repository(**(default | requests | of_repository.get(name, {})))
            plain: dict[str, Any] = {
                "subfolder": "",
                "main": True,
                "targets": [],
                "card_front": {},
                "card_text": "",
            }
            plain |= {"current": True, "files": [], "dtypes": [], "described_with": "", "training": {}}
            adapter = Adapter(
                repository=repository, commit="c" * 40, card_quality="absent", **(plain | given_)
            )
            session.add(adapter)
            if name == "b":
                adapter.base_model = BaseModelRow(canonical="acme/tiny")
            if name in "cd":
                reason = "zero_update" if name == "d" else "no_card"
                adapter.reasons = [AdapterReason(reason=reason, position=0, detail="")]
        session.commit()
        query = parse(text)
        keys = {row.id: row.repository.name.removeprefix("jo/") for row in session.scalars(select(Adapter))}
        assert {keys[key] for key in by_sql(session, query)} == names
        assert {keys[key] for key in by_rows(rows(session), query)} == names


@pytest.mark.parametrize(
    "text",
    [
        pytest.param("x" * MAX_LENGTH, id="the-longest-word"),
        pytest.param("\u00e9" * MAX_LENGTH, id="the-most-bytes"),
        pytest.param("%" * MAX_LENGTH, id="the-longest-pattern"),
        pytest.param("joy " * MAX_TERMS, id="the-most-words"),
        pytest.param(" | ".join(["-tag:x"] * MAX_TERMS), id="the-most-lists"),
        pytest.param("license:" + ",".join(["mit"] * MAX_TERMS), id="the-most-values"),
        pytest.param("-" * MAX_DEPTH + "tag:x", id="the-deepest"),
    ],
)
def test_databases_bear_the_largest_filters(engine: Database, text: str) -> None:
    with Session(engine) as session:
        fill(session)
        query = parse(text)
        assert by_sql(session, query) == by_rows(rows(session), query)


def test_a_filter_goes_with_a_query_that_joins_the_base_model(engine: Database) -> None:
    with Session(engine) as session:
        fill(session)
        query = parse("base:acme/a_b verdict:accepted")
        listed = select(Adapter.id).join(Adapter.repository).join(Adapter.base_model).join(Adapter.reasons)
        selected = listed.where(query.clause(REFUSING)).distinct()
        with_reasons = {key for key, row in rows(session).items() if row["reasons"] and query.match(row)}
        assert set(session.scalars(selected)) == with_reasons != set()
