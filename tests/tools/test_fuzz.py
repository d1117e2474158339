"""The fuzzer: the same seed gives the same inputs, crashes are found, made small and told from refusals."""

from __future__ import annotations

from itertools import islice

import pytest

from catalog.errors import ConfigError
from tools.fuzz.__main__ import COSTLY, run
from tools.fuzz.mutation import LONGEST, mutations
from tools.fuzz.readers import Reader, readers

SEEDS = (b"alpha: beta, gamma", b"12345678")


def test_one_seed_gives_the_same_inputs() -> None:
    first, again = (list(islice(mutations(SEEDS, (), "a:0"), 300)) for _ in range(2))
    other = list(islice(mutations(SEEDS, (), "a:1"), 300))
    assert first == again
    assert first != other
    assert first[:2] == list(SEEDS)
    assert len(set(first)) > 200
    assert all(len(data) <= LONGEST for data in first)


def test_a_crash_is_found_and_made_small() -> None:
    def read(data: bytes) -> None:
        if b"NaN" in data:
            raise KeyError("NaN")
        if b"null" in data:
            raise ConfigError("bad_field", "null")

    outcome = run(Reader(read, SEEDS, (ConfigError,)), "a", 0, 2000)
    assert list(outcome.crashes.values()) == [b"NaN"]
    assert outcome.refused > 0
    assert outcome.inputs == 2000


@pytest.mark.parametrize("name", sorted(readers()))
def test_no_reader_falls_at_the_first_inputs(name: str) -> None:
    outcome = run(readers()[name], name, 1, max(2, 60 // COSTLY.get(name, 1)))
    assert outcome.crashes == {}
