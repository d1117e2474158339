"""Likelihoods of answers from trees of prompts: attention in blocks, against attention with the whole mask.

`python -m tools.bench.reading` makes a Llama of random weights in SmolLM2-135M's widths and questions that
begin alike, as those of a task do. Both ways must give the same likelihoods. Times are of one thread of the
processor; the ways take turns and ratios are medians over rounds.
"""

from __future__ import annotations

import argparse
import random
import statistics
import sys
import time
from collections.abc import Sequence
from typing import Any

from tools.bench.generation import random_base
from tools.bench.live import run_with_one_thread, say

COUNT = 50
# Tokens that the questions share, and their own: as in cola, ag_news and rte.
CASES = ((48, 15), (40, 62), (60, 80))
# The whole mask with trees as short as it wants them, and blocks with longer ones.
WIDTHS = {"whole": 512, "blocks": 1024}


def main(argv: Sequence[str] | None = None) -> int:
    """Measures and prints a table, in a child that has one thread."""
    parser = argparse.ArgumentParser(prog="python -m tools.bench.reading", description=__doc__)
    parser.add_argument("--layers", type=int, default=4, help="layers of the model, 30 for all")
    parser.add_argument("--rounds", type=int, default=3)
    options = parser.parse_args(argv)
    if (status := run_with_one_thread("reading", argv)) is not None:
        return status
    from merging.model.products import quicken_layers

    base = random_base(options.layers, "cpu")
    quicken_layers(base.model)
    for shared, own in CASES:
        compare(base, shared, own, options.rounds)
    return 0


def compare(base: Any, shared: int, own: int, rounds: int) -> None:
    """Both ways on questions that begin with `shared` equal tokens and go on with `own`, of three answers."""
    import torch

    from merging.evaluation import likelihoods, sparse_attention
    from merging.model import Prompt

    draw = random.Random(f"{shared} {own}")
    start = [draw.randrange(256) for _ in range(shared)]
    questions = [(*start, *(draw.randrange(256) for _ in range(own))) for _ in range(COUNT)]
    prompts = [Prompt(question, ((1, 2), (3, 4), (5, 6, 7)), 0) for question in questions]
    most = sparse_attention._MOST
    times: dict[str, list[float]] = {way: [] for way in WIDTHS}
    try:
        for number in range(rounds + 1):
            values = {}
            for way, width in WIDTHS.items():
                sparse_attention._MOST = most if way == "blocks" else 0.0
                began = time.process_time()
                values[way] = likelihoods(base, prompts, width=width)
                if number:
                    times[way].append(time.process_time() - began)
            torch.testing.assert_close(*map(torch.tensor, values.values()), rtol=1e-5, atol=1e-4)
    finally:
        sparse_attention._MOST = most
    ratio = statistics.median(
        whole / blocks for whole, blocks in zip(times["whole"], times["blocks"], strict=True)
    )
    say(f"{COUNT} questions, {shared} tokens shared, {own} own", f"{ratio:.2f} x as fast as the whole mask")


if __name__ == "__main__":
    sys.exit(main())
