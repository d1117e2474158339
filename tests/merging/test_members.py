"""Which adapters can be merged: what is refused, by name, and what a stack of members holds."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from catalog.errors import ConfigError, LoradexError, MergeError, UsageError, WeightsError
from merging.members import (
    digest_of,
    iterate_stacks,
    join_factors,
    load_member,
    load_members,
    read_module,
    shapes,
)
from merging.methods import concatenate
from tests.merging.adapters import ALL, Q, adapter, deltas, merge


@pytest.mark.parametrize(
    ("config", "words"),
    [
        ({"use_dora": True}, r"DoRA .*\(use_dora\); only scaling \* B A is merged here"),
        ({"target_parameters": ["mlp.down_proj.weight"]}, "target_parameters"),
        ({"layer_replication": [[0, 2]]}, "layer_replication"),
        ({"alora_invocation_tokens": [1, 2]}, r"alora: \[1, 2\]"),
        ({"init_lora_weights": "pissa_niter_4"}, "pissa_niter_4"),
        ({"kasa_config": {"beta": 1}}, "kasa_config"),
        ({"kasa_config": {}}, "kasa_config"),
        ({"peft_type": "LOHA"}, "LOHA"),
    ],
)
def test_what_is_more_than_plain_lora_is_refused_by_name(
    config: Mapping[str, Any], words: str, tmp_path: Path
) -> None:
    with pytest.raises(MergeError, match=words) as refused:
        load_member(adapter(tmp_path / "odd", **config))
    assert str(refused.value).startswith("odd cannot be merged")
    with pytest.raises(MergeError, match=r"odd cannot be evaluated: .* is evaluated here"):
        load_member(tmp_path / "odd", purpose="evaluated")


@pytest.mark.parametrize(
    "config",
    [
        {"bias": "all"},
        {"bias": "lora_only"},
        {"lora_bias": True},
        {"modules_to_save": ["classifier", "lm_head"]},
        {"trainable_token_indices": {"embed_tokens": [1]}},
        {"target_parameters": ["mlp.experts.gate_up_proj"]},
        {"alora_invocation_tokens": []},
        {"kasa_config": None},
    ],
)
def test_a_setting_of_which_the_file_holds_nothing_is_no_hindrance(
    config: Mapping[str, Any], tmp_path: Path
) -> None:
    plain, odd = load_member(adapter(tmp_path / "plain")), load_member(adapter(tmp_path / "odd", **config))
    assert (odd.modules, odd.left_out) == (plain.modules, ())


@pytest.mark.parametrize(
    ("tensor", "words"),
    [
        ("base_model.model.lm_head.weight", "full_weights: lm_head"),
        ("base_model.model.model.norm.modules_to_save.weight", "full_weights: norm"),
        (f"base_model.model.{Q}.lora_magnitude_vector.weight", "DoRA"),
        (f"base_model.model.{Q}.bias", "biases"),
        (f"base_model.model.{Q}.base_layer.bias", "biases"),
        (f"base_model.model.{Q}.lora_B.bias", "lora_bias"),
        ("something.else", "unknown_tensor"),
    ],
)
def test_tensors_beside_the_factors_are_refused_by_name(tensor: str, words: str, tmp_path: Path) -> None:
    path = adapter(tmp_path / "odd") / "adapter_model.safetensors"
    save_file({**load_file(path), tensor: torch.ones(3)}, path)
    with pytest.raises(MergeError, match=words):
        load_member(path.parent)


HEAD = {
    "base_model.model.lm_head.lora_A.weight": torch.ones(3, 12),
    "base_model.model.lm_head.lora_B.weight": torch.ones(9, 3),
}
COPY = {"base_model.model.lm_head.base_layer.weight": torch.ones(9, 12)}
OLDER = ("base_model.model.lm_head.weight", "base_model.model.model.embed_tokens.weight")


def with_head(folder: Path, **neighbour: Tensor) -> Path:
    """An adapter that has a LoRA of the output head too, as PEFT saves it, and other tensors beside."""
    targets = ["q_proj", "v_proj", "down_proj", "lm_head"]
    path = adapter(folder, target_modules=targets) / "adapter_model.safetensors"
    save_file({**load_file(path), **HEAD, **neighbour}, path)
    return folder


def test_copies_of_the_base_and_aids_of_training_are_left_out_by_themselves(tmp_path: Path) -> None:
    aid = {f"base_model.model.{Q}.lora_velora_embed": torch.ones(3)}
    member = load_member(with_head(tmp_path / "head", **COPY, **aid))
    assert set(member.modules) == {*ALL, "lm_head"}
    assert sorted(member.left_out) == sorted({**COPY, **aid})


def test_a_trained_bias_is_no_copy_of_the_base(tmp_path: Path) -> None:
    """PEFT stores the trained biases of Qwen2 in the wrapped layer; of a head it may be copied with the
    weight.
    """
    bias = {"base_model.model.lm_head.base_layer.bias": torch.ones(9)}
    assert load_member(with_head(tmp_path / "copied", **COPY, **bias)).left_out
    folder = with_head(tmp_path / "trained", **COPY, **bias)
    config = json.loads((folder / "adapter_config.json").read_text())
    (folder / "adapter_config.json").write_text(json.dumps(config | {"bias": "all"}))
    with pytest.raises(MergeError, match="has_bias"):
        load_member(folder)


def test_a_layer_that_is_named_is_left_out_with_its_factors(tmp_path: Path) -> None:
    member = load_member(with_head(tmp_path / "head", **COPY), without=["lm_head"])
    assert set(member.modules) == set(ALL)
    assert sorted(member.left_out) == sorted({**HEAD, **COPY})
    assert load_member(with_head(tmp_path / "other"), without=["embed_tokens"]).left_out == ()


def test_copies_in_the_older_spelling_are_refused_with_their_layers(tmp_path: Path) -> None:
    """Older versions of PEFT wrote whole weights under the layer's own name, as they wrote trained ones."""
    neighbour = {name: torch.ones(9, 12) for name in OLDER}
    folder = with_head(tmp_path / "head", **neighbour)
    with pytest.raises(MergeError, match=r"`without=.embed_tokens,lm_head.` leaves out these layers"):
        load_member(folder)
    with pytest.raises(MergeError, match=r"`without=.embed_tokens.` leaves out"):
        load_member(folder, without=["lm_head"])
    assert set(load_member(folder, without=["embed_tokens", "lm_head"]).modules) == set(ALL)


