"""The filter language: what a text means, what it answers to nonsense, and its canonical text."""

from __future__ import annotations

from contextlib import suppress
from datetime import UTC, datetime
from typing import Any, get_args

import pytest
from hypothesis import given
from hypothesis import strategies as st

from catalog.adapters import EngineFacts, load_engines
from catalog.errors import UsageError
from catalog.fingerprints.sketches import Verdict
from catalog.query.fields import FIELDS, NAMES, fold, texts_in
from catalog.query.parser import EVERYTHING, MAX_DEPTH, MAX_LENGTH, MAX_TERMS, parse, to_text
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
from crawler.reading.cards import CardQuality

RANK = Between("rank", 8, 8)
ENGINES = load_engines()
RUNS = tuple(Runs("runs", engine) for engine in ENGINES)
ROW: dict[str, Any] = {
    "adapter": "Jo/Tweet-Emotion:v2",
    "name": "Tweet-Emotion:v2",
    "owner": "Jo",
    "commit": "c" * 40,
    "base": "meta-llama/Llama-3.1-8B-Instruct",
    "rank": 16,
    "alpha": None,
    "scaling": 0.5,
    "use_rslora": None,
    "targets": ["q_proj", "v_proj"],
    "modules": 64,
    "parameters": 6_815_744,
    "dtypes": ["BF16"],
    "norm": 2.5,
    "health": None,
    "partial": None,
    "license": "Apache-2.0",
    "uses": ["research", "publish", "commercial"],
    "verdict": "accepted",
    "reasons": ["no_card"],
    "created": datetime(2024, 8, 31, 23, 59, 59, tzinfo=UTC),
    "modified": datetime(2024, 9, 1, tzinfo=UTC),
    "downloads": 0,
    "likes": 3,
    "tags": ["PEFT", "region:us"],
    "engine_facts": EngineFacts(("use_dora",), 16),
    "datasets": ["tweet_eval"],
    "languages": [],
    "task_type": "CAUSAL_LM",
    "peft_type": "LORA",
    "card_quality": "informative",
    "library": "peft",
    "gated": None,
    "own_tags": ["Seed run"],
    "note": "ask the author",
    "hidden": False,
    "main": True,
    "card": "Detects joy,\nanger & 100% of irony. ÄRGER.",
}


@pytest.mark.parametrize(
    ("text", "query"),
    [
        ("", EVERYTHING),
        ("  \t\n", EVERYTHING),
        ("runs:VLLM", RUNS[1]),
        ("runs:vl*", RUNS[1]),
        ("runs:*", Or(RUNS)),
        ("-runs_unknown:vllm,peft", Not(Or(tuple(Runs("runs_unknown", ENGINES[n]) for n in (1, 0))))),
        ("rank:8", RANK),
        ("Rank:8", RANK),
        ("rank:8..8", RANK),
        ("rank:8..64", Between("rank", 8, 64)),
        ("rank:8..", Between("rank", 8, None)),
        ("rank:..64", Between("rank", None, 64)),
        ("parameters:1.5M..2B", Between("parameters", 1_500_000, 2_000_000_000)),
        ("params:16k", Between("parameters", 16_000, 16_000)),
        ("rank:1e1", Between("rank", 10, 10)),
        ("parameters:9223372036854775807", Between("parameters", 2**63 - 1, 2**63 - 1)),
        ("norm:-1..1e-3", Between("norm", -1.0, 0.001)),
        ("created:2024", Between("created", Period(2024), Period(2024))),
        ("created:2023-06..2024-08-15", Between("created", Period(2023, 6), Period(2024, 8, 15))),
        ("created:2024-08..2024", Between("created", Period(2024, 8), Period(2024))),
        ("rslora:yes", Flag("rslora", True)),
        ("main:False", Flag("main", False)),
        ("license:Apache-2.0", Equals("license", "apache-2.0")),
        ("targets:q_proj", Equals("target", "q_proj")),
        ("adapter:jo/x:sub/folder", Equals("adapter", "jo/x:sub/folder")),
        ("name:8..64", Equals("name", "8..64")),
        ("name:tweet*", Prefix("name", "tweet")),
        ('name:"tweet*"', Equals("name", "tweet*")),
        ('name:"a b"*', Prefix("name", "a b")),
        (r'"say \"hi\" \\ (a|b)"', Word(r'say "hi" \ (a|b)')),
        ("license:*", Present("license")),
        ("-license:*", Not(Present("license"))),
        ("tag:a,b", Or((Equals("tag", "a"), Equals("tag", "b")))),
        ("rank:8,16..32", Or((RANK, Between("rank", 16, 32)))),
        ('name:"a,b",c', Or((Equals("name", "a,b"), Equals("name", "c")))),
        ("-tag:a,b", Not(Or((Equals("tag", "a"), Equals("tag", "b"))))),
        ("Emotion", Word("emotion")),
        ('"rank:8"', Word("rank:8")),
        ('"OR"', Word("or")),
        ("or", Word("or")),
        ("a,b", Word("a,b")),
        ("a b c", And((Word("a"), Word("b"), Word("c")))),
        ("(a b) c", And((Word("a"), Word("b"), Word("c")))),
        ("a | b OR c", Or((Word("a"), Word("b"), Word("c")))),
        ("a|b", Or((Word("a"), Word("b")))),
        ("a b | c", Or((And((Word("a"), Word("b"))), Word("c")))),
        ("a (b | c)", And((Word("a"), Or((Word("b"), Word("c")))))),
        ("-(a b)", Not(And((Word("a"), Word("b"))))),
        ("--a", Not(Not(Word("a")))),
        ("a -b", And((Word("a"), Not(Word("b"))))),
        ("a-b", Word("a-b")),
        ("lr=1e-4", Word("lr=1e-4")),
        ("<unk>", Word("<unk>")),
        ("a->b", Word("a->b")),
        ("c++ = c", And((Word("c++"), Word("="), Word("c")))),
        ("chain and thought", And((Word("chain"), Word("and"), Word("thought")))),
        ('"rank>4"', Word("rank>4")),
        ('"or" rank:8', And((Word("or"), RANK))),
        ("health:Healthy", Equals("health", "healthy")),
        ("dtype:BF*", Prefix("dtype", "bf")),
    ],
)
def test_what_a_text_means(text: str, query: Query) -> None:
    assert parse(text) == query
    assert parse(to_text(query)) == query


