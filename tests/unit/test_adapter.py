"""adapter_config.json and header together: fields, refusals, scaling, modules."""

from __future__ import annotations

import json
import math
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from catalog.adapters.config import AdapterConfig, ScalingRule, parse_config
from catalog.adapters.header import Header, Tensor
from catalog.adapters.names import factor_key
from catalog.adapters.spec import LoraModule, OtherTensor, lora_modules
from catalog.errors import ConfigError
from tests.shared_data import data, index, shared

LORA: dict[str, Any] = {
    "peft_type": "LORA",
    "task_type": "CAUSAL_LM",
    "base_model_name_or_path": "meta-llama/Llama-3.1-8B",
    "r": 16,
    "lora_alpha": 32,
    "target_modules": ["v_proj", "q_proj"],
}
LAYER = "model.layers.3.self_attn.q_proj"


def config(**fields: Any) -> AdapterConfig:
    return parse_config(json.dumps({**LORA, **fields}).encode())


def header(*tensors: tuple[str, tuple[int, ...]], dtype: str = "BF16") -> Header:
    return Header(tuple(Tensor(name, dtype, shape, 0, 0) for name, shape in tensors), {}, 2)


def pair(name: str = f"base_model.model.{LAYER}", *, rank: int = 16, of_b: int | None = None) -> list[Any]:
    b = rank if of_b is None else of_b
    return [(f"{name}.lora_A.weight", (rank, 64)), (f"{name}.lora_B.weight", (48, b))]


def kinds(result: Any) -> list[str]:
    return [problem.reason for problem in result.problems]


def test_fields_of_a_configuration() -> None:
    read = config(
        lora_dropout=0.05,
        use_rslora=True,
        rank_pattern={"q_proj": 4},
        alpha_pattern={"q_proj": 8},
        revision="unsloth",
        modules_to_save=["lm_head"],
        layers_to_transform=3,
        peft_version="0.21.2",
        invented_key={"deep": [1]},
    )
    assert (read.rank, read.alpha, read.dropout, read.use_rslora) == (16, 32.0, 0.05, True)
    assert (read.rank_pattern, read.alpha_pattern) == ({"q_proj": 4}, {"q_proj": 8.0})
    assert read.target_modules == ("q_proj", "v_proj")
    assert (read.base_model, read.revision) == ("meta-llama/Llama-3.1-8B", "unsloth")
    assert (read.modules_to_save, read.layers_to_transform) == (("lm_head",), (3,))
    assert read.peft_version == "0.21.2"
    assert not read.bom


def test_unknown_keys_are_kept() -> None:
    """Case 66."""
    assert config(invented_key={"deep": [1]}).raw["invented_key"] == {"deep": [1]}


@pytest.mark.parametrize("target", ["all-linear", r".*\.(q|v)_proj", r"(a+)+$"])
def test_a_target_pattern_stays_a_text(target: str) -> None:
    """Case 68: nothing matches it, however evil."""
    assert config(target_modules=target).target_modules == target


def test_files_of_the_first_versions_are_read() -> None:
    read = config(
        enable_lora=None, merge_weights=False, fan_in_fan_out=False, inference_mode=True, bias="none"
    )
    assert read.rank == 16
    assert read.raw["merge_weights"] is False


def test_a_byte_order_mark_is_noted_and_the_last_of_a_repeated_key_counts() -> None:
    text = b'\xef\xbb\xbf{"peft_type": "LORA", "r": 4, "r": 8, "lora_alpha": 8}'
    read = parse_config(text)
    assert (read.rank, read.bom) == (8, True)


REFUSED = [
    pytest.param(
        b"version https://git-lfs.github.com/spec/v1\noid sha256:1\n", "lfs_pointer", id="lfs-pointer"
    ),
    pytest.param(b"{" + b" " * 1024 * 1024, "too_large", id="case-71-too-large"),
    pytest.param(b"not json", "not_json", id="case-71-not-json"),
    pytest.param(b"[]", "not_object", id="case-71-list"),
    pytest.param(b"null", "not_object", id="case-71-null"),
    pytest.param(b'{"lora_parameters": {"rank": 8}, "adapter_path": "x"}', "not_peft", id="case-69-mlx"),
    pytest.param(b"{}", "not_peft", id="case-69-no-peft-type"),
    pytest.param(b'{"peft_type": 3}', "not_peft", id="case-69-number"),
]


@pytest.mark.parametrize(("text", "kind"), REFUSED)
def test_refused_by_kind(text: bytes, kind: str) -> None:
    with pytest.raises(ConfigError) as refused:
        parse_config(text)
    assert refused.value.kind == kind


