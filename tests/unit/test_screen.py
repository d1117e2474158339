"""Admission rules: every reason, every set of rules, on evidence made by hand."""

from __future__ import annotations

import json
from collections import Counter
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from catalog.adapters import (
    PARTIAL,
    SENTENCES,
    AdapterConfig,
    AdapterSpec,
    BaseTable,
    Header,
    Tensor,
    WeightsHealth,
    bases,
    initial_spellings,
    lora_modules,
    parse_config,
)
from catalog.errors import ConfigError, UsageError, WeightsError
from catalog.rules import RULE_SETS, Reason
from crawler.crawl.screening import Evidence, reasons_to_refuse, refusing, screen
from tests.shared_data import data, index, shared
from tests.wild import by_config

BASE = "meta-llama/Llama-3.1-8B-Instruct"
TABLE = BaseTable(initial_spellings())
LORA: dict[str, Any] = {
    "peft_type": "LORA",
    "task_type": "CAUSAL_LM",
    "base_model_name_or_path": BASE,
    "r": 16,
    "lora_alpha": 32,
    "target_modules": ["q_proj", "v_proj"],
}
Q = "base_model.model.model.layers.0.self_attn.q_proj"
MLP = "base_model.model.model.layers.0.mlp"
GOOD_TENSORS: dict[str, tuple[int, ...]] = {
    f"{Q}.lora_A.weight": (16, 4096),
    f"{Q}.lora_B.weight": (4096, 16),
}
HEALTH = WeightsHealth(norm=10.0, non_finite=False, zero_update=False, modules=1)


def config(**fields: Any) -> AdapterConfig:
    return parse_config(json.dumps({**LORA, **fields}).encode())


def spec(read: AdapterConfig, tensors: dict[str, tuple[int, ...]], dtype: str = "BF16") -> AdapterSpec:
    header = Header(tuple(Tensor(name, dtype, shape, 0, 0) for name, shape in tensors.items()), {}, 2)
    return lora_modules(header, read)


def evidence(
    fields: dict[str, Any] | None = None, tensors: dict[str, tuple[int, ...]] | None = None, **names: Any
) -> Evidence:
    """An adapter that all rules accept, with changes."""
    read = config(**fields or {})
    identity = TABLE.identify(read.base_model)
    result = Evidence(
        files=("README.md", "adapter_config.json", "adapter_model.safetensors"),
        config=read,
        spec=spec(read, {**GOOD_TENSORS, **tensors} if tensors else GOOD_TENSORS),
        base=identity,
        dims=bases.dims(identity.canonical) if identity.canonical else None,
        base_license="llama3.1",
        card_license="llama3.1",
        health=HEALTH,
    )
    return replace(result, **names)


def reasons(of: Evidence) -> list[str]:
    return [finding.reason for finding in screen(of)]


def test_a_good_adapter_has_nothing_against_it() -> None:
    assert screen(evidence()) == ()


def files(*names: str) -> tuple[str, ...]:
    return ("adapter_config.json", *names)


PAPER, OURS, LICENSED, BOTH, NOTED = {"paper"}, {"ours", "licensed"}, {"licensed"}, set(RULE_SETS), set[str]()
NO_BASE = {"base_model_name_or_path": None}

