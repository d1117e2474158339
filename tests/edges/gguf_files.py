"""A small Llama or Qwen2 model as a GGUF file, for tests of what is wrong with one."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

WIDTH, HEADS, INNER, BLOCKS = 8, 2, 16, 2
WORDS = ["<unk>", "<s>", "</s>", "▁", "a", "b", "▁a", "▁b"]


def shapes(kind: str = "llama") -> dict[str, tuple[int, ...]]:
    """The tensors by name, shapes as numpy has them."""
    block = {
        **{f"attn_{name}": (WIDTH, WIDTH) for name in ("q", "k", "v", "output")},
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
            result |= {f"blk.{number}.attn_{name}.bias": (WIDTH,) for name in ("q", "k", "v")}
    return result


def write_gguf(
    path: Path,
    *,
    kind: str = "llama",
    values: Mapping[str, int] | None = None,
    tensors: Mapping[str, tuple[int, ...]] | None = None,
    words: Sequence[str] | None = WORDS,
) -> Path:
    """Writes a model with random weights; `values` are numbers of the header that are to differ."""
    from gguf import GGUFWriter, TokenType

    writer = GGUFWriter(path, kind)
    numbers = {
        "block_count": BLOCKS,
        "context_length": 16,
        "embedding_length": WIDTH,
        "feed_forward_length": INNER,
        "attention.head_count": HEADS,
        "attention.head_count_kv": HEADS,
        "rope.dimension_count": WIDTH // HEADS,
    }
    for name, number in {**numbers, **(values or {})}.items():
        writer.add_uint32(f"{kind}.{name}", number)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_rope_freq_base(10_000.0)
    if words is not None and kind == "qwen2":
        writer.add_tokenizer_model("gpt2")
        writer.add_tokenizer_pre("qwen2")
        writer.add_token_list([*"abcde", "ab", "cd", "<|im_end|>"])
        writer.add_token_types([TokenType.NORMAL] * 7 + [TokenType.CONTROL])
        writer.add_token_merges(["a b", "c d"])
        writer.add_bos_token_id(7)
        writer.add_eos_token_id(7)
        writer.add_pad_token_id(7)
        writer.add_add_bos_token(False)
    elif words is not None:
        writer.add_tokenizer_model("llama")
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
