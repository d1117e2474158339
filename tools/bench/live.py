"""Twenty adapters over one base: a forward, a training step and candidates, against the base and PEFT.

`python -m tools.bench.live` makes a Llama of random weights in SmolLM2-135M's shapes and twenty adapters of
rank 16 on all seven projections. Ratios are medians over rounds in which the sides take turns; on a processor
they are of the time of one thread, on a GPU of the time until it has finished. Logits are those of the last
position, so that a large vocabulary hides nothing.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import statistics
import subprocess
import sys
import tempfile
import time
import warnings
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from merging.learning.coefficients import Coefficients
from merging.live.stack import LiveStack, Way
from merging.members import MergeMember
from tests.merging.llama import TARGETS, write

ONE_THREAD = {"OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"}
COUNT, RANK, CANDIDATES = 20, 16, 16
SMALL = {"hidden_size": 576, "intermediate_size": 1536, "num_attention_heads": 9, "num_key_value_heads": 3}
LARGE = {"hidden_size": 4096, "intermediate_size": 14336, "num_attention_heads": 32, "num_key_value_heads": 8}


def main(argv: Sequence[str] | None = None) -> int:
    """Measures and prints a table; on a processor in a child that has one thread."""
    parser = argparse.ArgumentParser(prog="python -m tools.bench.live", description=__doc__)
    parser.add_argument("--layers", type=int, default=12, help="layers of the small model, 30 for all")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument(
        "--large-layers", type=int, default=4, help="layers in Llama-3.1-8B's shapes, on a GPU"
    )
    options = parser.parse_args(argv)
    if (status := run_with_one_thread("live", argv)) is not None:
        return status
    with tempfile.TemporaryDirectory() as place:
        small(Path(place), options.layers, options.rounds)
        if torch.cuda.is_available():
            large(Path(place), options.large_layers, options.rounds)
        else:
            say("Llama-3.1-8B's shapes", "not measured: there is no CUDA device")
    return 0


def run_with_one_thread(name: str, argv: Sequence[str] | None) -> int | None:
    """The exit status of this benchmark in a child that has one thread; None in that child."""
    if "OMP_NUM_THREADS" in os.environ:
        return None
    command = [sys.executable, "-m", f"tools.bench.{name}", *(sys.argv[1:] if argv is None else argv)]
    return subprocess.run(command, env=os.environ | ONE_THREAD, check=False).returncode


def small(place: Path, layers: int, rounds: int) -> None:
    """All rows of the table that need no GPU."""
    model = llama(SMALL, layers, 49152)
    members = adapters(place / "small", model)
    forwards(model, members, rounds, "8 x 128 tokens", ids(8, 128))
    crossover(model, members[:4], rounds)
    steps(model, members, rounds)
    candidates(model, members[:8], rounds)


def large(place: Path, layers: int, rounds: int) -> None:
    """The forward in the widths of an 8B model, in bfloat16 on a GPU."""
    model = llama(LARGE, layers, 1024).to("cuda", torch.bfloat16)
    members = adapters(place / "large", model, torch.bfloat16)
    for rows, length in ((8, 128), (8, 1024)):
        forwards(model, members, rounds, f"8B's shapes, {rows} x {length}", ids(rows, length, 1024).cuda())


def forwards(model: Any, members: Sequence[MergeMember], rounds: int, title: str, batch: Tensor) -> None:
    """A forward with all members against one of the base."""
    cases: dict[str, Callable[[], object]] = {"base": lambda: forward(model, batch)}
    live = LiveStack(model, members)
    for way in ways(model):
        cases[way] = attach(live, way, lambda: forward(model, batch))
    seconds = measure_cases(cases, rounds, batch.device.type)
    for way in ways(model):
        say(f"forward, {title}, {way}", f"{seconds[way] / seconds['base']:.2f} x base")


def crossover(model: Any, members: Sequence[MergeMember], rounds: int) -> None:
    """Weights summed once against two thin products for each token, around the derived number of tokens."""
    live = LiveStack(model, members)
    scales = live.scales_of([1.0] * len(members))
    for share in (0.25, 1.0, 4.0):
        length = round(live.crossover * share)
        batch = ids(1, length)

        def dense(batch: Tensor = batch) -> None:
            with live.dense(scales):
                forward(model, batch)

        factored = attach(live, "factored", partial(forward, model, batch))
        seconds = measure_cases({"live": factored, "dense": dense}, rounds, "cpu")
        say(
            f"dense, {length} tokens ({share:g} of crossover)",
            f"{seconds['dense'] / seconds['live']:.2f} x live",
        )


def steps(model: Any, members: Sequence[MergeMember], rounds: int) -> None:
    """Loss and gradients of coefficients for each module against the recycling paper's einsum layer."""
    batch, live = ids(8, 128), LiveStack(model, members)
    cases: dict[str, Callable[[], object]] = {}
    for way in ways(model):
        cases[way] = attach(live, way, lambda: step(model, batch, live.set_scales, live))
    cases["einsum"] = lambda: with_einsum(model, batch, live)
    cases["base"] = lambda: forward(model, batch)
    seconds = measure_cases(cases, rounds, "cpu")
    for way in ways(model):
        say(f"coefficient step, {way}", f"{seconds['einsum'] / seconds[way]:.2f} x as fast as einsum")
        say("", f"{seconds[way] / seconds['base']:.2f} x base forward")


def step(model: Any, batch: Tensor, use: Callable[[Any], object], live: LiveStack) -> None:
    """One loss with its gradients."""
    coefficients = Coefficients(live.shapes, [member.name for member in live.members])
    use(coefficients.scales())
    model(batch, logits_to_keep=1).logits.float().logsumexp(-1).sum().backward()