CASES = [
    pytest.param(Evidence(status="gated"), ["gated"], BOTH, id="case-22-gated"),
    pytest.param(Evidence(status="disabled"), ["disabled"], BOTH, id="case-22-disabled"),
    pytest.param(evidence(status="private"), ["private"], BOTH, id="case-22-private"),
    pytest.param(evidence(status="private_or_missing"), ["vanished"], BOTH, id="case-22-missing"),
    pytest.param(evidence(status="revision_gone"), ["vanished"], BOTH, id="case-25-sha-vanished"),
    pytest.param(evidence(status="rate_limited"), ["not_read"], BOTH, id="unknown-status"),
    pytest.param(evidence(status="too_large"), ["too_large"], BOTH, id="too-large"),
    pytest.param(
        evidence(problems=("../x leaves its folder",)), ["unusable_files"], NOTED, id="case-29-path"
    ),
    pytest.param(evidence(status="integrity"), ["integrity"], BOTH, id="case-37-hash"),
    pytest.param(Evidence(files=("README.md",)), ["no_adapter"], BOTH, id="no-adapter"),
    pytest.param(evidence(subfolder="checkpoint-8"), ["not_root"], PAPER, id="case-34-subfolder"),
    pytest.param(evidence(files=files()), ["no_safetensors"], BOTH, id="no-weights"),
    pytest.param(
        evidence(files=files("adapters.safetensors")), ["no_safetensors"], BOTH, id="other-safetensors"
    ),
    pytest.param(evidence(files=files("adapter_model.bin")), ["pickle_only"], BOTH, id="case-65-pickle"),
    pytest.param(
        evidence(files=files("adapter_model.bin", "adapter_model.safetensors")), [], NOTED, id="both-formats"
    ),
    pytest.param(
        evidence(config=ConfigError("lfs_pointer", "x")), ["config_lfs_pointer"], BOTH, id="config-lfs"
    ),
    pytest.param(
        evidence(config=ConfigError("not_json", "x")), ["config_unreadable"], BOTH, id="case-71-config"
    ),
    pytest.param(
        evidence(config=ConfigError("bad_field", "r")), ["config_unreadable"], BOTH, id="case-67-rank"
    ),
    pytest.param(evidence(config=ConfigError("not_peft", "x")), ["config_not_peft"], BOTH, id="case-69-mlx"),
    pytest.param(evidence({"peft_type": "LOHA"}), ["not_lora"], BOTH, id="case-69-loha"),
    pytest.param(evidence({"task_type": "SEQ_CLS"}), ["not_causal_lm"], BOTH, id="task-other"),
    pytest.param(evidence({"task_type": None}), ["task_type_missing"], PAPER, id="task-null"),
    pytest.param(
        evidence({"task_type": None, "target_modules": ["to_q"]}, spec=None),
        ["not_causal_lm", "task_type_missing"],
        BOTH,
        id="task-null-of-a-diffusion-model",
    ),
    pytest.param(
        evidence({"task_type": None, "target_modules": ["model.encoder.layers.0.q_proj"]}, spec=None),
        ["not_causal_lm", "task_type_missing"],
        BOTH,
        id="task-null-of-an-encoder",
    ),
    pytest.param(evidence(NO_BASE), ["base_missing"], BOTH, id="case-70-null"),
    pytest.param(
        evidence(NO_BASE, base=TABLE.identify(None, tags=[f"base_model:adapter:{BASE}"])),
        ["base_mismatch"],
        PAPER,
        id="case-70-null-and-a-tag",
    ),
    pytest.param(
        evidence({"base_model_name_or_path": "/home/x/mine"}),
        ["base_local_path", "base_mismatch"],
        BOTH,
        id="case-70-path",
    ),
    pytest.param(
        evidence({"base_model_name_or_path": "/nfs/Meta-Llama-3.1-8B-Instruct"}),
        [],
        NOTED,
        id="case-70-path-with-a-name",
    ),
    pytest.param(
        evidence({"base_model_name_or_path": "unsloth/Meta-Llama-3.1-8B-Instruct-bnb-4bit"}),
        [],
        NOTED,
        id="case-70-unsloth",
    ),
    pytest.param(
        evidence({"base_model_name_or_path": "unsloth/llama-3-8b-bnb-4bit"}),
        ["base_mismatch"],
        PAPER,
        id="case-70-spelt-otherwise",
    ),
    pytest.param(evidence({"use_rslora": True}), [], NOTED, id="case-72-rslora"),
    pytest.param(evidence({"use_dora": True}), ["use_dora"], BOTH, id="case-72-dora"),
    pytest.param(
        evidence({"rank_pattern": {"k_proj": 4}}), ["rank_pattern"], PAPER, id="case-72-rank-pattern"
    ),
    pytest.param(
        evidence({"alpha_pattern": {"k_proj": 4}}), ["alpha_pattern"], PAPER, id="case-72-alpha-pattern"
    ),
    pytest.param(
        evidence({"rank_pattern": {"(?=x)": 4}}), ["bad_pattern", "rank_pattern"], BOTH, id="case-68-pattern"
    ),
    pytest.param(evidence({"bias": "all"}), ["unused_setting"], PAPER, id="bias-without-biases"),
    pytest.param(evidence({"bias": "all"}, spec=None), ["has_bias"], BOTH, id="bias-by-config-alone"),
    pytest.param(evidence(None, {f"{Q}.bias": (4096,)}), ["has_bias"], BOTH, id="bias"),
    pytest.param(
        evidence({"bias": "lora_only"}, {f"{Q}.base_layer.bias": (4096,)}),
        ["has_bias"],
        BOTH,
        id="bias-of-qwen2",
    ),
    pytest.param(evidence({"lora_bias": True}), ["unused_setting"], PAPER, id="lora-bias-without-biases"),
    pytest.param(
        evidence({"lora_bias": True}, {f"{Q}.lora_B.bias": (4096,)}), ["lora_bias"], BOTH, id="lora-bias"
    ),
    pytest.param(
        evidence({"modules_to_save": ["classifier", "score"]}),
        ["unused_setting"],
        PAPER,
        id="modules-to-save-of-no-module",
    ),
    pytest.param(
        evidence({"modules_to_save": ["lm_head"]}),
        ["config_peft_refuses", "unused_setting"],
        PAPER,
        id="modules-to-save-without-weights",
    ),
    pytest.param(
        evidence({"modules_to_save": ["lm_head"]}, {"lm_head.weight": (128256, 4096)}),
        ["full_weights", "modules_to_save"],
        BOTH,
        id="case-61-modules-to-save",
    ),
    pytest.param(
        evidence({"modules_to_save": ["lm_head"]}, spec=None),
        ["modules_to_save"],
        BOTH,
        id="modules-to-save-by-config-alone",
    ),
    pytest.param(evidence({"modules_to_save": []}), [], NOTED, id="no-modules-to-save"),
    pytest.param(
        evidence({"layer_replication": [[0, 4], [2, 6]]}), ["layer_replication"], BOTH, id="layer-replication"
    ),
    pytest.param(evidence({"alora_invocation_tokens": [1]}), ["alora"], OURS, id="alora"),
    pytest.param(evidence({"alora_invocation_tokens": []}), [], NOTED, id="alora-empty"),
    pytest.param(
        evidence(
            {"trainable_token_indices": {"embed_tokens": [1]}},
            {"model.embed_tokens.token_adapter.trainable_tokens_delta": (1, 4096)},
        ),
        ["trainable_tokens"],
        BOTH,
        id="tokens",
    ),
    pytest.param(
        evidence({"trainable_token_indices": {"embed_tokens": [1]}}),
        ["config_peft_refuses", "unused_setting"],
        PAPER,
        id="tokens-without-weights",
    ),
    pytest.param(
        evidence(
            {"target_parameters": ["experts.w"]},
            {f"{MLP}.experts.lora_A.weight": (64, 8), f"{MLP}.experts.lora_B.weight": (8, 64)},
        ),
        ["target_parameters"],
        OURS,
        id="target-parameters",
    ),
    pytest.param(evidence({"target_parameters": ["experts.w"]}), [], NOTED, id="no-target-parameters"),
    pytest.param(evidence(None, {f"{Q}.lora_velora_embed": (8,)}), [], NOTED, id="velora"),
    pytest.param(evidence({"bias": None}), ["config_peft_refuses"], NOTED, id="bias-null"),
    pytest.param(evidence({"use_qalora": True}), ["lora_variant"], OURS, id="qalora"),
    pytest.param(evidence({"init_lora_weights": "pissa_niter_16"}), ["relative_init"], OURS, id="pissa"),
    pytest.param(evidence({"init_lora_weights": "OLoRA"}), ["relative_init"], OURS, id="olora"),
    pytest.param(evidence({"init_lora_weights": "lora_ga"}), ["relative_init"], OURS, id="lora-ga"),
    pytest.param(evidence({"kasa_config": {"beta": 1}}), ["lora_variant", "relative_init"], OURS, id="kasa"),
    pytest.param(evidence({"kasa_config": {}}), ["lora_variant", "relative_init"], OURS, id="kasa-defaults"),
    pytest.param(
        evidence({"init_lora_weights": "loftq", "loftq_config": {"loftq_bits": 4}}),
        ["init_config", "relative_init"],
        BOTH,
        id="loftq",
    ),
    pytest.param(
        evidence({"init_lora_weights": "eva", "eva_config": {"rho": 2}}), ["init_config"], PAPER, id="eva"
    ),
    pytest.param(evidence({"init_lora_weights": "mica", "loftq_config": {}}), [], NOTED, id="mica"),
    pytest.param(evidence({"init_lora_weights": "orthogonal"}), [], NOTED, id="orthogonal"),
    pytest.param(evidence(spec=WeightsError("truncated", "x")), ["truncated"], BOTH, id="case-35-truncated"),
    pytest.param(evidence(spec=WeightsError("size_mismatch", "x")), ["truncated"], BOTH, id="case-36-size"),
    pytest.param(
        evidence(spec=WeightsError("header_invalid", "x")), ["header_invalid"], BOTH, id="case-51-header"
    ),
    pytest.param(evidence(spec=WeightsError("lfs_pointer", "x")), ["header_invalid"], BOTH, id="weights-lfs"),
    pytest.param(evidence(spec=AdapterSpec(())), ["no_lora_tensors"], BOTH, id="case-53-40-bytes"),
    pytest.param(
        evidence(None, {"base_model.model.x.lora_A.weight": (16, 4)}),
        ["unpaired_factor"],
        BOTH,
        id="case-58-unpaired",
    ),
    pytest.param(evidence({"r": 8}), ["rank_mismatch"], BOTH, id="case-58-rank"),
    pytest.param(
        evidence(None, {"base_model.model.x.lora_A.weight": (0,), "base_model.model.x.lora_B.weight": (0,)}),
        ["empty_tensor"],
        BOTH,
        id="case-54-empty",
    ),
    pytest.param(
        evidence(None, {f"{Q}.lora_magnitude_vector": (4096,)}), ["use_dora"], BOTH, id="case-61-magnitude"
    ),
    pytest.param(
        evidence(None, {"lm_head.weight": (128256, 4096)}), ["full_weights"], OURS, id="case-61-lm-head"
    ),
    pytest.param(
        evidence(None, {"embed_tokens.base_layer.weight": (9, 9)}),
        ["base_copy"],
        NOTED,
        id="case-61-base-copy",
    ),
    pytest.param(evidence(None, {"mystery": (1,)}), ["unknown_tensor"], OURS, id="case-61-unknown"),
    pytest.param(
        evidence(
            None,
            {
                "base_model.model.model.embed_tokens.lora_embedding_A": (16, 128256),
                "base_model.model.model.embed_tokens.lora_embedding_B": (4096, 16),
            },
        ),
        ["embedding_lora"],
        NOTED,
        id="case-61-embedding",
    ),
    pytest.param(
        evidence(None, {f"{Q}.lora_A.weight": (16, 2048)}),
        ["wrong_base_shape"],
        BOTH,
        id="case-59-hidden-size",
    ),
    pytest.param(
        evidence(
            None, {name.replace("layers.0", "layers.32"): shape for name, shape in GOOD_TENSORS.items()}
        ),
        ["wrong_base_shape"],
        BOTH,
        id="case-59-layers",
    ),
    pytest.param(
        evidence(spec=spec(config(), {f"module.{name}": shape for name, shape in GOOD_TENSORS.items()})),
        ["key_spelling"],
        NOTED,
        id="key-spelling",
    ),
    pytest.param(
        evidence(
            spec=spec(config(), {name.replace("self_", ""): shape for name, shape in GOOD_TENSORS.items()})
        ),
        ["no_such_module"],
        OURS,
        id="no-such-module",
    ),
    pytest.param(evidence(health=replace(HEALTH, non_finite=True)), ["non_finite"], BOTH, id="case-55-nan"),
    pytest.param(
        evidence(health=WeightsHealth(0.0, False, True, 1)),
        ["norm_out_of_range", "zero_update"],
        BOTH,
        id="case-56-zero",
    ),
    pytest.param(evidence(health=replace(HEALTH, norm=1.0)), ["norm_out_of_range"], PAPER, id="norm-1"),
    pytest.param(evidence(health=replace(HEALTH, norm=1000.0)), [], NOTED, id="norm-1000"),
    pytest.param(
        evidence(health=replace(HEALTH, norm=1000.1)), ["norm_out_of_range"], PAPER, id="norm-above-1000"
    ),
    pytest.param(
        evidence(health=replace(HEALTH, norm=2000.0, norm_in_layers=10.0)), [], NOTED, id="norm-of-the-head"
    ),
    pytest.param(
        evidence(health=replace(HEALTH, norm=1e6)),
        ["norm_exploded", "norm_out_of_range"],
        BOTH,
        id="norm-exploded",
    ),
    pytest.param(evidence(health=None), [], NOTED, id="not-measured"),
    pytest.param(
        evidence(spec=WeightsError("unreadable", "x")), ["weights_unreadable"], BOTH, id="parser-fails"
    ),
    pytest.param(evidence(card_problems=("bad_yaml",)), ["card_unreadable"], NOTED, id="case-73-card"),
    pytest.param(evidence(card_license=None), ["license_missing"], LICENSED, id="case-74-missing"),
    pytest.param(evidence(card_license="other"), ["license_missing"], LICENSED, id="case-74-other"),
    pytest.param(evidence(card_license="Apache-2.0"), ["license_conflict"], LICENSED, id="case-74-conflict"),
    pytest.param(
        evidence(card_license="llama3"), ["license_conflict"], LICENSED, id="case-74-another-community"
    ),
    pytest.param(evidence(card_license="my-own-terms"), [], NOTED, id="case-74-own-terms"),
    pytest.param(
        evidence(base_license="apache-2.0", card_license="mit"), [], NOTED, id="case-74-permissive-base"
    ),
    pytest.param(
        evidence(base_license="apache-2.0", card_license="cc-by-nc-4.0"), [], NOTED, id="case-74-stricter"
    ),
    pytest.param(evidence(base_license=None, card_license="mit"), [], NOTED, id="case-74-unknown-base"),
]


