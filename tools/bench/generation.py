"""Generated answers whose questions begin alike: from a shared prefix, against every question read in full.

`python -m tools.bench.generation` makes a Llama of random weights in SmolLM2-135M's widths and questions that
share most of their tokens, as those of a task do. Both ways must give the same answers. Times are of one
thread of the processor, or of the clock on a GPU; the ways take turns and ratios are medians over rounds.
"""

from __future__ import annotations

import argparse
import random
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from typing import Any

from tools.bench.live import SMALL, llama, run_with_one_thread, say

COUNT, MOST = 24, 30
# Tokens that the questions share, and their own: as in snips, as in arc_easy, and with five examples.
CASES = ((64, 17), (39, 63), (512, 64))


def main(argv: Sequence[str] | None = None) -> int:
    """Measures and prints a table; on a processor in a child that has one thread."""
    parser = argparse.ArgumentParser(prog="python -m tools.bench.generation", description=__doc__)
    parser.add_argument("--layers", type=int, default=4, help="layers of the model, 30 for all")
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--device", default="cpu")
    options = parser.parse_args(argv)
    if (status := run_with_one_thread("generation", argv)) is not None:
        return status
    base = random_base(options.layers, options.device)
    for shared, own in CASES:
        compare(base, shared, own, options.rounds)
    return 0


def random_base(layers: int, device: str) -> Any:
    """A base model of random weights whose tokenizer knows 260 tokens."""
    from merging.model import LoadedBase
    from tests.merging.tiny import tiny_tokenizer

    tokenizer = tiny_tokenizer()
    model = llama(SMALL, layers, len(tokenizer)).to(device)
    return LoadedBase("random", model, tokenizer, 2048)


def compare(base: Any, shared: int, own: int, rounds: int) -> None:
    """Both ways on questions that begin with `shared` equal tokens, `own` different ones on average."""
    from merging.evaluation import generate
    from merging.model import Prompt

    draw = random.Random(f"{shared} {own}")
    start = [draw.randrange(256) for _ in range(shared)]
    questions = [
        (*start, *(draw.randrange(256) for _ in range(draw.randint(own // 2, own + own // 2))))
        for _ in range(COUNT)
    ]
    prompts = [Prompt(question, ((0,),), 0) for question in questions]
    # Random weights do not end their answers, so that each has a length to end at.
    limits = [draw.randint(1, MOST) for _ in range(COUNT)]
    ways: dict[str, Callable[[], list[str]]] = {
        "prefix": lambda: generate(base, prompts, most=limits),
        "full": lambda: read_in_full(base, prompts, limits),
    }
    times: dict[str, list[float]] = {name: [] for name in ways}
    for number in range(rounds + 1):
        answers = {}
        for name, run in ways.items():
            clock = time.process_time if base.device.type == "cpu" else time.perf_counter
            began = clock()
            answers[name] = run()
            if number:
                times[name].append(clock() - began)
        assert answers["prefix"] == answers["full"]
    ratio = statistics.median(
        full / short for full, short in zip(times["full"], times["prefix"], strict=True)
    )
    say(f"{COUNT} questions, {shared} tokens shared, {own} own", f"{ratio:.2f} x as fast as in full")


def read_in_full(base: Any, prompts: Sequence[Any], limits: Sequence[int]) -> list[str]:
    """The same answers by the model's own `generate`, every question from its beginning."""
    from merging.evaluation.generation import answer_text, continue_in_full, end_tokens, question_groups

    texts = [""] * len(prompts)
    ends = end_tokens(base)
    for group in question_groups(base, prompts, limits):
        questions, most = [prompts[at].question for at in group], [limits[at] for at in group]
        for at, row in zip(group, continue_in_full(base, questions, most, (), ends), strict=True):
            texts[at] = answer_text(base, row).strip()
    return texts


if __name__ == "__main__":
    sys.exit(main())
