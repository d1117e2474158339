"""Two layers of Llama-3.1-8B's true width: every step in bfloat16, with its seconds and its peak of memory.

`python -m tools.bench.wide` makes the model of random weights in a folder, so that it is loaded as any base
model is, and two adapters. The second number is the resident memory of the whole process; Linux only.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from tools.bench.live import LARGE, say
from tools.bench.peak import high_water, peak_during

RATE, RANK = 1e-3, 16
ROWS = [(f"Is {number} even?", "yes" if number % 2 == 0 else "no") for number in range(6)]


def main(argv: Sequence[str] | None = None) -> int:
    """Measures and prints a table."""
    parser = argparse.ArgumentParser(prog="python -m tools.bench.wide", description=__doc__)
    parser.add_argument("--layers", type=int, default=2)
    parser.add_argument("--vocabulary", type=int, default=32000, help="128256 for that of Llama-3.1")
    options = parser.parse_args(argv)
    with tempfile.TemporaryDirectory() as place:
        run(Path(place), options.layers, options.vocabulary)
    return 0


def run(place: Path, layers: int, vocabulary: int) -> None:
    """All steps, one after the other."""
    import loradex
    from merging.evaluation import generate
    from merging.model import Prompt, load_base
    from tests.merging.llama import TARGETS, write
    from tests.merging.tiny import write_task

    folder = place / "base"
    measure("make", lambda: make(folder, layers, vocabulary))
    base: Any = measure("load", lambda: load_base(str(folder), dtype="bfloat16"))
    task = write_task(place / "even", ROWS)
    import torch

    members = [
        write(
            place / f"m{at}", base.model, at, rank=RANK, targets=TARGETS, size=0.01, dtype=torch.bfloat16
        ).folder
        for at in range(2)
    ]
    measure("score, base and 2 adapters", lambda: loradex.evaluate(base, task, members, limit=2))
    prompts = [Prompt(tuple(range(at, at + 20)), ((0,),), 0) for at in range(2)]
    measure("generate, 2 x 4 tokens", lambda: generate(base, prompts, most=4))
    measure(
        "train, a step of rank 16",
        lambda: loradex.train(
            base, task, out=place / "new", rank=RANK, learning_rates=[RATE], steps=1, batch=2, samples=5
        ),
    )
    measure(
        "adapt, a step of recycling",
        lambda: loradex.adapt(members, base, task, out=place / "adapted", steps=1, batch=2, samples=5),
    )
    measure("gradient of 2 examples", lambda: gradient(base, task))
    measure("merge, average", lambda: loradex.merge(members, method="average", out=place / "merged"))


def gradient(base: Any, task: Path) -> object:
    """The direction of a task, as `select --by gradient` asks for it."""
    from merging.learning import direction
    from merging.model import examples, read_task

    loaded = read_task(task)
    return direction(base, loaded, examples(loaded, "train")[:2])


def make(folder: Path, layers: int, vocabulary: int) -> None:
    """A checkpoint of random weights in bfloat16, whose tokenizer knows 260 tokens."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    from merging.model import quiet
    from tests.merging.tiny import tiny_tokenizer

    settings: dict[str, Any] = {**LARGE, "dtype": "bfloat16"}
    config = LlamaConfig(
        **settings,
        num_hidden_layers=layers,
        vocab_size=vocabulary,
        max_position_embeddings=2048,
    )
    torch.set_default_dtype(torch.bfloat16)
    model: Any = LlamaForCausalLM(config)
    torch.set_default_dtype(torch.float32)
    with quiet():
        model.save_pretrained(folder)
    tokenizer = tiny_tokenizer()
    tokenizer.save_pretrained(folder)
    (folder / "generation_config.json").write_text(json.dumps({"eos_token_id": tokenizer.eos_token_id}))


def measure(title: str, work: Callable[[], Any]) -> Any:
    """What the step gives; its seconds and the peak of the process meanwhile are written."""
    began = time.perf_counter()
    result, _ = peak_during(work)
    say(title, f"{time.perf_counter() - began:8.1f} s   {high_water() / 2**30:5.2f} GiB")
    return result


if __name__ == "__main__":
    sys.exit(main())
