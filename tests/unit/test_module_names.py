"""Names of tensors: one reading for all spellings, the base's own modules, and nothing guessed."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from catalog.adapters import (
    BaseModules,
    Header,
    Tensor,
    lora_modules,
    modules_of_base,
    modules_of_folder,
    modules_of_spelling,
    parse_config,
)
from catalog.adapters.names import (
    WRAPPERS,
    canonical_tensor,
    factor_key,
    first_key,
    first_tensor,
    names_peft_misses,
    peft_names,
    read_names,
)
from catalog.errors import UsageError
from tools import base_modules

Q = "model.layers.0.self_attn.q_proj"
PEFT = f"base_model.model.{Q}"
KNOWN = "HuggingFaceTB/SmolLM2-135M-Instruct"

# Spellings that PEFT does not load, made of its own; each means the same module, whatever the base.
SPELLINGS = {
    "no prefix": f"{Q}.lora_A.weight",
    "layers only": "layers.0.self_attn.q_proj.lora_A.weight",
    "one model lost": "base_model.model.layers.0.self_attn.q_proj.lora_A.weight",
    "one model more": f"base_model.model.model.{Q}.lora_A.weight",
    "half of the prefix": "base_model.layers.0.self_attn.q_proj.lora_A.weight",
    "prefix twice": f"base_model.model.{PEFT}.lora_A.weight",
    "module outside": f"module.{PEFT}.lora_A.weight",
    "module inside the prefix": f"base_model.model.module.{Q}.lora_A.weight",
    "orig_mod outside": f"_orig_mod.{PEFT}.lora_A.weight",
    "orig_mod after the prefix": f"base_model.model._orig_mod.{Q}.lora_A.weight",
    "orig_mod in the prefix": f"base_model._orig_mod.model.{Q}.lora_A.weight",
    "orig_mod in a layer": "base_model.model.model.layers.0._orig_mod.self_attn.q_proj.lora_A.weight",
    "fsdp": "base_model.model.model.layers.0._fsdp_wrapped_module.self_attn.q_proj.lora_A.weight",
    "fsdp at the root": f"_fsdp_wrapped_module.{PEFT}.lora_A.weight",
    "fsdp on the factor": f"{PEFT}.lora_A.default._fsdp_wrapped_module.weight",
    "checkpointing": "base_model.model.model.layers.0._checkpoint_wrapped_module.self_attn"
    ".q_proj.lora_A.weight",
    "three at once": "module._orig_mod.base_model.model.model.layers.0._fsdp_wrapped_module"
    "._checkpoint_wrapped_module.self_attn.q_proj._orig_mod.lora_A.weight",
    "another prefix": f"language_model.{PEFT}.lora_A.weight",
    "any prefix": f"policy.actor.{PEFT}.lora_A.weight",
    "lower case": f"{PEFT}.lora_a.weight",
    "down": f"{PEFT}.lora.down.weight",
    "another name": f"{PEFT}.lora_A.tuned.weight",
}


def header(*tensors: tuple[str, tuple[int, ...]]) -> Header:
    return Header(tuple(Tensor(name, "F32", shape, 0, 0) for name, shape in tensors), {}, 2)


def pair(
    module: str, rank: int = 2, widths: tuple[int, int] = (576, 576)
) -> list[tuple[str, tuple[int, ...]]]:
    return [(f"{module}.lora_A.weight", (rank, widths[0])), (f"{module}.lora_B.weight", (widths[1], rank))]


def config(base: str | None = KNOWN, **fields: Any) -> Any:
    message = {"peft_type": "LORA", "task_type": "CAUSAL_LM", "r": 2, "lora_alpha": 2, **fields}
    return parse_config(json.dumps({"base_model_name_or_path": base, **message}).encode())


@pytest.mark.parametrize("spelling", SPELLINGS.values(), ids=SPELLINGS)
def test_every_spelling_is_one_module(spelling: str) -> None:
    key = factor_key(spelling)
    assert key is not None
    assert (key.module, key.side, key.kind, key.leaf) == (Q, "A", "linear", "weight")
    result = header((spelling, (2, 8)))
    names = read_names(result)
    assert peft_names(result, names) == {spelling: f"{PEFT}.lora_A.weight"}
    assert names_peft_misses(result, names) == (spelling,)


def test_what_peft_writes_is_not_respelled() -> None:
    embedding = "base_model.model.model.embed_tokens.lora_embedding_A"
    result = header(*pair(PEFT), (embedding, (2, 8)), (f"{PEFT}.lora_B.bias", (8,)))
    assert names_peft_misses(result, read_names(result)) == ()
    assert peft_names(result, read_names(result)) == {tensor.name: tensor.name for tensor in result.tensors}


@pytest.mark.parametrize(("name", "found"), [("default", True), ("mine", False), ("defaults", False)])
def test_peft_finds_factors_under_its_own_name_of_an_adapter(name: str, found: bool) -> None:
    file = header((f"{PEFT}.lora_A.{name}.weight", (2, 8)), (f"{PEFT}.lora_B.{name}.weight", (8, 2)))
    assert (names_peft_misses(file, read_names(file)) == ()) is found


@pytest.mark.parametrize(
    "path",
    [
        "transformer.h.0.attn.c_attn",
        "model.decoder.layers.0.self_attn.q_proj",
        "encoder.block.0.layer.0.SelfAttention.q",
        "model.language_model.layers.0.self_attn.q_proj",
        "backbone.layers.0.mixer.in_proj",
        "lm_head",
        "model.my_module.x",
        "model.layers.0.modules.x",
    ],
)
def test_other_families_keep_their_names(path: str) -> None:
    key = factor_key(f"base_model.model.{path}.lora_A.weight")
    assert key is not None
    assert key.module == path


def test_words_of_other_layouts_are_no_factors() -> None:
    """torchtune's and MLX's factors are permuted or transposed: nobody takes them for PEFT's."""
    for name in ("layers.0.attn.q_proj.lora_a.weight", f"{Q}.lora_a", "unet.up.lora.down.weight"):
        assert factor_key(name) is None


