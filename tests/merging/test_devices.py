"""CPU and CUDA agree; skipped with a reason where there is no GPU."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from merging.methods import METHODS
from merging.methods.blocks import uniform
from tests.merging.adapters import ALL, adapter, deltas, distance, merge

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no CUDA device")


@pytest.mark.parametrize("method", [name for name, row in METHODS.items() if not row.data])
def test_every_method_gives_the_same_on_both(method: str, tmp_path: Path) -> None:
    folders = [adapter(tmp_path / f"m{n}", seed=n, modules=ALL) for n in range(3)]
    for device in ("cpu", "cuda"):
        merge(folders, method, tmp_path / device, device=device, seed=3)
    assert distance(deltas(tmp_path / "cuda"), deltas(tmp_path / "cpu")) < 1e-3


def test_random_numbers_are_the_same() -> None:
    left, right = (uniform([1, 1 << 50], slice(3, 40), 33, device).cpu() for device in ("cpu", "cuda"))
    assert torch.equal(left, right)
