"""A number without a note is that of PEFT: adapters that PEFT itself trains in its many ways (row 04)."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import peft
import pytest
import torch
import transformers

from catalog.adapters import health, read_folder
from catalog.fingerprints import fingerprint, partial_reasons

pytestmark = pytest.mark.filterwarnings("ignore")
SIZES = {"hidden_size": 16, "intermediate_size": 24, "num_attention_heads": 2, "num_key_value_heads": 2}
SIZES |= {"vocab_size": 40, "num_hidden_layers": 2}
WHOLE: dict[str, Mapping[str, Any]] = {
    "plain": {},
    "rslora": {"use_rslora": True},
    "patterns": {"rank_pattern": {"q_proj": 3}, "alpha_pattern": {"v_proj": 5}},
    "biases-of-a-base-without": {"bias": "all"},
    "modules-of-no-name": {"modules_to_save": ["classifier", "score"]},
    "head": {"target_modules": ["q_proj", "lm_head"]},
    "embeddings": {"target_modules": ["q_proj", "embed_tokens"]},
    "gaussian": {"init_lora_weights": "gaussian"},
    "orthogonal": {"init_lora_weights": "orthogonal"},
    "layers": {"layers_to_transform": [1]},
    "velora": {"velora_config": peft.tuners.lora.config.VeloraConfig()},
    "no-tokens": {"alora_invocation_tokens": []},
}
PARTS: dict[str, tuple[Mapping[str, Any], set[str]]] = {
    "dora": ({"use_dora": True}, {"use_dora"}),
    "biases": ({"bias": "all"}, {"has_bias"}),
    "biases-of-lora": ({"bias": "lora_only"}, {"has_bias"}),
    "biases-of-b": ({"lora_bias": True}, {"lora_bias"}),
    "head": ({"modules_to_save": ["lm_head"]}, {"modules_to_save", "full_weights"}),
    "norm": ({"modules_to_save": ["norm"]}, {"modules_to_save", "full_weights"}),
    "module-with-bias": (
        {"modules_to_save": ["q_proj"], "target_modules": ["v_proj"]},
        {"modules_to_save", "full_weights"},
    ),
    "tokens": ({"trainable_token_indices": {"embed_tokens": [1]}}, {"trainable_tokens"}),
    "head-and-biases": ({"target_modules": ["q_proj", "lm_head"], "bias": "all"}, {"has_bias"}),
    "pissa": ({"init_lora_weights": "pissa"}, {"relative_init"}),
    "olora": ({"init_lora_weights": "olora"}, {"relative_init"}),
    "kasa": (
        {"kasa_config": peft.tuners.lora.config.KasaConfig()},
        {"lora_variant", "relative_init", "unknown_tensor"},
    ),
}


@pytest.fixture(scope="module")
def llama() -> Any:
    """A base without biases."""
    torch.manual_seed(0)
    return transformers.LlamaForCausalLM(transformers.LlamaConfig(**SIZES))


@pytest.fixture(scope="module")
def qwen2() -> Any:
    """A base whose attention has biases."""
    torch.manual_seed(0)
    return transformers.Qwen2ForCausalLM(transformers.Qwen2Config(**SIZES, tie_word_embeddings=False))


def train_randomly(base: Any, folder: Path, settings: Mapping[str, Any]) -> Path:
    """An adapter that PEFT has made and saved, every parameter that it trains moved at random."""
    arguments = {"r": 4, "lora_alpha": 8, "target_modules": ["q_proj", "v_proj"], "task_type": "CAUSAL_LM"}
    torch.manual_seed(1)
    model = peft.get_peft_model(copy.deepcopy(base), peft.LoraConfig(**arguments | dict(settings)))
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.add_(torch.randn(parameter.shape) * 0.1)
    model.save_pretrained(str(folder))
    return folder


def norm_by_peft(base: Any, folder: Path) -> float:
    """How far PEFT moves the weights of the base."""
    before = {name: value.clone() for name, value in base.state_dict().items()}
    model = peft.PeftModel.from_pretrained(copy.deepcopy(base), str(folder))
    after = model.merge_and_unload().state_dict()
    moved = [(after[name].double() - value.double()).square().sum() for name, value in before.items()]
    return float(sum(moved)) ** 0.5


def read(folder: Path) -> tuple[float, set[str]]:
    """The norm that we print, and what it leaves out."""
    content = read_folder(folder)
    result = fingerprint(content.weights, content.config)
    return health(result.norms, content.config).norm, set(partial_reasons(content, result))


@pytest.mark.parametrize("name", WHOLE)
def test_a_number_without_a_note_is_that_of_peft(llama: Any, tmp_path: Path, name: str) -> None:
    folder = train_randomly(llama, tmp_path / name, WHOLE[name])
    norm, partial = read(folder)
    assert partial == set()
    assert norm == pytest.approx(norm_by_peft(llama, folder), rel=1e-5)


@pytest.mark.parametrize("name", PARTS)
def test_a_number_that_is_not_that_of_peft_has_a_note(qwen2: Any, tmp_path: Path, name: str) -> None:
    settings, reasons = PARTS[name]
    folder = train_randomly(qwen2, tmp_path / name, settings)
    norm, partial = read(folder)
    assert partial == reasons
    assert norm != pytest.approx(norm_by_peft(qwen2, folder), rel=1e-5)
