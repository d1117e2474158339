"""A causal language model that fits into a test: a random Llama, a tokenizer of bytes, a chat template."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from merging.model import LoadedBase

NAME = "tests/tiny-llama"
_TEMPLATE = (
    "{% for message in messages %}<|{{ message['role'] }}|>{{ message['content'] }}<|end|>{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>{% endif %}"
)
_SPECIAL = ("<|end|>", "<|user|>", "<|assistant|>", "<|system|>")


def _count_product(x: Sequence[int], weight: Sequence[int], *_: object, **__: object) -> int:
    return 2 * math.prod(x) * weight[0]


# For FlopCounterMode, which counts products of torch's own alone.
PRODUCT_FLOPS = {torch.ops.mkldnn._linear_pointwise: _count_product}


def tiny_base(
    seed: int = 0, *, layers: int = 2, hidden: int = 32, dtype: torch.dtype = torch.float32
) -> LoadedBase:
    """A random Llama of `layers` layers of width `hidden`, 4 heads (2 for keys and values), 260 tokens."""
    tokenizer = tiny_tokenizer()
    torch.manual_seed(seed)
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=hidden,
        intermediate_size=2 * hidden,
        num_hidden_layers=layers,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=512,
        bos_token_id=None,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
        initializer_range=0.2,
    )
    model = LlamaForCausalLM(config).to(dtype).eval().requires_grad_(False)
    return LoadedBase(NAME, model, tokenizer, 512)


def tiny_tokenizer() -> Any:
    """One token a byte, and four special ones."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    inner = Tokenizer(models.BPE(vocab={letter: n for n, letter in enumerate(alphabet)}, merges=[]))
    inner.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    inner.decoder = decoders.ByteLevel()
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=inner, eos_token="<|end|>", pad_token="<|end|>")
    tokenizer.add_special_tokens({"additional_special_tokens": list(_SPECIAL[1:])})
    tokenizer.chat_template = _TEMPLATE
    return tokenizer


def save_base(base: LoadedBase, folder: Path) -> Path:
    """The folder with the model as a checkpoint that `load_base` reads."""
    base.model.save_pretrained(folder)
    base.tokenizer.save_pretrained(folder)
    return folder


def write_task(
    folder: Path,
    rows: Sequence[tuple[str, str]],
    *,
    choices: Sequence[str] | None = ("yes", "no"),
    metric: str = "accuracy",
    instruction: str = "Answer yes or no.",
    group: str = "test",
) -> Path:
    """A task folder whose three splits hold the rows (input, target)."""
    folder.mkdir(parents=True)
    document = {
        "name": folder.name,
        "group": group,
        "instruction": instruction,
        "metric": metric,
        "choices": list(choices) if choices else None,
        "source": "made in a test",
        "license": "CC0-1.0",
    }
    (folder / "task.json").write_text(json.dumps(document))
    lines = "".join(json.dumps({"input": item, "target": target}) + "\n" for item, target in rows)
    for split in ("train", "valid", "test"):
        (folder / f"{split}.jsonl").write_text(lines)
    return folder
