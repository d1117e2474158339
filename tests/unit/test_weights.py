"""Norms of adapters against worked cases and the explicit product."""

from __future__ import annotations

import hashlib
import json
import math
import struct
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from catalog.adapters import DTYPE_BITS
from catalog.adapters.config import AdapterConfig, parse_config
from catalog.adapters.header import parse_header
from catalog.adapters.names import factor_key
from catalog.adapters.spec import lora_modules
from catalog.adapters.weights import (
    MOST_RANK,
    MOST_WIDTH,
    WeightsHealth,
    file_header,
    header_modules,
    health,
    iterate_factors,
    iterate_modules,
    module_norms,
    relative_scalings,
    scaling_pattern,
    tensor_digest,
)
from catalog.errors import ConfigError, WeightsError
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


def measured(path: Path, config: AdapterConfig) -> WeightsHealth:
    return health(module_norms(path), config)


def written(folder: Path, header: dict[str, Any], content: bytes, name: str = "x.safetensors") -> Path:
    """A safetensors file byte by byte, for what the library would write in another order or not at all."""
    head = json.dumps(header).encode()
    path = folder / name
    path.write_bytes(len(head).to_bytes(8, "little") + head + content)
    return path


def test_a_case_worked_by_hand(tmp_path: Path) -> None:
    # B A = [[1, 2], [3, 4]] [[0, 1], [1, 0]] = [[2, 1], [4, 3]], norm^2 = 30; scaling 4 / 2; two modules.
    path = saved(tmp_path, *[([[0, 1], [1, 0]], [[1, 2], [3, 4]])] * 2)
    result = measured(path, config())
    assert result.norm == pytest.approx(2 * math.sqrt(60), rel=1e-14)
    assert (result.modules, result.non_finite, result.zero_update) == (2, False, False)
    assert result.norm_in_layers == result.norm
    assert list(module_norms(path).values()) == [pytest.approx(math.sqrt(30))] * 2


def test_scaling_rules_apply_to_each_module(tmp_path: Path) -> None:
    path = saved(tmp_path, *[([[0, 1], [1, 0]], [[1, 2], [3, 4]])] * 2)
    assert measured(path, config(use_rslora=True)).norm == pytest.approx(4 / math.sqrt(2) * math.sqrt(60))
    pattern = {"layers.1.self_attn.q_proj": 8}
    assert measured(path, config(alpha_pattern=pattern)).norm == pytest.approx(math.sqrt(30 * (2**2 + 4**2)))


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
    complete = module_norms(path)
    monkeypatch.setattr("catalog.adapters.weights._CHUNK", 7)
    assert module_norms(path) == {name: pytest.approx(norm, rel=1e-14) for name, norm in complete.items()}


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
    result = measured(saved(tmp_path, (a, b)), config())
    assert result.zero_update is zero
    assert (result.norm == 0) is zero


def test_one_module_that_does_something_is_enough(tmp_path: Path) -> None:
    assert measured(saved(tmp_path, (SOME, ZERO), (SOME, SOME)), config()).zero_update is False


def test_alpha_zero_is_a_zero_update(tmp_path: Path) -> None:
    assert measured(saved(tmp_path, (SOME, SOME)), config(lora_alpha=0)).zero_update is True


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("side", [0, 1])
def test_not_finite(bad: float, side: int, tmp_path: Path) -> None:
    """Case 55: also where the other factor has a zero against it."""
    broken = [[0.0, 0.0], [0.0, bad]]
    pair = (broken, ZERO) if side == 0 else (ZERO, broken)
    path = saved(tmp_path, (SOME, SOME), pair)
    result = measured(path, config())
    assert (result.non_finite, result.zero_update) == (True, False)
    assert math.isfinite(result.norm)
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
    result = measured(path, config())
    assert result.norm == pytest.approx(4.0)
    assert result.norm_in_layers == pytest.approx(2 * math.sqrt(2))


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
    result = measured(path, config())
    assert (result.modules, result.norm, result.zero_update) == (0, 0.0, False)


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
    result = health({}, config())
    assert (result.norm, result.modules, result.zero_update, result.non_finite) == (0.0, 0, False, False)


