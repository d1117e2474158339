"""Stand-ins of members: what they keep, what they destroy, and that they are the same every time."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from catalog.errors import MergeError, UsageError
from catalog.selection.selection import STAND_INS
from merging.members import MergeMember, digest_of, load_member, read_module
from merging.static import controls
from merging.static.controls import CONTROL_NAME, KINDS, _pool_spread, _stand_in, entry_deviations, stand_ins
from tests.hubs import adapter_config
from tests.merging.adapters import deltas, merge

BASES: Mapping[str, tuple[int, int]] = {"self_attn.q_proj": (24, 24), "mlp.down_proj": (40, 24)}
RANDOM = [kind for kind in KINDS if kind.startswith("random")]


def layer_up(
    folder: Path,
    seed: int = 0,
    layers: Sequence[int] = range(5),
    rank: int = 4,
    dtype: torch.dtype = torch.float32,
    scale: float = 1.0,
    **config: Any,
) -> Path:
    """An adapter of random factors in several layers; the spread of B grows with the layer."""
    generator = torch.Generator().manual_seed(seed)
    tensors = {}
    for layer in layers:
        for place, (inside, outside) in BASES.items():
            stem = f"base_model.model.model.layers.{layer}.{place}.lora_"
            b = torch.randn(outside, rank, generator=generator) * scale * (layer + 1)
            tensors[f"{stem}A.weight"] = torch.randn(rank, inside, generator=generator).to(dtype)
            tensors[f"{stem}B.weight"] = b.to(dtype)
    folder.mkdir(parents=True)
    save_file(tensors, folder / "adapter_model.safetensors")
    fields: dict[str, Any] = {"r": rank, "lora_alpha": 2 * rank, "target_modules": ["q_proj", "down_proj"]}
    (folder / "adapter_config.json").write_text(json.dumps(adapter_config(**fields | config)))
    return folder


def one_pair(folder: Path, a: list[list[float]], b: list[list[float]]) -> MergeMember:
    """An adapter of one module worked by hand."""
    stem = "base_model.model.model.layers.0.self_attn.q_proj.lora_"
    folder.mkdir(parents=True)
    tensors = {f"{stem}A.weight": torch.tensor(a), f"{stem}B.weight": torch.tensor(b)}
    save_file(tensors, folder / "adapter_model.safetensors")
    config = adapter_config(r=len(a), lora_alpha=len(a), target_modules=["q_proj"])
    (folder / "adapter_config.json").write_text(json.dumps(config))
    return load_member(folder)


def spectra(folder: Path) -> dict[str, Tensor]:
    return {name: torch.linalg.svdvals(delta) for name, delta in deltas(folder).items()}


def facts(member: MergeMember) -> list[tuple[object, ...]]:
    """Everything of the modules but the values."""
    return [(m.name, m.kind, m.in_features, m.out_features, m.rank, m.scaling) for m in member.spec.modules]


def test_every_control_that_a_selection_names_is_there() -> None:
    assert set(STAND_INS) <= set(KINDS)


def stand_in(
    member: MergeMember, kind: str, out: Path, seed: int = 0, pool: Sequence[MergeMember] | None = None
) -> MergeMember:
    """A stand-in of one member; the pool is by default the member alone."""
    return _stand_in(member, kind, out, seed, *_pool_spread(kind, pool or (member,)))


def test_the_spread_of_a_pool_worked_by_hand(tmp_path: Path) -> None:
    # A: 1 3 and 5 7, mean 4, squares 9 1 1 9, so std = sqrt(20 / 3); B: 2 and 4, mean 3, std = sqrt 2.
    first = one_pair(tmp_path / "a", [[1.0, 3.0]], [[2.0]])
    second = one_pair(tmp_path / "b", [[5.0, 7.0]], [[4.0]])
    (result,) = entry_deviations([first, second]).values()
    assert list(result) == pytest.approx([math.sqrt(20 / 3), math.sqrt(2)], rel=1e-14)
    # Alone: A of 1 and 3 has sqrt 2, B is a single number.
    (alone,) = entry_deviations([first]).values()
    assert list(alone) == pytest.approx([math.sqrt(2), 0.0], rel=1e-14)


def test_the_pooled_spread_is_that_of_all_factors_in_one_tensor(tmp_path: Path) -> None:
    """As the recycling paper's code has it: unequal ranks, scalings left out, missing modules passed over."""
    members = [
        load_member(layer_up(tmp_path / "a", 1, scale=0.1)),
        load_member(layer_up(tmp_path / "b", 2, rank=8, scale=3.0, lora_alpha=128)),
        load_member(layer_up(tmp_path / "c", 3, layers=range(2))),
    ]
    result = entry_deviations(members)
    for name, (std_a, std_b) in result.items():
        here = [read_module(member, name) for member in members if name in member.modules]
        assert std_a == pytest.approx(float(torch.cat([a for a, _ in here]).double().std()), rel=1e-12)
        assert std_b == pytest.approx(float(torch.cat([b for _, b in here], 1).double().std()), rel=1e-12)
    assert len(result) == 10


