"""A member without an update has no singular directions to make others orthogonal to."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from tests.edges.rows import peft_norm, row
from tests.merging.adapters import ALL, SHAPES, adapter, deltas, distance, merge
from tests.shared_data import shared


@shared
@pytest.mark.parametrize("parameters", [{"components": 6}, {}])
@pytest.mark.parametrize(("names", "norm"), [(("one",), 1.1455), (("one", "two"), 1.6322)])
def test_tsv_of_the_row_is_that_of_the_others(
    names: tuple[str, ...], norm: float, parameters: dict[str, int], tmp_path: Path
) -> None:
    folders = [row("18-zero-member") / name for name in names]
    merge(folders, "tsv-m", tmp_path / "without", parameters=parameters, dtype="float32")
    zero = row("18-zero-member") / "zero"
    merge([*folders, zero], "tsv-m", tmp_path / "with", parameters=parameters, dtype="float32")
    assert distance(deltas(tmp_path / "with"), deltas(tmp_path / "without")) < 1e-6
    if parameters:
        assert peft_norm(tmp_path / "with") == pytest.approx(norm, abs=1e-4)


@pytest.mark.parametrize("method", ["tsv-m", "iso-c", "iso-cts", "core-ties", "knots-ties", "lora-lego"])
def test_one_module_of_zeros_is_left_to_the_others(method: str, tmp_path: Path) -> None:
    """The second member has an update of 0 in one module, and another in the rest."""
    generator = torch.Generator().manual_seed(7)
    factors = {}
    for name, (inside, outside) in SHAPES.items():
        a, b = torch.randn(3, inside, generator=generator), torch.randn(outside, 3, generator=generator)
        factors[name] = (a, torch.zeros_like(b) if name == ALL[2] else b)
    item, two = adapter(tmp_path / "one", seed=1), adapter(tmp_path / "two", factors=factors)
    lacking = adapter(tmp_path / "lacking", factors=factors, modules=[n for n in ALL if n != ALL[2]])
    parameters = {"rescale": False} if method == "lora-lego" else {}
    for out, second in (("zero", two), ("absent", lacking)):
        # By one name, from which random numbers are made.
        place = second.rename(tmp_path / "second")
        merge([item, place], method, tmp_path / out, parameters=parameters)
        place.rename(second)
    assert distance(deltas(tmp_path / "zero"), deltas(tmp_path / "absent")) < 1e-6
