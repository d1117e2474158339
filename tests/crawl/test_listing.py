"""Raw listing rows → repositories, one at a time: only a row without an identity is bad."""

from __future__ import annotations

import json
from dataclasses import replace
from datetime import UTC, datetime
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from catalog.adapters import valid_name
from crawler.hub import BadRow, ListedRepository, parse_row, reduce_row

ROW: dict[str, Any] = {
    "_id": "65a1b2c3d4e5f60718293a4b",
    "id": "someone/adapter",
    "modelId": "someone/adapter",
    "author": "someone",
    "sha": "a" * 40,
    "lastModified": "2024-08-01T12:30:00.000Z",
    "createdAt": "2024-07-01T00:00:00+02:00",
    "gated": False,
    "disabled": False,
    "private": False,
    "downloads": 12,
    "downloadsAllTime": 345,
    "likes": 6,
    "tags": ["peft", "base_model:adapter:meta-llama/Llama-3.1-8B-Instruct"],
    "library_name": "peft",
    "pipeline_tag": "text-generation",
    "siblings": [{"rfilename": "README.md"}, {"rfilename": "adapter_config.json"}],
    "cardData": {"license": "mit", "base_model": "meta-llama/Llama-3.1-8B-Instruct"},
    "config": {
        "peft": {"base_model_name_or_path": "meta-llama/Llama-3.1-8B-Instruct", "task_type": "CAUSAL_LM"}
    },
}


def listed(**over: Any) -> ListedRepository:
    row = parse_row(ROW | over)
    assert isinstance(row, ListedRepository)
    return row


def test_a_whole_row() -> None:
    assert parse_row(ROW) == ListedRepository(
        hub_id="65a1b2c3d4e5f60718293a4b",
        name="someone/adapter",
        commit="a" * 40,
        last_modified=datetime(2024, 8, 1, 12, 30, tzinfo=UTC),
        created_at=datetime(2024, 6, 30, 22, tzinfo=UTC),
        gated=None,
        disabled=False,
        private=False,
        downloads=12,
        downloads_all_time=345,
        likes=6,
        tags=("peft", "base_model:adapter:meta-llama/Llama-3.1-8B-Instruct"),
        library="peft",
        pipeline_tag="text-generation",
        siblings=("README.md", "adapter_config.json"),
        config_base="meta-llama/Llama-3.1-8B-Instruct",
    )


def test_a_row_with_nothing_but_an_identity() -> None:
    row = parse_row({"_id": "1", "id": "gpt2"})
    assert isinstance(row, ListedRepository)
    assert (row.commit, row.siblings, row.config_base, row.tags) == (None, None, None, ())


@pytest.mark.parametrize(
    ("raw", "reason"),
    [
        pytest.param({**ROW, "id": None}, "no usable id", id="case-05-null-id"),
        pytest.param({k: v for k, v in ROW.items() if k != "id"}, "no usable id", id="case-05-missing-id"),
        pytest.param({**ROW, "id": 7}, "no usable id", id="case-05-number-as-id"),
        pytest.param({**ROW, "id": "../../etc/passwd"}, "no usable id", id="case-05-path-as-id"),
        pytest.param({**ROW, "_id": None}, "no usable _id", id="case-05-null-hub-id"),
        pytest.param({**ROW, "_id": "x" * 65}, "no usable _id", id="case-05-long-hub-id"),
        pytest.param({**ROW, "_id": "a/b"}, "no usable _id", id="case-05-unsafe-hub-id"),
        pytest.param({**ROW, "sha": "main"}, "sha", id="case-05-branch-as-sha"),
        pytest.param({**ROW, "sha": 5}, "sha", id="case-05-number-as-sha"),
        pytest.param({**ROW, "sha": "A" * 40}, "sha", id="case-05-upper-case-sha"),
        pytest.param(None, "not an object", id="case-05-null-row"),
        pytest.param([ROW], "not an object", id="case-05-list-as-row"),
        pytest.param("someone/adapter", "not an object", id="case-05-text-as-row"),
    ],
)
def test_a_row_without_identity_is_bad(raw: object, reason: str) -> None:
    row = parse_row(raw)
    assert isinstance(row, BadRow)
    assert reason in row.reason
    assert row.excerpt == json.dumps(raw)[:500]


