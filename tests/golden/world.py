"""What the commands read beside the sample Hub: a tiny model, adapters of it, tasks, scores, a study.

Everything is drawn by numpy from fixed seeds and written without the help of the program.
"""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

ROOT = Path(__file__).resolve().parents[2]
BASE = "tests/tiny-llama"
OWNERS = ("ann/one", "bob/two", "cat/three", "dan/four")
HIDDEN, INTERMEDIATE, LAYERS = 32, 64, 2
ROWS = [(f"{'ab'[number % 2]}{number}", "yes" if number % 3 else "no") for number in range(24)]
_TEMPLATE = (
    "{% for message in messages %}<|{{ message['role'] }}|>{{ message['content'] }}<|end|>{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>{% endif %}"
)
STUDY = """\
study: tiny
title: A tiny study
base: base
tasks: {from: tasks, names: [halves, thirds], train: 4, valid: 2, test: 6}
adapters: {from: adapters}
seeds: [0]
pools:
  best: {by: gradient, k: 2, samples: 3}
  chance: {by: random, k: 2}
  noise: {by: random, k: 2, control: random-each}
methods:
  base: {use: base}
  new LoRA: {use: train, rank: 2, steps: 2, batch: 2, learning_rates: [1e-3, 1e-2]}
  LEGO: {use: merge, method: lora-lego, pools: [best], over: {rank: [1, 2]}}
  average: {use: merge, method: average, pools: [chance]}
  both: {use: ensemble, pools: [best]}
  recycling: {use: adapt, method: recycling, with: new LoRA, steps: 2, pools: [best, noise]}
report:
  against: new LoRA
  claims:
    - {claim: it helps, compare: recycling | best, with: new LoRA}
"""


def write_world(folder: Path) -> None:
    """Writes `hub`, `base`, `data/bases`, `adapters`, `tasks`, the scores and the study below a folder."""
    write_base(folder / "base")
    shutil.copytree(folder / "base", folder / "data" / "bases" / "tests--tiny-llama")
    shutil.copytree(ROOT / "data" / "sample_hub", folder / "hub", dirs_exist_ok=True)
    for number, name in enumerate(OWNERS):
        write_repository(folder / "hub" / name, number)
        write_adapter(folder / "adapters" / f"a{number}", number, rank=1 + number % 2)
    write_task(folder / "tasks" / "thirds", ROWS)
    write_task(folder / "tasks" / "halves", [(word[::-1], target) for word, target in ROWS])
    (folder / "study.yaml").write_text(STUDY)
    write_scores(folder)


def write_base(folder: Path) -> None:
    """A random Llama with a tokenizer of bytes and a chat template, as transformers reads it."""
    from safetensors.numpy import save_file
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import LlamaConfig, PreTrainedTokenizerFast

    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    inner = Tokenizer(models.BPE(vocab={letter: n for n, letter in enumerate(alphabet)}, merges=[]))
    inner.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    inner.decoder = decoders.ByteLevel()
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=inner, eos_token="<|end|>", pad_token="<|end|>")
    tokenizer.add_special_tokens({"additional_special_tokens": ["<|user|>", "<|assistant|>", "<|system|>"]})
    tokenizer.chat_template = _TEMPLATE
    tokenizer.save_pretrained(folder)
    LlamaConfig(
        architectures=["LlamaForCausalLM"],
        vocab_size=len(tokenizer),
        hidden_size=HIDDEN,
        intermediate_size=INTERMEDIATE,
        num_hidden_layers=LAYERS,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=512,
        bos_token_id=None,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
        tie_word_embeddings=False,
    ).save_pretrained(folder)
    save_file(_model_weights(len(tokenizer)), folder / "model.safetensors", {"format": "pt"})


def _model_weights(vocabulary: int) -> dict[str, np.ndarray[Any, Any]]:
    random = np.random.default_rng(17)
    weights = {
        "model.embed_tokens.weight": _normal(random, 0.2, vocabulary, HIDDEN),
        "lm_head.weight": _normal(random, 0.2, vocabulary, HIDDEN),
        "model.norm.weight": np.ones(HIDDEN, np.float32),
    }
    for layer in range(LAYERS):
        block = f"model.layers.{layer}"
        for norm in ("input_layernorm", "post_attention_layernorm"):
            weights[f"{block}.{norm}.weight"] = np.ones(HIDDEN, np.float32)
        for module, (size_in, size_out) in _SIZES.items():
            weights[f"{block}.{module}.weight"] = _normal(random, 0.2, size_out, size_in)
    return weights