@pytest.mark.parametrize("kind", KINDS)
def test_names_ranks_and_scalings_stay(kind: str, tmp_path: Path) -> None:
    patterns = {
        "rank_pattern": {"down_proj": 2},
        "alpha_pattern": {r"layers\.[0-4]\.self_attn\.q_proj": 64.0},
        "use_rslora": True,
    }
    folder = layer_up(tmp_path / "m")
    path = folder / "adapter_model.safetensors"
    cut = {
        name: (tensor[:2] if ".lora_A" in name else tensor[:, :2]) if "down_proj" in name else tensor
        for name, tensor in load_file(path).items()
    }
    save_file({name: tensor.contiguous() for name, tensor in cut.items()}, path)
    document = json.loads((folder / "adapter_config.json").read_text())
    (folder / "adapter_config.json").write_text(json.dumps(document | patterns))
    member = load_member(folder, name="owner/m", source={"commit": "c0ffee"})
    result = stand_in(member, kind, tmp_path / "out", seed=3)
    assert facts(result) == facts(member)
    assert {m.scaling for m in result.spec.modules} == {8 / math.sqrt(2), 64 / math.sqrt(4)}
    assert (result.config.base_model, result.name) == (member.config.base_model, f"owner/m:{kind}:3")
    assert result.source["commit"] == "c0ffee"
    assert result.digest == digest_of(result.weights)


@pytest.mark.parametrize("kind", KINDS)
def test_the_folder_says_name_seed_and_source(kind: str, tmp_path: Path) -> None:
    member = load_member(layer_up(tmp_path / "m"), name="owner/m")
    stand_in(member, kind, tmp_path / "out", seed=7)
    record = json.loads((tmp_path / "out" / CONTROL_NAME).read_text())
    assert (record["control"], record["seed"], record["of"]) == (kind, 7, "owner/m")
    assert record["of_sha256"] == digest_of(member.weights)
    assert record["pool_sha256"] == ([digest_of(member.weights)] if kind == "random-pooled" else [])


@pytest.mark.parametrize("kind", KINDS)
def test_the_same_call_writes_the_same_bytes_and_another_seed_others(kind: str, tmp_path: Path) -> None:
    member = load_member(layer_up(tmp_path / "m"))
    for name, seed in (("a", 0), ("b", 0), ("c", 1)):
        stand_in(member, kind, tmp_path / name, seed=seed)
    first, second, other = (
        {path.name: path.read_bytes() for path in (tmp_path / name).iterdir()} for name in "abc"
    )
    assert first == second
    assert first["adapter_model.safetensors"] != other["adapter_model.safetensors"]


