"""Safetensors headers: every lie is named, and what is accepted the library opens."""

from __future__ import annotations

import json
import struct
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors import SafetensorError, safe_open

from catalog.adapters.header import MAX_HEADER, Header, Tensor, header_length, parse_header
from catalog.errors import WeightsError


def entry(shape: Any = (2,), begin: Any = 0, end: Any = 8, dtype: Any = "F32") -> dict[str, Any]:
    return {"dtype": dtype, "shape": list(shape), "data_offsets": [begin, end]}


def framed(header: object, body: int = 0) -> bytes:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<Q", len(text)) + text + b"\x00" * body


def library_opens(data: bytes, folder: Path) -> bool:
    path = folder / "file.safetensors"
    path.write_bytes(data)
    try:
        with safe_open(path, framework="pt") as file:
            file.keys()
    except (SafetensorError, OSError):
        return False
    return True


GOOD = framed({"__metadata__": {"format": "pt"}, "b": entry(begin=8, end=16), "a": entry()}, 16)

LIES = [
    pytest.param(b"", "empty_file", id="case-53-empty"),
    pytest.param(b"\x01\x00", "truncated", id="case-53-two-bytes"),
    pytest.param(struct.pack("<Q", 0), "header_invalid", id="case-52-n-0"),
    pytest.param(struct.pack("<Q", MAX_HEADER + 1), "header_too_large", id="case-52-n-25MB"),
    pytest.param(struct.pack("<Q", 100_000_001), "header_too_large", id="case-52-n-100MB"),
    pytest.param(struct.pack("<Q", 2**63), "header_too_large", id="case-52-n-2**63"),
    pytest.param(struct.pack("<Q", 48) + b"{}", "truncated", id="case-51-header-longer-than-file"),
    pytest.param(GOOD[:-1], "size_mismatch", id="case-51-body-cut"),
    pytest.param(GOOD + b"\x00", "size_mismatch", id="case-51-body-padded"),
    pytest.param(
        framed({"a": entry(), "b": entry(begin=4, end=12)}, 12), "header_invalid", id="case-51-overlap"
    ),
    pytest.param(framed({"a": entry(), "b": entry()}, 8), "header_invalid", id="case-51-shared-bytes"),
    pytest.param(framed({"a": entry(begin=8, end=16)}, 16), "header_invalid", id="case-51-hole"),
    pytest.param(framed({"a": entry(end=80)}, 8), "header_invalid", id="case-51-out-of-range"),
    pytest.param(framed({"a": entry(shape=[-2])}, 8), "header_invalid", id="case-51-negative-shape"),
    pytest.param(framed({"a": entry(shape=["2"])}, 8), "header_invalid", id="case-51-text-shape"),
    pytest.param(framed({"a": entry(shape=[2.0])}, 8), "header_invalid", id="case-51-float-shape"),
    pytest.param(framed({"a": entry(shape=[True, 2])}, 8), "header_invalid", id="case-51-bool-shape"),
    pytest.param(
        framed(b'{"a":{"dtype":"F32","shape":[-0],"data_offsets":[0,0]}}'),
        "header_invalid",
        id="case-51-minus-zero",
    ),
    pytest.param(framed({"a": {**entry(), "shape": None}}, 8), "header_invalid", id="case-51-null-shape"),
    pytest.param(
        framed({"a": {**entry(), "data_offsets": [0]}}, 8), "header_invalid", id="case-51-one-offset"
    ),
    pytest.param(framed({"a": entry(begin=8, end=0)}, 8), "header_invalid", id="case-51-backward-offsets"),
    pytest.param(framed({"a": entry(shape=[2**40, 2**40])}, 8), "header_invalid", id="case-51-overflow"),
    pytest.param(
        framed({"a": entry(shape=[2**33, 2**33, 0], end=0)}),
        "header_invalid",
        id="case-51-overflow-hidden-by-0",
    ),
    pytest.param(framed({"a": entry(dtype="F31")}, 8), "header_invalid", id="case-57-unknown-dtype"),
    pytest.param(framed({"a": entry(dtype=["F32"])}, 8), "header_invalid", id="case-57-list-dtype"),
    pytest.param(
        framed({"a": entry(dtype="F16")}, 8), "header_invalid", id="case-57-dtype-and-bytes-disagree"
    ),
    pytest.param(
        framed({"a": entry(shape=[1], dtype="F4", end=1)}, 1), "header_invalid", id="case-57-half-a-byte"
    ),
    pytest.param(framed(b"[]"), "header_invalid", id="case-51-list"),
    pytest.param(framed(b"null"), "header_invalid", id="case-51-null"),
    pytest.param(framed(b"{}\x00"), "header_invalid", id="case-51-trailing-nul"),
    pytest.param(framed({"a": None}), "header_invalid", id="case-51-null-entry"),
    pytest.param(framed({"__metadata__": {"a": 1}}), "header_invalid", id="case-51-metadata-number"),
    pytest.param(framed({"__metadata__": []}), "header_invalid", id="case-51-metadata-list"),
    pytest.param(
        framed(
            b'{"a":{"dtype":"F32","shape":[2],"data_offsets":[0,8]},"a":{"dtype":"F32","shape":[1],"data_offsets":[0,4]}}',
            8,
        ),
        "header_invalid",
        id="case-51-duplicate-names",
    ),
    pytest.param(
        framed(b'{"\xff":{"dtype":"F32","shape":[2],"data_offsets":[0,8]}}', 8),
        "header_invalid",
        id="case-51-invalid-utf8",
    ),
    pytest.param(framed(b'{"a":' * 100_000), "header_invalid", id="case-51-100k-nesting"),
    pytest.param(
        framed(b'{"a":{"dtype":"F32","shape":[' + b"1" * 5000 + b'],"data_offsets":[0,8]}}', 8),
        "header_invalid",
        id="case-51-5000-digits",
    ),
    pytest.param(
        b"version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 9\n",
        "lfs_pointer",
        id="lfs-pointer",
    ),
]