class Einsum(nn.Module):
    """The released layer of the recycling paper: y = W x + einsum("...i,ri,r,or->...o", x, A, s, B)."""

    def __init__(self, inner: nn.Module, a: Tensor, bt: Tensor) -> None:
        super().__init__()
        self.inner, self.a, self.b = inner, a, bt.T.contiguous()
        self.scales = torch.ones(len(a))

    def forward(self, x: Tensor) -> Tensor:
        """The layer's output with the members' added."""
        output: Tensor = self.inner(x) + torch.einsum("...i,ri,r,or->...o", x, self.a, self.scales, self.b)
        return output


def with_einsum(model: Any, batch: Tensor, live: LiveStack) -> None:
    """The same step with layers of einsum in the places of the model's."""
    layers: dict[str, Einsum] = {}

    def use(scales: dict[str, Tensor]) -> None:
        for name, value in scales.items():
            layers[name].scales = value

    with contextlib.ExitStack() as stack:
        for name, (a, bt) in live.factors.items():
            parent, _, leaf = name.rpartition(".")
            owner = model.get_submodule(parent)
            inner = getattr(owner, leaf)
            layers[name] = Einsum(inner, a, bt)
            setattr(owner, leaf, layers[name])
            stack.callback(setattr, owner, leaf, inner)
        step(model, batch, use, live)


def candidates(model: Any, members: Sequence[MergeMember], rounds: int) -> None:
    """Sixteen vectors of coefficients on 2 x 64 tokens each: one resident stack against merges by PEFT."""
    import peft

    warnings.simplefilter("ignore")  # PEFT's about its own deletions, and about transformers' old names
    batch = ids(2, 64)
    generator = torch.Generator().manual_seed(0)
    vectors = torch.rand(CANDIDATES, len(members), generator=generator)
    live = LiveStack(model, members)

    def together() -> None:
        scale_rows = [live.scales_of(vector.tolist()) for vector in vectors]
        scales = {name: torch.stack([row[name] for row in scale_rows]) for name in scale_rows[0]}
        live.set_scales(scales, torch.arange(CANDIDATES).repeat_interleave(len(batch)))
        forward(model, batch.repeat(CANDIDATES, 1))

    seconds = {
        "live": statistics.median(time_run(attach(live, "cheapest", together), "cpu") for _ in range(rounds))
    }
    names = [f"m{n}" for n in range(len(members))]
    judge = peft.PeftModel.from_pretrained(model, members[0].folder, adapter_name=names[0]).eval()
    for name, member in list(zip(names, members, strict=True))[1:]:
        judge.load_adapter(member.folder, name)

    def merge(vector: Tensor) -> None:
        judge.add_weighted_adapter(names, vector.tolist(), "sum", combination_type="cat")
        judge.set_adapter("sum")
        forward(judge, batch)
        judge.delete_adapter("sum")

    def merge_each() -> None:
        for vector in vectors:
            merge(vector)

    seconds["peft"] = statistics.median(time_run(merge_each, "cpu") for _ in range(max(1, rounds // 2)))
    judge.unload()
    say(
        f"{CANDIDATES} candidates of {len(members)} members",
        f"{seconds['peft'] / seconds['live']:.2f} x as fast as PEFT",
    )


def ways(model: Any) -> tuple[Way, ...]:
    """What can differ: narrow layers are never folded."""
    return ("cheapest", "factored", "folded") if model.dtype == torch.float32 else ("cheapest",)


def attach(live: LiveStack, way: Way, run: Callable[[], object]) -> Callable[[], None]:
    """The same with the members attached."""

    def inside() -> None:
        live.way = way
        with live.attach():
            run()

    return inside


def forward(model: Any, batch: Tensor) -> None:
    """One forward without gradients."""
    with torch.no_grad():
        model(batch, logits_to_keep=1)


def measure_cases(cases: dict[str, Callable[[], object]], rounds: int, device: str) -> dict[str, float]:
    """The median of each case's seconds; the cases take turns, after one round that does not count."""
    times: dict[str, list[float]] = {name: [] for name in cases}
    for number in range(rounds + 1):
        for name, run in cases.items():
            seconds = time_run(run, device)
            if number:
                times[name].append(seconds)
    return {name: statistics.median(values) for name, values in times.items()}


def time_run(run: Callable[[], object], device: str) -> float:
    """Seconds of one run: of the processor, or by the clock until the GPU has finished."""
    clock = time.process_time if device == "cpu" else time.perf_counter
    began = clock()
    run()
    if device != "cpu":
        torch.cuda.synchronize()
    return clock() - began


def llama(sizes: dict[str, Any], layers: int, vocabulary: int) -> Any:
    """A Llama of random weights."""
    import transformers

    torch.manual_seed(0)
    config = transformers.LlamaConfig(
        **sizes, num_hidden_layers=layers, vocab_size=vocabulary, tie_word_embeddings=True
    )
    model: Any = transformers.LlamaForCausalLM(config)
    return model.eval().requires_grad_(False)


def adapters(place: Path, model: Any, dtype: torch.dtype = torch.float32) -> list[MergeMember]:
    """Twenty adapters on all projections."""
    return [
        write(place / f"m{n}", model, n, rank=RANK, targets=TARGETS, size=0.01, dtype=dtype)
        for n in range(COUNT)
    ]


def ids(rows: int, length: int, vocabulary: int = 49152) -> Tensor:
    """Random tokens."""
    return torch.randint(vocabulary, (rows, length), generator=torch.Generator().manual_seed(0))


def say(first: str, second: str) -> None:
    """Writes a line of the table at once."""
    sys.stdout.write(f"{first:<48}{second}\n")
    sys.stdout.flush()


if __name__ == "__main__":
    sys.exit(main())
