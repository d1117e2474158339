"""A small Llama or Qwen2 model as a GGUF file, for tests of what is wrong with one."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

WIDTH, HEADS, INNER, BLOCKS = 8, 2, 16, 2
# Not that of the configurations of transformers.
ROPE_BASE = 1e6
WORDS = ["<unk>", "<s>", "</s>", "▁", "a", "b", "▁a", "▁b"]


def shapes(kind: str = "llama") -> dict[str, tuple[int, ...]]:
    """The tensors by name, shapes as numpy has them."""
    inner = WIDTH // HEADS * _groups(kind)
    block = {
        **{f"attn_{name}": (WIDTH, WIDTH) for name in ("q", "output")},
        **{f"attn_{name}": (inner, WIDTH) for name in ("k", "v")},
        **{f"ffn_{name}": (INNER, WIDTH) for name in ("gate", "up")},
        "ffn_down": (WIDTH, INNER),
        "attn_norm": (WIDTH,),
        "ffn_norm": (WIDTH,),
    }
    result: dict[str, tuple[int, ...]] = {
        "token_embd.weight": (len(WORDS), WIDTH),
        "output_norm.weight": (WIDTH,),
    }
    for number in range(BLOCKS):
        result |= {f"blk.{number}.{name}.weight": shape for name, shape in block.items()}
        if kind == "qwen2":
            result |= {
                f"blk.{number}.attn_{name}.bias": block[f"attn_{name}"][:1] for name in ("q", "k", "v")
            }
    return result


def _groups(kind: str) -> int:
    """The heads of keys and values."""
    return 1 if kind == "qwen2" else HEADS


def write_gguf(
    path: Path,
    *,
    kind: str = "llama",
    values: Mapping[str, int] | None = None,
    tensors: Mapping[str, tuple[int, ...]] | None = None,
    words: Sequence[str] | None = WORDS,
    texts: Mapping[str, str] | None = None,
    tokenizer: str | None = None,
) -> Path:
    """Writes a model with random weights; `values` and `texts` are what is to differ in the header."""
    from gguf import GGUFWriter, TokenType

    writer = GGUFWriter(path, kind)
    numbers = {
        "block_count": BLOCKS,
        "context_length": 16,
        "embedding_length": WIDTH,
        "feed_forward_length": INNER,
        "attention.head_count": HEADS,
        "attention.head_count_kv": _groups(kind),
        "rope.dimension_count": WIDTH // HEADS,
    }
    for name, number in {**numbers, **(values or {})}.items():
        writer.add_uint32(f"{kind}.{name}", number)
    for name, text in (texts or {}).items():
        writer.add_string(f"{kind}.{name}", text)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_rope_freq_base(ROPE_BASE)
    if words is not None and kind == "qwen2":
        writer.add_tokenizer_model(tokenizer or "gpt2")
        writer.add_tokenizer_pre("qwen2")
        writer.add_token_list([*"abcde", "ab", "cd", "<|im_end|>"])
        writer.add_token_types([TokenType.NORMAL] * 7 + [TokenType.CONTROL])
        writer.add_token_merges(["a b", "c d"])
        writer.add_bos_token_id(7)
        writer.add_eos_token_id(7)
        writer.add_pad_token_id(7)
        writer.add_add_bos_token(False)
    elif words is not None:
        writer.add_tokenizer_model(tokenizer or "llama")
        writer.add_token_list(list(words))
        writer.add_token_scores([-float(number) for number in range(len(words))])
        writer.add_token_types([TokenType.NORMAL] * len(words))
        writer.add_unk_token_id(0)
        writer.add_bos_token_id(1)
        writer.add_eos_token_id(2)
    random = np.random.default_rng(0)
    for name, shape in (shapes(kind) if tensors is None else tensors).items():
        writer.add_tensor(name, random.normal(size=shape).astype(np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path