@pytest.mark.parametrize(("known", "expected", "refusers"), CASES)
def test_reasons_and_who_refuses(known: Evidence, expected: list[str], refusers: set[str]) -> None:
    findings = screen(known)
    result = [
        finding.reason
        for finding in findings
        # Of what was not read nobody expects a licence.
        if known.config is not None or finding.reason is not Reason.LICENSE_MISSING
    ]
    assert sorted(result) == expected
    assert {rules for rules in ("paper", "ours") if reasons_to_refuse(findings, rules)} == refusers & {
        "paper",
        "ours",
    }
    if known.card_license:
        assert bool(reasons_to_refuse(findings, "licensed")) is ("licensed" in refusers)


def test_every_reason_has_a_case_and_a_rule() -> None:
    names = [case.values[0] for case in CASES]
    output = {finding.reason for of in names if isinstance(of, Evidence) for finding in screen(of)}
    remaining = {Reason.NOT_A_MATRIX, Reason.DUPLICATE_FACTOR, Reason.BAD_DTYPE}
    assert output == set(Reason) - remaining
    read, x = config(), "base_model.model.x"
    odd: list[tuple[dict[str, tuple[int, ...]], str, Reason]] = [
        ({f"{x}.lora_A.weight": (16, 3, 3), f"{x}.lora_B.weight": (4, 16, 1)}, "F32", Reason.NOT_A_MATRIX),
        ({**GOOD_TENSORS, f"{Q}.lora_A.other.weight": (16, 4096)}, "F32", Reason.DUPLICATE_FACTOR),
        (GOOD_TENSORS, "I8", Reason.BAD_DTYPE),
    ]
    for tensors, dtype, reason in odd:
        findings = screen(evidence(spec=spec(read, tensors, dtype)))
        assert {finding.reason for finding in findings} - {Reason.KEY_SPELLING} == {reason}