@pytest.mark.parametrize("kind", RANDOM)
def test_members_modules_and_sides_have_numbers_of_their_own(kind: str, tmp_path: Path) -> None:
    """Cosines between the factors of two members of one name, of two layers, and of A and B."""
    folders = [layer_up(tmp_path / f"{n}" / "adapter", n) for n in range(2)]
    first, second = (
        load_file(m.weights) for m in stand_ins([load_member(f) for f in folders], kind, tmp_path / "o")
    )
    stem = "base_model.model.model.layers.{}.self_attn.q_proj.lora_{}.weight"
    a = first[stem.format(0, "A")].flatten()
    for other in (
        second[stem.format(0, "A")],
        first[stem.format(1, "A")],
        first[stem.format(0, "B")].T,
        first[stem.format(0, "B")],
    ):
        # 96 numbers: a cosine of unrelated ones has a standard deviation of 0.1.
        assert abs(float(torch.cosine_similarity(a, other.flatten(), 0))) < 0.4


def test_random_each_has_each_factors_own_spread_and_no_mean(tmp_path: Path) -> None:
    """12 normal factors: mean and variance within 4.5 of their standard errors, kurtosis that of a normal."""
    member = load_member(layer_up(tmp_path / "m", rank=20))
    result = stand_in(member, "random-each", tmp_path / "out")
    original = load_file(member.weights)
    scaled = []
    for name, values in load_file(result.weights).items():
        std = float(original[name].double().std())
        numbers = values.double().flatten() / std
        assert abs(float(numbers.mean())) < 4.5 / math.sqrt(len(numbers))
        assert abs(float(numbers.square().mean()) - 1) < 4.5 * math.sqrt(2 / len(numbers))
        scaled.append(numbers)
    everything = torch.cat(scaled)
    assert float(everything.pow(4).mean()) == pytest.approx(3, abs=4.5 * math.sqrt(96 / len(everything)))


def test_random_pooled_has_the_pools_spread_in_every_member(tmp_path: Path) -> None:
    members = [load_member(layer_up(tmp_path / f"m{n}", n, rank=16, scale=s)) for n, s in enumerate((0.1, 5))]
    result = stand_ins(members, "random-pooled", tmp_path / "out")
    pooled = entry_deviations(members)
    for item in result:
        for name, (std_a, std_b) in pooled.items():
            for values, std in zip(read_module(item, name), (std_a, std_b), strict=True):
                error = 4.5 * math.sqrt(2 / values.numel())
                assert float(values.double().square().mean()) / std**2 == pytest.approx(1, abs=error)


def test_a_stand_in_alone_is_the_one_of_its_pool(tmp_path: Path) -> None:
    members = [load_member(layer_up(tmp_path / f"m{n}", n)) for n in range(2)]
    together = stand_ins(members, "random-pooled", tmp_path / "all", seed=2)
    alone = stand_in(members[1], "random-pooled", tmp_path / "one", seed=2, pool=members)
    assert alone.digest == together[1].digest


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_random_directions_keep_every_singular_value(dtype: torch.dtype, tmp_path: Path) -> None:
    member = load_member(layer_up(tmp_path / "m", dtype=dtype, lora_alpha=3, use_rslora=True))
    result = stand_in(member, "random-directions", tmp_path / "out")
    after = spectra(result.folder)
    for name, values in spectra(member.folder).items():
        torch.testing.assert_close(after[name][:4] / values[0], values[:4] / values[0], rtol=0, atol=1e-6)
        assert float(after[name][4]) < 1e-6 * float(values[0])
    overlaps = [
        float(torch.cosine_similarity(x.flatten(), y.flatten(), 0))
        for x, y in zip(deltas(member.folder).values(), deltas(result.folder).values(), strict=True)
    ]
    # Of 576 or 960 entries: unrelated directions have cosines of about 0.03.
    assert max(map(abs, overlaps)) < 0.2


