"""Which configurations PEFT does not load: the rule beside PEFT itself, field by field."""

from __future__ import annotations

import copy
import dataclasses
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import peft
import pytest

from catalog.adapters import (
    header_bytes,
    load_problems,
    lora_modules,
    make_loadable,
    parse_config,
    parse_header,
    peft_refusals,
)
from catalog.errors import ConfigError
from tests.hubs import adapter_config
from tests.merging.llama import tiny, write
from tests.shared_data import data, index, shared

pytestmark = pytest.mark.filterwarnings("ignore")
PLAIN: Mapping[str, Any] = peft.LoraConfig(
    r=2, lora_alpha=4, target_modules=["q_proj"], task_type="CAUSAL_LM", base_model_name_or_path="acme/tiny"
).to_dict() | {"target_modules": ["q_proj"]}
FIELDS = sorted({field.name for field in dataclasses.fields(peft.LoraConfig)} - {"runtime_config"})
VALUES: tuple[Mapping[str, Any], ...] = (
    *({key: value} for key in ("velora_config", "kasa_config", "eva_config") for value in (True, False, [])),
    *({"use_bdlora": value} for value in (True, False)),
    *({"task_type": value} for value in ("FOO", "causal_lm", "", "TOKEN_CLS", "FEATURE_EXTRACTION")),
    *({"bias": value} for value in ("None", "", "true", "all", "lora_only", "boft_only")),
    *({"lora_dropout": value} for value in (1.5, 1, 0.5, -0.5)),
    *({"init_lora_weights": value} for value in ("", "foo", "Gaussian", "gaussian", "MiCA", "mica", "OLoRA")),
    *(
        {"init_lora_weights": value}
        for value in ("Pissa", "pissa", "pissa_niter_2", "pissa_niter_x", "corda")
    ),
    *({"init_lora_weights": value} for value in ("LoftQ", "loftq", "eva", "orthogonal", "lora_ga", False)),
    {"target_modules": "all-linear", "layers_to_transform": [0]},
    {"target_modules": ".*q_proj", "layers_pattern": "layers"},
    {"layers_pattern": "layers"},
    {"layers_pattern": "layers", "layers_to_transform": [0]},
    {"lora_bias": True},
    {"lora_bias": True, "use_dora": True},
    {"lora_bias": True, "init_lora_weights": "gaussian"},
    {"use_dora": True, "megatron_config": {"a": 1}},
    *({"modules_to_save": value} for value in ([], ["score"], ["lm_head"], ["norm", "x"], ["self_attn"])),
    *({"trainable_token_indices": value} for value in ({}, [], [1], {"embed_tokens": [1]})),
    *({key: value} for key in ("target_modules", "exclude_modules") for value in ("(", "[q", "*q", [])),
    {"alora_invocation_tokens": []},
    {"unknown_field": 3, "peft_version": "99.0"},
)


@pytest.fixture(scope="module")
def base() -> Any:
    """A model that is copied before something is put on it."""
    return tiny(num_hidden_layers=1)


@pytest.fixture
def folder(base: Any, tmp_path: Path) -> Path:
    """A plain adapter of it."""
    write(tmp_path / "plain", base, 1, rank=2, targets=["q_proj"])
    return tmp_path / "plain"


def refused_by_peft(base: Any, folder: Path) -> str:
    """What PEFT raises on loading the adapter, empty where it loads."""
    try:
        peft.PeftModel.from_pretrained(copy.deepcopy(base), str(folder))
    except Exception as error:
        return f"{type(error).__name__}: {error}"
    return ""


def refused_by_rule(folder: Path) -> str:
    """What we say of it."""
    path = folder / "adapter_model.safetensors"
    try:
        config = parse_config((folder / "adapter_config.json").read_bytes())
    except ConfigError as error:
        return str(error)
    return "; ".join(peft_refusals(config, lora_modules(parse_header(header_bytes(path)), config)))


@pytest.mark.parametrize("fields", [*({name: None} for name in FIELDS), *VALUES], ids=json.dumps)
def test_the_rule_is_that_of_peft(base: Any, folder: Path, fields: Mapping[str, Any]) -> None:
    (folder / "adapter_config.json").write_text(json.dumps({**PLAIN, **fields}))
    theirs, ours = refused_by_peft(base, folder), refused_by_rule(folder)
    assert bool(theirs) is bool(ours), (theirs, ours)


@pytest.mark.parametrize("head", [b"", b"\xef\xbb\xbf"])
def test_a_byte_order_mark_is_one_reason(base: Any, folder: Path, head: bytes) -> None:
    (folder / "adapter_config.json").write_bytes(head + json.dumps(PLAIN).encode())
    assert bool(refused_by_peft(base, folder)) is bool(head)
    assert refused_by_rule(folder) == ("a byte order mark" if head else "")


def test_what_is_saved_is_no_reason(base: Any, folder: Path) -> None:
    """The same settings load where their weights are in the file."""
    fields = {"modules_to_save": ["lm_head"], "trainable_token_indices": {"embed_tokens": [1]}}
    model = peft.get_peft_model(
        copy.deepcopy(base), peft.LoraConfig(task_type="CAUSAL_LM", target_modules=["q_proj"], **fields)
    )
    model.save_pretrained(str(folder))
    assert (refused_by_peft(base, folder), refused_by_rule(folder)) == ("", "")


@pytest.mark.parametrize(
    "fields",
    [
        {"modules_to_save": ["lm_head", "norm", "score"], "bias": None},
        {"trainable_token_indices": [1]},
        {"trainable_token_indices": {"embed_tokens": [1]}, "lora_dropout": None},
    ],
    ids=json.dumps,
)
def test_an_export_names_nothing_of_which_the_file_holds_nothing(
    base: Any, folder: Path, fields: Mapping[str, Any]
) -> None:
    (folder / "adapter_config.json").write_text(json.dumps({**PLAIN, **fields}))
    assert refused_by_peft(base, folder)
    assert load_problems(folder)
    make_loadable(folder)
    assert (refused_by_peft(base, folder), load_problems(folder)) == ("", ())


def test_another_method_is_judged_by_its_own_rules() -> None:
    config = parse_config(json.dumps(adapter_config(peft_type="LOHA", bias=None)).encode())
    assert peft_refusals(config) == ()


@shared
def test_peft_reads_the_wild_configurations_that_the_rule_lets_pass(tmp_path: Path) -> None:
    """By the configuration alone: what PEFT says of the files that people have published."""
    odd = {}
    for row in index("wild"):
        content = (data("wild") / row["dir"] / row["config_file"]).read_bytes()
        try:
            config = parse_config(content)
        except ConfigError:
            continue
        (tmp_path / "adapter_config.json").write_bytes(content)
        try:
            peft.LoraConfig.from_pretrained(str(tmp_path))
            theirs = ""
        except Exception as error:
            theirs = f"{type(error).__name__}: {error}"
        if config.is_lora and theirs and not peft_refusals(config):
            odd[row["dir"]] = theirs
    assert odd == {}