@pytest.mark.parametrize(("data", "kind"), LIES)
def test_lies_are_named(data: bytes, kind: str, tmp_path: Path) -> None:
    with pytest.raises(WeightsError) as refused:
        parse_header(data, len(data))
    assert refused.value.kind == kind
    assert not library_opens(data, tmp_path)


@pytest.mark.parametrize(
    "data",
    [
        pytest.param(framed(b" {}"), id="case-51-leading-space"),
        pytest.param(
            framed({"a": entry(shape=[0] * 100_000, end=0)}), id="case-51-a-hundred-thousand-dimensions"
        ),
        pytest.param(
            framed(b'{"a":%s,"a":%s}' % ((json.dumps(entry()).encode(),) * 2), 8), id="case-51-same-twice"
        ),
    ],
)
def test_what_the_format_forbids_is_refused_though_the_library_opens_it(data: bytes, tmp_path: Path) -> None:
    with pytest.raises(WeightsError) as refused:
        parse_header(data, len(data))
    assert refused.value.kind == "header_invalid"
    assert library_opens(data, tmp_path)


@pytest.mark.parametrize(
    ("data", "names"),
    [
        pytest.param(GOOD, ["a", "b"], id="two-tensors"),
        pytest.param(framed({"__metadata__": {"format": "pt"}}), [], id="case-53-40-bytes"),
        pytest.param(framed({"__metadata__": {"format": "pt", "x": "y" * 4}}), [], id="case-53-few-bytes"),
        pytest.param(framed({}), [], id="case-54-no-tensors"),
        pytest.param(framed({"a": entry(shape=[0, 4], end=0)}), ["a"], id="case-54-no-elements"),
        pytest.param(framed({"a": entry(shape=[], end=4)}, 4), ["a"], id="case-54-scalar"),
        pytest.param(framed({"a": entry(shape=[2], dtype="F4", end=1)}, 1), ["a"], id="case-57-f4"),
        pytest.param(framed({"a": entry(shape=[3], dtype="F8_E4M3", end=3)}, 3), ["a"], id="case-57-f8"),
        pytest.param(
            framed(json.dumps({"a": entry()}).encode() + b" " * 7, 8), ["a"], id="padded-with-spaces"
        ),
        pytest.param(
            framed({"__metadata__": None, "a": {**entry(), "more": [1]}}, 8), ["a"], id="unknown-field"
        ),
    ],
)
def test_honest_headers_are_read(data: bytes, names: list[str], tmp_path: Path) -> None:
    header = parse_header(data, len(data))
    assert [tensor.name for tensor in header.tensors] == names
    assert header.file_size == len(data)
    assert library_opens(data, tmp_path)


