"""PEFT as the judge: what it loads of ours, where its own merges agree, and where they are wrong."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from tests.merging.adapters import distance, merge, total

peft = pytest.importorskip("peft")
transformers = pytest.importorskip("transformers")

# PEFT 0.21 asks a model of transformers 5.23 for an attribute by its old name.
pytestmark = pytest.mark.filterwarnings("ignore:.is_gradient_checkpointing. is deprecated:FutureWarning")
TARGETS = ("q_proj", "v_proj", "down_proj")


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny Llama in a folder."""
    torch.manual_seed(0)
    config = transformers.LlamaConfig(
        hidden_size=32,
        intermediate_size=48,
        num_attention_heads=4,
        num_key_value_heads=2,
        num_hidden_layers=2,
        vocab_size=64,
    )
    folder = tmp_path_factory.mktemp("base")
    transformers.LlamaForCausalLM(config).save_pretrained(folder)
    return folder


def model_of(base: Path) -> Any:
    return transformers.LlamaForCausalLM.from_pretrained(base).eval()


def peft_save(base: Path, folder: Path, seed: int, **config: Any) -> Path:
    """An adapter that PEFT itself has made and saved, with factors that are far from zero."""
    torch.manual_seed(seed)
    fields: dict[str, Any] = {"r": 4, "lora_alpha": 8, "target_modules": list(TARGETS)} | config
    adapted = peft.get_peft_model(model_of(base), peft.LoraConfig(task_type="CAUSAL_LM", **fields))
    for name, parameter in adapted.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter, std=0.1)
    adapted.save_pretrained(folder, save_embedding_layers=False)
    return folder