@pytest.mark.parametrize(
    ("text", "place", "words"),
    [
        ("rnak:8", 1, "write rank"),
        ("runs:vlm", 6, "write vllm; it is one of peft, vllm, sglang"),
        ("runs:x*", 6, "it is one of peft"),
        ("runs:", 6, "runs has no value"),
        ("runs=vllm", 5, "write runs:vllm"),
        ("rank:8 licensse:mit", 8, "write license"),
        ("https://x", 1, "the fields are adapter, name, owner"),
        ("rank:64..8", 6, "write 8..64"),
        ("norm:1e3..0.5", 6, "write 0.5..1000"),
        ("created:2024..2023-12", 9, "write 2023-12..2024"),
        ("rank: 8", 6, "directly after the colon"),
        ("rank:8,", 8, "rank has no value"),
        ('name:""', 6, "name has no value"),
        ("rank:eight", 6, "a number such as 8"),
        ("rank:>=8", 6, "8.."),
        ("rank:1.5", 6, "whole numbers"),
        ("rank:٨", 6, "a number such as 8"),
        ("parameters:9223372036854775808", 12, "whole numbers up to"),
        ("rank:1e999", 6, "whole numbers up to"),
        ("rank:1e9999999", 6, "a number such as 8"),
        ("norm:1e999", 6, "1.8e308"),
        ("rank:..", 6, "at least one end"),
        ("rank:8*", 6, "may only end a text"),
        ("created:2024-13", 9, "a date such as 2024"),
        ("created:2023-02-29", 9, "a date such as 2024"),
        ("created:0000", 9, "a date such as 2024"),
        ("rslora:maybe", 8, "yes or no"),
        ("verdict:refused", 9, "one of accepted, skipped"),
        ("verdict:refused*", 9, "one of accepted, skipped"),
        ("health:healty", 8, "write healthy; it is one of healthy, empty"),
        ("dtype:bfloat16", 7, "bf16"),
        ("license=mit", 8, "write license:mit, or"),
        ("licens=mit", 7, "write license:mit, or"),
        ('x license = "my own"', 11, 'write license:"my own", or'),
        ("license!=mit", 8, "write -license:mit, or"),
        ("target=q_proj,v*", 7, "write target:q_proj,v*, or"),
        ("name~x", 5, "write name:x*, or"),
        ("rslora==yes", 7, "write rslora:yes, or"),
        ("rank>4", 5, "write rank:5.., or"),
        ("rank >= 4", 6, "write rank:4.., or"),
        ("rank=>4", 5, "write rank:4.., or"),
        ("rank≥4", 5, "write rank:4.., or"),
        ("rank<8", 5, "write rank:..7, or"),
        ("rank<=8", 5, "write rank:..8, or"),
        ("-rank==8", 6, "write rank:8, or"),
        ("rank<>8", 5, "write -rank:8, or"),
        ("size>16k", 5, "write parameters:16001.., or"),
        ("norm>1.5", 5, "write norm:1.5.., or"),
        ("norm<1e3", 5, "write norm:..1000, or"),
        ("created>2024", 8, "write created:2025.., or"),
        ("created<2024-01", 8, "write created:..2023-12, or"),
        ("created>2024-12-31", 8, "write created:2025-01-01.., or"),
        ("created<=2024", 8, "write created:..2024, or"),
        ("created>9999", 8, "such as created:2024.."),
        ("rank>", 5, "such as rank:8..64"),
        ("rank>eight", 5, "such as rank:8..64"),
        ("rank>8..64", 5, "such as rank:8..64"),
        ("rank : 8", 6, "write rank:8, or"),
        ("4<rank<8", 1, "such as rank:8..64"),
        ("stars>4", 6, "no field is called 'stars' (the fields are adapter"),
        ("a!=b", 2, "no field is called 'a'"),
        ("a rank:8 && b", 10, "leave it out"),
        ("rank:8 and license:mit", 8, "leave it out"),
        ("license:mit or (a b)", 13, "write | or OR"),
        ("not -rank:8", 1, "write - directly"),
        ("quality:good", 9, "absent, template, generated"),
        ("name:a*b", 6, "put it at the end"),
        ("a fo*", 3, "words match parts of words"),
        ("a AND b", 3, "leave it out"),
        ("a NOT b", 3, "write - directly before"),
        ("(a", 1, "put a ) at the end"),
        ("x (a (b)", 3, "put a ) at the end"),
        ("a)", 2, "leave it out"),
        ("()", 2, "write one"),
        ("a |", 4, "write one"),
        ("| a", 1, "write one"),
        ("a OR", 5, "write one"),
        ("- a", 1, "directly before a term"),
        ("a -", 3, "directly before a term"),
        ('"a', 1, 'put a " after'),
        ('""', 1, "between the quotes"),
        ("foo(bar)", 4, "quotes"),
        ('"a"b', 4, "quotes"),
        ("name:foo(bar)", 9, "quotes"),
    ],
)
def test_nonsense_is_answered_with_its_place_and_what_would_be_right(
    text: str, place: int, words: str
) -> None:
    with pytest.raises(UsageError) as caught:
        parse(text)
    message = str(caught.value)
    assert f"at character {place}:" in message
    assert words in message
    assert "\n" not in message
    assert message.endswith(".")


