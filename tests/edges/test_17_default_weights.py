"""What a method takes where no weights are given stands where the method is listed, and is what it takes."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from tests.cli.conftest import Program
from tests.edges.rows import peft_norm, row
from tests.merging.adapters import adapter, deltas, merge
from tests.shared_data import shared
from tools import documents

MEANS = {"average", "svd", "separate-average", "magnitude", "dare", "breadcrumbs"}


def test_the_list_of_methods_names_each_default(run: Program) -> None:
    document = {
        item["method"]: item for item in map(json.loads, run("methods", "--jsonl").stdout.splitlines())
    }
    assert {name for name, item in document.items() if item["weight"] == "mean"} == MEANS
    assert {item["weight"] for name, item in document.items() if name not in MEANS} == {1.0}
    assert [name for name, item in document.items() if item["normalised"]] == ["average"]
    result = run("methods").stdout
    assert "weight" in result.splitlines()[0]
    assert "1/N" in result
    assert "[default: 1/N or 1 each]" in " ".join(run("merge", "--help").stdout.split())
    assert "[default: 1/N or 1 each]" in " ".join(documents.HELP.read_text("utf-8").split())


@shared
@pytest.mark.parametrize(
    ("method", "norm"),
    [
        ("sum", 2.1805),
        ("svd", 0.4433),
        ("dare", 0.4433),
        ("magnitude", 0.4433),
        ("breadcrumbs", 0.4433),
        ("peft-svd", 1.7733),
    ],
)
def test_the_norms_of_the_row(method: str, norm: float, tmp_path: Path) -> None:
    members = [row("17-default-weights") / f"member-{n}" for n in range(4)]
    full = {"breadcrumbs": {"density": 1, "largest": 0}, "dare": {"density": 1}, "magnitude": {"density": 1}}
    merge(members, method, tmp_path / "out", parameters=full.get(method, {}), dtype="float32")
    assert peft_norm(tmp_path / "out") == pytest.approx(norm, abs=1e-4)


def test_the_mean_of_dare_over_seeds_is_the_sum_by_its_weights(tmp_path: Path) -> None:
    """Without weights the mean; with weights of 1 the sum, as its sentence says of both."""
    folders = [adapter(tmp_path / f"m{n}", seed=n, rank=2) for n in range(2)]
    members = [deltas(folder) for folder in folders]
    module = "model.layers.0.mlp.down_proj"
    for weights, share in ((None, 0.5), ([1.0, 1.0], 1.0)):
        runs = []
        for seed in range(60):
            merge(folders, "dare", tmp_path / "out", weights=weights, seed=seed, rank=20, overwrite=True)
            runs.append(deltas(tmp_path / "out")[module])
        expected = share * sum(member[module] for member in members)
        spread = share * torch.stack([member[module] for member in members]).square().sum().sqrt()
        assert float((torch.stack(runs).mean(0) - expected).norm()) < 2 * float(spread) / 60**0.5