@pytest.mark.parametrize(
    ("key", "value", "field", "left"),
    [
        pytest.param("lastModified", "yesterday", "last_modified", None, id="case-17-bad-date"),
        pytest.param("lastModified", "2024-13-45T99:00:00Z", "last_modified", None, id="case-17-no-such-day"),
        pytest.param("createdAt", "0001-01-01T00:00:00+23:00", "created_at", None, id="case-17-before-time"),
        pytest.param("createdAt", 1_700_000_000, "created_at", None, id="case-17-number-as-date"),
        pytest.param("downloads", "many", "downloads", None, id="case-28-text-as-count"),
        pytest.param("downloads", -1, "downloads", None, id="case-28-negative-count"),
        pytest.param("downloads", True, "downloads", None, id="case-28-bool-as-count"),
        pytest.param("likes", 2**63, "likes", None, id="case-28-count-too-large-for-a-database"),
        pytest.param("downloadsAllTime", 1.5, "downloads_all_time", None, id="case-28-fraction-as-count"),
        pytest.param("tags", "peft", "tags", (), id="case-28-text-as-tags"),
        pytest.param("tags", ["peft", 7, None], "tags", ("peft",), id="case-28-number-as-tag"),
        pytest.param("tags", ["a\x00b", "\ud800", "x" * 2000], "tags", (), id="case-28-unstorable-tags"),
        pytest.param("tags", ["t"] * 3000, "tags", ("t",) * 2000, id="case-28-too-many-tags"),
        pytest.param("siblings", {}, "siblings", None, id="case-28-object-as-siblings"),
        pytest.param(
            "siblings", [{"rfilename": "a"}, {}, 3], "siblings", ("a",), id="case-28-nameless-sibling"
        ),
        pytest.param("library_name", ["peft"], "library", None, id="case-28-list-as-text"),
        pytest.param("library_name", "a\x00", "library", None, id="case-28-nul-in-text"),
        pytest.param("pipeline_tag", "x" * 2000, "pipeline_tag", None, id="case-28-text-too-long"),
        pytest.param("gated", "perhaps", "gated", "manual", id="case-28-unknown-gate-is-a-gate"),
        pytest.param("gated", True, "gated", "manual", id="case-28-true-gate"),
        pytest.param("disabled", "no", "disabled", False, id="case-28-text-as-flag"),
        pytest.param("private", 1, "private", False, id="case-28-number-as-flag"),
        pytest.param("config", "llama", "config_base", None, id="case-28-text-as-config"),
        pytest.param("config", {"peft": []}, "config_base", None, id="case-28-list-as-peft-config"),
        pytest.param(
            "config", {"peft": {"base_model_name_or_path": 3}}, "config_base", None, id="case-28-base"
        ),
    ],
)
def test_an_odd_field_is_left_out(key: str, value: object, field: str, left: object) -> None:
    assert listed(**{key: value}) == replace(listed(**{key: None}), **{field: left})


@pytest.mark.parametrize(
    "card",
    [
        pytest.param(
            {"model-index": [{"results": [{"source": {"name": "x"}}]}]}, id="case-17-index-without-url"
        ),
        pytest.param({"model-index": "none"}, id="case-17-text-as-index"),
    ],
)
def test_a_bad_model_index_costs_nothing(card: dict[str, object]) -> None:
    assert listed(cardData=card) == listed()


@pytest.mark.parametrize("gated", ["auto", "manual"])
def test_the_kinds_of_gate(gated: str) -> None:
    assert listed(gated=gated).gated == gated


@pytest.mark.parametrize("config", [None, {}, {"peft": None}, {"peft": {}}, {"architectures": ["Llama"]}])
def test_a_config_without_a_base_is_no_problem(config: object) -> None:
    assert listed(config=config).config_base is None


@pytest.mark.parametrize(
    ("text", "microsecond"),
    [
        ("2024-08-01T12:30:00Z", 0),
        ("2024-08-01T12:30:00.1Z", 100_000),
        ("2024-08-01T12:30:00.123456789", 123_456),
    ],
)
def test_dates_with_any_fraction(text: str, microsecond: int) -> None:
    expected = datetime(2024, 8, 1, 12, 30, 0, microsecond, tzinfo=UTC)
    assert listed(lastModified=text).last_modified == expected


def nested(depth: int) -> object:
    value: object = 1
    for _ in range(depth):
        value = [value]
    return value


def test_nesting_is_bounded() -> None:
    bad = parse_row(nested(100_000))
    assert isinstance(bad, BadRow)
    assert bad.excerpt == "a list that cannot be shown"


@pytest.mark.parametrize(
    ("name", "good"),
    [
        ("someone/adapter", True),
        ("gpt2", True),
        ("0x-a.b_c/D.e-f_g", True),
        ("a" * 48 + "/" + "b" * 96, True),
        ("a" * 48 + "/" + "b" * 97, False),
        ("a/b/c", False),
        ("a//b", False),
        ("/a", False),
        ("a/", False),
        ("a--b/c", False),
        ("a/..", False),
        ("a/b.git", False),
        ("-a/b", False),
        ("ä/b", False),
        ("a/b\n", False),
        ("a b/c", False),
        ("", False),
        (None, False),
        (["a"], False),
    ],
)
def test_names(name: object, good: bool) -> None:
    assert valid_name(name) is good


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(st.characters(codec=None), max_size=8),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=6), inner, max_size=4),
    max_leaves=20,
)


@given(JSON)
def test_case_28_no_value_raises(raw: object) -> None:
    assert isinstance(parse_row(raw), (BadRow, ListedRepository))


@given(st.fixed_dictionaries({}, optional=dict.fromkeys(ROW, JSON)))
def test_case_28_no_field_raises(over: dict[str, Any]) -> None:
    row = parse_row(ROW | over)
    if isinstance(row, BadRow):
        assert {"_id", "id", "sha"} & set(over)
    else:
        assert parse_row(reduce_row(ROW | over)) == replace(row, siblings=None)
        for text in (*row.tags, *(row.siblings or ()), row.library or "", row.config_base or ""):
            assert "\x00" not in text
            text.encode("utf-8")