def test_layers_that_were_trained_whole_can_be_left_out_by_name(tmp_path: Path) -> None:
    path = (
        adapter(tmp_path / "trained", modules_to_save=["lm_head", "classifier"]) / "adapter_model.safetensors"
    )
    head = {"base_model.model.lm_head.weight": torch.ones(9, 12)}
    inner = {f"base_model.model.classifier.{name}": torch.ones(9) for name in ("dense.weight", "dense.bias")}
    tokens = {"base_model.model.model.embed_tokens.token_adapter.trainable_tokens_delta": torch.ones(1, 12)}
    save_file({**load_file(path), **head, **inner, **tokens}, path)
    with pytest.raises(
        MergeError, match=r"`without=.classifier,embed_tokens,lm_head.` leaves out these layers"
    ):
        load_member(path.parent)
    member = load_member(path.parent, without=["lm_head", "classifier", "embed_tokens"])
    assert set(member.modules) == set(ALL)
    assert sorted(member.left_out) == sorted({**head, **inner, **tokens})


def test_what_no_layer_holds_is_refused_whatever_is_left_out(tmp_path: Path) -> None:
    with pytest.raises(MergeError, match="use_dora"):
        load_member(adapter(tmp_path / "dora", use_dora=True), without=["lm_head"])
    with pytest.raises(MergeError, match="contains no LoRA factors"):
        load_member(adapter(tmp_path / "empty"), without=["q_proj", "v_proj", "down_proj"])


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("out", [torch.float32, torch.bfloat16])
def test_joined_factors_are_the_weighted_sum_rounded_once(
    dtype: torch.dtype, out: torch.dtype, tmp_path: Path
) -> None:
    folders = [
        adapter(tmp_path / "a", seed=1, rank=3, dtype=dtype),
        adapter(tmp_path / "b", seed=2, rank=5, modules=ALL[:2], use_rslora=True, lora_alpha=7, dtype=dtype),
        adapter(tmp_path / "c", seed=3, rank=2, ranks={Q: 4}, alpha_pattern={Q: -3.0}),
    ]
    members, weights = load_members(folders), (0.5, -2.0, 0.25)
    for shape, stack in zip(shapes(members), iterate_stacks(members), strict=True):
        a, b = join_factors(shape, members, weights, out)
        exact = concatenate(stack, stack.columns(weights))
        unit = torch.finfo(out).eps
        assert a.dtype == b.dtype == out
        # Half a unit of the written type, and some of float32 before.
        torch.testing.assert_close(a.float(), exact.a, rtol=unit / 2 + 5e-7, atol=0)
        torch.testing.assert_close(b.float(), exact.b, rtol=unit / 2 + 5e-7, atol=0)


