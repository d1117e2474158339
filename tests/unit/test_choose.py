"""Choosing from a ranking: limits hold, random choices depend on the seed and on nothing else."""

from __future__ import annotations

from collections import Counter
from typing import Any

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from catalog.adapters import StoredAdapter
from catalog.errors import UsageError
from catalog.selection.limits import (
    PoolLimits,
    Ranked,
    by_rank,
    draw,
    let_in,
    match_recipes,
    random_order,
    shuffle_scores,
    take_members,
    without,
)


def candidate(number: int, **over: Any) -> StoredAdapter:
    """An adapter; its number decides what is not given."""
    facts: dict[str, Any] = {
        "id": number,
        "repository": f"o{number % 3}/r{number}",
        "hub_id": f"{number:024x}",
        "owner": f"o{number % 3}",
        "commit": "c" * 40,
        "subfolder": "",
        "base": "acme/base",
        "rank": 2 ** (number % 4 + 2),
        "alpha": 16.0,
        "scaling": 2.0,
        "use_rslora": False,
        "targets": ["q_proj", "v_proj"] if number % 2 else ["q_proj"],
        "parameters": 100 * (number + 1),
        "norm": 1.0 + number,
        "license": "mit",
        "partial": None,
        "scaling_pattern": "",
        "weights_digest": f"{number:064x}",
        "weights_name": "adapter_model.safetensors",
        "tensor_digest": None,
        "config_digest": "d" * 40,
        "card_digest": None,
    }
    return StoredAdapter(**(facts | over))


MANY = [candidate(number) for number in range(40)]


def names(rows: list[Ranked]) -> list[str]:
    return [row.candidate.adapter for row in rows]


def test_random_order_is_of_the_seed_alone() -> None:
    first = names(random_order(MANY, 0))
    assert first == names(random_order(MANY[::-1], 0))
    assert sorted(first) == sorted(row.adapter for row in MANY)
    assert first != names(random_order(MANY, 1))
    fewer = names(random_order(MANY[::2], 0))
    assert fewer == [name for name in first if name in set(fewer)], "who else is there changes no order"


def test_draws_are_uniform_and_pinned() -> None:
    samples = [draw(0, str(number)) for number in range(4000)]
    assert abs(sum(samples) / 4000 - 0.5) < 0.02
    assert Counter(int(10 * value) for value in samples).most_common()[-1][1] > 320
    # blake2b, eight bytes, of "7\0word", over 2^64: worked out with the coreutils program b2sum -l 64.
    assert draw(7, "word") == int("574bd6522a5b6c21", 16) / 2**64


@given(
    st.integers(1, 12),
    st.none() | st.integers(1, 4),
    st.none() | st.integers(1, 3),
    st.none() | st.integers(500, 20_000),
    st.integers(0, 5),
)
def test_no_limit_is_ever_broken(
    count: int, per_owner: int | None, per_family: int | None, parameters: int | None, seed: int
) -> None:
    families = {row.adapter: f"family {row.id % 5}" for row in MANY}
    groups = {row.adapter: f"group {row.id // 2}" for row in MANY}
    limits = PoolLimits(count, per_owner, per_family, parameters, groups, families)
    ranking = random_order(MANY, seed)
    try:
        selected = take_members(ranking, limits)
    except UsageError:
        assume(False)
    assert len(selected) == count
    rows = [row.candidate for row in selected]
    assert max(Counter(row.owner for row in rows).values()) <= (per_owner or count)
    assert max(Counter(families[row.adapter] for row in rows).values()) <= (per_family or count)
    assert len({groups[row.adapter] for row in rows}) == count
    assert sum(row.parameters or 0 for row in rows) <= (parameters or 10**9)
    assert names(selected) == [name for name in names(ranking) if name in set(names(selected))]


def test_more_than_there_are_is_one_sentence() -> None:
    with pytest.raises(UsageError, match="Only 40 of 40 adapters are left, not 41; request"):
        take_members(random_order(MANY, 0), PoolLimits(41))
    with pytest.raises(UsageError, match="at least 1"):
        PoolLimits(0)


def test_too_few_are_told_with_what_left_the_others_out() -> None:
    groups = {row.adapter: f"group {row.id // 2}" for row in MANY}
    ranking = random_order(MANY, 0)
    with pytest.raises(UsageError) as refused:
        take_members(
            ranking, PoolLimits(30, per_owner=7, groups=groups), {"refused by the rules": 5, "unread": 0}
        )
    document = str(refused.value)
    selected, beyond = let_in(ranking, PoolLimits(None, per_owner=7, groups=groups))
    assert document.startswith(
        f"Only {len(selected)} of 45 adapters are left, not 30: 5 refused by the rules, "
    )
    assert {"beyond 7 of one owner", "duplicates of another"} == set(beyond)
    assert all(f"{count} {why}" in document for why, count in beyond.items())
    assert "unread" not in document
    assert len(selected) + sum(beyond.values()) == len(MANY)


def test_all_are_all_that_the_limits_let_in() -> None:
    assert take_members(random_order(MANY, 0), PoolLimits(None)) == random_order(MANY, 0)
    with pytest.raises(UsageError, match="Only 0 of 3 adapters are left: 3 refused; request"):
        take_members([], PoolLimits(None), {"refused": 3})


def test_largest_rank_first() -> None:
    ranked = by_rank([*MANY, candidate(99, rank=None)])
    assert [row.score for row in ranked] == sorted((row.score for row in ranked), reverse=True)
    assert "o0/r99" not in names(ranked)


def test_a_matched_pool_has_the_recipes_of_the_other_and_none_of_its_members() -> None:
    pool = [candidate(number) for number in (0, 1, 2, 3)]
    result = match_recipes(MANY, pool, 3)
    assert len(result) == 4
    assert not {row.candidate.id for row in result} & {row.id for row in pool}
    for row, member in zip(result, pool, strict=True):
        assert (row.candidate.rank, row.candidate.targets) == (member.rank, member.targets)
        assert f"drawn for {member.adapter}" in row.why
    assert names(result) == names(match_recipes(MANY[::-1], pool, 3))
    assert names(result) != names(match_recipes(MANY, pool, 4))


def test_a_match_keeps_what_it_can_and_says_so() -> None:
    alone = candidate(1, rank=77, targets=["lm_head"], norm=1e9)
    [result] = match_recipes(MANY, [alone], 0)
    assert "same nothing" in result.why
    near = [candidate(5, rank=77, targets=["lm_head"], norm=7e8), *MANY]
    [result] = match_recipes(near, [alone], 0)
    assert result.candidate.id == 5
    assert "same rank, targets, norm, number an owner" in result.why


def test_a_shuffle_keeps_the_scores_and_moves_them() -> None:
    ranking = by_rank(MANY)
    moved = shuffle_scores(ranking, 0)
    assert [row.score for row in moved] == [row.score for row in ranking]
    assert sorted(names(moved)) == sorted(names(ranking))
    assert names(moved) != names(ranking)


def test_excluded_are_adapters_repositories_or_owners() -> None:
    assert {row.owner for row in without(MANY, ["o1"])} == {"o0", "o2"}
    assert len(without(MANY, ["o0/r0"])) == 39
    with pytest.raises(UsageError, match="nobody is not among the adapters"):
        without(MANY, ["nobody"])