@pytest.mark.parametrize(
    "text",
    [
        pytest.param("x" * 10_000_000, id="ten-megabytes"),
        pytest.param("x" * (MAX_LENGTH + 1), id="one-too-long"),
        pytest.param("(" * (MAX_DEPTH + 1) + "x" + ")" * (MAX_DEPTH + 1), id="one-too-deep"),
        pytest.param("-" * 9_000 + "x", id="many-negations"),
        pytest.param("x " * (MAX_TERMS + 1), id="one-word-too-many"),
        pytest.param("rank:" + ",".join(["8"] * (MAX_TERMS + 1)), id="one-value-too-many"),
        pytest.param("rank:" + "9" * 9_000, id="a-long-number"),
        pytest.param("é" * 100 + ":x", id="a-long-name"),
    ],
)
def test_what_is_too_large_is_a_short_sentence(text: str) -> None:
    with pytest.raises(UsageError) as caught:
        parse(text)
    assert len(str(caught.value)) < 600


def test_the_largest_filters_are_read() -> None:
    assert parse("x" * MAX_LENGTH) == Word("x" * MAX_LENGTH)
    assert parse("(" * MAX_DEPTH + "x" + ")" * MAX_DEPTH) == Word("x")
    query = parse("x " * MAX_TERMS)
    assert isinstance(query, And)
    assert len(query.parts) == MAX_TERMS


