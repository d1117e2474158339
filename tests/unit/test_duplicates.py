"""Groups of duplicates and families, worked by hand, against scipy's components, and on real names."""

from __future__ import annotations

import dataclasses
import errno
import math
import os
import tracemalloc
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components

from catalog.adapters import StoredAdapter
from catalog.errors import UsageError
from catalog.fingerprints.copies import (
    SAME_SKETCH,
    Group,
    RepresentativesOnDemand,
    cosines,
    duplicates,
    near_pairs,
    representatives,
)
from catalog.fingerprints.series import Family, families, series_name
from catalog.search import sketch_cosine
from tests.shared_data import data, shared

BASE = "acme/tiny"


def copy(adapter: str, delta: NDArray[Any] | None = None, **fields: Any) -> StoredAdapter:
    """An adapter `owner/name` or `owner/name:folder`; all that is not given is unknown, but for the base."""
    repository, _, subfolder = adapter.partition(":")
    arguments: dict[str, Any] = {
        **dict.fromkeys(field.name for field in dataclasses.fields(StoredAdapter)),
        "owner": repository.split("/")[0],
        "repository": repository,
        "subfolder": subfolder,
        "base": BASE,
        "delta": delta,
    }
    return StoredAdapter(**(arguments | fields))


def at(cosine: float, other: int = 1, size: int = 6) -> NDArray[np.float32]:
    """A vector of some length whose cosine with the first axis is given, the rest along another axis."""
    vector = np.zeros(size, dtype=np.float32)
    vector[0], vector[other] = cosine, math.sqrt(1 - cosine**2)
    return 7 * vector


def exactly(**names: float) -> Callable[[str, str], float | None]:
    """The exact cosine by the names of a pair, joined by `_`, without owners."""

    def cosine(left: str, right: str) -> float | None:
        return names.get(f"{left[2:]}_{right[2:]}")

    return cosine


def members(groups: list[Group]) -> list[tuple[str, ...]]:
    return [group.members for group in groups]


# The ladder.


def test_the_ladder_worked_by_hand() -> None:
    rows = [
        copy("o/a", at(1), weights_digest="f1", tensor_digest="t1"),
        copy("o/b", at(1), weights_digest="f1", tensor_digest="t1"),
        copy("o/c", at(1), weights_digest="f2", tensor_digest="t1"),  # other header, same tensors
        copy("o/d", at(0.9995), weights_digest="f3", tensor_digest="t3"),  # a cast
        copy("o/e", at(0, 2), weights_digest="f4"),
        copy("o/f", at(0, 3), weights_digest="f4"),
        copy("o/g", at(0, 4), weights_digest="f5", tensor_digest="t5"),
    ]
    pair = Group("file", ("o/e", "o/f"), None, True, "")
    assert duplicates(rows, "file") == [Group("file", ("o/a", "o/b"), None, True, ""), pair]
    three = Group("tensor", ("o/a", "o/b", "o/c"), None, True, "same file: o/a, o/b")
    assert duplicates(rows, "tensor") == [three, pair]
    (four, same) = duplicates(rows, "delta")
    assert same == pair
    assert (four.level, four.members, four.exact) == ("delta", ("o/a", "o/b", "o/c", "o/d"), False)
    assert four.cosine == pytest.approx(0.9995, abs=1e-7)
    assert four.note == "same file: o/a, o/b; same tensor: o/a, o/b, o/c"


def test_a_group_is_reported_at_the_cheapest_level_that_holds_for_all() -> None:
    rows = [copy(f"o/{name}", at(1), weights_digest="f", tensor_digest="t") for name in "ab"]
    assert [group.level for group in duplicates(rows)] == ["file"]
    rows = [copy(f"o/{name}", at(1), weights_digest=name, tensor_digest="t") for name in "ab"]
    assert [group.level for group in duplicates(rows)] == ["tensor"]


