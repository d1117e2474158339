"""YAML that is read as data, and what is refused before a value is built."""

from __future__ import annotations

import datetime
import math
from contextlib import suppress

import pytest
from hypothesis import given
from hypothesis import strategies as st

from catalog.files import MOST_DEPTH, YamlError, read_yaml

NAMES = list(zip("abcdef", "bcdefg", strict=True))
BOMB = "a: &a [x]\n" + "".join(f"{new}: &{new} [{', '.join([f'*{old}'] * 10)}]\n" for old, new in NAMES)
MERGED = "base: &b {x: 1, y: 2}\nmine:\n  <<: *b\n  y: 3"


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("", None),
        ("# nothing", None),
        ("a: 1e-3", {"a": 1e-3}),
        ("a: [yes, no, ~, 0x10, 2024-01-02]", {"a": [True, False, None, 16, datetime.date(2024, 1, 2)]}),
        (
            "base: &b {x: 1, y: 2}\nmine:\n  <<: *b\n  y: 3",
            {"base": {"x": 1, "y": 2}, "mine": {"x": 1, "y": 3}},
        ),
        ("a: &a [1]\nb: *a\nc: *a", {"a": [1], "b": [1], "c": [1]}),
        ("a: " + "9" * 61, {"a": "9" * 61}),
        ("a: 1:30", {"a": "1:30"}),
        ("a: !!str 1\nb: ! x", {"a": "1", "b": "x"}),
        ('{"a": [1, {"b": null}]}', {"a": [1, {"b": None}]}),
        ("\ufeffa: 1", {"a": 1}),
    ],
)
def test_what_a_text_says(text: str, value: object) -> None:
    assert read_yaml(text).value == value


def test_a_number_that_is_none() -> None:
    assert math.isnan(read_yaml(".nan").value)


@pytest.mark.parametrize(
    ("text", "kind", "line", "words"),
    [
        (BOMB, "alias_bomb", 6, "50,000 entries"),
        ("a: 1\nb: &a [*a]", "alias_bomb", 2, "refers to its own parent"),
        ("a: &a\n  b: {c: *a}", "alias_bomb", 1, "refers to its own parent"),
        ("a: &a {<<: *a}", "alias_bomb", 1, "refers to its own parent"),
        ("x: 1\na: " + "[" * 1000, "too_large", 2, f"more than {MOST_DEPTH} levels"),
        ("- x\n" * 20_001, "too_large", 19_999, "20,000 entries"),
        ("a: 1\nb: !!bool x", "bad_yaml", 2, "'x' is not a valid bool"),
        ("a: !!int ''", "bad_yaml", 1, "'' is not a valid int"),
        ("a: !!float x", "bad_yaml", 1, "'x' is not a valid float"),
        ("a: 2024-13-45", "bad_yaml", 1, "'2024-13-45' is not a valid timestamp"),
        ("a: !!int [1]", "bad_yaml", 1, "expected a scalar node"),
        ("a: !!python/object/apply:os.system [true]", "unsafe_tag", 1, "is not allowed"),
        ("a: !mine x", "unsafe_tag", 1, "'!mine' is not allowed"),
        ("a: !!binary aaaa", "unsafe_tag", 1, "is not allowed"),
        ("a: [1", "bad_yaml", 1, "expected ',' or ']'"),
        ("a: *b", "bad_yaml", 1, "undefined alias"),
        ("a: 1\n---\nb: 2", "bad_yaml", 2, "another document"),
        ("a: 1\nb: \x00", "bad_yaml", 2, "is not allowed"),
        ("a: 1\nb: \x1b", "bad_yaml", 2, "is not allowed"),
        ("a: 1\n'a': 2", "twice", 2, "'a' is repeated"),
        ("? [a]\n: 1", "bad_yaml", 1, "a name must be a word"),
        ("a: {<<: x}", "bad_yaml", 1, "mapping"),
        ("\ta: 1", "bad_yaml", 1, "cannot start any token"),
    ],
)
def test_what_is_refused_is_said_with_its_line(text: str, kind: str, line: int, words: str) -> None:
    with pytest.raises(YamlError) as refused:
        read_yaml(text)
    assert (refused.value.kind, refused.value.line) == (kind, line)
    assert words in refused.value.problem
    assert "\n" not in refused.value.problem


PIECES = st.sampled_from(
    [
        "a",
        ": ",
        "\n",
        "- ",
        "[",
        "]",
        "{",
        "}",
        "&a ",
        "*a",
        "!!",
        "int",
        "bool ",
        "<<",
        "'",
        "|",
        ">",
        "?",
        " ",
        ",",
    ]
)


@given(st.lists(PIECES, max_size=30).map("".join) | st.text(max_size=30))
def test_any_text_is_read_or_refused(text: str) -> None:
    with suppress(YamlError):
        read_yaml(text)
