"""The memory curve: a merge needs one module of each member, whatever the number of layers."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from tests.hubs import adapter_config

PROGRAM = """
import sys
from pathlib import Path
from tests.merging.adapters import merge
from tools.bench.peak import peak_during
method, place = sys.argv[1], Path(sys.argv[2])
folders = sorted(place.glob("m*"))
merge([place / "warm"], method, place / f"warm-{method}", rank=4)
print(peak_during(lambda: merge(folders, method, place / f"out-{method}", rank=4))[1])
"""


def write(folder: Path, layers: int, seed: int, width: int = 4096) -> None:
    generator = torch.Generator().manual_seed(seed)
    tensors = {}
    for layer in range(layers):
        stem = f"base_model.model.model.layers.{layer}.self_attn.q_proj.lora_"
        tensors[f"{stem}A.weight"] = torch.randn(16, width, generator=generator)
        tensors[f"{stem}B.weight"] = torch.randn(width, 16, generator=generator)
    folder.mkdir(parents=True)
    save_file(tensors, folder / "adapter_model.safetensors")
    # A base that nobody knows may have any number of layers.
    config = adapter_config(r=16, target_modules=["q_proj"], base_model_name_or_path="made/deep")
    (folder / "adapter_config.json").write_text(json.dumps(config))


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="the peak of a process is read from /proc")
@pytest.mark.parametrize("method", ["svd", "average"])
def test_peak_memory_does_not_grow_with_the_layers(method: str, tmp_path: Path) -> None:
    """Six members of 24, then of 72 layers: 72 and 216 MiB of files.

    Allocators need some layers to settle, and peaks differ by up to 20 MiB from run to run; a merge that kept
    what it has read would grow by the 144 MiB more.
    """
    peaks = []
    for layers in (24, 72):
        place = tmp_path / str(layers)
        write(place / "warm", 1, 99)
        for n in range(6):
            write(place / f"m{n}", layers, n)
        done = subprocess.run(
            (sys.executable, "-c", PROGRAM, method, str(place)), stdout=subprocess.PIPE, text=True, check=True
        )
        peaks.append(int(done.stdout))
    more = 6 * 48 * 2 * 16 * 4096 * 4
    assert min(peaks) > 1024 * 1024
    assert peaks[1] - peaks[0] < 0.25 * more