def test_a_subgroup_is_named_once() -> None:
    rows = [copy(f"o/{name}", at(1), weights_digest="f", tensor_digest="t") for name in "ab"] + [
        copy("o/c", at(0.9999))
    ]
    assert [group.note for group in duplicates(rows)] == ["same file: o/a, o/b"]


def test_what_is_unknown_is_equal_to_nothing() -> None:
    assert duplicates([copy("o/a"), copy("o/b")]) == []
    assert duplicates([]) == []


def test_an_unknown_level_is_refused() -> None:
    with pytest.raises(UsageError, match="file, tensor, delta"):
        duplicates([], "near")


# The update.


@pytest.mark.parametrize(
    ("left", "right", "found"),
    [
        pytest.param(at(1), at(SAME_SKETCH + 1e-5), True, id="the-sketch-alone-from-.999"),
        pytest.param(at(1), at(SAME_SKETCH - 1e-5), False, id="not-below"),
        pytest.param(at(1), -at(1), False, id="opposite-sign"),
        pytest.param(at(1), 1e-30 * at(1), True, id="any-length"),
        pytest.param(at(0) * 0, at(0) * 0, False, id="zero-is-like-nothing"),
        pytest.param(at(1) * np.nan, at(1) * np.nan, False, id="nan-is-like-nothing"),
        pytest.param(at(1), None, False, id="unread"),
    ],
)
def test_the_sketch_alone(left: NDArray[Any], right: NDArray[Any] | None, found: bool) -> None:
    assert bool(duplicates([copy("o/a", left), copy("o/b", right)])) is found


@pytest.mark.parametrize(
    ("sketch", "exact", "found"),
    [
        pytest.param(0.9901, 0.99991, True, id="exact-accepts"),
        pytest.param(0.9999, 0.99989, False, id="exact-refuses"),
        pytest.param(0.9899, 1.0, False, id="no-candidate"),
        pytest.param(0.9999, -1.0, False, id="exact-opposite"),
        pytest.param(0.9999, math.nan, False, id="exact-nan"),
        pytest.param(0.9991, None, True, id="unknown-leaves-it-to-the-sketch"),
        pytest.param(0.9989, None, False, id="unknown-needs-more"),
    ],
)
def test_the_exact_cosine_decides_where_there_is_one(sketch: float, exact: float | None, found: bool) -> None:
    groups = duplicates([copy("o/a", at(1)), copy("o/b", at(sketch))], exact=lambda left, right: exact)
    assert bool(groups) is found
    if found:
        assert groups[0].exact is (exact is not None)
        assert groups[0].cosine == pytest.approx(sketch if exact is None else exact, abs=1e-6)


@pytest.mark.parametrize(
    ("left", "right", "found"), [(BASE, BASE, 1), (BASE, "acme/big", 0), (None, None, 0)]
)
def test_updates_are_compared_within_one_known_base_only(
    left: str | None, right: str | None, found: int
) -> None:
    rows = [copy("o/a", at(1), base=left), copy("o/b", at(1), base=right)]
    assert len(duplicates(rows)) == found
    assert (
        len(
            duplicates(
                [copy("o/a", base=left, weights_digest="f"), copy("o/b", base=right, weights_digest="f")]
            )
        )
        == 1
    )


def test_groups_chain_and_tell_their_weakest_link() -> None:
    # Angles of 0, 2 and 4.4 degrees: cosines .99939, .99912 and, between the ends, .99705.
    turned = [np.array([math.cos(angle), math.sin(angle)]) for angle in np.radians([0, 2, 4.4])]
    rows = [copy(f"o/{name}", vector) for name, vector in zip("abc", turned, strict=True)]
    (group,) = duplicates(rows)
    assert group.members == ("o/a", "o/b", "o/c")
    assert group.cosine == pytest.approx(math.cos(math.radians(2.4)), abs=1e-7)
    requests = exactly(a_b=1.0, a_c=0.5, b_c=0.5)
    assert members(duplicates(rows, exact=requests)) == [("o/a", "o/b")]