def test_modules_come_by_name_with_their_scaling(tmp_path: Path) -> None:
    pair = (SOME, SOME)
    path = saved(tmp_path, *[pair] * 11)
    read = config(
        rank_pattern={"layers.1.self_attn.q_proj": 8}, alpha_pattern={"layers.2.*": 5}, use_rslora=True
    )
    modules = list(iterate_modules(path, read))
    names = [module.name for module in modules]
    assert names == sorted(names)
    assert tuple(names) == header_modules(file_header(path))
    scalings = {module.name.split(".")[2]: module.scaling for module in modules}
    assert scalings["0"] == pytest.approx(4 / math.sqrt(2))
    assert scalings["1"] == pytest.approx(4 / math.sqrt(8))
    assert scalings["2"] == pytest.approx(5 / math.sqrt(2))
    assert modules[0].a.tolist() == SOME
    assert modules[0].b.tolist() == SOME


def test_factors_have_the_type_of_the_file(tmp_path: Path) -> None:
    (module,) = iterate_modules(saved(tmp_path, (SOME, SOME), dtype=torch.bfloat16), config())
    assert (module.a.dtype, module.b.dtype) == (torch.bfloat16, torch.bfloat16)


def test_modules_need_a_lora_configuration(tmp_path: Path) -> None:
    other = parse_config(b'{"peft_type": "IA3"}')
    with pytest.raises(ConfigError) as refused:
        list(iterate_modules(saved(tmp_path, (SOME, SOME)), other))
    assert refused.value.kind == "bad_field"


NAMES = ("model.layers.0.q_proj", "model.layers.0.v_proj")


@pytest.mark.parametrize("alpha", [1, 7, 16, 1e-300, 1e300])
def test_one_positive_scaling_has_no_pattern_whatever_alpha(alpha: float) -> None:
    assert scaling_pattern(NAMES, config(lora_alpha=alpha)) == ""
    assert relative_scalings(NAMES, config(lora_alpha=alpha)) == dict.fromkeys(NAMES, 1.0)


def test_a_pattern_names_the_relation_and_not_the_size() -> None:
    def pattern(alpha: float, other: float, **more: Any) -> str:
        return scaling_pattern(NAMES, config(lora_alpha=alpha, alpha_pattern={"v_proj": other}, **more))

    assert pattern(4, 8) == pattern(5, 10) == pattern(1 / 3, 2 / 3) == pattern(4, 8, use_rslora=True)
    assert len(pattern(4, 8)) == 32
    assert pattern(4, 4) == ""
    assert (
        len({pattern(4, 8), pattern(8, 4), pattern(4, 9), pattern(4, -4), pattern(-4, -4), pattern(0, 0)})
        == 6
    )
    # A half for one module is the same relation as a doubled rank for it.
    ranks = scaling_pattern(NAMES, config(lora_alpha=4, rank_pattern={"q_proj": 4}))
    assert ranks == pattern(4, 8)


def test_the_pattern_is_these_digits_on_every_machine() -> None:
    text = b'[["model.layers.0.q_proj", 0.5], ["model.layers.0.v_proj", 1.0]]'
    result = scaling_pattern(reversed(NAMES), config(lora_alpha=4, alpha_pattern={"v_proj": 8}))
    assert result == hashlib.sha256(text).hexdigest()[:32]


def test_nothing_has_no_pattern() -> None:
    assert scaling_pattern((), config()) == ""


def test_the_tensor_digest_is_a_sha256_of_sorted_lines(tmp_path: Path) -> None:
    path = saved(tmp_path, ([[1.0, 2.0]], [[3.0]]))
    name = "model.layers.0.self_attn.q_proj.lora_"
    a = hashlib.sha256(struct.pack("<2f", 1.0, 2.0)).hexdigest()
    b = hashlib.sha256(struct.pack("<f", 3.0)).hexdigest()
    lines = [f'["{name}A.weight", "F32", [1, 2], "{a}"]', f'["{name}B.weight", "F32", [1, 1], "{b}"]']
    assert tensor_digest(path) == hashlib.sha256("\n".join(lines).encode()).hexdigest()


def entry(dtype: str, shape: list[int], begin: int, end: int) -> dict[str, Any]:
    return {"dtype": dtype, "shape": shape, "data_offsets": [begin, end]}


