"""What a merge is said to hold, against dense updates; the price before it is done."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
import torch

from catalog.errors import UsageError
from merging.static import plan
from merging.static.costs import Rates, calibrate, price
from merging.static.inspection import inspect
from tests.merging.adapters import ALL, Q, adapter, deltas, merge, total

RATES = Rates(1e11, 5e10, 1e9, 1e10)


@pytest.fixture
def folders(tmp_path: Path) -> list[Path]:
    """Three adapters of mixed ranks and modules."""
    return [
        adapter(tmp_path / "one", seed=1, rank=3),
        adapter(tmp_path / "two", seed=2, rank=5, modules=ALL[:2]),
        adapter(tmp_path / "three", seed=3, rank=2),
    ]


def flat(update: dict[str, torch.Tensor], names: set[str]) -> torch.Tensor:
    sizes = {"model.layers.0.self_attn.v_proj": 96, "model.layers.0.mlp.down_proj": 240}
    return torch.cat(
        [
            update[n].flatten() if n in update else torch.zeros(sizes.get(n, 144)).double()
            for n in sorted(names)
        ]
    )


def test_angles_norms_and_shares_are_those_of_the_dense_updates(folders: list[Path], tmp_path: Path) -> None:
    weights = [0.5, -1.0, 2.0]
    merge(folders, "sum", tmp_path / "out", weights=weights)
    result = inspect(folders, result=tmp_path / "out", weights=weights)
    vectors = torch.stack([flat(deltas(folder), set(ALL)) for folder in folders])
    merged = flat(total(weights, folders), set(ALL))
    assert result.norms == pytest.approx(vectors.norm(dim=1).tolist(), rel=1e-5)
    unit = vectors / vectors.norm(dim=1, keepdim=True)
    torch.testing.assert_close(torch.tensor(result.cosines), (unit @ unit.T).float(), rtol=0, atol=1e-5)
    shares = [w * float(v @ merged / merged.square().sum()) for w, v in zip(weights, vectors, strict=True)]
    assert result.shares == pytest.approx(shares, abs=1e-5)
    assert sum(result.shares or ()) == pytest.approx(1, abs=1e-5)
    assert result.likeness == pytest.approx((unit @ (merged / merged.norm())).tolist(), abs=1e-5)
    apart = sum(w**2 * float(v.square().sum()) for w, v in zip(weights, vectors, strict=True))
    assert result.interference == pytest.approx(float(merged.square().sum()) / apart, rel=1e-5)


def test_energy_by_rank_is_what_truncations_keep(folders: list[Path], tmp_path: Path) -> None:
    result = inspect(folders)
    assert result.energy_by_rank[-1] == pytest.approx(1)
    for rank in (1, 3):
        report = merge(folders, "svd", tmp_path / f"r{rank}", rank=rank)
        assert result.energy_by_rank[rank - 1] == pytest.approx(report.energy_share, rel=1e-4)
    assert result.rank_for(0.9) == 1 + sum(share < 0.9 - 1e-9 for share in result.energy_by_rank)


def test_overlaps_of_equal_and_of_orthogonal_members(tmp_path: Path) -> None:
    eye = torch.eye(12)
    first = adapter(tmp_path / "a", modules=[Q], factors={Q: (eye[:3], eye[:, :3])})
    equal = adapter(tmp_path / "b", modules=[Q], factors={Q: (2 * eye[:3], eye[:, :3])})
    other = adapter(tmp_path / "c", modules=[Q], factors={Q: (eye[4:7], eye[:, :3])})
    apart = adapter(tmp_path / "d", modules=[ALL[1]])
    result = inspect([first, equal, other, apart])
    assert result.cosines[0][1] == pytest.approx(1)
    assert result.cosines[0][2] == pytest.approx(0)
    assert result.input_overlap[0][:3] == pytest.approx([1, 1, 0], abs=1e-9)
    assert result.output_overlap[0][:3] == pytest.approx([1, 1, 1], abs=1e-9)
    assert result.input_overlap[0][3] is None
    assert result.interference < 2
    assert inspect([first, equal], weights=[2, 1]).interference == pytest.approx(2)


def test_the_weights_must_fit_and_nothing_but_a_picture_is_written(
    folders: list[Path], tmp_path: Path
) -> None:
    with pytest.raises(UsageError, match="3 members require as many weights, not 2"):
        inspect(folders, weights=[1, 1])
    for wrong in ([0, 0, 0], [1, math.nan, 1], [1, math.inf, 1]):
        with pytest.raises(UsageError, match="Weights must be finite numbers, at least one of them not 0"):
            inspect(folders, weights=wrong)
    pytest.importorskip("matplotlib")
    inspect(folders).plot(tmp_path / "picture.png")
    assert (tmp_path / "picture.png").read_bytes().startswith(b"\x89PNG")


@pytest.mark.parametrize("method", ["sum", "svd", "ties", "lora-lego", "tsv-m", "peft-linear"])
def test_ranks_and_sizes_of_a_price_are_those_of_the_merge(method: str, tmp_path: Path) -> None:
    folders = [adapter(tmp_path / f"m{n}", seed=n, rank=3, dtype=torch.bfloat16) for n in range(2)]
    planned = plan(folders, method)
    requests = price(planned, RATES)
    report = merge(folders, method, tmp_path / "out")
    assert requests.rank == max(module.rank for module in report.modules.values())
    written = sum(
        m.rank * (24 if n.endswith("q_proj") else 20 if n.endswith("v_proj") else 32)
        for n, m in report.modules.items()
    )
    assert (requests.parameters, requests.size) == (written, 2 * written)
    assert requests.read == 2 * 2 * 3 * (24 + 20 + 32 + 24)
    assert requests.memory > 0


def test_a_price_grows_with_what_it_pays_for(tmp_path: Path) -> None:
    folders = [adapter(tmp_path / f"m{n}", seed=n, rank=3) for n in range(4)]
    two, four = (price(plan(folders[:n], "svd"), RATES) for n in (2, 4))
    assert four.operations > 2 * two.operations
    assert four.seconds > two.seconds
    assert four.memory > two.memory
    assert price(plan(folders, "ties"), RATES).operations > 0


def test_a_calibration_gives_rates() -> None:
    rates = calibrate()
    assert min(rates.single, rates.double, rates.eigen, rates.memory) > 1e6