def test_exact_is_false_where_one_link_rests_on_a_sketch() -> None:
    rows = [copy("o/a", at(1)), copy("o/b", at(0.99999)), copy("o/c", at(0.9999, 2))]
    (both,) = duplicates(rows, exact=exactly(a_b=1.0, a_c=0.99995))
    assert (both.exact, both.cosine) == (True, 0.99995)
    (item,) = duplicates(rows, exact=exactly(a_b=1.0))
    assert item.exact is False
    assert item.cosine == pytest.approx(0.9999, abs=1e-6)


def test_equal_files_and_pairs_already_joined_are_not_compared_again() -> None:
    requests = []

    def exact(left: str, right: str) -> float:
        requests.append((left, right))
        return 1.0

    rows = [copy(f"o/{name}", at(1), weights_digest="f") for name in "abc"]
    rows += [copy(f"o/{name}", at(0.9999 + 1e-5 * n)) for n, name in enumerate("xyz")]
    (group,) = duplicates(rows, exact=exact)
    assert group.members == ("o/a", "o/b", "o/c", "o/x", "o/y", "o/z")
    assert len(requests) == len(set(requests)) == 3
    assert not [pair for pair in requests if {"o/b", "o/c"} & set(pair)]


# Notes.


ALPHA = [{"norm": 1.5, "scaling": 1.0}, {"norm": 3.0, "scaling": 2.0}]
MOVED = [{"norm": 2.0, "scaling": 2.0}, {"norm": 2.0, "scaling": 1.0}]
NORMS = [{"norm": 3.0}, {"norm": 1.5}, {"norm": 6.0}]
SCALINGS = [{"scaling": 2.0}, {"scaling": 1.0}]


@pytest.mark.parametrize(
    ("fields", "note"),
    [
        pytest.param([{"norm": 1.5}, {"norm": 1.502}], "", id="a-cast-is-no-rescaling"),
        pytest.param(ALPHA, "alpha differs: norms 1 : 2", id="alpha"),
        pytest.param(NORMS, "rescaled: norms 1 : 2 : 4", id="no-scaling-known"),
        pytest.param(SCALINGS, "alpha differs: scalings 1 : 2", id="no-norm-known"),
        pytest.param(MOVED, "", id="alpha-moved-into-the-weights"),
        pytest.param([{"norm": 1.5 * 2**n} for n in range(6)], "rescaled: norms 1 to 32", id="many"),
        pytest.param([{"norm": 0.0}, {"norm": 1.5}, {"norm": math.nan}], "", id="one-norm-known"),
    ],
)
def test_rescaled_copies_are_told(fields: list[dict[str, Any]], note: str) -> None:
    rows = [copy(f"o/{number}", weights_digest="f", **arguments) for number, arguments in enumerate(fields)]
    assert [group.note for group in duplicates(rows)] == [note]


# Properties.


