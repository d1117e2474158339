"""The cases of the merging benchmark, each measured once in a process of its own.

`python -m tools.bench.merge_cases --case ours:svd --place FOLDER --count 8` prints a line of JSON: processor
seconds, wall seconds, and the rise of the resident set above its size before the call (Linux).
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import shutil
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib import import_module
from io import RawIOBase
from pathlib import Path
from typing import Any

from tests.hubs import adapter_config
from tools.bench.peak import peak_during

MLP = ("gate_proj", "up_proj", "down_proj")
TARGETS = ("q_proj", "k_proj", "v_proj", "o_proj", *MLP)
RANK = 16
WEIGHTS = "adapter_model.safetensors"


@dataclass(frozen=True)
class LlamaWidths:
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


SMALL = LlamaWidths(1024, 1024, 3584, 8)


def large(layers: int) -> LlamaWidths:
    """Llama-3.1-8B's widths."""
    return LlamaWidths(4096, 1024, 14336, layers)


def build(folder: Path, size: LlamaWidths, seed: int, dtype: str) -> None:
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


def ours(
    folders: Sequence[Path], method: str, out: Path, digest: str | None = "0" * 64, **settings: Any
) -> Callable[[], dict[str, Any]]:
    """A whole merge, files to file; with digests that are known, as they are of a pool, or without."""
    # Imports before the clock starts: neither their time nor their memory is the merge's.
    import torch  # noqa: F401

    from merging.members import load_member
    from merging.static import carry_out, plan

    def work() -> dict[str, Any]:
        members = [load_member(folder, digest=digest) for folder in folders]
        report = carry_out(plan(members, method, **settings), out, overwrite=True)
        return {"kept": report.energy_share}

    return work


def in_memory(folders: Sequence[Path]) -> Callable[[], dict[str, Any]]:
    """The truncations alone, on factors that are loaded, as PEFT's are."""
    from merging.members import iterate_stacks, load_members
    from merging.methods import truncate

    stacks = list(iterate_stacks(load_members(folders)))
    weights = [1 / len(folders)] * len(folders)

    def work() -> dict[str, Any]:
        updates = [truncate(stack, stack.columns(weights), RANK) for stack in stacks]
        return {"modules": len(updates)}

    return work


def reading(folders: Sequence[Path]) -> Callable[[], dict[str, Any]]:
    """Plain reads of the same bytes into one buffer: nothing is kept."""
    return lambda: pass_over(folders, None)


def copying(folders: Sequence[Path], out: Path, hashed: bool = False) -> Callable[[], dict[str, Any]]:
    """The same bytes read and written to one file: what a result of the same size takes at least.

    `hashed` copies take the sha256 of each file on the way.
    """
    out.unlink(missing_ok=True)

    def work() -> dict[str, Any]:
        with out.open("wb", buffering=0) as file:
            pass_over(folders, file, hashed)
            os.fsync(file.fileno())
        return {}

    return work


def pass_over(folders: Sequence[Path], target: RawIOBase | None, hashed: bool = False) -> dict[str, Any]:
    """Reads every file of weights, and writes what it reads where there is a target."""
    buffer = bytearray(1 << 22)
    for folder in folders:
        digest = hashlib.sha256()
        with (folder / WEIGHTS).open("rb", buffering=0) as file:
            while count := file.readinto(buffer):
                data = memoryview(buffer)[:count]
                if hashed:
                    digest.update(data)
                if target is not None:
                    target.write(data)
    return {}


def loading(folders: Sequence[Path]) -> Callable[[], dict[str, Any]]:
    """All tensors by the safetensors library, one file at a time, each touched by a sum."""
    from safetensors.torch import load_file

    def work() -> dict[str, Any]:
        total = 0.0
        for folder in folders:
            total += sum(float(tensor.sum()) for tensor in load_file(folder / WEIGHTS).values())
        return {"total": total}

    return work


def forget(folders: Sequence[Path]) -> None:
    """Drops the files from the page cache (Linux)."""
    for folder in folders:
        descriptor = os.open(folder / WEIGHTS, os.O_RDONLY)
        os.fsync(descriptor)
        os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
        os.close(descriptor)