@pytest.mark.parametrize(
    ("field", "value"),
    [
        pytest.param("r", 0, id="case-67-0"),
        pytest.param("r", -1, id="case-67-minus-1"),
        pytest.param("r", True, id="case-67-true"),
        pytest.param("r", "16", id="case-67-text"),
        pytest.param("r", 1e9, id="case-67-1e9"),
        pytest.param("r", 10**9, id="case-67-10**9"),
        pytest.param("r", 16.0, id="case-67-float"),
        pytest.param("r", None, id="case-67-null"),
        pytest.param("lora_alpha", None, id="alpha-null"),
        pytest.param("lora_alpha", True, id="alpha-true"),
        pytest.param("lora_alpha", "32", id="alpha-text"),
        pytest.param("use_rslora", "false", id="rslora-text"),
        pytest.param("rank_pattern", ["q_proj"], id="rank-pattern-list"),
        pytest.param("rank_pattern", {"q_proj": 0}, id="rank-pattern-0"),
        pytest.param("alpha_pattern", {"q_proj": "8"}, id="alpha-pattern-text"),
        pytest.param("target_modules", [1], id="targets-numbers"),
        pytest.param("bias", False, id="bias-false"),
        pytest.param("base_model_name_or_path", ["a"], id="base-list"),
    ],
)
def test_a_bad_field_is_named(field: str, value: object) -> None:
    with pytest.raises(ConfigError, match=field) as refused:
        config(**{field: value})
    assert refused.value.kind == "bad_field"


def test_another_method_is_read_with_whatever_it_holds() -> None:
    """Case 69."""
    read = config(peft_type="IA3", r="eight", target_modules={"a": 1}, task_type=7)
    assert (read.is_lora, read.rank, read.target_modules, read.task_type) == (False, None, None, None)


wrong = (
    st.none() | st.booleans() | st.integers() | st.floats() | st.text() | st.lists(st.integers(), max_size=2)
)
wrong = st.one_of(wrong, st.dictionaries(st.text(max_size=3), st.integers() | st.text(), max_size=2))


@settings(max_examples=300, deadline=None)
@given(
    st.sampled_from(
        [*sorted(LORA), "rank_pattern", "alpha_pattern", "bias", "use_dora", "layers_to_transform"]
    ),
    wrong,
)
def test_wrong_types_give_a_configuration_or_a_config_error(field: str, value: object) -> None:
    """Case 28, for configurations: what is read has the types that it claims."""
    try:
        read = config(**{field: value})
    except ConfigError:
        return
    assert read.rank is None or 1 <= read.rank <= 65_536
    assert math.isfinite(read.alpha)
    assert isinstance(read.bias, str)
    assert all(isinstance(rank, int) for rank in read.rank_pattern.values())
    assert lora_modules(header(*pair()), read) == lora_modules(header(*pair()), read)


@pytest.mark.parametrize(
    ("fields", "module", "expected"),
    [
        pytest.param({}, LAYER, 2.0, id="alpha-over-r"),
        pytest.param({"use_rslora": True}, LAYER, 8.0, id="rslora"),
        pytest.param({"rank_pattern": {"q_proj": 4}}, LAYER, 8.0, id="rank-pattern"),
        pytest.param({"alpha_pattern": {"q_proj": 4}}, LAYER, 0.25, id="alpha-pattern"),
        pytest.param({"rank_pattern": {"q_proj": 4}, "use_rslora": True}, LAYER, 16.0, id="both"),
        pytest.param({"rank_pattern": {"layers.3.self_attn.q_proj": 4}}, LAYER, 8.0, id="dotted"),
        pytest.param(
            {"rank_pattern": {"3.self_attn.q_proj": 4}}, LAYER.replace("3", "13"), 2.0, id="no-half-part"
        ),
        pytest.param({"rank_pattern": {"v_proj": 4}}, LAYER, 2.0, id="other-module"),
        pytest.param(
            {"rank_pattern": {"q_proj": 4, "3.self_attn.q_proj": 8}}, LAYER, 8.0, id="first-key-wins"
        ),
        pytest.param({"rank_pattern": {r".*layers\.(1|3)\..*": 4}}, LAYER, 8.0, id="expression"),
    ],
)
def test_scaling(fields: dict[str, Any], module: str, expected: float) -> None:
    assert ScalingRule(config(**fields)).scaling(module) == expected


@pytest.mark.parametrize("evil", [r"(a+)+$", r"(.*)*x", r"(\w|\w\w)*!"])
def test_evil_patterns_never_hang(evil: str) -> None:
    """Case 68."""
    rule = ScalingRule(config(rank_pattern={evil: 4}))
    for layer in range(448):
        assert rule.scaling(f"model.layers.{layer}." + "a" * 40 + "-") == 2.0