def random_copies(seed: int, count: int = 40) -> list[StoredAdapter]:
    """Adapters, some alike in the one way or the other."""
    random = np.random.default_rng(seed)
    centres = random.standard_normal((8, 16))
    rows = []
    for number in range(count):
        near = centres[random.integers(8)] + random.choice([0.001, 0.01, 0.03]) * random.standard_normal(16)
        rows.append(
            copy(
                f"o{random.integers(4)}/{random.choice(['run', 'fold', 'x'])}-{number}",
                near if random.random() < 0.9 else None,
                base=random.choice([BASE, "acme/big"]),
                weights_digest=f"f{random.integers(30)}",
                scaling_pattern=str(number),
                tensor_digest=f"t{random.integers(40)}" if random.random() < 0.5 else None,
            )
        )
    return rows


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 10_000))
def test_groups_are_the_components_that_scipy_finds(seed: int) -> None:
    rows = sorted(random_copies(seed), key=lambda row: row.adapter)

    def alike(left: StoredAdapter, right: StoredAdapter) -> bool:
        if left.weights_digest == right.weights_digest or (
            left.tensor_digest is not None and left.tensor_digest == right.tensor_digest
        ):
            return True
        if left.base != right.base or left.delta is None or right.delta is None:
            return False
        lengths = np.linalg.norm(left.delta) * np.linalg.norm(right.delta)
        return bool(left.delta @ right.delta / lengths >= SAME_SKETCH)

    pairs = [(a, b) for a, left in enumerate(rows) for b, right in enumerate(rows) if alike(left, right)]
    graph = coo_array((np.ones(len(pairs)), np.transpose(pairs)), shape=(len(rows), len(rows)))
    _, labels = connected_components(graph, directed=False)
    expected = {
        tuple(rows[node].adapter for node in np.flatnonzero(labels == label))
        for label, size in Counter(labels.tolist()).items()
        if size > 1
    }
    assert set(members(duplicates(rows))) == expected


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 10_000), st.randoms())
def test_the_order_of_the_rows_does_not_matter(seed: int, random: Any) -> None:
    rows = random_copies(seed)
    mixed = random.sample(rows, len(rows))
    assert duplicates(mixed) == duplicates(rows)
    assert families(mixed) == families(rows)
    assert representatives(mixed) == representatives(rows)


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 10_000), st.randoms())
def test_vectors_are_read_in_any_order_and_few_links_are_held(seed: int, random: Any) -> None:
    rows = random_copies(seed)
    deltas = {row.adapter: row.delta for row in rows if row.delta is not None}

    def read(part: Sequence[Any]) -> list[tuple[int, Any]]:
        places = [n for n, row in enumerate(part) if row.adapter in deltas]
        return [(n, deltas[part[n].adapter]) for n in random.sample(places, len(places))]

    plain = [replace(row, delta=None) for row in rows]
    expected = duplicates(rows), families(rows)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("catalog.fingerprints.copies._MOST_LINKS", 2)
        assert (duplicates(plain, deltas=read), families(plain, deltas=read)) == expected


def test_many_copies_of_one_update_take_memory_of_their_number() -> None:
    """All pairs of 700 are 244,650 links."""
    copies = [copy(f"o/{n:03}", at(1), weights_digest=f"f{n}") for n in range(700)]
    tracemalloc.start()
    groups, found = duplicates(copies), families(copies)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert [len(group.members) for group in groups] == [len(family.members) for family in found] == [700]
    assert peak < 40 * 2**20