@pytest.mark.parametrize(
    ("text", "matches"),
    [
        ("", True),
        ("runs:peft", True),
        ("runs:vllm", False),
        ("runs_unknown:vllm", False),
        ("rank:16", True),
        ("rank:17..", False),
        ("rank:..16", True),
        ("alpha:0..", False),
        ("-alpha:0..", True),
        ("-alpha:*", True),
        ("alpha:*", False),
        ("downloads:*", True),
        ("downloads:0", True),
        ("parameters:6.8M..6.9M", True),
        ("rslora:yes", False),
        ("rslora:no", False),
        ("gated:no", True),
        ("gated:*", True),
        ("created:2024-08", True),
        ("created:..2024-08-30", False),
        ("modified:2024-09-01", True),
        ("modified:..2024-08", False),
        ("license:APACHE-2.0", True),
        ("license:apache", False),
        ("license:apache*", True),
        ("owner:jo", True),
        ("name:tweet*", True),
        ("name:jo*", False),
        ("target:v_proj,o_proj", True),
        ("target:o_proj", False),
        ("-target:o_proj", True),
        ("-target:v_proj", False),
        ("language:*", False),
        ("reason:no_card verdict:accepted", True),
        ("tag:peft", True),
        ("emotion", True),
        ("region:us", None),
        ('"region:us"', True),
        ("JOY", True),
        ('"joy, anger"', False),
        ("100%", True),
        ("100_", False),
        ("ärger", False),
        ("Ärger", True),
        ("joy -anger", False),
        ("joy -sadness", True),
        ("sadness | joy", True),
    ],
)
def test_a_row_matches(text: str, matches: bool | None) -> None:
    if matches is None:
        with pytest.raises(UsageError, match="No field is called 'region'"):
            parse(text)
    else:
        assert parse(text).match(ROW) is matches


def test_only_a_to_z_lose_their_case() -> None:
    assert fold("ABCXYZ ÄÖÜ \u0130\u212a\u017f") == "abcxyz ÄÖÜ \u0130\u212a\u017f"


def test_texts_are_those_that_yaml_meant() -> None:
    assert texts_in(["a", 1, None, False, True, ["b"], {"c": "d"}, ""]) == ("a", "no", "")
    assert texts_in("a") == ("a",)
    assert [texts_in(value) for value in (None, 1, True, {"a": "b"}, [])] == [(), (), (), (), ()]


def test_a_period_ends_where_the_next_begins() -> None:
    utc = UTC
    assert Period(2023).start == datetime(2023, 1, 1, tzinfo=utc)
    assert Period(2023).end == datetime(2024, 1, 1, tzinfo=utc)
    assert Period(2023, 12).end == datetime(2024, 1, 1, tzinfo=utc)
    assert Period(2024, 2).end == datetime(2024, 3, 1, tzinfo=utc)
    assert Period(2024, 2, 29).end == datetime(2024, 3, 1, tzinfo=utc)
    assert [Period(9999).end, Period(9999, 12).end, Period(9999, 12, 31).end] == [None] * 3
    assert parse("created:..9999").match(ROW)


def test_every_field_is_described_and_named_once() -> None:
    for name, field in FIELDS.items():
        assert field.help.endswith(".")
        assert field.kind_in_words
        assert NAMES[name] == name == fold(name)
        assert field.values(ROW) == field.values(dict(ROW))
    assert len(NAMES) == sum(1 + len(field.aliases) for field in FIELDS.values())


def test_choices_may_be_given_for_a_field_without_them() -> None:
    choices = {"reason": ["zero_update", "no_card"], "verdict": ["x"]}
    assert parse("reason:zero_update,no*", choices) == parse("reason:zero_update,no*")
    assert parse("verdict:accepted", choices) == Equals("verdict", "accepted")
    with pytest.raises(UsageError, match="character 8: write zero_update; it is one of zero_update, no_card"):
        parse("reason:zero_updates", choices)


@given(st.text('ranklicense=<>!~:≥ 0129"()|.-', max_size=24))
def test_any_comparison_is_read_or_answered(text: str) -> None:
    with suppress(UsageError):
        assert parse(to_text(parse(text))) == parse(text)