def test_many_patterns_on_many_modules_stop_at_the_budget() -> None:
    rule = ScalingRule(config(rank_pattern={f"nothing_{n}": 4 for n in range(20_000)}))
    with pytest.raises(ConfigError) as refused:
        list(map(rule.scaling, (f"model.layers.{layer}" for layer in range(1_000))))
    assert refused.value.kind == "bad_pattern"


SPELLINGS = [
    pytest.param("base_model.model.{}.lora_A.weight", id="case-60-as-peft-writes"),
    pytest.param("{}.lora_A.weight", id="case-60-no-prefix"),
    pytest.param("base_model.model.{}.lora_A.default.weight", id="case-60-adapter-name"),
    pytest.param("module.base_model.model.{}.lora_A.weight", id="case-60-parallel-wrapper"),
    pytest.param("base_model.model.module.{}.lora_A.weight", id="case-60-wrapper-inside"),
    pytest.param("_orig_mod.base_model.model.{}.lora_A.my-adapter.weight", id="case-60-compiled"),
    pytest.param("base_model.model.{}.lora_A", id="case-60-bare"),
]


@pytest.mark.parametrize("spelling", SPELLINGS)
def test_every_spelling_of_a_key_is_the_same_module(spelling: str) -> None:
    a, b = spelling.format(LAYER), spelling.format(LAYER).replace("lora_A", "lora_B")
    spec = lora_modules(header((a, (16, 64)), (b, (48, 16))), config())
    assert spec.modules == (LoraModule(LAYER, 3, "linear", 64, 48, 16, 2.0),)
    assert (spec.problems, spec.others) == ((), ())
    assert (spec.parameters, spec.ranks, spec.targets, spec.dtypes) == (
        1792,
        (16,),
        ("q_proj",),
        ("BF16",),
    )


@pytest.mark.parametrize("end", ["", ".default", ".weight", ".default.weight"])
def test_embeddings(end: str) -> None:
    name = "base_model.model.model.embed_tokens.lora_embedding_"
    spec = lora_modules(header((f"{name}A{end}", (16, 1000)), (f"{name}B{end}", (64, 16))), config())
    assert spec.modules == (LoraModule("model.embed_tokens", None, "embedding", 1000, 64, 16, 2.0),)


def test_modules_come_in_the_order_of_layers() -> None:
    names = [f"model.layers.{n}.mlp.{m}" for n in (10, 2) for m in ("up_proj", "down_proj")]
    spec = lora_modules(header(*(tensor for name in names for tensor in pair(name))), config())
    assert [module.name for module in spec.modules] == [names[3], names[2], names[1], names[0]]


PROBLEMS = [
    pytest.param(pair()[:1], "unpaired_factor", id="case-58-a-without-b"),
    pytest.param(pair()[1:], "unpaired_factor", id="case-58-b-without-a"),
    pytest.param(pair(of_b=8), "rank_mismatch", id="case-58-a-and-b"),
    pytest.param(pair(rank=8), "rank_mismatch", id="case-58-config"),
    pytest.param(pair(rank=0), "empty_tensor", id="case-54-rank-0"),
    pytest.param(
        [(f"{LAYER}.lora_A.weight", (0,)), (f"{LAYER}.lora_B.weight", (0,))],
        "empty_tensor",
        id="case-54-zero3",
    ),
    pytest.param(
        [(f"{LAYER}.lora_A.weight", (16, 3, 3, 3)), (f"{LAYER}.lora_B.weight", (8, 16, 1, 1))],
        "not_a_matrix",
        id="convolution",
    ),
    pytest.param(
        [*pair(LAYER), *pair(f"base_model.model.{LAYER}")], "duplicate_factor", id="two-adapters-in-a-file"
    ),
]


@pytest.mark.parametrize(("tensors", "kind"), PROBLEMS)
def test_problems_are_named(tensors: list[Any], kind: str) -> None:
    spec = lora_modules(header(*tensors), config())
    assert kinds(spec) == [kind]
    assert spec.modules == () or kind in {"rank_mismatch", "duplicate_factor"}


def test_a_problem_of_every_module_is_told_once() -> None:
    tensors = [tensor for n in range(9) for tensor in pair(f"model.layers.{n}.mlp.up_proj")[:1]]
    (problem,) = lora_modules(header(*tensors), config()).problems
    assert problem.detail.endswith("and 4 more")


