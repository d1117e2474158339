"""Coefficients written down as an adapter: what is on the disk is what was live."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from catalog.errors import MergeError, StorageError, UsageError
from merging.learning.combination import ADAPT_RECORD, combine
from merging.members import MergeMember, iterate_stacks, load_member, shapes
from tests.merging.adapters import ALL, Q, adapter, deltas, distance, total

V = "model.layers.0.self_attn.v_proj"


@pytest.fixture
def members(tmp_path: Path) -> list[MergeMember]:
    """Three of mixed ranks, scalings and modules."""
    return [
        load_member(adapter(tmp_path / "m0", 0, rank=2)),
        load_member(adapter(tmp_path / "m1", 1, rank=4, modules=(Q, V), use_rslora=True)),
        load_member(adapter(tmp_path / "m2", 2, rank=3, ranks={Q: 5}, lora_alpha=1)),
    ]


def expected(members: list[MergeMember], numbers: dict[str, list[float]]) -> dict[str, torch.Tensor]:
    result = [deltas(member.folder) for member in members]
    return {
        name: sum(c * delta[name] for c, delta in zip(row, result, strict=True) if name in delta)  # type: ignore[misc]
        for name, row in numbers.items()
    }


def test_every_module_has_its_own_weighted_sum(members: list[MergeMember], tmp_path: Path) -> None:
    numbers = {name: [0.5 + n, -1.0, 0.3 * n] for n, name in enumerate(ALL, 1)}
    report = combine(members, numbers, tmp_path / "out")
    assert distance(deltas(tmp_path / "out"), expected(members, numbers)) < 1e-6
    assert report.modules[Q].rank == 2 + 4 + 5
    assert report.record["combined"]["totals"]["discarded"] == 0


def test_what_counts_for_nothing_is_left_out(members: list[MergeMember], tmp_path: Path) -> None:
    numbers = {Q: [0.0, 2.0, 0.0], V: [0.0, 0.0, 0.0], ALL[2]: [1.0, 0.0, 0.0]}
    report = combine(members, numbers, tmp_path / "out")
    assert {name: module.rank for name, module in report.modules.items()} == {Q: 4, ALL[2]: 2}
    written = deltas(tmp_path / "out")
    assert distance(written, expected(members, {Q: numbers[Q], ALL[2]: numbers[ALL[2]]})) < 1e-6
    config = json.loads((tmp_path / "out" / "adapter_config.json").read_text())
    assert config["target_modules"] == sorted([Q, ALL[2]])


def test_a_coefficient_a_rank_scales_that_rank(members: list[MergeMember], tmp_path: Path) -> None:
    report = combine(members[:1], {Q: [[0.0, 3.0]]}, tmp_path / "out")
    stack = next(stack for stack in iterate_stacks(members[:1]) if stack.name == Q)
    assert report.modules[Q].rank == 1
    item = 3 * stack.b[:, 1:].double() @ stack.a[1:].double()
    assert distance(deltas(tmp_path / "out"), {Q: item}) < 1e-6


@pytest.mark.parametrize("rank", [1, 3, 6])
def test_a_truncation_is_the_best_and_says_what_it_drops(
    rank: int, members: list[MergeMember], tmp_path: Path
) -> None:
    numbers = {name: [1.0, -0.5, 0.7] for name in ALL}
    report = combine(members, numbers, tmp_path / "out", rank=rank)
    written, exact = deltas(tmp_path / "out"), expected(members, numbers)
    for name, complete in exact.items():
        squares = torch.linalg.svdvals(complete).square()
        lost = float(squares[rank:].sum())
        assert float((written[name] - complete).square().sum()) == pytest.approx(lost, rel=1e-3, abs=1e-6)
        assert report.modules[name].discarded == pytest.approx(lost, rel=1e-3, abs=1e-6)
        assert report.modules[name].rank <= rank
    totals = report.record["combined"]["totals"]
    assert totals["discarded"] == pytest.approx(sum(m.discarded for m in report.modules.values()))


def test_the_record_is_beside_it(members: list[MergeMember], tmp_path: Path) -> None:
    report = combine(members, {Q: [1, 1, 1]}, tmp_path / "out", record={"task": "rte", "seed": 3})
    document = json.loads((tmp_path / "out" / ADAPT_RECORD).read_text())
    assert (document["task"], document["seed"]) == ("rte", 3)
    assert document["combined"]["modules"][Q]["rank"] == 11
    assert document == report.record
    assert sorted(file.name for file in (tmp_path / "out").iterdir()) == [
        "adapt.json",
        "adapter_config.json",
        "adapter_model.safetensors",
    ]


def test_twice_is_the_same_to_the_byte(members: list[MergeMember], tmp_path: Path) -> None:
    for out in ("one", "two"):
        combine(members, {name: [1.0, 0.5, -1.0] for name in ALL}, tmp_path / out, rank=3)
    for file in (tmp_path / "one").iterdir():
        assert file.read_bytes() == (tmp_path / "two" / file.name).read_bytes()


def test_trained_factors_are_written_instead_of_the_files(members: list[MergeMember], tmp_path: Path) -> None:
    stacks = list(iterate_stacks(members))
    for stack in stacks:
        stack.a.mul_(2)
    combine(members, {name: [1.0] * 3 for name in ALL}, tmp_path / "out", stacks=stacks)
    doubled = total([2.0] * 3, [member.folder for member in members])
    assert distance(deltas(tmp_path / "out"), doubled) < 1e-6


def test_only_its_own_folders_are_replaced(members: list[MergeMember], tmp_path: Path) -> None:
    out = tmp_path / "out"
    combine(members, {Q: [1, 1, 1]}, out)
    with pytest.raises(UsageError, match="exists; use another"):
        combine(members, {Q: [2, 2, 2]}, out)
    combine(members, {Q: [2, 2, 2]}, out, overwrite=True)
    assert distance(deltas(out), expected(members, {Q: [2.0, 2.0, 2.0]})) < 1e-6
    with pytest.raises(UsageError, match="is not overwritten"):
        combine(members, {Q: [1, 1, 1]}, members[0].folder, overwrite=True)
    assert load_member(members[0].folder).spec == members[0].spec


@pytest.mark.parametrize(
    ("numbers", "options", "error", "message"),
    [
        ({Q: [0, 0, 0]}, {}, MergeError, "no adapter was written"),
        ({}, {}, MergeError, "no adapter was written"),
        ({"norm": [1, 1, 1]}, {}, UsageError, "No member has a module norm"),
        ({Q: [1, 1, 1]}, {"rank": 0}, UsageError, "must be at least 1"),
        ({Q: [1, 1, 1]}, {"dtype": "int8"}, UsageError, "not a supported data type"),
        ({Q: [1e30, 1, 1]}, {"dtype": "float16"}, MergeError, "write float32 instead"),
    ],
)
def test_what_cannot_be_written_leaves_nothing_behind(
    numbers: dict[str, Any],
    options: dict[str, Any],
    error: type[Exception],
    message: str,
    members: list[MergeMember],
    tmp_path: Path,
) -> None:
    with pytest.raises(error, match=message):
        combine(members, numbers, tmp_path / "new" / "out", **options)
    assert not list((tmp_path / "new").glob("*")) if (tmp_path / "new").exists() else True


def test_a_folder_that_cannot_be_made_is_a_sentence(members: list[MergeMember], tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(StorageError, match="cannot be written"):
        combine(members, {Q: [1, 1, 1]}, tmp_path / "file" / "out")


def test_live_trained_and_written_agree(tmp_path: Path) -> None:
    pytest.importorskip("transformers")
    from merging.learning.coefficients import Coefficients, Design
    from merging.live import LiveStack
    from tests.merging.llama import mixed, tiny, tokens

    model = tiny()
    members = mixed(tmp_path / "members", model)
    live = LiveStack(model, members, train_factors=True)
    result = Coefficients(
        live.shapes, [m.name for m in members], Design("module", "leaky_relu", "normal", seed=1)
    )
    optimiser = torch.optim.SGD([result.raw, *(f for pair in live.factors.values() for f in pair)], lr=1e-4)
    with live.attach():
        live.set_scales(result.scales())
        model(tokens()).logits.square().mean().backward()
        optimiser.step()
        with torch.no_grad():
            live.set_scales(result.scales())
            trained = model(tokens()).logits
    combine(members, result.numbers(), tmp_path / "out", dtype="float32", stacks=live.stacks())
    written = LiveStack(model, [load_member(tmp_path / "out")])
    with written.attach(), torch.no_grad():
        assert torch.allclose(model(tokens()).logits, trained, atol=1e-5 * float(trained.abs().max()))
    assert [shape.name for shape in shapes([load_member(tmp_path / "out")])] == [s.name for s in live.shapes]