def base_model(size: LlamaWidths) -> Any:
    """A Llama of random weights."""
    from transformers import LlamaConfig, LlamaForCausalLM

    heads = size.hidden // 128
    config = LlamaConfig(
        hidden_size=size.hidden,
        intermediate_size=size.inner,
        num_hidden_layers=size.layers,
        num_attention_heads=heads,
        num_key_value_heads=heads * size.keys // size.hidden,
        vocab_size=64,
    )
    return LlamaForCausalLM(config)


def shapes_alone(size: LlamaWidths) -> Any:
    """A Llama of zeros in bfloat16 whose weights take no memory: PEFT reads their shapes alone."""
    import torch

    with torch.device("meta"):
        model = base_model(size)
    for module in model.modules():
        for name, values in list(module.named_parameters(recurse=False)):
            zeros = torch.zeros(1, dtype=torch.bfloat16).expand(values.shape)
            setattr(module, name, torch.nn.Parameter(zeros, requires_grad=False))
    return model


def by_peft(folders: Sequence[Path], kind: str, size: LlamaWidths) -> Callable[[], dict[str, Any]]:
    """PEFT's add_weighted_adapter on a base with the adapters loaded; nothing is read or written.

    The base is random where it is small, else its shapes alone.
    """
    import warnings

    import torch
    from peft import PeftModel

    warnings.simplefilter("ignore")
    base = base_model(size) if size == SMALL else shapes_alone(size)
    model = PeftModel.from_pretrained(base, folders[0], adapter_name="m0")
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


def by_mergekit(
    folders: Sequence[Path], kind: str, place: Path, size: LlamaWidths
) -> Callable[[], dict[str, Any]]:
    """A full model by mergekit, which folds each adapter into a copy of the base first and keeps those."""
    import warnings

    warnings.simplefilter("ignore")
    configured, merging, options = (
        import_module(f"mergekit.{name}") for name in ("config", "merge", "options")
    )
    base = save_base(place, size)
    member = {"weight": 1.0, "density": 0.2} if kind == "ties" else {"weight": 1 / len(folders)}
    models = [{"model": f"{base}+{folder}", "parameters": member} for folder in folders]
    document: dict[str, Any] = {"merge_method": kind, "models": models, "dtype": "float32"}
    if kind == "ties":
        document |= {"base_model": str(base), "parameters": {"normalize": True}}
    settings = options.MergeOptions(
        lora_merge_cache=str(place / "folded"), lora_merge_dtype="float32", copy_tokenizer=False, quiet=True
    )

    def work() -> dict[str, Any]:
        recipe = configured.MergeConfiguration.model_validate(document)
        merging.run_merge(recipe, str(place / f"mergekit-{kind}"), settings)
        return {}

    return work


def save_base(place: Path, size: LlamaWidths) -> Path:
    """The folder of the base model, written where it is not there yet."""
    import torch

    if not (place / "base").is_dir():
        torch.manual_seed(0)
        base_model(size).save_pretrained(place / "base")
    return place / "base"


def fold_average(folders: Sequence[Path], place: Path, size: LlamaWidths) -> Callable[[], dict[str, Any]]:
    """The average of the adapters, added to the base: a full model, files to files."""
    from merging.static import apply_to

    base = save_base(place, size)
    average = ours(folders, "average", place / "average")

    def work() -> dict[str, Any]:
        average()
        apply_to(base, place / "average", place / "ours-full", overwrite=True)
        return {}

    return work


