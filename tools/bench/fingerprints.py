"""Fingerprints of a whole Llama-3.1-8B adapter: time against forming B A, memory, and the sketches' errors.

Run as `python -m tools.bench.fingerprints`. The adapter is generated: rank 16, all seven linear modules of
all 32 layers, bfloat16, 84 MB. A is drawn as PEFT initialises it, B with a falling spectrum. Torch has one
thread by default: matrices of 16 columns gain little from more, and threads that wait for each other on a
busy machine lose much.
"""

from __future__ import annotations

import argparse
import json
import math
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

from catalog.adapters import AdapterConfig, parse_config
from catalog.adapters.weights import (
    Module,
    gram,
    iterate_factors,
    iterate_modules,
    module_norms,
    tensor_digest,
)
from catalog.fingerprints.sketches import DELTA_SIZE, delta_sketch, fingerprint

LLAMA = {
    "self_attn.q_proj": (4096, 4096),
    "self_attn.k_proj": (1024, 4096),
    "self_attn.v_proj": (1024, 4096),
    "self_attn.o_proj": (4096, 4096),
    "mlp.gate_proj": (14336, 4096),
    "mlp.up_proj": (14336, 4096),
    "mlp.down_proj": (4096, 14336),
}
LAYERS = 32
# High-water mark of a process's own memory in kB: unlike ru_maxrss it does not begin with its parent's.
PEAK = """
import json, sys
from pathlib import Path
import numpy, torch
from catalog.adapters import parse_config
from catalog.fingerprints.sketches import fingerprint

def peak():
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("VmHWM:"))

before = peak()
fingerprint(Path(sys.argv[1]), parse_config(sys.argv[2].encode()))
print(json.dumps([before, peak()]))
"""


def config(**fields: Any) -> AdapterConfig:
    """A configuration of rank 16 and scaling 2."""
    return parse_config(json.dumps({"peft_type": "LORA", "r": 16, "lora_alpha": 32, **fields}).encode())


def generate_modules(seed: int, layers: int = LAYERS, rank: int = 16) -> Iterator[Module]:
    """The modules of an adapter for Llama-3.1-8B with scaling 2, float32, drawn from a seed."""
    import torch

    generator = torch.Generator().manual_seed(seed)
    falling = 0.8 ** torch.arange(rank)
    for layer in range(layers):
        for name, (out_features, in_features) in LLAMA.items():
            a = torch.rand(rank, in_features, generator=generator).mul_(2).sub_(1) / math.sqrt(in_features)
            b = torch.randn(out_features, rank, generator=generator) * (falling * 0.003)
            yield Module(f"model.layers.{layer}.{name}", a, b, 2.0)


def write(path: Path, modules: Iterable[Module], dtype: str = "bfloat16") -> None:
    """Saves modules as PEFT names them."""
    import torch
    from safetensors.torch import save_file

    tensors = {}
    for module in modules:
        for side, factor in (("A", module.a), ("B", module.b)):
            name = f"base_model.model.{module.name}.lora_{side}.weight"
            tensors[name] = factor.to(getattr(torch, dtype)).contiguous()
    save_file(tensors, path, metadata={"format": "pt"})


def peak_memory(path: Path, read: AdapterConfig) -> tuple[int, int]:
    """Bytes of memory at most in a process of its own, before and after a fingerprint; on Linux."""
    arguments = (sys.executable, "-c", PEAK, str(path), json.dumps(read.raw))
    printed = subprocess.run(arguments, check=True, capture_output=True, text=True).stdout
    before, after = json.loads(printed)
    return before * 1024, after * 1024


def bound(modules: Iterable[Module], width: int = 32) -> tuple[float, float]:
    """||X||^2 of an update, and the bound of `catalog.fingerprints` on the variance of ||S||^2 / ||X||^2."""
    square = fourth = 0.0
    for module in modules:
        gram_a, gram_b = gram(module.a.T), gram(module.b) * module.scaling**2
        square += float((gram_a * gram_b).sum())
        # ||X^T X||^2 = (sum sigma^2)^2 / rho
        fourth += float(((gram_a @ gram_b) * (gram_b @ gram_a)).sum())
    return square, 2 / width**2 + (4 / width + 2 / width**2) * fourth / square**2


