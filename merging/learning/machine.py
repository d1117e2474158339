"""What a machine can do with a base model: speeds, memory, and how trees of prompts are read.

Prompts are random tokens that begin alike, as those of a task do; times are by the clock, until the device
has finished.
"""

from __future__ import annotations

import random
import re
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from merging.evaluation import generate, likelihoods, read_tokens
from merging.learning import variants
from merging.learning.course import gradients, set_seeds
from merging.learning.gradients import linear_modules
from merging.model import LoadedBase, Prompt, ReadingMode, is_shortage, release

if TYPE_CHECKING:
    import torch

# Of the questions: equal tokens at their beginning, their own, and those of an answer.
SHARED, OWN, ANSWER = 64, 32, 4
COUNT, NEW_TOKENS = 16, 16
# Rows of a batch have as many tokens, and no larger batch is tried.
ROW, MOST_ROWS = 128, 2048
# The share of the free memory that adapters may take, so that prompts have room.
_ADAPTERS = 0.8


def random_base(device: str = "cpu", dtype: str | None = None) -> LoadedBase:
    """A Llama of two layers of width 64 with random weights, whose tokenizer knows bytes."""
    import torch
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    inner = Tokenizer(models.BPE(vocab={letter: at for at, letter in enumerate(letters)}, merges=[]))
    inner.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    inner.decoder = decoders.ByteLevel()
    fast: Any = PreTrainedTokenizerFast
    tokenizer = fast(tokenizer_object=inner, eos_token="<|end|>", pad_token="<|end|>")  # noqa: S106
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=64,
        intermediate_size=128,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=512,
        bos_token_id=None,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    with torch.random.fork_rng([]):
        torch.manual_seed(0)
        model: Any = LlamaForCausalLM(config)
    model.to(device, getattr(torch, dtype or "float32")).eval().requires_grad_(False)
    return LoadedBase("random", model, tokenizer, config.max_position_embeddings)


def random_prompts(base: LoadedBase, count: int = COUNT) -> list[Prompt]:
    """Questions that begin alike, each with two answers."""
    draw = random.Random(0)  # noqa: S311 - tokens, not a secret
    vocabulary = base.model.config.get_text_config().vocab_size

    def tokens(length: int) -> tuple[int, ...]:
        return tuple(draw.randrange(vocabulary) for _ in range(length))

    start = tokens(SHARED)
    return [
        Prompt((*start, *tokens(OWN)), (tokens(ANSWER), tokens(ANSWER)), draw.randrange(2))
        for _ in range(count)
    ]


def reading_speed(base: LoadedBase) -> dict[str, Any]:
    """Tokens a second of likelihoods, in trees and with each answer read alone, and how far both are apart.

    `tokens_per_second` counts the tokens that are read, `tree_speedup` is the ratio of both times, and
    `difference` is the largest one of log p a token, in nats.
    """
    prompts = random_prompts(base)
    alone = replace(base, reading=ReadingMode(recurrent=True))
    likelihoods(base, prompts[:1])
    trees, seconds = _time(base, lambda: likelihoods(base, prompts))
    rows, seconds_alone = _time(base, lambda: likelihoods(alone, prompts))
    apart = max(
        abs(one - other) / ANSWER
        for values, others in zip(trees, rows, strict=True)
        for one, other in zip(values, others, strict=True)
    )
    return {
        "tokens_per_second": read_tokens(base, prompts) / seconds,
        "tree_speedup": seconds_alone / seconds,
        "difference": apart,
        "trees": base.reading.tree_length > 0,
    }


def generating_speed(base: LoadedBase) -> float:
    """Tokens generated in a second, over a batch of questions that begin alike."""
    prompts, counts = random_prompts(base), [0]

    def count(_module: Any, _inputs: Any, named_inputs: dict[str, Any]) -> None:
        counts[0] += len(named_inputs["input_ids"])

    generate(base, prompts[:1], most=1)
    hook = base.model.register_forward_pre_hook(count, with_kwargs=True)
    try:
        _, seconds = _time(base, lambda: generate(base, prompts, most=NEW_TOKENS))
    finally:
        hook.remove()
    return counts[0] / seconds


def adapter_bytes(base: LoadedBase, rank: int) -> int:
    """Bytes of one resident adapter of this rank on all linear layers."""
    layers = (base.model.get_submodule(name) for name in linear_modules(base.model))
    values = sum(rank * (layer.in_features + layer.out_features) for layer in layers)
    return int(values * base.dtype.itemsize)


def adapters_that_fit(base: LoadedBase, rank: int) -> int | None:
    """How many adapters of this rank fit into free memory, a fifth of which is left for prompts."""
    memory = free_memory(base.device)
    return None if memory is None else int(memory * _ADAPTERS) // adapter_bytes(base, rank)


def largest_batch(base: LoadedBase) -> int | None:
    """The largest number of rows of 128 tokens that is read at once, by doubling; None on a CPU, where the
    system ends a process that asks for too much."""
    import torch

    if base.device.type == "cpu":
        return None
    fitting, rows = 0, 1
    while rows <= MOST_ROWS:
        try:
            with torch.no_grad():
                tokens = torch.zeros((rows, ROW), dtype=torch.int64, device=base.device)
                base.model(input_ids=tokens, use_cache=False, logits_to_keep=torch.tensor([-1]))
        except (RuntimeError, MemoryError) as error:
            if not is_shortage(error):
                raise
            break
        fitting, rows = rows, 2 * rows
    release()
    return fitting


def step_tokens(batch: int) -> int:
    """Tokens of the examples of one step that `step_seconds` measures."""
    return batch * (SHARED + OWN + ANSWER)


def step_seconds(base: LoadedBase, rank: int, batch: int) -> float:
    """Seconds of one step of training a LoRA on all linear layers, after one that does not count.

    `base.memory` says afterwards whether memory sufficed without computing layers again.
    """
    from peft import LoraConfig

    prompts, row = random_prompts(base, batch), variants.variant("lora")
    targets, _ = variants.reachable(base.model)
    config = LoraConfig(r=rank, lora_alpha=rank, target_modules=targets, task_type="CAUSAL_LM")
    with set_seeds(0, base), variants.adapt_model(base.model, row, config, lambda: None) as model:
        optimiser = variants.optimiser(row, model, 1e-4)

        def step() -> None:
            optimiser.zero_grad(set_to_none=True)
            gradients(base, prompts, optimiser.zero_grad)
            optimiser.step()

        step()
        return _time(base, step)[1]


def free_memory(device: torch.device) -> int | None:
    """Bytes that are free on the device; None where that is not known."""
    import torch

    if device.type == "cuda":
        return int(torch.cuda.mem_get_info(device)[0])
    lines = Path("/proc/meminfo")
    if not lines.is_file():
        return None
    pattern = re.compile(r"^MemAvailable:\s+(\d+) kB$", re.MULTILINE)
    match = pattern.search(lines.read_text(encoding="ascii"))
    return 1024 * int(match[1]) if match else None


def _time(base: LoadedBase, work: Callable[[], Any]) -> tuple[Any, float]:
    """What a call gives, and its seconds."""
    import torch

    wait: Callable[[], None] = torch.cuda.synchronize if base.device.type == "cuda" else lambda: None
    wait()
    began = time.perf_counter()
    result = work()
    wait()
    return result, max(time.perf_counter() - began, 1e-9)