def test_models_of_vision_and_text_are_compared_by_their_new_names() -> None:
    old, new = "language_model.model.layers.0.x", "model.language_model.layers.0.x"
    result = header(*pair(f"base_model.model.{old}"))
    names = read_names(result)
    assert {key.module for key in names.keys.values()} == {new}
    # PEFT itself reads old names where the base has new ones, so that they are written as they were.
    assert names.written == {new: old}
    assert names_peft_misses(result, names) == ()
    for before, after in (
        ("vision_tower.encoder.x", "model.vision_tower.encoder.x"),
        ("language_model.lm_head", "lm_head"),
        ("model.language_model.model.layers.1.x", "model.language_model.layers.1.x"),
    ):
        key = factor_key(f"base_model.model.{before}.lora_A.weight")
        assert key is not None
        assert key.module == after


def test_the_class_without_a_head_has_no_model_in_front() -> None:
    """An adapter for AutoModel is compared as any, and written as PEFT finds it there."""
    name = "base_model.model.layers.0.self_attn.q_proj"
    result = header(*pair(name), *pair("module.base_model.model.layers.1.self_attn.q_proj"))
    for base in (None, modules_of_spelling(KNOWN)):
        names = read_names(result, base, "FEATURE_EXTRACTION")
        assert {key.module for key in names.keys.values()} == {Q, Q.replace("0", "1")}
        written = peft_names(result, names)
        assert written[f"{name}.lora_A.weight"] == f"{name}.lora_A.weight"
        assert {new.split(".")[2] for new in written.values()} == {"layers"}


def test_the_base_decides_where_it_is_known() -> None:
    inserted = "base_model.model.model.language_model.layers.0.self_attn.q_proj"
    read = lora_modules(header(*pair(inserted)), config())
    assert ([module.name for module in read.modules], read.absent) == ([Q], ())
    assert len(read.respelled) == 2
    unknown = lora_modules(header(*pair(inserted)), config("somebody/unknown"))
    assert unknown.modules[0].name == "model.language_model.layers.0.self_attn.q_proj"
    assert unknown.respelled == ()


