"""Outcomes of items: exact bytes worked by hand, strict texts, and everything that contradicts a score."""

from __future__ import annotations

import base64
import hashlib
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from catalog.errors import UsageError
from catalog.scores import (
    MOST_ITEMS,
    Outcomes,
    from_text,
    item_hash,
    list_sha,
    pack_bitmap,
    pack_margins,
    read_outcomes,
    to_text,
    unpack_bitmap,
    unpack_margins,
)

HASHES = b"".join(item_hash(f"question {n}", "yes", ("yes", "no")) for n in range(10))
RIGHT = [True, False, True, True, False, False, False, True, True, False]
MARGINS = [-1.0 if right else 0.5 for right in RIGHT]
RECORD = Outcomes(list_sha(HASHES), pack_bitmap(RIGHT), pack_margins(MARGINS), HASHES)


def test_bytes_are_those_of_the_definition() -> None:
    assert pack_bitmap(RIGHT) == bytes([0b10110001, 0b10000000])
    # 1.5 and -2 as IEEE half floats are 3e00 and c000.
    assert pack_margins([1.5, -2.0]) == bytes.fromhex("003e00c0")
    text = '{"choices":["a","b"],"input":"é","target":"a"}'
    assert item_hash("é", "a", ("a", "b")) == hashlib.sha256(text.encode()).digest()
    assert list_sha(HASHES) == hashlib.sha256(HASHES).hexdigest()


@given(st.lists(st.booleans(), min_size=1, max_size=70))
def test_bitmaps_return(right: list[bool]) -> None:
    assert unpack_bitmap(pack_bitmap(right), len(right)).tolist() == right


def test_margins_beyond_float16_are_its_largest_values() -> None:
    assert unpack_margins(pack_margins([1e9, -np.inf, 0.1]), 3) == pytest.approx(
        [65504, -65504, 0.1], rel=1e-3
    )


def test_a_record_that_fits_its_score() -> None:
    RECORD.check(0.5, 10)
    replace(RECORD, margins=b"", hashes=b"").check(0.5, 10)
    texts = to_text(RECORD.bitmap), to_text(RECORD.margins)
    assert read_outcomes(RECORD.items_sha, *texts, 10) == replace(RECORD, hashes=b"")


@pytest.mark.parametrize(
    ("change", "value", "n", "message"),
    [
        ({}, 0.6, 10, "value is 0.6, but 5 of its 10 outcomes are right"),
        ({}, float("nan"), 10, "5 of its 10"),
        ({}, 5 / 11, 11, "16 bits"),
        ({}, 0.5, 17, "bitmap of 17 items"),
        ({}, 0.5, None, "number of samples"),
        ({}, 0.5, MOST_ITEMS + 1, "number of samples"),
        ({"bitmap": RECORD.bitmap[:1]}, 0.5, 10, "bitmap of 10 items"),
        ({"bitmap": bytes([0b10110001, 0b10000001])}, 0.5, 10, "bitmap of 10 items"),
        ({"margins": RECORD.margins[:-2]}, 0.5, 10, "16 bits"),
        ({"margins": pack_margins([-value for value in MARGINS])}, 0.5, 10, "contradict"),
        ({"margins": b"\x00\x7e" * 10}, 0.5, 10, "contradict"),
        ({"items_sha": "A" * 64}, 0.5, 10, "items_sha"),
        ({"items_sha": "0" * 64}, 0.5, 10, "hashes of its items"),
        ({"hashes": HASHES[:-32]}, 0.5, 10, "hashes of its items"),
    ],
)
def test_what_contradicts_a_score_is_refused(
    change: dict[str, object], value: float, n: int | None, message: str
) -> None:
    with pytest.raises(UsageError, match=message):
        replace(RECORD, **change).check(value, n)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    "text",
    [
        None,
        5,
        "A",
        "AAA",
        "AA==\n",
        " AAA=",
        "AAB=",
        "A_-=",
        "AAAA" * 2,
        "AAAAA",
        "é===",
        "=AAA",
        "AA=A",
        ["AAA="],
    ],
)
def test_base64_is_strict(text: object) -> None:
    assert from_text("AAE=", "outcomes", 3) == b"\x00\x01"
    with pytest.raises(UsageError, match=r"outcomes is not base64 of at most 3 bytes"):
        from_text(text, "outcomes", 3)


@pytest.mark.parametrize("n", [None, 0, -1, 1.0, "3", MOST_ITEMS + 1, 10**30])
def test_the_number_of_items_is_limited(n: object) -> None:
    with pytest.raises(UsageError, match="number of samples"):
        read_outcomes(RECORD.items_sha, "AA==", "", n)


def test_a_text_longer_than_its_limit_is_not_decoded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(base64, "b64decode", lambda *_arguments, **_options: pytest.fail("decoded"))
    with pytest.raises(UsageError):
        from_text("A" * 1_000_000, "outcomes", 13)
