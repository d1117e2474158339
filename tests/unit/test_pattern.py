"""Patterns of modules: the same answers as PEFT's regular expressions, in bounded time."""

from __future__ import annotations

import itertools
import re

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from catalog.adapters.patterns import Budget, Pattern
from catalog.errors import ConfigError

NAMES = (
    "model.layers.0.self_attn.q_proj",
    "model.layers.10.self_attn.q_proj",
    "model.layers.10.mlp.down_proj",
    "model.layers.1.self_attn.xq_proj",
    "lm_head",
    "q_proj",
)


def as_peft(pattern: str, name: str) -> bool:
    return re.match(rf"(.*\.)?({pattern})$", name) is not None


@pytest.mark.parametrize(
    "pattern",
    [
        "q_proj",
        "self_attn.q_proj",
        r"self_attn\.q_proj",
        "10.self_attn.q_proj",
        "layers.1.",
        "q.proj",
        r"model\.layers\.(0|10)\.self_attn\.(q|k)_proj",
        r".*\.q_proj",
        r"layers\.[0-9]+\.mlp\.(?:down|up)_proj",
        r"layers\.\d{2}\..*",
        r"layers\.\d{3,}\..*",
        r"^model.*proj",
        r"^q_proj$",
        r"(?P<kind>q|v)_proj",
        r"[^x]_proj",
        r"\bq_proj",
        r"(a|)q_proj",
        "",
        "x?q_proj",
    ],
)
def test_agrees_with_peft(pattern: str) -> None:
    for name in NAMES:
        assert Pattern(pattern).matches_suffix(name, Budget()) is as_peft(pattern, name), name


@pytest.mark.parametrize(
    "pattern",
    [
        pytest.param(r"(a+)+$", id="case-68-nested-quantifier"),
        pytest.param(r"(a|aa)+$", id="case-68-ambiguous-alternation"),
        pytest.param(r"(a|a?)+$", id="case-68-empty-branch"),
        pytest.param(r"(.*)*(.*)*(.*)*b", id="case-68-stars-of-stars"),
        pytest.param(r"((((a*)*)*)*)*b", id="case-68-deep-stars"),
    ],
)
def test_evil_patterns_are_answered_within_the_budget(pattern: str) -> None:
    budget = Budget()
    assert Pattern(pattern).matches_suffix("a" * 200 + "!", budget) is False
    assert budget.steps > 0


@pytest.mark.parametrize(
    "pattern",
    [
        pytest.param("((.?.?){900}){900}!", id="case-68-counted-optional"),
        pytest.param("(((a?){1000}){1000}){1000}", id="case-68-counted-empty"),
    ],
)
def test_what_the_budget_cannot_pay_is_refused(pattern: str) -> None:
    with pytest.raises(ConfigError) as refused:
        Pattern(pattern).matches_suffix("a" * 900, Budget())
    assert refused.value.kind == "bad_pattern"


def test_compiling_many_large_patterns_is_paid_from_the_budget() -> None:
    table = (f"(?:.?){{{width}}}" for width in range(900, 1000))
    budget = Budget(10_000_000)
    with pytest.raises(ConfigError, match="takes too long"):
        list(map(Pattern, table, itertools.repeat(budget)))
    assert next(table, None) is not None


@pytest.mark.parametrize("pattern", [r"\d+", r"\bq_proj", r"[^\W]"])
def test_a_class_of_characters_is_not_matched_with_a_name_beyond_ascii(pattern: str) -> None:
    with pytest.raises(ConfigError, match="in ASCII only"):
        Pattern(pattern).matches_suffix("model.é", Budget())
    assert Pattern("[^a]").matches_suffix("model.é", Budget())


@pytest.mark.parametrize(
    "pattern",
    [
        "(",
        "a)",
        "[a",
        "*a",
        "a**",
        "a++",
        r"\1",
        "(?=a)",
        "(?i)a",
        "(?<!a)b",
        "a{3,1}",
        "[b-a]",
        "\\",
        "a" * 1001,
        "(" * 31 + ")" * 31,
        r"\Z",
        "a{9999}",
        "a{,3}",
        "[[:alpha:]]",
        r"\pN",
        r"\Qa\E",
        "(?<n>a)",
        "\ud800",
    ],
)
def test_unsupported_patterns_are_refused_by_kind(pattern: str) -> None:
    with pytest.raises(ConfigError) as refused:
        Pattern(pattern)
    assert refused.value.kind == "bad_pattern"


pieces = st.sampled_from(
    ["a", "b", r"\.", ".", "[ab]", "[^a]", r"\w", r"\d", "a{1,2}", "(a|b)", "(?:ab)*", "b+", "a?", "(a*b)+?"]
)


@settings(max_examples=200)
@given(st.lists(pieces, max_size=5).map("".join), st.text("ab.1", max_size=8))
def test_supported_patterns_agree_with_the_re_module(pattern: str, name: str) -> None:
    assert Pattern(pattern).matches_suffix(name, Budget()) is as_peft(pattern, name)


@settings(max_examples=200)
@given(st.text(max_size=30), st.text(max_size=30))
def test_any_text_is_a_pattern_or_a_config_error(pattern: str, name: str) -> None:
    kinds = set()
    try:
        Pattern(pattern).matches_suffix(name, Budget(20_000))
    except ConfigError as error:
        kinds.add(error.kind)
    assert kinds <= {"bad_pattern"}
