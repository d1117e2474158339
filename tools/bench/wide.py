"""Two layers of Llama-3.1-8B's true width: every step in bfloat16, with its seconds and its peak of memory.

`python -m tools.bench.wide` makes the model of random weights in a folder, so that it is loaded as any base
model is, and two adapters. Seconds are of the processor. The second number is the resident memory of the
whole process; Linux only. At the end text is generated from a shared prefix and with every question in full.
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

from tools.bench.generation import read_in_full
from tools.bench.live import LARGE, say
from tools.bench.peak import high_water, peak_during

RATE, RANK = 1e-3, 16
# Of the questions: tokens that all begin with, their own, and those of an answer.
QUESTIONS, SHARED, OWN, NEW_TOKENS = 8, 64, 17, 8
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
    from merging.evaluation.questions import check_reading
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
    start = tuple(range(SHARED))
    prompts = [Prompt((*start, *range(at, at + OWN)), ((0,),), 0) for at in range(QUESTIONS)]
    limits = [NEW_TOKENS] * QUESTIONS
    # Whether trees of this length are right is found out once for each model.
    measure("check of the reading", lambda: check_reading(base, prompts))
    ways: dict[str, Callable[[], object]] = {
        "prefix read once": lambda: generate(base, prompts, most=limits),
        "questions in full": lambda: read_in_full(base, prompts, limits),
    }
    seconds = [
        spend(f"generate {QUESTIONS} x {NEW_TOKENS} tokens, {name}", way) for name, way in ways.items()
    ]
    say("ratio", f"{seconds[1] / seconds[0]:8.2f}")
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
    with torch.device("meta"):
        model: Any = LlamaForCausalLM(config)
    # A million random values, again and again: to draw them all takes longer than most steps.
    block = 0.02 * torch.randn(1 << 20, generator=torch.Generator().manual_seed(0)).to(torch.bfloat16)
    values = {
        name: torch.ones(shape.shape, dtype=torch.bfloat16)
        if shape.ndim == 1
        else block.repeat(-(-shape.numel() // len(block)))[: shape.numel()].view(shape.shape)
        for name, shape in model.state_dict().items()
    }
    model.load_state_dict(values, assign=True)
    with quiet():
        model.save_pretrained(folder)
    tokenizer = tiny_tokenizer()
    tokenizer.save_pretrained(folder)
    (folder / "generation_config.json").write_text(json.dumps({"eos_token_id": tokenizer.eos_token_id}))


def measure(title: str, work: Callable[[], Any]) -> Any:
    """What the step gives; its seconds and the peak of the process meanwhile are written."""
    began = time.process_time()
    result, _ = peak_during(work)
    say(title, f"{time.process_time() - began:8.1f} s   {high_water() / 2**30:5.2f} GiB")
    return result


def spend(title: str, work: Callable[[], object]) -> float:
    """The seconds of a step, which is measured too."""
    began = time.process_time()
    measure(title, work)
    return time.process_time() - began


if __name__ == "__main__":
    sys.exit(main())