@pytest.mark.parametrize("bad", [float("nan"), float("-inf")])
@pytest.mark.parametrize("dtype", ["bfloat16", "float32"])
def test_joined_factors_that_are_not_finite_are_refused_by_name(
    bad: float, dtype: str, tmp_path: Path
) -> None:
    a = torch.ones(3, 12)
    a[2, 5] = bad
    members = load_members(
        [
            adapter(tmp_path / "whole", modules=[Q]),
            adapter(tmp_path / "broken", modules=[Q], factors={Q: (a, torch.ones(12, 3))}),
        ]
    )
    with pytest.raises(MergeError, match=f"broken cannot be merged: {Q} contains NaN"):
        merge(members, "concatenation", tmp_path / "out", dtype=dtype)
    assert not (tmp_path / "out").exists()


def test_factors_that_contradict_are_refused(tmp_path: Path) -> None:
    with pytest.raises(MergeError, match="rank_mismatch"):
        load_member(adapter(tmp_path / "lies", r=7))
    path = adapter(tmp_path / "half") / "adapter_model.safetensors"
    save_file(
        {k: v for k, v in load_file(path).items() if not k.endswith("0.self_attn.q_proj.lora_B.weight")}, path
    )
    with pytest.raises(MergeError, match="unpaired_factor"):
        load_member(path.parent)


