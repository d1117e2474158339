"""Merges against PEFT: time and peak memory as ratios, each run in a process of its own on the same files.

`python -m tests.bench.merging` generates adapters of a small Llama (hidden 1024, 8 layers) and of
Llama-3.1-8B's shapes. Seconds are processor time of one thread, of PEFT without
loading the base or the adapters, of ours with reading and writing the files; memory is the rise of
the resident set above its size before the call (Linux).
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tests.hubs import adapter_config
from tests.merging.peak import peak_during

MLP = ("gate_proj", "up_proj", "down_proj")
TARGETS = ("q_proj", "k_proj", "v_proj", "o_proj", *MLP)
RANK = 16
ONE_THREAD = {"OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"}


@dataclass(frozen=True)
class Size:
    """Widths of a Llama: hidden, of keys and values, of the MLP; and its layers."""

    hidden: int
    keys: int
    inner: int
    layers: int

    def shape(self, target: str) -> tuple[int, int]:
        """(in, out) of a module."""
        inside = self.inner if target == "down_proj" else self.hidden
        outside = {"k_proj": self.keys, "v_proj": self.keys, "gate_proj": self.inner, "up_proj": self.inner}
        return inside, outside.get(target, self.hidden)


SMALL = Size(1024, 1024, 3584, 8)


def large(layers: int) -> Size:
    """Llama-3.1-8B's widths."""
    return Size(4096, 1024, 14336, layers)


def build(folder: Path, size: Size, seed: int, dtype: str) -> None:
    """Writes an adapter of random factors, A as PEFT initialises it, B of a size that training gives."""
    import torch
    from safetensors.torch import save_file

    generator = torch.Generator().manual_seed(seed)
    tensors = {}
    for layer in range(size.layers):
        for target in TARGETS:
            inside, outside = size.shape(target)
            block = "mlp" if target in MLP else "self_attn"
            stem = f"base_model.model.model.layers.{layer}.{block}.{target}.lora_"
            a = (torch.rand(RANK, inside, generator=generator) * 2 - 1) / inside**0.5
            b = torch.randn(outside, RANK, generator=generator) * 0.01
            tensors[f"{stem}A.weight"] = a.to(getattr(torch, dtype))
            tensors[f"{stem}B.weight"] = b.to(getattr(torch, dtype))
    folder.mkdir(parents=True)
    save_file(tensors, folder / "adapter_model.safetensors")
    config = adapter_config(r=RANK, lora_alpha=2 * RANK, target_modules=list(TARGETS))
    (folder / "adapter_config.json").write_text(json.dumps(config))


def ours(folders: Sequence[Path], method: str, out: Path, **settings: Any) -> Callable[[], dict[str, Any]]:
    """A whole merge, files to file."""
    import torch  # noqa: F401  # its memory is not the merge's

    from merging.members import load_member
    from merging.merge import merge

    def work() -> dict[str, Any]:
        # Digests are known, as they are of a pool: hashing would take longer than reading.
        members = [load_member(folder, digest="0" * 64) for folder in folders]
        report = merge(members, method, out, overwrite=True, **settings)
        return {"kept": report.kept}

    return work


def in_memory(folders: Sequence[Path]) -> Callable[[], dict[str, Any]]:
    """The truncations alone, on factors that are loaded, as PEFT's are."""
    from merging.lowrank import truncate
    from merging.members import load_members
    from merging.stack import iterate_stacks

    stacks = list(iterate_stacks(load_members(folders)))
    weights = [1 / len(folders)] * len(folders)

    def work() -> dict[str, Any]:
        updates = [truncate(stack, stack.columns(weights), RANK) for stack in stacks]
        return {"modules": len(updates)}

    return work


def reading(folders: Sequence[Path]) -> Callable[[], dict[str, Any]]:
    """Plain reads of the same bytes."""

    def work() -> dict[str, Any]:
        buffer = bytearray(1 << 24)
        for folder in folders:
            with (folder / "adapter_model.safetensors").open("rb", buffering=0) as file:
                while file.readinto(buffer):
                    pass
        return {}

    return work