def form_norms(path: Path) -> list[float]:
    """||B A|| of each module by forming B A in float32."""
    return [float((b.float() @ a.float()).norm()) for _, a, b in iterate_factors(path)]


def seconds(work: Callable[[], object], times: int) -> float:
    """The least wall time of some runs."""
    spans = []
    for _ in range(times):
        began = time.perf_counter()
        work()
        spans.append(time.perf_counter() - began)
    return min(spans)


def errors(adapters: int, layers: int) -> tuple[tuple[float, float], tuple[float, float]]:
    """Standard deviations, measured and predicted: of ||S||^2 / ||X||^2, and of the cosine of strangers."""
    import numpy as np

    sketches, ratios, bounds = [], [], []
    for seed in range(adapters):
        modules = list(generate_modules(seed, layers))
        square, variance = bound(modules)
        sketches.append(delta_sketch(modules).astype(np.float64))
        ratios.append(float(sketches[-1] @ sketches[-1]) / square)
        bounds.append(math.sqrt(variance))
    units = np.array([sketch / np.linalg.norm(sketch) for sketch in sketches])
    cosines = (units @ units.T)[np.triu_indices(adapters, 1)]
    return (
        (math.sqrt(float(np.mean((np.array(ratios) - 1) ** 2))), float(np.mean(bounds))),
        (math.sqrt(float(np.mean(cosines**2))), 1 / math.sqrt(DELTA_SIZE)),
    )


def all_pairs(count: int) -> float:
    """Seconds for the cosines of all pairs of so many sketches."""
    import numpy as np

    vectors = np.random.default_rng(0).standard_normal((count, DELTA_SIZE), dtype=np.float32)

    def pairs() -> object:
        units = vectors / np.linalg.norm(vectors, axis=1, keepdims=True)
        return units @ units.T

    return seconds(pairs, 3)


def main(argv: list[str] | None = None) -> None:
    """Measures and prints one table."""
    import torch

    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--layers", type=int, default=LAYERS)
    parser.add_argument("--adapters", type=int, default=24, help="how many are drawn for the errors")
    parser.add_argument("--threads", type=int, default=1, help="of torch")
    sizes = parser.parse_args(argv)
    torch.set_num_threads(sizes.threads)
    read = config()
    with tempfile.TemporaryDirectory() as place:
        path = Path(place, "adapter_model.safetensors")
        write(path, generate_modules(0, sizes.layers))
        size = path.stat().st_size
        forming = seconds(lambda: form_norms(path), 3)
        norms = seconds(lambda: module_norms(path), 3)
        fingerprint_seconds = seconds(lambda: fingerprint(path, read, "cpu"), 3)
        digest = seconds(lambda: tensor_digest(path), 3)
        before, after = peak_memory(path, read)
        modules = sum(1 for _ in iterate_modules(path, read))
    say(f"{modules} modules, {size / 1e6:.0f} MB, {torch.get_num_threads()} torch threads")
    say(f"{'':<44}{'seconds':>9}{'ratio':>9}")
    rows = (
        ("B A formed, float32, and its norm", forming),
        ("module_norms", norms),
        ("fingerprint", fingerprint_seconds),
    )
    for label, spent in (*rows, ("  of which tensor_digest", digest)):
        say(f"{label:<44}{spent:>9.3f}{forming / spent:>9.1f}")
    say(f"{'cosines of all pairs of 1,000':<44}{all_pairs(1000):>9.3f}")
    say(f"{'peak memory of a fingerprint over imports':<44}{(after - before) / 2**20:>9.0f} MiB")
    if sizes.adapters:
        say(f"{'':<44}{'measured':>9}{'formula':>9}")
        labels = ("sd of ||S||^2 / ||X||^2", "sd of the cosine of unrelated adapters")
        for label, pair in zip(labels, errors(sizes.adapters, sizes.layers), strict=True):
            say(f"{label:<44}{pair[0]:>9.4f}{pair[1]:>9.4f}")


def say(line: str) -> None:
    """Writes a line at once, so that a long run shows where it is."""
    sys.stdout.write(line + "\n")
    sys.stdout.flush()


if __name__ == "__main__":
    main()