def test_fields_of_a_header() -> None:
    header = parse_header(GOOD[:-16])
    assert header == Header(
        (Tensor("a", "F32", (2,), 0, 8), Tensor("b", "F32", (2,), 8, 16)), {"format": "pt"}, len(GOOD) - 24
    )
    assert header_length(GOOD[:8]) == header.length
    assert header.tensors[0].elements == 2


def test_size_is_checked_only_where_it_is_known() -> None:
    prefix = GOOD[:-16]
    assert parse_header(prefix).file_size == len(GOOD)
    assert parse_header(prefix, len(GOOD)).length == len(GOOD) - 24
    with pytest.raises(WeightsError) as refused:
        parse_header(prefix, 20)
    assert refused.value.kind == "truncated"


mutations = st.lists(
    st.tuples(st.integers(0, len(GOOD) - 1), st.integers(0, 255) | st.sampled_from(list(b'{}[]",:019-.eE'))),
    min_size=1,
    max_size=3,
)


@settings(max_examples=300, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(mutations, st.integers(-2, 2))
def test_mutated_files_are_accepted_only_where_the_library_accepts(
    tmp_path: Path, changes: list[tuple[int, int]], grown: int
) -> None:
    mutated = bytearray(GOOD)
    for at, byte in changes:
        mutated[at] = byte
    data = bytes(mutated) + b"\x00" * grown if grown > 0 else bytes(mutated[: len(mutated) + grown])
    try:
        parse_header(data, len(data))
    except WeightsError:
        return
    assert library_opens(data, tmp_path)


sizes = st.sampled_from([0, 1, 2, 3, 8, -1, 2**40, 1.5, "4", None, True])
entries = st.fixed_dictionaries(
    {
        "dtype": st.sampled_from(["F32", "F16", "BF16", "I8", "F4", "F6_E2M3", "C64", "Q", 3, None]),
        "shape": st.lists(sizes, max_size=3),
        "data_offsets": st.lists(st.sampled_from([0, 1, 2, 4, 8, 16]), min_size=1, max_size=3),
    }
)


@settings(max_examples=300, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    st.dictionaries(
        st.sampled_from(["a", "b", "", "__metadata__", "c\u00e9"]), entries | st.none(), max_size=3
    ),
    st.integers(0, 20),
)
def test_made_up_headers_agree_with_the_library(tmp_path: Path, header: dict[str, Any], body: int) -> None:
    data = framed(header, body)
    try:
        parse_header(data, len(data))
        accepted = True
    except WeightsError:
        accepted = False
    assert accepted is library_opens(data, tmp_path)


@given(st.binary(max_size=120), st.none() | st.integers(0, 200))
def test_any_bytes_give_a_header_or_a_weights_error(data: bytes, size: int | None) -> None:
    kinds = set()
    try:
        parse_header(data, size)
    except WeightsError as error:
        kinds.add(error.kind)
    assert kinds <= {"empty_file", "truncated", "header_invalid", "header_too_large", "size_mismatch"} | {
        "lfs_pointer"
    }