def test_random_directions_are_uniform(tmp_path: Path) -> None:
    """Haar: over 300 draws every entry of Q has mean 0 and mean square 1/n.

    Without the sign fix the diagonal of Q would be of one sign.
    """
    draws = torch.stack([controls._orthonormal((n,), 6, 3) for n in range(300)])
    assert float((draws.transpose(1, 2) @ draws - torch.eye(3).double()).abs().max()) < 1e-12
    error = 4.5 / math.sqrt(6 * 300)
    assert float(draws.mean(0).abs().max()) < error
    assert float((draws.square().mean(0) - 1 / 6).abs().max()) < error


def test_more_ranks_than_the_layer_allows_keep_the_spectrum(tmp_path: Path) -> None:
    member = one_pair(
        tmp_path / "m", [[3.0, 0.0], [0.0, 1.0], [1.0, 1.0]], [[2.0, 0.0, 0.0], [0.0, 5.0, 0.0]]
    )
    result = stand_in(member, "random-directions", tmp_path / "out")
    # B A = [[6, 0], [0, 5]].
    (values,) = spectra(result.folder).values()
    torch.testing.assert_close(values, torch.tensor([6.0, 5.0]).double(), rtol=0, atol=1e-6)
    assert result.spec.modules[0].rank == 3


def test_shuffled_layers_are_the_members_own_and_none_keeps_its_own(tmp_path: Path) -> None:
    member = load_member(layer_up(tmp_path / "m", layers=range(3, 9), dtype=torch.bfloat16))
    result = stand_in(member, "shuffled-layers", tmp_path / "out", seed=1)
    moved = []
    for place in BASES:
        names = [f"model.layers.{n}.{place}" for n in range(3, 9)]
        before, after = ([read_module(m, name) for name in names] for m in (member, result))
        origin = [next(i for i, old in enumerate(before) if all(map(torch.equal, old, new))) for new in after]
        assert sorted(origin) == list(range(6))
        assert all(n != i for n, i in enumerate(origin))
        moved.append(origin)
    assert moved[0] == moved[1]
    assert result.spec.dtypes == ("BF16",)


@pytest.mark.parametrize("seed", range(20))
def test_two_layers_swap_whatever_the_seed(seed: int, tmp_path: Path) -> None:
    member = load_member(layer_up(tmp_path / "m", layers=(0, 1)))
    result = stand_in(member, "shuffled-layers", tmp_path / "out", seed=seed)
    old, new = load_file(member.weights), load_file(result.weights)
    assert all(torch.equal(new[name], old[name.translate({48: 49, 49: 48})]) for name in old)


def test_layers_of_another_rank_or_scaling_are_not_mixed(tmp_path: Path) -> None:
    """Layers 0 to 2 with alpha 8, layers 3 and 4 with alpha 16: updates keep their size as they move."""
    member = load_member(layer_up(tmp_path / "m", alpha_pattern={r"layers\.[34]\.[a-z_.]+": 16}))
    result = stand_in(member, "shuffled-layers", tmp_path / "out")
    before = sorted(float(delta.norm()) for delta in deltas(member.folder).values())
    after = sorted(float(delta.norm()) for delta in deltas(result.folder).values())
    assert after == pytest.approx(before, rel=1e-12)


def test_permuted_ranks_are_the_same_update(tmp_path: Path) -> None:
    member = load_member(layer_up(tmp_path / "one", rank=8))
    result = stand_in(member, "permuted-ranks", tmp_path / "out", seed=3)
    moved = 0
    for name in member.modules:
        (a, b), (other_a, other_b) = read_module(member, name), read_module(result, name)
        order = [int((a == row).all(dim=1).nonzero()) for row in other_a]
        assert sorted(order) == list(range(8))
        assert torch.equal(b[:, order], other_b)
        torch.testing.assert_close(other_b.double() @ other_a.double(), b.double() @ a.double())
        moved += order != sorted(order)
    assert moved > 5


def test_a_module_of_one_layer_cannot_be_shuffled(tmp_path: Path) -> None:
    member = load_member(layer_up(tmp_path / "lonely", layers=[2]))
    with pytest.raises(MergeError, match="lonely cannot be shuffled: no other layer has a module like"):
        stand_in(member, "shuffled-layers", tmp_path / "out")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("kind", KINDS)