def test_broken_and_absent_files_are_named(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    with pytest.raises(UsageError, match=r"adapter_config\.json"):
        load_member(tmp_path / "empty")
    folder = adapter(tmp_path / "pickled")
    (folder / "adapter_model.safetensors").rename(folder / "adapter_model.bin")
    with pytest.raises(UsageError, match="safetensors"):
        load_member(folder)
    folder = adapter(tmp_path / "cut")
    data = (folder / "adapter_model.safetensors").read_bytes()
    (folder / "adapter_model.safetensors").write_bytes(data[:-4])
    with pytest.raises(WeightsError, match="cut cannot be merged"):
        load_member(folder)
    (folder / "adapter_config.json").write_text("[]")
    with pytest.raises(ConfigError, match="cut cannot be merged"):
        load_member(folder)


def test_a_file_that_shrinks_after_its_header_was_read_is_noticed(tmp_path: Path) -> None:
    member = load_member(adapter(tmp_path / "a"))
    member.weights.write_bytes(member.weights.read_bytes()[:-8])
    with pytest.raises(WeightsError, match="are truncated"):
        [read_module(member, name) for name in ALL]


def test_members_of_two_bases_are_refused_unless_the_base_is_named(tmp_path: Path) -> None:
    folders = [
        adapter(tmp_path / "a", base_model_name_or_path="acme/one"),
        adapter(tmp_path / "b", base_model_name_or_path="acme/two"),
    ]
    with pytest.raises(MergeError, match=r"acme/one .* acme/two"):
        load_members(folders)
    assert len(load_members(folders, base="acme/one")) == 2


def test_members_of_other_shapes_are_refused(tmp_path: Path) -> None:
    wide = {Q: (torch.ones(3, 13), torch.ones(12, 3))}
    folders = [adapter(tmp_path / "a"), adapter(tmp_path / "b", modules=[Q], factors=wide)]
    with pytest.raises(MergeError, match=r"12 to 12 in a and linear of 13 to 12 in b"):
        load_members(folders)
    with pytest.raises(UsageError, match="requires at least one adapter"):
        load_members([])


def test_how_a_layer_stores_its_weights_is_no_matter_of_its_factors(tmp_path: Path) -> None:
    """PEFT corrects fan_in_fan_out by the layer."""
    folders = [adapter(tmp_path / "a"), adapter(tmp_path / "b", fan_in_fan_out=True)]
    assert len(load_members(folders)) == 2


def test_widths_that_another_base_does_not_have_are_refused(tmp_path: Path) -> None:
    factors = {Q: (torch.ones(3, 4096), torch.ones(4096, 3))}
    folder = adapter(tmp_path / "a", modules=[Q], factors=factors)
    assert len(load_members([folder], base="unsloth/llama-3.1-8b-bnb-4bit")) == 1
    with pytest.raises(
        MergeError, match=r"linear of 4096 to 4096 in it, and 3584 to 3584 in unsloth/Qwen2.5"
    ):
        load_members([folder], base="unsloth/Qwen2.5-7B-bnb-4bit")


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_values_that_are_not_finite_are_refused_with_their_place(bad: float, tmp_path: Path) -> None:
    b = torch.zeros(12, 3)
    b[3, 1] = bad
    folder = adapter(tmp_path / "broken", modules=[Q], factors={Q: (torch.ones(3, 12), b)})
    with pytest.raises(MergeError, match=f"broken cannot be merged: {Q}"):
        list(iterate_stacks(load_members([folder])))


def test_large_finite_values_are_not_taken_for_infinity(tmp_path: Path) -> None:
    huge = torch.full((3, 12), 3e38)
    folder = adapter(tmp_path / "a", modules=[Q], factors={Q: (huge, torch.ones(12, 3))}, lora_alpha=3)
    (stack,) = iterate_stacks(load_members([folder]))
    assert torch.equal(stack.a, huge)


@pytest.mark.parametrize(
    "dtype", [torch.float32, torch.bfloat16, torch.float16, torch.float64, torch.float8_e4m3fn]
)
def test_what_is_read_is_what_safetensors_reads(dtype: torch.dtype, tmp_path: Path) -> None:
    folder = adapter(tmp_path / "a", dtype=dtype)
    tensors = load_file(folder / "adapter_model.safetensors")
    member = load_member(folder)
    for name in ALL:
        a, b = read_module(member, name)
        assert torch.equal(a.float(), tensors[f"base_model.model.{name}.lora_A.weight"].float())
        assert torch.equal(b.float(), tensors[f"base_model.model.{name}.lora_B.weight"].float())


def test_a_stack_holds_every_update_at_any_mix_of_ranks_scalings_and_modules(tmp_path: Path) -> None:
    folders = [
        adapter(tmp_path / "a", seed=1, rank=3),
        adapter(tmp_path / "b", seed=2, rank=5, modules=ALL[:2], use_rslora=True, lora_alpha=7),
        adapter(tmp_path / "c", seed=3, rank=2, ranks={Q: 4}, alpha_pattern={Q: -3.0}),
    ]
    members = load_members(folders)
    assert [shape.name for shape in shapes(members)] == sorted(
        ALL, key=lambda name: (name.split(".")[2], name)
    )
    truth = [deltas(folder) for folder in folders]
    for shape, stack in zip(shapes(members), iterate_stacks(members), strict=True):
        assert stack.ranks == shape.ranks
        for place, of_member in zip(stack.ranges(), truth, strict=True):
            result = stack.b[:, place].double() @ stack.a[place].double()
            expected = of_member.get(shape.name, torch.zeros_like(result))
            torch.testing.assert_close(result, expected, rtol=1e-6, atol=1e-6)


def test_the_licence_is_the_one_of_the_front_matter(tmp_path: Path) -> None:
    folder = adapter(tmp_path / "a")
    assert load_member(folder).license is None
    (folder / "README.md").write_text("---\nlicense: 'Apache-2.0'\n---\nlicense: mit\n")
    assert load_member(folder).license == "apache-2.0"
    (folder / "README.md").write_text("---\ntags: []\n---\nlicense: mit\n")
    assert load_member(folder).license is None


def test_the_digest_of_a_missing_file_is_an_error_of_ours(tmp_path: Path) -> None:
    with pytest.raises(LoradexError):
        digest_of(tmp_path / "nothing")
    (tmp_path / "abc").write_bytes(b"abc")
    assert digest_of(tmp_path / "abc").startswith("ba7816bf8f01cfea")


def test_the_configuration_of_a_member_is_plain_json(tmp_path: Path) -> None:
    assert json.loads((adapter(tmp_path / "a") / "adapter_config.json").read_text())["peft_type"] == "LORA"


@pytest.mark.parametrize("place", ["transformer.h", "model.language_model.layers", "decoder.layers"])
def test_layers_in_other_places_of_an_unknown_base_are_not_merged(tmp_path: Path, place: str) -> None:
    item = adapter(tmp_path / "one", base_model_name_or_path="made/tiny")
    other = adapter(tmp_path / "other", base_model_name_or_path="made/tiny")
    weights = other / "adapter_model.safetensors"
    save_file(
        {name.replace("model.model.layers", f"model.{place}"): t for name, t in load_file(weights).items()},
        weights,
    )
    with pytest.raises(MergeError, match=r"has model\.layers\.0.* where .*`base`"):
        load_members([item, other])
    load_members([other])