def test_numbers_that_are_none_are_a_problem() -> None:
    """Case 57."""
    assert kinds(lora_modules(header(*pair(), dtype="I8"), config())) == ["bad_dtype"]
    assert kinds(lora_modules(header(*pair(), dtype="F16"), config())) == []


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        pytest.param(f"base_model.model.{LAYER}.lora_magnitude_vector", "magnitude", id="case-61-dora"),
        pytest.param(
            f"base_model.model.{LAYER}.lora_magnitude_vector.default.weight",
            "magnitude",
            id="case-61-dora-named",
        ),
        pytest.param(f"base_model.model.{LAYER}.bias", "bias", id="case-61-bias"),
        pytest.param(f"base_model.model.{LAYER}.lora_B.bias", "lora_bias", id="case-61-lora-bias"),
        pytest.param(
            f"base_model.model.{LAYER}.lora_B.default.bias", "lora_bias", id="case-61-lora-bias-named"
        ),
        pytest.param("base_model.model.lm_head.weight", "saved", id="case-61-lm-head"),
        pytest.param(
            "base_model.model.score.modules_to_save.default.weight", "saved", id="case-61-modules-to-save"
        ),
        pytest.param(
            "base_model.model.model.embed_tokens.base_layer.weight", "base_copy", id="case-61-base-copy"
        ),
        pytest.param(
            "base_model.model.model.embed_tokens.token_adapter.trainable_tokens_delta",
            "trainable_tokens",
            id="tokens",
        ),
        pytest.param(f"base_model.model.{LAYER}.base_layer.bias", "bias", id="bias-of-qwen2"),
        pytest.param("base_model.model.score.original_module.weight", "base_copy", id="wrapped-original"),
        pytest.param(f"base_model.model.{LAYER}.lora_velora_embed", "auxiliary", id="velora"),
        pytest.param(f"base_model.model.{LAYER}.lora_diag", "unknown", id="kasa"),
        pytest.param(f"base_model.model.{LAYER}.hada_w1_a", "unknown", id="loha"),
    ],
)
def test_other_tensors_are_named_by_kind(name: str, kind: str) -> None:
    spec = lora_modules(header(*pair(), (name, (4,))), config())
    assert spec.others == (OtherTensor(name, kind),)
    assert len(spec.modules) == 1


def test_hostile_names_are_no_factors_and_come_out_fit_to_print() -> None:
    long, odd = "module." * 100_000 + "x.lora_A.weight", "a\x00\u202e.lora_A.weight"
    assert factor_key(long) is None
    assert factor_key(odd) is None
    spec = lora_modules(header((long, (1,)), (odd, (1,))), config())
    assert all(len(other.name) <= 200 and other.name.isprintable() for other in spec.others)


def test_without_a_scaling_there_are_no_modules() -> None:
    assert lora_modules(header(*pair()), config(peft_type="LOHA")).modules == ()
    spec = lora_modules(header(*pair()), config(rank_pattern={"(?=x)": 4}))
    assert (spec.modules, kinds(spec)) == ((), ["bad_pattern"])


@shared
def test_the_wild_configurations_are_read_as_the_index_says() -> None:
    requests = {"peft": 0, "mlx": 0, "unparsable": 0}
    for row in index("wild"):
        text = (data("wild") / row["dir"] / row["config_file"]).read_bytes()
        try:
            read = parse_config(text)
        except ConfigError as error:
            expected = {"not_peft": "mlx", "lfs_pointer": "unparsable"}[error.kind]
            assert row["config_kind"] == expected, row["dir"]
            requests[expected] += 1
            continue
        requests["peft"] += 1
        assert (row["config_kind"], row["peft_type"]) == ("peft", read.peft_type), row["dir"]
        assert row["base_model"] == read.base_model, row["dir"]
        assert row["task_type"] == read.task_type, row["dir"]
        if read.is_lora:
            assert (row["r"], row["lora_alpha"]) == (read.rank, read.alpha), row["dir"]
            assert isinstance(read.target_modules, tuple | None), row["dir"]
            assert (
                row["target_modules"] == ",".join(read.target_modules or ("None",))
                or "to_add_out" in row["target_modules"]
            )
        assert ("use_dora" in row["anomalies"]) is read.use_dora
        assert ("use_rslora" in row["anomalies"]) is read.use_rslora
    assert requests == {"peft": 249, "mlx": 3, "unparsable": 2}


def test_a_long_list_of_saved_modules_costs_no_more_than_a_short_one() -> None:
    """Neither list of a hostile configuration is gone through for each tensor of a hostile file."""
    many = [f"model.layers.{n}.mlp.gate" for n in range(10_000)]
    read = config(modules_to_save=[*many, "score"], target_parameters=[f"{name}.w" for name in many])
    tensors = [(f"base_model.model.model.layers.{n}.mlp.gate.weight", (1,)) for n in range(20_000)]
    spec = lora_modules(header(*pair(), *tensors, ("base_model.model.score.dense.weight", (1,))), read)
    assert [other.layer for other in spec.others[:2]] == many[:2]
    assert spec.others[-1].layer == "score"
    assert spec.of_parameters == ()