def test_values_that_are_not_finite_are_refused_and_leave_nothing(kind: str, tmp_path: Path) -> None:
    path = layer_up(tmp_path / "broken") / "adapter_model.safetensors"
    tensors = load_file(path)
    tensors["base_model.model.model.layers.4.mlp.down_proj.lora_B.weight"][3, 1] = math.nan
    save_file(tensors, path)
    with pytest.raises(MergeError, match=r"broken cannot have a stand-in.*NaN"):
        stand_in(load_member(path.parent), kind, tmp_path / "out")
    assert [entry.name for entry in tmp_path.iterdir()] == ["broken"]


@pytest.mark.parametrize("kind", RANDOM)
def test_an_untrained_member_stays_without_effect(kind: str, tmp_path: Path) -> None:
    member = load_member(layer_up(tmp_path / "zero", scale=0.0))
    result = stand_in(member, kind, tmp_path / "out")
    assert not any(delta.any() for delta in deltas(result.folder).values())


def test_a_kind_that_is_none_is_refused_with_those_that_are(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="'random' is not a control; use one of random-pooled"):
        stand_in(load_member(layer_up(tmp_path / "m")), "random", tmp_path / "out")


def test_a_stand_in_is_written_once_and_other_folders_are_left_alone(tmp_path: Path) -> None:
    member = load_member(layer_up(tmp_path / "m"))
    result = stand_in(member, "random-each", tmp_path / "out")
    inode = result.weights.stat().st_ino
    again = stand_in(member, "random-each", tmp_path / "out")
    assert (again, again.weights.stat().st_ino) == (result, inode)
    with pytest.raises(UsageError, match="exists; use another"):
        stand_in(member, "random-each", tmp_path / "out", seed=1)
    config = json.loads((result.folder / "adapter_config.json").read_text())
    (result.folder / "adapter_config.json").write_text(json.dumps(config | {"lora_alpha": 1}))
    with pytest.raises(UsageError, match="exists; use another"):
        stand_in(member, "random-each", tmp_path / "out")


def test_merges_take_stand_ins_and_say_so(tmp_path: Path) -> None:
    members = [load_member(layer_up(tmp_path / f"m{n}", n), name=f"owner/m{n}") for n in range(2)]
    result = stand_ins(members, "random-directions", tmp_path / "made", seed=5)
    entries = merge(result, "average", tmp_path / "out").record["members"]
    assert [entry["name"] for entry in entries] == [f"owner/m{n}:random-directions:5" for n in range(2)]
    assert entries[0]["source"]["of_sha256"] == digest_of(members[0].weights)
    assert [entry["sha256"] for entry in entries] == [digest_of(member.weights) for member in result]


# PEFT 0.21 asks a model of transformers 5.23 for an attribute by its old name.
@pytest.mark.filterwarnings("ignore:.is_gradient_checkpointing. is deprecated:FutureWarning")
@pytest.mark.parametrize("kind", KINDS)
def test_plain_peft_loads_them(kind: str, tmp_path: Path) -> None:
    peft, transformers = pytest.importorskip("peft"), pytest.importorskip("transformers")
    config = transformers.LlamaConfig(
        hidden_size=24,
        intermediate_size=40,
        num_hidden_layers=5,
        num_attention_heads=2,
        num_key_value_heads=2,
        vocab_size=32,
    )
    torch.manual_seed(0)
    folder = layer_up(tmp_path / "m", scale=0.1, alpha_pattern={"q_proj": 3})
    result = stand_in(load_member(folder), kind, tmp_path / "out")
    model = peft.PeftModel.from_pretrained(transformers.LlamaForCausalLM(config), result.folder)
    expected = deltas(result.folder)
    for name in result.modules:
        module = model.get_submodule(f"base_model.model.{name}")
        torch.testing.assert_close(
            module.get_delta_weight("default").double(), expected[name], rtol=0, atol=1e-5
        )
