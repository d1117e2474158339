"""RegMean: the normal equations on dense matrices, and what it refuses."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from catalog.errors import MergeError, UsageError
from tests.merging.adapters import ALL, SHAPES, adapter, deltas, distance, merge, total


def activations(path: Path, seed: int, kind: str = "inputs", rows: int = 50) -> Path:
    generator = torch.Generator().manual_seed(seed)
    tensors = {}
    for name in ALL:
        x = torch.randn(rows, SHAPES[name][0], generator=generator) * torch.logspace(0, 1, SHAPES[name][0])
        tensors[f"{name}.{kind}"] = x.T @ x if kind == "gram" else x
    save_file(tensors, path)
    return path


@pytest.fixture
def folders(tmp_path: Path) -> list[Path]:
    return [adapter(tmp_path / f"m{n}", n, rank=2 + n) for n in range(2)]


@pytest.mark.parametrize("shrink", [1.0, 0.9, 0.0])
@pytest.mark.parametrize("kind", ["inputs", "gram"])
def test_it_solves_the_normal_equations(
    shrink: float, kind: str, folders: list[Path], tmp_path: Path
) -> None:
    inputs = [activations(tmp_path / f"x{n}", n, kind) for n in range(2)]
    merge(folders, "regmean", tmp_path / "out", inputs=inputs, weights=[1, 3], parameters={"shrink": shrink})
    from safetensors.torch import load_file

    expected = {}
    for name in ALL:
        left: torch.Tensor | int = 0
        right: torch.Tensor | int = 0
        for weight, path, folder in zip([1, 3], inputs, folders, strict=True):
            x = load_file(path)[f"{name}.{kind}"].double()
            gram = x if kind == "gram" else x.T @ x
            gram = torch.where(torch.eye(len(gram)).bool(), gram, shrink * gram)
            left, right = left + weight * deltas(folder)[name] @ gram, right + weight * gram
        expected[name] = torch.as_tensor(left) @ torch.linalg.inv(torch.as_tensor(right))
    assert distance(deltas(tmp_path / "out"), expected) < 1e-5


def test_no_other_merge_is_nearer_on_the_inputs(folders: list[Path], tmp_path: Path) -> None:
    from safetensors.torch import load_file

    inputs = [activations(tmp_path / f"x{n}", n) for n in range(2)]
    merge(folders, "regmean", tmp_path / "out", inputs=inputs, parameters={"shrink": 1})

    def error(update: dict[str, torch.Tensor]) -> float:
        return sum(
            float(
                ((update[name] - deltas(folder)[name]) @ load_file(path)[f"{name}.inputs"].T.double())
                .square()
                .sum()
            )
            for path, folder in zip(inputs, folders, strict=True)
            for name in ALL
        )

    best = error(deltas(tmp_path / "out"))
    assert best < 0.9 * error(total([0.5, 0.5], folders))
    nudged = {
        name: delta + 1e-3 * torch.randn_like(delta) for name, delta in deltas(tmp_path / "out").items()
    }
    assert best < error(nudged)


def test_identities(folders: list[Path], tmp_path: Path) -> None:
    inputs = [activations(tmp_path / f"x{n}", n) for n in range(2)]
    merge(folders[:1], "regmean", tmp_path / "one", inputs=inputs[:1])
    assert distance(deltas(tmp_path / "one"), deltas(folders[0])) < 1e-5
    merge(folders, "regmean", tmp_path / "same", inputs=inputs[:1] * 2)
    assert distance(deltas(tmp_path / "same"), total([0.5, 0.5], folders)) < 1e-5


def test_what_it_refuses(folders: list[Path], tmp_path: Path) -> None:
    inputs = [activations(tmp_path / f"x{n}", n) for n in range(2)]
    with pytest.raises(UsageError, match="one file of activations"):
        merge(folders, "regmean", tmp_path / "out", inputs=inputs[:1])
    few = [activations(tmp_path / f"f{n}", n, rows=3) for n in range(2)]
    with pytest.raises(MergeError, match="do not span"):
        merge(folders, "regmean", tmp_path / "out", inputs=few, parameters={"shrink": 1})
    save_file({"other.gram": torch.eye(3)}, tmp_path / "other")
    with pytest.raises(MergeError, match=r"neither .*\.gram nor"):
        merge(folders, "regmean", tmp_path / "out", inputs=[inputs[0], tmp_path / "other"])
    save_file({f"{name}.gram": torch.eye(3) for name in ALL}, tmp_path / "small")
    with pytest.raises(MergeError, match=r"shape \[3, 3\]"):
        merge(folders, "regmean", tmp_path / "out", inputs=[inputs[0], tmp_path / "small"])
    save_file({f"{n}.gram": torch.full((SHAPES[n][0],) * 2, torch.nan) for n in ALL}, tmp_path / "nan")
    with pytest.raises(MergeError, match="NaN"):
        merge(folders, "regmean", tmp_path / "out", inputs=[inputs[0], tmp_path / "nan"])
    (tmp_path / "broken").write_bytes(b"\x80\x04.")
    with pytest.raises(MergeError, match="cannot be read"):
        merge(folders, "regmean", tmp_path / "out", inputs=[inputs[0], tmp_path / "broken"])
    assert not (tmp_path / "out").exists()