def test_the_table_is_sound() -> None:
    for reason in Reason:
        assert reason.value == reason.name.lower()
        assert reason.sentence
        assert not reason.sentence.endswith(".")
        assert reason.licensed or not reason.ours, "licensed refuses whatever ours refuses"
    assert refusing("ours") == tuple(reason.value for reason in Reason if reason.ours)


def test_all_reasons_are_found_each_once_and_in_the_order_of_the_table() -> None:
    tensors = {f"{Q}.lora_A.weight": (16, 2048), "a": (1,), "b": (1,), f"{Q}.bias": (1,)}
    names = evidence({"use_dora": True, "bias": "all"}, tensors, subfolder="x", card_license=None)
    assert reasons(names) == [
        "not_root",
        "use_dora",
        "has_bias",
        "unknown_tensor",
        "wrong_base_shape",
        "license_missing",
    ]
    assert screen(names) == screen(names)


def test_details_say_what_was_seen() -> None:
    tensors = {f"{Q}.lora_A.weight": (16, 2048), "lm_head.weight": (9, 9)}
    names = evidence({"modules_to_save": ["lm_head", "score"]}, tensors, card_license="mit")
    assert [finding.detail for finding in screen(names)] == [
        "lm_head",
        "lm_head",
        "modules_to_save score",
        "model.layers.0.self_attn.q_proj: 2048 to 4096, the base has 4096 to 4096",
        "mit, the base model is llama3.1",
    ]