def one_module(count: int, kind: str) -> Callable[[], dict[str, Any]]:
    """TIES of one 4096 x 4096 module: ours on factors, or PEFT's function on dense updates."""
    import torch

    from merging.members import Stack
    from merging.methods import ModuleWork, find_method
    from merging.methods.blocks import entries, merge_entries
    from merging.methods.sign_election import elect_and_mean, magnitude

    generator = torch.Generator().manual_seed(0)
    a = torch.randn(count * RANK, 4096, generator=generator)
    b = torch.randn(4096, count * RANK, generator=generator)
    stack = Stack("q", a, b, (RANK,) * count, (1.0,) * count)

    def dense() -> dict[str, Any]:
        from peft.utils.merge_utils import ties

        deltas = [b[:, place] @ a[place] for place in stack.ranges()]
        merged = ties(deltas, torch.ones(count), 0.2)
        return {"norm": float(merged.square().sum(dtype=torch.float64)) ** 0.5}

    def stream(finish: bool, mode: str) -> dict[str, Any]:
        options = find_method("ties").options({"thresholds": mode})
        work = ModuleWork(stack, (1.0,) * count, RANK, tuple(map(str, range(count))), options)
        module_entries = entries(work)
        drop, weights = magnitude(work, module_entries), torch.ones(count)

        def merge(values: torch.Tensor, rows: slice) -> torch.Tensor:
            return elect_and_mean(work, weights, drop(values, rows))

        if finish:
            return {"kept": merge_entries(work, module_entries, merge).energy}
        total = 0.0
        for rows in module_entries.ranges(count):
            total += float(merge(module_entries.block(rows), rows).square().sum(dtype=torch.float64))
        return {"norm": total**0.5}

    if kind == "peft":
        return dense
    return lambda: stream(kind == "truncated", "sampled" if kind == "sampled" else "exact")


def weight_vectors(count: int, size: LlamaWidths) -> Callable[[], dict[str, Any]]:
    """New weight vectors on cached Gram matrices: one eigenproblem a module."""
    import torch

    from merging.members import Stack
    from merging.methods.lowrank import grams, truncation

    cached = []
    for n, target in enumerate(TARGETS):
        inside, outside = size.shape(target)
        generator = torch.Generator().manual_seed(n)
        a = torch.randn(count * RANK, inside, generator=generator)
        b = torch.randn(outside, count * RANK, generator=generator)
        cached.append(grams(Stack(target, a, b, (RANK,) * count, (1.0,) * count), precise=False))
    weights = torch.rand(count * RANK, dtype=torch.float64)

    def work() -> dict[str, Any]:
        done = [truncation(factors, weights, RANK) for factors in cached]
        return {"modules": sum(factors is not None for factors in done)}

    return work


def work_of(arguments: argparse.Namespace, folders: Sequence[Path]) -> Callable[[], dict[str, Any]]:
    """The function that a case measures."""
    place, (case, _, kind) = Path(arguments.place), arguments.case.partition(":")
    settings: dict[str, Any] = (
        {"rank": RANK} if kind in ("svd", "ties", "tsv-m", "iso-c", "core-ties", "lora-lego") else {}
    )
    size = SMALL if arguments.size == "small" else large(arguments.layers)
    return {
        "ours": lambda: ours(folders, kind, place / "out", **settings),
        "folders": lambda: ours(folders, kind, place / "out", digest=None, **settings),
        "peft": lambda: by_peft(folders, kind, size),
        "mergekit": lambda: by_mergekit(folders, kind, place, size),
        "folded": lambda: fold_average(folders, place, size),
        "memory": lambda: in_memory(folders),
        "read": lambda: reading(folders),
        "copy": lambda: copying(folders, place / "copy"),
        "hashed-copy": lambda: copying(folders, place / "copy", hashed=True),
        "load": lambda: loading(folders),
        "module": lambda: one_module(arguments.count, kind),
        "weights": lambda: weight_vectors(arguments.count, size),
    }[case]()


def main() -> None:
    """Prepares one case, measures it, and prints a line of JSON."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--case", required=True)
    parser.add_argument("--place", default=".")
    parser.add_argument("--count", type=int, default=8)
    parser.add_argument("--layers", type=int, default=8)
    parser.add_argument("--size", default="small")
    parser.add_argument("--cold", action="store_true", help="drop the files from the page cache before")
    arguments = parser.parse_args()
    place = Path(arguments.place)
    folders = sorted((place / "pool").iterdir())[: arguments.count] if (place / "pool").is_dir() else []
    work = work_of(arguments, folders)
    shutil.rmtree(place / "out", ignore_errors=True)
    if arguments.cold:
        forget(folders)
    began, clock = os.times(), time.perf_counter()
    facts, peak = peak_during(work)
    ended, wall = os.times(), time.perf_counter() - clock
    user, system = ended.user - began.user, ended.system - began.system
    facts |= {"seconds": user + system, "system": system, "wall": wall, "mib": peak / 2**20}
    sys.stdout.write(json.dumps(facts) + "\n")


if __name__ == "__main__":
    main()