@pytest.mark.parametrize(
    ("text", "right"),
    [
        ("license in (mit, 'apache 2')", '9: write license:mit,"apache 2"'),
        ("rank between 4 and 8", "6: write rank:4..8"),
        ("rank:8 Rank IS NOT 4", "13: write -rank:4"),
        ("license not in (mit)", "13: write -license:mit"),
        ("rank is not null", "6: write rank:*"),
        ("rank is null", "6: write -rank:*"),
        ("(name contains x)", "7: write name:x"),
        ("license in (", "9: write license: and a value"),
    ],
)
def test_a_comparison_in_words_is_answered_with_what_is_right(text: str, right: str) -> None:
    with pytest.raises(UsageError) as caught:
        parse(text)
    assert f"is not an operator at character {right}" in str(caught.value)


@pytest.mark.parametrize("text", ["trained in english", "name is", 'rank "in" 4', 'license "is" mit "in" x'])
def test_the_same_words_are_texts_elsewhere(text: str) -> None:
    assert parse(to_text(parse(text))) == parse(text)


def test_the_words_for_health_are_those_of_the_fingerprint() -> None:
    assert FIELDS["health"].choices == get_args(Verdict)


def test_the_qualities_are_those_that_the_crawler_knows() -> None:
    assert FIELDS["quality"].choices == tuple(quality.value for quality in CardQuality)


def test_a_query_joins_what_can_be_told_apart() -> None:
    with pytest.raises(ValueError, match="two parts or more"):
        Or(())
    with pytest.raises(ValueError, match="two parts or more"):
        And((RANK,))
    for join in (lambda: And((EVERYTHING, Or((EVERYTHING, RANK)))), lambda: Not(EVERYTHING)):
        with pytest.raises(ValueError, match="stands alone"):
            join()


TEXTS = st.text(min_size=1, max_size=8).filter(lambda text: "\x00" not in text).map(fold)
LOOKALIKES = st.sampled_from(["or", "-a", "a b", 'a"b', "a\\", "*", "8..64", "a:b", "(", "a,b", "|", "--"])
FOLDED = st.one_of(TEXTS, LOOKALIKES, st.text("abc_-./*%", min_size=1, max_size=5))
TEXT_FIELDS = st.sampled_from(sorted(f.name for f in FIELDS.values() if f.kind == "text" and not f.choices))
WHOLE = st.integers(-(2**63) + 1, 2**63 - 1)
REAL = st.floats(allow_nan=False, allow_infinity=False)
DATES = st.dates().flatmap(
    lambda day: st.sampled_from(
        [Period(day.year), Period(day.year, day.month), Period(day.year, day.month, day.day)]
    )
)


def ranges(fields: list[str], ends: st.SearchStrategy[Any], key: Any) -> st.SearchStrategy[Query]:
    two = st.lists(ends, min_size=2, max_size=2).map(lambda pair: sorted(pair, key=key))
    shapes = st.one_of(two, ends.map(lambda end: [end, None]), ends.map(lambda end: [None, end]))
    return st.builds(lambda field, pair: Between(field, *pair), st.sampled_from(fields), shapes)


TERMS: st.SearchStrategy[Query] = st.one_of(
    st.builds(Word, FOLDED),
    st.builds(Equals, TEXT_FIELDS, FOLDED),
    st.builds(Prefix, TEXT_FIELDS, FOLDED),
    st.builds(Present, st.sampled_from(sorted(f.name for f in FIELDS.values() if f.kind != "engine"))),
    st.builds(Flag, st.sampled_from(["rslora", "gated", "main"]), st.booleans()),
    st.builds(Equals, st.just("verdict"), st.sampled_from(["accepted", "skipped"])),
    ranges(["rank", "parameters"], WHOLE, None),
    ranges(["norm", "alpha"], REAL, None),
    ranges(["created", "modified"], DATES, lambda period: period.start),
)


def joined(parts: st.SearchStrategy[Query]) -> st.SearchStrategy[Query]:
    several = st.lists(parts, min_size=2, max_size=3).map(tuple)
    return st.one_of(st.builds(Not, parts), st.builds(And, several), st.builds(Or, several))


QUERIES = st.recursive(TERMS, joined, max_leaves=8)


@given(QUERIES)
def test_the_canonical_text_gives_the_query_back(query: Query) -> None:
    text = to_text(query)
    assert parse(text) == query
    assert to_text(parse(text)) == text


@given(st.text(alphabet=st.sampled_from('ab:.,-|()"\\* 8OR\x00é'), max_size=30))
def test_any_text_is_a_query_or_a_sentence(text: str) -> None:
    try:
        query = parse(text)
    except UsageError:
        return
    assert parse(to_text(query)) == query