def by_peft(folders: Sequence[Path], kind: str, size: Size) -> Callable[[], dict[str, Any]]:
    """PEFT's add_weighted_adapter on a random base with the adapters loaded."""
    import warnings

    import torch
    from peft import PeftModel
    from transformers import LlamaConfig, LlamaForCausalLM

    warnings.simplefilter("ignore")
    heads = size.hidden // 128
    config = LlamaConfig(
        hidden_size=size.hidden,
        intermediate_size=size.inner,
        num_hidden_layers=size.layers,
        num_attention_heads=heads,
        num_key_value_heads=heads * size.keys // size.hidden,
        vocab_size=64,
    )
    model = PeftModel.from_pretrained(LlamaForCausalLM(config), folders[0], adapter_name="m0")
    for n, folder in enumerate(folders[1:], 1):
        model.load_adapter(folder, adapter_name=f"m{n}")

    def work() -> dict[str, Any]:
        names = [f"m{n}" for n in range(len(folders))]
        with torch.no_grad():
            density = {"density": 0.2} if "ties" in kind else {}
            weights = [1 / len(names)] * len(names)
            model.add_weighted_adapter(names, weights, "merged", combination_type=kind, **density)
        return {}

    return work


def one_module(count: int, kind: str) -> Callable[[], dict[str, Any]]:
    """TIES of one 4096 x 4096 module: ours on factors, or PEFT's function on dense updates."""
    import torch

    from merging.entries import entries, merge_entries
    from merging.method import Work
    from merging.methods import find_method
    from merging.methods.sign_election import ties_blocks
    from merging.stack import Stack

    generator = torch.Generator().manual_seed(0)
    a = torch.randn(count * RANK, 4096, generator=generator)
    b = torch.randn(4096, count * RANK, generator=generator)
    stack = Stack("q", a, b, (RANK,) * count, (1.0,) * count)

    def dense() -> dict[str, Any]:
        from peft.utils.merge_utils import ties

        deltas = [b[:, place] @ a[place] for place in stack.ranges()]
        merged = ties(deltas, torch.ones(count), 0.2)
        return {"norm": float(merged.square().sum(dtype=torch.float64)) ** 0.5}

    def streamed(finish: bool, mode: str) -> dict[str, Any]:
        options = find_method("ties").options({"thresholds": mode})
        work = Work(stack, (1.0,) * count, RANK, tuple(map(str, range(count))), options)
        found = entries(work)
        merge = ties_blocks(work, found)
        if finish:
            return {"kept": merge_entries(work, found, merge).energy}
        total = 0.0
        for rows in found.ranges(count):
            total += float(merge(found.block(rows), rows).square().sum(dtype=torch.float64))
        return {"norm": total**0.5}

    if kind == "peft":
        return dense
    return lambda: streamed(kind == "truncated", "sampled" if kind == "sampled" else "exact")


def weight_vectors(count: int, size: Size) -> Callable[[], dict[str, Any]]:
    """New weight vectors on cached Gram matrices: one eigenproblem a module."""
    import torch

    from merging.lowrank import grams, truncation
    from merging.stack import Stack

    cached = []
    for n, target in enumerate(TARGETS):
        inside, outside = size.shape(target)
        generator = torch.Generator().manual_seed(n)
        a = torch.randn(count * RANK, inside, generator=generator)
        b = torch.randn(outside, count * RANK, generator=generator)
        cached.append(grams(Stack(target, a, b, (RANK,) * count, (1.0,) * count), precise=False))
    weights = torch.rand(count * RANK, dtype=torch.float64)

    def work() -> dict[str, Any]:
        done = [truncation(found, weights, RANK) for found in cached]
        return {"modules": sum(found is not None for found in done)}

    return work


def child(arguments: argparse.Namespace) -> None:
    """Prepares one case, measures it, and prints a line of JSON."""
    place, case = Path(arguments.place), arguments.case.split(":")
    folders = sorted((place / "pool").iterdir())[: arguments.count] if (place / "pool").is_dir() else []
    settings = {"rank": RANK} if case[-1] in ("svd", "tsv-m", "iso-c", "core-ties", "lora-lego") else {}
    size = SMALL if arguments.size == "small" else large(arguments.layers)
    work = {
        "ours": lambda: ours(folders, case[1], place / "out", **settings),
        "peft": lambda: by_peft(folders, case[1], size),
        "memory": lambda: in_memory(folders),
        "read": lambda: reading(folders),
        "module": lambda: one_module(arguments.count, case[1]),
        "weights": lambda: weight_vectors(arguments.count, size),
    }[case[0]]()
    began = time.process_time()
    found, peak = peak_during(work)
    seconds = time.process_time() - began
    sys.stdout.write(json.dumps({**found, "seconds": seconds, "mib": peak / 2**20}) + "\n")