_SIZES = {
    "self_attn.q_proj": (HIDDEN, HIDDEN),
    "self_attn.k_proj": (HIDDEN, HIDDEN // 2),
    "self_attn.v_proj": (HIDDEN, HIDDEN // 2),
    "self_attn.o_proj": (HIDDEN, HIDDEN),
    "mlp.gate_proj": (HIDDEN, INTERMEDIATE),
    "mlp.up_proj": (HIDDEN, INTERMEDIATE),
    "mlp.down_proj": (INTERMEDIATE, HIDDEN),
}


def write_adapter(folder: Path, seed: int, rank: int = 2, size: float = 0.3) -> None:
    """A random adapter of two modules a layer, as PEFT writes it."""
    from safetensors.numpy import save_file

    random = np.random.default_rng(seed)
    tensors = {}
    for layer in range(LAYERS):
        for module in ("self_attn.q_proj", "mlp.up_proj"):
            size_in, size_out = _SIZES[module]
            prefix = f"base_model.model.model.layers.{layer}.{module}"
            tensors[f"{prefix}.lora_A.weight"] = _normal(random, size, rank, size_in)
            tensors[f"{prefix}.lora_B.weight"] = _normal(random, size, size_out, rank)
    folder.mkdir(parents=True)
    save_file(tensors, folder / "adapter_model.safetensors", {"format": "pt"})
    config: Mapping[str, Any] = {
        "base_model_name_or_path": BASE,
        "bias": "none",
        "fan_in_fan_out": False,
        "inference_mode": True,
        "init_lora_weights": True,
        "lora_alpha": 2 * rank,
        "lora_dropout": 0.0,
        "peft_type": "LORA",
        "r": rank,
        "target_modules": ["q_proj", "up_proj"],
        "task_type": "CAUSAL_LM",
        "use_dora": False,
        "use_rslora": False,
    }
    (folder / "adapter_config.json").write_text(json.dumps(config, indent=2))


def write_repository(folder: Path, number: int) -> None:
    """An adapter with a card and what the Hub says of it."""
    write_adapter(folder, 10 + number, size=0.2)
    front = f"---\nbase_model: {BASE}\nlibrary_name: peft\nlicense: mit\n---\n"
    (folder / "README.md").write_text(f"{front}\nMade by {folder.parent.name} for questions of parity.\n")
    date = f"2026-01-{11 + number}T12:00:00.000Z"
    document = {"createdAt": date, "lastModified": date, "downloads": number, "likes": 0}
    (folder / ".hub.json").write_text(json.dumps(document))


def write_task(folder: Path, rows: list[tuple[str, str]]) -> None:
    """A task folder whose three splits hold the rows (input, target)."""
    folder.mkdir(parents=True)
    about = {
        "name": folder.name,
        "group": "test",
        "instruction": "Answer yes or no.",
        "metric": "accuracy",
        "choices": ["yes", "no"],
        "source": "made in a test",
        "license": "CC0-1.0",
    }
    (folder / "task.json").write_text(json.dumps(about))
    lines = "".join(json.dumps({"input": text, "target": target}) + "\n" for text, target in rows)
    for split in ("train", "valid", "test"):
        (folder / f"{split}.jsonl").write_text(lines)


def write_scores(folder: Path) -> None:
    """Scores of 16 adapters of the sample Hub on five tasks, two of them missing; those of the base model."""
    names = sorted(path.name for path in (ROOT / "data" / "sample_hub" / "zoo").iterdir())[:16]
    tasks = ("banking77", "clinc_oos", "disfl_qa", "fig_qa", "overruling")
    lines = ["adapter," + ",".join(tasks)]
    for name in names:
        values = [_fraction(name, task) for task in tasks]
        lines.append(f"zoo/{name}," + ",".join(values))
    (folder / "scores.csv").write_text("\n".join(lines) + "\n")
    base = "".join(f"{task},{_fraction('base', task)}\n" for task in tasks)
    (folder / "zero.csv").write_text("task,zero_shot\n" + base)
    texts = {task: f"Classify texts of {task.replace('_', ' ')}." for task in tasks}
    (folder / "texts.json").write_text(json.dumps(texts))


def _fraction(*words: str) -> str:
    """A score of two digits that depends on the words alone."""
    return f"0.{hashlib.sha256(' '.join(words).encode()).digest()[0] % 90 + 10}"


def _normal(random: np.random.Generator, size: float, *shape: int) -> np.ndarray[Any, Any]:
    return (size * random.standard_normal(shape)).astype(np.float32)