def test_a_zero_product_beside_other_things_is_not_nothing() -> None:
    zero = WeightsHealth(0.0, False, True, 1)
    assert "zero_update" in reasons(evidence(health=zero))
    assert "zero_update" not in reasons(evidence({"use_dora": True}, health=zero))
    assert "zero_update" not in reasons(evidence(None, {"lm_head.weight": (9, 9)}, health=zero))


def test_the_crawl_refuses_what_a_merge_refuses() -> None:
    """One list says what makes an update another than scaling * B A, and our rules refuse all of it."""
    assert set(SENTENCES) <= set(refusing("ours"))
    assert {reason for reason in PARTIAL if reason not in refusing("ours")} == set()
    assert all(Reason(name).sentence == sentence for name, sentence in SENTENCES.items())


def test_unknown_rules_are_a_usage_error() -> None:
    with pytest.raises(UsageError):
        reasons_to_refuse((), "sentence")


values: st.SearchStrategy[Any] = (
    st.none()
    | st.booleans()
    | st.integers(-3, 70_000)
    | st.text(max_size=20)
    | st.lists(st.text(max_size=5), max_size=2)
)
values = st.one_of(
    values, st.dictionaries(st.text(max_size=5), st.integers(0, 9) | st.text(max_size=3), max_size=2)
)
names = st.text(max_size=20) | st.sampled_from([*GOOD_TENSORS, "lm_head.weight", f"{Q}.lora_B.bias"])


