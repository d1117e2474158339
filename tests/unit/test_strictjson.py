"""Strict JSON: what is refused, and under which kind."""

from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from catalog.errors import ConfigError
from catalog.files import load_json

REFUSED = [
    pytest.param(b'{"a":' * 100_000, "not_json", id="case-71-deep-objects"),
    pytest.param(b"[" * 100_000 + b"]" * 100_000, "not_json", id="case-71-deep-lists"),
    pytest.param(b"[" * 66 + b"]" * 66, "not_json", id="case-71-deeper-than-the-cap"),
    pytest.param(b'{"a": NaN}', "not_json", id="case-71-nan"),
    pytest.param(b'{"a": -Infinity}', "not_json", id="case-71-infinity"),
    pytest.param(b'{"a": 1e999}', "not_json", id="case-71-float-overflow"),
    pytest.param(b'{"a": ' + b"1" * 5000 + b"}", "not_json", id="case-71-5000-digits"),
    pytest.param('{"a": 1}'.encode("utf-16"), "not_json", id="case-71-utf16-bom"),
    pytest.param('{"a": 1}'.encode("utf-16-le"), "not_json", id="case-71-utf16-without-bom"),
    pytest.param(b'{"a": "\xff"}', "not_json", id="case-71-latin1"),
    pytest.param(b'{"a": "\\ud800"}', "not_json", id="case-71-half-a-surrogate-pair"),
    pytest.param(b'{"\\u0000": 1}', "not_json", id="case-71-nul-in-a-key"),
    pytest.param(b"", "not_json", id="case-71-empty"),
    pytest.param(b"{'a': 1}", "not_json", id="case-71-python-literal"),
    pytest.param(b" " * (1024 * 1024 + 1), "too_large", id="case-71-too-large"),
    pytest.param(
        b"version https://git-lfs.github.com/spec/v1\noid sha256:00\n", "lfs_pointer", id="lfs-pointer"
    ),
]


@pytest.mark.parametrize(("data", "kind"), REFUSED)
def test_refused_by_kind(data: bytes, kind: str) -> None:
    with pytest.raises(ConfigError) as refused:
        load_json(data)
    assert refused.value.kind == kind


def test_depth_of_exactly_the_cap_is_read() -> None:
    assert load_json(b"[" * 3 + b"]" * 3, max_depth=3) == [[[]]]
    with pytest.raises(ConfigError):
        load_json(b"[[[[1]]]]", max_depth=3)


def test_bom_is_dropped() -> None:
    assert load_json(b'\xef\xbb\xbf{"a": 1}') == {"a": 1}


def test_of_a_repeated_key_the_last_wins() -> None:
    assert load_json(b'{"r": 8, "r": 16}') == {"r": 16}
    with pytest.raises(ConfigError):
        load_json(b'{"r": 8, "r": 16}', unique_keys=True)


def test_minus_zero_is_a_float_as_for_other_readers() -> None:
    assert type(load_json(b"-0")) is float


plain = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\x00")),
    lambda inner: (
        st.lists(inner, max_size=4)
        | st.dictionaries(st.text(st.characters(codec="ascii", exclude_characters="\x00")), inner, max_size=4)
    ),
    max_leaves=12,
)


@given(plain)
def test_what_json_writes_is_read_back(value: object) -> None:
    assert load_json(json.dumps(value, ensure_ascii=False).encode()) == value


@given(st.binary(max_size=200))
def test_any_bytes_give_a_value_or_a_config_error(data: bytes) -> None:
    kinds = set()
    try:
        load_json(data)
    except ConfigError as error:
        kinds.add(error.kind)
    assert kinds <= {"not_json", "lfs_pointer"}