@pytest.mark.parametrize("has_room", [True, False])
def test_vectors_in_a_file_give_the_same_groups(has_room: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of those that cannot be compared, and of more than one block of vectors, too."""
    random = np.random.default_rng(0)
    vectors = random.standard_normal((700, 64)).astype(np.float32)
    vectors[300:600] = vectors[:300] * 2
    vectors[::7], vectors[100] = 0, np.nan
    rows = [
        copy(f"o/{number:03}", vector, weights_digest=f"f{number}") for number, vector in enumerate(vectors)
    ]
    expected = duplicates(rows)
    made = []

    def fallocate(file: int, start: int, length: int) -> None:
        made.append(length)
        if not has_room:
            raise OSError(errno.ENOSPC, "full")
        os.ftruncate(file, length)

    monkeypatch.setattr("catalog.fingerprints.copies._MOST_HELD", 0)
    monkeypatch.setattr(os, "posix_fallocate", fallocate, raising=False)
    assert duplicates(rows) == expected
    assert made == [4 * 700 * 64]
    pairs = [(n, n + 300) for n in range(300) if n % 7 and (n + 300) % 7 and n != 100]
    assert members(expected) == [(f"o/{a:03}", f"o/{b:03}") for a, b in pairs]


def test_exact_values_of_kept_files_and_read_vectors_give_the_same_groups() -> None:
    """Between the bounds of sketches and of candidates only pairs of kept files can be joined."""
    rows = [
        copy(f"o/{name}", at(cosine), weights_digest=f"f{name}")
        for name, cosine in zip("abcdef", (1, 0.9995, 0.995, 0.9949, 0.993, 0.99), strict=True)
    ]
    deltas = {row.adapter: row.delta for row in rows}
    groups = []
    for kept in (set(), {"fa", "fc"}, {row.weights_digest for row in rows}):

        def exact(left: str, right: str, kept: set[str] = kept) -> float | None:
            return 1.0 if {f"f{left[2:]}", f"f{right[2:]}"} <= kept else None

        groups.append(duplicates(rows, exact=exact))
        plain = [replace(row, delta=None) for row in rows]
        read = lambda part: [(n, deltas[row.adapter]) for n, row in enumerate(part)][::-1]  # noqa: E731
        assert duplicates(plain, exact=exact, deltas=read, kept=kept) == groups[-1]
    assert len({str(found) for found in groups}) == len(groups)


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 10_000), st.sampled_from([0, 5, 1000]), st.booleans(), st.randoms())
def test_representatives_that_are_asked_for_are_those_of_all(
    seed: int, most: int, by_files: bool, random: Any
) -> None:
    rows = random_copies(seed)
    digests = {row.adapter: row.weights_digest for row in rows}
    kept = {digest for digest in digests.values() if random.random() < 0.7} if by_files else None

    def exact(left: str, right: str) -> float | None:
        both_kept = kept is not None and {digests[left], digests[right]} <= kept
        return (0.5, 1.0)[(len(left) + len(right)) % 2] if both_kept else None

    expected = representatives(rows, exact=exact if by_files else None, kept=kept)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("catalog.fingerprints.copies._MOST_ASKED", most)
        asked = RepresentativesOnDemand(rows, exact if by_files else None, kept=kept)
        assert {name: asked[name] for name in random.sample(list(asked), len(asked))} == expected


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 10_000), st.sampled_from(["file", "tensor", "delta"]))
def test_every_adapter_has_one_representative(seed: int, level: str) -> None:
    rows = random_copies(seed)
    result = representatives(rows, level)
    assert set(result) == {row.adapter for row in rows}
    grouped = {name: group.members[0] for group in duplicates(rows, level) for name in group.members}
    assert result == {name: grouped.get(name, name) for name in result}


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 10_000))
def test_every_adapter_is_in_one_family_at_most(seed: int) -> None:
    result = families(random_copies(seed))
    by_name = [name for family in result for name in family.members]
    assert len(by_name) == len(set(by_name))
    assert all(len(family.members) > 1 and family.why for family in result)
    assert all(len({name.split("/")[0] for name in family.members}) == 1 for family in result)
    assert len({family.name for family in result}) == len(result)


def test_a_thousand_with_planted_copies_are_found_exactly() -> None:
    random = np.random.default_rng(0)
    vectors = random.standard_normal((1000, 1024)).astype(np.float32)
    vectors[500:550] = vectors[:50] + 0.01 * random.standard_normal((50, 1024))
    rows = [copy(f"o/{number:04d}", vector) for number, vector in enumerate(vectors)]
    assert members(duplicates(rows)) == [(f"o/{n:04d}", f"o/{n + 500:04d}") for n in range(50)]


@pytest.mark.parametrize("size", [1, 7, 384, 1035])
def test_equal_rows_have_equal_cosines_wherever_they_stand(size: int) -> None:
    random = np.random.default_rng(0)
    row, query = random.standard_normal(size).astype(np.float32), random.standard_normal(size)
    result = set()
    for count in (1, 2, 5, 33, 500):
        rows = random.standard_normal((count, size)).astype(np.float32)
        for place in {0, count // 2, count - 1}:
            rows[place] = row
            result |= {
                float(cosines(rows, query)[place]),
                float(cosines(rows, np.tile(query, (count, 1)))[place]),
                sketch_cosine(row, query),
                sketch_cosine(query, row),
            }
    assert len(result) == 1
    zero = np.zeros_like(row)
    assert [sketch_cosine(*pair) for pair in ((row, zero), (zero, row), (zero, zero))] == [0.0] * 3


@pytest.mark.parametrize("tile", [1, 50, 8 << 20])
def test_tiles_do_not_change_the_pairs(tile: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("catalog.fingerprints.copies._TILE", tile)
    monkeypatch.setattr("catalog.fingerprints.copies._PAIRS", min(tile, 4096))
    values = np.random.default_rng(0).standard_normal((25, 5))
    units = (values / np.linalg.norm(values, axis=1, keepdims=True)).astype(np.float32)
    table = units.astype(np.float64) @ units.T
    expected = [(a, b) for a in range(25) for b in range(a + 1, 25) if table[a, b] >= 0.3]
    result = list(near_pairs(units, 0.3))
    assert [pair[:2] for pair in result] == expected
    assert [pair[2] for pair in result] == pytest.approx([table[pair] for pair in expected], abs=1e-6)


@pytest.mark.parametrize("cells", [1, 7, 64])
@pytest.mark.parametrize("at_least", [0.97, 0.99, 0.999, 1.0])
@pytest.mark.parametrize("directions", [0, 1, 5])
def test_cells_do_not_change_the_pairs(
    cells: int, at_least: float, directions: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Rows around some directions or none, and others at all distances from these, on the line to another row
    too, where cells meet.
    """
    random = np.random.default_rng(cells)
    values = random.standard_normal((900, 256)) / 16
    if directions:
        values += random.standard_normal((directions, 256))[np.arange(900) % directions] / 8
    noise = np.geomspace(1e-4, 0.5, 150)[:, None] * random.standard_normal((150, 256)) / 16
    values[600:750] = values[:150] + noise
    shares = np.linspace(0, 1, 150)[:, None]
    values[750:] = shares * values[0] + (1 - shares) * values[1]
    values[300:310] = values[0]
    order = random.permutation(900)
    units = (values / np.linalg.norm(values, axis=1, keepdims=True)).astype(np.float32)[order]
    expected = list(near_pairs(units, at_least))
    for name, value in {"LEAST_DIVIDED": 1, "LEAST_CELLS": cells, "MOST_CELLS": cells, "LEFT": 50}.items():
        monkeypatch.setattr(f"catalog.fingerprints.copies._{name}", value)
    assert sorted(near_pairs(units, at_least)) == expected
    table = np.triu(units.astype(np.float64) @ units.T.astype(np.float64), 1)
    surely, perhaps = (set(map(tuple, np.argwhere(table >= at_least + by).tolist())) for by in (1e-6, -1e-6))
    assert surely <= {pair[:2] for pair in expected} <= perhaps
    assert len(expected) > 30


# Families.


@pytest.mark.parametrize(
    ("name", "series"),
    [
        ("task-3_60-samples_config-1", "task-#_#-samples_config-#"),
        ("69a1e65c-7b42-4cd2-a62e-83ebd6aeb089", "#"),
        ("run-69A1E65C-7B42-4CD2-A62E-83EBD6AEB089_b", "run-#_b"),
        ("tune_0badf00d_x", "tune_#_x"),
        ("effaced-facade", "effaced-facade"),
        ("feedbackaccede", "feedbackaccede"),
        ("playpen_0.93K-steps", "playpen_#K-steps"),
        ("model_2e-4_alpha-8", "model_#_alpha-#"),
        ("model_5e-05_alpha-128", "model_#_alpha-#"),
        ("math_0.0001_1ep_div_", "math_#_#ep_div_"),
        ("layer_-11", "layer_-#"),
        ("no digits", "no digits"),
    ],
)
def test_what_changes_in_the_names_of_a_series(name: str, series: str) -> None:
    assert series_name(name) == series


def test_the_folders_of_a_repository_are_a_family() -> None:
    rows = [copy("o/a"), copy("o/a:checkpoint-100"), copy("o/a:checkpoint-200"), copy("o/b"), copy("p/a")]
    assert families(rows) == [
        Family(
            "o/a", ("o/a", "o/a:checkpoint-100", "o/a:checkpoint-200"), "several adapters in one repository"
        )
    ]


def test_three_names_that_differ_in_numbers_are_a_series_of_one_owner() -> None:
    rows = [copy(name) for name in ("o/fold-1", "o/fold-2", "o/fold-10", "o/fold", "p/fold-3", "p/fold-4")]
    assert families(rows) == [
        Family("o/fold-#", ("o/fold-1", "o/fold-10", "o/fold-2"), "3 names of one series")
    ]


@pytest.mark.parametrize(
    ("cosine", "base", "found"), [(0.51, BASE, 1), (0.49, BASE, 0), (-0.6, BASE, 0), (1.0, "acme/big", 0)]
)
def test_two_names_need_updates_that_are_alike(cosine: float, base: str, found: int) -> None:
    rows = [copy("o/fold-1", at(1)), copy("o/fold-2", at(cosine), base=base)]
    whys = ["2 names of one series with delta cosine from 0.5"][:found]
    assert [family.why for family in families(rows)] == whys
    # Two adapters of one of the repositories say nothing about the other.
    rows = [copy("o/fold-1", at(0, 3)), copy("o/fold-2:a", at(1)), copy("o/fold-2:b", at(1))]
    assert [family.members for family in families(rows)] == [("o/fold-2:a", "o/fold-2:b")]


@pytest.mark.parametrize(
    ("other", "cosine", "found"), [("o/b", 0.91, 1), ("o/b", 0.89, 0), ("p/b", 0.99, 0), ("o/b", -0.99, 0)]
)
def test_training_that_went_on_makes_a_family_of_one_owner(other: str, cosine: float, found: int) -> None:
    rows = [copy("o/a", at(1)), copy(other, at(cosine))]
    assert families(rows) == [Family("o/a", ("o/a", "o/b"), "delta cosine from 0.91")][:found]


def test_links_of_several_kinds_make_one_family() -> None:
    rows = [copy(f"o/fold-{n}") for n in range(3)] + [copy("o/fold-0:last"), copy("o/fold-3", at(1))]
    rows += [copy("o/zz", at(0.95)), copy("o/alone", at(0, 4))]
    (family,) = families(rows)
    assert family.name == "o/fold-#"
    assert family.members == ("o/fold-0", "o/fold-0:last", "o/fold-1", "o/fold-2", "o/fold-3", "o/zz")
    assert family.why == "4 names of one series; several adapters in one repository; delta cosine from 0.95"


@shared
def test_the_families_of_the_recycling_pool() -> None:
    names = (data("recycling_paper") / "pool_ids.txt").read_text(encoding="utf-8").split()
    result = {family.name: family.members for family in families([copy(name) for name in names])}
    assert len(names) == 960
    sizes = {name: len(result[name]) for name in result}
    assert sizes["GaetanMichelet/Llama-#-#B_task-#_#-samples_config-#"] == 36
    of_owner = Counter(name.split("/")[0] for members in result.values() for name in members)
    assert of_owner["GaetanMichelet"] == 98
    assert of_owner["clembench-playpen"] == 82
    assert of_owner["chchen"] == 57
    # Tuning jobs with uuids for names: a family of each owner of three or more.
    jobs = Counter(name.split("/")[0] for name in names if series_name(name.split("/")[1]) == "#")
    assert sum(jobs.values()) == 187
    assert {name for name in result if name.endswith("/#")} == {f"{job}/#" for job in jobs if jobs[job] >= 3}
    assert (len(result), sum(sizes.values())) == (64, 453)