@settings(max_examples=300, deadline=None)
@given(
    st.dictionaries(
        st.sampled_from(
            [
                *sorted(config().raw),
                "bias",
                "use_dora",
                "init_lora_weights",
                "rank_pattern",
                "layer_replication",
                "eva_config",
            ]
        ),
        values,
        max_size=3,
    ),
    st.dictionaries(names, st.lists(st.integers(0, 9), max_size=4).map(tuple), max_size=4),
    st.text(max_size=10),
    st.floats(),
)
def test_no_evidence_raises(fields: dict[str, Any], tensors: dict[str, Any], text: str, norm: float) -> None:
    read: AdapterConfig | ConfigError
    weights: AdapterSpec | None = None
    try:
        read = config(**fields)
        weights = spec(read, tensors)
        identity = TABLE.identify(read.base_model, tags=[text])
    except ConfigError as error:
        read, identity = error, TABLE.identify(text)
    health = WeightsHealth(norm, False, False, 1, norm)
    findings = screen(
        Evidence(
            status=text,
            detail=text,
            subfolder=text,
            files=(text,),
            config=read,
            spec=weights,
            base=identity,
            dims=bases.dims(BASE),
            base_license=text,
            card_license=text,
            health=health,
            problems=(text,),
        )
    )
    order = list(Reason)
    assert [f.reason for f in findings] == sorted({f.reason for f in findings}, key=order.index)
    assert all(len(finding.detail) <= 500 for finding in findings)