def measure(place: Path, case: str, count: int, size: str = "small", layers: int = 8) -> dict[str, Any]:
    """One case in a process of its own; prints a row."""
    command = [sys.executable, "-m", "tests.bench.merging", "--place", str(place), "--case", case]
    command += ["--count", str(count), "--size", size, "--layers", str(layers)]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True, env=os.environ | ONE_THREAD)
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    say(f"{case:<22}{count:>4}{found['seconds']:>10.2f} s{found['mib']:>9.0f} MiB")
    return found


def pool(place: Path, size: Size, count: int, dtype: str) -> None:
    """Writes the adapters of a pool."""
    for n in range(count):
        build(place / "pool" / f"m{n:03}", size, n, dtype)


def small(count: int) -> None:
    """The small Llama against PEFT's own merges."""
    say(f"\nhidden 1024, 8 layers, {count} adapters of rank {RANK}, float32")
    with tempfile.TemporaryDirectory() as name:
        place = Path(name)
        pool(place, SMALL, count, "float32")
        peft = measure(place, "peft:svd", count)
        ratio("svd, PEFT over ours with the files", peft, measure(place, "ours:svd", count))
        ratio("svd, PEFT over ours in memory", peft, measure(place, "memory:svd", count))
        ratio(
            "cat, PEFT over ours",
            measure(place, "peft:cat", count),
            measure(place, "ours:concatenation", count),
        )
        ratio("average over reading", measure(place, "ours:average", count), measure(place, "read", count))
        for method in ("core-ties", "lora-lego", "tsv-m", "iso-c"):
            measure(place, f"ours:{method}", count)


def whole(count: int, layers: int) -> None:
    """Llama-3.1-8B's shapes: a whole merge, and memory that does not grow with the layers."""
    say(f"\nLlama-3.1-8B shapes, {count} adapters of rank {RANK}, bfloat16, {layers} layers")
    runs = []
    for depth in (max(1, layers // 4), layers):
        with tempfile.TemporaryDirectory() as name:
            place = Path(name)
            pool(place, large(depth), count, "bfloat16")
            runs.append(measure(place, "ours:svd", count, "large", depth))
            if depth == layers:
                ratio(
                    "average over reading",
                    measure(place, "ours:average", count),
                    measure(place, "read", count),
                )
    say(f"peak memory, {layers} layers over {max(1, layers // 4)}: {runs[1]['mib'] / runs[0]['mib']:.2f}")
    say(f"32 layers would take {runs[1]['seconds'] * 32 / layers:.1f} s")
    found = measure(Path(), "weights", count, "large")
    say(f"a new weight vector on cached grams, 224 modules: {found['seconds'] * 32:.1f} s")


def entrywise(count: int) -> None:
    """TIES of one module of 4096 x 4096."""
    say(f"\nTIES, one module of 4096 x 4096, {count} adapters of rank {RANK}")
    dense = measure(Path(), "module:peft", count)
    exact = measure(Path(), "module:exact", count)
    ratio("ties, PEFT over ours", dense, exact)
    sampled = measure(Path(), "module:sampled", count)
    say(f"norms: PEFT {dense['norm']:.4f}, exact {exact['norm']:.4f}, sampled {sampled['norm']:.4f}")
    measure(Path(), "module:truncated", count)


def ratio(name: str, left: dict[str, Any], right: dict[str, Any]) -> None:
    """Prints how many times longer the left one took, and how many times more memory."""
    memory = f"{left['mib'] / right['mib']:.1f}x" if min(left["mib"], right["mib"]) > 1 else "not compared"
    say(f"  {name}: time {left['seconds'] / right['seconds']:.1f}x, memory {memory}")


def say(line: str) -> None:
    """Writes a line at once."""
    sys.stdout.write(line + "\n")
    sys.stdout.flush()


def main(argv: Sequence[str] | None = None) -> None:
    """Measures the cases asked for and prints a table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--what", choices=("all", "small", "whole", "entries"), default="all")
    parser.add_argument("--count", type=int, default=8)
    parser.add_argument("--layers", type=int, default=4, help="layers of the large shape; the model has 32")
    parser.add_argument("--size", default="small")
    parser.add_argument("--place", help=argparse.SUPPRESS)
    parser.add_argument("--case", help=argparse.SUPPRESS)
    arguments = parser.parse_args(argv)
    if arguments.case:
        child(arguments)
        return
    if arguments.what in ("all", "small"):
        small(arguments.count)
    if arguments.what in ("all", "whole"):
        whole(max(arguments.count, 20), arguments.layers)
    if arguments.what in ("all", "entries"):
        entrywise(max(arguments.count, 20))


if __name__ == "__main__":
    main()
