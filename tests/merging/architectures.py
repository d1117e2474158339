"""Tiny random models of many architectures, with the tests' tokenizer of bytes."""

from __future__ import annotations

import random
from typing import Any

import torch
from transformers import CONFIG_MAPPING, AutoModelForCausalLM

from merging.model import LoadedBase, Prompt
from tests.merging.tiny import tiny_tokenizer

_WIDTHS: dict[str, Any] = {
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
}
_EXPERTS: dict[str, Any] = {
    "num_experts": 4,
    "num_experts_per_tok": 2,
    "moe_intermediate_size": 16,
    "head_dim": 8,
}
_LINEAR_ATTENTION: dict[str, Any] = {
    "linear_num_value_heads": 4,
    "linear_num_key_heads": 2,
    "linear_key_head_dim": 8,
    "linear_value_head_dim": 8,
    "layer_types": ["linear_attention", "full_attention"],
}
# Those that need no more than widths.
_PLAIN = (
    "apertus arcee cohere exaone4 granite llama nemotron olmo olmo2 persimmon phi smollm3 stablelm starcoder2"
)
_WITH_HEADS = "ernie4_5 gemma glm glm4 helium hunyuan_v1_dense qwen3 seed_oss"
_SETTINGS: dict[str, dict[str, Any]] = {
    **dict.fromkeys(_PLAIN.split(), _WIDTHS),
    **{kind: {**_WIDTHS, "head_dim": 8} for kind in _WITH_HEADS.split()},
    "biogpt": {**_WIDTHS, "max_position_embeddings": 512},
    "codegen": {"n_embd": 32, "n_layer": 2, "n_head": 4, "rotary_dim": 4, "n_positions": 512},
    "cohere2": {**_WIDTHS, "sliding_window": 16, "layer_types": ["sliding_attention", "full_attention"]},
    "deepseek_v3": {
        **_WIDTHS,
        "num_key_value_heads": 4,
        "q_lora_rank": 8,
        "kv_lora_rank": 8,
        "qk_rope_head_dim": 4,
        "qk_nope_head_dim": 8,
        "v_head_dim": 8,
        "n_routed_experts": 4,
        "n_group": 1,
        "topk_group": 1,
        "num_experts_per_tok": 2,
        "moe_intermediate_size": 16,
        "first_k_dense_replace": 1,
    },
    "falcon": {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "ffn_hidden_size": 48},
    "falcon_mamba": {"hidden_size": 32, "num_hidden_layers": 2, "state_size": 8},
    "gemma2": {
        **_WIDTHS,
        "head_dim": 8,
        "sliding_window": 16,
        "layer_types": ["sliding_attention", "full_attention"],
    },
    "gpt_bigcode": {"n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 512},
    "gpt_neox": {**_WIDTHS, "max_position_embeddings": 512},
    "gpt_oss": {
        **_WIDTHS,
        "head_dim": 8,
        "num_local_experts": 4,
        "num_experts_per_tok": 2,
        "sliding_window": 16,
        "layer_types": ["sliding_attention", "full_attention"],
    },
    "gptj": {"n_embd": 32, "n_layer": 2, "n_head": 4, "rotary_dim": 4, "n_positions": 512},
    "granitemoe": {**_WIDTHS, "num_local_experts": 4, "num_experts_per_tok": 2},
    "jamba": {
        **_WIDTHS,
        "num_experts": 2,
        "attn_layer_period": 2,
        "attn_layer_offset": 1,
        "mamba_d_state": 8,
        "mamba_dt_rank": 4,
    },
    "olmo3": {**_WIDTHS, "sliding_window": 16, "layer_types": ["sliding_attention", "full_attention"]},
    "olmoe": {**_WIDTHS, "num_experts": 4, "num_experts_per_tok": 2},
    "openai-gpt": {"n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 512},
    "qwen2_moe": {**_WIDTHS, **_EXPERTS, "shared_expert_intermediate_size": 16},
    "qwen3_5_text": {**_WIDTHS, "head_dim": 8, **_LINEAR_ATTENTION},
    "recurrent_gemma": {
        **_WIDTHS,
        "num_hidden_layers": 3,
        "lru_width": 32,
        "attention_window_size": 16,
        "block_types": ["recurrent", "recurrent", "attention"],
    },
    "gemma3_text": {
        **_WIDTHS,
        "num_hidden_layers": 4,
        "head_dim": 8,
        "sliding_window": 16,
        "layer_types": ["sliding_attention", "full_attention"] * 2,
    },
    "mistral": {**_WIDTHS, "sliding_window": 16},
    "qwen2": {**_WIDTHS, "use_sliding_window": True, "sliding_window": 16, "max_window_layers": 1},
    "phi3": {**_WIDTHS, "sliding_window": 16},
    "llama4_text": {
        **_WIDTHS,
        "num_hidden_layers": 4,
        "head_dim": 8,
        "intermediate_size_mlp": 48,
        "attention_chunk_size": 16,
        "num_local_experts": 2,
    },
    "gpt_neo": {
        "hidden_size": 32,
        "num_layers": 2,
        "num_heads": 4,
        "attention_types": [[["global", "local"], 1]],
        "window_size": 16,
        "max_position_embeddings": 512,
    },
    "qwen3_next": {
        **_WIDTHS,
        **_EXPERTS,
        "shared_expert_intermediate_size": 16,
        **_LINEAR_ATTENTION,
    },
    "lfm2": {
        **_WIDTHS,
        "layer_types": ["conv", "full_attention"],
        "block_multiple_of": 8,
        "block_dim": 32,
        "block_ff_dim": 48,
    },
    "mamba": {"hidden_size": 32, "num_hidden_layers": 2, "state_size": 8},
    "falcon_h1": {
        **_WIDTHS,
        "mamba_d_ssm": 32,
        "mamba_n_heads": 4,
        "mamba_d_head": 8,
        "mamba_d_state": 8,
        "mamba_chunk_size": 16,
    },
    "rwkv": {"hidden_size": 32, "num_hidden_layers": 2, "attention_hidden_size": 32},
    "bloom": {"hidden_size": 32, "n_layer": 2, "n_head": 4},
    "mpt": {"d_model": 32, "n_layers": 2, "n_heads": 4},
    "gpt2": {"n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 512},
    "opt": {
        "hidden_size": 32,
        "ffn_dim": 48,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "word_embed_proj_dim": 32,
        "init_std": 0.2,
    },
    "mixtral": {**_WIDTHS, "num_local_experts": 4, "num_experts_per_tok": 2, "sliding_window": None},
    "qwen3_moe": {**_WIDTHS, **_EXPERTS},
}


KINDS = tuple(sorted(_SETTINGS))


def architecture(kind: str, seed: int = 0, **extra: Any) -> LoadedBase:
    """A random model of a kind of transformers': two to four layers of width 32, windows of 16 tokens."""
    tokenizer = tiny_tokenizer()
    end = tokenizer.eos_token_id
    spread = {} if kind in ("rwkv", "opt") else {"initializer_range": 0.2}
    settings = {**_SETTINGS[kind], **spread, **extra}
    config = CONFIG_MAPPING[kind](
        vocab_size=len(tokenizer), bos_token_id=None, eos_token_id=end, pad_token_id=end, **settings
    )
    torch.manual_seed(seed)
    model = AutoModelForCausalLM.from_config(config).float().eval().requires_grad_(False)
    return LoadedBase(f"tests/{kind}", model, tokenizer, 512)


def plain_likelihoods(base: LoadedBase, prompt: Prompt) -> list[float]:
    """log p of every answer, by the definition: one row a text, no mask, no sharing."""
    result = []
    with torch.no_grad():
        for answer in prompt.answers:
            tokens = torch.tensor([prompt.question + answer])
            logs = base.model(tokens, use_cache=False).logits[0].log_softmax(-1)
            start = len(prompt.question) - 1
            result.append(sum(float(logs[start + at, token]) for at, token in enumerate(answer)))
    return result


def some_prompts(count: int, least: int, most: int, seed: int = 0) -> list[Prompt]:
    """Prompts of so many tokens, which begin alike and have two answers each."""
    draw = random.Random(seed)
    shared = [draw.randrange(250) for _ in range(least - 1)]
    prompts = []
    for _ in range(count):
        remaining = [draw.randrange(250) for _ in range(draw.randint(least, most) - len(shared))]
        answers = tuple(tuple(draw.randrange(250) for _ in range(draw.randint(1, 3))) for _ in range(2))
        prompts.append(Prompt((*shared, *remaining), answers, draw.randrange(2)))
    return prompts
