"""Norms of adapters against worked cases and the explicit product."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from catalog.adapter import AdapterConfig, factor_key, lora_modules, parse_config, parse_header
from catalog.errors import WeightsError
from catalog.weights import health, iterate_factors, measure, module_norms
from tests.shared_data import data, index, shared

LAYER = "base_model.model.model.layers.{}.self_attn.q_proj"


def config(**fields: Any) -> AdapterConfig:
    return parse_config(json.dumps({"peft_type": "LORA", "r": 2, "lora_alpha": 4, **fields}).encode())


def saved(folder: Path, *pairs: tuple[Any, Any], dtype: torch.dtype = torch.float32) -> Path:
    tensors = {}
    for n, (a, b) in enumerate(pairs):
        tensors[LAYER.format(n) + ".lora_A.weight"] = torch.tensor(a, dtype=dtype)
        tensors[LAYER.format(n) + ".lora_B.weight"] = torch.tensor(b, dtype=dtype)
    path = folder / "adapter_model.safetensors"
    save_file(tensors, path)
    return path


def test_a_case_worked_by_hand(tmp_path: Path) -> None:
    # B A = [[1, 2], [3, 4]] [[0, 1], [1, 0]] = [[2, 1], [4, 3]], norm^2 = 30; scaling 4 / 2; two modules.
    path = saved(tmp_path, *[([[0, 1], [1, 0]], [[1, 2], [3, 4]])] * 2)
    found = measure(path, config())
    assert found.norm == pytest.approx(2 * math.sqrt(60), rel=1e-14)
    assert (found.modules, found.non_finite, found.zero_update) == (2, False, False)
    assert found.norm_in_layers == found.norm
    assert list(module_norms(path).values()) == [pytest.approx(math.sqrt(30))] * 2


def test_scaling_rules_apply_to_each_module(tmp_path: Path) -> None:
    path = saved(tmp_path, *[([[0, 1], [1, 0]], [[1, 2], [3, 4]])] * 2)
    assert measure(path, config(use_rslora=True)).norm == pytest.approx(4 / math.sqrt(2) * math.sqrt(60))
    pattern = {"layers.1.self_attn.q_proj": 8}
    assert measure(path, config(alpha_pattern=pattern)).norm == pytest.approx(math.sqrt(30 * (2**2 + 4**2)))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16, torch.float64])
def test_the_trace_is_the_norm_of_the_product(dtype: torch.dtype, tmp_path: Path) -> None:
    generator = torch.Generator().manual_seed(0)
    a = torch.randn(8, 300, generator=generator).to(dtype)
    b = torch.randn(200, 8, generator=generator).to(dtype)
    path = tmp_path / "adapter_model.safetensors"
    save_file({f"{LAYER.format(0)}.lora_A.weight": a, f"{LAYER.format(0)}.lora_B.weight": b}, path)
    (norm,) = module_norms(path).values()
    assert norm == pytest.approx(
        float((b.double() @ a.double()).norm()), rel=1e-7 if dtype == torch.float64 else 1e-12
    )


def test_chunks_add_up(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = saved(tmp_path, (torch.randn(4, 50).tolist(), torch.randn(30, 4).tolist()))
    whole = module_norms(path)
    monkeypatch.setattr("catalog.weights._CHUNK", 7)
    assert module_norms(path) == {name: pytest.approx(norm, rel=1e-14) for name, norm in whole.items()}


ZERO = [[0.0, 0.0], [0.0, 0.0]]
SOME = [[1.0, 2.0], [3.0, 4.0]]


@pytest.mark.parametrize(
    ("a", "b", "zero"),
    [
        pytest.param(SOME, ZERO, True, id="case-56-b-zero"),
        pytest.param(ZERO, SOME, True, id="case-56-a-zero-as-untrained-mica"),
        pytest.param([[1.0, 0.0], [0.0, 0.0]], [[0.0, 1.0], [0.0, 1.0]], True, id="case-56-orthogonal"),
        pytest.param([[0.1, 0.3], [0.1, 0.3]], [[0.7, -0.7], [0.2, -0.2]], True, id="case-56-cancelling"),
        pytest.param(SOME, [[1e-30, 0.0], [0.0, 0.0]], False, id="case-56-tiny-is-not-zero"),
        pytest.param([[1e-41, 0.0], [0.0, 0.0]], SOME, False, id="case-55-subnormal"),
    ],
)
def test_zero_update(a: Any, b: Any, zero: bool, tmp_path: Path) -> None:
    found = measure(saved(tmp_path, (a, b)), config())
    assert found.zero_update is zero
    assert (found.norm == 0) is zero


def test_one_module_that_does_something_is_enough(tmp_path: Path) -> None:
    assert measure(saved(tmp_path, (SOME, ZERO), (SOME, SOME)), config()).zero_update is False


def test_alpha_zero_is_a_zero_update(tmp_path: Path) -> None:
    assert measure(saved(tmp_path, (SOME, SOME)), config(lora_alpha=0)).zero_update is True


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("side", [0, 1])
def test_not_finite(bad: float, side: int, tmp_path: Path) -> None:
    """Case 55: also where the other factor has a zero against it."""
    broken = [[0.0, 0.0], [0.0, bad]]
    pair = (broken, ZERO) if side == 0 else (ZERO, broken)
    path = saved(tmp_path, (SOME, SOME), pair)
    found = measure(path, config())
    assert (found.non_finite, found.zero_update) == (True, False)
    assert math.isfinite(found.norm)
    assert list(module_norms(path).values())[1] is None


def test_embeddings_count_in_the_norm_and_not_in_the_layers(tmp_path: Path) -> None:
    path = tmp_path / "adapter_model.safetensors"
    eye = torch.eye(2)
    save_file(
        {
            "base_model.model.model.embed_tokens.lora_embedding_A": eye,
            "base_model.model.model.embed_tokens.lora_embedding_B": eye.clone(),
            f"{LAYER.format(0)}.lora_A.weight": eye.clone(),
            f"{LAYER.format(0)}.lora_B.weight": eye.clone(),
        },
        path,
    )
    found = measure(path, config())
    assert found.norm == pytest.approx(4.0)
    assert found.norm_in_layers == pytest.approx(2 * math.sqrt(2))


def test_halves_and_mismatches_are_passed_over(tmp_path: Path) -> None:
    path = tmp_path / "adapter_model.safetensors"
    save_file(
        {
            "m.lora_A.weight": torch.ones(2, 3),
            "n.lora_A.weight": torch.ones(2, 3),
            "n.lora_B.weight": torch.ones(4, 3),
        },
        path,
    )
    found = measure(path, config())
    assert (found.modules, found.norm, found.zero_update) == (0, 0.0, False)


@pytest.mark.parametrize(
    ("content", "kind"),
    [
        pytest.param(b"", "empty_file", id="empty"),
        pytest.param(b"\x00" * 40, "header_invalid", id="case-53-40-zero-bytes"),
        pytest.param(
            b"PK\x03\x04 a pickle in a zip", "header_too_large", id="case-65-a-pickle-is-not-opened"
        ),
    ],
)
def test_broken_files_are_weights_errors(content: bytes, kind: str, tmp_path: Path) -> None:
    path = tmp_path / "adapter_model.safetensors"
    path.write_bytes(content)
    with pytest.raises(WeightsError) as refused:
        module_norms(path)
    assert refused.value.kind == kind


def test_a_cut_file_and_a_missing_one(tmp_path: Path) -> None:
    path = saved(tmp_path, (SOME, SOME))
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(WeightsError) as refused:
        list(iterate_factors(path))
    assert refused.value.kind == "size_mismatch"
    with pytest.raises(WeightsError) as refused:
        module_norms(tmp_path / "nothing")
    assert refused.value.kind == "unreadable"


def test_nothing_is_measured_of_an_empty_adapter() -> None:
    found = health({}, config())
    assert (found.norm, found.modules, found.zero_update, found.non_finite) == (0.0, 0, False, False)


@shared
def test_adapters_of_the_zoo_agree_with_the_explicit_product() -> None:
    for row in index("zoo")[::6]:
        folder = data("zoo") / row["name"]
        path = folder / "adapter_model.safetensors"
        read = parse_config((folder / "adapter_config.json").read_bytes())
        spec = lora_modules(parse_header(path.read_bytes(), path.stat().st_size), read)
        assert (spec.problems, spec.others, spec.ranks, spec.dtypes) == ((), (), (row["r"],), ("BF16",))
        assert spec.targets == tuple(sorted(row["targets"]))
        tensors = {factor_key(name): tensor for name, tensor in load_file(path).items()}
        square = 0.0
        for module in spec.modules:
            a, b = (
                next(t for k, t in tensors.items() if k and (k.module, k.side) == (module.name, side))
                for side in "AB"
            )
            square += float((module.scaling * (b.double() @ a.double())).norm()) ** 2
        found = measure(path, read)
        assert found.norm == pytest.approx(math.sqrt(square), rel=1e-10)
        assert (found.modules, found.non_finite, found.zero_update) == (len(spec.modules), False, False)