@pytest.fixture(scope="module")
def equal(base: Path, tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """Three adapters of one shape."""
    place = tmp_path_factory.mktemp("equal")
    return [peft_save(base, place / f"m{n}", n) for n in range(3)]


@pytest.fixture(scope="module")
def mixed(base: Path, tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """Adapters as they are met: ranks, scalings and targets of their own."""
    place = tmp_path_factory.mktemp("mixed")
    return [
        peft_save(base, place / "m0", 0, r=2, lora_alpha=16),
        peft_save(base, place / "m1", 1, r=6, target_modules=["q_proj", "k_proj"], use_rslora=True),
        peft_save(base, place / "m2", 2, r=3, rank_pattern={"layers.1.self_attn.q_proj": 5}, lora_alpha=1),
        peft_save(base, place / "m3", 3, r=4, target_modules=["lm_head", "v_proj"], layers_to_transform=None),
    ]


def peft_load(base: Path, folder: Path) -> Any:
    """The base with an adapter, by PEFT's own loader; a missing key is a warning, hence an error."""
    return peft.PeftModel.from_pretrained(model_of(base), folder).eval()


def deltas_of(model: Any, adapter: str) -> dict[str, Tensor]:
    """What PEFT adds to each weight."""
    return {
        name.removeprefix("base_model.model."): module.get_delta_weight(adapter).double()
        for name, module in model.named_modules()
        if hasattr(module, "lora_A") and adapter in module.lora_A
    }


def by_peft(base: Path, folders: Sequence[Path], kind: str, weights: Sequence[float], **options: Any) -> Any:
    """The model with the members and PEFT's own merge of them as adapter `merged`."""
    model = peft.PeftModel.from_pretrained(model_of(base), folders[0], adapter_name="m0")
    for n, folder in enumerate(folders[1:], 1):
        model.load_adapter(folder, adapter_name=f"m{n}")
    model.add_weighted_adapter(
        [f"m{n}" for n in range(len(folders))], list(weights), "merged", combination_type=kind, **options
    )
    return model


@torch.no_grad()
def logits(model: Any) -> Tensor:
    result: Tensor = model(torch.arange(24).reshape(2, 12)).logits
    return result


def test_plain_peft_loads_a_merge_of_wild_shapes_with_the_logits_of_the_sum(
    base: Path, mixed: list[Path], tmp_path: Path
) -> None:
    weights = [0.7, -0.4, 1.3, 0.5]
    merge(mixed, "sum", tmp_path / "out", weights=weights)
    judged = model_of(base)
    with torch.no_grad():
        for name, delta in total(weights, mixed).items():
            judged.get_submodule(name).weight += delta.float()
    expected = logits(judged)
    result = logits(peft_load(base, tmp_path / "out"))
    torch.testing.assert_close(result, expected, rtol=1e-4, atol=1e-5)
    assert float((expected - logits(model_of(base))).abs().max()) > 0.01


@pytest.mark.filterwarnings("ignore:Setting .save_embedding_layers. to .True.:UserWarning")
def test_the_copies_that_peft_adds_for_lm_head_are_left_out_and_nothing_is_lost(
    base: Path, tmp_path: Path
) -> None:
    settings = {"r": 2, "target_modules": ["lm_head"], "init_lora_weights": False}
    config = peft.LoraConfig(task_type="CAUSAL_LM", **settings)
    peft.get_peft_model(model_of(base), config).save_pretrained(tmp_path / "head")
    report = merge([tmp_path / "head"], "sum", tmp_path / "out")
    (member,) = report.record["members"]
    assert member["left_out"] == ["base_model.model.lm_head.base_layer.weight"]
    result, expected = (logits(peft_load(base, tmp_path / name)) for name in ("out", "head"))
    torch.testing.assert_close(result, expected, rtol=1e-4, atol=1e-5)
    assert float((expected - logits(model_of(base))).abs().max()) > 0.01


def test_the_ranks_that_peft_reads_are_those_of_the_factors(
    base: Path, mixed: list[Path], tmp_path: Path
) -> None:
    report = merge(mixed, "svd", tmp_path / "out", rank=5)
    model = peft_load(base, tmp_path / "out")
    result = deltas_of(model, "default")
    assert set(result) == set(report.modules)
    for name, rank in ((name, module.rank) for name, module in report.modules.items()):
        layer = model.get_submodule(f"base_model.model.{name}")
        assert layer.r["default"] == rank
        assert layer.scaling["default"] == 1.0


def test_short_names_are_targets_only_where_they_mean_the_same(
    base: Path, equal: list[Path], mixed: list[Path], tmp_path: Path
) -> None:
    def targets(folders: list[Path], name: str) -> list[str]:
        merge(folders, "sum", tmp_path / name)
        document: list[str] = json.loads((tmp_path / name / "adapter_config.json").read_text())[
            "target_modules"
        ]
        return document

    assert targets(equal, "equal") == sorted(TARGETS)
    part = peft_save(base, tmp_path / "part", 7, layers_to_transform=[1])
    assert targets([part], "one-layer") == [
        "model.layers.1.mlp.down_proj",
        "model.layers.1.self_attn.q_proj",
        "model.layers.1.self_attn.v_proj",
    ]
    assert "model.layers.0.self_attn.k_proj" in targets(mixed, "mixed")
    assert set(deltas_of(peft_load(base, tmp_path / "one-layer"), "default")) == set(targets([part], "again"))


@pytest.mark.parametrize(
    ("kind", "ours", "members"),
    [("linear", "peft-linear", "equal"), ("cat", "peft-cat", "mixed"), ("svd", "peft-svd", "mixed")],
)
@pytest.mark.parametrize("weights", [[1.0, 1.0, 1.0], [0.7, -0.4, 1.3]])
def test_peft_conventions_give_what_peft_gives(
    kind: str,
    ours: str,
    members: str,
    weights: list[float],
    base: Path,
    tmp_path: Path,
    request: pytest.FixtureRequest,
) -> None:
    # PEFT inherits use_rslora from the first member alone, so the member that has it stands last.
    folders = request.getfixturevalue(members)
    selected = [folders[0], folders[2], folders[1]]
    judge = deltas_of(by_peft(base, selected, kind, weights), "merged")
    merge(selected, ours, tmp_path / "out", weights=weights)
    assert distance(deltas_of(peft_load(base, tmp_path / "out"), "default"), judge) < 1e-5


def test_peft_linear_is_not_the_sum_and_ours_is(base: Path, equal: list[Path], tmp_path: Path) -> None:
    """Cross terms: the error of PEFT's linear is as large as the sum itself."""
    weights = [0.7, -0.4, 1.3]
    judge = deltas_of(by_peft(base, equal, "linear", weights), "merged")
    exact = total(weights, equal)
    assert distance(judge, exact) > 0.8
    merge(equal, "sum", tmp_path / "out", weights=weights)
    assert distance(deltas_of(peft_load(base, tmp_path / "out"), "default"), exact) < 1e-6


@pytest.mark.parametrize("kind", ["cat", "svd"])
def test_peft_overscales_what_has_rslora_by_the_root_of_the_rank(
    kind: str, base: Path, tmp_path: Path
) -> None:
    folders = [peft_save(base, tmp_path / f"m{n}", n, use_rslora=True) for n in range(3)]
    exact = total([1, 1, 1], folders)
    judge = deltas_of(
        by_peft(base, folders, kind, [1, 1, 1], **({"svd_rank": 12} if kind == "svd" else {})), "merged"
    )
    root = 12**0.5
    assert distance(judge, {name: root * delta for name, delta in exact.items()}) < 1e-5
    merge(folders, f"peft-{kind}", tmp_path / "out", **({"rank": 12} if kind == "svd" else {}))
    assert distance(deltas_of(peft_load(base, tmp_path / "out"), "default"), exact) < 1e-5


def test_a_second_merge_under_one_name_does_nothing_in_peft_and_all_in_ours(
    base: Path, equal: list[Path], tmp_path: Path
) -> None:
    model = by_peft(base, equal, "svd", [1, 1, 1])
    before = deltas_of(model, "merged")
    model.add_weighted_adapter(["m0", "m1", "m2"], [5, 0, 0], "merged", combination_type="svd")
    assert distance(deltas_of(model, "merged"), before) == 0
    for weights in ([1, 1, 1], [5, 0, 0]):
        merge(equal, "sum", tmp_path / "out", weights=weights, overwrite=True)
    assert distance(deltas_of(peft_load(base, tmp_path / "out"), "default"), total([5, 0, 0], equal)) < 1e-6


@pytest.mark.parametrize(
    ("kind", "ours", "members"),
    [
        ("ties", "peft-ties", "equal"),
        ("magnitude_prune", "peft-magnitude-prune", "equal"),
        ("ties_svd", "peft-ties-svd", "mixed"),
        ("magnitude_prune_svd", "peft-magnitude-prune-svd", "mixed"),
    ],
)
def test_peft_pruning_is_ours_under_its_names(
    kind: str, ours: str, members: str, base: Path, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    folders = request.getfixturevalue(members)
    selected, weights = [folders[0], folders[2], folders[1]], [0.7, -0.4, 1.3]
    judge = deltas_of(by_peft(base, selected, kind, weights, density=0.35), "merged")
    merge(selected, ours, tmp_path / "out", weights=weights, parameters={"density": 0.35})
    assert distance(deltas_of(peft_load(base, tmp_path / "out"), "default"), judge) < 1e-4


@pytest.mark.filterwarnings("ignore:The density 1.0 is greater:UserWarning")
@pytest.mark.parametrize(
    ("kind", "ours", "members"),
    [
        ("dare_linear", "peft-dare-linear", "equal"),
        ("dare_ties", "peft-dare-ties", "equal"),
        ("dare_linear_svd", "peft-dare-linear-svd", "mixed"),
        ("dare_ties_svd", "peft-dare-ties-svd", "mixed"),
    ],
)
def test_peft_dare_is_ours_where_nothing_is_random(
    kind: str, ours: str, members: str, base: Path, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    folders = request.getfixturevalue(members)
    selected, weights = [folders[0], folders[2], folders[1]], [0.7, -0.4, 1.3]
    judge = deltas_of(by_peft(base, selected, kind, weights, density=1.0), "merged")
    merge(selected, ours, tmp_path / "out", weights=weights, parameters={"density": 1})
    assert distance(deltas_of(peft_load(base, tmp_path / "out"), "default"), judge) < 1e-4


def test_peft_ties_on_factors_is_far_from_ties_of_the_updates(
    base: Path, equal: list[Path], tmp_path: Path
) -> None:
    for name in ("ties", "peft-ties", "peft-ties-svd"):
        rank = {} if name == "peft-ties" else {"rank": 32}
        merge(equal, name, tmp_path / name, parameters={"density": 0.2}, **rank)
    ours, factors, dense = (
        deltas_of(peft_load(base, tmp_path / name), "default")
        for name in ("ties", "peft-ties", "peft-ties-svd")
    )
    # With equal weights PEFT's ties_svd is the published method, its ties is not.
    assert distance(dense, ours) < 1e-4
    assert distance(factors, ours) > 0.5