@pytest.mark.parametrize(
    ("module", "widths"),
    [
        pytest.param("model.vision_tower.layers.0.self_attn.q_proj", (576, 576), id="another module"),
        pytest.param("model.language_model.layers.0.self_attn.q_proj", (576, 192), id="other widths"),
        pytest.param("model.layers.0.attn.q_proj", (576, 576), id="another part"),
        pytest.param("model.layers.99.self_attn.q_proj", (576, 576), id="another layer"),
        pytest.param("policy.model.layers.0.self_attn.q_proj", (576, 576), id="a prefix that nobody knows"),
    ],
)
def test_what_names_no_module_of_the_base_is_told(module: str, widths: tuple[int, int]) -> None:
    read = lora_modules(header(*pair(f"base_model.model.{module}", widths=widths)), config())
    assert read.absent == (module,)
    assert [item.name for item in read.modules] == [module]


def test_two_names_of_one_module_are_never_joined() -> None:
    moved = "base_model.model.model.language_model.layers.0.self_attn.q_proj"
    read = lora_modules(header(*pair(PEFT), *pair(moved)), config())
    assert read.absent == ("model.language_model.layers.0.self_attn.q_proj",)
    assert [module.name for module in read.modules] == [read.absent[0], Q]
    assert not read.problems
    twice = lora_modules(header(*pair(PEFT), *pair(f"module.{PEFT}")), config())
    assert [problem.reason for problem in twice.problems] == ["duplicate_factor"]


def test_a_wrapper_that_the_base_has_stays() -> None:
    base = BaseModules({"model.module.x": (4, 4)})
    result = header(*pair("base_model.model.model.module.x", widths=(4, 4)))
    assert {key.module for key in read_names(result, base).keys.values()} == {"model.module.x"}
    assert names_peft_misses(result, read_names(result, base)) == ()


def test_tensors_beside_the_factors_move_with_them() -> None:
    result = header(*pair(Q), ("lm_head.weight", (4, 4)))
    assert peft_names(result, read_names(result))["lm_head.weight"] == "base_model.model.lm_head.weight"
    wrapped = header(*pair(f"module.{PEFT}"), ("module.base_model.model.lm_head.weight", (4, 4)))
    assert set(peft_names(wrapped, read_names(wrapped)).values()) == {
        *(name for name, _ in pair(PEFT)),
        "base_model.model.lm_head.weight",
    }


def test_what_belongs_to_a_module_goes_where_the_module_goes() -> None:
    """DoRA's magnitudes and copies of a layer, beside factors of a name that is not PEFT's."""
    inserted = "base_model.model.model.language_model.layers.0.self_attn.q_proj"
    more = (f"{inserted}.lora_magnitude_vector", f"{inserted}.base_layer.weight")
    result = header(*pair(inserted), *((name, (576,)) for name in more))
    for base, expected in ((modules_of_spelling(KNOWN), PEFT), (None, inserted)):
        written = peft_names(result, read_names(result, base))
        assert [written[name] for name in more] == [
            f"{expected}.lora_magnitude_vector",
            f"{expected}.base_layer.weight",
        ]


_OF_BASES = ["layers", "0", "1", "self_attn", "q_proj", "lm_head", "embed_tokens", "visual", "x"]
_OF_PROGRAMS = ["base_model", "model", "language_model", "default", "lora_A", "weight"]
PATHS = st.lists(st.sampled_from([*_OF_BASES, *_OF_PROGRAMS, *sorted(WRAPPERS)]), max_size=8).map(".".join)
_ENDS = [".lora_A.weight", ".lora_B.weight", ".lora_A.default.weight", ".lora_embedding_A", ".lora_B.bias"]
ENDS = st.sampled_from([*_ENDS, ".lora_a.weight", ".lora_A.module.weight", ".lora.up.weight", ".weight", ""])
NAMES = st.builds(lambda path, end: path + end, PATHS, ENDS) | st.text(max_size=40)