def test_case_62_the_tensor_digest_sees_weights_and_not_the_way_they_are_written(tmp_path: Path) -> None:
    item, two = b"\x00\x00\x80\x3f", b"\x00\x00\x00\x40"
    plain = {"q.lora_A.weight": entry("F32", [1, 1], 0, 4), "q.lora_B.weight": entry("F32", [1, 1], 4, 8)}
    digest = tensor_digest(written(tmp_path, plain, item + two))
    metadata = tensor_digest(written(tmp_path, {"__metadata__": {"format": "pt"}, **plain}, item + two))
    swapped = {
        "base_model.model.q.lora_B.default.weight": entry("F32", [1, 1], 0, 4),
        "module.q.lora_A.weight": entry("F32", [1, 1], 4, 8),
    }
    assert digest == metadata == tensor_digest(written(tmp_path, swapped, two + item))
    other_items = [
        (plain, two + item),
        (plain, item + item),
        ({**plain, "q.lora_B.weight": entry("I32", [1, 1], 4, 8)}, item + two),
        ({**plain, "q.lora_B.weight": entry("F32", [1], 4, 8)}, item + two),
        (
            {"v.lora_A.weight": plain["q.lora_A.weight"], "q.lora_B.weight": plain["q.lora_B.weight"]},
            item + two,
        ),
        ({**plain, "base_model.model.lm_head.weight": entry("F32", [1], 8, 12)}, item + two + item),
    ]
    digests = {tensor_digest(written(tmp_path, header, content)) for header, content in other_items}
    assert len(digests | {digest}) == len(other_items) + 1


def test_prefixes_of_other_tensors_do_not_count_either(tmp_path: Path) -> None:
    digests = {
        tensor_digest(written(tmp_path, {f"{prefix}lm_head.weight": entry("U8", [2], 0, 2)}, b"ab"))
        for prefix in ("", "base_model.model.", "module.base_model.model.")
    }
    assert len(digests) == 1
    odd = {name: entry("U8", [1], n, n + 1) for n, name in enumerate(["\u202e", "x" * 2000])}
    assert len(tensor_digest(written(tmp_path, odd, b"ab"))) == 64


def test_a_file_of_no_tensors_has_a_digest_and_no_modules(tmp_path: Path) -> None:
    """Case 54."""
    path = written(tmp_path, {}, b"")
    assert tensor_digest(path) == hashlib.sha256(b"").hexdigest()
    assert header_modules(file_header(path)) == ()


@pytest.mark.parametrize("dtype", ["I8", "F4", "BOOL", "F8_E8M0", "C64"])
def test_a_pair_that_holds_no_plain_numbers_is_passed_over(dtype: str, tmp_path: Path) -> None:
    """Case 57; as `catalog.adapters.spec.lora_modules` does."""
    size = 4 * DTYPE_BITS[dtype] // 8
    head = {
        "q.lora_A.weight": entry(dtype, [2, 2], 0, size),
        "q.lora_B.weight": entry(dtype, [2, 2], size, 2 * size),
        "v.lora_A.weight": entry("F8_E4M3", [2, 2], 2 * size, 2 * size + 4),
        "v.lora_B.weight": entry("F8_E5M2", [2, 2], 2 * size + 4, 2 * size + 8),
    }
    path = written(tmp_path, head, bytes(2 * size) + b"\x38" * 4 + b"\x3c" * 4)
    # 0x38 is 1 in E4M3, 0x3c is 1 in E5M2: B A is all 2.
    assert module_norms(path) == {"v": 4.0}
    spec = lora_modules(parse_header(path.read_bytes(), path.stat().st_size), config())
    assert tuple(module.name for module in spec.modules) == header_modules(file_header(path))


@pytest.mark.parametrize(
    ("a", "b"),
    [
        pytest.param([MOST_RANK + 1, 1], [1, MOST_RANK + 1], id="rank"),
        pytest.param([1, MOST_WIDTH + 1], [1, 1], id="width-of-the-input"),
        pytest.param([1, 1], [MOST_WIDTH + 1, 1], id="width-of-the-output"),
    ],
)
def test_sizes_that_would_fill_the_memory_are_refused_by_name(
    a: list[int], b: list[int], tmp_path: Path
) -> None:
    first = 2 * math.prod(a)
    last = first + 2 * math.prod(b)
    head = {"q.lora_A.weight": entry("F16", a, 0, first), "q.lora_B.weight": entry("F16", b, first, last)}
    with pytest.raises(WeightsError, match=r"q maps .* are read") as refused:
        module_norms(written(tmp_path, head, bytes(last)))
    assert refused.value.kind == "too_large"


def test_a_product_beyond_float32_is_not_finite(tmp_path: Path) -> None:
    assert module_norms(saved(tmp_path, ([[1e30]], [[1e30]]))) == {"model.layers.0.self_attn.q_proj": None}
    (norm,) = module_norms(saved(tmp_path, ([[1e30]], [[1e-30]]))).values()
    assert norm == pytest.approx(1.0)


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
        result = measured(path, read)
        assert result.norm == pytest.approx(math.sqrt(square), rel=1e-10)
        assert (result.modules, result.non_finite, result.zero_update) == (len(spec.modules), False, False)