@shared
def test_the_wild_folders_end_in_the_expected_reasons() -> None:
    counts: Counter[str] = Counter()
    for row in index("wild"):
        read: AdapterConfig | ConfigError
        try:
            read = parse_config((data("wild") / row["dir"] / row["config_file"]).read_bytes())
        except ConfigError as error:
            read = error
        base = TABLE.identify(read.base_model if isinstance(read, AdapterConfig) else None)
        findings = screen(
            Evidence(files=tuple(row["files"]), config=read, base=base, card_license=row["card_license"])
        )
        result = {finding.reason for finding in findings}
        counts.update(result)
        lora = row["peft_type"] == "LORA"
        assert (Reason.NOT_LORA in result) is (row["config_kind"] == "peft" and not lora), row["dir"]
        assert (Reason.USE_DORA in result) is ("use_dora" in row["anomalies"]), row["dir"]
        weights = [w["name"] for w in row["weights"]]
        assert (Reason.PICKLE_ONLY in result) is (
            "adapter_model.bin" in weights and "adapter_model.safetensors" not in weights
        )
    assert {
        name: counts[name]
        for name in ("config_lfs_pointer", "config_not_peft", "not_lora", "use_dora", "base_local_path")
    } == {
        "config_lfs_pointer": 2,
        "config_not_peft": 3,
        "not_lora": 53,
        "use_dora": 17,
        "base_local_path": 2,
    }


@shared
def test_more_of_the_wild_folders_are_measured_than_used() -> None:
    result = by_config()
    methods = [row["peft_type"] for row in index("wild") if row["config_kind"] == "peft"]
    assert result.read == methods.count("LORA")
    assert 0 < result.used < result.read < result.folders
    assert result.used + result.open <= result.read


@shared
def test_the_pool_of_the_paper_is_accepted_by_the_rules_of_the_paper() -> None:
    pool = json.loads((data("recycling_paper") / "adapter_info.json").read_text(encoding="utf-8"))
    refused = {}
    for name, info in pool.items():
        if info is None or "r" not in info:
            continue
        read = config(r=info["r"], lora_alpha=info["lora_alpha"], target_modules=info["target_modules"])
        identity = TABLE.identify(read.base_model)
        findings = screen(Evidence(files=files("adapter_model.safetensors"), config=read, base=identity))
        if reasons_to_refuse(findings, "paper"):
            refused[name] = findings
    assert refused == {}