@settings(max_examples=500, deadline=None)
@given(st.lists(NAMES, max_size=6, unique=True), st.sampled_from([None, KNOWN]), st.booleans())
def test_reading_again_changes_nothing_and_loses_nothing(
    names: list[str], base: str | None, alike: bool
) -> None:
    """PEFT's spelling is read as what it was made of; two tensors of one place are told as duplicates."""
    shapes = [(2, 576) if "A" in name or "a.w" in name else (576, 2) for name in names]
    result = header(*((name, (2, 2) if alike else shape) for name, shape in zip(names, shapes, strict=True)))
    expected = modules_of_spelling(base)
    read = read_names(result, expected)
    written = peft_names(result, read)
    places = list(read.keys.values())
    for name, key in read.keys.items():
        [again] = read_names(header((written[name], (2, 576))), expected).keys.values()
        assert (again.side, again.kind, again.leaf) == (key.side, key.kind, key.leaf)
        assert again.module == key.module or key.module in read.absent
        assert canonical_tensor(canonical_tensor(name)) == canonical_tensor(name)
    if len(set(places)) < len(places):
        problems = {problem.reason for problem in lora_modules(result, config(base)).problems}
        assert "duplicate_factor" in problems or all(
            key.leaf == "bias" for key in places if places.count(key) > 1
        )


def test_the_first_reading_stays_as_it_was() -> None:
    """Fingerprints made before are found as long as names mean what they meant."""
    name = f"module._orig_mod.{PEFT}.lora_A.default.weight"
    key = first_key(name)
    assert key is not None
    assert key.module == Q
    assert first_tensor(name) == f"{Q}.lora_A.weight"
    assert first_tensor("base_model.model.lm_head.weight") == "lm_head.weight"
    assert first_key(SPELLINGS["fsdp"]).module == "model.layers.0._fsdp_wrapped_module.self_attn.q_proj"  # type: ignore[union-attr]


@pytest.mark.slow
def test_the_list_of_modules_is_what_transformers_builds() -> None:
    assert base_modules.TARGET.read_text(encoding="utf-8") == base_modules.document()


def test_modules_of_known_bases() -> None:
    result = modules_of_base(KNOWN)
    assert result is not None
    assert len(result.shapes) == 30 * 7 + 2
    assert result.shapes[Q] == (576, 576)
    assert (result.shapes["lm_head"], result.shapes["model.embed_tokens"]) == ((576, None), (None, 576))
    assert modules_of_base("somebody/unknown") is None
    assert modules_of_spelling("unsloth/SmolLM2-135M-Instruct") is not None
    assert modules_of_spelling(None) is None


def test_modules_of_a_folder_are_built_without_weights(tmp_path: Path) -> None:
    small = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "vocab_size": 128}
    settings = {"model_type": "llama", "num_attention_heads": 4, "num_key_value_heads": 2, **small}
    (tmp_path / "config.json").write_text(json.dumps(settings))
    result = modules_of_folder(tmp_path)
    assert result.shapes["model.layers.1.mlp.down_proj"] == (64, 32)
    assert len(result.shapes) == 2 * 7 + 2
    vision = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    pictures = {"model_type": "clip_vision_model", "image_size": 8, "patch_size": 4, **vision}
    both = {"model_type": "llava", "text_config": settings, "vision_config": pictures}
    (tmp_path / "config.json").write_text(json.dumps(both))
    result = modules_of_folder(tmp_path)
    moved = "language_model.model.layers.1.mlp.down_proj"
    assert result.place(moved, 64, 32) == "model.language_model.layers.1.mlp.down_proj"
    assert (
        result.place("model.layers.1.mlp.down_proj", 64, 32) == "model.language_model.layers.1.mlp.down_proj"
    )
    (tmp_path / "config.json").write_text(json.dumps({**both, "text_config": {"num_hidden_layers": 10**9}}))
    with pytest.raises(UsageError, match="more layers than any model has"):
        modules_of_folder(tmp_path)
    for text in ("[]", "{", '{"model_type": "nothing"}', '{"model_type": "llama", "hidden_size": "x"}'):
        (tmp_path / "config.json").write_text(text)
        with pytest.raises(UsageError, match=r"config\.json"):
            modules_of_folder(tmp_path)
